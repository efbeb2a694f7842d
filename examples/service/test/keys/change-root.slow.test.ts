/** The root key is changed: file to file, to a passphrase and back; the old one then opens nothing, and a kill leaves exactly one that does. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import type { RootKeyConfig } from '../../src/config.ts';
import { changeRoot } from '../../src/keys/change-root.ts';
import { openDeploymentKeys } from '../../src/keys/hierarchy.ts';
import { holdRoot, withRootAlone } from '../../src/db/root-lock.ts';
import { postgresKeyRecords } from '@keyguard/storage-node/postgres';
import { asJobs } from '../../src/db/as-user.ts';
import { backends, runCli, type Backend, type Deployment } from '../stage.ts';
import { openKeys, openRows, rootKeyOf, sealRows, type KeyStage } from './stage.ts';

const ROWS = 200;

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe.each(backends())('a change of the root key on %s', (_title, openBackend) => {
  let backend: Backend;
  let deployment: Deployment;
  let stage: KeyStage | null;
  let sql: SqlClient;
  let root: RootKeyConfig;
  let deploymentId: string;

  beforeAll(async () => {
    backend = await openBackend();
    deployment = await backend.deploy();
    root = rootKeyOf(deployment);
    stage = await openKeys(deployment);
    sql = stage.sql;
    ({ deploymentId } = stage.keys);
    await sealRows(sql, stage.keys, ROWS);
  });
  afterAll(async () => {
    await stage?.close();
    await backend.stop();
  });

  const file = (name: string): RootKeyConfig => ({ kind: 'file', path: join(deployment.folder, 'data', name) });
  const passphrase = (text: string): RootKeyConfig => ({ kind: 'passphrase', passphrase: text });

  async function opens(config: RootKeyConfig): Promise<boolean> {
    try {
      const keys = await openDeploymentKeys(postgresKeyRecords(sql), config);
      expect(keys.deploymentId).toBe(deploymentId);
      expect(await openRows(sql, keys)).toMatchObject({ rows: ROWS, unreadable: 0 });
      return true;
    } catch (error) {
      expect((error as { code: string }).code).toBe('key_store_unusable');
      return false;
    }
  }

  it('goes from a file to another, to a passphrase, to another one and back, and each time only the new root opens', async () => {
    const roots = [file('second.key'), passphrase('correct horse battery staple'), passphrase('another passphrase altogether'), file('third.key')];
    for (const next of roots) {
      const { keys } = await changeRoot(sql, root, next);
      expect(keys).toBeGreaterThanOrEqual(9);
      expect([await opens(next), await opens(root)]).toEqual([true, false]);
      root = next;
    }
    const { rows } = await asJobs(sql, (tx) => tx.query(`SELECT 1 FROM keyguard.secret_audit_logs WHERE action = 'root_key.change'`));
    expect(rows).toHaveLength(roots.length);
  });

  it('changes nothing where the current root is not given, or is the new one', async () => {
    await expect(changeRoot(sql, file('second.key'), file('fourth.key'))).rejects.toMatchObject({ code: 'key_store_unusable' });
    await expect(changeRoot(sql, passphrase('not the passphrase of it'), file('fourth.key'))).rejects.toMatchObject({ code: 'key_store_unusable' });
    await expect(changeRoot(sql, root, root)).rejects.toMatchObject({ message: 'That is the root key already.' });
    expect(await opens(root)).toBe(true);
  });

  it('changes nothing where a key was changed while all were wrapped anew', async () => {
    const overtaken: SqlClient = {
      query: (...asked) => sql.query(...asked),
      transaction: (fn) =>
        sql.transaction((tx) =>
          fn({
            async query(text, params) {
              if (text.includes('FOR UPDATE')) await tx.query(`UPDATE keyguard.kek_keys SET wrapped = wrapped || '\\x00'::bytea WHERE purpose = 'kek'`);
              return tx.query(text, params);
            },
          }),
        ),
    };
    await expect(changeRoot(overtaken, root, file('overtaken.key'))).rejects.toThrow('changed while they were being wrapped anew');
    expect([await opens(root), await opens(file('overtaken.key'))]).toEqual([true, false]);
  });

  it('leaves exactly one root that opens, at whatever statement it dies, and can be done again', async () => {
    let [olds, news] = [0, 0];
    for (let statements = 1; statements <= 16; statements += 1) {
      let left = statements;
      const dying: SqlClient = {
        query: () => Promise.reject(new Error('gone')),
        transaction: (fn) =>
          sql.transaction((tx) =>
            fn({
              query: (text, params) => {
                left -= 1;
                return left > 0 ? tx.query(text, params) : Promise.reject(new Error('gone'));
              },
            }),
          ),
      };
      const next = file(`died-${statements % 2}.key`);
      const isDone = await changeRoot(dying, root, next).then(() => true, () => false);
      const verdict = [await opens(root), await opens(next)];
      expect(verdict.filter(Boolean)).toHaveLength(1);
      if (verdict[1]) {
        root = next;
        news += 1;
      } else {
        expect(isDone).toBe(false);
        olds += 1;
      }
    }
    expect([olds > 0, news > 0]).toEqual([true, true]);
  });

  it('is a command that says what to do next, and refuses while somebody serves', async () => {
    await stage!.close();
    stage = null;
    const environment = { ...deployment.environment, KEYGUARD_ROOT_KEY_FILE: (root as { path: string }).path };
    const command = (args: readonly string[], input?: string): ReturnType<typeof runCli> => runCli(deployment.folder, ['keys', 'change-root', ...args], environment, input);
    if (deployment.environment['DATABASE_URL'] !== undefined) {
      const url = deployment.environment['DATABASE_URL'];
      const serving = await holdRoot(url, () => {});
      const refused = await command(['--to-file', 'never.key']);
      expect([refused.code, refused.output]).toEqual([1, expect.stringContaining('KeyGuard is running on this database')]);
      // Those who serve share it.
      await (await holdRoot(url, () => {})).release();
      await serving.release();
      await withRootAlone(url, async () => {
        await expect(holdRoot(url, () => {})).rejects.toThrow('is being changed at this moment');
      });
    }
    expect(existsSync(join(deployment.folder, 'never.key'))).toBe(false);
    expect((await command([])).output).toContain('--to-file <path>, or --to-passphrase');
    expect((await command(['--to-passphrase'], 'too short\n')).output).toContain('at least 16 characters');
    const done = await command(['--to-passphrase'], 'a passphrase from a pipe\n');
    expect([done.code, done.output]).toEqual([0, expect.stringMatching(/keys are under the new root key.+\n.*KEYGUARD_PASSPHRASE/)]);
    expect(done.output).not.toContain('from a pipe');
    stage = await openKeys(deployment, passphrase('a passphrase from a pipe'));
    expect(await openRows(stage.sql, stage.keys)).toMatchObject({ rows: ROWS, unreadable: 0 });
  });
});
