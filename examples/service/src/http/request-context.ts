/**
 * Which request is being answered: its id, and the address it came from. Set once at the door; read by what writes the audit
 * log, so that no seam needs a parameter for it.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { randomBytes } from 'node:crypto';
import type { Request, RequestHandler } from 'express';

export interface RequestContext {
  readonly requestId: string;
  readonly ip: string | null;
}

const storage = new AsyncLocalStorage<RequestContext>();

export function currentRequest(): RequestContext | undefined {
  return storage.getStore();
}

const ids = new WeakMap<Request, string>();

/** The id of `request`, which stands in its answer as `x-request-id`. */
export function requestIdOf(request: Request): string {
  return ids.get(request) ?? 'unknown';
}

/** Gives every request an id of ours; one that a client sends is not looked at. */
export const requestContext: RequestHandler = (request, response, next) => {
  const requestId = `req_${randomBytes(12).toString('base64url')}`;
  ids.set(request, requestId);
  response.setHeader('x-request-id', requestId);
  storage.run({ requestId, ip: request.ip ?? null }, () => next());
};
