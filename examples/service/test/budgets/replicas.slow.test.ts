/** Budgets of two services on one PostgreSQL: what both together let through, and what becomes of calls whose process is killed. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { caller, folder, postgresBackend, remove, startService, type Deployment, type PostgresBackend, type Running } from '../stage.ts';

vi.setConfig({ testTimeout: 150_000, hookTimeout: 120_000 });

const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };
const ROOM = 10;
const CALLS = 100;

describe('budgets on two services on one PostgreSQL', () => {
  let backend: PostgresBackend;
  let deployment: Deployment;
  let first: Running;
  let second: Running;
  let secondFolder = '';
  let token = '';
  let upstream: Server;
  let reached = 0;
  let holds = false;
  const atFirst = caller(() => first.origin);
  const atSecond = caller(() => second.origin);

  beforeAll(async () => {
    upstream = createServer((request, response) => {
      reached += 1;
      request.resume().on('end', () => {
        if (!holds) response.setHeader('content-type', 'application/json').end('{"model":"m","usage":{"prompt_tokens":3,"completion_tokens":4}}');
      });
    });
    await new Promise<void>((resolve) => void upstream.listen(0, '127.0.0.1', resolve));
    [backend, secondFolder] = await Promise.all([postgresBackend(), folder()]);
    deployment = await backend.deploy();
    const { DATABASE_URL = '', ...owner } = deployment.environment;
    const environment = {
      KEYGUARD_PASSPHRASE: 'one passphrase for both of them', KEYGUARD_ADMIN_EMAIL: ADMIN.email, KEYGUARD_ADMIN_PASSWORD: ADMIN.password, DATABASE_URL,
      OPENAI_API_KEY: 'sk-of-budgets-0123', OPENAI_BASE_URL: `http://127.0.0.1:${(upstream.address() as AddressInfo).port}/v1`,
    };
    first = await startService(deployment.folder, { ...environment, ...owner });
    second = await startService(secondFolder, environment);
    token = (await atFirst('POST', '/api/auth/sign-in/email', { body: ADMIN })).headers.get('set-auth-token')!;
  });
  afterAll(async () => {
    await Promise.all([first?.stop('SIGKILL'), second?.stop('SIGKILL')]);
    await backend?.stop();
    await remove(secondFolder);
    upstream?.closeAllConnections();
    upstream?.close();
  });

  /** A device, which calls through the service at `origin`. */
  async function enroll(origin: string): Promise<{ readonly deviceId: string; ask(): Promise<number> }> {
    const { json } = await atFirst('POST', '/api/enrollment-codes', { token, body: { auto_approve: true } });
    const client = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
    const { deviceId } = await client.enroll({ code: json.code });
    const ask = async (): Promise<number> => {
      const answer = await client.fetch(`${origin}/proxy/openai/v1/chat/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"model":"m","max_tokens":50}' });
      await answer.text();
      return answer.status;
    };
    return { deviceId, ask };
  }

  it('let exactly as many calls through as there is room for, whichever of the two they race through', async () => {
    const devices = await Promise.all([enroll(first.origin), enroll(second.origin)]);
    const set = await atFirst('PUT', '/api/projects/default/budget', { token, body: { period: 'month', max_requests: ROOM, max_tokens: null, max_cost_micros: null } });
    expect(set.status, set.text).toBe(200);
    // Until the other one knows of it.
    await new Promise((resolve) => void setTimeout(resolve, 1100));
    const statuses = await Promise.all(Array.from({ length: CALLS }, (_, i) => devices[i % 2]!.ask()));
    const counted = (wanted: number): number => statuses.filter((status) => status === wanted).length;
    process.stdout.write(`of ${CALLS} calls ${counted(200)} went through, ${counted(429)} found no room, and ${counted(503)} were told too late\n`);
    // On a busy machine some may wait too long for an answer: then they were not sent, and took nothing.
    expect([counted(200), counted(429) + counted(503), reached]).toEqual([ROOM, CALLS - ROOM, ROOM]);
    for (const call of [atFirst, atSecond]) {
      const current = async (): Promise<unknown> => (await call('GET', '/api/projects/default/budget', { token })).json.current;
      await vi.waitFor(async () => expect(await current()).toMatchObject({ requests: ROOM, tokens: 7 * ROOM, expected_tokens: 0 }), { timeout: 15_000, interval: 200 });
    }
    expect((await atFirst('DELETE', '/api/projects/default/budget', { token })).status).toBe(204);
  });

  it('charge a call of a killed process with what was set aside, once, by the one that lives', async () => {
    const { deviceId, ask } = await enroll(second.origin);
    await atFirst('PUT', `/api/devices/${deviceId}/budget`, { token, body: { period: 'month', max_requests: null, max_tokens: 1000, max_cost_micros: null } });
    await new Promise((resolve) => void setTimeout(resolve, 1100));
    holds = true;
    const before = reached;
    const broken = ask().catch(() => 0);
    await vi.waitFor(() => expect(reached).toBe(before + 1), { timeout: 10_000 });
    await second.stop('SIGKILL');
    await broken;
    interface Current { readonly requests: number; readonly tokens: number; readonly expected_tokens: number }
    const current = async (): Promise<Current> => (await atFirst('GET', `/api/devices/${deviceId}/budget`, { token })).json.current;
    const setAside = await current();
    expect(setAside.requests).toBe(1);
    expect(setAside.expected_tokens).toBeGreaterThanOrEqual(50);
    // As if the time had passed that a call may take.
    await backend.asSuperuser(deployment, 'UPDATE keyguard.usage_charges SET charged_at_ms = 1');
    await vi.waitFor(async () => expect(await current()).toMatchObject({ requests: 1, tokens: setAside.tokens, expected_tokens: 0 }), { timeout: 90_000, interval: 500 });
    const { json } = await atFirst('GET', '/api/audit?limit=200', { token });
    expect((json.data as { action: string }[]).filter(({ action }) => action === 'budget.charge_lost_call')).toHaveLength(1);
  });
});
