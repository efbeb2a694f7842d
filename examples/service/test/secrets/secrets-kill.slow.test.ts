/**
 * `kill -9` in the middle of new secrets, new versions, reveals and deletions: afterwards a version exists if and only if its audit
 * entry does, nothing that was acknowledged is lost, and all that is there opens. KEYGUARD_KILL_ROUNDS says how often; five times
 * without it.
 */
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { verifyRecords } from '@keyguard/core/audit';
import { fromUtf8 } from '@keyguard/core/bytes';
import type { AuditRecord } from '@keyguard/core/seams';
import { postgresAuditSink, postgresKeyRecords } from '@keyguard/storage-node/postgres';
import { auditOrigin } from '../../src/audit/log.ts';
import { asJobs } from '../../src/db/as-user.ts';
import { openDeploymentKeys } from '../../src/keys/hierarchy.ts';
import { backends, caller, freePort, startService, type Backend, type Deployment, type Running } from '../stage.ts';

const ROUNDS = Number(process.env['KEYGUARD_KILL_ROUNDS'] ?? 5);
const WORKERS = 6;
const ADMIN = { KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: 'a long and quiet password' };

vi.setConfig({ testTimeout: 60_000 + ROUNDS * 30_000, hookTimeout: 60_000 });

/** What the service has said yes to, in its whole life. */
interface Acknowledged {
  /** By `id version`: its value. */
  readonly versions: Map<string, string>;
  readonly deleted: Set<string>;
  /** By `id version`: how often it was released. */
  readonly reveals: Map<string, number>;
}

interface Found {
  readonly versions: Set<string>;
  readonly announced: string[];
  readonly tombstones: Set<string>;
  readonly deletions: string[];
  readonly reveals: Map<string, number>;
  readonly leftovers: number;
}

const count = (map: Map<string, number>, key: string): unknown => map.set(key, (map.get(key) ?? 0) + 1);

describe.each(backends())('killed with secrets on %s', (_title, open) => {
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

  /** Works until the service is gone; notes what was acknowledged, and only that. */
  async function work(origin: string, token: string, { versions, deleted, reveals }: Acknowledged, name: string): Promise<void> {
    const call = caller(() => origin);
    const ask = async (method: string, path: string, body?: object): Promise<{ id: string; current_version: number; value: string; version: number }> => {
      const answer = await call(method, path, { token, ...(body !== undefined && { body }) });
      if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${answer.text}`);
      return answer.json;
    };
    for (let n = 0; ; n += 1) {
      const { id } = await ask('POST', '/api/secrets', { name: `${name} ${n}`, value: `${name} ${n} 1` });
      versions.set(`${id} 1`, `${name} ${n} 1`);
      for (let v = 2; v <= 3; v += 1) {
        const { current_version: version } = await ask('POST', `/api/secrets/${id}/versions`, { value: `${name} ${n} ${v}` });
        versions.set(`${id} ${version}`, `${name} ${n} ${v}`);
        const revealed = await ask('POST', `/api/secrets/${id}/reveal`, {});
        if (revealed.value !== versions.get(`${id} ${revealed.version}`)) throw new Error('another value was revealed');
        count(reveals, `${id} ${revealed.version}`);
      }
      if (n % 3 === 0) {
        await ask('DELETE', `/api/secrets/${id}`);
        deleted.add(id);
      }
    }
  }

  /** Reads the database while nobody serves it, and verifies the chain from its first record. */
  async function inspect(): Promise<Found> {
    return deployment.withDatabase(async (sql) => {
      const keys = await openDeploymentKeys(postgresKeyRecords(sql), { kind: 'file', path: join(deployment.folder, 'data', 'root.key') });
      const origin = auditOrigin(keys.deploymentId);
      const sink = postgresAuditSink(sql, { origin, macKey: keys.auditMacKey });
      const found: Found = { versions: new Set(), announced: [], tombstones: new Set(), deletions: [], reveals: new Map(), leftovers: 0 };
      async function* noted(): AsyncGenerator<AuditRecord> {
        for await (const record of sink.read(0)) {
          const { action, resource, version, outcome } = JSON.parse(fromUtf8(record.bytes));
          const what = `${String(resource).slice('secret:'.length)} ${version}`;
          if (outcome === 'success') {
            if (action === 'secret.create' || action === 'secret.add_version') found.announced.push(what);
            else if (action === 'secret.delete') found.deletions.push(String(resource).slice('secret:'.length));
            else if (action === 'secret.reveal') count(found.reveals, what);
          }
          yield record;
        }
      }
      await verifyRecords(noted(), { origin, keys: keys.auditMac.all });
      const { secrets, versions } = await asJobs(sql, async (tx) => ({
        secrets: (await tx.query<{ id: string; current_version: number; deleted: boolean }>('SELECT id, current_version, deleted_at_ms IS NOT NULL AS deleted FROM keyguard.enterprise_secrets')).rows,
        versions: (await tx.query<{ subject_id: string; version: number; state: string }>('SELECT subject_id, version, state FROM keyguard.secret_versions')).rows,
      }));
      const deleted = new Set(secrets.filter((secret) => secret.deleted).map(({ id }) => id));
      // The row of a secret counts just its newest version, and a tombstone keeps no value.
      for (const { id, current_version: current } of secrets) expect(Math.max(...versions.filter((one) => one.subject_id === id).map(({ version }) => version))).toBe(current);
      const leftovers = versions.filter(({ subject_id: id, state }) => deleted.has(id) !== (state === 'destroyed')).length;
      return { ...found, versions: new Set(versions.map(({ subject_id: id, version }) => `${id} ${version}`)), tombstones: deleted, leftovers };
    });
  }

  it(`has a version if and only if its entry, and loses none that it acknowledged, ${ROUNDS} times`, async () => {
    const acknowledged: Acknowledged = { versions: new Map(), deleted: new Set(), reveals: new Map() };
    const environment = { ...ADMIN, ...deployment.environment, PORT: String(await freePort()), LOG_LEVEL: 'info' };
    service = await startService(deployment.folder, environment);
    const signedIn = await caller(() => service!.origin)('POST', '/api/auth/sign-in/email', { body: { email: ADMIN.KEYGUARD_ADMIN_EMAIL, password: ADMIN.KEYGUARD_ADMIN_PASSWORD } });
    const token = signedIn.headers.get('set-auth-token')!;

    for (let round = 1; round <= ROUNDS; round += 1) {
      const before = acknowledged.versions.size;
      const { origin } = service;
      let isKilled = false;
      const failures: unknown[] = [];
      const workers = Array.from({ length: WORKERS }, (_, n) =>
        work(origin, token, acknowledged, `round ${round} worker ${n}`).catch((error: unknown) => {
          if (!isKilled) failures.push(error);
        }),
      );
      while (acknowledged.versions.size < before + 4 * WORKERS && failures.length === 0) await pause(10);
      await pause(Math.floor((400 * round) / ROUNDS));
      isKilled = true;
      expect(await service.stop('SIGKILL')).toBe('SIGKILL');
      await Promise.all(workers);
      expect(failures).toEqual([]);

      const found = await inspect();
      expect(found.announced.length).toBe(new Set(found.announced).size);
      expect([...found.versions].toSorted()).toEqual(found.announced.toSorted());
      expect([...found.tombstones].toSorted()).toEqual(found.deletions.toSorted());
      expect([...acknowledged.versions.keys()].filter((what) => !found.versions.has(what))).toEqual([]);
      expect([...acknowledged.deleted].filter((id) => !found.tombstones.has(id))).toEqual([]);
      for (const [what, times] of acknowledged.reveals) expect(found.reveals.get(what) ?? 0).toBeGreaterThanOrEqual(times);
      expect(found.leftovers).toBe(0);

      service = await startService(deployment.folder, environment);
      const call = caller(() => service!.origin);
      const fresh = [...acknowledged.versions.entries()].slice(before).filter(([what]) => !found.tombstones.has(what.split(' ')[0]!));
      for (const [what, value] of fresh) {
        const [id, version] = what.split(' ');
        const revealed = await call('POST', `/api/secrets/${id}/reveal`, { token, body: { version: Number(version) } });
        expect([what, revealed.status, revealed.json.value]).toEqual([what, 200, value]);
        count(acknowledged.reveals, what);
      }
    }
    expect(acknowledged.versions.size).toBeGreaterThanOrEqual(ROUNDS * 4 * WORKERS);
    process.stdout.write(`${ROUNDS} rounds: ${acknowledged.versions.size} versions, ${acknowledged.deleted.size} deletions and ${[...acknowledged.reveals.values()].reduce((a, b) => a + b, 0)} reveals acknowledged, none lost\n`);
  });
});
