/**
 * Which request is being answered: its id, and the address it came from. Set once at the door; read by what writes the audit
 * log, so that no seam needs a parameter for it.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { randomFillSync } from 'node:crypto';
import type { Request, RequestHandler } from 'express';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';

export interface RequestContext {
  readonly requestId: string;
  readonly ip: string | null;
  /** The session in which it is made, once that is known. */
  readonly session: { id: string | null };
  /** Whether it is on record as refused. */
  readonly refusal: { isOnRecord: boolean };
  /** Runs in each transaction of this request that changes something, before its audit entry. Where it throws, nothing is changed. */
  readonly beforeEntry?: (tx: SqlTransaction) => Promise<void>;
}

const storage = new AsyncLocalStorage<RequestContext>();

export function currentRequest(): RequestContext | undefined {
  return storage.getStore();
}

/** Runs `work` with `hook` before every audit entry that it appends in a transaction of its own. */
export function beforeEntry<T>(hook: (tx: SqlTransaction) => Promise<void>, work: () => Promise<T>): Promise<T> {
  return storage.run({ requestId: 'unknown', ip: null, session: { id: null }, refusal: { isOnRecord: false }, ...currentRequest(), beforeEntry: hook }, work);
}

/** Says in which session the running request is made. */
export function noteSession(sessionId: string): void {
  const request = currentRequest();
  if (request !== undefined) request.session.id = sessionId;
}

const known = new WeakMap<Request, { readonly requestId: string; readonly arrivedMs: number }>();
const ID_BYTES = 12;
// Drawn for many ids at once: a call of the generator costs more than all else here.
const drawn = Buffer.alloc(ID_BYTES * 256);
let drawnAt = drawn.length;

function newRequestId(): string {
  if (drawnAt === drawn.length) {
    randomFillSync(drawn);
    drawnAt = 0;
  }
  drawnAt += ID_BYTES;
  return `req_${drawn.toString('base64url', drawnAt - ID_BYTES, drawnAt)}`;
}

/** The id of `request`, which stands in its answer as `x-request-id`. */
export function requestIdOf(request: Request): string {
  return known.get(request)?.requestId ?? 'unknown';
}

/** When the head of `request` had come, by the monotonic clock. */
export function arrivedAtMs(request: Request): number {
  return known.get(request)?.arrivedMs ?? performance.now();
}

/** Gives every request an id of ours; one that a client sends is not looked at. */
export const requestContext: RequestHandler = (request, response, next) => {
  const requestId = newRequestId();
  known.set(request, { requestId, arrivedMs: performance.now() });
  response.setHeader('x-request-id', requestId);
  storage.run({ requestId, ip: request.ip ?? null, session: { id: null }, refusal: { isOnRecord: false } }, () => next());
};
