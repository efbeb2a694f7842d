/**
 * A rotation that is killed, at every statement and in whatever a whole process is doing: afterwards one value is in use, it is one that
 * was, and the next rotation goes on from there. KEYGUARD_KILL_ROUNDS says how often processes are killed; three times without it.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import type { ProviderKey } from '../../src/llm/routes.ts';
import { asJobs } from '../../src/db/as-user.ts';
import { backends, caller, freePort, startService, type Backend, type Deployment, type Running } from '../stage.ts';
import { ann, AT_ONCE, deviceOf, newKey, openKeyStage, startProvider, type FakeProvider, type KeyStage } from './stage.ts';

const ROUNDS = Number(process.env['KEYGUARD_KILL_ROUNDS'] ?? 3);
const WORKERS = 4;
const ADMIN = { KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: 'a long and quiet password' };

vi.setConfig({ testTimeout: 60_000 + ROUNDS * 20_000, hookTimeout: 60_000 });

describe.each(backends())('a rotation that dies, on %s', (title, open) => {
  describe('at a statement', () => {
    let stage: KeyStage;
    beforeAll(async () => {
      stage = await openKeyStage();
    });
    afterAll(() => stage?.close());

    /** The database as a process has it that is gone after so many statements, in the middle of whatever it was doing. */
    function until(statements: number): SqlClient {
      let left = statements;
      return {
        query: () => Promise.reject(new Error('gone')),
        transaction: (fn) =>
          stage.sql.transaction((tx) =>
            fn({
              query: (text, params) => {
                left -= 1;
                return left >= 0 ? tx.query(text, params) : Promise.reject(new Error('gone'));
              },
            }),
          ),
      };
    }

    it('leaves the value that was in use, whichever statement it was, and each next one takes over whole', async () => {
      const { apiKeys, providers } = stage.process();
      await apiKeys.prepare();
      const projectId = await stage.newProject();
      const values = [`sk-${randomUUID()}`];
      const { id } = await apiKeys.create(ann, projectId, newKey(values[0]!));
      const inUse = async (): Promise<string> => {
        providers.clear();
        return ((await providers.find(deviceOf(projectId), 'openai')) as ProviderKey).apiKey;
      };
      let deaths = 0;
      for (const act of [
        (keys: typeof apiKeys, value: string) => keys.rotate(ann, id, value, { ...AT_ONCE, overlapSeconds: 0, verify: true }),
        (keys: typeof apiKeys) => keys.restore(ann, id, 1, AT_ONCE),
      ]) {
        const value = `sk-${randomUUID()}`;
        for (let statements = 0; ; statements += 1) {
          const before = await apiKeys.get(ann, id);
          const done = await act(stage.process({ sql: until(statements) }).apiKeys, value).catch(() => null);
          const { items } = await apiKeys.versions(ann, id, { limit: 100, before: null });
          expect(items.filter(({ state }) => state === 'active')).toHaveLength(1);
          expect(items.map(({ version }) => version)).toEqual(Array.from({ length: items.length }, (_, i) => items.length - i));
          if (done !== null) break;
          deaths += 1;
          expect([await inUse(), await apiKeys.get(ann, id)]).toEqual([values.at(-1), before]);
        }
        values.push(act.length === 2 ? value : values[0]!);
        expect(await inUse()).toBe(values.at(-1));
      }
      expect(deaths).toBeGreaterThan(30);
      const { rows } = await asJobs(stage.sql, (tx) => tx.query<{ action: string }>(`SELECT action FROM keyguard.secret_audit_logs WHERE resource = $1 ORDER BY seq`, [`api_key:${id}`]));
      expect(rows.map(({ action }) => action)).toEqual(['api_key.create', 'api_key.rotate', 'api_key.restore_version']);
    });
  });

  describe('with its process', () => {
    let backend: Backend;
    let deployment: Deployment;
    let provider: FakeProvider;
    let service: Running | undefined;

    beforeAll(async () => {
      [backend, provider] = [await open(), await startProvider()];
      deployment = await backend.deploy();
    });
    afterAll(async () => {
      await service?.stop('SIGKILL');
      await provider?.stop();
      await backend?.stop();
    });

    it(`has one value in use, a version if and only if its entry, and none lost that was acknowledged, ${ROUNDS} times`, async () => {
      const environment = { ...ADMIN, ...deployment.environment, PORT: String(await freePort()), OPENAI_BASE_URL: `${provider.origin}/v1`, LOG_LEVEL: 'info' };
      service = await startService(deployment.folder, environment);
      const { origin } = service;
      const call = caller(() => origin);
      const token = (await call('POST', '/api/auth/sign-in/email', { body: { email: ADMIN.KEYGUARD_ADMIN_EMAIL, password: ADMIN.KEYGUARD_ADMIN_PASSWORD } })).headers.get('set-auth-token')!;
      const { code } = (await call('POST', '/api/enrollment-codes', { token, body: {} })).json;
      const client = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
      await client.enroll({ code });
      const first = `sk-${randomUUID()}`;
      const { id } = (await call('POST', '/api/api-keys', { token, body: { provider: 'openai', value: first } })).json;
      const path = `/api/api-keys/${id}`;
      const inUse = async (): Promise<string> => {
        const response = await client.fetch(`${origin}/v1/chat/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"model":"m"}' });
        expect([response.status, await response.text()]).toEqual([200, expect.any(String)]);
        return String(provider.asked.at(-1)!.headers.authorization).replace('Bearer ', '');
      };
      const offered = new Map<string, string>([[first.slice(-4), first]]);
      const progress = { acknowledged: 1 };

      // While the provider thinks about the new value, there is nothing but the old one.
      provider.answer((key) => (key === first ? 200 : 0));
      const asked = provider.asked.length;
      const thinking = call('POST', `${path}/rotate`, { token, body: { value: `sk-${randomUUID()}` } }).catch(() => null);
      await vi.waitFor(() => expect(provider.asked.length).toBeGreaterThan(asked), { timeout: 5000, interval: 5 });
      expect(await service.stop('SIGKILL')).toBe('SIGKILL');
      await thinking;
      provider.answer(() => 200);
      service = await startService(deployment.folder, environment);
      expect([await inUse(), (await call('GET', path, { token })).json.current_version]).toEqual([first, 1]);

      for (let round = 1; round <= ROUNDS; round += 1) {
        let isKilled = false;
        const failures: unknown[] = [];
        const enough = progress.acknowledged + WORKERS;
        const workers = Array.from({ length: WORKERS }, async () => {
          try {
            for (;;) {
              const value = `sk-${randomUUID()}`;
              offered.set(value.slice(-4), value);
              const answer = await call('POST', `${path}/rotate`, { token, body: { value, verify: false } });
              if (answer.status !== 200) throw new Error(`${answer.status} ${answer.text}`);
              progress.acknowledged = Math.max(progress.acknowledged, answer.json.current_version as number);
            }
          } catch (error) {
            if (!isKilled) failures.push(error);
          }
        });
        while (progress.acknowledged < enough && failures.length === 0) await pause(5);
        await pause(Math.floor(Math.random() * 100));
        isKilled = true;
        expect(await service.stop('SIGKILL')).toBe('SIGKILL');
        await Promise.all(workers);
        expect(failures).toEqual([]);

        service = await startService(deployment.folder, environment);
        const key = (await call('GET', path, { token })).json;
        expect([key.intact, key.current_version >= progress.acknowledged]).toEqual([true, true]);
        expect((await inUse()).slice(-4)).toBe(key.last4);
        const versions: { version: number; state: string; last4: string }[] = [];
        for (let cursor: string | null = ''; cursor !== null; ) {
          const page = (await call('GET', `${path}/versions?limit=200${cursor === '' ? '' : `&cursor=${encodeURIComponent(cursor)}`}`, { token })).json as { data: typeof versions; next_cursor: string | null };
          versions.push(...page.data);
          cursor = page.next_cursor;
        }
        expect(versions.map(({ version }) => version)).toEqual(Array.from({ length: key.current_version }, (_, i) => key.current_version - i));
        expect(versions.filter(({ state }) => state === 'active')).toMatchObject([{ version: key.current_version, last4: key.last4 }]);
        expect(versions.filter(({ last4 }) => !offered.has(last4))).toEqual([]);
        progress.acknowledged = key.current_version;
      }
      await service.stop();
      service = undefined;
      const announced = await deployment.withDatabase((sql) =>
        asJobs(sql, (tx) => tx.query<{ entry: Uint8Array }>(`SELECT entry FROM keyguard.secret_audit_logs WHERE resource = $1 AND action IN ('api_key.create', 'api_key.rotate') ORDER BY seq`, [`api_key:${id}`])),
      );
      expect(announced.rows.map(({ entry }) => (JSON.parse(Buffer.from(entry).toString()) as { version: number }).version)).toEqual(Array.from({ length: progress.acknowledged }, (_, i) => i + 1));
      process.stdout.write(`${title}: ${ROUNDS} kills among ${progress.acknowledged - 1} rotations of one key, none lost, one value in use each time\n`);
    });
  });
});
