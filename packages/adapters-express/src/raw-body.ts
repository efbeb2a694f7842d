/**
 * Reads the bytes of a request as they came, once, within limits of size, time and memory. It never inflates, decodes or
 * parses: the signature is over these bytes.
 */
import type { IncomingMessage } from 'node:http';
import { RejectedError, UnavailableError, UsageError } from '@keyguard/core/errors';
import type { Bytes } from '@keyguard/core/seams';
import type { Policy } from '@keyguard/server-verifier/policy';

const FIRST_BYTES = 1024;
const EMPTY = Buffer.alloc(0);

/** Takes memory into account before it is allocated. @throws UnavailableError `overloaded` */
export type Charge = (bytes: number) => void;

/** What one request holds. `release` gives it all back, and MUST be called once. */
export interface BodyLease {
  readonly charge: Charge;
  release(): void;
}

/** Opens a lease for a request of `holder`: who sends, as far as that is known. */
export type BodyBudget = (holder: string) => BodyLease;

const SHARES = 8;

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

/**
 * The body of `request`, at most `policy.maxBodyBytes`. What the headers say of it is not believed: the stream is read to its
 * end, also where they announce nothing, because a server may have dropped the header that did.
 * @throws RejectedError `body_too_large`, `request_timeout`, `malformed_request` (the caller left)
 * @throws UnavailableError as `charge` throws it
 * @throws UsageError `invalid_option` when something else has read the body before
 */
export function readRawBody(request: IncomingMessage & { body?: unknown }, policy: Policy, charge: Charge): Promise<Bytes> {
  if (request.readableDidRead || request.body !== undefined) {
    throw new UsageError('invalid_option', 'Another parser has read the body: mount keyguard() before express.json() and its like.');
  }
  if (request.destroyed) throw endedEarly();
  const declared = Number(request.headers['content-length'] ?? 0);
  if (declared > policy.maxBodyBytes) throw tooLarge();

  return new Promise((resolve, reject) => {
    // One buffer that grows: a list of chunks would cost many times what they hold, if someone sends them one byte each.
    let buffer: Buffer = EMPTY;
    let length = 0;

    const settle = (): void => {
      clearTimeout(timer);
      request.off('data', onData).off('end', onEnd).off('error', onGone).off('close', onGone);
    };
    const fail = (error: unknown): void => {
      settle();
      request.pause();
      reject(error as Error);
    };
    const makeRoom = (needed: number): void => {
      const wanted = Math.max(needed, Math.min(Math.max(2 * buffer.length, FIRST_BYTES), declared || policy.maxBodyBytes));
      charge(wanted - buffer.length);
      const larger = Buffer.allocUnsafeSlow(wanted);
      buffer.copy(larger, 0, 0, length);
      buffer = larger;
    };
    const onData = (chunk: Buffer): void => {
      const needed = length + chunk.length;
      try {
        if (needed > policy.maxBodyBytes) throw tooLarge();
        if (length === 0 && chunk.length === declared) {
          charge(declared);
          buffer = chunk;
        } else {
          if (needed > buffer.length) makeRoom(needed);
          chunk.copy(buffer, length);
        }
        length = needed;
      } catch (error) {
        fail(error);
      }
    };
    const onEnd = (): void => {
      settle();
      resolve((length === buffer.length ? buffer : buffer.subarray(0, length)) as Bytes);
    };
    const onGone = (): void => fail(endedEarly());
    const timer = setTimeout(() => fail(new RejectedError('request_timeout', 'The body did not arrive in time.')), policy.bodyTimeoutMs);
    request.on('data', onData).on('end', onEnd).on('error', onGone).on('close', onGone);
  });
}

function tooLarge(): RejectedError {
  return new RejectedError('body_too_large', 'The body is larger than this server accepts.');
}

function endedEarly(): RejectedError {
  return new RejectedError('malformed_request', 'The body ended early.', { detail: 'body ended early' });
}
