/**
 * How people come in: setting up, signing in and out, the session, its JWT, and the keys by which others check that JWT. What
 * better-auth could do beside these does not exist here.
 */
import * as z from 'zod';
import type { AuditEntry, RateLimiter } from '@keyguard/core/seams';
import { ipBucket } from '@keyguard/server-verifier/ip';
import type { AuditLog } from '../audit/log.ts';
import { operation, type Operation } from '../http/operations.ts';
import { HttpProblem } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { accountOf, type Counter } from './attempts.ts';
import type { Auth } from './better-auth.ts';
import type { Credentials } from './credentials.ts';
import { passedOn, tooManyRequests, type AuthAnswer, type AuthDoor } from './door.ts';
import { comparingWith } from './judged-password.ts';
import type { KnownBrowsers } from './known-browser.ts';
import { personOf, type FindSession } from './principal.ts';
import { administrator, changePasswordBody, done, jwks, session, setupBody, signedIn, signInAnswer, signInBody, token } from './schema.ts';
import type { Sessions } from './sessions.ts';
import type { Setup } from './setup.ts';
import type { TryLimit } from './try-limit.ts';
import { turns } from './turns.ts';

const TAG = 'Sign-in';
// Each sign-in is several transactions and a key derivation: more of them at once would make everybody wait for the database, and
// none of them done sooner.
const SIGNING_IN_AT_A_TIME = 2;
// As many as are through within some five seconds.
const MAX_WAITING_TO_SIGN_IN = 48;
const MAX_OF_ONE_ADDRESS = 12;
const WRONG_PASSWORD: AuthAnswer = { ok: false, status: 401, headers: new Headers(), json: { code: 'INVALID_EMAIL_OR_PASSWORD', message: 'Invalid email or password' } };

export interface AuthOperationsOptions {
  readonly auth: Auth;
  readonly door: AuthDoor;
  readonly setup: Setup;
  readonly audit: AuditLog;
  readonly keys: DeploymentKeys;
  /** Tries of setup codes, by address. */
  readonly setupLimiter: RateLimiter;
  readonly limit: TryLimit;
  readonly sessions: Sessions;
  readonly credentials: Credentials;
  readonly findSession: FindSession;
  readonly knownBrowsers: KnownBrowsers;
  /** What a session that has just begun lacks. */
  readonly lackOf: (userId: string) => Promise<'none' | 'required' | 'setup_required'>;
}

/** `/api/setup`, `/api/auth/*` and `/.well-known/jwks.json`. */
export function authOperations({ auth, door, setup, audit, keys, setupLimiter, limit, sessions, credentials, findSession, knownBrowsers, lackOf }: AuthOperationsOptions): readonly Operation[] {
  const inTurn = turns({ atATime: SIGNING_IN_AT_A_TIME, maxWaiting: MAX_WAITING_TO_SIGN_IN, maxPerHolder: MAX_OF_ONE_ADDRESS, refusal: () => tooManyRequests(5) });

  /** A try that is counted before better-auth judges it. */
  async function counted(counter: Counter, ask: () => Promise<AuthAnswer>): Promise<AuthAnswer> {
    const claimed = await limit.claim(counter);
    let isJudged = false;
    try {
      const answer = await ask();
      // Where it had no time or no database, it did not look at the password.
      isJudged = answer.status !== 429 && answer.status < 500;
      if (answer.ok) await limit.succeeded(counter);
      return answer;
    } finally {
      if (!isJudged) await claimed.giveBack();
    }
  }

  const lackOfNewSession = async (said: AuthAnswer['json']): Promise<string> => lackOf(userJson(said)!.id);

  return [
    operation(
      {
        id: 'setUp', action: 'setup.administrator_created', method: 'post', path: '/api/setup', tag: TAG, access: 'public',
        summary: 'Make the first administrator, with the code that the service prints at its start',
        body: setupBody,
        answers: { 201: { description: 'The administrator, who can sign in now', json: administrator } },
        problems: ['setup_code_invalid', 'setup_complete'],
      },
      async ({ body: { code, ...person }, request }) => {
        const tries = await setupLimiter.consume(ipBucket(request.ip ?? null), 1);
        if (!tries.allowed) throw tooManyRequests((tries.resetAtMs - Date.now()) / 1000);
        const { userId } = await setup.redeem(code, person);
        return { status: 201, json: { user_id: userId, email: person.email } };
      },
    ),

    operation(
      {
        id: 'signIn', action: 'auth.sign_in', method: 'post', path: '/api/auth/sign-in/email', tag: TAG, access: 'public',
        summary: 'Sign in with e-mail and password',
        description: 'Answers with a cookie for browsers, and with the bearer token of the session in the header `set-auth-token` for programs.',
        body: signInBody,
        answers: {
          200: {
            description: 'Signed in',
            json: signInAnswer,
            headers: z.object({ 'set-auth-token': z.string().describe('The token of the session, to be sent as a bearer. It lives for a day, and longer while it is used.') }),
          },
        },
        problems: ['invalid_email_or_password'],
      },
      async ({ body, request, response }) => {
        const account = accountOf(body.email);
        const browserId = knownBrowsers.idOf(request, account);
        const counter = { account, of: browserId === null ? 'password' : `password\0${browserId}` };
        let hash: string | null = null;
        const judged = await inTurn(async () => {
          hash = await credentials.hashOf(body.email);
          return comparingWith(hash, () => counted(counter, () => door.ask(request, '/sign-in/email', body)));
        }, ipBucket(request.ip ?? null));
        // With a password that was replaced meanwhile nobody comes in.
        const answer = judged.ok && (await credentials.endUnless(hash, String(judged.json['token']))) ? WRONG_PASSWORD : judged;
        const entry = signInEntry(answer, keys.pseudonym(`account\0${body.email.toLowerCase()}`));
        if (entry !== null) await audit.record(entry);
        // The token in its body is the stored one, which opens nothing; the bearer is in the header.
        const lack = answer.ok ? await lackOfNewSession(answer.json) : null;
        const passed = passedOn(response, answer, (said) => ({ user: userJson(said), second_factor: lack }));
        if (browserId === null) response.append('set-cookie', knownBrowsers.newCookie(account));
        return passed;
      },
    ),

    operation(
      {
        id: 'signOut', action: 'auth.sign_out', method: 'post', path: '/api/auth/sign-out', tag: TAG, access: 'public',
        summary: 'End this session, and with it its JWTs',
        description:
          'With the cookie, the token of the session or a JWT of it. Without any of them a browser forgets its cookie all the same; a token or a JWT that names no session is a 401, because nothing was ended.',
        answers: { 200: { description: 'Signed out', json: done } },
        problems: ['not_authenticated'],
      },
      async ({ request, response }) => {
        const named = await findSession(request);
        const hasEnded = named !== null && (await sessions.signOut(named));
        if (!hasEnded && request.headers.authorization !== undefined) {
          throw new HttpProblem('not_authenticated', 'This names no session, so nothing was ended: it is wrong, too old, or its session has ended.');
        }
        // The session is gone already: this is how a browser forgets its cookie.
        return passedOn(response, await door.ask(request, '/sign-out'), () => ({ success: true }));
      },
    ),

    operation(
      {
        id: 'changePassword', action: 'auth.change_password', method: 'post', path: '/api/auth/change-password', tag: TAG, access: 'person',
        summary: 'Change the password, and end all other sessions',
        setsCookies: true,
        body: changePasswordBody,
        answers: {
          200: {
            description: 'Changed',
            json: signedIn,
            headers: z.object({ 'set-auth-token': z.string().describe('The token of a new session, which takes the place of the one that asked.').optional() }),
          },
        },
        problems: ['invalid_password'],
      },
      async ({ body, principal, request, response }) => {
        const person = personOf(principal);
        const found = await door.session(request);
        if (found === null) throw new HttpProblem('not_authenticated', 'Ask with the token or the cookie of the session itself, not with a JWT.');
        const hash = await credentials.demand(person, body.current_password);
        if (hash === null) throw new HttpProblem('invalid_password', 'You have no password here: you sign in by a provider.');
        const next = await credentials.replace(person, hash, body.new_password);
        const answer = await door.open(request, person.userId);
        if (answer.ok && (await credentials.endUnless(next, String(answer.json['token'])))) notSignedIn();
        const { id, email, name } = found.user;
        return passedOn(response, answer, () => ({ user: { id, email, name } }));
      },
    ),

    operation(
      {
        id: 'revokeOtherSessions', action: 'auth.revoke_other_sessions', method: 'post', path: '/api/auth/revoke-other-sessions', tag: TAG, access: 'person',
        summary: 'End all sessions but this one',
        setsCookies: true,
        answers: { 200: { description: 'Ended', json: done } },
      },
      async ({ principal }) => {
        const person = personOf(principal);
        await sessions.endAll(person.userId, person, { except: person.sessionId });
        return { json: { status: true } };
      },
    ),

    operation(
      {
        id: 'getSession', action: 'auth.session_read', method: 'get', path: '/api/auth/get-session', tag: TAG, access: 'public',
        summary: 'Show who is signed in',
        answers: { 200: { description: 'The session', json: session } },
        problems: ['not_authenticated'],
      },
      async ({ request, response }) => {
        const answer = await door.ask(request, '/get-session');
        return passedOn(response, answer, (said) => {
          const found = said['session'] as { id: string; expiresAt: string; token: string } | undefined;
          return found === undefined || !auth.isGenuine(userJson(said)!.id, found) ? notSignedIn() : { user: userJson(said), session: { id: found.id, expires_at: found.expiresAt } };
        });
      },
    ),

    operation(
      {
        id: 'getToken', action: 'auth.token', method: 'get', path: '/api/auth/token', tag: TAG, access: 'person',
        summary: 'A JWT of this session for a quarter of an hour',
        description: 'Asked for with the token or the cookie of the session itself: a JWT cannot prolong itself. It dies with the session.',
        answers: { 200: { description: 'The JWT', json: token } },
        problems: ['not_authenticated'],
      },
      async ({ request, response }) => passedOn(response, await door.ask(request, '/token'), (said) => ({ token: said['token'] })),
    ),

    operation(
      {
        id: 'getJwks', action: 'auth.jwks', method: 'get', path: '/.well-known/jwks.json', tag: TAG, access: 'public',
        summary: 'The public keys by which a JWT of this service is checked',
        answers: { 200: { description: 'RFC 7517', json: jwks } },
      },
      async () => ({ json: await auth.api.getJwks(), headers: { 'cache-control': 'public, max-age=300' } }),
    ),
  ];
}

function notSignedIn(): never {
  throw new HttpProblem('not_authenticated', 'Sign in first.');
}

function userJson(json: Readonly<Record<string, unknown>>): { readonly id: string; readonly email: string; readonly name: string } | null {
  const user = json['user'] as { id: string; email: string; name: string } | null | undefined;
  return user === null || user === undefined ? null : { id: user.id, email: user.email, name: user.name };
}

/** `null` for what is not written down: the flood of one address. */
function signInEntry(answer: AuthAnswer, account: string): AuditEntry | null {
  if (answer.status === 429 || answer.status >= 500) return null;
  const user = userJson(answer.json);
  return answer.ok && user !== null
    ? { action: 'auth.sign_in', outcome: 'success', actor: `user:${user.id}`, account }
    : { action: 'auth.sign_in', outcome: 'refused', actor: 'unknown', account };
}
