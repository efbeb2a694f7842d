/**
 * Who is calling the control plane: a person with a live session, proven by the session's signed token, by a JWT of that session,
 * or by the browser's cookie. Any failure to tell is a 401; nobody is ever let through without a name.
 */
import type { Request, RequestHandler } from 'express';
import type { Administrators, SqlClient } from '@keyguard/storage-node/postgres';
import { asAuth } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import { sessionOf, type Auth } from './better-auth.ts';

export interface Principal {
  readonly userId: string;
  readonly sessionId: string;
  readonly isAdministrator: boolean;
}

declare global {
  namespace Express {
    interface Request {
      /** Who is calling; set by `authenticate` and by nothing else. */
      principal?: Principal;
    }
  }
}

export interface AuthenticateOptions {
  readonly auth: Auth;
  readonly sql: SqlClient;
  readonly administrators: Administrators;
  /** Whose pages may use the cookie. */
  readonly origins: readonly string[];
}

const BEARER = /^Bearer ([\x21-\x7e]{1,4096})$/i;
const JWT = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/;
const SAFE_METHODS = new Set(['GET', 'HEAD']);

/** Lets through who is signed in, with `request.principal` set, and nobody else. */
export function authenticate({ auth, sql, administrators, origins }: AuthenticateOptions): RequestHandler {
  const own = new Set(origins);

  async function bySession(headers: Headers): Promise<Omit<Principal, 'isAdministrator'> | null> {
    const found = await sessionOf(auth, headers);
    return found === null ? null : { userId: found.user.id, sessionId: found.session.id };
  }

  async function byJwt(token: string): Promise<Omit<Principal, 'isAdministrator'> | null> {
    const { payload } = await auth.api.verifyJWT({ body: { token } });
    const { sub, sid } = (payload ?? {}) as { sub?: unknown; sid?: unknown };
    if (typeof sub !== 'string' || sub === '' || typeof sid !== 'string' || sid === '') return null;
    // A session that has ended takes its JWTs along.
    const { rows } = await asAuth(sql, (tx) =>
      tx.query('SELECT 1 FROM keyguard_auth.sessions WHERE id = $1 AND user_id = $2 AND expires_at > CURRENT_TIMESTAMP', [sid, sub]),
    );
    return rows.length === 1 ? { userId: sub, sessionId: sid } : null;
  }

  async function find(request: Request): Promise<Omit<Principal, 'isAdministrator'> | null> {
    const { authorization, cookie, origin } = request.headers;
    // Whoever sends a token means the token: a cookie that is there as well is not looked at.
    if (authorization !== undefined) {
      const token = BEARER.exec(authorization)?.[1];
      if (token === undefined) return null;
      return JWT.test(token) ? byJwt(token) : bySession(new Headers({ authorization: `Bearer ${token}` }));
    }
    if (cookie === undefined) return null;
    if (!SAFE_METHODS.has(request.method) && (origin === undefined || !own.has(origin))) {
      throw new HttpProblem('origin_not_allowed', 'A change that is made with a cookie must come from a page of this service.');
    }
    return bySession(new Headers({ cookie }));
  }

  return async (request, _response, next) => {
    const found = await find(request);
    if (found === null) throw new HttpProblem('not_authenticated', 'Sign in first: send a session token or a JWT as a bearer.');
    request.principal = { ...found, isAdministrator: await administrators.has(found.userId) };
    next();
  };
}

/** The caller. @throws HttpProblem `not_authenticated` when `authenticate` did not run before */
export function principalOf(request: Request): Principal {
  if (request.principal === undefined) throw new HttpProblem('not_authenticated', 'Sign in first.');
  return request.principal;
}

export function demandAdministrator(request: Request): Principal {
  const principal = principalOf(request);
  if (!principal.isAdministrator) throw new HttpProblem('forbidden', 'Only an administrator may do this.');
  return principal;
}
