/** What secrets promise, against the database itself: every swap in it is noticed, racing changes lose nothing, and nothing is released or kept that is not on record. */
import { randomUUID } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { AuditEntry } from '@keyguard/core/seams';
import { UnavailableError } from '@keyguard/core/errors';
import type { AuditLog } from '../../src/audit/log.ts';
import type { Principal } from '../../src/auth/principal.ts';
import { PERMISSION_NAMES } from '../../src/roles/permissions.ts';
import { asJobs } from '../../src/db/as-user.ts';
import { readSealed, rewrapRows, writeRewrapped } from '../../src/keys/sealed-tables.ts';
import { sealedVersions, SECRETS_TABLE, versionsOfSecrets, type HeldSecret } from '../../src/secrets/rows.ts';
import { stateOf, type NewSecret, type SecretStore } from '../../src/secrets/store.ts';
import { backends } from '../stage.ts';
import { addProject, addRole, assign, person, program } from '../roles/stage.ts';
import { openSecretStage, roleStage, type SecretStage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const ann = person('ann');
const bob = person('bob');
const root = person('root', true);
const CURRENT = { version: null, allowExpired: false };
const problem = (code: string): object => ({ name: 'HttpProblem', code });

describe.each(backends())('secrets on %s', () => {
  let stage: SecretStage;
  let store: SecretStore;

  beforeAll(async () => {
    stage = await openSecretStage();
    store = stage.store();
  });
  afterAll(() => stage.close());

  const create = (value: string, more: Partial<NewSecret> = {}, who = ann): Promise<HeldSecret> =>
    store.create(who, { name: randomUUID(), type: 'generic', value, tags: [], projectId: null, expiresAtMs: undefined, ...more });
  const change = (value: string, ifMatch: readonly string[] | null = null): { value: string; reason: null; expiresAtMs: undefined; ifMatch: readonly string[] | null } => ({ value, reason: null, expiresAtMs: undefined, ifMatch });
  const read = async (id: string, version: number | null = null, who: Principal = ann): Promise<string> => (await store.reveal(who, id, { version, allowExpired: false })).value;
  const edit = (text: string, params: readonly unknown[] = []): Promise<unknown[]> => stage.superuser(text, params);
  const actions = async (id: string): Promise<string[]> => (await stage.entriesOf(id)).map(({ action }) => action);

  it('keeps every version, reveals each, and has all of it on record', async () => {
    const { secret } = await create('one');
    await store.addVersion(ann, secret.id, change('two'));
    await store.restore(ann, secret.id, 1, null);
    expect([await read(secret.id), await read(secret.id, 2), await read(secret.id, 3)]).toEqual(['one', 'two', 'one']);
    await expect(read(secret.id, 4)).rejects.toMatchObject(problem('not_found'));
    expect(await stage.entriesOf(secret.id)).toMatchObject([
      { action: 'secret.create', actor: 'user:ann', version: 1 },
      { action: 'secret.add_version', version: 2 },
      { action: 'secret.restore_version', version: 3, restored_version: 1 },
      { action: 'secret.reveal', version: 3 },
      { action: 'secret.reveal', version: 2 },
      { action: 'secret.reveal', version: 3 },
    ]);
    expect(JSON.stringify(await stage.entriesOf(secret.id))).not.toMatch(/"(?:one|two)"/);
  });

  it('shows nothing of it to anybody else, an administrator included', async () => {
    const { secret } = await create('hidden');
    for (const stranger of [bob, root, program('robot', [...PERMISSION_NAMES])]) {
      for (const act of [
        () => store.read(stranger, secret.id),
        () => store.reveal(stranger, secret.id, CURRENT),
        () => store.update(stranger, secret.id, { tags: ['x'] }, null),
        () => store.addVersion(stranger, secret.id, change('mine')),
        () => store.restore(stranger, secret.id, 1, null),
        () => store.destroyVersion(stranger, secret.id, 1),
        () => store.destroy(stranger, secret.id, null),
      ]) await expect(act()).rejects.toMatchObject(problem('not_found'));
    }
    expect(await actions(secret.id)).toEqual(['secret.create']);
  });

  it('holds by the policies alone, and by its own check alone', async () => {
    const { secret } = await create('behind two doors');
    const open = stage.store({ access: { permissionsOn: async () => new Set(PERMISSION_NAMES) } });
    for (const act of [
      () => open.reveal(bob, secret.id, CURRENT),
      () => open.addVersion(bob, secret.id, change('mine')),
      () => open.destroy(bob, secret.id, null),
    ]) await expect(act()).rejects.toMatchObject(problem('not_found'));
    // Whoever may see it by a share is let no further by the database.
    await edit(
      `INSERT INTO keyguard.secret_shares (id, subject_type, subject_id, owner_id, grantee_type, grantee_id, permissions, created_by, created_at_ms, mac_key_id, mac)
        VALUES ($1, 'secret', $2, 'ann', 'user', 'bob', '{secrets:read}', 'ann', 1, 'k', $3)`,
      [randomUUID(), secret.id, Buffer.alloc(32)],
    );
    // The share bears no MAC of ours, so where that is asked for it grants nothing.
    await expect(store.read(bob, secret.id)).rejects.toMatchObject(problem('not_found'));
    await edit('DELETE FROM keyguard.secret_shares WHERE subject_id = $1', [secret.id]);

    await edit('ALTER ROLE kg_app BYPASSRLS');
    try {
      for (const act of [
        () => store.read(bob, secret.id),
        () => store.reveal(bob, secret.id, CURRENT),
        () => store.addVersion(bob, secret.id, change('mine')),
        () => store.update(bob, secret.id, { tags: ['x'] }, null),
        () => store.destroyVersion(bob, secret.id, 1),
        () => store.destroy(bob, secret.id, null),
      ]) await expect(act()).rejects.toMatchObject(problem('not_found'));
    } finally {
      await edit('ALTER ROLE kg_app NOBYPASSRLS');
    }
    expect(await read(secret.id)).toBe('behind two doors');
  });

  it('goes by roles in its project, one permission at a time, also where only the database asks', async () => {
    const rows = roleStage(stage);
    const projectId = await addProject(rows, 'ann');
    const { secret } = await create('of the project', { projectId });
    await assign(rows, { userId: 'reader', roleId: await addRole(rows, 'reads secrets', ['secrets:read']), projectId });
    await assign(rows, { userId: 'revealer', roleId: await addRole(rows, 'reveals secrets', ['secrets:read', 'secrets:reveal']), projectId });
    await assign(rows, { userId: 'maker', roleId: await addRole(rows, 'makes secrets', ['secrets:create']), projectId });
    const [reader, revealer, maker] = [person('reader'), person('revealer'), person('maker')];
    expect((await store.read(reader, secret.id)).secret.name).toBe(secret.name);
    await expect(read(secret.id, null, reader)).rejects.toMatchObject(problem('forbidden'));
    expect(await read(secret.id, null, revealer)).toBe('of the project');
    expect(await read(secret.id, null, ann)).toBe('of the project');
    await expect(store.addVersion(revealer, secret.id, change('mine'))).rejects.toMatchObject(problem('forbidden'));
    await expect(read(secret.id, null, program('revealer', ['secrets:read']))).rejects.toMatchObject(problem('forbidden'));
    const made = await create('by the maker', { projectId }, maker);
    expect(await read(made.secret.id, null, maker)).toBe('by the maker');
    await expect(create('by the reader', { projectId }, reader)).rejects.toMatchObject(problem('not_found'));
    // A row that a reader sees is not a value that they may open, even where nobody but the database says so.
    const open = stage.store({ access: { permissionsOn: async () => new Set(PERMISSION_NAMES) } });
    for (const act of [() => open.reveal(reader, secret.id, CURRENT), () => open.addVersion(reader, secret.id, change('mine')), () => open.destroy(reader, secret.id, null), () => open.update(reader, secret.id, { tags: [] }, null)]) {
      await expect(act()).rejects.toMatchObject(problem('not_found'));
    }
    await expect(open.create(reader, { name: 'x', type: 'generic', value: 'x', tags: [], projectId, expiresAtMs: undefined })).rejects.toMatchObject({ seam: 'database' });
  });

  it('opens no value that was moved to another row, version, column, owner or project, or whose parts were mixed', async () => {
    const [one, two] = [(await create('value of one')).secret, (await create('value of two')).secret];
    const bobs = (await create('value of bob’s', {}, bob)).secret;
    await store.addVersion(ann, one.id, change('second of one'));
    await store.addVersion(ann, two.id, change('second of two'));
    await edit('CREATE TABLE IF NOT EXISTS public.kept_versions AS SELECT * FROM keyguard.secret_versions');
    const parts = ['ciphertext', 'wrapped_dek', 'kek_id'];
    const from = (columns: readonly string[], sourceId: string, version: number): string =>
      columns.map((column) => `${column} = (SELECT ${column} FROM public.kept_versions WHERE subject_id = '${sourceId}' AND version = ${version})`).join(', ');
    const swaps: readonly [string, string][] = [
      ['another row', from(parts, two.id, 2)],
      ['another version', from(parts, one.id, 1)],
      ['another owner’s', from(parts, bobs.id, 1)],
      ['the ciphertext of another row', from(['ciphertext'], two.id, 2)],
      ['the key of another row', from(['wrapped_dek'], two.id, 2)],
      ['the ciphertext of another version', from(['ciphertext'], one.id, 1)],
      ['the key of another version', from(['wrapped_dek'], one.id, 1)],
      ['another column', 'ciphertext = wrapped_dek'],
      ['a flipped bit', 'ciphertext = set_byte(ciphertext, 70, get_byte(ciphertext, 70) # 1)'],
      ['a cut end', 'ciphertext = substring(ciphertext FROM 1 FOR length(ciphertext) - 1)'],
      ['nothing at all', "ciphertext = ''"],
      ['another key’s name', "kek_id = 'kek-of-mine'"],
    ];
    for (const [what, set] of swaps) {
      await edit(`UPDATE keyguard.secret_versions SET ${set} WHERE subject_id = $1 AND version = 2`, [one.id]);
      await expect(read(one.id), what).rejects.toMatchObject(problem('integrity_failed'));
      await expect(store.restore(ann, one.id, 2, null), what).rejects.toBeInstanceOf(Error);
      await edit(`UPDATE keyguard.secret_versions SET ${from(parts, one.id, 2)} WHERE subject_id = $1 AND version = 2`, [one.id]);
    }
    expect(await read(one.id)).toBe('second of one');
    await edit('DROP TABLE public.kept_versions');
  });

  it('acts on no row that was changed in the database, whoever it now seems to belong to', async () => {
    const { secret } = await create('mine', { expiresAtMs: stage.clock.now + 1000 });
    const projectId = randomUUID();
    await edit('INSERT INTO keyguard.api_key_projects (id, owner_id, name, created_at_ms) VALUES ($1, $2, $1, 1)', [projectId, 'bob']);
    const kept = (await edit('SELECT * FROM keyguard.enterprise_secrets WHERE id = $1', [secret.id]))[0] as Record<string, unknown>;
    for (const [who, column, value] of [
      [bob, 'owner_id', 'bob'], [ann, 'project_id', projectId], [ann, 'name', 'x'], [ann, 'type', 'env'], [ann, 'tags', ['x']], [ann, 'current_version', 2],
      [ann, 'revision', 7], [ann, 'expires_at_ms', stage.clock.now + 10_000_000], [ann, 'expires_at_ms', null], [ann, 'created_at_ms', 1], [ann, 'updated_at_ms', 1],
    ] as const) {
      await edit(`UPDATE keyguard.enterprise_secrets SET ${column} = $2 WHERE id = $1`, [secret.id, value]);
      for (const act of [
        () => store.reveal(who, secret.id, CURRENT),
        () => store.addVersion(who, secret.id, change('next')),
        () => store.update(who, secret.id, { tags: [] }, null),
        () => store.destroy(who, secret.id, null),
      ]) await expect(act(), column).rejects.toMatchObject(problem('integrity_failed'));
      expect((await store.read(who, secret.id)).intact).toBe(false);
      await edit(`UPDATE keyguard.enterprise_secrets SET ${column} = $2 WHERE id = $1`, [secret.id, kept[column]]);
    }
    // A row made to be bob's, MAC and all, by somebody who holds that key: the value itself still says whose it is.
    const { rowMac } = await import('@keyguard/storage-node/postgres');
    const fields = [secret.id, null, 'bob', secret.name, secret.type, secret.tags, 1, 1, secret.expiresAtMs, secret.createdAtMs, secret.updatedAtMs, null];
    await edit(`UPDATE keyguard.enterprise_secrets SET owner_id = 'bob', mac = $2 WHERE id = $1`, [secret.id, await rowMac(stage.keys.rowMacKey, SECRETS_TABLE, fields)]);
    await expect(read(secret.id, null, bob)).rejects.toMatchObject(problem('integrity_failed'));
  });

  it('notices an old row that was put back with everything that belonged to it', async () => {
    const keep = async (id: string): Promise<() => Promise<void>> => {
      const secrets = await edit('SELECT * FROM keyguard.enterprise_secrets WHERE id = $1', [id]);
      const versions = await edit('SELECT * FROM keyguard.secret_versions WHERE subject_id = $1', [id]);
      return async () => {
        await edit('DELETE FROM keyguard.enterprise_secrets WHERE id = $1', [id]);
        await edit('DELETE FROM keyguard.secret_versions WHERE subject_id = $1', [id]);
        for (const [table, rows] of [['enterprise_secrets', secrets], ['secret_versions', versions]] as const) {
          for (const row of rows as Record<string, unknown>[]) {
            const columns = Object.keys(row);
            await edit(`INSERT INTO keyguard.${table} (${columns.join(', ')}) VALUES (${columns.map((_, i) => `$${i + 1}`).join(', ')})`, Object.values(row));
          }
        }
      };
    };
    const replaced = (await create('compromised')).secret;
    const putBackReplaced = await keep(replaced.id);
    await store.addVersion(ann, replaced.id, change('replaced'));
    await putBackReplaced();
    await expect(read(replaced.id)).rejects.toMatchObject(problem('integrity_failed'));

    const deleted = (await create('deleted')).secret;
    const putBackDeleted = await keep(deleted.id);
    await store.destroy(ann, deleted.id, null);
    await putBackDeleted();
    await expect(read(deleted.id)).rejects.toMatchObject(problem('integrity_failed'));

    const thinned = (await create('first')).secret;
    await store.addVersion(ann, thinned.id, change('second'));
    const putBackVersion = await keep(thinned.id);
    await store.destroyVersion(ann, thinned.id, 1);
    await putBackVersion();
    await expect(read(thinned.id, 1)).rejects.toMatchObject(problem('integrity_failed'));
    await expect(store.restore(ann, thinned.id, 1, null)).rejects.toMatchObject(problem('integrity_failed'));
    expect(await read(thinned.id)).toBe('second');

    // Nor does it help to change the columns beside the log's last word, or those beside an entry that names the old version: another
    // process, which remembers nothing, reads the entries themselves.
    const elsewhere = stage.store();
    const about = (id: string): string => `UPDATE keyguard.secret_audit_logs SET %s WHERE resource = 'secret:${id}' AND action = `;
    for (const [id, action] of [[replaced.id, 'secret.add_version'], [deleted.id, 'secret.delete']] as const) {
      for (const column of ["action = 'secret.reveal'", "resource = 'secret:of-nobody'"]) {
        await edit(`${about(id).replace('%s', column)}'${action}'`);
        await expect(elsewhere.reveal(ann, id, CURRENT), `${action}: ${column}`).rejects.toMatchObject(problem('integrity_failed'));
        await edit(`UPDATE keyguard.secret_audit_logs SET action = $2, resource = $1 WHERE convert_from(entry, 'UTF8') LIKE '%"action":"' || $2::text || '"%"resource":"' || $1::text || '"%'`, [`secret:${id}`, action]);
      }
    }
    const renamed = (await create('compromised once')).secret;
    const putBackRenamed = await keep(renamed.id);
    await store.addVersion(ann, renamed.id, change('second'));
    await store.reveal(ann, renamed.id, { version: 1, allowExpired: false });
    await putBackRenamed();
    await edit(`${about(renamed.id).replace('%s', "action = 'secret.restore_version'")}'secret.reveal'`);
    await expect(elsewhere.reveal(ann, renamed.id, CURRENT)).rejects.toMatchObject(problem('integrity_failed'));

    // Whoever rewrites the log's last word as well is noticed by its MAC.
    await edit(`UPDATE keyguard.secret_audit_logs SET entry = convert_to(replace(convert_from(entry, 'UTF8'), '"version":2', '"version":1'), 'UTF8')
      WHERE resource = $1 AND action = 'secret.add_version'`, [`secret:${replaced.id}`]);
    await expect(read(replaced.id)).rejects.toMatchObject(problem('integrity_failed'));
    for (const { id } of [replaced, renamed]) {
      await edit('DELETE FROM keyguard.secret_audit_logs WHERE resource = $1', [`secret:${id}`]);
      await edit('DELETE FROM keyguard.secret_versions WHERE subject_id = $1', [id]);
    }
  });

  it('stays readable while its keys are wrapped anew, and gets no new one where it was destroyed', async () => {
    const { secret } = await create('first');
    await store.addVersion(ann, secret.id, change('second'));
    const table = sealedVersions([versionsOfSecrets(stage.keys.deploymentId)]);
    const kekId = ((await edit('SELECT kek_id FROM keyguard.secret_versions WHERE subject_id = $1', [secret.id])) as { kek_id: string }[])[0]!.kek_id;
    const all = await asJobs(stage.sql, (tx) => readSealed(tx, table, kekId, null, 10_000));
    const mine = await rewrapRows(table, all.filter((row) => row['subject_id'] === secret.id), stage.keys.kek, stage.keys.kek);
    expect(mine.map(({ newWrapped }) => newWrapped !== null)).toEqual([true, true]);
    await store.destroyVersion(ann, secret.id, 1);
    expect(await asJobs(stage.sql, (tx) => writeRewrapped(tx, table, mine, kekId, kekId))).toBe(1);
    expect(await read(secret.id)).toBe('second');
    await expect(read(secret.id, 1)).rejects.toMatchObject(problem('version_destroyed'));
  });

  it('loses no update: who has seen an older state is told', async () => {
    const { secret } = await create('one');
    const seen = [stateOf(secret)];
    const results = await Promise.allSettled(Array.from({ length: 10 }, (_, i) => store.addVersion(ann, secret.id, change(`by ${i}`, seen))));
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    for (const result of results) if (result.status === 'rejected') expect(result.reason).toMatchObject(problem('precondition_failed'));
    await expect(store.update(ann, secret.id, { tags: ['x'] }, seen)).rejects.toMatchObject(problem('precondition_failed'));
    await expect(store.destroy(ann, secret.id, seen)).rejects.toMatchObject(problem('precondition_failed'));
    expect((await store.read(ann, secret.id)).secret.currentVersion).toBe(2);
  });

  it('numbers a hundred racing versions without a gap, in one chain, from two processes', async () => {
    const { secret } = await create('0');
    const other = stage.store();
    await Promise.all(Array.from({ length: 100 }, (_, i) => (i % 2 === 0 ? store : other).addVersion(ann, secret.id, change(String(i + 1)))));
    const versions = (await edit(`SELECT version, state FROM keyguard.secret_versions WHERE subject_id = $1 ORDER BY version`, [secret.id])) as { version: number; state: string }[];
    expect(versions.map(({ version }) => version)).toEqual(Array.from({ length: 101 }, (_, i) => i + 1));
    expect(versions.filter(({ state }) => state === 'active')).toEqual([{ version: 101, state: 'active' }]);
    expect((await stage.entriesOf(secret.id)).map((entry) => entry['version'])).toEqual(Array.from({ length: 101 }, (_, i) => i + 1));
    const values = await Promise.all(Array.from({ length: 101 }, (_, i) => read(secret.id, i + 1)));
    expect(new Set(values).size).toBe(101);
  });

  it('reveals what is current while it changes all the time', async () => {
    const { secret } = await create('0');
    const writing = (async () => {
      for (let i = 1; i <= 30; i += 1) await store.addVersion(ann, secret.id, change(String(i)));
    })();
    for (let i = 0; i < 30; i += 1) {
      const revealed = await store.reveal(ann, secret.id, CURRENT);
      expect(revealed.value).toBe(String(revealed.version - 1));
    }
    await writing;
    expect(await read(secret.id)).toBe('30');
  });

  it('refuses what has expired, but to its owner who insists', async () => {
    const { secret } = await create('stale', { expiresAtMs: stage.clock.now + 1000 });
    expect(await read(secret.id)).toBe('stale');
    stage.clock.now += 1000;
    await expect(read(secret.id)).rejects.toMatchObject(problem('secret_expired'));
    expect((await store.reveal(ann, secret.id, { version: null, allowExpired: true })).value).toBe('stale');
  });

  it('takes a name once for each owner and project', async () => {
    const { secret } = await create('a', { name: 'TAKEN' });
    await expect(create('b', { name: 'TAKEN' })).rejects.toMatchObject(problem('name_taken'));
    await create('c', { name: 'TAKEN' }, bob);
    const other = (await create('d', { name: 'FREE' })).secret;
    await expect(store.update(ann, other.id, { name: 'TAKEN' }, null)).rejects.toMatchObject(problem('name_taken'));
    await store.destroy(ann, secret.id, null);
    expect((await store.update(ann, other.id, { name: 'TAKEN' }, null)).secret.name).toBe('TAKEN');
    await expect(create('e', { projectId: 'default' })).rejects.toMatchObject(problem('not_found'));
    await expect(store.create(program('robot', ['secrets:read']), { name: 'x', type: 'generic', value: 'x', tags: [], projectId: null, expiresAtMs: undefined })).rejects.toMatchObject(problem('forbidden'));
  });

  it('destroys versions for ever, the current one with its secret', async () => {
    const { secret } = await create('first value');
    await store.addVersion(ann, secret.id, change('second value'));
    await expect(store.destroyVersion(ann, secret.id, 2)).rejects.toMatchObject(problem('illegal_transition'));
    await store.destroyVersion(ann, secret.id, 1);
    await store.destroyVersion(ann, secret.id, 1);
    await expect(read(secret.id, 1)).rejects.toMatchObject(problem('version_destroyed'));
    await expect(store.restore(ann, secret.id, 1, null)).rejects.toMatchObject(problem('version_destroyed'));
    await store.destroy(ann, secret.id, null);
    await expect(read(secret.id)).rejects.toMatchObject(problem('not_found'));
    const left = await edit(`SELECT state, ciphertext, wrapped_dek, kek_id FROM keyguard.secret_versions WHERE subject_id = $1`, [secret.id]);
    expect(left).toEqual(Array.from({ length: 2 }, () => ({ state: 'destroyed', ciphertext: null, wrapped_dek: null, kek_id: null })));
    const tombstone = await edit('SELECT name FROM keyguard.enterprise_secrets WHERE id = $1 AND deleted_at_ms IS NOT NULL', [secret.id]);
    expect(tombstone).toEqual([{ name: secret.name }]);
    expect(await actions(secret.id)).toEqual(['secret.create', 'secret.add_version', 'secret.destroy_version', 'secret.delete']);
  });

  it('leaves nothing of a value in the files of the database once they are rewritten, and never a readable one', async () => {
    const value = `canary-${randomUUID()}`;
    const { secret } = await create(value);
    await store.addVersion(ann, secret.id, change(`${value}-2`));
    const [{ data_directory: reported }] = (await edit('SHOW data_directory')) as [{ data_directory: string }];
    const root = existsSync(join(stage.directory, 'base')) ? stage.directory : reported;
    const sealed = (await edit('SELECT ciphertext, wrapped_dek FROM keyguard.secret_versions WHERE subject_id = $1', [secret.id])) as Record<string, Uint8Array>[];
    const parts = sealed.flatMap((row) => Object.values(row)).map((bytes) => Buffer.from(bytes));
    const filesOf = (directory: string): string[] => readdirSync(directory, { recursive: true, withFileTypes: true }).filter((one) => one.isFile()).map((one) => join(one.parentPath, one.name));
    const found = (needles: readonly Buffer[], directory: string): number => filesOf(directory).map((file) => readFileSync(file)).reduce((sum, content) => sum + needles.filter((needle) => content.includes(needle)).length, 0);
    await edit('CHECKPOINT');
    // So that the search is known to find what is there.
    expect(found(parts, join(root, 'base'))).toBeGreaterThanOrEqual(parts.length);
    await store.destroy(ann, secret.id, null);
    await edit('VACUUM FULL keyguard.secret_versions');
    await edit('CHECKPOINT');
    expect(found(parts, join(root, 'base'))).toBe(0);
    expect(found([Buffer.from(value), Buffer.from(Buffer.from(value).toString('base64').slice(0, -4))], root)).toBe(0);
  });

  describe('with an audit log that fails', () => {
    const failing = (fails: () => boolean): AuditLog => ({
      ...stage.audit,
      async recordIn(tx, entry) {
        if (fails()) throw new UnavailableError('audit_sink', 'It does not answer.');
        await stage.audit.recordIn(tx, entry);
      },
      async record(entry) {
        if (fails()) throw new UnavailableError('audit_sink', 'It does not answer.');
        await stage.audit.record(entry);
      },
    });
    const hanging = (): AuditLog => ({ ...stage.audit, recordIn: () => new Promise(() => {}), record: () => new Promise(() => {}) });

    /** Works with secrets through `broken`, and answers with what it was told had happened. */
    async function work(broken: SecretStore, rounds: number): Promise<{ released: number; kept: Map<string, number>; tried: string[] }> {
      const seeds = await Promise.all(Array.from({ length: 4 }, async () => (await create('seed')).secret.id));
      const kept = new Map(seeds.map((id) => [id, 1]));
      let released = 0;
      const attempt = async (act: () => Promise<void>): Promise<void> => {
        try {
          await act();
        } catch (error) {
          expect(error).toBeInstanceOf(UnavailableError);
        }
      };
      for (let n = 0; n < rounds; n += 1) {
        await attempt(async () => {
          const { secret } = await broken.create(ann, { name: randomUUID(), type: 'generic', value: 'new', tags: [], projectId: null, expiresAtMs: undefined });
          kept.set(secret.id, 1);
        });
        await attempt(async () => {
          const { secret } = await broken.addVersion(ann, seeds[n % 4]!, change(`v${n}`));
          kept.set(secret.id, secret.currentVersion);
        });
        await attempt(async () => {
          await broken.reveal(ann, seeds[n % 4]!, CURRENT);
          released += 1;
        });
      }
      return { released, kept, tried: seeds };
    }

    /** Every version has its entry, and every entry its version. */
    async function demandOneEntryEach(): Promise<void> {
      const rows = await edit(`SELECT subject_id || ' ' || version AS what FROM keyguard.secret_versions WHERE subject_type = 'secret'`);
      const entries = (await edit(`SELECT entry FROM keyguard.secret_audit_logs WHERE action IN ('secret.create', 'secret.add_version', 'secret.restore_version')`)) as { entry: Uint8Array }[];
      const announced = entries.map(({ entry }) => JSON.parse(Buffer.from(entry).toString()) as AuditEntry).map((entry) => `${String(entry['resource']).slice(7)} ${String(entry['version'])}`);
      expect(announced.toSorted()).toEqual((rows as { what: string }[]).map(({ what }) => what).toSorted());
    }

    const revealsOf = async (ids: readonly string[]): Promise<number> => (await Promise.all(ids.map(actions))).flat().filter((action) => action === 'secret.reveal').length;

    it('releases nothing and keeps nothing while it always fails', async () => {
      const { released, kept, tried } = await work(stage.store({ audit: failing(() => true) }), 5);
      expect([released, kept.size, await revealsOf(tried)]).toEqual([0, 4, 0]);
      for (const id of tried) expect(await actions(id)).toEqual(['secret.create']);
    });

    it('releases and keeps just what is on record where it fails one time in five', async () => {
      let n = 0;
      const { released, kept, tried } = await work(stage.store({ audit: failing(() => (n += 1) % 5 === 0) }), 20);
      expect(released).toBeGreaterThan(0);
      expect(released).toBeLessThan(20);
      expect(await revealsOf(tried)).toBe(released);
      for (const [id, version] of kept) expect((await store.read(ann, id)).secret.currentVersion).toBe(version);
    });

    it('gives up on one that hangs', async () => {
      const startedMs = performance.now();
      const { released, tried } = await work(stage.store({ audit: hanging(), auditTimeoutMs: 50 }), 2);
      expect([released, await revealsOf(tried)]).toEqual([0, 0]);
      expect(performance.now() - startedMs).toBeLessThan(20_000);
    });

    it('has, after all that, an entry for each version and a version for each entry', async () => {
      await demandOneEntryEach();
    });
  });
});
