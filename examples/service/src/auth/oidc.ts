/**
 * Sign-in by an OpenID Connect provider that the operator named: the code flow with PKCE, state and nonce, by openid-client. Who may
 * come in is decided here: whom the provider knows under a verified address that belongs to somebody, was invited, or is of a domain
 * whose people may sign up. What the provider issues is judged and dropped: no token of it is kept.
 */
import { createHash, randomUUID } from 'node:crypto';
import * as client from 'openid-client';
import * as z from 'zod';
import { UnavailableError } from '@keyguard/core/errors';
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import type { OidcConfig } from '../config.ts';
import { asAuth } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { KeyedHash } from '../keys/hierarchy.ts';
import type { Invitations } from './invitations.ts';
import { addPersonIn, isLinkedTo, linkProviderIn, personIn, personOfAddressIn, type Vouching } from './vouched-people.ts';

const PROVIDER_ID = 'oidc';
const TIMEOUT_SECONDS = 5;
// What the provider says of itself is asked for anew after so long.
const KEPT_MS = 60 * 60_000;
const FLOW_MS = 10 * 60_000;

export interface OidcStart {
  /** Where the browser goes. */
  readonly location: string;
  /** What the browser brings back beside what the provider sends with it: ties the answer to the browser that asked. */
  readonly state: string;
}

export interface OidcSignIn {
  /** @throws UnavailableError seam `oidc` where the provider does not answer */
  start(): Promise<OidcStart>;
  /**
   * Whom the answer of the provider (untrusted) proves; the person exists then. Each answer counts once.
   * @param state what the browser brought back
   * @throws HttpProblem `oidc_refused`
   * @throws UnavailableError seam `oidc`
   */
  finish(answer: URLSearchParams, state: string | null): Promise<{ readonly userId: string }>;
}

export interface OidcOptions {
  readonly config: OidcConfig;
  /** Where people reach the service. */
  readonly origin: string;
  readonly sql: SqlClient;
  readonly vouching: Vouching;
  readonly hash: KeyedHash;
  readonly pseudonym: KeyedHash;
  readonly audit: AuditLog;
  readonly invitations: Invitations;
  readonly clock?: Clock;
}

export const OIDC_CALLBACK = '/api/auth/oidc/callback';

const flowSchema = z.object({ nonce: z.string(), verifier: z.string() });

/** What a provider says of a person, as far as it counts. */
interface Profile {
  readonly subject: string;
  /** `null` where there is none that the provider has verified. */
  readonly verifiedEmail: string | null;
  readonly name: string | null;
}

function refused(detail: string): HttpProblem {
  return new HttpProblem('oidc_refused', detail);
}

const NOT_LET_IN = 'You may not come in here: ask an administrator.';
const BROKEN = 'The answer of the provider is not accepted: begin again.';

/** `null` for an error that says what was wrong with an answer, which is nobody's outage. */
function outage(error: unknown): UnavailableError | null {
  const isJudgement =
    error instanceof client.AuthorizationResponseError || error instanceof client.ResponseBodyError || error instanceof client.WWWAuthenticateChallengeError;
  // It says OAUTH_… of what was answered and is wrong, and nothing of what was not answered at all.
  const { code, name } = (error ?? {}) as { code?: unknown; name?: unknown };
  const isTimeout = code === 'OAUTH_TIMEOUT' || code === 'OAUTH_ABORT' || code === 'OAUTH_RESPONSE_IS_NOT_CONFORM';
  if (isJudgement || (typeof code === 'string' && code.startsWith('OAUTH_') && !isTimeout)) return null;
  // No cause: its messages may quote what was sent.
  return new UnavailableError('oidc', `The provider of sign-in does not answer as it should (${String(code ?? name)}).`, { retryAfterMs: 5000 });
}

export function createOidcSignIn({ config, origin, sql, vouching, hash, pseudonym, audit, invitations, clock = systemClock }: OidcOptions): OidcSignIn {
  const redirectUri = origin + OIDC_CALLBACK;
  let discovered: { readonly atMs: number; readonly configuration: client.Configuration } | null = null;

  /** What the provider says of itself, which MUST be the issuer that was configured. Asked for when it is needed: a provider that is down stops nothing else. */
  async function configuration(): Promise<client.Configuration> {
    if (discovered !== null && clock.nowMs() - discovered.atMs < KEPT_MS) return discovered.configuration;
    const isLoopback = new URL(config.issuer).protocol === 'http:';
    const authentication = config.clientSecret === null ? client.None() : client.ClientSecretBasic(config.clientSecret);
    try {
      const found = await client.discovery(new URL(config.issuer), config.clientId, { id_token_signed_response_alg: config.idTokenAlgorithm }, authentication, {
        timeout: TIMEOUT_SECONDS,
        // The configuration allows http for loopback alone.
        // oxlint-disable-next-line typescript/no-deprecated -- marked so to be noticed
        execute: [client.enableNonRepudiationChecks, ...(isLoopback ? [client.allowInsecureRequests] : [])],
      });
      discovered = { atMs: clock.nowMs(), configuration: found };
      return found;
    } catch (error) {
      throw outage(error) ?? new UnavailableError('oidc', 'The provider of sign-in does not describe itself as it should.', { retryAfterMs: 5000 });
    }
  }

  const identifierOf = (state: string): string => `oidc:${hash(`oidc-state\0${state}`)}`;

  /** What was remembered of a flow: for one caller, whatever races. */
  async function take(state: string): Promise<z.infer<typeof flowSchema> | null> {
    const { rows } = await asAuth(sql, (tx) =>
      tx.query<{ value: string; is_live: boolean }>(
        'DELETE FROM keyguard_auth.verifications WHERE identifier = $1 RETURNING value, expires_at > to_timestamp($2::double precision / 1000) AS is_live',
        [identifierOf(state), clock.nowMs()],
      ),
    );
    return rows[0]?.is_live === true ? flowSchema.parse(JSON.parse(rows[0].value)) : null;
  }

  async function profileOf(answer: URLSearchParams, state: string): Promise<Profile> {
    const flow = await take(state);
    if (flow === null) throw refused(BROKEN);
    const provider = await configuration();
    const url = new URL(redirectUri);
    url.search = answer.toString();
    try {
      const tokens = await client.authorizationCodeGrant(provider, url, {
        expectedState: state, expectedNonce: flow.nonce, pkceCodeVerifier: flow.verifier, idTokenExpected: true,
      });
      const claims = tokens.claims()!;
      // Many providers keep the address out of the token.
      const said = claims['email'] === undefined && provider.serverMetadata().userinfo_endpoint !== undefined
        ? await client.fetchUserInfo(provider, tokens.access_token, claims.sub)
        : claims;
      const email = z.email().max(254).safeParse(said['email']);
      return {
        subject: claims.sub,
        // The text "true" is not the word of a provider that one can rely on.
        verifiedEmail: said['email_verified'] === true && email.success ? email.data.toLowerCase() : null,
        name: typeof said['name'] === 'string' && said['name'].trim() !== '' ? said['name'].trim().slice(0, 100) : null,
      };
    } catch (error) {
      throw outage(error) ?? refused(BROKEN);
    }
  }

  /** Whoever came in by a password that is gone may be somebody else than whom the provider knows. */
  async function endPasswordSessionsIn(tx: SqlTransaction, userId: string): Promise<void> {
    const { rows } = await tx.query('DELETE FROM keyguard_auth.sessions WHERE user_id = $1 RETURNING id', [userId]);
    await audit.recordIn(tx, { action: 'auth.password_dropped', outcome: 'success', actor: `user:${userId}`, resource: `user:${userId}`, sessions_ended: rows.length });
  }

  /** The person, found or made, in the caller's transaction. */
  async function provenIn(tx: SqlTransaction, { subject, verifiedEmail, name }: Profile): Promise<{ readonly userId: string; readonly how: string }> {
    const accountId = `${config.issuer}#${subject}`;
    const known = await tx.query<{ user_id: string }>('SELECT user_id FROM keyguard_auth.accounts WHERE provider_id = $1 AND account_id = $2', [PROVIDER_ID, accountId]);
    if (known.rows[0] !== undefined) {
      const { user_id: userId } = known.rows[0];
      // A link that nobody here has written is under no MAC; one that came and went while this looked is not theirs either.
      const person = await personIn(tx, vouching, userId);
      if (person === null || !isLinkedTo(person, PROVIDER_ID, accountId)) throw refused(BROKEN);
      return { userId, how: 'known' };
    }
    if (verifiedEmail === null) throw refused('The provider vouches for no e-mail address of yours, so it is not known who you are here.');
    const found = await personOfAddressIn(tx, vouching, verifiedEmail);
    if (found !== null) {
      // Whoever made an account under an address that was never proven must not get its true owner's sign-in into it.
      if (!found.isVerified) throw refused(NOT_LET_IN);
      if (await linkProviderIn(tx, vouching, found.id, PROVIDER_ID, accountId)) await endPasswordSessionsIn(tx, found.id);
      return { userId: found.id, how: 'linked' };
    }
    const userId = randomUUID();
    // It is somebody's who is disabled.
    if (!(await addPersonIn(tx, vouching, { id: userId, name: name ?? verifiedEmail.split('@', 1)[0]!, email: verifiedEmail }))) throw refused(NOT_LET_IN);
    const isInvited = await invitations.claimForIn(tx, verifiedEmail, userId);
    if (!isInvited && !config.signUpDomains.has(domainOf(verifiedEmail))) throw refused('You may not come in here without an invitation: ask an administrator.');
    await linkProviderIn(tx, vouching, userId, PROVIDER_ID, accountId);
    return { userId, how: isInvited ? 'invited' : 'signed_up' };
  }

  return {
    async start() {
      const provider = await configuration();
      const [state, nonce, verifier] = [client.randomState(), client.randomNonce(), client.randomPKCECodeVerifier()];
      await asAuth(sql, (tx) =>
        tx.query('INSERT INTO keyguard_auth.verifications (id, identifier, value, expires_at) VALUES ($1, $2, $3, to_timestamp($4::double precision / 1000))', [
          randomUUID(), identifierOf(state), JSON.stringify({ nonce, verifier }), clock.nowMs() + FLOW_MS,
        ]),
      );
      const location = client.buildAuthorizationUrl(provider, {
        redirect_uri: redirectUri,
        scope: 'openid email profile',
        state,
        nonce,
        code_challenge: createHash('sha256').update(verifier).digest('base64url'),
        code_challenge_method: 'S256',
      });
      return { location: location.href, state };
    },

    async finish(answer, state) {
      // The provider's answer is for the browser that asked, and for no other.
      if (state === null || answer.get('state') !== state) throw refused(BROKEN);
      const profile = await profileOf(answer, state);
      const { verifiedEmail } = profile;
      if (config.emailDomains.size > 0 && (verifiedEmail === null || !config.emailDomains.has(domainOf(verifiedEmail)))) {
        throw refused('Addresses of your domain may not come in here.');
      }
      return asAuth(sql, async (tx) => {
        const { userId, how } = await provenIn(tx, profile);
        await audit.recordIn(tx, {
          action: 'auth.oidc_sign_in', outcome: 'success', actor: `user:${userId}`, how,
          ...(verifiedEmail !== null && { account: pseudonym(`account\0${verifiedEmail}`) }),
        });
        return { userId };
      });
    },
  };
}

function domainOf(email: string): string {
  return email.slice(email.lastIndexOf('@') + 1);
}
