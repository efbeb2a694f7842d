/**
 * From Node's `IncomingMessage` to what the recipes take, for every framework that stands on `node:http`: Express, Fastify, or
 * none. The target is the original one, the headers are the list as received, the body is the bytes of the stream. It translates
 * and decides nothing.
 */
import type { IncomingMessage } from 'node:http';
import { UsageError } from '@keyguard/core/errors';
import type { Bytes } from '@keyguard/core/seams';
import { bodyBudget, bodyBuffer, endedEarly, tooSlow, type BodyLease, type Charge } from './body.ts';
import type { Policy } from './policy.ts';
import type { IncomingRequest } from './recipe.ts';

/** What a message does not tell, or not rightly. */
export interface MessageFacts {
  /** The caller's address, from the socket or from proxies that you trust; `null` where there is none. Trusted. */
  readonly ip: string | null;
  /** The original target, where a router rewrites `message.url`. Default: `message.url`. */
  readonly target?: string;
}

/**
 * Hands a message to a recipe (`verifier.verify`, `enrollment.enroll`), and keeps its bytes on the budget until the recipe has
 * decided. What the recipe throws is thrown on.
 * @throws UsageError `invalid_option` when something else has read the body before
 */
export type MessageReceiver = <T>(
  message: IncomingMessage,
  facts: MessageFacts,
  recipe: (incoming: IncomingRequest) => Promise<T>,
) => Promise<T>;

/** One per door: each has its own budget of unverified bytes. */
export function messageReceiver({ maxUnverifiedBytes }: Policy): MessageReceiver {
  const budget = bodyBudget(maxUnverifiedBytes);
  return async (message, { ip, target = message.url ?? '' }, recipe) => {
    let lease: BodyLease | undefined;
    try {
      return await recipe({
        method: message.method ?? '',
        target,
        rawHeaders: message.rawHeaders,
        ip,
        body(policy, holder) {
          lease = budget(holder);
          return readRawBody(message, policy, lease.charge);
        },
      });
    } finally {
      lease?.release();
    }
  };
}

/**
 * The body of `message`, at most `policy.maxBodyBytes`. What the headers say of it is not believed: the stream is read to its
 * end, also where they announce nothing, because a server may have dropped the header that did.
 * @throws RejectedError `body_too_large`, `request_timeout`, `malformed_request` (the caller left)
 * @throws UnavailableError as `charge` throws it
 * @throws UsageError `invalid_option` when something else has read the body before
 */
export function readRawBody(message: IncomingMessage & { body?: unknown }, policy: Policy, charge: Charge): Promise<Bytes> {
  if (message.readableDidRead || message.body !== undefined) {
    throw new UsageError('invalid_option', 'Another parser has read the body: let KeyGuard read it before express.json() and its like.');
  }
  if (message.destroyed) throw endedEarly();
  const buffer = bodyBuffer(message.headers['content-length'], policy.maxBodyBytes, charge);

  return new Promise((resolve, reject) => {
    const settle = (): void => {
      clearTimeout(timer);
      message.off('data', onData).off('end', onEnd).off('error', onGone).off('close', onGone);
    };
    const fail = (error: unknown): void => {
      settle();
      message.pause();
      reject(error as Error);
    };
    const onData = (chunk: Buffer): void => {
      try {
        buffer.add(chunk);
      } catch (error) {
        fail(error);
      }
    };
    const onEnd = (): void => {
      settle();
      resolve(buffer.bytes());
    };
    const onGone = (): void => fail(endedEarly());
    const timer = setTimeout(() => fail(tooSlow()), policy.bodyTimeoutMs);
    message.on('data', onData).on('end', onEnd).on('error', onGone).on('close', onGone);
  });
}
