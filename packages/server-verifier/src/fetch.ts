/**
 * The door for WHATWG `Request`s: Hono, route handlers of Next.js, and whatever else calls a handler with one. It translates and
 * decides nothing, and trusts no header.
 *
 * A `Request` shows neither the target as it was sent nor which headers came twice: the runtime has resolved and joined them. Behind
 * this door the URL and the headers that the runtime made ARE the message. They are what must have been signed, and a handler
 * works on the {@link VerifiedRequest}, never on the `Request`, so nobody can mean another message than was verified.
 *
 * @see docs/spec/request-signing.md, section 15
 */
import { UsageError } from '@keyguard/core/errors';
import type { Bytes } from '@keyguard/core/seams';
import { bodyBudget, bodyBuffer, endedEarly, tooSlow, type BodyBuffer, type BodyLease, type Charge } from './body.ts';
import type { Policy } from './policy.ts';
import type { IncomingRequest } from './recipe.ts';
import { refusalOf, type RejectionAnswer } from './rejection.ts';
import { deviceRoutes, type DeviceRoutesOptions } from './routes.ts';
import type { VerifiedRequest, Verifier, VerifyOptions } from './verifier.ts';

const BASE_PATH = /^(?:\/[^/?#]+)*$/;

/** `Context` is what else the runtime calls a handler with: Hono's context, Deno's connection info, the parameters of a route. */
interface DoorOptions<Context extends unknown[]> {
  /**
   * The caller's address, from the connection or from proxies that you trust; `null` where the runtime tells none, and then all
   * callers are counted as one. Trusted: it MUST NOT come from a header that callers can set.
   */
  readonly ip: (request: Request, ...context: Context) => string | null;
  /** Answers refusals in another dialect than {@link problemResponse}. Status and headers of the answer MUST be kept. */
  readonly answerRejection?: (answer: RejectionAnswer, request: Request) => Response;
}

/** What a door needs to know of its runtime, and how it answers. */
export interface FetchDoorOptions<Context extends unknown[]> extends DoorOptions<Context>, VerifyOptions {}

/** One of the two, and `null` for the other. */
export type FetchVerdict =
  | { readonly verified: VerifiedRequest; readonly refusal: null }
  | { readonly verified: null; readonly refusal: Response };

/** A verifier, as a runtime with WHATWG `Request`s can use it. Frozen. */
export interface FetchDoor<Context extends unknown[]> {
  /**
   * The verified request, or the refusal to answer with.
   * @throws UsageError `invalid_option` when something else has read the body before
   */
  verify(request: Request, ...context: Context): Promise<FetchVerdict>;
  /** A handler of the runtime's, which calls `handler` for verified requests only, and with nothing that was not verified. */
  guarded(
    handler: (verified: VerifiedRequest, ...context: Context) => Response | Promise<Response>,
  ): (request: Request, ...context: Context) => Promise<Response>;
}

/**
 * The door of a verifier for WHATWG `Request`s: nothing gets past it that was not verified.
 * @throws UsageError `invalid_option`
 */
export function fetchDoor<Context extends unknown[]>(verifier: Verifier, options: FetchDoorOptions<Context>): FetchDoor<Context> {
  if (typeof verifier?.verify !== 'function') throw new UsageError('invalid_option', 'fetchDoor() needs the verifier of createVerifier().');
  const { ip, answerRejection = problemResponse, ...verifyOptions } = options;
  demandAddress(ip);
  const receive = requestReceiver(verifier.policy);

  async function verify(request: Request, ...context: Context): Promise<FetchVerdict> {
    const outcome = await receive(request, ip(request, ...context), verifier, (incoming) => verifier.verify(incoming, verifyOptions));
    if (outcome.refusal !== null) return { verified: null, refusal: answerRejection(outcome.refusal, request) };
    return { verified: outcome.result, refusal: null };
  }

  return Object.freeze({
    verify,
    guarded: (handler: Parameters<FetchDoor<Context>['guarded']>[0]) => async (request: Request, ...context: Context) => {
      const { verified, refusal } = await verify(request, ...context);
      return refusal ?? handler(verified, ...context);
    },
  });
}

/** The recipes behind the routes of devices, and where the routes stand. */
export interface FetchDevicesOptions<Context extends unknown[]> extends DoorOptions<Context>, DeviceRoutesOptions {
  /** Where the client's `basePath` points. Default `/api/keyguard`. */
  readonly basePath?: string;
}

/**
 * A handler of all routes that a device itself calls, those of `deviceRoutes`; 404 for any other path or method.
 * @throws UsageError `invalid_option`
 */
export function fetchDevices<Context extends unknown[]>(
  options: FetchDevicesOptions<Context>,
): (request: Request, ...context: Context) => Promise<Response> {
  const { ip, basePath = '/api/keyguard', answerRejection = problemResponse } = options;
  demandAddress(ip);
  if (!BASE_PATH.test(basePath)) throw new UsageError('invalid_option', 'basePath must be a path such as /api/keyguard, without a slash at its end.');
  const receive = requestReceiver(options.verifier.policy);
  const routes = deviceRoutes(options);
  return async (request, ...context) => {
    const { pathname } = new URL(request.url);
    const route = routes.find(({ method, path }) => method === request.method && `${basePath}${path}` === pathname);
    if (route === undefined) return new Response(null, { status: 404, headers: { 'cache-control': 'no-store' } });
    const outcome = await receive(request, ip(request, ...context), route.clock, (incoming) => route.answer(incoming));
    if (outcome.refusal !== null) return answerRejection(outcome.refusal, request);
    const { status, headers, body } = outcome.result;
    return new Response(JSON.stringify(body), { status, headers: { ...headers, 'content-type': 'application/json' } });
  };
}

/** RFC 9457 `application/problem+json`. */
export function problemResponse({ status, headers, problem }: RejectionAnswer): Response {
  return new Response(JSON.stringify(problem), { status, headers: { ...headers, 'content-type': 'application/problem+json' } });
}

function demandAddress(ip: unknown): void {
  if (typeof ip === 'function') return;
  throw new UsageError('invalid_option', 'ip must be a function that tells the address of the caller, or null where there is none.');
}

type Outcome<T> = { readonly result: T; readonly refusal: null } | { readonly result: null; readonly refusal: RejectionAnswer };

type RequestReceiver = <T>(
  request: Request,
  ip: string | null,
  clock: { nowMs(): number },
  recipe: (incoming: IncomingRequest) => Promise<T>,
) => Promise<Outcome<T>>;

/** One per door: each has its own budget of unverified bytes. */
function requestReceiver({ maxUnverifiedBytes }: Policy): RequestReceiver {
  const budget = bodyBudget(maxUnverifiedBytes);
  return async (request, ip, clock, recipe) => {
    let lease: BodyLease | undefined;
    let bodyWasRead = false;
    try {
      const url = new URL(request.url);
      const result = await recipe({
        method: request.method,
        // A fragment is no part of a target: left in, it breaks the grammar.
        target: url.pathname + url.search + url.hash,
        rawHeaders: headersOf(request, url),
        ip,
        async body(policy, holder) {
          lease = budget(holder);
          const bytes = await readBody(request, policy, lease.charge);
          bodyWasRead = true;
          return bytes;
        },
      });
      return { result, refusal: null };
    } catch (error) {
      // Not asked of `request.body`: some runtimes begin to read when it is looked at. These two methods have none.
      const refusal = refusalOf(error, clock, bodyWasRead || request.method === 'GET' || request.method === 'HEAD');
      if (refusal === null) throw error;
      return { result: null, refusal };
    } finally {
      lease?.release();
    }
  };
}

/**
 * The headers as the runtime made them, and the host of its URL in the place of `Host`. Doubled headers are joined by then: a
 * joined value of the carriage breaks its grammar, any other is what must have been signed. A joined `Host` is told as two.
 */
function headersOf(request: Request, url: URL): string[] {
  const headers = ['host', url.host];
  for (const [name, value] of request.headers) {
    if (name !== 'host' || value.includes(',')) headers.push(name, value);
  }
  return headers;
}

/** All bytes of the stream, to its end. @throws as `readRawBody` of `@keyguard/server-verifier/node` */
function readBody(request: Request, policy: Policy, charge: Charge): Promise<Bytes> {
  if (request.bodyUsed || request.body?.locked === true) {
    throw new UsageError('invalid_option', 'Something else has read the body: let KeyGuard read it, and use the bytes of the verified request.');
  }
  const buffer = bodyBuffer(request.headers.get('content-length'), policy.maxBodyBytes, charge);
  const reader = request.body?.getReader();
  if (reader === undefined) return Promise.resolve(buffer.bytes());
  return new Promise((resolve, reject) => {
    // Never cancelled: that would end the connection on some runtimes before the refusal is out. A released reader reads no more.
    const timer = setTimeout(() => {
      reject(tooSlow());
      reader.releaseLock();
    }, policy.bodyTimeoutMs);
    drain(reader, buffer)
      .then(resolve, reject)
      .finally(() => {
        clearTimeout(timer);
        reader.releaseLock();
      });
  });
}

async function drain(reader: ReadableStreamDefaultReader<Uint8Array>, buffer: BodyBuffer): Promise<Bytes> {
  for (;;) {
    let chunk: { done: boolean; value?: unknown };
    try {
      chunk = await reader.read();
    } catch {
      throw endedEarly();
    }
    if (chunk.done) return buffer.bytes();
    if (!(chunk.value instanceof Uint8Array)) throw new UsageError('invalid_option', 'The body of the request must be a stream of bytes.');
    buffer.add(chunk.value);
  }
}
