/**
 * The ground floor: three error classes, told apart by who must act, and one union of stable codes.
 *
 * Match by `code` (or by {@link hasCode}), never by `instanceof`: an application may hold two copies of this package.
 * No message, code or property here ever carries a secret, key, token, signature or plaintext.
 *
 * @see docs/spec/request-signing.md for the meaning of each rejection code on the wire
 */

/** What a verifier answers to a peer. Each has one HTTP status in `@keyguard/server-verifier/rejection`. */
export type ProtocolRejectionCode =
  | 'malformed_request'
  | 'unsupported_version'
  | 'unsupported_header'
  | 'unsupported_encoding'
  | 'body_too_large'
  | 'request_timeout'
  | 'timestamp_out_of_window'
  | 'signature_invalid'
  | 'device_pending'
  | 'device_suspended'
  | 'device_revoked'
  | 'ip_not_allowed'
  | 'replay_detected'
  | 'rate_limited'
  | 'enrollment_rejected'
  | 'key_exists'
  | 'rotation_rejected'
  | 'challenge_required';

/** Untrusted data that is not a request: a public key, an envelope, an audit record, a proof, a checkpoint, a JSON value. */
export type DataRejectionCode =
  | 'jwk_invalid'
  | 'vault_open_failed'
  | 'audit_record_invalid'
  | 'merkle_proof_invalid'
  | 'checkpoint_invalid'
  | 'json_not_canonical'
  | 'rotation_state_invalid';

/** Every code of a {@link RejectedError}. */
export type RejectionCode = ProtocolRejectionCode | DataRejectionCode;

/** A mistake in the program that calls this package; never caused by a peer. */
export type UsageCode =
  | 'invalid_option'
  | 'origin_not_allowed'
  | 'target_unsupported'
  | 'header_unsupported'
  | 'not_enrolled'
  | 'key_store_unusable'
  | 'rotation_step_refused';

/** Something that the operator runs did not answer, or answered with what it must not. */
export type UnavailableCode = 'store_unavailable' | 'overloaded' | 'server_unavailable';

/** Every code that an error of these packages bears. */
export type KeyGuardErrorCode = RejectionCode | UsageCode | UnavailableCode;

/** The programmer must act. Thrown at construction or before anything is sent; never becomes an HTTP answer. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
  readonly code: UsageCode;

  constructor(code: UsageCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** What a {@link RejectedError} carries for the operator. Nothing of it is secret, and only `retryAfterMs` is for the peer. */
export interface RejectedErrorOptions extends ErrorOptions {
  /** The exact reason, for the audit log only: it MUST NOT be sent to the peer. */
  readonly detail?: string;
  /** After how many milliseconds the same call may succeed; only with `rate_limited`. */
  readonly retryAfterMs?: number;
}

/** The peer must act: what it sent is refused. Its input is not to be trusted, and leaves as a 4xx. */
export class RejectedError extends Error {
  override readonly name = 'RejectedError';
  readonly code: RejectionCode;
  /** The exact reason, for the audit log only. */
  readonly detail: string | undefined;
  readonly retryAfterMs: number | undefined;

  constructor(code: RejectionCode, message: string, options: RejectedErrorOptions = {}) {
    super(message, options);
    this.code = code;
    this.detail = options.detail;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** What an {@link UnavailableError} carries beside the name of the seam. */
export interface UnavailableErrorOptions extends ErrorOptions {
  readonly code?: UnavailableCode;
  /** After how many milliseconds a retry makes sense, where that is known. */
  readonly retryAfterMs?: number;
}

/** The operator must act: a seam failed, hung or answered nonsense. Leaves as a 503; nothing is let through. */
export class UnavailableError extends Error {
  override readonly name = 'UnavailableError';
  readonly code: UnavailableCode;
  /** Which seam failed, for instance `replay_store`. */
  readonly seam: string;
  readonly retryAfterMs: number | undefined;

  constructor(seam: string, message: string, options: UnavailableErrorOptions = {}) {
    super(message, options);
    this.code = options.code ?? 'store_unavailable';
    this.seam = seam;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** Whether `error` is one of ours and bears `code`; true across copies of this package. */
export function hasCode(error: unknown, code: KeyGuardErrorCode): boolean {
  return error instanceof Error && (error as { code?: unknown }).code === code;
}

/** Whether the peer is to blame (a {@link RejectedError} of any copy of this package). */
export function isRejected(error: unknown): error is RejectedError {
  return error instanceof Error && error.name === 'RejectedError';
}

/** Whether the operator is to act (an {@link UnavailableError} of any copy of this package). */
export function isUnavailable(error: unknown): error is UnavailableError {
  return error instanceof Error && error.name === 'UnavailableError';
}
