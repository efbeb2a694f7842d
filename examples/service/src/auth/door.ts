/**
 * The way to better-auth, which knows some thirty routes and serves none of them here: it gets requests that are made in this
 * file, with the few headers that it needs, and its refusals leave as problems like all others.
 */
import type { Request, Response } from 'express';
import { UnavailableError } from '@keyguard/core/errors';
import type { Answer } from '../http/operations.ts';
import { HttpProblem, type ProblemCode } from '../http/problems.ts';
import { ADDRESS_HEADER, AUTH_PATH, sessionOf, type Auth } from './better-auth.ts';

const HEADERS = ['authorization', 'cookie', 'user-agent'] as const;

/** What better-auth said, read to its end. */
export interface AuthAnswer {
  readonly ok: boolean;
  readonly status: number;
  readonly headers: Headers;
  /** `{}` for what is no object. */
  readonly json: Readonly<Record<string, unknown>>;
}

export interface AuthDoor {
  /** What better-auth answers to `path` below its own; `body` MUST have passed a schema. */
  ask(request: Request, path: `/${string}`, body?: object): Promise<AuthAnswer>;
  /** Cookie and bearer of a live session whose token was replaced. */
  handOut(session: { readonly sessionId: string; readonly userId: string }): Promise<AuthAnswer>;
  /** A new session of a person who MUST have been proven; its stored token is in the JSON. */
  open(request: Request, userId: string): Promise<AuthAnswer>;
  /** The live session that the request proves, or `null`. */
  session(request: Request): ReturnType<typeof sessionOf>;
}

/** @param origin where people reach the service */
export function authDoor(auth: Auth, origin: string): AuthDoor {
  return {
    async ask(request, path, body) {
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
      return read(await auth.handler(new Request(`${origin}${AUTH_PATH}${path}`, init)));
    },
    open: async (request, userId) => {
      const headers = new Headers({ [ADDRESS_HEADER]: request.ip ?? '0.0.0.0', 'user-agent': request.headers['user-agent'] ?? '' });
      return read(await auth.api.openSession({ body: { userId }, headers, asResponse: true }));
    },
    handOut: async ({ sessionId, userId }) => read(await auth.api.handOutSession({ body: { sessionId, userId }, asResponse: true })),
    session: (request) => {
      const headers = new Headers();
      const { authorization, cookie } = request.headers;
      if (authorization !== undefined) headers.set('authorization', authorization);
      if (cookie !== undefined) headers.set('cookie', cookie);
      return sessionOf(auth, headers);
    },
  };
}

async function read(answer: globalThis.Response): Promise<AuthAnswer> {
  return { ok: answer.ok, status: answer.status, headers: answer.headers, json: await readAnswer(answer) };
}

async function readAnswer(answer: globalThis.Response): Promise<Record<string, unknown>> {
  try {
    const value: unknown = await answer.json();
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

/**
 * `json` as the answer of an operation, with the cookies and the bearer of `answer`, whose own words do not leave.
 * @throws HttpProblem where better-auth refused
 * @throws UnavailableError where it failed
 */
export function passedOn(response: Response, answer: AuthAnswer, json: (said: AuthAnswer['json']) => object): Answer {
  // Also of a refusal: it is how a browser forgets a session that has ended.
  for (const cookie of answer.headers.getSetCookie()) response.append('set-cookie', cookie);
  if (!answer.ok) throw refusalOf(answer);
  const token = answer.headers.get('set-auth-token');
  return { status: answer.status, json: json(answer.json), ...(token !== null && { headers: { 'set-auth-token': token } }) };
}

// Its codes that say more than its status does.
const CODES: Readonly<Record<string, ProblemCode>> = {
  INVALID_EMAIL_OR_PASSWORD: 'invalid_email_or_password',
  INVALID_PASSWORD: 'invalid_password',
};
const BY_STATUS: Readonly<Record<number, ProblemCode>> = { 401: 'not_authenticated', 403: 'forbidden', 404: 'not_found' };

function refusalOf({ status, headers, json }: AuthAnswer): Error {
  if (status === 429) return tooManyRequests(Number(headers.get('x-retry-after') ?? 60));
  // It turns an outage of the database, and a full line before the hash, into this.
  if (status >= 500) return new UnavailableError('sign_in', `better-auth answered ${status}.`);
  const { code, message } = json;
  const detail = typeof message === 'string' && message !== '' ? `${message}.`.replace(/\.\.$/, '.') : 'The request is refused.';
  return new HttpProblem((typeof code === 'string' ? CODES[code] : undefined) ?? BY_STATUS[status] ?? 'invalid_request', detail);
}

export function tooManyRequests(seconds: number): HttpProblem {
  return new HttpProblem('rate_limited', 'Too many tries: wait a moment.', { retryAfterSeconds: Math.max(1, Math.ceil(seconds)) });
}
