/** Security policies as an administrator changes them, and that they hold at once. */
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { asRole } from '@keyguard/storage-node/postgres';
import { backends, caller, startService, type Backend, type CallAnswer, type Deployment, type Running } from '../stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };

describe.each(backends())('settings on %s', (_title, open) => {
  let backend: Backend;
  let deployment: Deployment;
  let service: Running;
  let token = '';
  const call = caller(() => service.origin);
  const settings = (): Promise<CallAnswer> => call('GET', '/api/settings', { token });
  const change = async (body: object, { ifMatch, query = '', headers = {} }: { ifMatch?: string; query?: string; headers?: Record<string, string> } = {}): Promise<CallAnswer> =>
    call('PATCH', `/api/settings${query}`, { token, body, headers: { 'if-match': ifMatch ?? (await settings()).headers.get('etag')!, ...headers } });

  const start = async (): Promise<void> => {
    service = await startService(deployment.folder, {
      ...deployment.environment,
      KEYGUARD_ADMIN_EMAIL: ADMIN.email,
      KEYGUARD_ADMIN_PASSWORD: ADMIN.password,
      KEYGUARD_REQUESTS_PER_MINUTE: '50',
      TRUST_PROXY: '1',
    });
  };

  beforeAll(async () => {
    backend = await open();
    deployment = await backend.deploy();
    await start();
    token = (await call('POST', '/api/auth/sign-in/email', { body: ADMIN })).headers.get('set-auth-token')!;
  });
  afterAll(async () => {
    await service?.stop('SIGKILL');
    await backend?.stop();
  });

  it('are as the environment says until somebody sets them', async () => {
    const { status, json, headers } = await settings();
    expect([status, headers.get('etag'), headers.get('cache-control')]).toEqual([200, '"0"', 'no-store']);
    expect(json).toMatchObject({ version: 0, changed_at: null, changed_by: null, overridden: [], settings: { limits: { requests_per_minute: 50, enrollments_per_minute: 20 } } });
    expect((await call('GET', '/api/settings')).status).toBe(401);
  });

  it('change only for whoever has seen what is in force, and one time of two at once', async () => {
    const body = { limits: { sign_in_tries_per_minute: 20 } };
    const blind = await call('PATCH', '/api/settings', { token, body });
    expect([blind.status, blind.json.code]).toEqual([428, 'precondition_required']);
    for (const ifMatch of ['"7"', 'W/"0"', '0', '"0']) {
      const stale = await change(body, { ifMatch });
      expect([ifMatch, stale.status, stale.json.code]).toEqual([ifMatch, 412, 'precondition_failed']);
    }
    const made = await change(body, { ifMatch: '"0"' });
    expect([made.status, made.headers.get('etag')]).toEqual([200, '"1"']);
    expect(made.json).toMatchObject({ version: 1, overridden: ['limits.sign_in_tries_per_minute'], settings: { limits: { sign_in_tries_per_minute: 20, requests_per_minute: 50 } } });

    const racing = await Promise.all(Array.from({ length: 10 }, (_, i) => change({ links: { max_views: i + 20 } }, { ifMatch: '"1"' })));
    expect(racing.map(({ status }) => status).toSorted()).toEqual([200, ...Array.from({ length: 9 }, () => 412)]);
    // Whoever does not care what is in force gets a turn of its own.
    const careless = await Promise.all([1, 2, 3].map((n) => change({ links: { max_views: n } }, { ifMatch: '*' })));
    expect(careless.map(({ json }) => json.version).toSorted()).toEqual([3, 4, 5]);
    const same = await change({ links: { max_views: (await settings()).json.settings.links.max_views } });
    expect([same.status, same.json.version]).toEqual([200, 5]);
  });

  it('are taken as a whole or not at all', async () => {
    const before = (await settings()).json;
    const wrong: [object, string][] = [
      [{ mfa: { required_for: 'nobody at all' } }, 'mfa.required_for'],
      [{ mfa: { enabled: true } }, 'mfa'],
      [{ version: 9 }, ''],
      [{ limits: { requests_per_minute: 0 } }, 'limits.requests_per_minute'],
      [{ limits: { requests_per_minute: 1.5 } }, 'limits.requests_per_minute'],
      [{ limits: { requests_per_minute: '10' } }, 'limits.requests_per_minute'],
      [{ limits: { requests_per_minute: null } }, 'limits.requests_per_minute'],
      [{ limits: { requests_per_minute: 10 }, sessions: { length_s: 1 } }, 'sessions.length_s'],
      // Together with what was there before.
      [{ sessions: { length_s: 600 } }, 'sessions.idle_timeout_s'],
      [{ secrets: { max_life_days: 10 } }, 'secrets.default_life_days'],
      [{ secrets: { max_life_days: 10, default_life_days: 11 } }, 'secrets.default_life_days'],
      [{ step_up: { actions: ['reveal', 'reveal'] } }, 'step_up.actions'],
      [{ step_up: { actions: ['everything'] } }, 'step_up.actions.0'],
      [{ network: { control_plane_allowlist: [] } }, 'network.control_plane_allowlist'],
      ...['10.0.0.0/33', '10.0.0', '010.0.0.1', '0x7f.1', 'localhost', '::1/129', 'fe80::1%eth0', '', '*'].map((entry): [object, string] => [
        { network: { control_plane_allowlist: ['0.0.0.0/0', entry] } },
        'network.control_plane_allowlist.1',
      ]),
      [{ reset: ['limits.nothing'] }, 'reset.0'],
    ];
    for (const [body, path] of wrong) {
      const answer = await change(body, { ifMatch: '*' });
      expect([body, answer.status, answer.json.errors?.[0]?.path]).toEqual([body, 400, path]);
    }
    expect((await settings()).json).toEqual(before);
  });

  it('hold at once for devices that call and for those that enroll', async () => {
    const { json } = await call('POST', '/api/enrollment-codes', { token, body: {} });
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    await client.enroll({ code: json.code });
    const ask = async (): Promise<[number, string | null]> => {
      const response = await client.fetch(`${service.origin}/proxy/openai/v1/models`);
      await response.text();
      return [response.status, response.headers.get('ratelimit')];
    };
    expect((await ask())[0]).not.toBe(429);
    expect((await change({ limits: { requests_per_minute: 1 } })).status).toBe(200);
    expect((await ask())[0]).toBe(429);
    expect((await change({ limits: { requests_per_minute: 1000 } })).status).toBe(200);
    expect((await ask())[0]).not.toBe(429);

    expect((await change({ limits: { enrollments_per_minute: 1 } })).status).toBe(200);
    const enroll = (): Promise<string> => new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() }).enroll({}).then(() => 'in', ({ code }: { code: string }) => code);
    expect(await enroll()).toBe('rate_limited');
    expect((await change({ reset: ['limits.enrollments_per_minute'] })).json.overridden).not.toContain('limits.enrollments_per_minute');
    expect(await enroll()).toBe('enrollment_rejected');

    expect((await change({ limits: { sign_in_tries_per_minute: 1 } })).status).toBe(200);
    const from = { 'x-forwarded-for': '192.0.2.77' };
    const signIn = async (): Promise<number> => (await call('POST', '/api/auth/sign-in/email', { headers: from, body: { ...ADMIN, password: 'not the password' } })).status;
    expect([await signIn(), await signIn()]).toEqual([401, 429]);
    expect((await change({ limits: { sign_in_tries_per_minute: 20 } })).status).toBe(200);
    expect(await signIn()).toBe(401);
  });

  it('hold for secrets that are stored from then on', async () => {
    const days = (n: number): number => n * 24 * 60 * 60;
    expect((await change({ secrets: { default_life_days: 7, max_life_days: 30 } })).status).toBe(200);
    const store = (name: string, more: object = {}): Promise<CallAnswer> => call('POST', '/api/secrets', { token, body: { name, type: 'password', value: 'a value', ...more } });
    const usual = await store('usual');
    expect(usual.status).toBe(201);
    expect(Math.abs(Date.parse(usual.json.expires_at) - Date.now() - days(7) * 1000)).toBeLessThan(60_000);
    expect((await store('longest', { expires_in_s: days(30) - 60 })).status).toBe(201);
    for (const more of [{ expires_in_s: days(31) }, { expires_at: null }]) expect([more, (await store('never', more)).status]).toEqual([more, 400]);
    const path = `/api/secrets/${usual.json.id}`;
    const ifMatch = { 'if-match': usual.headers.get('etag')! };
    expect((await call('PATCH', path, { token, headers: ifMatch, body: { expires_at: null } })).status).toBe(400);
    expect((await call('PATCH', path, { token, headers: ifMatch, body: { expires_in_s: days(20) } })).status).toBe(200);
    expect((await change({ links: { max_life_s: 3600, max_views: 2 } })).status).toBe(200);
    const link = async (body: object): Promise<number> => (await call('POST', `${path}/links`, { token, body })).status;
    expect([await link({ max_views: 3, expires_in_s: 60 }), await link({ expires_in_s: 3601 }), await link({ max_views: 2, expires_in_s: 3600 })]).toEqual([400, 400, 201]);
  });

  it('let an administrator shut out everybody else, and itself only by force', async () => {
    const allowlist = { network: { control_plane_allowlist: ['10.0.0.0/8', '2001:db8::/32'] } };
    const refused = await change(allowlist);
    expect([refused.status, refused.json.code]).toEqual([409, 'would_lock_out']);
    expect(refused.json.detail).toContain('127.0.0.1');
    expect((await change(allowlist, { query: '?force=yes' })).status).toBe(400);
    const forced = await change(allowlist, { query: '?force=true' });
    expect(forced.status).toBe(200);

    const outside = await settings();
    expect([outside.status, outside.json.code]).toEqual([403, 'address_not_allowed']);
    for (const path of ['/api/auth/get-session', '/api/openapi.json', '/.well-known/jwks.json', '/api/nothing', '/nothing']) expect([path, (await call('GET', path)).status]).toEqual([path, 403]);
    expect((await call('POST', '/api/auth/sign-in/email', { body: ADMIN })).status).toBe(403);
    // Neither probes nor devices are of the control plane.
    for (const path of ['/healthz', '/readyz']) expect([path, (await call('GET', path)).status]).toEqual([path, 200]);
    expect((await call('POST', '/v1/chat/completions', { body: {} })).json.error.code).toBe('malformed_request');
    expect((await call('GET', '/api/keyguard/time')).status).toBe(200);

    const inside = { 'x-forwarded-for': '10.1.2.3' };
    const ifMatch = `"${forced.json.version}"`;
    for (const address of ['10.1.2.3', '::ffff:10.1.2.3', '2001:db8:1::1']) {
      expect([address, (await call('GET', '/api/settings', { token, headers: { 'x-forwarded-for': address } })).status]).toEqual([address, 200]);
    }
    expect((await change({ reset: ['network.control_plane_allowlist'] }, { ifMatch, headers: inside })).status).toBe(200);
    expect((await settings()).status).toBe(200);
  });

  it('leave behind who changed what, from what and to what', async () => {
    const { json } = await call('GET', '/api/settings/history?limit=3', { token });
    expect(json.has_more).toBe(true);
    expect(json.data[0].changes).toEqual([{ setting: 'network.control_plane_allowlist', from: ['10.0.0.0/8', '2001:db8::/32'] }]);
    const all = [...json.data];
    let { next_cursor: cursor } = json;
    while (cursor !== null) {
      const page = (await call('GET', `/api/settings/history?limit=3&cursor=${cursor}`, { token })).json;
      all.push(...page.data);
      cursor = page.next_cursor;
    }
    expect(all.map(({ version }) => version)).toEqual(Array.from({ length: all.length }, (_, i) => all.length - i));
    expect(all.at(-1)).toMatchObject({ version: 1, changes: [{ setting: 'limits.sign_in_tries_per_minute', to: 20 }] });
    for (const { changed_by: by, changed_at: at } of all) expect([by, Date.parse(at) > 0]).toEqual([all[0].changed_by, true]);

    const entries = (await call('GET', '/api/audit?limit=200', { token })).json.data.filter(({ action }: { action: string }) => action === 'settings.change');
    const done = entries.filter(({ outcome }: { outcome: string }) => outcome === 'success');
    expect(done.map(({ version }: { version: number }) => version)).toEqual(all.map(({ version }) => version));
    expect(done.at(-1)).toMatchObject({ actor: `user:${all[0].changed_by}`, changes: [{ setting: 'limits.sign_in_tries_per_minute', from: 10, to: 20 }] });
    expect(done[1]).toMatchObject({ forced: true });
    expect(entries.find(({ code }: { code?: string }) => code === 'would_lock_out')).toMatchObject({ outcome: 'refused' });
  });

  it('are there after a restart; rows of them are nobody’s to change, to remove or to see who does not administer', async () => {
    const before = (await settings()).json;
    expect(await service.stop()).toBe(0);
    await deployment.withDatabase(async (sql) => {
      const insert = `INSERT INTO keyguard.settings (version, document, changed_by, changed_at_ms, mac_key_id, mac) VALUES ($1, '{}', $2, 1, 'k', $3)`;
      const mac = new Uint8Array(32);
      const asAdmin = { userId: before.changed_by as string };
      for (const userId of ['', 'somebody']) {
        expect((await asRole(sql, 'kg_app', (tx) => tx.query('SELECT 1 FROM keyguard.settings'), { userId })).rows).toEqual([]);
        await expect(asRole(sql, 'kg_app', (tx) => tx.query(insert, [1, userId || 'x', mac]), { userId })).rejects.toThrow(/row-level security/);
      }
      for (const role of ['kg_app', 'kg_jobs', 'kg_auth', 'kg_verifier'] as const) {
        for (const statement of [`UPDATE keyguard.settings SET document = '{}'`, 'DELETE FROM keyguard.settings', 'TRUNCATE keyguard.settings']) {
          await expect(asRole(sql, role, (tx) => tx.query(statement), asAdmin)).rejects.toThrow(/permission denied/);
        }
      }
      // Neither in another's name, nor so far ahead that nothing could come after it.
      await expect(asRole(sql, 'kg_app', (tx) => tx.query(insert, [before.version + 1, 'another', mac]), asAdmin)).rejects.toThrow(/row-level security/);
      await expect(asRole(sql, 'kg_app', (tx) => tx.query(insert, [before.version + 2, asAdmin.userId, mac]), asAdmin)).rejects.toThrow(/follow each other/);
    });
    await start();
    expect((await settings()).json).toEqual(before);
  });

  it('that somebody wrote around the service are refused: it does not start with them', async () => {
    const { version, changed_by: userId } = (await settings()).json;
    expect(await service.stop()).toBe(0);
    await deployment.withDatabase((sql) =>
      asRole(sql, 'kg_app', (tx) => tx.query(`INSERT INTO keyguard.settings (version, document, changed_by, changed_at_ms, mac_key_id, mac) VALUES ($1, '{}', $2, 1, 'k', $3)`, [version + 1, userId, new Uint8Array(32)]), { userId }),
    );
    await expect(start()).rejects.toThrow(/does not bear the MAC/);
  });
});
