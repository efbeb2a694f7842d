/** `/readyz` of a whole service, under which single statements of the database fail: what is wrong is named, and is over by itself. */
import { join } from 'node:path';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { SqlClient, SqlScriptClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { readConfig } from '../../src/config.ts';
import { startService, type Service } from '../../src/service.ts';
import { backends, caller, type Backend } from '../stage.ts';

// Who asks for something every second must have been silent for five.
const SILENT_MS = 12_000;

describe.each(backends())('a service on %s', (_title, open) => {
  let backend: Backend;
  let service: Service;
  let origin = '';
  let broken: RegExp | null = null;
  const call = caller(() => origin);

  const breaking = <T extends SqlClient>(client: T): T => {
    const within = (tx: SqlTransaction): SqlTransaction => ({
      async query(text, params) {
        if (broken?.test(text) === true) throw Object.assign(new Error('disk of 10.0.0.7 is of nobody elses concern'), { code: '53100' });
        return tx.query(text, params);
      },
    });
    return { ...client, query: within(client).query, transaction: (fn) => client.transaction((tx) => fn(within(tx))) };
  };

  beforeAll(async () => {
    backend = await open();
    const deployment = await backend.deploy();
    const said: string[] = [];
    service = await startService({
      config: readConfig({ ...deployment.environment, PORT: '0', KEYGUARD_DATA_DIR: join(deployment.folder, 'data') }, deployment.folder),
      log: pino({ level: 'silent' }),
      say: (text) => said.push(text),
      overrides: { database: (opened) => ({ ...opened, sql: breaking<SqlScriptClient>(opened.sql), calls: breaking(opened.calls), prompt: breaking(opened.prompt) }) },
    });
    origin = /KeyGuard is at (\S+),/.exec(said.join('\n'))![1]!;
  }, 120_000);
  afterAll(async () => {
    await service?.stop();
    await backend?.stop();
  }, 60_000);

  const wrong = async (): Promise<string[]> => {
    const { json, text } = await call('GET', '/readyz');
    expect(text).not.toContain('concern');
    return Object.entries(json.checks as Record<string, string>).filter(([, state]) => state !== 'ok').map(([name]) => name);
  };
  const ready = (): Promise<void> => expect.poll(wrong, { timeout: SILENT_MS, interval: 100 }).toEqual([]);

  it.each([
    ['the head of the audit log', /lock_audit_head/, ['audit_log']],
    ['the keys, the settings and what changed of devices', /keyguard\.settings|keyguard\.kek_keys|changed_devices/, ['database_writes', 'keys', 'device_changes', 'settings']],
    ['the row that each process writes', /(?:INSERT INTO|UPDATE) keyguard\.replicas/, ['database_writes']],
    ['everything', /./, ['database', 'database_writes', 'audit_log', 'keys', 'device_changes', 'settings']],
  ])('names what cannot be reached: %s', async (_name, statements, named) => {
    await ready();
    broken = statements;
    await expect.poll(wrong, { timeout: SILENT_MS, interval: 100 }).toEqual(named);
    expect((await call('GET', '/healthz')).status).toBe(200);
    broken = null;
    await ready();
  }, 60_000);
});
