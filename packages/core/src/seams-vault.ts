/**
 * Seams of the vault: who wraps its keys, and what computes. Types only.
 *
 * Reached by way of `@keyguard/core/seams`, where the rule for all of them stands.
 */
import type { Bytes, MaybePromise } from './seams-keys.ts';

/** A data encryption key, encrypted under a key encryption key that is named and never shown. */
export interface WrappedKey {
  readonly kekId: string;
  readonly bytes: Bytes;
}

/**
 * Wraps and unwraps 32-byte keys. The key encryption key stays inside. A key that cannot be reached is an outage: `UnavailableError`,
 * and MUST NOT be told as a value that cannot be opened.
 */
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

/** Where a key is in its life. */
export type KeyRecordState = 'pre-active' | 'primary' | 'decrypt-only' | 'disabled' | 'destroyed';

/** One key of a deployment, as its root wrapped it. */
export interface KeyRecord {
  readonly id: string;
  /** What it is for; each purpose has at most one `primary` key. */
  readonly purpose: string;
  readonly state: KeyRecordState;
  readonly wrapped: Bytes;
  /** Which root wrapped it. */
  readonly rootId: string;
  readonly createdAtMs: number;
}

/** The wrapped keys of a deployment. Sees ciphertext only. Both verbs MUST throw `UnavailableError` when they cannot tell. */
export interface KeyRecords {
  /** All of them, oldest first. */
  list(): Promise<readonly KeyRecord[]>;
  /**
   * Adds those whose id is new and, where they are primary, whose purpose has no primary key yet; then answers with all that
   * there are. Processes that start at the same time with keys of their own MUST all get the same answer, and use only that.
   */
  insertIfAbsent(records: readonly KeyRecord[]): Promise<readonly KeyRecord[]>;
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
