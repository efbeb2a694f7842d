/**
 * Every interface behind which something remembers, computes or tells the time. Types only: this file emits no code.
 *
 * An implementation that cannot keep a MUST below throws; it never answers with a guess. Whoever calls a seam treats any
 * exception, any time-out and any answer of another type as a refusal.
 */

/** Bytes over a plain `ArrayBuffer`, as WebCrypto wants them. A Node `Buffer` is one of these at run time. */
export type Bytes = Uint8Array<ArrayBuffer>;

/** An answer that comes at once or later. Who calls awaits it only where it is a promise: a turn of the queue has its price. */
export type MaybePromise<T> = T | Promise<T>;

/** The time. MUST be Unix time in milliseconds; MAY step backwards; MUST throw rather than answer `NaN`. */
export interface Clock {
  /** Unix milliseconds; may have a fraction. */
  nowMs(): number;
}

/** Randomness. MUST be a cryptographically secure generator. */
export interface Random {
  /** Exactly `lengthBytes` bytes, in a new array that is the caller's. */
  bytes(lengthBytes: number): Bytes;
}

/** A P-256 public key in the one form that this protocol accepts: unpadded base64url, 32-byte coordinates. */
export interface PublicJwk {
  readonly crv: 'P-256';
  readonly kty: 'EC';
  readonly x: string;
  readonly y: string;
}

/** A public key as one implementation of {@link Primitives} imported it; opaque to everyone else. */
export type VerifyKey = object;

/**
 * The hash and the signature check. WebCrypto is the default (`webCryptoPrimitives`); a Node server injects
 * `nodePrimitives()` of `@keyguard/server-verifier`, which answers synchronously and costs a third less.
 */
export interface Primitives {
  /** SHA-256 of `data`, 32 bytes. */
  sha256(data: Bytes): MaybePromise<Bytes>;
  /**
   * Imports an untrusted key. MUST refuse a point that is not on P-256 and coordinates that are not canonical.
   * @throws RejectedError `jwk_invalid`
   */
  importPublicKey(jwk: PublicJwk): MaybePromise<VerifyKey>;
  /**
   * ECDSA P-256 with SHA-256 over `data`. `signature` is untrusted, 64 bytes `r‖s`; high `s` is valid.
   * MUST answer `false`, not throw, for any 64 bytes that are not a signature.
   */
  verify(key: VerifyKey, data: Bytes, signature: Bytes): MaybePromise<boolean>;
}

/** The ability to sign with one device key. The private key itself never crosses this seam. */
export interface SigningKey {
  /** RFC 7638 SHA-256 thumbprint of {@link publicKey}, 43 base64url characters. */
  readonly keyId: string;
  readonly publicKey: PublicJwk;
  /** ECDSA P-256 with SHA-256 over `data`: 64 bytes `r‖s`. */
  sign(data: Bytes): Promise<Bytes>;
}

/**
 * Where a device keeps its keys, by name: one that it signs with, and at most one that is pending, to replace it.
 * All verbs are durable when they resolve, and throw `UsageError` `key_store_unusable` where the place cannot keep keys.
 * A program that is killed at any moment MUST leave each name with the key it had or with the one that replaced it.
 */
export interface KeyStore {
  /**
   * The key of that name, made if there is none. Racing callers, tabs and processes MUST all get the SAME key.
   * MUST NOT fall back to a weaker kind of key without being told to.
   */
  getOrCreate(name: string): Promise<SigningKey>;
  /** The key of that name, or `null`. */
  get(name: string): Promise<SigningKey | null>;
  /** The pending key of that name, or `null`. */
  getPending(name: string): Promise<SigningKey | null>;
  /**
   * The pending key of that name, made if there is none. Racing callers, tabs and processes MUST all get the SAME key.
   * @throws UsageError `not_enrolled` where the name has no key that it could replace
   */
  getOrCreatePending(name: string): Promise<SigningKey>;
  /**
   * Compare and set: where the pending key has this id, it becomes the key of that name in one atomic step, the former key
   * is forgotten, and the answer is `true`. Otherwise nothing changes, and it is `false`.
   */
  promote(name: string, pendingKeyId: string): Promise<boolean>;
  /**
   * Compare and set: where the pending key has this id, it is forgotten, and the answer is `true`. Otherwise nothing changes,
   * and it is `false`. Of racing calls of `promote` and `discard` for one id exactly one MUST answer `true`.
   */
  discard(name: string, pendingKeyId: string): Promise<boolean>;
  /** Forgets the key of that name and its pending key; resolves also when there was none. */
  delete(name: string): Promise<void>;
}

/** What a device may do: only `active` ones may call. Revocation is final. */
export type DeviceStatus = 'pending' | 'active' | 'suspended' | 'revoked';

/** `retiring` keys still verify until `keyRetiresAtMs`; `retired` ones never again. */
export type KeyState = 'current' | 'retiring' | 'retired';

/** What a verifier needs to know of a device, as found under one of its key ids. */
export interface Device {
  readonly deviceId: string;
  /** The person or account that answers for the device; `null` while a device without a code awaits approval. */
  readonly ownerId: string | null;
  readonly projectId: string | null;
  readonly keyId: string;
  readonly publicKey: PublicJwk;
  readonly keyState: KeyState;
  /** Set if and only if `keyState` is `retiring`; Unix milliseconds. */
  readonly keyRetiresAtMs: number | null;
  readonly status: DeviceStatus;
  readonly label: string | null;
  /** Overrides the policy's limit for this device; `null` for the policy's. */
  readonly requestsPerMinute: number | null;
  /** Addresses and CIDR ranges from which this device may call; `null` for any. */
  readonly ipAllowlist: readonly string[] | null;
}

/** A proven request to enroll: the verifier has checked the signature by `publicKey` and that `keyId` is its thumbprint. */
export interface EnrollmentRequest {
  readonly keyId: string;
  readonly publicKey: PublicJwk;
  /** Base64url SHA-256 of the normalised enrollment code, or `null` when the device sent none. */
  readonly codeHash: string | null;
  readonly label: string | null;
  readonly fingerprint: string | null;
  readonly nowMs: number;
}

/** What became of an enrollment. Any other answer is treated as an outage. */
export type EnrollmentOutcome =
  | { readonly outcome: 'enrolled'; readonly device: Device }
  /** The key id was enrolled before, in whatever state it is now. */
  | { readonly outcome: 'key_exists' }
  /** Unknown, used, expired or revoked code, or no code where one is demanded: one answer for all. */
  | { readonly outcome: 'rejected' };

/** A proven request to rotate: the verifier has checked the signature by the old key and the proof by the new one. */
export interface KeyRotationRequest {
  readonly oldKeyId: string;
  /** Of the new key: its thumbprint. */
  readonly keyId: string;
  /** The new key. */
  readonly publicKey: PublicJwk;
  /** Base64url SHA-256 of the normalised rotation code, or `null` when the device sent none. */
  readonly codeHash: string | null;
  /** Whether the policy lets a device rotate by itself. A code that was sent MUST be good all the same. */
  readonly allowWithoutCode: boolean;
  /** How long the old key still verifies: 0 to 60,000. */
  readonly overlapMs: number;
  readonly nowMs: number;
}

/** What became of a rotation. Any other answer is treated as an outage. */
export type KeyRotationOutcome =
  /** The device as found under its new key. */
  | { readonly outcome: 'rotated'; readonly device: Device }
  /** A repeat: this new key has replaced this old key, which is retiring still. Nothing changed. */
  | { readonly outcome: 'already_rotated'; readonly device: Device }
  /** The new key id was known before, of whatever device and in whatever state. */
  | { readonly outcome: 'key_exists' }
  /**
   * The old key is not the current key of an active device; or the code is unknown, used, expired, revoked or another device's, or
   * there is none where one is demanded: one answer for all.
   */
  | { readonly outcome: 'rejected' };

/** The devices that a verifier trusts. A key id belongs to one device for ever, also after revocation. */
export interface DeviceRegistry {
  /**
   * The device that has or had this key, or `null`. MUST see every change that was acknowledged before the call. One that answers
   * from what it keeps MUST instead name a bound, one second at most: no answer that it gives leaves out a change that was
   * acknowledged longer ago than that, and where it cannot tell it throws. It too MUST see at once a key that it did not know, and
   * every change that was made through its own process.
   */
  findByKeyId(keyId: string): MaybePromise<Device | null>;
  /**
   * Enrolls in one atomic step: the key id is new, the code has a use left and loses it, the device is written.
   * MUST answer `key_exists` before it looks at the code. Of racing callers with one single-use code exactly one MUST win.
   */
  enroll(request: EnrollmentRequest): MaybePromise<EnrollmentOutcome>;
  /**
   * Replaces the key of a device in one atomic step: the old key is the `current` key of an `active` device, the new key id is new,
   * the code is this device's and loses its only use; the new key is `current` from then on, the old one `retiring` until
   * `nowMs + overlapMs`. A device MUST never have two `current` keys, nor none.
   *
   * MUST judge device and old key first, a repeat included, then the new key id, and the code last: a code keeps its use where
   * nothing was rotated. Of racing callers with one code, or with several new keys for one old key, exactly one MUST win.
   */
  rotate(request: KeyRotationRequest): MaybePromise<KeyRotationOutcome>;
}

/** What changed, and from where to ask on. */
export interface ChangedDevices {
  /** Opaque: for the next call. */
  readonly cursor: string;
  /** The devices that changed, in any order; or `reset`: any device may have. */
  readonly deviceIds: readonly string[] | 'reset';
}

/** Tells which devices changed, to whoever keeps what it once read of them. */
export interface DeviceChanges {
  /**
   * The devices of which anything that {@link DeviceRegistry.findByKeyId} tells has changed since `cursor`: the one of an earlier
   * answer, or `null` for none, and then the answer is `reset`.
   *
   * MUST name every device with a change that was acknowledged before the call and that no answer on the way to `cursor` has named,
   * in whatever order concurrent changes came to be durable. MUST NOT name a change before `findByKeyId` sees it: what is read
   * again too early would be kept. MUST answer `reset` where it cannot tell what it has named (too many changes, a cursor that is
   * too old or another server's), and throw where it might not see all (a standby). MAY name a device that has not changed.
   */
  since(cursor: string | null): MaybePromise<ChangedDevices>;
  /**
   * Calls `hint` when there may be something to ask for; answers with how to end that. Makes a change known sooner and nothing
   * more: a hint may be lost, doubled or late.
   */
  onHint?(hint: () => void): () => void;
}

/** Remembers which `(keyId, nonce)` pairs were used. */
export interface ReplayStore {
  /**
   * True for exactly one caller per `(keyId, nonce)`, across all processes that share the store.
   *
   * MUST remember the pair until `expiresAtMs` and MUST NOT evict it earlier; MUST throw when it cannot remember (full,
   * slow, broken); MUST answer `false` (or throw) for a `createdSeconds` at or below its floor: the moment before which it
   * may have forgotten pairs.
   */
  claim(keyId: string, nonce: string, createdSeconds: number, expiresAtMs: number): MaybePromise<boolean>;
  /**
   * How far ahead of the clock a request may be dated, where the store sets a stricter limit than the policy. A store that
   * forgets on restart needs it: a request dated ahead would outlive its floor.
   */
  readonly maxFutureSeconds?: number;
}

/** Whether a caller may go on, and how much is left to it. */
export interface RateDecision {
  readonly allowed: boolean;
  /** Cost units per window. */
  readonly limit: number;
  /** Cost units that are left in this window, never below 0. */
  readonly remaining: number;
  /** When the window ends, Unix milliseconds. */
  readonly resetAtMs: number;
}

/** Counts cost per key within a window. Both verbs throw when they cannot count. */
export interface RateLimiter {
  /** What {@link consume} would decide for a cost of 1, without debiting. `limit` overrides the limiter's own. */
  peek(key: string, limit?: number): MaybePromise<RateDecision>;
  /** Debits `cost` units atomically and decides. `limit`, in cost units per window, overrides the limiter's own. */
  consume(key: string, cost: number, limit?: number): MaybePromise<RateDecision>;
}

/** A data encryption key, encrypted under a key encryption key that is named and never shown. */
export interface WrappedKey {
  readonly kekId: string;
  readonly bytes: Bytes;
}

/** Wraps and unwraps 32-byte keys. The key encryption key stays inside. */
export interface KeyProvider {
  /** Encrypts and authenticates `dek`, bound to `context`: both MUST be authenticated. */
  wrap(dek: Bytes, context: Bytes): Promise<WrappedKey>;
  /**
   * The exact inverse. MUST fail for any change of key, bytes or context. The answer MUST be a fresh array: it is the caller's,
   * who wipes it.
   * @throws RejectedError `vault_open_failed`
   */
  unwrap(key: WrappedKey, context: Bytes): Promise<Bytes>;
}

/** A key of the vault, as one implementation of {@link VaultPrimitives} holds it; opaque to everyone else. */
export type VaultKey = object;

/** The two keys of one sealed value. */
export interface VaultKeys {
  /** For AES-256-GCM. */
  readonly encryption: VaultKey;
  /** For HMAC-SHA-256. */
  readonly commitment: VaultKey;
}

/** AES-256-GCM's two answers, apart: they are copied once only, to their places in the envelope. */
export interface VaultCiphertext {
  /** As long as the plaintext. */
  readonly ciphertext: Bytes;
  /** 16 bytes. */
  readonly tag: Bytes;
}

/**
 * The algorithms of the vault, each with the one set of parameters that its formats know. WebCrypto is the default; a Node server
 * injects `nodeVaultPrimitives()` of `@keyguard/storage-node/vault`, which answers short values synchronously.
 *
 * For the vault to call, which draws every IV itself. An array that is handed in MUST NOT be kept or changed, and every answer MUST
 * be the caller's own.
 */
export interface VaultPrimitives {
  /** SHA-256 of `data`, 32 bytes. */
  sha256(data: Bytes): MaybePromise<Bytes>;
  /** A key for AES-256-GCM out of 32 bytes, which the caller may wipe. @throws UsageError `invalid_option` for another length */
  importAesKey(key: Bytes): MaybePromise<VaultKey>;
  /** HKDF-SHA-256 (RFC 5869) of `secret`, which the caller may wipe, with an empty salt and each label as info: 32 bytes each. */
  deriveKeys(secret: Bytes, encryptionLabel: Bytes, commitmentLabel: Bytes): MaybePromise<VaultKeys>;
  /** HMAC-SHA-256, 32 bytes. */
  hmac(key: VaultKey, data: Bytes): MaybePromise<Bytes>;
  /** AES-256-GCM with a tag of 16 bytes. MUST throw for an `iv` of another length than 12 bytes. */
  encrypt(key: VaultKey, iv: Bytes, aad: Bytes, plaintext: Bytes): MaybePromise<VaultCiphertext>;
  /**
   * The plaintext. `encrypted` is untrusted, ciphertext and 16-byte tag. MUST throw before any plaintext comes out where the tag is
   * wrong, and for an `iv` of another length than 12 bytes.
   */
  decrypt(key: VaultKey, iv: Bytes, aad: Bytes, encrypted: Bytes): MaybePromise<Bytes>;
}

/** What JSON can hold. Numbers are finite; text is Unicode. */
export type JsonValue = null | boolean | number | string | readonly JsonValue[] | { readonly [name: string]: JsonValue };

/** What happened, by whom, to what. `origin`, `seq` and `ts` are added by the chain and MUST NOT be given. */
export interface AuditEntry {
  readonly action: string;
  readonly outcome: 'success' | 'refused' | 'failed';
  /** Who acted, for instance `user:…`, `device:…` or `system`. */
  readonly actor: string;
  readonly [field: string]: JsonValue;
}

/** One link of the chain, in its final bytes. */
export interface AuditRecord {
  /** Its number in the chain, from 0 to 2⁵³ − 1. */
  readonly seq: number;
  /** RFC 8785 JSON of the entry with `origin`, `seq` and `ts`, as UTF-8. */
  readonly bytes: Bytes;
  readonly prevMac: Bytes;
  readonly mac: Bytes;
  readonly macKeyId: string;
  /** Set if and only if the record before has another `macKeyId`. MUST be stored and given back with the record. */
  readonly handover?: AuditHandover;
}

/** How the key of the records before vouches for the next one. */
export interface AuditHandover {
  /** The key of the record before. */
  readonly macKeyId: string;
  /** 32 bytes under that key, over the record with its own MAC and key id. */
  readonly mac: Bytes;
}

/** The ability to authenticate audit records with one key; the key itself stays inside. */
export interface AuditMacKey {
  readonly keyId: string;
  /** HMAC-SHA-256, 32 bytes. */
  mac(data: Bytes): MaybePromise<Bytes>;
}

/** An append-only log. `Tx` is the transaction handle of the store behind it. */
export interface AuditSink<Tx = never> {
  /**
   * Appends in order, without gaps, and MUST be durable when it resolves; otherwise it throws and nothing was appended. Answers
   * with the records of `entries` only, also where a change of the MAC key was recorded before them.
   */
  append(entries: readonly AuditEntry[]): Promise<readonly AuditRecord[]>;
  /** Appends inside the caller's transaction: the entries exist if and only if it commits. */
  appendIn(tx: Tx, entries: readonly AuditEntry[]): Promise<readonly AuditRecord[]>;
  /** The last record, or `null` of an empty log. */
  head(): Promise<AuditRecord | null>;
  /** All records from `fromSeq` on, in order. */
  read(fromSeq: number): AsyncIterable<AuditRecord>;
}

/** A complete subtree of a Merkle tree: the 2^level leaves from index · 2^level on. */
export interface SubtreePlace {
  /** Its height: 0 for a leaf. */
  readonly level: number;
  /** How many subtrees of that level stand before it. */
  readonly index: number;
}

/** A complete subtree and its hash, which never changes again. */
export interface Subtree extends SubtreePlace {
  /** 32 bytes. */
  readonly hash: Bytes;
}

/** Where the hashes of a tree's complete subtrees are kept. A tree only grows, so none of them ever changes. */
export interface SubtreeReader {
  /**
   * The hashes of these subtrees, in the order asked for. MUST throw when it does not have one of them. One call is made for
   * one proof, and `places` has at most about a hundred members: read them in one round trip.
   */
  read(places: readonly SubtreePlace[]): MaybePromise<readonly Bytes[]>;
}

/** The ability to sign checkpoints with one Ed25519 key. The private key itself never crosses this seam. */
export interface CheckpointSigner {
  /** 32 bytes, as RFC 8032 encodes them. */
  readonly publicKey: Bytes;
  /** Ed25519 (pure, without context) over `data`: 64 bytes. */
  sign(data: Bytes): MaybePromise<Bytes>;
}
