/**
 * Reads the bytes of a request as they came, once, within limits of size, time and memory. It never inflates, decodes or
 * parses: the signature is over these bytes.
 */
import type { IncomingMessage } from 'node:http';
import { RejectedError, UnavailableError, UsageError } from '@keyguard/core/errors';
import type { Bytes } from '@keyguard/core/seams';
import type { Policy } from '@keyguard/server-verifier/policy';

const EMPTY: Bytes = new Uint8Array(0);

/** The bytes that a server holds before they are verified, counted over all its requests. */
export interface BodyBudget {
  heldBytes: number;
}

/**
 * The body of `request`, at most `policy.maxBodyBytes`. Its bytes stay on the budget until the caller takes them off; after an
 * error none do.
 * @throws RejectedError `body_too_large`, `request_timeout`, `malformed_request` (the caller left)
 * @throws UnavailableError `overloaded` when all unverified bodies together would exceed `policy.maxUnverifiedBytes`
 * @throws UsageError `invalid_option` when something else has read the body before
 */
export function readRawBody(request: IncomingMessage & { body?: unknown }, policy: Policy, budget: BodyBudget): Promise<Bytes> | Bytes {
  const { headers } = request;
  if (headers['content-length'] === undefined && headers['transfer-encoding'] === undefined) return EMPTY;
  if (request.readableDidRead || request.readableEnded || request.body !== undefined) {
    throw new UsageError('invalid_option', 'Another parser has read the body: mount keyguard() before express.json() and its like.');
  }
  const declared = Number(headers['content-length'] ?? 0);
  if (declared > policy.maxBodyBytes) throw tooLarge();
  if (budget.heldBytes + declared > policy.maxUnverifiedBytes) throw overloaded();
  return receive(request, policy, budget);
}

function receive(request: IncomingMessage, policy: Policy, budget: BodyBudget): Promise<Bytes> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let length = 0;

    const settle = (): void => {
      clearTimeout(timer);
      request.off('data', onData).off('end', onEnd).off('error', onGone).off('close', onGone);
    };
    const fail = (error: Error): void => {
      settle();
      budget.heldBytes -= length;
      request.pause();
      reject(error);
    };
    const onData = (chunk: Buffer): void => {
      length += chunk.length;
      budget.heldBytes += chunk.length;
      if (length > policy.maxBodyBytes) fail(tooLarge());
      else if (budget.heldBytes > policy.maxUnverifiedBytes) fail(overloaded());
      else chunks.push(chunk);
    };
    const onEnd = (): void => {
      settle();
      resolve((chunks.length === 1 ? chunks[0] : Buffer.concat(chunks, length)) as Bytes);
    };
    const onGone = (): void => fail(new RejectedError('malformed_request', 'The body ended early.', { detail: 'body ended early' }));
    const timer = setTimeout(
      () => fail(new RejectedError('request_timeout', 'The body did not arrive in time.')),
      policy.bodyTimeoutMs,
    );
    request.on('data', onData).on('end', onEnd).on('error', onGone).on('close', onGone);
  });
}

function tooLarge(): RejectedError {
  return new RejectedError('body_too_large', 'The body is larger than this server accepts.');
}

function overloaded(): UnavailableError {
  return new UnavailableError('body_budget', 'Too many unverified bytes are in flight.', { code: 'overloaded' });
}
