/** What roles grant, and what they do not: to whom, where, until when, and by rows that nobody changed. */
import { randomBytes, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { assertSafeRoles, nodeMacKey } from '@keyguard/storage-node/postgres';
import type { Principal } from '../../src/auth/principal.ts';
import { asJobs, asUser } from '../../src/db/as-user.ts';
import { SCHEMAS } from '../../src/db/migrate.ts';
import { createAccess, EVERYWHERE, type Governed, type Reach, type ReachAccess } from '../../src/roles/access.ts';
import { PERMISSION_NAMES, type Permission } from '../../src/roles/permissions.ts';
import { prepareSystemRoles, SYSTEM_ROLES } from '../../src/roles/system-roles.ts';
import { addProject, addRole, assign, openStage, person, program, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

// insufficient_privilege: no grant, or no policy, for it.
const DENIED = { cause: { message: 'SQLSTATE 42501' } };

let stage: Stage;
let access: ReachAccess;
const nobodys = (projectId: string | null = null, shared: readonly Permission[] = []): Governed => ({ ownerId: 'somebody-else', projectId, shared });
const allowed = async (principal: Principal, row: Governed): Promise<string[]> =>
  asUser(stage.sql, principal.userId, async (tx) => [...(await access.permissionsOn(tx, principal, row))].toSorted());
const bySql = async (userId: string, permission: string, projectId: string | null): Promise<boolean> => {
  const { rows } = await asUser(stage.sql, userId, (tx) => tx.query<{ has: boolean }>('SELECT keyguard.acting_has_permission($1, $2) AS has', [permission, projectId]));
  return rows[0]!.has;
};

beforeAll(async () => {
  stage = await openStage();
  access = createAccess(stage);
});
afterAll(() => stage.close());

describe('what somebody may do with a row', () => {
  it('is everything for its owner, what is shared for others, and nothing for anybody else', async () => {
    expect(await allowed(person('ann'), { ownerId: 'ann', projectId: null, shared: [] })).toEqual([...PERMISSION_NAMES].toSorted());
    expect(await allowed(person('ann'), nobodys(null, ['secrets:read']))).toEqual(['secrets:read']);
    expect(await allowed(person('ann'), nobodys())).toEqual([]);
  });

  it('is nothing with secrets for an administrator who has no role', async () => {
    const granted = await allowed(person('root', true), nobodys());
    expect(granted.filter((name) => name.startsWith('secrets:'))).toEqual([]);
    expect(granted).toContain('devices:write');
  });

  it('is what a role grants: in its project and in no other, or everywhere', async () => {
    const [one, two] = [await addProject(stage, 'owner'), await addProject(stage, 'owner')];
    const roleId = await addRole(stage, 'reader of one', ['secrets:read']);
    await assign(stage, { userId: 'bob', roleId, projectId: one });
    expect(await allowed(person('bob'), nobodys(one))).toEqual(['secrets:read']);
    for (const elsewhere of [two, null, randomUUID()]) {
      expect(await allowed(person('bob'), nobodys(elsewhere))).toEqual([]);
      expect(await bySql('bob', 'secrets:read', elsewhere)).toBe(false);
    }
    expect(await bySql('bob', 'secrets:read', one)).toBe(true);
    expect(await bySql('bob', 'secrets:reveal', one)).toBe(false);
    await assign(stage, { userId: 'cleo', roleId });
    expect([await allowed(person('cleo'), nobodys(two)), await allowed(person('cleo'), EVERYWHERE)]).toEqual([['secrets:read'], ['secrets:read']]);
    expect(await bySql('cleo', 'secrets:read', null)).toBe(true);
    expect(await bySql('', 'secrets:read', null)).toBe(false);
  });

  it('ends with the project in which the role was held', async () => {
    const project = await addProject(stage, 'owner');
    await assign(stage, { userId: 'dan', roleId: await addRole(stage, 'reader until the end', ['secrets:read']), projectId: project });
    expect(await allowed(person('dan'), nobodys(project))).toEqual(['secrets:read']);
    await stage.sql.query('UPDATE keyguard.api_key_projects SET archived_at_ms = 1 WHERE id = $1', [project]);
    expect(await allowed(person('dan'), nobodys(project))).toEqual([]);
    expect(await bySql('dan', 'secrets:read', project)).toBe(false);
  });

  it('ends with the millisecond at which the assignment expires', async () => {
    const expiresAtMs = stage.clock.nowMs() + 60_000;
    await assign(stage, { userId: 'eve', roleId: await addRole(stage, 'reader for a minute', ['secrets:read']), expiresAtMs });
    const start = stage.clock.now;
    stage.clock.now = expiresAtMs - 1;
    expect(await allowed(person('eve'), nobodys())).toEqual(['secrets:read']);
    stage.clock.now = expiresAtMs;
    expect(await allowed(person('eve'), nobodys())).toEqual([]);
    stage.clock.now = start;
    // By the clock of the database, which no test moves.
    expect(await bySql('eve', 'secrets:read', null)).toBe(true);
    await assign(stage, { userId: 'late', roleId: await addRole(stage, 'reader until now', ['secrets:read']), expiresAtMs: Date.now() - 1 });
    expect(await bySql('late', 'secrets:read', null)).toBe(false);
  });

  it('is at most its scopes for a service account, whatever it owns or holds', async () => {
    await assign(stage, { userId: 'robot', roleId: await addRole(stage, 'for the robot', ['secrets:read', 'secrets:reveal']) });
    expect(await allowed(program('robot', ['secrets:read', 'devices:read']), nobodys())).toEqual(['secrets:read']);
    expect(await allowed(program('robot', ['secrets:read']), { ownerId: 'robot', projectId: null, shared: [] })).toEqual(['secrets:read']);
    expect(await allowed(program('robot', ['devices:read']), nobodys(null, ['secrets:reveal']))).toEqual([]);
  });
});

describe('where somebody has a permission', () => {
  const reach = (principal: Principal, permission: Permission): Promise<Reach> => asUser(stage.sql, principal.userId, (tx) => access.reachOf(tx, principal, permission));

  it('is where a role grants that very one, and nowhere by another', async () => {
    const [one, two] = [await addProject(stage, 'owner'), await addProject(stage, 'owner')];
    const [devices, projects] = [await addRole(stage, 'sees devices', ['devices:read']), await addRole(stage, 'sees projects', ['projects:read'])];
    await assign(stage, { userId: 'gus', roleId: devices, projectId: one });
    await assign(stage, { userId: 'gus', roleId: projects, projectId: two });
    expect(await reach(person('gus'), 'devices:read')).toEqual({ everywhere: false, projectIds: [one] });
    expect(await reach(person('gus'), 'projects:read')).toEqual({ everywhere: false, projectIds: [two] });
    await assign(stage, { userId: 'gus', roleId: projects });
    expect(await reach(person('gus'), 'projects:read')).toEqual({ everywhere: true, projectIds: [two] });
    expect((await reach(person('gus'), 'devices:read')).everywhere).toBe(false);
  });

  it('is nowhere for a program beyond its scopes, and for an administrator with secrets of others', async () => {
    const roleId = await addRole(stage, 'sees devices too', ['devices:read']);
    await assign(stage, { userId: 'robot-of-reach', roleId });
    expect(await reach(program('robot-of-reach', ['devices:read']), 'devices:read')).toEqual({ everywhere: true, projectIds: [] });
    expect(await reach(program('robot-of-reach', ['projects:read']), 'devices:read')).toEqual({ everywhere: false, projectIds: [] });
    expect((await reach(person('root', true), 'devices:read')).everywhere).toBe(true);
    expect(await reach(person('root', true), 'secrets:read')).toEqual({ everywhere: false, projectIds: [] });
  });
});

describe('rows that somebody wrote into the database', () => {
  const forgeries: readonly [string, string, readonly unknown[]][] = [
    ['another person in an assignment', `UPDATE keyguard.secret_user_roles SET user_id = 'mallory' WHERE user_id = 'victim'`, []],
    ['a project taken out of an assignment', `UPDATE keyguard.secret_user_roles SET project_id = NULL WHERE user_id = 'mallory'`, []],
    ['a later end', `UPDATE keyguard.secret_user_roles SET expires_at_ms = $1 WHERE user_id = 'mallory'`, [8_000_000_000_000]],
    ['no end', `UPDATE keyguard.secret_user_roles SET expires_at_ms = NULL WHERE user_id = 'mallory'`, []],
    ['another role', `UPDATE keyguard.secret_user_roles SET role_id = (SELECT id FROM keyguard.secret_roles WHERE name = 'strong') WHERE user_id = 'mallory'`, []],
    ['more permissions in a role', `UPDATE keyguard.secret_roles SET permissions = permissions || ARRAY['secrets:reveal'] WHERE name = 'weak'`, []],
    ['another name of a role', `UPDATE keyguard.secret_roles SET name = 'other' WHERE name = 'weak'`, []],
    ['a role made a system role', `UPDATE keyguard.secret_roles SET is_system = true WHERE name = 'weak'`, []],
    ['the id of another MAC key', `UPDATE keyguard.secret_user_roles SET mac_key_id = 'other' WHERE user_id = 'mallory'`, []],
    ['the MAC of another assignment', `UPDATE keyguard.secret_user_roles SET mac = (SELECT mac FROM keyguard.secret_user_roles WHERE user_id = 'victim') WHERE user_id = 'mallory'`, []],
  ];

  it.each(forgeries)('grant nothing, and are an outage: %s', async (_what, statement, params) => {
    await stage.sql.query('DELETE FROM keyguard.secret_user_roles');
    await stage.sql.query('DELETE FROM keyguard.secret_roles');
    const project = await addProject(stage, 'owner');
    const [weak, strong] = [await addRole(stage, 'weak', ['secrets:read']), await addRole(stage, 'strong', ['secrets:reveal'])];
    await assign(stage, { userId: 'mallory', roleId: weak, projectId: project, expiresAtMs: stage.clock.nowMs() + 60_000 });
    await assign(stage, { userId: 'victim', roleId: strong });
    expect(await allowed(person('mallory'), nobodys(project))).toEqual(['secrets:read']);
    await stage.sql.query(statement, params);
    await expect(allowed(person('mallory'), nobodys(project))).rejects.toMatchObject({ name: 'UnavailableError', seam: 'roles' });
  });

  it('grant nothing with a MAC of another key', async () => {
    await stage.sql.query('DELETE FROM keyguard.secret_user_roles');
    const roleId = await addRole(stage, 'honest', ['secrets:reveal']);
    await assign({ ...stage, rowMacKey: nodeMacKey({ keyId: stage.rowMacKey.keyId, key: randomBytes(32) }) }, { userId: 'mallory', roleId });
    await expect(allowed(person('mallory'), nobodys())).rejects.toMatchObject({ name: 'UnavailableError' });
  });
});

describe('row-level security, without the application', () => {
  it('is in force for the new tables', async () => {
    await expect(assertSafeRoles(stage.sql, { schemas: SCHEMAS, embedded: true })).resolves.toBeUndefined();
  });

  it('shows a person its own assignments only, and lets nobody but an administrator write', async () => {
    await stage.sql.query('DELETE FROM keyguard.secret_user_roles');
    const roleId = await addRole(stage, 'seen by all', ['secrets:read']);
    await assign(stage, { userId: 'fred', roleId });
    await assign(stage, { userId: 'gina', roleId });
    const seenBy = async (userId: string): Promise<unknown[]> =>
      (await asUser(stage.sql, userId, (tx) => tx.query<{ user_id: string }>('SELECT user_id FROM keyguard.secret_user_roles'))).rows.map(({ user_id: id }) => id);
    expect([await seenBy('fred'), await seenBy('gina'), await seenBy('hugo'), await seenBy('')]).toEqual([['fred'], ['gina'], [], []]);

    const writes: readonly [string, readonly unknown[]][] = [
      [`INSERT INTO keyguard.secret_user_roles (id, user_id, role_id, granted_by, granted_at_ms, mac_key_id, mac) VALUES ('x', 'fred', $1, 'fred', 1, 'k', decode(repeat('00', 32), 'hex'))`, [roleId]],
      [`INSERT INTO keyguard.secret_roles (id, name, permissions, is_system, created_at_ms, updated_at_ms, mac_key_id, mac) VALUES ('x', 'x', '{}', false, 1, 1, 'k', decode(repeat('00', 32), 'hex'))`, []],
    ];
    for (const [text, params] of writes) await expect(asUser(stage.sql, 'fred', (tx) => tx.query(text, params))).rejects.toMatchObject(DENIED);
    const touched = await asUser(stage.sql, 'fred', async (tx) => [
      (await tx.query(`UPDATE keyguard.secret_roles SET permissions = '{secrets:reveal}' WHERE id = $1 RETURNING id`, [roleId])).rows,
      (await tx.query('DELETE FROM keyguard.secret_roles WHERE id = $1 RETURNING id', [roleId])).rows,
      (await tx.query('DELETE FROM keyguard.secret_user_roles RETURNING id')).rows,
    ]);
    expect(touched).toEqual([[], [], []]);
    await expect(asUser(stage.sql, 'fred', (tx) => tx.query(`UPDATE keyguard.secret_user_roles SET user_id = 'fred'`))).rejects.toMatchObject(DENIED);
  });

  it('shows all of the audit log to who holds audit:read everywhere, and to nobody by a role in a project', async () => {
    await stage.sql.query('DELETE FROM keyguard.secret_user_roles');
    const { rows: before } = await stage.sql.query('SELECT 1 FROM keyguard.secret_audit_logs');
    expect(before).toEqual([]);
    await asUser(stage.sql, 'ivy', async (tx) => {
      await tx.query(`SELECT * FROM keyguard.lock_audit_head('test')`);
      await tx.query(
        `INSERT INTO keyguard.secret_audit_logs (origin, seq, ts_ms, actor, action, outcome, entry, prev_mac, mac, mac_key_id)
          VALUES ('test', 0, 1, 'user:ivy', 'a.b', 'success', '\\x7b7d', decode(repeat('00', 32), 'hex'), decode(repeat('01', 32), 'hex'), 'k')`,
      );
    });
    const roleId = await addRole(stage, 'reads the log', ['audit:read']);
    await assign(stage, { userId: 'everywhere', roleId });
    await assign(stage, { userId: 'somewhere', roleId, projectId: await addProject(stage, 'somewhere') });
    const seen = async (userId: string): Promise<number> => (await asUser(stage.sql, userId, (tx) => tx.query('SELECT 1 FROM keyguard.secret_audit_logs'))).rows.length;
    expect([await seen('ivy'), await seen('everywhere'), await seen('somewhere'), await seen('')]).toEqual([1, 1, 0, 0]);
  });
});

describe('the roles of the system', () => {
  const systemRows = async (): Promise<{ name: string; permissions: string[] }[]> =>
    (await stage.sql.query<{ name: string; permissions: string[] }>('SELECT name, permissions FROM keyguard.secret_roles WHERE is_system ORDER BY name')).rows;

  it('are made once by starts at the same time, and mended at the next start', async () => {
    await Promise.all(Array.from({ length: 5 }, () => prepareSystemRoles(stage)));
    const made = await systemRows();
    expect(made.map(({ name }) => name)).toEqual(SYSTEM_ROLES.map(({ name }) => name).toSorted());
    await stage.sql.query(`UPDATE keyguard.secret_roles SET permissions = '{secrets:reveal}' WHERE name = 'viewer'`);
    expect(await prepareSystemRoles(stage)).toEqual({ tampered: ['viewer'], taken: [] });
    expect(await systemRows()).toEqual(made);
    expect(await prepareSystemRoles(stage)).toEqual({ tampered: [], taken: [] });
  });

  it('are changed and deleted by nobody, and made by no administrator', async () => {
    await stage.sql.query(`INSERT INTO keyguard.administrators (user_id, granted_by, granted_at_ms, mac_key_id, mac) VALUES ('root', 'x', 1, 'k', decode(repeat('00', 32), 'hex'))`);
    const touched = await asUser(stage.sql, 'root', async (tx) => [
      (await tx.query(`UPDATE keyguard.secret_roles SET permissions = '{}' WHERE is_system RETURNING id`)).rows,
      (await tx.query('DELETE FROM keyguard.secret_roles WHERE is_system RETURNING id')).rows,
    ]);
    expect(touched).toEqual([[], []]);
    await expect(asUser(stage.sql, 'root', (tx) => tx.query('UPDATE keyguard.secret_roles SET is_system = true'))).rejects.toMatchObject(DENIED);
    await expect(
      asUser(stage.sql, 'root', (tx) =>
        tx.query(`INSERT INTO keyguard.secret_roles (id, name, permissions, is_system, created_at_ms, updated_at_ms, mac_key_id, mac) VALUES ('x', 'x', '{}', true, 1, 1, 'k', decode(repeat('00', 32), 'hex'))`),
      ),
    ).rejects.toMatchObject(DENIED);
    await expect(asJobs(stage.sql, (tx) => tx.query('DELETE FROM keyguard.secret_roles'))).rejects.toMatchObject(DENIED);
  });
});
