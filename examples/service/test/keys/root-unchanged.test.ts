/** A process that has slept through a change of the root key writes no key that its own root wrapped: nobody would ever open it. */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { postgresKeyRecords } from '@keyguard/storage-node/postgres';
import { auditLog } from '../../src/audit/log.ts';
import { createMacRotation } from '../../src/audit/mac-rotation.ts';
import type { RootKeyConfig } from '../../src/config.ts';
import { asJobs } from '../../src/db/as-user.ts';
import { changeRoot } from '../../src/keys/change-root.ts';
import { openDeploymentKeys } from '../../src/keys/hierarchy.ts';
import { runKekRotation } from '../../src/keys/kek-rotation.ts';
import { backends, type Backend, type Deployment } from '../stage.ts';
import { openKeys, rootKeyOf, sealedKeys, silent, type KeyStage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe.each(backends())('after a change of the root key on %s', (_title, openBackend) => {
  let backend: Backend;
  let deployment: Deployment;
  let stage: KeyStage;
  let root: RootKeyConfig;
  beforeAll(async () => {
    backend = await openBackend();
    deployment = await backend.deploy();
    root = rootKeyOf(deployment);
    stage = await openKeys(deployment, root);
  });
  afterAll(async () => {
    await stage.close();
    await backend.stop();
  });

  const passphrase = (text: string): RootKeyConfig => ({ kind: 'passphrase', passphrase: text });
  const kept = async (): Promise<readonly string[]> =>
    (await asJobs(stage.sql, (tx) => tx.query<{ id: string }>('SELECT id FROM keyguard.kek_keys ORDER BY id'))).rows.map(({ id }) => id);

  it.each<[what: string, next: () => RootKeyConfig]>([
    ['to another file', () => ({ kind: 'file', path: join(deployment.folder, 'data', 'second.key') })],
    ['to a passphrase', () => passphrase('correct horse battery staple')],
    // Of both of which the database says the same.
    ['from a passphrase to another', () => passphrase('another passphrase altogether')],
  ])('%s, a process with the old root keeps no key, and one with the new root does', async (_what, nextOf) => {
    const { sql } = stage;
    const old = await openDeploymentKeys(postgresKeyRecords(sql), root);
    const next = nextOf();
    await changeRoot(sql, root, next);
    root = next;
    const before = await kept();
    const changed = { name: 'UnavailableError', seam: 'kek', message: expect.stringContaining('The root key was changed') };

    await expect(createMacRotation({ sql, auditMac: old.auditMac, audit: auditLog(sql, old) }).begin('user:admin')).rejects.toMatchObject(changed);
    await expect(old.kek.refresh()).rejects.toMatchObject(changed);
    await expect(asJobs(sql, (tx) => old.kek.demandRootIn(tx))).rejects.toMatchObject(changed);
    expect(await kept()).toEqual(before);

    const now = await openDeploymentKeys(postgresKeyRecords(sql), root);
    const rotation = createMacRotation({ sql, auditMac: now.auditMac, audit: auditLog(sql, now), distributedAfterMs: 0 });
    const { to } = await rotation.begin('user:admin');
    await rotation.tick();
    expect((await openDeploymentKeys(postgresKeyRecords(sql), root)).auditMac.macKey.keyId).toBe(to);
  });

  it('makes no key encryption key either, where the change came between its making and its keeping', async () => {
    const { sql } = stage;
    const old = await openDeploymentKeys(postgresKeyRecords(sql), root);
    await sql.transaction(async (tx) => {
      await tx.query(`SELECT set_config('role', 'kg_auth', true)`);
      await tx.query(`INSERT INTO keyguard.administrators (user_id, granted_by, granted_at_ms, mac_key_id, mac) VALUES ('admin', 'admin', 1, 'none', decode(repeat('00', 32), 'hex'))`);
      await tx.query(`SELECT set_config('role', 'kg_app', true), set_config('app.user_id', 'admin', true)`);
      await tx.query(`INSERT INTO keyguard.kek_rotations (id, requested_by, created_at_ms) VALUES ('r', 'admin', 1)`);
    });
    const before = await kept();
    let isMade!: () => void;
    const made = new Promise<void>((resolve) => (isMade = resolve));
    const next = passphrase('the third passphrase of these');
    const slow = {
      ...old.kek,
      async makeRecord() {
        const record = await old.kek.makeRecord();
        await changeRoot(sql, root, next);
        isMade();
        return record;
      },
    };
    const rotation = runKekRotation({ sql, prompt: sql, keyring: slow, tables: [sealedKeys(old)], audit: auditLog(sql, old), log: silent, pollMs: 20 });
    await made;
    await rotation.stop();
    root = next;
    expect(await kept()).toEqual(before);
  });
});
