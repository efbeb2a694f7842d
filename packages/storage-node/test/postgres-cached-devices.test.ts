/** Devices as a replica has them, in memory over the database, keep the contract of a registry with the bound of a second. */
import { deviceRegistryConformance } from '@keyguard/conformance';
import { cachedDeviceRegistry, watchDeviceChanges } from '@keyguard/server-verifier';
import { randomBytes } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, describe } from 'vitest';
import {
  nodeMacKey,
  postgresAdministrators,
  postgresDeviceChanges,
  postgresDeviceDirectory,
  postgresDeviceRegistry,
  postgresEnrollmentCodes,
  postgresRotationCodes,
  type DeviceMove,
} from '../src/postgres.ts';
import { databaseFaults, faultyClient } from './postgres-faults.ts';
import { SUBSTRATES, type Substrate } from './postgres-substrate.ts';

const rowMacKey = nodeMacKey({ keyId: 'row-1', key: randomBytes(32) });

describe.each(SUBSTRATES)('$title', ({ title, start }) => {
  let started: Promise<Substrate> | undefined;
  afterAll(async () => (await started)?.stop());

  deviceRegistryConformance(`cachedDeviceRegistry over postgresDeviceRegistry on ${title}`, async () => {
    const database = await (await (started ??= start())).open();
    await postgresAdministrators(database.app, { rowMacKey }).grant('admin', { grantedBy: 'setup' });
    const faults = databaseFaults();
    const both = [database.app, database.peer].map((client) => {
      const watch = watchDeviceChanges(postgresDeviceChanges(client), { pollEveryMs: 100, maxStaleMs: 1000 });
      return { watch, registry: cachedDeviceRegistry(postgresDeviceRegistry(faultyClient(client, faults), { rowMacKey }), watch) };
    });
    const codes = postgresEnrollmentCodes(database.app, { rowMacKey });
    const rotationCodes = postgresRotationCodes(database.app, { rowMacKey });
    const directory = postgresDeviceDirectory(database.app, { rowMacKey });
    const move = async (deviceId: string, to: DeviceMove): Promise<void> => {
      const { outcome } = await directory.transition(deviceId, to, { byUserId: 'admin' });
      if (outcome !== 'changed') throw new Error(`It was ${outcome}.`);
    };
    const stop = (): void => {
      for (const { watch } of both) watch.stop();
    };
    return {
      registry: both[0]!.registry,
      peer: both[1]!.registry,
      nowMs: () => Date.now(),
      addCode: async ({ ownerId, ...code }) => {
        await codes.create({ ...code, createdBy: 'admin', forUserId: ownerId, label: null });
      },
      addRotationCode: async (code) => {
        const { outcome } = await rotationCodes.create({ ...code, createdBy: 'admin' });
        if (outcome !== 'created') throw new Error(`It was ${outcome}.`);
      },
      suspend: (deviceId) => move(deviceId, 'suspend'),
      revoke: (deviceId) => move(deviceId, 'revoke'),
      allowModels: async (deviceId, allowedModels) => {
        const { outcome } = await directory.configure(deviceId, { allowedModels }, { byUserId: 'admin' });
        if (outcome !== 'changed') throw new Error(`It was ${outcome}.`);
      },
      afterBound: () => pause(both[0]!.watch.maxStaleMs),
      faults,
      async break() {
        stop();
        await database.cut();
      },
      async close() {
        stop();
        await database.close();
      },
    };
  });
});
