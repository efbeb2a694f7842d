/**
 * The routes of sign-in. better-auth knows some thirty of them: those that are named here exist, and no other. It gets a request
 * that is made here, with the few headers that it needs, and its refusals leave as problems like all others.
 */
import { Router, type Request, type Response } from 'express';
import { UnavailableError } from '@keyguard/core/errors';
import type { AuditEntry, RateLimiter } from '@keyguard/core/seams';
import { ipBucket } from '@keyguard/server-verifier/ip';
import type { AuditLog } from '../audit/log.ts';
import { noBody, type JsonReader } from '../http/json-body.ts';
import { HttpProblem, writeProblem } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { ADDRESS_HEADER, AUTH_PATH, sessionOf, type Auth } from './better-auth.ts';
import { changePasswordBody, setupBody, signInBody } from './schema.ts';
import type { Setup } from './setup.ts';

const HEADERS = ['authorization', 'cookie', 'user-agent'] as const;
// What a browser says of a page of ours, and of a person who typed the address.
const OWN_SITES: ReadonlySet<string> = new Set(['same-origin', 'none']);

const MAX_SIGNING_IN = 8;

export interface AuthRoutesOptions {
  readonly auth: Auth;
  readonly setup: Setup;
  readonly audit: AuditLog;
  readonly keys: DeploymentKeys;
  readonly readJson: JsonReader;
  /** Whose pages may sign people in and out; the first is where people reach the service. */
  readonly origins: readonly [string, ...string[]];
  /** Tries of setup codes, by address. */
  readonly setupLimiter: RateLimiter;
}

/** `/api/auth/*`, `/api/setup` and `/.well-known/jwks.json`. */
export function authRoutes(options: AuthRoutesOptions): Router {
  const { auth, setup, audit, keys, readJson, origins, setupLimiter } = options;
  const [origin] = origins;
  const router = Router({ caseSensitive: true, strict: true });
  let signingIn = 0;

  /** What better-auth answers to `path`; `body` has passed a schema. */
  async function ask(request: Request, path: string, body?: object): Promise<globalThis.Response> {
    const headers = new Headers();
    for (const name of HEADERS) {
      const value = request.headers[name];
      if (value !== undefined) headers.set(name, value);
    }
    headers.set(ADDRESS_HEADER, request.ip ?? '0.0.0.0');
    // Whether it came from a page of ours has been decided before.
    headers.set('origin', origin);
    const init: RequestInit = { method: request.method, headers };
    if (request.method === 'POST') {
      headers.set('content-type', 'application/json');
      init.body = JSON.stringify(body ?? {});
    }
    return auth.handler(new Request(`${origin}${AUTH_PATH}${path}`, init));
  }

  // A page of somebody else's must neither use a cookie of ours nor plant one. Programs send none of these headers, and no cookie.
  router.post([`${AUTH_PATH}/*path`, '/api/setup'], (request, _response, next) => {
    const { origin: from, cookie, 'sec-fetch-site': site } = request.headers;
    const isOwn = from === undefined ? cookie === undefined : origins.includes(from);
    if (!isOwn || (typeof site === 'string' && !OWN_SITES.has(site))) {
      throw new HttpProblem('origin_not_allowed', 'This must come from a page of this service, or from a program without cookies.');
    }
    next();
  });

  router.post('/api/setup', async (request, response) => {
    const tries = await setupLimiter.consume(ipBucket(request.ip ?? null), 1);
    if (!tries.allowed) throw tooManyRequests((tries.resetAtMs - Date.now()) / 1000);
    const { code, ...administrator } = setupBody.parse(await readJson(request));
    const { userId } = await setup.redeem(code, administrator);
    response.status(201).set('cache-control', 'no-store').json({ user_id: userId, email: administrator.email });
  });

  router.post(`${AUTH_PATH}/sign-in/email`, async (request, response) => {
    const body = signInBody.parse(await readJson(request));
    // Each sign-in is several transactions and a key derivation: a burst of them must not stand before everything else.
    if (signingIn >= MAX_SIGNING_IN) throw tooManyRequests(1);
    signingIn += 1;
    let answer: globalThis.Response;
    try {
      answer = await ask(request, '/sign-in/email', body);
    } finally {
      signingIn -= 1;
    }
    const json = await readAnswer(answer);
    const entry = signInEntry(answer, json, keys.pseudonym(`account\0${body.email.toLowerCase()}`));
    if (entry !== null) await audit.record(entry);
    // The token in the body is the stored one, which opens nothing; the bearer is in the header.
    send(request, response, answer, answer.ok ? { user: userJson(json) } : json);
  });

  router.post(`${AUTH_PATH}/sign-out`, noBody, async (request, response) => {
    const session = await sessionOf(auth, credentials(request));
    const answer = await ask(request, '/sign-out');
    if (answer.ok && session !== null) await audit.record({ action: 'auth.sign_out', outcome: 'success', actor: `user:${session.user.id}` });
    send(request, response, answer, await readAnswer(answer));
  });

  router.post(`${AUTH_PATH}/change-password`, async (request, response) => {
    const { current_password: currentPassword, new_password: newPassword } = changePasswordBody.parse(await readJson(request));
    // Whoever knew the old password may be signed in somewhere.
    const answer = await ask(request, '/change-password', { currentPassword, newPassword, revokeOtherSessions: true });
    const json = await readAnswer(answer);
    const user = userJson(json);
    if (answer.ok) await audit.record({ action: 'auth.change_password', outcome: 'success', actor: `user:${user?.id}` });
    send(request, response, answer, answer.ok ? { user } : json);
  });

  router.post(`${AUTH_PATH}/revoke-other-sessions`, noBody, async (request, response) => {
    const answer = await ask(request, '/revoke-other-sessions');
    send(request, response, answer, await readAnswer(answer));
  });

  router.get(`${AUTH_PATH}/get-session`, async (request, response) => {
    const answer = await ask(request, '/get-session');
    const json = await readAnswer(answer);
    const session = json['session'] as { id: string; expiresAt: string } | undefined;
    if (answer.ok && session === undefined) throw new HttpProblem('not_authenticated', 'Sign in first.');
    send(request, response, answer, session === undefined ? json : { user: userJson(json), session: { id: session.id, expires_at: session.expiresAt } });
  });

  router.get(`${AUTH_PATH}/token`, async (request, response) => {
    const answer = await ask(request, '/token');
    send(request, response, answer, await readAnswer(answer));
  });

  router.get('/.well-known/jwks.json', async (_request, response) => {
    response.set('cache-control', 'public, max-age=300').json(await auth.api.getJwks());
  });

  return router;
}

function credentials(request: Request): Headers {
  const headers = new Headers();
  const { authorization, cookie } = request.headers;
  if (authorization !== undefined) headers.set('authorization', authorization);
  if (cookie !== undefined) headers.set('cookie', cookie);
  return headers;
}

async function readAnswer(answer: globalThis.Response): Promise<Record<string, unknown>> {
  try {
    const value: unknown = await answer.json();
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

function userJson(json: Record<string, unknown>): { readonly id: string; readonly email: string; readonly name: string } | null {
  const user = json['user'] as { id: string; email: string; name: string } | null | undefined;
  return user === null || user === undefined ? null : { id: user.id, email: user.email, name: user.name };
}

/** `null` for what is not written down: the flood of one address. */
function signInEntry(answer: globalThis.Response, json: Record<string, unknown>, account: string): AuditEntry | null {
  if (answer.status === 429 || answer.status >= 500) return null;
  const user = userJson(json);
  return answer.ok && user !== null
    ? { action: 'auth.sign_in', outcome: 'success', actor: `user:${user.id}`, account }
    : { action: 'auth.sign_in', outcome: 'refused', actor: 'unknown', account };
}

function tooManyRequests(seconds: number): HttpProblem {
  return new HttpProblem('rate_limited', 'Too many tries: wait a moment.', { retryAfterSeconds: Math.max(1, Math.ceil(seconds)) });
}

const TITLES: Readonly<Record<number, string>> = { 400: 'Invalid request', 401: 'Not signed in', 403: 'Not allowed', 404: 'Not found' };

/** Cookies and the bearer go through; everything else is written anew. */
function send(request: Request, response: Response, answer: globalThis.Response, json: object): void {
  for (const cookie of answer.headers.getSetCookie()) response.append('set-cookie', cookie);
  const token = answer.headers.get('set-auth-token');
  response.set('cache-control', 'no-store');
  if (answer.ok) {
    if (token !== null) response.set('set-auth-token', token);
    response.status(answer.status).json(json);
    return;
  }
  if (answer.status === 429) throw tooManyRequests(Number(answer.headers.get('x-retry-after') ?? 60));
  // It turns an outage of the database, and a full line before the hash, into this.
  if (answer.status >= 500) throw new UnavailableError('sign_in', `better-auth answered ${answer.status}.`);
  const { code, message } = json as { code?: unknown; message?: unknown };
  writeProblem(request, response, {
    status: answer.status,
    title: TITLES[answer.status] ?? 'Refused',
    detail: typeof message === 'string' && message !== '' ? `${message}.`.replace(/\.\.$/, '.') : 'The request is refused.',
    code: typeof code === 'string' ? code.toLowerCase() : answer.status === 401 ? 'not_authenticated' : 'invalid_request',
  });
}
