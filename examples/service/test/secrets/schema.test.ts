/** What the tables of secrets refuse by themselves, whoever asks and whatever the program above believes. */
import { randomBytes, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { assertSafeRoles, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { asJobs, asUser, asVerifier } from '../../src/db/as-user.ts';
import { SCHEMAS } from '../../src/db/migrate.ts';
import { createAccess } from '../../src/roles/access.ts';
import { sharedWith, shareMac, type ShareGrant, type SharedWith } from '../../src/secrets/shares.ts';
import { addProject, addRole, assign, openStage, type Stage } from '../roles/stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const DENIED = { cause: { message: 'SQLSTATE 42501' } };
const REFUSED = { cause: { message: expect.stringContaining('SQLSTATE 23514') } };
const MAC = randomBytes(32);

let stage: Stage;
let shared: SharedWith;
const as = <T>(userId: string, fn: (tx: SqlTransaction) => Promise<T>): Promise<T> => asUser(stage.sql, userId, fn);

beforeAll(async () => {
  stage = await openStage();
  // Rows are taken under a key that is in use, and under no other.
  await asJobs(stage.sql, (tx) =>
    tx.query(`INSERT INTO keyguard.kek_keys (id, purpose, state, wrapped, root_id, created_at_ms) VALUES ('kek', 'kek', 'primary', $1, 'root', 1), ('kek-2', 'kek', 'decrypt-only', $1, 'root', 1)`, [MAC]),
  );
  shared = sharedWith({ ...stage, access: createAccess(stage) });
});
afterAll(() => stage.close());

async function addSecret(ownerId: string, { projectId = null, actingId = ownerId, name = randomUUID() }: { projectId?: string | null; actingId?: string; name?: string } = {}): Promise<string> {
  const id = randomUUID();
  await as(actingId, async (tx) => {
    await tx.query(
      `INSERT INTO keyguard.enterprise_secrets (id, project_id, owner_id, name, type, tags, current_version, revision, created_at_ms, updated_at_ms, mac_key_id, mac)
        VALUES ($1, $2, $3, $4, 'generic', '{}', 1, 1, 1, 1, 'k', $5)`,
      [id, projectId, ownerId, name, MAC],
    );
    await addVersion(tx, id, ownerId, 1);
  });
  return id;
}

async function addVersion(tx: SqlTransaction, id: string, userId: string, version: number): Promise<void> {
  await tx.query(
    `INSERT INTO keyguard.secret_versions (subject_type, subject_id, version, ciphertext, wrapped_dek, kek_id, state, created_by, created_at_ms)
      VALUES ('secret', $1, $2, $3, $3, 'kek', 'active', $4, 1)`,
    [id, version, MAC, userId],
  );
}

async function addShare(grant: Partial<ShareGrant> & Pick<ShareGrant, 'subjectId' | 'ownerId' | 'permissions'>, { actingId = grant.ownerId, forged = false } = {}): Promise<string> {
  const full: ShareGrant = {
    id: randomUUID(), subjectType: 'secret', projectId: null, granteeType: 'user', granteeId: 'bob', tokenHash: null, maxViews: null,
    createdBy: actingId, createdAtMs: stage.clock.nowMs(), expiresAtMs: null, ...grant,
  };
  const mac = forged ? MAC : await shareMac(stage.rowMacKey, full);
  await as(actingId, (tx) =>
    tx.query(
      `INSERT INTO keyguard.secret_shares (id, subject_type, subject_id, owner_id, project_id, grantee_type, grantee_id, permissions, token_hash,
        max_views, created_by, created_at_ms, expires_at_ms, mac_key_id, mac, version)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
      [full.id, full.subjectType, full.subjectId, full.ownerId, full.projectId, full.granteeType, full.granteeId, full.permissions, full.tokenHash,
        full.maxViews, full.createdBy, full.createdAtMs, full.expiresAtMs, stage.rowMacKey.keyId, mac, full.granteeType === 'link' ? 1 : null],
    ),
  );
  return full.id;
}

const sees = async (userId: string, id: string): Promise<[secret: number, versions: number, shares: number]> =>
  as(userId, async (tx) => {
    const counts = [
      await tx.query('SELECT id FROM keyguard.enterprise_secrets WHERE id = $1', [id]),
      await tx.query('SELECT version FROM keyguard.secret_versions WHERE subject_id = $1', [id]),
      await tx.query('SELECT id FROM keyguard.secret_shares WHERE subject_id = $1', [id]),
    ];
    return counts.map(({ rows }) => rows.length) as [number, number, number];
  });

const change = (userId: string, id: string, set: string): Promise<number> =>
  as(userId, async (tx) => (await tx.query(`UPDATE keyguard.enterprise_secrets SET revision = revision + 1, ${set} WHERE id = $1 RETURNING id`, [id])).rows.length);

describe('the tables of secrets', () => {
  it('are safe to serve on', async () => {
    await assertSafeRoles(stage.sql, { schemas: SCHEMAS, embedded: true });
  });

  it('show a secret to its owner, to whom it is shared with and to roles in its project, and to nobody else', async () => {
    const projectId = await addProject(stage, 'ann');
    const other = await addProject(stage, 'ann');
    const id = await addSecret('ann', { projectId });
    await assign(stage, { userId: 'role-here', roleId: await addRole(stage, 'reads here', ['secrets:read']), projectId });
    await assign(stage, { userId: 'role-elsewhere', roleId: await addRole(stage, 'reads there', ['secrets:read']), projectId: other });
    await assign(stage, { userId: 'role-everywhere', roleId: await addRole(stage, 'reads all', ['secrets:read']) });
    await addShare({ subjectId: id, ownerId: 'ann', projectId, permissions: ['secrets:reveal'], granteeId: 'bob' });
    await addShare({ subjectId: id, ownerId: 'ann', projectId, permissions: ['secrets:read'], granteeId: 'late', expiresAtMs: stage.clock.nowMs() - 1000 });
    expect(await sees('ann', id)).toEqual([1, 1, 2]);
    expect(await sees('bob', id)).toEqual([1, 1, 1]);
    expect(await sees('role-here', id)).toEqual([1, 1, 0]);
    expect(await sees('role-everywhere', id)).toEqual([1, 1, 0]);
    for (const nobody of ['role-elsewhere', 'cleo']) expect(await sees(nobody, id)).toEqual([0, 0, 0]);
    expect(await sees('late', id)).toEqual([0, 0, 1]);
  });

  it('give a share to a role to those who hold it everywhere or in the project of the secret', async () => {
    const [here, there] = [await addProject(stage, 'ann'), await addProject(stage, 'ann')];
    const id = await addSecret('ann', { projectId: here });
    const roleId = await addRole(stage, 'a team', []);
    await assign(stage, { userId: 'team-here', roleId, projectId: here });
    await assign(stage, { userId: 'team-there', roleId, projectId: there });
    await assign(stage, { userId: 'team-all', roleId });
    await addShare({ subjectId: id, ownerId: 'ann', projectId: here, granteeType: 'role', granteeId: roleId, permissions: ['secrets:reveal'] });
    const subject = [{ id, ownerId: 'ann', projectId: here }];
    for (const [userId, counts] of [['team-here', true], ['team-there', false], ['team-all', true], ['cleo', false]] as const) {
      expect([userId, (await sees(userId, id))[0]]).toEqual([userId, counts ? 1 : 0]);
      const granted = await as(userId, (tx) => shared(tx, userId, 'secret', subject));
      expect([userId, granted.get(id) ?? []]).toEqual([userId, counts ? ['secrets:read', 'secrets:reveal'] : []]);
    }
  });

  it('let nobody make a secret for another, or in a project of another’s', async () => {
    const projectId = await addProject(stage, 'ann');
    await expect(addSecret('ann', { actingId: 'bob' })).rejects.toMatchObject(DENIED);
    await expect(addSecret('bob', { projectId })).rejects.toMatchObject(DENIED);
    await assign(stage, { userId: 'maker', roleId: await addRole(stage, 'makes here', ['secrets:create']), projectId });
    await addSecret('maker', { projectId });
    await stage.sql.query('UPDATE keyguard.api_key_projects SET archived_at_ms = 1 WHERE id = $1', [projectId]);
    await expect(addSecret('ann', { projectId })).rejects.toMatchObject(DENIED);
  });

  it('let change and delete who may just that', async () => {
    const id = await addSecret('ann');
    await addShare({ subjectId: id, ownerId: 'ann', permissions: ['secrets:read'], granteeId: 'reader' });
    await addShare({ subjectId: id, ownerId: 'ann', permissions: ['secrets:update'], granteeId: 'writer' });
    await addShare({ subjectId: id, ownerId: 'ann', permissions: ['secrets:delete'], granteeId: 'remover' });
    expect(await change('reader', id, "tags = '{x}'")).toBe(0);
    expect(await change('writer', id, "tags = '{x}'")).toBe(1);
    await expect(change('writer', id, 'deleted_at_ms = 2')).rejects.toMatchObject(DENIED);
    await expect(change('remover', id, "tags = '{y}'")).rejects.toMatchObject(DENIED);
    await expect(change('writer', id, "name = 'mine'")).rejects.toMatchObject(DENIED);
    await expect(as('reader', (tx) => addVersion(tx, id, 'reader', 2))).rejects.toMatchObject(DENIED);
    expect(await change('remover', id, 'deleted_at_ms = 2')).toBe(1);
    expect(await change('ann', id, 'deleted_at_ms = NULL')).toBe(0);
  });

  it('take back no version, and give nothing back that was destroyed', async () => {
    const id = await addSecret('ann');
    const set = (values: string): Promise<unknown> => as('ann', (tx) => tx.query(`UPDATE keyguard.secret_versions SET ${values} WHERE subject_id = $1`, [id]));
    await expect(change('ann', id, 'current_version = 0')).rejects.toMatchObject(REFUSED);
    await expect(as('ann', (tx) => addVersion(tx, id, 'ann', 2))).rejects.toMatchObject({ cause: { message: expect.stringContaining('secret_versions_one_active') } });
    await expect(set("ciphertext = '\\x00'")).rejects.toMatchObject(REFUSED);
    await expect(set("wrapped_dek = '\\x00'")).rejects.toMatchObject(REFUSED);
    await set("state = 'retired'");
    await expect(set("state = 'active'")).rejects.toMatchObject(REFUSED);
    await asJobs(stage.sql, (tx) => tx.query("UPDATE keyguard.secret_versions SET wrapped_dek = '\\x01', kek_id = 'kek-2' WHERE subject_id = $1", [id]));
    await set("state = 'destroyed', ciphertext = NULL, wrapped_dek = NULL, kek_id = NULL, destroyed_at_ms = 1");
    await expect(asJobs(stage.sql, (tx) => tx.query("UPDATE keyguard.secret_versions SET wrapped_dek = '\\x01', kek_id = 'k' WHERE subject_id = $1 RETURNING 1", [id]))).resolves.toMatchObject({ rows: [] });
    // Not even by somebody whom no policy binds.
    await expect(stage.sql.query("UPDATE keyguard.secret_versions SET state = 'retired' WHERE subject_id = $1", [id])).rejects.toThrow('stays destroyed');
  });

  it('let share who may share, and no more than they have', async () => {
    const id = await addSecret('ann');
    await addShare({ subjectId: id, ownerId: 'ann', permissions: ['secrets:read', 'secrets:share'], granteeId: 'bob' });
    await addShare({ subjectId: id, ownerId: 'ann', permissions: ['secrets:read'], granteeId: 'cleo' });
    await addShare({ subjectId: id, ownerId: 'ann', permissions: ['secrets:read'], granteeId: 'dan' }, { actingId: 'bob' });
    for (const [actingId, permissions] of [['bob', ['secrets:reveal']], ['cleo', ['secrets:read']], ['eve', ['secrets:read']]] as const) {
      await expect(addShare({ subjectId: id, ownerId: 'ann', permissions, granteeId: 'eve' }, { actingId })).rejects.toMatchObject(DENIED);
    }
    // Whose it is cannot be claimed.
    await expect(addShare({ subjectId: id, ownerId: 'eve', permissions: ['secrets:read'], granteeId: 'eve' }, { actingId: 'eve' })).rejects.toMatchObject(DENIED);
    const shareId = await addShare({ subjectId: id, ownerId: 'ann', permissions: ['secrets:read'], granteeId: 'fay' });
    const revoke = (userId: string, at: string): Promise<number> =>
      as(userId, async (tx) => (await tx.query(`UPDATE keyguard.secret_shares SET revoked_at_ms = ${at} WHERE id = $1 RETURNING id`, [shareId])).rows.length);
    expect([await revoke('eve', '5'), await revoke('bob', '5'), await revoke('fay', '5')]).toEqual([0, 0, 1]);
    await expect(revoke('ann', '6')).rejects.toMatchObject(REFUSED);
    expect((await sees('fay', id))[0]).toBe(0);
  });

  it('show a link to who comes with one, and only what it is to', async () => {
    const [linked, other] = [await addSecret('ann'), await addSecret('ann')];
    const tokenHash = 'A'.repeat(43);
    const shareId = await addShare({ subjectId: linked, ownerId: 'ann', permissions: ['secrets:reveal'], granteeType: 'link', granteeId: null, tokenHash, maxViews: 1,
      expiresAtMs: stage.clock.nowMs() + 60_000 });
    const seen = await asVerifier(stage.sql, async (tx) => ({
      links: (await tx.query('SELECT id FROM keyguard.secret_shares WHERE token_hash = $1', [tokenHash])).rows,
      secrets: (await tx.query('SELECT id FROM keyguard.enterprise_secrets WHERE id = ANY ($1)', [[linked, other]])).rows,
      versions: (await tx.query('SELECT subject_id FROM keyguard.secret_versions WHERE subject_id = ANY ($1)', [[linked, other]])).rows,
    }));
    expect(seen).toEqual({ links: [{ id: shareId }], secrets: [{ id: linked }], versions: [{ subject_id: linked }] });
    const view = (): Promise<unknown> => asVerifier(stage.sql, (tx) => tx.query('UPDATE keyguard.secret_shares SET views = views + 1 WHERE id = $1', [shareId]));
    await view();
    await expect(view()).rejects.toMatchObject(REFUSED);
    await expect(asVerifier(stage.sql, (tx) => tx.query('UPDATE keyguard.secret_shares SET views = 0 WHERE id = $1', [shareId]))).rejects.toMatchObject(REFUSED);
    await expect(as('ann', (tx) => tx.query('SELECT token_hash FROM keyguard.secret_shares', []))).rejects.toMatchObject(DENIED);
  });
});

describe('what is shared with somebody', () => {
  it('is nothing by a row that nobody with the key has written, or that was made for another subject', async () => {
    const id = await addSecret('ann');
    await addShare({ subjectId: id, ownerId: 'ann', permissions: ['secrets:reveal'], granteeId: 'bob' }, { forged: true });
    const ask = (userId: string, ownerId = 'ann'): Promise<ReadonlyMap<string, readonly string[]>> => as(userId, (tx) => shared(tx, userId, 'secret', [{ id, ownerId, projectId: null }]));
    expect([...(await ask('bob'))]).toEqual([]);
    await addShare({ subjectId: id, ownerId: 'ann', permissions: ['secrets:reveal', 'secrets:update'], granteeId: 'cleo' });
    expect((await ask('cleo')).get(id)).toEqual(['secrets:read', 'secrets:reveal', 'secrets:update']);
    expect((await ask('cleo', 'zoe')).get(id)).toBeUndefined();
    expect((await ask('dan')).get(id)).toBeUndefined();
  });
});
