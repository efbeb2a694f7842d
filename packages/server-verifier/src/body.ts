/**
 * What a body may cost while it is read, for every door alike: one buffer that grows, and the budget that all bodies share. It
 * reads nothing itself, and never inflates, decodes or parses: the signature is over the bytes as they came.
 */
import { Buffer } from 'node:buffer';
import { RejectedError, UnavailableError } from '@keyguard/core/errors';
import type { Bytes } from '@keyguard/core/seams';

const FIRST_BYTES = 1024;
const SHARES = 8;
const EMPTY = Buffer.alloc(0);
const DECLARED = /^[0-9]{1,15}$/;

/** Takes memory into account before it is allocated. @throws UnavailableError `overloaded` */
export type Charge = (bytes: number) => void;

/** What one request holds. `release` gives it all back, and MUST be called once. */
export interface BodyLease {
  readonly charge: Charge;
  /** Gives back all that was charged. */
  release(): void;
}

/** Opens a lease for a request of `holder`: who sends, as far as that is known. */
export type BodyBudget = (holder: string) => BodyLease;

/**
 * The bytes that may be held at a time by all together. A holder with several bodies on their way has an eighth of it, so that
 * nobody alone can shut the door for the others.
 */
export function bodyBudget(maxBytes: number): BodyBudget {
  let heldBytes = 0;
  const holders = new Map<string, { bytes: number; bodies: number }>();
  return (holder) => {
    const own = holders.get(holder) ?? { bytes: 0, bodies: 0 };
    holders.set(holder, own);
    own.bodies += 1;
    let charged = 0;
    return {
      charge(bytes) {
        if (heldBytes + bytes > maxBytes || (own.bodies > 1 && own.bytes + bytes > maxBytes / SHARES)) {
          throw new UnavailableError('body_budget', 'Too many unverified bytes are in flight.', { code: 'overloaded' });
        }
        heldBytes += bytes;
        own.bytes += bytes;
        charged += bytes;
      },
      release() {
        heldBytes -= charged;
        own.bytes -= charged;
        own.bodies -= 1;
        if (own.bodies === 0) holders.delete(holder);
      },
    };
  };
}

/** The bytes of one body, as they arrive. */
export interface BodyBuffer {
  /**
   * Appends a copy of `chunk`; a first chunk that is all that was announced is kept as it is.
   * @throws RejectedError `body_too_large`
   * @throws UnavailableError as the charge throws it
   */
  add(chunk: Uint8Array): void;
  /** All bytes that were added. Nothing may be added afterwards. */
  bytes(): Bytes;
}

/**
 * A buffer of at most `maxBodyBytes`, charged before it is allocated. `declaredLength` (untrusted) is what the headers announce: it
 * only says how much to allocate at first.
 * @throws RejectedError `body_too_large` when more than the limit is announced
 */
export function bodyBuffer(declaredLength: string | null | undefined, maxBodyBytes: number, charge: Charge): BodyBuffer {
  const declared = DECLARED.test(declaredLength ?? '') ? Number(declaredLength) : 0;
  if (declared > maxBodyBytes) throw tooLarge();
  // One buffer that grows: a list of chunks would cost many times what they hold, if someone sends them one byte each.
  let buffer: Uint8Array = EMPTY;
  let length = 0;
  return {
    add(chunk) {
      const needed = length + chunk.length;
      if (needed > maxBodyBytes) throw tooLarge();
      if (length === 0 && chunk.length === declared) {
        charge(declared);
        buffer = chunk;
      } else {
        if (needed > buffer.length) {
          const end = declared >= needed ? declared : maxBodyBytes;
          const wanted = Math.max(needed, Math.min(Math.max(2 * buffer.length, FIRST_BYTES), end));
          charge(wanted - buffer.length);
          const larger = Buffer.allocUnsafeSlow(wanted);
          larger.set(buffer.subarray(0, length));
          buffer = larger;
        }
        buffer.set(chunk, length);
      }
      length = needed;
    },
    bytes: () => (length === buffer.length ? buffer : buffer.subarray(0, length)) as Bytes,
  };
}

function tooLarge(): RejectedError {
  return new RejectedError('body_too_large', 'The body is larger than this server accepts.');
}

/** The caller left, or the connection broke, in the middle of a body. */
export function endedEarly(): RejectedError {
  return new RejectedError('malformed_request', 'The body ended early.', { detail: 'body ended early' });
}

/** The body is not there when the policy's time for it is over. */
export function tooSlow(): RejectedError {
  return new RejectedError('request_timeout', 'The body did not arrive in time.');
}
