/**
 * `kill -9` in the middle of enrollments and calls: whatever was acknowledged is there afterwards, the chain of the audit log
 * verifies, and the service starts again by itself. KEYGUARD_KILL_ROUNDS says how often; three times without it.
 */
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { verifyRecords } from '@keyguard/core/audit';
import { fromUtf8 } from '@keyguard/core/bytes';
import type { AuditRecord } from '@keyguard/core/seams';
import { postgresAuditSink, postgresKeyRecords } from '@keyguard/storage-node/postgres';
import { auditOrigin } from '../src/audit/log.ts';
import { openDeploymentKeys } from '../src/keys/hierarchy.ts';
import { backends, caller, freePort, startService, type Backend, type Deployment, type Running } from './stage.ts';

const ROUNDS = Number(process.env['KEYGUARD_KILL_ROUNDS'] ?? 3);
const WORKERS = 6;
const ADMIN = { KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: 'a long and quiet password' };

vi.setConfig({ testTimeout: 60_000 + ROUNDS * 20_000, hookTimeout: 60_000 });

/** What the service has said yes to, in its whole life. */
interface Acknowledged {
  readonly devices: Map<string, KeyGuardClient>;
  readonly calls: Map<string, number>;
  codes: number;
}

interface Found {
  readonly enrolled: Set<string>;
  readonly calls: Map<string, number>;
  readonly endings: Map<string, number>;
  codes: number;
}


describe.each(backends())('killed on %s', (_title, open) => {
  let backend: Backend;
  let deployment: Deployment;
  let service: Running | undefined;

  beforeAll(async () => {
    backend = await open();
    deployment = await backend.deploy();
  });
  afterAll(async () => {
    await service?.stop('SIGKILL');
    await backend.stop();
  });

  /** Enrolls and calls until the service is gone; counts what was acknowledged, and only that. */
  async function work(origin: string, token: string, acknowledged: Acknowledged): Promise<void> {
    const call = caller(() => origin);
    for (;;) {
      const made = await call('POST', '/api/enrollment-codes', { token, body: {} });
      if (made.status !== 201) throw new Error(made.text);
      acknowledged.codes += 1;
      const client = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
      const { deviceId } = await client.enroll({ code: made.json.code });
      acknowledged.devices.set(deviceId, client);
      for (let n = 0; n < 3; n += 1) {
        const response = await client.fetch(`${origin}/v1/chat/completions`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({ model: 'keyguard-demo', messages: [{ role: 'user', content: 'Hello' }] }),
        });
        await response.text();
        if (response.status !== 200) throw new Error(`a call was answered ${response.status}`);
        acknowledged.calls.set(deviceId, (acknowledged.calls.get(deviceId) ?? 0) + 1);
      }
    }
  }

  /** Reads the database while nobody serves it, and verifies the chain from its first record. */
  async function inspect(): Promise<Found> {
    const found: Found = { enrolled: new Set(), calls: new Map(), endings: new Map(), codes: 0 };
    const count = (map: Map<string, number>, actor: string): unknown => map.set(actor, (map.get(actor) ?? 0) + 1);
    await deployment.withDatabase(async (sql) => {
      const keys = await openDeploymentKeys(postgresKeyRecords(sql), { kind: 'file', path: join(deployment.folder, 'data', 'root.key') });
      const origin = auditOrigin(keys.deploymentId);
      const sink = postgresAuditSink(sql, { origin, macKey: keys.auditMac.macKey });
      async function* noted(): AsyncGenerator<AuditRecord> {
        for await (const record of sink.read(0)) {
          const { action, actor, device_id: deviceId } = JSON.parse(fromUtf8(record.bytes));
          if (action === 'device.enroll') found.enrolled.add(deviceId);
          else if (action === 'llm.call') count(found.calls, actor);
          else if (action === 'llm.call_ended') count(found.endings, actor);
          else if (action === 'enrollment_code.create') found.codes += 1;
          yield record;
        }
      }
      const end = await verifyRecords(noted(), { origin, keys: keys.auditMac.all });
      expect(end.seq).toBe((await sink.head())!.seq + 1);
    });
    return found;
  }

  it(`loses nothing that it acknowledged, ${ROUNDS} times`, async () => {
    const acknowledged: Acknowledged = { devices: new Map(), calls: new Map(), codes: 0 };
    const port = String(await freePort());
    const environment = { ...ADMIN, ...deployment.environment, PORT: port, KEYGUARD_ENROLLMENTS_PER_MINUTE: '100000', LOG_LEVEL: 'info' };
    service = await startService(deployment.folder, environment);
    const signedIn = await caller(() => service!.origin)('POST', '/api/auth/sign-in/email', {
      body: { email: ADMIN.KEYGUARD_ADMIN_EMAIL, password: ADMIN.KEYGUARD_ADMIN_PASSWORD },
    });
    const token = signedIn.headers.get('set-auth-token')!;

    for (let round = 1; round <= ROUNDS; round += 1) {
      const before = acknowledged.devices.size;
      const { origin } = service;
      let isKilled = false;
      const failures: unknown[] = [];
      const workers = Array.from({ length: WORKERS }, () =>
        work(origin, token, acknowledged).catch((error: unknown) => {
          if (!isKilled) failures.push(error);
        }),
      );
      while (acknowledged.devices.size < before + WORKERS && failures.length === 0) await pause(10);
      await pause(50 + Math.floor((500 * round) / ROUNDS));
      isKilled = true;
      expect(await service.stop('SIGKILL')).toBe('SIGKILL');
      await Promise.all(workers);
      expect(failures).toEqual([]);

      const found = await inspect();
      expect([...acknowledged.devices.keys()].filter((deviceId) => !found.enrolled.has(deviceId))).toEqual([]);
      expect(found.codes).toBeGreaterThanOrEqual(acknowledged.codes);
      for (const [deviceId, calls] of acknowledged.calls) {
        const actor = `device:${deviceId}`;
        expect(found.calls.get(actor)).toBeGreaterThanOrEqual(calls);
        expect(found.endings.get(actor)).toBeGreaterThanOrEqual(calls);
      }

      service = await startService(deployment.folder, environment);
      // The devices themselves, not only the entries about them; and the session that was there before.
      const clients = [...acknowledged.devices.entries()].slice(before);
      for (const [deviceId, client] of clients) await expect(client.status()).resolves.toMatchObject({ deviceId, status: 'active' });
      const listed = await caller(() => service!.origin)('GET', '/api/devices?limit=1', { token });
      expect(listed.status).toBe(200);
    }
    expect(acknowledged.devices.size).toBeGreaterThanOrEqual(ROUNDS * WORKERS);
  });
});
