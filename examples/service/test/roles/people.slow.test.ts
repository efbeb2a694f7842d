/** People as administrators see them: who administers, who is disabled, who holds roles; with rows that somebody forged, and in races. */
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { asUser } from '../../src/db/as-user.ts';
import { lockRole } from '../../src/roles/store.ts';
import { backends, type Backend } from '../stage.ts';
import { startOn, type Person, type RunningService } from './service.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 180_000 });

describe.each(backends())('people and roles on %s', (_title, open) => {
  let backend: Backend;
  let service: RunningService;
  let other: Person;
  let second: Person;
  const call: RunningService['call'] = (...args) => service.call(...args);
  const asAdmin = (method: string, path: string, body?: object): ReturnType<RunningService['call']> =>
    call(method, path, { token: service.admin.token, ...(body !== undefined && { body }) });
  const roleNamed = async (name: string): Promise<{ id: string; permissions: string[] }> =>
    ((await asAdmin('GET', '/api/roles?limit=200')).json.data as { id: string; name: string; permissions: string[] }[]).find((role) => role.name === name)!;
  const newRole = async (name: string, permissions: readonly string[]): Promise<{ id: string; etag: string }> => {
    const made = await asAdmin('POST', '/api/roles', { name, permissions });
    expect(made.status).toBe(201);
    return { id: made.json.id, etag: made.headers.get('etag')! };
  };
  const grant = (userId: string, body: object, token = service.admin.token): ReturnType<RunningService['call']> =>
    call('POST', `/api/users/${userId}/roles`, { token, body });

  beforeAll(async () => {
    backend = await open();
    service = await startOn(backend);
    [other, second] = [await service.newPerson('other'), await service.newPerson('second')];
    await asAdmin('PUT', `/api/users/${second.userId}/administrator`);
  });
  afterAll(async () => {
    await service?.stop();
    await backend?.stop();
  });

  describe('roles', () => {
    it('are seen by everybody and made by administrators alone; those of the system are neither changed nor deleted', async () => {
      const seen = await call('GET', '/api/roles?limit=200', { token: other.token });
      expect(seen.json.data.map(({ name }: { name: string }) => name)).toEqual(expect.arrayContaining(['auditor', 'viewer', 'secrets_reader', 'secrets_manager', 'project_manager']));
      expect((await call('POST', '/api/roles', { token: other.token, body: { name: 'mine', permissions: ['audit:read'] } })).status).toBe(403);
      const { id } = await roleNamed('viewer');
      for (const [method, body] of [['PATCH', { permissions: ['audit:read'] }], ['DELETE', undefined]] as const) {
        const refused = await asAdmin(method, `/api/roles/${id}`, body);
        expect([refused.status, refused.json.code]).toEqual([409, 'system_role']);
      }
    });

    it('are changed in the state that was seen, or not at all', async () => {
      const { id, etag } = await newRole('changing', ['audit:read']);
      const patch = (body: object, ifMatch: string): ReturnType<RunningService['call']> => call('PATCH', `/api/roles/${id}`, { token: service.admin.token, headers: { 'if-match': ifMatch }, body });
      const changed = await patch({ permissions: ['usage:read', 'audit:read'], description: 'Reads.' }, etag);
      expect([changed.status, changed.json.permissions, changed.json.description]).toEqual([200, ['audit:read', 'usage:read'], 'Reads.']);
      const late = await patch({ permissions: ['secrets:reveal'] }, etag);
      expect([late.status, late.json.code]).toEqual([412, 'precondition_failed']);
      expect((await call('DELETE', `/api/roles/${id}`, { token: service.admin.token, headers: { 'if-match': etag } })).status).toBe(412);
      expect((await asAdmin('GET', `/api/roles/${id}`)).json.permissions).toEqual(['audit:read', 'usage:read']);
      expect((await service.audit('role.update')).find(({ outcome }) => outcome === 'success')).toMatchObject({ resource: `role:${id}`, permissions: ['audit:read', 'usage:read'], permissions_before: ['audit:read'] });
    });

    it('have one name each, whatever races', async () => {
      const tries = await Promise.all(Array.from({ length: 100 }, () => asAdmin('POST', '/api/roles', { name: 'raced', permissions: ['audit:read'] })));
      expect(tries.filter(({ status }) => status === 201)).toHaveLength(1);
      // A hundred at once are more than a slow machine answers in time.
      expect(tries.every(({ status, json }) => status === 201 || status === 503 || json.code === 'name_taken')).toBe(true);
      expect((await asAdmin('GET', '/api/roles?limit=200')).json.data.filter(({ name }: { name: string }) => name === 'raced')).toHaveLength(1);
      const { id } = await newRole('renamed', ['audit:read']);
      expect((await asAdmin('PATCH', `/api/roles/${id}`, { name: 'raced' })).json.code).toBe('name_taken');
    });

    it('take nothing from a client that is not its to say', async () => {
      const bodies = [
        { name: 'x', permissions: ['audit:read'], is_system: true },
        { name: 'x', permissions: ['audit:read'], mac: 'AAAA' },
        { name: 'x', permissions: ['audit:read'], id: randomUUID() },
        { name: 'x', permissions: ['administrator'] },
        { name: 'x', permissions: ['*'] },
        { name: 'x', permissions: [] },
        { name: "x'; DROP TABLE", permissions: ['audit:read'] },
      ];
      for (const body of bodies) expect((await asAdmin('POST', '/api/roles', body)).status, JSON.stringify(body)).toBe(400);
      const { id } = await roleNamed('auditor');
      for (const body of [{ role_id: id, granted_by: other.userId }, { role_id: id, user_id: other.userId }, { role_id: id, mac: 'A' }, { role_id: id, expires_at: '2020-01-01T00:00:00Z' }]) {
        expect((await grant(other.userId, body)).status, JSON.stringify(body)).toBe(400);
      }
    });

    it('are deleted while nobody holds them', async () => {
      const { id } = await newRole('held', ['usage:read']);
      const held = await grant(other.userId, { role_id: id });
      expect(held.status).toBe(201);
      expect((await asAdmin('DELETE', `/api/roles/${id}`)).json.code).toBe('role_assigned');
      expect((await grant(other.userId, { role_id: id })).json.code).toBe('role_held');
      expect((await asAdmin('DELETE', `/api/users/${other.userId}/roles/${held.json.id}`)).status).toBe(204);
      expect((await asAdmin('DELETE', `/api/roles/${id}`)).status).toBe(204);
      expect((await asAdmin('GET', `/api/roles/${id}`)).status).toBe(404);
    });
  });

  describe('giving roles', () => {
    it('lets an auditor read the whole audit log, and ends with the assignment', async () => {
      const entriesOf = async (): Promise<Set<string>> =>
        new Set(((await call('GET', '/api/audit?limit=200', { token: other.token })).json.data as { actor: string }[]).map(({ actor }) => actor));
      expect([...(await entriesOf())]).toEqual([`user:${other.userId}`]);
      const { id } = await roleNamed('auditor');
      const given = await grant(other.userId, { role_id: id });
      expect((await entriesOf()).has(`user:${service.admin.userId}`)).toBe(true);
      expect((await call('GET', `/api/users/${other.userId}/roles`, { token: other.token })).json.data.map(({ role }: { role: string }) => role)).toEqual(['auditor']);
      expect((await service.audit('role.grant'))[0]).toMatchObject({ subject_id: other.userId, role: 'auditor', actor: `user:${service.admin.userId}` });
      await asAdmin('DELETE', `/api/users/${other.userId}/roles/${given.json.id}`);
      expect([...(await entriesOf())]).toEqual([`user:${other.userId}`]);
    });

    it('is for administrators, whatever other roles somebody holds', async () => {
      const { id: strongest } = await newRole('everything', ['secrets:reveal', 'secrets:share', 'projects:write', 'devices:write', 'audit:read']);
      const given = await grant(other.userId, { role_id: strongest });
      expect((await grant(other.userId, { role_id: strongest }, other.token)).status).toBe(403);
      expect((await call('PATCH', `/api/roles/${strongest}`, { token: other.token, body: { name: 'mine' } })).status).toBe(403);
      expect((await call('PUT', `/api/users/${other.userId}/administrator`, { token: other.token })).status).toBe(403);
      expect((await call('GET', '/api/users', { token: other.token })).status).toBe(403);
      expect((await call('GET', `/api/users/${second.userId}`, { token: other.token })).status).toBe(404);
      expect((await call('GET', `/api/users/${second.userId}/roles`, { token: other.token })).status).toBe(404);
      await asAdmin('DELETE', `/api/users/${other.userId}/roles/${given.json.id}`);
    });

    it('of the reading of secrets needs a second administrator, by whatever way', async () => {
      const { admin } = service;
      const { id: reader } = await roleNamed('secrets_reader');
      const refused = await grant(admin.userId, { role_id: reader });
      expect([refused.status, refused.json.code]).toEqual([403, 'four_eyes_required']);
      // A program of one's own is oneself.
      const account = await asAdmin('POST', '/api/service-accounts', { name: 'A robot', scopes: ['secrets:reveal'] });
      expect((await grant(account.json.id, { role_id: reader })).json.code).toBe('four_eyes_required');
      // And so is a role that one holds, when it is changed.
      const { id: growing } = await newRole('growing', ['audit:read']);
      expect((await grant(admin.userId, { role_id: growing })).status).toBe(201);
      for (const permission of ['secrets:reveal', 'secrets:share']) {
        expect((await asAdmin('PATCH', `/api/roles/${growing}`, { permissions: ['audit:read', permission] })).json.code).toBe('four_eyes_required');
      }
      const { id: ofRobot } = await newRole('of_the_robot', ['audit:read']);
      expect((await grant(account.json.id, { role_id: ofRobot })).status).toBe(201);
      expect((await asAdmin('PATCH', `/api/roles/${ofRobot}`, { permissions: ['secrets:reveal'] })).json.code).toBe('four_eyes_required');
      // And so is a role that grants nothing by itself, while a secret is shared with it.
      const { id: shared } = await newRole('shared_with', ['usage:read']);
      const secret = await call('POST', '/api/secrets', { token: other.token, body: { name: 'shared', type: 'password', value: 'of the other' } });
      const share = await call('POST', `/api/secrets/${secret.json.id}/shares`, { token: other.token, body: { grantee: { type: 'role', id: shared }, permission: 'read' } });
      expect(share.status, share.text).toBe(201);
      expect((await grant(admin.userId, { role_id: shared })).json.code).toBe('four_eyes_required');
      expect((await grant(account.json.id, { role_id: shared })).json.code).toBe('four_eyes_required');
      expect((await call('DELETE', `/api/secrets/${secret.json.id}/shares/${share.json.id}`, { token: other.token })).status).toBeLessThan(300);
      expect((await grant(admin.userId, { role_id: shared })).status).toBe(201);

      expect((await grant(admin.userId, { role_id: reader }, second.token)).status).toBe(201);
      expect((await grant(account.json.id, { role_id: reader }, second.token)).status).toBe(201);
      // The other one gets no token of an account that may read secrets now.
      expect((await call('POST', `/api/service-accounts/${account.json.id}/rotate`, { token: second.token, body: {} })).status).toBe(403);
      expect((await service.audit('role.grant')).filter(({ outcome }) => outcome === 'refused').length).toBeGreaterThanOrEqual(2);
    });

    it('gives only what there is, to whom there is', async () => {
      const { id } = await roleNamed('viewer');
      expect((await grant(randomUUID(), { role_id: id })).status).toBe(404);
      expect((await grant(other.userId, { role_id: randomUUID() })).json.code).toBe('unknown_role');
      expect((await grant(other.userId, { role_id: id, project_id: randomUUID() })).json.code).toBe('unknown_project');
    });

    it('is taken away from who has it and from nobody else, on record, and is given again once it is over', async () => {
      const { id } = await roleNamed('viewer');
      const { id: assignmentId } = (await grant(other.userId, { role_id: id, expires_at: new Date(Date.now() + 3_600_000).toISOString() })).json;
      expect((await asAdmin('DELETE', `/api/users/${second.userId}/roles/${assignmentId}`)).status).toBe(404);
      expect((await grant(other.userId, { role_id: id })).json.code).toBe('role_held');
      await service.asSuperuser(`UPDATE keyguard.secret_user_roles SET granted_at_ms = 1, expires_at_ms = 2 WHERE id = $1`, [assignmentId]);
      const again = await grant(other.userId, { role_id: id });
      expect([again.status, again.text]).toEqual([201, expect.any(String)]);
      expect((await asAdmin('DELETE', `/api/users/${other.userId}/roles/${again.json.id}`)).status).toBe(204);
      expect(await service.audit('role.revoke')).toContainEqual(
        expect.objectContaining({ outcome: 'success', actor: `user:${service.admin.userId}`, resource: `role:${id}`, subject_id: other.userId, assignment_id: again.json.id }),
      );
    });

    it('waits for a change of the role that is under way, so as not to go by what it was', async () => {
      const { id } = await newRole('under_way', ['usage:read']);
      let given: ReturnType<typeof grant> | undefined;
      await service.sql.transaction(async (tx) => {
        await lockRole(tx, id);
        given = grant(other.userId, { role_id: id });
        expect(await Promise.race([given.then(() => 'given'), pause(500, 'waits')])).toBe('waits');
      });
      expect((await given!).status).toBe(201);
    });

    it('of a program is seen by its owner and by administrators', async () => {
      const { id } = (await call('POST', '/api/service-accounts', { token: other.token, body: { name: 'seen by its owner', scopes: ['usage:read'] } })).json;
      const stranger = await service.newPerson('stranger');
      const statuses = await Promise.all([other, service.admin, stranger].map(async ({ token }) => (await call('GET', `/api/users/${id}/roles`, { token })).status));
      expect(statuses).toEqual([200, 200, 404]);
    });

    it('counts for nothing where somebody changed it in the database, and shows it', async () => {
      const victim = await service.newPerson('forger');
      const { id } = await newRole('forged', ['usage:read']);
      await grant(victim.userId, { role_id: id });
      await service.asSuperuser(`UPDATE keyguard.secret_roles SET permissions = '{projects:read}' WHERE id = $1`, [id]);
      const shown = await asAdmin('GET', `/api/roles/${id}`);
      expect(shown.json.intact).toBe(false);
      expect((await call('GET', '/api/projects', { token: victim.token })).status).toBe(503);
      // Nobody vouches for it without naming it all anew.
      expect((await asAdmin('PATCH', `/api/roles/${id}`, { name: 'forged_no_more' })).json.code).toBe('not_intact');
      expect((await grant(other.userId, { role_id: id })).status).toBe(503);
      expect((await asAdmin('PATCH', `/api/roles/${id}`, { permissions: ['usage:read'] })).json.intact).toBe(true);
      expect((await call('GET', '/api/projects', { token: victim.token })).json.data).toEqual([]);
    });
  });

  describe('people', () => {
    it('are found by administrators by what their address begins with, and see themselves', async () => {
      const found = await asAdmin('GET', `/api/users?email=${encodeURIComponent(other.email.slice(0, 12).toUpperCase())}`);
      expect(found.json.data.map(({ id }: { id: string }) => id)).toEqual([other.userId]);
      expect((await asAdmin('GET', '/api/users?email=%25')).json.data).toEqual([]);
      const me = await call('GET', '/api/users/me', { token: other.token });
      expect(me.json).toMatchObject({ id: other.userId, email: other.email, is_administrator: false, disabled_at: null });
      expect(me.text).not.toMatch(/password|hash|mac/i);
      const pages: string[] = [];
      let cursor: string | null = null;
      do {
        const { json }: { json: { data: { id: string }[]; next_cursor: string | null } } = await asAdmin('GET', `/api/users?limit=1${cursor === null ? '' : `&cursor=${cursor}`}`);
        pages.push(...json.data.map(({ id }) => id));
        cursor = json.next_cursor;
      } while (cursor !== null);
      expect(new Set(pages).size).toBe(pages.length);
      expect(pages).toEqual(expect.arrayContaining([other.userId, second.userId, service.admin.userId]));
    });

    it('administer by a row that bears its MAC, and by no other', async () => {
      await service.asSuperuser(`INSERT INTO keyguard.administrators (user_id, granted_by, granted_at_ms, mac_key_id, mac) VALUES ($1, 'me', 1, 'x', decode(repeat('00', 32), 'hex'))`, [other.userId]);
      expect((await call('GET', '/api/users', { token: other.token })).status).toBe(503);
      expect((await asAdmin('GET', `/api/users/${other.userId}`)).json).toMatchObject({ is_administrator: false, intact: false });
      expect((await asAdmin('DELETE', `/api/users/${other.userId}/administrator`)).json).toMatchObject({ is_administrator: false, intact: true });
      expect((await call('GET', '/api/users', { token: other.token })).status).toBe(403);
    });

    it('are never without an administrator, whatever races', async () => {
      const made: Person[] = [];
      for (let i = 0; i < 4; i += 1) {
        const one = await service.newPerson('admin');
        // Two must ask for it.
        for (const { token } of [service.admin, second]) await call('PUT', `/api/users/${one.userId}/administrator`, { token });
        made.push(one);
      }
      const all = [service.admin, second, ...made];
      const tries = await Promise.all(
        // Each gives it up itself: all at once, nobody would be left.
        Array.from({ length: 100 }, (_, i) => all[i % all.length]!).map(({ userId, token }) => call('DELETE', `/api/users/${userId}/administrator`, { token })),
      );
      expect(tries.every(({ status }) => [200, 403, 409, 503].includes(status))).toBe(true);
      const { rows } = await service.asSuperuser<{ user_id: string }>('SELECT user_id FROM keyguard.administrators');
      expect(rows.length).toBeGreaterThanOrEqual(1);
      expect(tries.filter(({ status }) => status === 200)).toHaveLength(all.length - rows.length);
      const left = all.find(({ userId }) => userId === rows[0]!.user_id)!;
      for (const { user_id: id } of rows.slice(1)) await call('DELETE', `/api/users/${id}/administrator`, { token: all.find(({ userId }) => userId === id)!.token });
      const last = await call('DELETE', `/api/users/${left.userId}/administrator`, { token: left.token });
      expect([last.status, last.json.code]).toEqual([409, 'last_administrator']);
      // A forged second one is nobody to rely on.
      await service.asSuperuser(`INSERT INTO keyguard.administrators (user_id, granted_by, granted_at_ms, mac_key_id, mac) VALUES ($1, 'me', 1, 'x', decode(repeat('00', 32), 'hex'))`, [other.userId]);
      expect((await call('DELETE', `/api/users/${left.userId}/administrator`, { token: left.token })).json.code).toBe('last_administrator');
      await service.asSuperuser('DELETE FROM keyguard.administrators WHERE user_id = $1', [other.userId]);
      const back = [service.admin, second].filter(({ userId }) => userId !== left.userId);
      for (const [i, { userId }] of back.entries()) {
        // As soon as there are two, both are asked.
        expect((await call('PUT', `/api/users/${userId}/administrator`, { token: left.token })).status).toBe(i === 0 ? 200 : 202);
        if (i > 0) expect((await asAdmin('PUT', `/api/users/${userId}/administrator`)).status).toBe(200);
      }
    });

    it('who are disabled are out at once: sessions, JWTs, devices, codes, programs, sign-in', async () => {
      const person = await service.newPerson('leaver');
      const { token: jwt } = (await call('GET', '/api/auth/token', { token: person.token })).json;
      const robot = (await call('POST', '/api/service-accounts', { token: person.token, body: { name: 'A robot', scopes: ['projects:read'] } })).json;
      const code = async (): Promise<string> => (await call('POST', '/api/enrollment-codes', { token: person.token, body: {} })).json.code;
      const enroll = async (withCode: string): Promise<string> => (await new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() }).enroll({ code: withCode })).deviceId;
      const [active, waiting] = [await enroll(await code()), await enroll(await code())];
      expect((await asAdmin('POST', `/api/devices/${active}/approve`)).json.status).toBe('active');
      const [unused, kept] = [await code(), await code()];
      for (const token of [person.token, jwt, robot.token]) expect((await call('GET', '/api/projects', { token })).status).toBe(200);

      const disabled = await asAdmin('POST', `/api/users/${person.userId}/disable`);
      expect([disabled.status, typeof disabled.json.disabled_at]).toEqual([200, 'string']);
      for (const token of [person.token, jwt, robot.token]) expect((await call('GET', '/api/projects', { token })).status).toBe(401);
      const [shut, wrong] = [await service.signIn(person.email), await service.signIn('nobody-at-all@example.com')];
      expect({ ...shut.json, request_id: '' }).toEqual({ ...wrong.json, request_id: '' });
      expect([shut.status, wrong.status]).toEqual([401, 401]);
      expect((await asAdmin('GET', `/api/devices/${active}`)).json.status).toBe('suspended');
      for (const [id, verb] of [[active, 'resume'], [waiting, 'approve']] as const) {
        const refused = await asAdmin('POST', `/api/devices/${id}/${verb}`);
        expect([refused.status, refused.json.code]).toEqual([409, 'illegal_transition']);
      }
      await expect(enroll(unused)).rejects.toMatchObject({ code: 'enrollment_rejected' });
      // Also by a code that was not revoked, as one that was being made at that moment would be.
      await service.asSuperuser('ALTER TABLE keyguard.enrollment_codes DISABLE TRIGGER ALL');
      await service.asSuperuser('UPDATE keyguard.enrollment_codes SET revoked_at_ms = NULL WHERE for_user_id = $1', [person.userId]);
      await service.asSuperuser('ALTER TABLE keyguard.enrollment_codes ENABLE TRIGGER ALL');
      await expect(enroll(kept)).rejects.toMatchObject({ code: 'enrollment_rejected' });
      expect((await service.asSuperuser<{ n: unknown }>('SELECT count(*) AS n FROM keyguard.devices WHERE owner_id = $1', [person.userId])).rows.map(({ n }) => Number(n))).toEqual([2]);
      expect((await service.audit('user.disable'))[0]).toMatchObject({ resource: `user:${person.userId}`, devices_suspended: [active] });

      expect((await asAdmin('POST', `/api/users/${person.userId}/enable`)).json.disabled_at).toBeNull();
      await service.asSuperuser('DELETE FROM keyguard_auth.rate_limits');
      expect((await service.signIn(person.email)).status).toBe(200);
      expect((await call('GET', '/api/projects', { token: person.token })).status).toBe(401);
      expect((await call('GET', '/api/projects', { token: robot.token })).status).toBe(200);
      expect((await asAdmin('GET', `/api/devices/${active}`)).json.status).toBe('suspended');
      expect((await asAdmin('POST', `/api/devices/${active}/resume`)).json.status).toBe('active');
    });

    it('who are disabled get no session even where sign-in would give them one', async () => {
      const person = await service.newPerson('racer');
      await asAdmin('POST', `/api/users/${person.userId}/disable`);
      await service.asSuperuser(
        `INSERT INTO keyguard_auth.sessions (id, user_id, token, expires_at) VALUES ('late', $1, 'late', CURRENT_TIMESTAMP + interval '1 day')`,
        [person.userId],
      );
      const { rows } = await service.sql.transaction(async (tx) => {
        await tx.query(`SELECT set_config('role', 'kg_auth', true)`);
        return tx.query('SELECT 1 FROM keyguard_auth.sessions WHERE user_id = $1', [person.userId]);
      });
      expect(rows).toEqual([]);
    });

    it('who administer are not disabled before that is taken away', async () => {
      const refused = await asAdmin('POST', `/api/users/${second.userId}/disable`);
      expect([refused.status, refused.json.code]).toEqual([409, 'illegal_transition']);
    });
  });

  it('hides what is foreign by row-level security alone', async () => {
    const { id } = await roleNamed('viewer');
    await grant(second.userId, { role_id: id });
    const seen = await asUser(service.sql, other.userId, async (tx) => [
      (await tx.query('SELECT 1 FROM keyguard.secret_user_roles WHERE user_id <> $1', [other.userId])).rows,
      (await tx.query('SELECT 1 FROM keyguard.service_accounts WHERE owner_id <> $1', [other.userId])).rows,
      (await tx.query('SELECT 1 FROM keyguard.api_key_projects WHERE owner_id <> $1', [other.userId])).rows,
      (await tx.query('SELECT 1 FROM keyguard.disabled_people WHERE user_id <> $1', [other.userId])).rows,
      (await tx.query('SELECT 1 FROM keyguard.stored_api_keys WHERE owner_id <> $1', [other.userId])).rows,
    ]);
    expect(seen).toEqual([[], [], [], [], []]);
    await expect(asUser(service.sql, other.userId, (tx) => tx.query('SELECT 1 FROM keyguard_auth.users'))).rejects.toMatchObject({ cause: { message: 'SQLSTATE 42501' } });
  });
});
