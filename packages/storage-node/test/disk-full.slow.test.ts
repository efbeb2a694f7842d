/**
 * A full disk is an error to whoever writes, loses nothing that was acknowledged, and heals by itself once there is room again. It
 * takes root to mount a small disk; CI has it, and demands that nothing is skipped.
 */
import { PGlite } from '@electric-sql/pglite';
import { verifyRecords } from '@keyguard/core/audit';
import { isUnavailable } from '@keyguard/core/errors';
import { randomBytes } from 'node:crypto';
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { fileKeyStore } from '../src/file.ts';
import {
  migrate,
  nodeMacKey,
  pgliteClient,
  postgresAuditSink,
  postgresReplayStore,
  type SqlClient,
} from '../src/postgres.ts';
import { ownServer, postgresSubstrate } from './postgres-substrate.ts';
import { canMount, mountSmallDisk, type SmallDisk } from './small-disk.ts';

const ORIGIN = 'keyguard.test/disk-full';
const macKey = nodeMacKey({ keyId: 'audit-1', key: randomBytes(32) });
// What cannot be compressed.
const ENTRY = { action: 'disk.test', outcome: 'success', actor: 'system', filling: randomBytes(25_000).toString('hex') } as const;

async function onSmallDisk(mebibytes: number, work: (disk: SmallDisk) => Promise<void>): Promise<void> {
  const disk = (await mountSmallDisk(mebibytes))!;
  try {
    await work(disk);
  } finally {
    await disk.unmount();
  }
}

/** Writes until the disk is full and is refused, more than once; then gives room, and it goes on without being opened anew. */
async function expectToHeal(sql: SqlClient, disk: SmallDisk): Promise<void> {
  const sink = postgresAuditSink(sql, { origin: ORIGIN, macKey });
  const replayStore = postgresReplayStore(sql);
  const nowMs = Date.now();
  const createdSeconds = Math.floor(nowMs / 1000);
  const claim = (i: number): Promise<boolean> => replayStore.claim(`key-${i}`, 'nonce', createdSeconds, nowMs + 360_000);
  let acknowledged = 0;
  const append = async (): Promise<void> => {
    await sink.append([ENTRY]);
    acknowledged += 1;
  };
  await append();
  expect(await claim(0)).toBe(true);

  disk.fill(1_000_000);
  const refused: unknown[] = [];
  for (let i = 0; i < 400 && refused.length < 3; i += 1) await append().catch((error: unknown) => refused.push(error));
  expect(refused.map(isUnavailable)).toEqual([true, true, true]);

  await disk.empty();
  // A server that had to end its connections lets new ones in shortly.
  await expect.poll(() => append().then(() => true, () => false), { timeout: 20_000, interval: 100 }).toBe(true);
  await append();
  expect(await claim(0)).toBe(false);
  expect(await claim(1)).toBe(true);
  const end = await verifyRecords(sink.read(0), { origin: ORIGIN, keys: new Map([[macKey.keyId, macKey]]) });
  // What was refused is not there.
  expect(end.seq).toBe(acknowledged);
}

describe.runIf(await canMount())('a full disk', { timeout: 120_000 }, () => {
  it('is told by the key store, which leaves nothing torn and goes on when there is room', () =>
    onSmallDisk(1, async (disk) => {
      const directory = join(disk.folder, 'keys');
      const store = fileKeyStore({ directory });
      const kept = await store.getOrCreate('before');
      disk.fill();
      await expect(store.getOrCreate('after')).rejects.toMatchObject({ name: 'UsageError', code: 'key_store_unusable', message: expect.stringMatching(/ENOSPC|room|full/) });
      expect((await store.get('before'))?.keyId).toBe(kept.keyId);
      await disk.empty();
      const made = await store.getOrCreate('after');
      const later = fileKeyStore({ directory });
      expect((await later.get('after'))?.keyId).toBe(made.keyId);
      expect((await later.get('before'))?.keyId).toBe(kept.keyId);
      expect((await readdir(directory)).filter((name) => !/^(?:root\.key|device-[0-9a-f]{64}\.key)$/.test(name))).toEqual([]);
    }));

  it('is told by the stores on PGlite, which go on when there is room', () =>
    onSmallDisk(160, async (disk) => {
      const folder = join(disk.folder, 'database');
      await mkdir(folder, { mode: 0o700 });
      const db = await PGlite.create(folder);
      await migrate(pgliteClient(db));
      await expectToHeal(pgliteClient(db), disk);
      await db.close();
    }));

  it('is told by the stores on PostgreSQL, which go on when there is room', () =>
    onSmallDisk(200, async (disk) => {
      const server = await ownServer(disk.folder);
      const substrate = await postgresSubstrate(server);
      const database = await substrate.open();
      try {
        await expectToHeal(database.app, disk);
      } finally {
        await disk.empty();
        await database.close();
        await substrate.stop().catch(() => {});
      }
    }));
});
