/**
 * Seams of keys and of what they stand on: bytes, time, randomness, the hash and the signature check. Types only.
 *
 * Reached by way of `@keyguard/core/seams`, where the rule for all of them stands.
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
