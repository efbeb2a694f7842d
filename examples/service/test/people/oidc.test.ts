/**
 * Sign-in by a provider: by a real one (oidc-provider) as a browser goes through it, and by one that lies, which can sign whatever
 * it likes.
 */
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { SignJWT, exportJWK } from 'jose';
import { Provider } from 'oidc-provider';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { changePersonIn } from '../../src/auth/vouched-people.ts';
import { asAuth } from '../../src/db/as-user.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { bearerOf, setUpFactor, startStage, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const CLIENT = { id: 'keyguard', secret: randomBytes(24).toString('base64url') };

/** Goes where it is sent, as a browser does, and keeps cookies by host. */
function browser(): (url: string, form?: Record<string, string>) => Promise<Response> {
  const jar = new Map<string, string>();
  return async (url, form) => {
    const { host } = new URL(url);
    const own = [...jar].filter(([name]) => name.startsWith(`${host} `)).map(([name, value]) => `${name.slice(host.length + 1)}=${value}`);
    const response = await fetch(url, {
      redirect: 'manual',
      headers: { cookie: own.join('; ') },
      ...(form !== undefined && { method: 'POST', body: new URLSearchParams(form) }),
    });
    for (const cookie of response.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(cookie)!;
      if (/max-age=0|expires=thu, 01 jan 1970/i.test(cookie)) jar.delete(`${host} ${name}`);
      else jar.set(`${host} ${name}`, value!);
    }
    return response;
  };
}

interface FakeProvider {
  /** The members of the next token. */
  claims: Record<string, unknown>;
  /** How the next one is signed. */
  sign: (claims: Record<string, unknown>) => Promise<string>;
  status: number;
  issuer: string;
  readonly honest: FakeProvider['sign'];
  readonly answers: { tokens: number };
}

/** A key of its own, and no scruples. */
async function startFake(server: Server): Promise<FakeProvider> {
  const pair = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const honest = (claims: Record<string, unknown>): Promise<string> => new SignJWT(claims).setProtectedHeader({ alg: 'RS256', kid: 'fake' }).sign(pair.privateKey);
  const fake: FakeProvider = { claims: {}, sign: honest, honest, status: 200, issuer, answers: { tokens: 0 } };
  const jwk = { ...(await exportJWK(pair.publicKey)), kid: 'fake', alg: 'RS256', use: 'sig' };
  server.on('request', (request: IncomingMessage, response: ServerResponse) => {
    const json = (value: unknown): void => {
      response.writeHead(fake.status, { 'content-type': 'application/json' }).end(JSON.stringify(value));
    };
    request.resume().on('end', async () => {
      if (request.url === '/.well-known/openid-configuration') {
        json({
          issuer: fake.issuer, authorization_endpoint: `${issuer}/auth`, token_endpoint: `${issuer}/token`, jwks_uri: `${issuer}/jwks`,
          response_types_supported: ['code'], subject_types_supported: ['public'], id_token_signing_alg_values_supported: ['RS256'],
        });
      } else if (request.url === '/jwks') json({ keys: [jwk] });
      else {
        fake.answers.tokens += 1;
        json({ access_token: 'at', token_type: 'Bearer', expires_in: 60, id_token: await fake.sign(fake.claims) });
      }
    });
  });
  return fake;
}

const listen = async (server: Server): Promise<string> => {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
};

describe.each(backends())('sign-in by a provider on %s', (_title, open) => {
  let backend: Backend;

  beforeAll(async () => {
    backend = await open();
  });
  afterAll(() => backend.stop());

  describe('that is a real one', () => {
    const server = createServer();
    let stage: Stage;
    let issuer = '';

    /** As far as the provider's answer, which the browser has not followed yet. */
    async function authorize(visit: ReturnType<typeof browser>, login: string): Promise<string> {
      let at = await visit(`${stage.origin()}/api/auth/oidc/start`);
      expect([at.status, at.headers.get('location')]).toEqual([302, expect.stringMatching(/code_challenge_method=S256/)]);
      let url = at.headers.get('location')!;
      for (let hops = 0; hops < 12; hops += 1) {
        if (url.startsWith(stage.origin())) return url;
        at = await visit(url);
        const location = at.headers.get('location');
        if (location !== null) url = new URL(location, url).href;
        else {
          const page = await at.text();
          const action = /action="([^"]+)"/.exec(page)?.[1];
          const prompt = /name="prompt" value="([^"]+)"/.exec(page)?.[1];
          if (action === undefined || prompt === undefined) throw new Error(`no form: ${at.status} ${page.slice(0, 300)}`);
          at = await visit(new URL(action, url).href, { prompt, login, password: 'x' });
          url = new URL(at.headers.get('location')!, url).href;
        }
      }
      throw new Error('too many hops');
    }

    beforeAll(async () => {
      issuer = await listen(server);
      stage = await startStage(backend, {
        KEYGUARD_OIDC_ISSUER: issuer, KEYGUARD_OIDC_CLIENT_ID: CLIENT.id, KEYGUARD_OIDC_CLIENT_SECRET: CLIENT.secret, KEYGUARD_OIDC_SIGN_UP_DOMAINS: 'signup.example',
      });
      // What it says of its defaults, which are for development.
      for (const level of ['info', 'warn'] as const) vi.spyOn(console, level).mockImplementation(() => {});
      const provider = new Provider(issuer, {
        clients: [{ client_id: CLIENT.id, client_secret: CLIENT.secret, redirect_uris: [`${stage.origin()}/api/auth/oidc/callback`], grant_types: ['authorization_code'], response_types: ['code'] }],
        claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
        cookies: { keys: ['a key of the test'] },
        findAccount: (_context, id) => ({ accountId: id, claims: () => ({ sub: id, email: id, email_verified: !id.startsWith('unverified'), name: 'From the provider' }) }),
      });
      server.on('request', provider.callback());
    });
    afterAll(async () => {
      vi.restoreAllMocks();
      await stage.stop();
      server.closeAllConnections();
      server.close();
    });

    /** Has it be as if the service had written it. */
    async function verified(userId: string, isVerified: boolean): Promise<void> {
      const vouching = await stage.vouching();
      await asAuth(stage.sql(), (tx) =>
        changePersonIn(tx, vouching, userId, async (before) => {
          await tx.query('UPDATE keyguard_auth.users SET email_verified = $2 WHERE id = $1', [userId, isVerified]);
          return { ...before, isVerified };
        }),
      );
    }
    const names = async (): Promise<string[]> => asAuth(stage.sql(), async (tx) => (await tx.query<{ email: string }>('SELECT email FROM keyguard_auth.users ORDER BY email')).rows.map(({ email }) => email));

    it('lets in who was invited, with what the invitation gives, and again afterwards', async () => {
      await stage.call('POST', '/api/invitations', { token: stage.admin.token, body: { email: 'ada@example.com', is_administrator: true } });
      const visit = browser();
      const back = await visit(await authorize(visit, 'ada@example.com'));
      expect([back.status, back.headers.get('location')]).toEqual([303, '/']);
      expect(back.headers.getSetCookie().some((cookie) => /^keyguard\.session_token=[^;]+;.*HttpOnly; SameSite=Strict$/.test(cookie))).toBe(true);
      const invitations = await visit(`${stage.origin()}/api/invitations`);
      expect([invitations.status, ((await invitations.json()) as { data: { accepted_at: string }[] }).data[0]!.accepted_at]).toEqual([200, expect.any(String)]);
      const accepted = (await stage.auditEntries()).filter(({ action }) => action === 'invitation.accept');
      expect(accepted).toEqual([expect.objectContaining({ outcome: 'success', invited_by: stage.admin.userId, is_administrator: true })]);
      const again = browser();
      expect((await again(await authorize(again, 'ada@example.com'))).status).toBe(303);
      expect((await names()).filter((email) => email.startsWith('ada'))).toHaveLength(1);
    });

    it('lets in whose domain may sign up, and nobody else', async () => {
      const visit = browser();
      expect((await visit(await authorize(visit, 'new@signup.example'))).status).toBe(303);
      for (const login of ['stranger@example.com', 'unverified@signup.example', 'x@not-signup.example']) {
        const stranger = browser();
        const refused = await stranger(await authorize(stranger, login));
        expect([login, refused.status, ((await refused.json()) as { code: string }).code]).toEqual([login, 403, 'oidc_refused']);
      }
      expect(await names()).toEqual(['ada@example.com', 'admin@example.com', 'new@signup.example']);
    });

    it('gives no account away to an address that nobody has verified, on either side', async () => {
      const owner = await stage.newPerson('unverified-owner');
      const theirs = browser();
      expect((await theirs(await authorize(theirs, owner.email))).status).toBe(403);
      const local = await stage.newPerson('planted');
      await verified(local.userId, false);
      const victim = browser();
      expect((await victim(await authorize(victim, local.email))).status).toBe(403);
      await verified(local.userId, true);
      const linked = browser();
      expect((await linked(await authorize(linked, local.email))).status).toBe(303);
    });

    it('still asks for the second factor', async () => {
      const person = await stage.newPerson('factored');
      await setUpFactor(stage, person.token);
      const visit = browser();
      expect((await visit(await authorize(visit, person.email))).status).toBe(303);
      const devices = await visit(`${stage.origin()}/api/devices`);
      expect([devices.status, ((await devices.json()) as { code: string }).code]).toEqual([403, 'second_factor_required']);
    });

    it('takes an answer once, from the browser that asked, with the state that it was given', async () => {
      const visit = browser();
      const answer = await authorize(visit, 'ada@example.com');
      const stranger = browser();
      expect((await stranger(answer)).status).toBe(403);
      const wrong = new URL(answer);
      wrong.searchParams.set('state', 'A'.repeat(43));
      const other = browser();
      await authorize(other, 'ada@example.com');
      expect((await other(wrong.href)).status).toBe(403);
      const second = browser();
      const itsAnswer = await authorize(second, 'ada@example.com');
      const mixed = new URL(itsAnswer);
      mixed.searchParams.set('code', new URL(answer).searchParams.get('code')!);
      // A code of another flow does not match the verifier of this one.
      expect((await second(mixed.href)).status).toBe(403);
      const third = browser();
      const cookies = await authorize(third, 'ada@example.com');
      const both = await Promise.all([third(cookies), third(cookies), third(cookies)]);
      expect(both.map(({ status }) => status).toSorted()).toEqual([303, 403, 403]);
    });

    it('keeps no token of the provider', async () => {
      const { rows } = await asAuth(stage.sql(), (tx) => tx.query<Record<string, unknown>>(`SELECT access_token, refresh_token, id_token, password FROM keyguard_auth.accounts WHERE provider_id = 'oidc'`));
      expect(rows.length).toBeGreaterThan(2);
      for (const row of rows) expect(Object.values(row)).toEqual([null, null, null, null]);
      const entries = await stage.auditEntries();
      expect(new Set(entries.filter(({ action, outcome }) => action === 'auth.oidc_sign_in' && outcome === 'success').map(({ how }) => how))).toEqual(new Set(['invited', 'known', 'signed_up', 'linked']));
      expect(JSON.stringify(entries)).not.toMatch(/@signup\.example|@example\.com/);
    });
  });

  describe('that lies', () => {
    const server = createServer();
    let stage: Stage;
    let fake: FakeProvider;
    let userId = '';

    beforeAll(async () => {
      const issuer = await listen(server);
      fake = await startFake(server);
      stage = await startStage(backend, { KEYGUARD_OIDC_ISSUER: issuer, KEYGUARD_OIDC_CLIENT_ID: CLIENT.id, KEYGUARD_OIDC_CLIENT_SECRET: CLIENT.secret, KEYGUARD_OIDC_EMAIL_DOMAINS: 'example.com' });
      ({ userId } = await stage.newPerson('victim'));
    });
    afterAll(async () => {
      await stage.stop();
      server.closeAllConnections();
      server.close();
    });

    /** A whole flow whose token says `changes`, signed by `sign`. */
    async function flow(changes: Record<string, unknown> = {}, sign = fake.honest): Promise<CallAnswer> {
      const visit = browser();
      const start = await visit(`${stage.origin()}/api/auth/oidc/start`);
      if (start.status !== 302) return { status: start.status, headers: start.headers, text: '', json: await start.json() };
      const asked = new URL(start.headers.get('location')!).searchParams;
      const nowSeconds = Math.floor(Date.now() / 1000);
      fake.claims = {
        iss: fake.issuer, aud: CLIENT.id, sub: 'victim-at-the-provider', nonce: asked.get('nonce'), iat: nowSeconds, exp: nowSeconds + 60,
        email: 'victim@example.com', email_verified: true, ...changes,
      };
      fake.sign = sign;
      const back = await visit(`${stage.origin()}/api/auth/oidc/callback?${new URLSearchParams({ code: 'code', state: asked.get('state')! })}`);
      return { status: back.status, headers: back.headers, text: '', json: back.status === 303 ? {} : await back.json() };
    }

    it('gets nobody in by a token that is forged', async () => {
      const foreign = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
      const nowSeconds = Math.floor(Date.now() / 1000);
      const by = (header: object, key: Parameters<SignJWT['sign']>[0]) => (claims: Record<string, unknown>): Promise<string> =>
        new SignJWT(claims).setProtectedHeader(header as { alg: string }).sign(key);
      const encode = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url');
      const cases: [string, Record<string, unknown>, FakeProvider['sign']][] = [
        ['another key', {}, by({ alg: 'RS256', kid: 'fake' }, foreign)],
        ['an unknown key', {}, by({ alg: 'RS256', kid: 'nobody' }, foreign)],
        ['the secret of the client', {}, by({ alg: 'HS256' }, Buffer.from(CLIENT.secret))],
        ['no signature', {}, async (claims) => `${encode({ alg: 'none' })}.${encode(claims)}.`],
        ['another audience', { aud: 'somebody-else' }, fake.honest],
        ['another issuer', { iss: 'https://evil.example' }, fake.honest],
        ['another nonce', { nonce: 'another' }, fake.honest],
        ['no nonce', { nonce: undefined }, fake.honest],
        ['expired', { exp: nowSeconds - 600, iat: nowSeconds - 700 }, fake.honest],
        ['no subject', { sub: undefined }, fake.honest],
        ['two audiences and another party', { aud: [CLIENT.id, 'other'], azp: 'other' }, fake.honest],
        ['an unverified address', { email_verified: false }, fake.honest],
        ['an address that is verified as a text', { email_verified: 'true' }, fake.honest],
        ['no word of verification', { email_verified: undefined }, fake.honest],
        ['another domain', { email: 'victim@evil.example' }, fake.honest],
        ['a domain that ends alike', { email: 'victim@evil-example.com' }, fake.honest],
      ];
      for (const [name, changes, sign] of cases) {
        await asAuth(stage.sql(), (tx) => tx.query('DELETE FROM keyguard_auth.sessions WHERE user_id = $1', [userId]));
        const { status, json, headers } = await flow(changes, sign);
        expect([name, status, json.code, headers.getSetCookie().some((cookie) => cookie.startsWith('keyguard.session_token='))]).toEqual([name, 403, 'oidc_refused', false]);
      }
      const { rows } = await asAuth(stage.sql(), (tx) => tx.query(`SELECT 1 FROM keyguard_auth.accounts WHERE provider_id = 'oidc'`));
      expect(rows).toEqual([]);
      expect(fake.answers.tokens).toBe(cases.length);
      // So that the cases above fail for what they say.
      expect((await flow()).status).toBe(303);
    });

    it('takes the password from an account that it is linked to, and the sessions that began with it', async () => {
      const planted = await stage.newPerson('colleague');
      expect((await stage.call('GET', '/api/users/me', { token: planted.token })).status).toBe(200);
      const theirs = { sub: 'colleague-at-the-provider', email: planted.email };
      expect((await flow(theirs)).status).toBe(303);
      expect([(await stage.signIn(planted.email)).status, (await stage.call('GET', '/api/users/me', { token: planted.token })).status]).toEqual([401, 401]);
      expect((await flow(theirs)).status).toBe(303);
      const dropped = (await stage.auditEntries()).filter(({ action, actor }) => action === 'auth.password_dropped' && actor === `user:${planted.userId}`);
      expect(dropped).toEqual([expect.objectContaining({ outcome: 'success', sessions_ended: 1 })]);
    });

    it('brings nobody in who is disabled, whether linked or not', async () => {
      const [known, fresh] = [await stage.newPerson('known'), await stage.newPerson('fresh')];
      const asAdmin = (id: string, path: string): Promise<CallAnswer> => stage.call('POST', `/api/users/${id}/${path}`, { token: stage.admin.token });
      expect((await flow({ sub: 'known', email: known.email })).status).toBe(303);
      for (const { userId: id } of [known, fresh]) await asAdmin(id, 'disable');
      for (const [sub, { email }] of [['known', known], ['fresh', fresh]] as const) {
        const { status, json } = await flow({ sub, email });
        expect([sub, status, json.code]).toEqual([sub, 403, 'oidc_refused']);
      }
      for (const { userId: id } of [known, fresh]) await asAdmin(id, 'enable');
      for (const [sub, { email }] of [['known', known], ['fresh', fresh]] as const) expect((await flow({ sub, email })).status).toBe(303);
    });

    it('brings nobody in by a link, or to an address, that a writer of the database has given them', async () => {
      const [boss, eve] = [await stage.newPerson('boss'), await stage.newPerson('eve')];
      const linked = { sub: 'eve-at-the-provider', email: 'nobody@example.com' };
      const accountId = `${fake.issuer}#${linked.sub}`;
      const write = (text: string, params: readonly unknown[]): Promise<unknown> => asAuth(stage.sql(), (tx) => tx.query(text, params));
      await write(`INSERT INTO keyguard_auth.accounts (id, user_id, account_id, provider_id) VALUES ('forged', $1, $2, 'oidc')`, [boss.userId, accountId]);
      expect((await flow(linked)).status).toBe(503);
      await write(`DELETE FROM keyguard_auth.accounts WHERE id = 'forged'`, []);
      // One that is genuine, and is given to somebody else.
      expect((await flow({ ...linked, email: eve.email })).status).toBe(303);
      await write('UPDATE keyguard_auth.accounts SET user_id = $1 WHERE account_id = $2', [boss.userId, accountId]);
      expect((await flow(linked)).status).toBe(503);
      await write('UPDATE keyguard_auth.accounts SET user_id = $1 WHERE account_id = $2', [eve.userId, accountId]);
      expect((await flow(linked)).status).toBe(303);

      await write('UPDATE keyguard_auth.users SET email = $2 WHERE id = $1', [boss.userId, 'eves-other@example.com']);
      expect((await flow({ sub: 'eves-other', email: 'eves-other@example.com' })).status).toBe(503);
      await write('UPDATE keyguard_auth.users SET email = $2 WHERE id = $1', [boss.userId, boss.email]);
      expect(bearerOf(await stage.signIn(boss.email))).toEqual(expect.any(String));
    });

    it('is an outage where it does not answer, and stops nothing else', async () => {
      fake.status = 500;
      const down = await flow();
      expect([down.status, down.headers.get('retry-after')]).toEqual([503, expect.any(String)]);
      fake.status = 200;
      await stage.restart();
      const { port } = server.address() as AddressInfo;
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      expect((await flow()).status).toBe(503);
      expect(bearerOf(await stage.signIn(stage.admin.email))).toEqual(expect.any(String));
      await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
      const issuer = fake.issuer;
      fake.issuer = 'https://another.example';
      expect((await flow()).status).toBe(503);
      fake.issuer = issuer;
      expect((await flow()).status).toBe(303);
    });
  });
});
