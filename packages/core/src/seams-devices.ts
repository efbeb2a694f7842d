/**
 * Seams of who may call: devices, the requests that were used up, and limits. Types only.
 *
 * Reached by way of `@keyguard/core/seams`, where the rule for all of them stands.
 */
import type { MaybePromise, PublicJwk } from './seams-keys.ts';

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
  /**
   * Names of the models that this device may use, where one may end in `*`; `null` for any. For whoever hands requests on; the
   * verifier does not look at it.
   */
  readonly allowedModels: readonly string[] | null;
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

/** Counts cost per key within a window. Both verbs MUST throw `UnavailableError` when they cannot count; a cost may then be debited all the same. */
export interface RateLimiter {
  /** What {@link consume} would decide for a cost of 1, without debiting. `limit` overrides the limiter's own. */
  peek(key: string, limit?: number): MaybePromise<RateDecision>;
  /** Debits `cost` units atomically and decides. `limit`, in cost units per window, overrides the limiter's own. */
  consume(key: string, cost: number, limit?: number): MaybePromise<RateDecision>;
}
