/**
 * What a refusal looks like over HTTP: status, headers, and an RFC 9457 problem. A new code without a row here does not compile.
 * Nothing but the code and a fixed text leaves; the exact reason stays in `error.detail`, for the audit log.
 *
 * @see RFC 9457; draft-ietf-httpapi-ratelimit-headers
 */
import type { ProtocolRejectionCode, RejectedError, UnavailableCode } from '@keyguard/core/errors';
import { isRejected, isUnavailable, UnavailableError } from '@keyguard/core/errors';

interface Row {
  readonly status: number;
  readonly title: string;
}

const REJECTIONS = {
  malformed_request: { status: 400, title: 'Malformed request' },
  unsupported_version: { status: 400, title: 'Unsupported protocol version' },
  unsupported_header: { status: 400, title: 'Unsupported header' },
  unsupported_encoding: { status: 415, title: 'Unsupported content encoding' },
  body_too_large: { status: 413, title: 'Body too large' },
  request_timeout: { status: 408, title: 'Request timeout' },
  timestamp_out_of_window: { status: 401, title: 'Timestamp out of window' },
  signature_invalid: { status: 401, title: 'Signature invalid' },
  challenge_required: { status: 401, title: 'Challenge required' },
  device_pending: { status: 403, title: 'Device awaits approval' },
  device_suspended: { status: 403, title: 'Device suspended' },
  device_revoked: { status: 403, title: 'Device revoked' },
  ip_not_allowed: { status: 403, title: 'Address not allowed' },
  // Not 409: the OpenAI and Anthropic clients retry 409 by themselves.
  replay_detected: { status: 401, title: 'Replay detected' },
  rate_limited: { status: 429, title: 'Too many requests' },
  enrollment_rejected: { status: 403, title: 'Enrollment rejected' },
  key_exists: { status: 409, title: 'Key exists' },
  rotation_rejected: { status: 403, title: 'Rotation rejected' },
} as const satisfies Record<ProtocolRejectionCode, Row>;

const UNAVAILABLE = {
  store_unavailable: { status: 503, title: 'Temporarily unavailable' },
  overloaded: { status: 503, title: 'Overloaded' },
  server_unavailable: { status: 503, title: 'Temporarily unavailable' },
} as const satisfies Record<UnavailableCode, Row>;

const RETRY_UNAVAILABLE_MS = 1000;

/** An RFC 9457 problem, snake_case as everything on this wire. */
export interface Problem {
  readonly title: string;
  /** The HTTP status, once more. */
  readonly status: number;
  readonly detail: string;
  readonly code: string;
  /** Unix seconds; only with `timestamp_out_of_window`. */
  readonly server_time?: number;
}

/** An answer over HTTP, in the parts that any framework can write. */
export interface RejectionAnswer {
  /** The HTTP status. */
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly problem: Problem;
}

/**
 * The answer to a refusal of the verifier. `nowMs` is told to the client when its clock is off.
 * An error that is not meant for a peer (`jwk_invalid` and other data codes included) is answered as `malformed_request`.
 */
export function describeRejection(error: RejectedError | UnavailableError, nowMs: number): RejectionAnswer {
  const headers: Record<string, string> = { 'cache-control': 'no-store' };
  if (!isRejected(error)) {
    const { status, title } = UNAVAILABLE[error.code] ?? UNAVAILABLE.store_unavailable;
    headers['retry-after'] = String(Math.ceil((error.retryAfterMs ?? RETRY_UNAVAILABLE_MS) / 1000));
    return { status, headers, problem: { title, status, detail: 'The service cannot decide right now. Try again shortly.', code: error.code } };
  }
  const code: ProtocolRejectionCode = error.code in REJECTIONS ? (error.code as ProtocolRejectionCode) : 'malformed_request';
  const { status, title } = REJECTIONS[code];
  const problem = { title, status, detail: error.message, code };
  if (code === 'timestamp_out_of_window') {
    const serverTime = Math.floor(nowMs / 1000);
    headers['x-keyguard-time'] = String(serverTime);
    return { status, headers, problem: { ...problem, server_time: serverTime } };
  }
  if (code === 'rate_limited') {
    const seconds = Math.max(1, Math.ceil((error.retryAfterMs ?? RETRY_UNAVAILABLE_MS) / 1000));
    headers['retry-after'] = String(seconds);
    headers['ratelimit'] = `"default";r=0;t=${seconds}`;
  }
  return { status, headers, problem };
}

/**
 * What a door answers when a recipe threw `error`; `null` for a mistake in the program, which is to be thrown on. `clock` is that
 * of the recipe. Where the body was not read to its end the answer says `connection: close`: what is left of it would be taken
 * for the next request's head, or be read for nothing.
 */
export function refusalOf(error: unknown, clock: { nowMs(): number }, bodyWasRead: boolean): RejectionAnswer | null {
  if (!isRejected(error) && !isUnavailable(error)) return null;
  const answer = toldAt(error, clock);
  return bodyWasRead ? answer : { ...answer, headers: { ...answer.headers, connection: 'close' } };
}

function toldAt(error: RejectedError | UnavailableError, clock: { nowMs(): number }): RejectionAnswer {
  if (error.code !== 'timestamp_out_of_window') return describeRejection(error, 0);
  try {
    return describeRejection(error, clock.nowMs());
  } catch (cause) {
    return describeRejection(new UnavailableError('clock', 'The clock failed.', { cause }), 0);
  }
}
