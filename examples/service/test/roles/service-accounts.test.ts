/** Programs with tokens of their own: which tokens count, from where and until when, and what nobody can make of the rows behind them. */
import { randomBytes, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { asUser } from '../../src/db/as-user.ts';
import { backends, type Backend } from '../stage.ts';
import { startOn, type Person, type RunningService } from './service.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 180_000 });

interface Account {
  readonly id: string;
  readonly token: string;
}

describe.each(backends())('service accounts on %s', (_title, open) => {
  let backend: Backend;
  let service: RunningService;
  let owner: Person;
  let stranger: Person;
  const clock = { now: Date.now(), nowMs: (): number => clock.now };
  const call: RunningService['call'] = (...args) => service.call(...args);
  const asOwner = (method: string, path: string, body?: object): ReturnType<RunningService['call']> =>
    call(method, path, { token: owner.token, ...(body !== undefined && { body }) });
  const newAccount = async (options: object = {}): Promise<Account> => {
    const made = await asOwner('POST', '/api/service-accounts', { name: 'A robot', scopes: ['projects:read', 'projects:write', 'audit:read'], ...options });
    expect(made.status, made.text).toBe(201);
    return made.json as Account;
  };
  const tryWith = async (token: string, headers: Record<string, string> = {}): Promise<{ status: number; body: object }> => {
    const { status, json } = await call('GET', '/api/projects', { token, headers });
    return { status, body: { ...json, request_id: '' } };
  };

  beforeAll(async () => {
    backend = await open();
    service = await startOn(backend, {}, { clock });
    [owner, stranger] = [await service.newPerson('owner'), await service.newPerson('stranger')];
  });
  afterAll(async () => {
    await service?.stop();
    await backend?.stop();
  });

  it('are somebody of their own: they own what they make, and see nothing of their owner’s', async () => {
    const { id, token } = await newAccount();
    expect(token).toMatch(/^kgsa_[a-z0-9]{12}_[A-Za-z0-9_-]{43}$/);
    const ofOwner = (await asOwner('POST', '/api/projects', { name: 'Of the owner' })).json;
    const made = await call('POST', '/api/projects', { token, body: { name: 'Of the robot' } });
    expect([made.status, made.json.owner_id]).toEqual([201, id]);
    expect((await call('GET', '/api/projects', { token })).json.data.map((one: { id: string }) => one.id)).toEqual([made.json.id]);
    expect((await call('GET', `/api/projects/${ofOwner.id}`, { token })).status).toBe(404);
    expect((await asOwner('GET', `/api/projects/${made.json.id}`)).status).toBe(404);
    expect((await service.audit('project.create'))[0]).toMatchObject({ actor: `service_account:${id}`, resource: `project:${made.json.id}` });
    // And read in the audit log what they did.
    const seen = (await call('GET', '/api/audit?limit=200', { token })).json.data as { actor: string }[];
    expect(new Set(seen.map(({ actor }) => actor))).toEqual(new Set([`service_account:${id}`]));
  });

  it('do what is in their scopes and nothing else, whatever roles they hold', async () => {
    const { id, token } = await newAccount({ scopes: ['audit:read'] });
    const roles = (await call('GET', '/api/roles?limit=200', { token: service.admin.token })).json.data as { id: string; name: string }[];
    for (const name of ['auditor', 'project_manager']) {
      const given = await call('POST', `/api/users/${id}/roles`, { token: service.admin.token, body: { role_id: roles.find((role) => role.name === name)!.id } });
      expect(given.status).toBe(201);
    }
    const entries = (await call('GET', '/api/audit?limit=200', { token })).json.data as { actor: string }[];
    expect(entries.some(({ actor }) => actor === `user:${service.admin.userId}`)).toBe(true);
    expect((await call('GET', '/api/projects', { token })).status).toBe(403);
    expect((await call('POST', '/api/projects', { token, body: { name: 'No' } })).status).toBe(403);
    for (const path of ['/api/users', '/api/users/me', '/api/roles', '/api/service-accounts', '/api/settings']) expect((await call('GET', path, { token })).status, path).toBe(403);
    expect((await call('POST', '/api/service-accounts', { token, body: { name: 'A child', scopes: ['audit:read'] } })).status).toBe(403);
    // Row-level security knows the scopes as well.
    const { rows } = await asUser(service.sql, id, (tx) =>
      tx.query<{ a: boolean; b: boolean }>(`SELECT keyguard.acting_has_permission('audit:read', NULL) AS a, keyguard.acting_has_permission('projects:write', NULL) AS b`),
    );
    expect(rows).toEqual([{ a: true, b: false }]);
    expect((await asOwner('GET', `/api/users/${id}/roles`)).json.data).toHaveLength(2);
    expect((await call('GET', `/api/users/${id}/roles`, { token: stranger.token })).status).toBe(404);
    expect((await asOwner('DELETE', `/api/service-accounts/${id}`)).status).toBe(204);
    expect((await service.asSuperuser('SELECT 1 FROM keyguard.secret_user_roles WHERE user_id = $1', [id])).rows).toEqual([]);
  });

  it('are refused with one answer for every token that does not count', async () => {
    const day = 24 * 60 * 60 * 1000;
    const good = await newAccount();
    const expiring = await newAccount({ expires_at: new Date(clock.now + 60_000).toISOString() });
    const elsewhere = await newAccount({ ip_allowlist: ['203.0.113.0/24', '2001:db8::/32'] });
    const disabled = await newAccount();
    await asOwner('POST', `/api/service-accounts/${disabled.id}/disable`);
    const deleted = await newAccount();
    await asOwner('DELETE', `/api/service-accounts/${deleted.id}`);
    const replaced = await newAccount();
    await asOwner('POST', `/api/service-accounts/${replaced.id}/rotate`, {});
    const overlapped = await newAccount();
    const fresh = (await asOwner('POST', `/api/service-accounts/${overlapped.id}/rotate`, { overlap_s: 60 })).json as Account;
    expect([(await tryWith(overlapped.token)).status, (await tryWith(fresh.token)).status, (await tryWith(expiring.token)).status]).toEqual([200, 200, 200]);

    const start = clock.now;
    clock.now = start + 60_000 - 1;
    expect([(await tryWith(overlapped.token)).status, (await tryWith(expiring.token)).status]).toEqual([200, 200]);
    clock.now = start + 60_000;
    const [prefix, secret] = [good.token.slice(5, 17), good.token.slice(18)];
    const wrong: Record<string, string> = {
      'at the end of its time': expiring.token,
      'at the end of its overlap': overlapped.token,
      'from elsewhere': elsewhere.token,
      'of a disabled account': disabled.token,
      'of a deleted account': deleted.token,
      'that was replaced': replaced.token,
      'with another secret': `kgsa_${prefix}_${randomBytes(32).toString('base64url')}`,
      'with another prefix': `kgsa_${'a'.repeat(12)}_${secret}`,
      'of another account': `kgsa_${prefix}_${fresh.token.slice(18)}`,
      'without its last character': good.token.slice(0, -1),
      'with one more': `${good.token}A`,
      'in upper case': good.token.toUpperCase(),
      'without a prefix': `kgsa__${secret}`,
      'that is nothing': 'kgsa_',
      'with SQL in it': `kgsa_${prefix}_' OR true --`.replaceAll(' ', '+'),
      'that is the hash': `kgsa_${prefix}_${(await service.asSuperuser<{ token_hash: string }>('SELECT token_hash FROM keyguard.service_accounts WHERE id = $1', [good.id])).rows[0]!.token_hash}`,
    };
    const { body: answer } = await tryWith('kgsa_nobody');
    expect(answer).toMatchObject({ status: 401, code: 'not_authenticated' });
    for (const [what, token] of Object.entries(wrong)) expect(await tryWith(token), what).toEqual({ status: 401, body: answer });
    // An address that a client writes is a text.
    for (const headers of [{ 'x-forwarded-for': '203.0.113.7' }, { forwarded: 'for=203.0.113.7' }, { 'x-real-ip': '203.0.113.7' }] as Record<string, string>[]) {
      expect((await tryWith(elsewhere.token, headers)).status).toBe(401);
    }
    expect([(await tryWith(good.token)).status, (await tryWith(fresh.token)).status]).toEqual([200, 200]);
    clock.now = start + day;
    expect((await tryWith(good.token)).status).toBe(200);
    clock.now = start;
    // Why is for the log, and for a token that was a right one.
    const reasons = (await service.audit('service_account.refused')).map((entry) => [entry['resource'], entry['reason']]);
    expect(reasons).toEqual(expect.arrayContaining([
      [`service_account:${expiring.id}`, 'expired'], [`service_account:${overlapped.id}`, 'replaced'],
      [`service_account:${elsewhere.id}`, 'address_not_allowed'], [`service_account:${disabled.id}`, 'disabled'],
    ]));
    expect(reasons.some(([resource]) => resource === `service_account:${good.id}`)).toBe(false);
  });

  it('come from where they may', async () => {
    const here = await newAccount({ ip_allowlist: ['127.0.0.0/8'] });
    expect((await tryWith(here.token)).status).toBe(200);
    expect((await asOwner('PATCH', `/api/service-accounts/${here.id}`, { ip_allowlist: ['::1'] })).status).toBe(200);
    expect((await tryWith(here.token)).status).toBe(401);
    expect((await asOwner('PATCH', `/api/service-accounts/${here.id}`, { ip_allowlist: null })).status).toBe(200);
    expect((await tryWith(here.token)).status).toBe(200);
  });

  it('are written down as used at most once a minute', async () => {
    const { id, token } = await newAccount();
    const lastUsed = async (): Promise<string | null> => (await asOwner('GET', `/api/service-accounts/${id}`)).json.last_used_at;
    expect(await lastUsed()).toBeNull();
    const start = clock.now;
    await tryWith(token);
    expect(await lastUsed()).toBe(new Date(start).toISOString());
    clock.now = start + 59_999;
    await tryWith(token);
    expect(await lastUsed()).toBe(new Date(start).toISOString());
    clock.now = start + 60_000;
    await tryWith(token);
    expect(await lastUsed()).toBe(new Date(start + 60_000).toISOString());
    clock.now = start;
  });

  it('open nothing where somebody changed their row, and count again when it is as it was', async () => {
    const { id, token } = await newAccount({ scopes: ['projects:read'], ip_allowlist: ['127.0.0.1'], expires_at: new Date(clock.now + 3_600_000).toISOString() });
    const other = await newAccount();
    const changes: readonly string[] = [
      `scopes = '{projects:read,secrets:reveal}'`,
      `owner_id = '${stranger.userId}'`,
      'ip_allowlist = NULL',
      'expires_at_ms = NULL',
      'expires_at_ms = expires_at_ms + 1',
      `name = 'Another'`,
      `token_prefix = 'aaaaaaaaaaaa'`,
      `mac_key_id = 'other'`,
      `mac = (SELECT mac FROM keyguard.service_accounts WHERE id = '${other.id}')`,
      `disabled_at_ms = 1, disabled_by = 'x'`,
      `previous_prefix = 'bbbbbbbbbbbb', previous_hash = token_hash, previous_expires_at_ms = 8000000000000`,
    ];
    const { rows } = await service.asSuperuser<Record<string, unknown>>('SELECT * FROM keyguard.service_accounts WHERE id = $1', [id]);
    const before = rows[0]!;
    const columns = Object.keys(before).filter((name) => name !== 'id');
    for (const change of changes) {
      await service.asSuperuser('ALTER TABLE keyguard.service_accounts DISABLE TRIGGER ALL');
      await service.asSuperuser(`UPDATE keyguard.service_accounts SET ${change} WHERE id = $1`, [id]);
      expect((await tryWith(token)).status, change).toBe(401);
      await service.asSuperuser(`UPDATE keyguard.service_accounts SET ${columns.map((name, i) => `${name} = $${i + 2}`).join(', ')} WHERE id = $1`, [id, ...columns.map((name) => before[name])]);
      await service.asSuperuser('ALTER TABLE keyguard.service_accounts ENABLE TRIGGER ALL');
      expect((await tryWith(token)).status, `${change}, undone`).toBe(200);
    }
    // A row that is disabled is not opened again by who can write to the database.
    await asOwner('POST', `/api/service-accounts/${id}/disable`);
    await service.asSuperuser('UPDATE keyguard.service_accounts SET disabled_at_ms = NULL, disabled_by = NULL WHERE id = $1', [id]);
    expect((await tryWith(token)).status).toBe(401);
    expect((await asOwner('GET', `/api/service-accounts/${id}`)).json.intact).toBe(false);
    expect((await asOwner('PATCH', `/api/service-accounts/${id}`, { name: 'Vouch for it' })).status).toBe(503);
    expect((await asOwner('POST', `/api/service-accounts/${id}/rotate`, {})).status).toBe(503);
  });

  it('are their owner’s: an administrator shuts them and gets no token, a stranger sees nothing', async () => {
    const { id, token } = await newAccount();
    const { admin } = service;
    const path = `/api/service-accounts/${id}`;
    for (const [method, suffix, body] of [['PATCH', '', { scopes: ['secrets:reveal'] }], ['POST', '/rotate', {}]] as const) {
      expect((await call(method, path + suffix, { token: admin.token, body })).status).toBe(403);
      expect((await call(method, path + suffix, { token: stranger.token, body })).status).toBe(404);
    }
    for (const [method, suffix] of [['GET', ''], ['POST', '/disable'], ['POST', '/enable'], ['DELETE', '']] as const) {
      expect((await call(method, path + suffix, { token: stranger.token })).status).toBe(404);
    }
    expect((await call('POST', `${path}/disable`, { token: admin.token })).json.disabled_by).toBe(admin.userId);
    expect((await tryWith(token)).status).toBe(401);
    expect((await asOwner('POST', `${path}/enable`)).status).toBe(403);
    expect((await call('POST', `${path}/enable`, { token: admin.token })).json.disabled_at).toBeNull();
    expect((await tryWith(token)).status).toBe(200);
    // The database says the same to a program that forgets to ask.
    const forced = asUser(service.sql, admin.userId, (tx) => tx.query(`UPDATE keyguard.service_accounts SET token_hash = repeat('A', 43) WHERE id = $1`, [id]));
    await expect(forced).rejects.toMatchObject({ cause: { message: 'SQLSTATE 42501' } });
    expect((await asUser(service.sql, stranger.userId, (tx) => tx.query('UPDATE keyguard.service_accounts SET name = $1 RETURNING id', ['x']))).rows).toEqual([]);
    expect((await asUser(service.sql, stranger.userId, (tx) => tx.query('SELECT 1 FROM keyguard.service_accounts'))).rows).toEqual([]);
  });

  it('take nothing from a client that is not its to say, and tell nobody a token twice', async () => {
    const valid = { name: 'A robot', scopes: ['audit:read'] };
    const bodies: object[] = [
      { ...valid, owner_id: stranger.userId }, { ...valid, id: randomUUID() }, { ...valid, mac: 'A' }, { ...valid, token: 'kgsa_x' }, { ...valid, is_administrator: true },
      { ...valid, token_hash: 'A'.repeat(43) }, { ...valid, scopes: [] }, { ...valid, scopes: ['*'] }, { ...valid, scopes: ['administrator'] },
      { ...valid, ip_allowlist: [] }, { ...valid, ip_allowlist: ['10.0.0.0/33'] }, { ...valid, ip_allowlist: ['010.0.0.1'] }, { ...valid, ip_allowlist: ['example.com'] },
      { ...valid, expires_at: new Date(clock.now).toISOString() }, { ...valid, expires_at: 'soon' }, { ...valid, name: 'a\u202eb' }, { ...valid, name: '' },
    ];
    for (const body of bodies) expect((await asOwner('POST', '/api/service-accounts', body)).status, JSON.stringify(body)).toBe(400);
    const { id, token } = await newAccount();
    const shown = [await asOwner('GET', `/api/service-accounts/${id}`), await asOwner('GET', '/api/service-accounts?limit=200'), await asOwner('PATCH', `/api/service-accounts/${id}`, { name: 'Renamed' })];
    const { rows } = await service.asSuperuser<{ all: string }>('SELECT to_jsonb(s)::text AS all FROM keyguard.service_accounts s WHERE id = $1', [id]);
    const log = await call('GET', '/api/audit?limit=200', { token: service.admin.token });
    for (const text of [...shown.map((one) => one.text), rows[0]!.all, log.text]) {
      expect(text).not.toContain(token.slice(18));
    }
    for (const one of shown) expect(one.text).not.toMatch(/hash|"mac"/);
  });

  it('are changed in the state that was seen, or not at all', async () => {
    const { id } = await newAccount();
    const etag = (await asOwner('GET', `/api/service-accounts/${id}`)).headers.get('etag')!;
    const change = (name: string): ReturnType<RunningService['call']> => call('PATCH', `/api/service-accounts/${id}`, { token: owner.token, headers: { 'if-match': etag }, body: { name } });
    const tries = await Promise.all(Array.from({ length: 10 }, (_, i) => change(`Name ${i}`)));
    expect(tries.map(({ status }) => status).toSorted()).toEqual([200, ...Array.from({ length: 9 }, () => 412)]);
  });
});
