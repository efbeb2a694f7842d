/** Two services on one PostgreSQL: what an administrator changes in one is in force in the other. What is measured is printed. */
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { caller, folder, postgresBackend, remove, startService, type CallAnswer, type Deployment, type PostgresBackend, type Running } from '../stage.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };
const ROUNDS = 20;
const EVERYWHERE = ['0.0.0.0/0', '::/0'];
const NOT_THERE = ['127.0.0.0/8'];
const SOMEWHERE = { 'x-forwarded-for': '192.0.2.1' };

describe('two services on one PostgreSQL', () => {
  let backend: PostgresBackend;
  let deployment: Deployment;
  let first: Running;
  let second: Running;
  let secondFolder = '';
  let token = '';
  const [atFirst, atSecond] = [caller(() => first.origin), caller(() => second.origin)];
  const change = async (body: object): Promise<CallAnswer> => {
    const answer = await atFirst('PATCH', '/api/settings', { token, body, headers: { 'if-match': '*' } });
    expect(answer.status).toBe(200);
    return answer;
  };

  beforeAll(async () => {
    [backend, secondFolder] = await Promise.all([postgresBackend(), folder()]);
    deployment = await backend.deploy();
    const { DATABASE_URL = '', ...owner } = deployment.environment;
    const environment = { KEYGUARD_PASSPHRASE: 'one passphrase for both of them', KEYGUARD_ADMIN_EMAIL: ADMIN.email, KEYGUARD_ADMIN_PASSWORD: ADMIN.password, TRUST_PROXY: '1', DATABASE_URL };
    first = await startService(deployment.folder, { ...environment, ...owner });
    second = await startService(secondFolder, environment);
    token = (await atFirst('POST', '/api/auth/sign-in/email', { body: ADMIN })).headers.get('set-auth-token')!;
  });
  afterAll(async () => {
    await Promise.all([first?.stop('SIGKILL'), second?.stop('SIGKILL')]);
    await backend?.stop();
    await remove(secondFolder);
  });

  it('are of one mind within a second, and the one that was told at once', async () => {
    const tookMs: number[] = [];
    for (let round = 0; round < ROUNDS; round += 1) {
      const isShut = round % 2 === 0;
      // Wherever between two polls.
      await pause(round * 37);
      await change({ network: { control_plane_allowlist: isShut ? NOT_THERE : EVERYWHERE } });
      const acknowledgedMs = performance.now();
      const ask = async (call: typeof atFirst): Promise<boolean> => (await call('GET', '/.well-known/jwks.json', { headers: SOMEWHERE })).status === (isShut ? 403 : 200);
      expect(await ask(atFirst)).toBe(true);
      while (!(await ask(atSecond)) && performance.now() - acknowledgedMs < 5000) await pause(5);
      tookMs.push(performance.now() - acknowledgedMs);
    }
    const sorted = tookMs.toSorted((a, b) => a - b);
    process.stdout.write(`changed in one process, in force in the other after ${sorted.map((one) => one.toFixed(0)).join(', ')} ms\n`);
    expect(sorted.at(-1)).toBeLessThan(1000);
  });

  it('count tries to sign in together, as the settings say', async () => {
    await change({ limits: { sign_in_tries_per_minute: 3 } });
    // Both have heard of it.
    await pause(1000);
    const statuses: number[] = [];
    for (const [i, call] of [atFirst, atSecond, atFirst, atSecond, atFirst].entries()) {
      const { status } = await call('POST', '/api/auth/sign-in/email', { headers: { 'x-forwarded-for': '198.51.100.7' }, body: { email: `nobody-${i}@example.com`, password: 'whatever it may be' } });
      statuses.push(status);
    }
    expect(statuses).toEqual([401, 401, 401, 429, 429]);
  });

  it('go on for five seconds with what they know when it cannot be read, then let nobody in, and heal', async () => {
    const statusOf = async (path: string): Promise<number> => (await atSecond('GET', path)).status;
    await backend.asSuperuser(deployment, 'REVOKE SELECT ON keyguard.settings FROM kg_jobs');
    const sinceMs = performance.now();
    while ((await statusOf('/api/openapi.json')) === 200 && performance.now() - sinceMs < 15_000) await pause(20);
    const heldMs = performance.now() - sinceMs;
    const refused = await atSecond('GET', '/api/openapi.json');
    expect([refused.status, refused.json.code]).toEqual([503, 'store_unavailable']);
    expect(await statusOf('/v1/models')).toBe(503);
    expect(await statusOf('/healthz')).toBe(200);
    const ready = await atSecond('GET', '/readyz');
    expect([ready.status, ready.json.checks.settings]).toEqual([503, 'nobody can tell which are in force']);
    await backend.asSuperuser(deployment, 'GRANT SELECT ON keyguard.settings TO kg_jobs');
    const grantedMs = performance.now();
    while ((await statusOf('/api/openapi.json')) !== 200 && performance.now() - grantedMs < 15_000) await pause(20);
    const healedMs = performance.now() - grantedMs;
    // It has missed them for as long, and is asked next.
    while ((await atFirst('GET', '/api/openapi.json')).status !== 200 && performance.now() - grantedMs < 15_000) await pause(20);
    process.stdout.write(`unreadable settings held for ${heldMs.toFixed(0)} ms, and were known again after ${healedMs.toFixed(0)} ms\n`);
    expect(heldMs).toBeGreaterThan(4000);
    expect(heldMs).toBeLessThan(7000);
    expect(healedMs).toBeLessThan(2000);
  });

  it('do not go back when the newest change is deleted around them', async () => {
    const { version } = (await change({ network: { control_plane_allowlist: NOT_THERE } })).json;
    await pause(1000);
    await backend.asSuperuser(deployment, `DELETE FROM keyguard.settings WHERE version = ${version}`);
    await pause(2000);
    expect((await atSecond('GET', '/.well-known/jwks.json', { headers: SOMEWHERE })).status).toBe(403);
    await pause(4000);
    expect((await atSecond('GET', '/.well-known/jwks.json', { headers: SOMEWHERE })).status).toBe(503);
    expect(second.output()).toContain('the settings cannot be read');
  });
});
