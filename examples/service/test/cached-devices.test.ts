/** Devices as a replica has them, in memory over the database, keep the contract of a registry with the bound of a second. */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, describe, vi } from 'vitest';
import { deviceRegistryConformance } from '@keyguard/conformance';
import { cachedDeviceRegistry, watchDeviceChanges, type CachedDeviceRegistry } from '@keyguard/server-verifier';
import {
  grantRolesTo,
  nodeMacKey,
  postgresAdministrators,
  postgresDeviceChanges,
  postgresDeviceDirectory,
  postgresDeviceRegistry,
  postgresEnrollmentCodes,
  postgresRotationCodes,
  type DeviceMove,
} from '@keyguard/storage-node/postgres';
import { loginOf, openEmbedded, openPostgres, openPostgresOwner, type Database } from '../src/db/connect.ts';
import { migrateAll } from '../src/db/migrate.ts';
import { folder, postgresBackend, remove, type PostgresBackend } from './stage.ts';

vi.setConfig({ hookTimeout: 120_000 });

const rowMacKey = nodeMacKey({ keyId: 'row-1', key: randomBytes(32) });
const ignore = (): void => {};

/** The same database, as two processes have it open. */
type Both = readonly [Database, Database];

async function embedded(): Promise<Both> {
  const path = await folder();
  const database = await openEmbedded(join(path, 'data'));
  await migrateAll(database.sql);
  let closing: Promise<void> | undefined;
  const close = async (): Promise<void> => {
    await database.close();
    await remove(path);
  };
  const one: Database = { ...database, close: () => (closing ??= close()) };
  return [one, one];
}

async function ofServer(backend: PostgresBackend): Promise<Both> {
  const { environment } = await backend.deploy();
  const url = environment['DATABASE_URL']!;
  const owner = openPostgresOwner(environment['DATABASE_OWNER_URL']!, ignore);
  await migrateAll(owner.sql);
  await grantRolesTo(owner.sql, loginOf(url));
  await owner.close();
  return [openPostgres(url, ignore), openPostgres(url, ignore)];
}

describe('devices in memory', () => {
  let backend: PostgresBackend | undefined;
  afterAll(() => backend?.stop());

  for (const [title, open] of [
    ['PGlite', embedded],
    ['PostgreSQL', async () => ofServer((backend = await postgresBackend()))],
  ] as const) {
    deviceRegistryConformance(`cachedDeviceRegistry over postgresDeviceRegistry on ${title}`, async () => {
      const both = await open();
      const { sql } = both[0];
      await postgresAdministrators(sql, { rowMacKey }).grant('admin', { grantedBy: 'setup' });
      const watches = both.map(({ prompt }) => watchDeviceChanges(postgresDeviceChanges(prompt)));
      const [registry, peer] = both.map((database, i) =>
        cachedDeviceRegistry(postgresDeviceRegistry(database.sql, { rowMacKey }), watches[i]!),
      ) as [CachedDeviceRegistry, CachedDeviceRegistry];
      const move = async (deviceId: string, to: DeviceMove): Promise<void> => {
        const { outcome } = await postgresDeviceDirectory(sql, { rowMacKey }).transition(deviceId, to, { byUserId: 'admin' });
        if (outcome !== 'changed') throw new Error(`It was ${outcome}.`);
      };
      const close = async (): Promise<void> => {
        for (const watch of watches) watch.stop();
        for (const database of both) await database.close().catch(ignore);
      };
      return {
        registry,
        peer,
        nowMs: () => Date.now(),
        addCode: async ({ ownerId, ...code }) => {
          await postgresEnrollmentCodes(sql, { rowMacKey }).create({ ...code, createdBy: 'admin', forUserId: ownerId, label: null });
        },
        addRotationCode: async (code) => {
          const { outcome } = await postgresRotationCodes(sql, { rowMacKey }).create({ ...code, createdBy: 'admin' });
          if (outcome !== 'created') throw new Error(`It was ${outcome}.`);
        },
        suspend: (deviceId) => move(deviceId, 'suspend'),
        revoke: (deviceId) => move(deviceId, 'revoke'),
        afterBound: () => pause(watches[0]!.maxStaleMs),
        break: close,
        close,
      };
    });
  }
});
