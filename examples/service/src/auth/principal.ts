/**
 * Who is calling the control plane: a person with a live session, proven by the session's signed token, by a JWT of that session,
 * or by the browser's cookie. Any failure to tell is a 401; nobody is ever let through without a name.
 */
import type { Request } from 'express';
import type { Administrators } from '@keyguard/storage-node/postgres';
import { HttpProblem } from '../http/problems.ts';
import { noteSession } from '../http/request-context.ts';
import { demandOwnPage } from '../http/request-rules.ts';
import type { Permission } from '../roles/permissions.ts';
import type { ServiceAccountAuthentication } from '../service-accounts/authenticate.ts';
import { isServiceAccountToken } from '../service-accounts/tokens.ts';
import { sessionOf, type Auth } from './better-auth.ts';
import { lackOf, type CurrentSignInPolicy } from './policy.ts';
import type { SecondFactorStanding, Standings } from './standing.ts';

/** A person with a live session. */
export interface Person {
  readonly kind: 'person';
  /** For whom the database acts. */
  readonly userId: string;
  /** As the audit log names whoever acts. */
  readonly actor: `user:${string}`;
  readonly sessionId: string;
  readonly isAdministrator: boolean;
  readonly secondFactor: SecondFactorStanding;
}

/** A program with a token of its own: somebody else than whoever administers it, and never an administrator. */
export interface ServiceAccount {
  readonly kind: 'service_account';
  /** For whom the database acts: the account's id, which is nobody else's. */
  readonly userId: string;
  readonly actor: `service_account:${string}`;
  readonly isAdministrator: false;
  /** Which of its tokens was sent. No secret. */
  readonly tokenPrefix: string;
  /** Beyond these it may do nothing, whatever was granted to it. */
  readonly scopes: ReadonlySet<Permission>;
}

export type Principal = Person | ServiceAccount;

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
  readonly administrators: Administrators;
  readonly standings: Standings;
  readonly policy: CurrentSignInPolicy;
  readonly serviceAccounts: ServiceAccountAuthentication;
  /** Whose pages may use the cookie. */
  readonly origins: readonly string[];
}

/** Which session a request names. Whether that still lives is for {@link Standings} to say. */
export interface NamedSession {
  readonly userId: string;
  readonly sessionId: string;
}

const BEARER = /^Bearer ([\x21-\x7e]{1,4096})$/i;
const JWT = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/;
const SAFE_METHODS = new Set(['GET', 'HEAD']);

export interface AuthenticateRequest {
  /** Also let through who has still to prove a second factor, or to set one up. Nobody, if it is not said. */
  readonly beforeSecondFactor?: boolean;
}

/** Sets the principal of a request, or throws; once per request. */
export type Authenticate = (request: Request, how?: AuthenticateRequest) => Promise<void>;

export type FindSession = (request: Request) => Promise<NamedSession | null>;

/** The session that a request proves by its token, by a JWT of it or by the browser's cookie; `null` where it proves none. */
export function sessionFinder({ auth, origins }: Pick<AuthenticateOptions, 'auth' | 'origins'>): FindSession {
  async function bySession(headers: Headers): Promise<NamedSession | null> {
    const found = await sessionOf(auth, headers);
    return found === null ? null : { userId: found.user.id, sessionId: found.session.id };
  }

  async function byJwt(token: string): Promise<NamedSession | null> {
    const { payload } = await auth.api.verifyJWT({ body: { token } });
    const { sub, sid } = (payload ?? {}) as { sub?: unknown; sid?: unknown };
    if (typeof sub !== 'string' || sub === '' || typeof sid !== 'string' || sid === '') return null;
    return { userId: sub, sessionId: sid };
  }

  return async (request) => {
    const { authorization, cookie } = request.headers;
    // Whoever sends a token means the token: a cookie that is there as well is not looked at.
    if (authorization !== undefined) {
      const token = BEARER.exec(authorization)?.[1];
      if (token === undefined) return null;
      return JWT.test(token) ? byJwt(token) : bySession(new Headers({ authorization: `Bearer ${token}` }));
    }
    if (cookie === undefined) return null;
    if (!SAFE_METHODS.has(request.method)) demandOwnPage(request, origins);
    return bySession(new Headers({ cookie }));
  };
}

/** Lets through who is signed in, with `request.principal` set, and nobody else. */
export function authenticate({ auth, administrators, standings, policy, serviceAccounts, origins }: AuthenticateOptions): Authenticate {
  const find = sessionFinder({ auth, origins });

  /** Whose token was sent; `null` where it is not one of a service account at all. */
  async function program(request: Request): Promise<ServiceAccount | null> {
    const token = BEARER.exec(request.headers.authorization ?? '')?.[1];
    if (token === undefined || !isServiceAccountToken(token)) return null;
    const found = await serviceAccounts.find(token, request.ip ?? null);
    if (found === null) throw notAuthenticated();
    return found;
  }

  async function person(request: Request): Promise<Person> {
    const found = await find(request);
    // A session that has ended takes its JWTs along.
    const standing = found === null ? null : await standings.of(found.sessionId, found.userId);
    if (found === null || standing === null) throw notAuthenticated();
    const { userId, sessionId } = found;
    const isAdministrator = await administrators.has(userId);
    return { kind: 'person', userId, sessionId, actor: `user:${userId}`, isAdministrator, secondFactor: standing.secondFactor };
  }

  return async (request, { beforeSecondFactor = false } = {}) => {
    request.principal ??= (await program(request)) ?? (await person(request));
    const { principal } = request;
    if (principal.kind === 'person') noteSession(principal.sessionId);
    const lack = beforeSecondFactor || principal.kind !== 'person' ? null : lackOf(principal, policy());
    if (lack !== null) throw lack;
  };
}

function notAuthenticated(): HttpProblem {
  return new HttpProblem('not_authenticated', 'Sign in first: send a session token, a JWT or the token of a service account as a bearer.');
}

/** By what the caller is known: the session, whatever proves it, or one token of a service account. No secret. */
export function credentialOf(principal: Principal): string {
  return principal.kind === 'person' ? `session:${principal.sessionId}` : `token:${principal.tokenPrefix}`;
}

/** The caller. @throws HttpProblem `not_authenticated` when `authenticate` did not run before */
export function principalOf(request: Request): Principal {
  if (request.principal === undefined) throw new HttpProblem('not_authenticated', 'Sign in first.');
  return request.principal;
}

/** The caller of an operation for persons, which lets nobody else come so far. */
export function personOf(principal: Principal): Person {
  if (principal.kind !== 'person') throw new HttpProblem('forbidden', 'Only a person may do this.');
  return principal;
}
