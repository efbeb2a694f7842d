/**
 * A rotation of the key encryption key over many rows, with the service serving and killed in the middle, and a change of the root
 * key after it. KEYGUARD_ROTATED_ROWS says how many rows; 100,000 without it.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { changeRoot } from '../../src/keys/change-root.ts';
import { backends, caller, freePort, startService, type Backend, type Deployment, type Running } from '../stage.ts';
import { openKeys, openRows, rootKeyOf, sealRows } from './stage.ts';

const ROWS = Number(process.env['KEYGUARD_ROTATED_ROWS'] ?? 100_000);
const CALLERS = 4;
const KILLS = 2;
const ADMIN = { KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: 'a long and quiet password' };

vi.setConfig({ testTimeout: 900_000, hookTimeout: 300_000 });

describe.each(backends())(`${ROWS} rows on %s`, (title, openBackend) => {
  let backend: Backend;
  let deployment: Deployment;
  let service: Running | undefined;
  beforeAll(async () => {
    backend = await openBackend();
    deployment = await backend.deploy();
    const stage = await openKeys(deployment);
    await sealRows(stage.sql, stage.keys, ROWS);
    await stage.close();
  });
  afterAll(async () => {
    await service?.stop('SIGKILL');
    await backend.stop();
  });

  it(`survive a rotation under load that is killed ${KILLS} times, and a change of the root key`, async () => {
    const environment = { ...ADMIN, ...deployment.environment, PORT: String(await freePort()), KEYGUARD_REQUESTS_PER_MINUTE: '1000000' };
    service = await startService(deployment.folder, environment);
    const call = caller(() => service!.origin);
    const token = (await call('POST', '/api/auth/sign-in/email', { body: { email: ADMIN.KEYGUARD_ADMIN_EMAIL, password: ADMIN.KEYGUARD_ADMIN_PASSWORD } })).headers.get('set-auth-token')!;
    const stored = await call('POST', '/api/api-keys', { token, body: { provider: 'openai', name: 'in use', value: 'provider-key-of-the-rotation' } });
    expect(stored.status, stored.text).toBe(201);
    const { code } = (await call('POST', '/api/enrollment-codes', { token, body: {} })).json;
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    await client.enroll({ code });

    // Creates and lists beside the rotation; what a dead service cannot answer counts for nothing.
    let isOver = false;
    let [served, refused] = [0, 0];
    const serving = Array.from({ length: CALLERS }, async () => {
      for (;;) {
        if (isOver) return;
        try {
          const made = await call('POST', '/api/api-keys', { token, body: { provider: 'openai', name: 'made meanwhile', value: 'provider-key-of-the-rotation' } });
          const status = await client.status();
          if (made.status === 201 && status.status === 'active') served += 1;
          else refused += 1;
        } catch {
          await pause(100);
        }
        await pause(20);
      }
    });
    const startedAtMs = performance.now();
    const { id } = (await call('POST', '/api/operations/kek-rotations', { token })).json;
    const progress = async (): Promise<{ state: string; rewrapped: number; damaged: number }> => (await call('GET', `/api/operations/kek-rotations/${id}`, { token })).json;
    for (let kill = 1; kill <= KILLS; kill += 1) {
      for (;;) {
        const { rewrapped, state } = await progress();
        expect(state).not.toBe('done');
        if (rewrapped > (ROWS * kill) / (KILLS + 1.5)) break;
        await pause(20);
      }
      await service.stop('SIGKILL');
      service = await startService(deployment.folder, environment);
    }
    for (;;) {
      const { state, damaged } = await progress();
      expect(damaged).toBe(0);
      if (state === 'done') break;
      await pause(250);
    }
    const tookMs = performance.now() - startedAtMs;
    isOver = true;
    await Promise.all(serving);
    const { rewrapped } = await progress();
    expect(rewrapped).toBeGreaterThanOrEqual(ROWS);
    expect(served).toBeGreaterThan(10);
    await service.stop();
    service = undefined;

    const stage = await openKeys(deployment);
    const opened = await openRows(stage.sql, stage.keys);
    expect(opened).toMatchObject({ rows: ROWS, unreadable: 0 });
    expect(opened.kekIds.size).toBe(1);
    const changeAtMs = performance.now();
    await changeRoot(stage.sql, rootKeyOf(deployment), { kind: 'passphrase', passphrase: 'correct horse battery staple' });
    const changedMs = performance.now() - changeAtMs;
    await stage.close();
    const after = await openKeys(deployment, { kind: 'passphrase', passphrase: 'correct horse battery staple' });
    expect(await openRows(after.sql, after.keys)).toEqual(opened);
    await after.close();
    process.stdout.write(`${title}: ${ROWS} rows rotated in ${Math.round(tookMs / 1000)} s with ${KILLS} kills, ${served} served, ${refused} refused; root changed in ${Math.round(changedMs)} ms\n`);
  });
});
