/** The stores keep the contracts of their seams, on both databases. */
import { auditSinkConformance, deviceChangesConformance, deviceRegistryConformance, keyRecordsConformance, replayStoreConformance } from '@keyguard/conformance';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import { createHash, randomBytes } from 'node:crypto';
import { afterAll, describe } from 'vitest';
import {
  nodeMacKey,
  postgresAdministrators,
  postgresAuditSink,
  postgresDeviceChanges,
  postgresDeviceDirectory,
  postgresDeviceRegistry,
  postgresEnrollmentCodes,
  postgresKeyRecords,
  postgresReplayStore,
  postgresRotationCodes,
  type DeviceMove,
  type SqlTransaction,
} from '../src/postgres.ts';
import { databaseFaults, faultyClient } from './postgres-faults.ts';
import { SUBSTRATES, type Substrate } from './postgres-substrate.ts';

const rowMacKey = nodeMacKey({ keyId: 'row-1', key: randomBytes(32) });
const macKey = nodeMacKey({ keyId: 'audit-1', key: randomBytes(32) });

describe.each(SUBSTRATES)('$title', ({ title, start }) => {
  let started: Promise<Substrate> | undefined;
  const substrate = (): Promise<Substrate> => (started ??= start());
  afterAll(async () => (await started)?.stop());

  replayStoreConformance(`postgresReplayStore on ${title}`, async () => {
    const database = await (await substrate()).open();
    // In the past, and never past the clock of the database: nothing is purged that has not expired by both.
    let nowMs = Date.now() - 24 * 3_600_000;
    const clock = { nowMs: (): number => nowMs };
    const faults = databaseFaults();
    const [app, peer] = [faultyClient(database.app, faults), faultyClient(database.peer, faults)];
    const store = postgresReplayStore(app, { clock });
    return {
      store,
      peer: postgresReplayStore(peer, { clock }),
      morePeers: [postgresReplayStore(app, { clock }), postgresReplayStore(peer, { clock, maxRows: 1_000_000 })],
      nowMs: clock.nowMs,
      advance: (ms) => {
        nowMs += ms;
      },
      forget: async () => {
        await store.purge();
      },
      faults,
      break: database.cut,
      close: database.close,
    };
  });

  deviceRegistryConformance(`postgresDeviceRegistry on ${title}`, async () => {
    const database = await (await substrate()).open();
    const nowMs = Date.now();
    await postgresAdministrators(database.app, { rowMacKey }).grant('admin', { grantedBy: 'setup' });
    const codes = postgresEnrollmentCodes(database.app, { rowMacKey });
    const rotationCodes = postgresRotationCodes(database.app, { rowMacKey });
    const directory = postgresDeviceDirectory(database.app, { rowMacKey });
    const move = async (deviceId: string, to: DeviceMove): Promise<void> => {
      const { outcome } = await directory.transition(deviceId, to, { byUserId: 'admin' });
      if (outcome !== 'changed') throw new Error(`It was ${outcome}.`);
    };
    const faults = databaseFaults();
    return {
      registry: postgresDeviceRegistry(faultyClient(database.app, faults), { rowMacKey }),
      peer: postgresDeviceRegistry(faultyClient(database.peer, faults), { rowMacKey }),
      nowMs: () => nowMs,
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
      faults,
      break: database.cut,
      close: database.close,
    };
  });

  deviceChangesConformance(`postgresDeviceChanges on ${title}`, async () => {
    const database = await (await substrate()).open();
    await postgresAdministrators(database.app, { rowMacKey }).grant('admin', { grantedBy: 'setup' });
    const codes = postgresEnrollmentCodes(database.app, { rowMacKey });
    const directory = postgresDeviceDirectory(database.app, { rowMacKey });
    const registry = postgresDeviceRegistry(database.app, { rowMacKey });
    const changed = async (work: Promise<{ readonly outcome: string }>): Promise<void> => {
      const { outcome } = await work;
      if (outcome !== 'changed') throw new Error(`It was ${outcome}.`);
    };
    const by = { byUserId: 'admin' };
    const faults = databaseFaults();
    return {
      faults,
      changes: postgresDeviceChanges(faultyClient(database.app, faults)),
      peer: postgresDeviceChanges(faultyClient(database.peer, faults)),
      registry,
      async enroll() {
        const codeHash = createHash('sha256').update(randomBytes(16)).digest('base64url');
        await codes.create({ codeHash, createdBy: 'admin', forUserId: 'user-1', projectId: 'project-1', label: null, maxUses: 1, autoApprove: true, expiresAtMs: Date.now() + 900_000 });
        const { keyId, publicKey } = await signingKey(await generateKeyPair());
        const answer = await registry.enroll({ keyId, publicKey, codeHash, label: null, fingerprint: null, nowMs: Date.now() });
        if (answer.outcome !== 'enrolled') throw new Error(`It was ${answer.outcome}.`);
        return { deviceId: answer.device.deviceId, keyId };
      },
      revoke: (deviceId) =>
        database.app.transaction(async (tx) => {
          await changed(postgresDeviceDirectory(tx, { rowMacKey }).transition(deviceId, 'revoke', by));
          await tx.query(`SELECT pg_sleep(random() / 50)`);
        }),
      moves: {
        suspend: (deviceId) => changed(directory.transition(deviceId, 'suspend', by)),
        limit: (deviceId) => changed(directory.configure(deviceId, { requestsPerMinute: 7 }, by)),
        allowlist: (deviceId) => changed(directory.configure(deviceId, { ipAllowlist: ['192.0.2.0/24'] }, by)),
        models: (deviceId) => changed(directory.configure(deviceId, { allowedModels: ['m'] }, by)),
        label: (deviceId) => changed(directory.configure(deviceId, { label: 'Another' }, by)),
      },
      break: database.cut,
      close: database.close,
    };
  });

  keyRecordsConformance(`postgresKeyRecords on ${title}`, async () => {
    const database = await (await substrate()).open();
    const faults = databaseFaults();
    return {
      records: postgresKeyRecords(faultyClient(database.app, faults)),
      peer: postgresKeyRecords(faultyClient(database.peer, faults)),
      faults,
      break: database.cut,
      close: database.close,
    };
  });

  auditSinkConformance<SqlTransaction>(`postgresAuditSink on ${title}`, async () => {
    const database = await (await substrate()).open();
    const origin = 'keyguard.test/conformance';
    const faults = databaseFaults();
    const app = faultyClient(database.app, faults);
    return {
      sink: postgresAuditSink(app, { origin, macKey }),
      peer: postgresAuditSink(faultyClient(database.peer, faults), { origin, macKey }),
      origin,
      macKey,
      transaction: (fn) =>
        app.transaction(async (tx) => {
          await tx.query('SET LOCAL ROLE kg_auth');
          return fn(tx);
        }),
      faults,
      break: database.cut,
      close: database.close,
    };
  });
});
