/**
 * better-auth, as this service runs it: e-mail and password, sessions, JWTs. Sign-up is closed; its tables are reached as kg_auth
 * alone; its secret and the key that signs JWTs come from the key hierarchy, so that a writer of the database can make neither a
 * session nor a JWT.
 */
import { randomUUID } from 'node:crypto';
import { betterAuth } from 'better-auth';
import { APIError } from 'better-auth/api';
import { bearer } from 'better-auth/plugins/bearer';
import { jwt } from 'better-auth/plugins/jwt';
import { UnavailableError } from '@keyguard/core/errors';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { MAX_PASSWORD_CHARACTERS, MIN_PASSWORD_CHARACTERS } from '../config.ts';
import { authKysely } from '../db/auth-dialect.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { judgedPassword } from './judged-password.ts';
import type { CurrentSignInPolicy } from './policy.ts';
import { sessionPlugin } from './session-plugin.ts';
import { isSessionTokenOf, newSessionToken } from './session-token.ts';

/** Where `routes.ts` writes the caller's address; a client's own header of that name never gets so far. */
export const ADDRESS_HEADER = 'x-keyguard-client-address';
export const AUTH_PATH = '/api/auth';

const DAY_SECONDS = 24 * 60 * 60;

export interface AuthOptions {
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  /** The first one is where people reach the service. */
  readonly origins: readonly [string, ...string[]];
  /** Of one address; asked at each try. Where it throws, nobody signs in. */
  readonly signInTriesPerMinute: () => number;
  readonly policy: CurrentSignInPolicy;
  /** What better-auth has to say, without values. */
  readonly log: (level: 'error' | 'warn', message: string) => void;
}

/** Who issues the JWTs, and for whom: this deployment, which other ones do not know. */
export function jwtParty(deploymentId: string): string {
  return `urn:keyguard:deployment:${deploymentId}`;
}

async function refuseToWrite(): Promise<never> {
  throw new Error('What people sign in by is not for better-auth to write.');
}

// The types of plugins are inferred, and the routes and the tests use them.
// oxlint-disable-next-line typescript/explicit-module-boundary-types
export function createAuth({ sql, keys, origins, policy, signInTriesPerMinute, log }: AuthOptions) {
  // It reads secrets, origins and telemetry settings from the environment, beside and before what it is given here.
  for (const name of Object.keys(process.env)) {
    if (name.startsWith('BETTER_AUTH_') || name === 'AUTH_SECRET') delete process.env[name];
  }
  const [baseURL] = origins;
  const party = jwtParty(keys.deploymentId);
  const signingKey = {
    id: keys.jwt.keyId,
    alg: 'EdDSA' as const,
    crv: 'Ed25519' as const,
    publicKey: JSON.stringify(keys.jwt.publicJwk),
    privateKey: JSON.stringify(keys.jwt.privateJwk),
    createdAt: new Date(keys.jwt.createdAtMs),
  };
  const auth = betterAuth({
    appName: 'KeyGuard',
    baseURL,
    basePath: AUTH_PATH,
    secret: keys.sessionSecret,
    secrets: [{ version: 1, value: keys.sessionSecret }],
    trustedOrigins: [...origins],
    telemetry: { enabled: false },
    logger: { level: 'warn', disableColors: true, log: (level, message) => log(level === 'error' ? 'error' : 'warn', message) },
    database: { db: authKysely(sql), type: 'postgres', schemaName: 'keyguard_auth', transaction: false },
    emailAndPassword: {
      enabled: true,
      disableSignUp: true,
      minPasswordLength: MIN_PASSWORD_CHARACTERS,
      maxPasswordLength: MAX_PASSWORD_CHARACTERS,
      revokeSessionsOnPasswordReset: true,
      password: judgedPassword,
    },
    user: { modelName: 'users', fields: { emailVerified: 'email_verified', createdAt: 'created_at', updatedAt: 'updated_at' } },
    session: {
      modelName: 'sessions',
      fields: {
        userId: 'user_id',
        expiresAt: 'expires_at',
        ipAddress: 'ip_address',
        userAgent: 'user_agent',
        createdAt: 'created_at',
        updatedAt: 'updated_at',
      },
      expiresIn: DAY_SECONDS,
      // A session ends when it ends. When it was last used is written down by `standing.ts`.
      disableSessionRefresh: true,
      cookieCache: { enabled: false },
    },
    account: {
      modelName: 'accounts',
      fields: {
        userId: 'user_id',
        accountId: 'account_id',
        providerId: 'provider_id',
        accessToken: 'access_token',
        refreshToken: 'refresh_token',
        idToken: 'id_token',
        accessTokenExpiresAt: 'access_token_expires_at',
        refreshTokenExpiresAt: 'refresh_token_expires_at',
        createdAt: 'created_at',
        updatedAt: 'updated_at',
      },
    },
    databaseHooks: {
      // People and what they sign in by are written under a MAC, by vouched-people.ts alone.
      user: { create: { before: refuseToWrite }, update: { before: refuseToWrite } },
      account: { create: { before: refuseToWrite }, update: { before: refuseToWrite } },
      session: {
        create: {
          before: async (session) => {
            const id = randomUUID();
            const token = newSessionToken({ sessionId: id, userId: session.userId }, keys.hashToken);
            return { data: { ...session, id, token, expiresAt: new Date(Date.now() + policy().sessionLengthSeconds * 1000) } };
          },
        },
      },
    },
    verification: { modelName: 'verifications', fields: { expiresAt: 'expires_at', createdAt: 'created_at', updatedAt: 'updated_at' } },
    rateLimit: {
      enabled: true,
      storage: 'database',
      modelName: 'rate_limits',
      fields: { lastRequest: 'last_request' },
      window: 60,
      max: 120,
      customRules: {
        '/sign-in/email': () => ({ window: 60, max: signInTriesPerMinute() }),
        // Reads of a session that is there already, by programs that ask often.
        '/get-session': false,
        '/token': false,
      },
    },
    advanced: {
      useSecureCookies: baseURL.startsWith('https:'),
      cookiePrefix: 'keyguard',
      defaultCookieAttributes: { httpOnly: true, sameSite: 'strict', path: '/' },
      ipAddress: { ipAddressHeaders: [ADDRESS_HEADER] },
      // Our migrations are checked by their own checksums; and there is no table for keys of JWTs, on purpose.
      database: { validateSchema: false, generateId: () => randomUUID() },
    },
    plugins: [
      bearer({ requireSignature: true }),
      sessionPlugin(keys.hashToken),
      jwt({
        disableSettingJwtHeader: true,
        jwks: { disablePrivateKeyEncryption: true, keyPairConfig: { alg: 'EdDSA', crv: 'Ed25519' } },
        jwt: {
          issuer: party,
          audience: party,
          expirationTime: '15m',
          definePayload: ({ user, session }) => {
            if (!isSessionTokenOf({ sessionId: session.id, userId: user.id }, session.token, keys.hashToken)) throw new APIError('UNAUTHORIZED');
            return { sid: session.id, email: user.email };
          },
        },
        adapter: {
          getJwks: async () => [signingKey],
          createJwk: async () => {
            throw new Error('The key that signs JWTs is made by the key hierarchy.');
          },
        },
      }),
    ],
  });
  // It knows fixed lengths only. Before any request: they all wait for the same promise.
  void auth.$context.then(({ sessionConfig }) => {
    Object.defineProperty(sessionConfig, 'expiresIn', { get: () => policy().sessionLengthSeconds });
  });
  return Object.assign(auth, {
    /** Whether a session is this one of this person, whatever its row says. */
    isGenuine: (userId: string, session: { readonly id: string; readonly token: string }): boolean =>
      isSessionTokenOf({ sessionId: session.id, userId }, session.token, keys.hashToken),
  });
}

export type Auth = ReturnType<typeof createAuth>;

/** The live session that `headers` (untrusted) prove, or `null`. @throws UnavailableError where that cannot be told */
export async function sessionOf(auth: Auth, headers: Headers): Promise<Awaited<ReturnType<Auth['api']['getSession']>>> {
  try {
    const found = await auth.api.getSession({ headers });
    return found !== null && auth.isGenuine(found.user.id, found.session) ? found : null;
  } catch (cause) {
    throw new UnavailableError('sessions', 'Sessions cannot be looked up.', { cause });
  }
}
