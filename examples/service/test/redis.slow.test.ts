/** The service with its nonces and limits in Redis: what it needs of one, and what people see when it is gone. */
import { startRedisServer, type RedisServer } from '@keyguard/conformance/redis-server';
import { setTimeout as pause } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, inject, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { caller, embeddedBackend, runMain, startService, type Backend, type Deployment, type Running } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const ADMIN = { KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: 'a long and quiet password' };
const PASSWORD = 'redis-canary-7c1e';
const READY_AFTER_LOSS_MS = 10_000;

describe('the service on Redis', () => {
  let backend: Backend;
  let deployment: Deployment;
  let server: RedisServer;
  let service: Running | undefined;
  const call = caller(() => service!.origin);

  beforeAll(async () => {
    backend = await embeddedBackend();
    deployment = await backend.deploy();
    server = await startRedisServer(inject('redisServer')!, { requirepass: PASSWORD });
  });
  afterAll(async () => {
    await service?.stop('SIGKILL');
    await server?.stop();
    await backend.stop();
  });

  const redisUrl = (): string => server.url.replace('//', `//:${PASSWORD}@`);
  const environment = (): Record<string, string> => ({
    ...deployment.environment,
    ...ADMIN,
    REDIS_URL: redisUrl(),
    KEYGUARD_REQUESTS_PER_MINUTE: '20',
    LOG_LEVEL: 'trace',
  });
  const readiness = async (): Promise<unknown> => {
    const { status, json } = await call('GET', '/readyz');
    return { status, redis: json.checks.redis };
  };

  it('does not start on one that may evict, and says what to change', async () => {
    const evicting = await startRedisServer(inject('redisServer')!, { 'maxmemory-policy': 'allkeys-lru' });
    try {
      const started = runMain(deployment.folder, { ...environment(), REDIS_URL: evicting.url });
      expect(await started.exit).toBe(1);
      expect(started.output()).toContain('noeviction');
    } finally {
      await evicting.stop();
    }
  });

  it('does not start without it, and says so without the password', async () => {
    const started = runMain(deployment.folder, { ...environment(), REDIS_URL: `redis://:${PASSWORD}@127.0.0.1:1` });
    expect(await started.exit).toBe(1);
    expect(started.output()).toContain('Redis cannot be reached');
    expect(started.output()).not.toContain(PASSWORD);
  });

  it('lets devices in and counts them there; is not ready and lets nobody through while it is frozen; and goes on by itself', async () => {
    service = await startService(deployment.folder, environment());
    expect(await readiness()).toEqual({ status: 200, redis: 'ok' });
    const { origin } = service;
    const signedIn = await call('POST', '/api/auth/sign-in/email', {
      body: { email: ADMIN.KEYGUARD_ADMIN_EMAIL, password: ADMIN.KEYGUARD_ADMIN_PASSWORD },
    });
    const made = await call('POST', '/api/enrollment-codes', { token: signedIn.headers.get('set-auth-token')!, body: {} });
    const client = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
    // This Redis has just begun: for some seconds nothing passes, because nobody knows what another one may have let through.
    const untilMs = performance.now() + READY_AFTER_LOSS_MS;
    let device = await client.enroll({ code: made.json.code }).catch((error: Error & { code?: string }) => error.code);
    // Unless the start took so long that those seconds are over.
    expect(typeof device === 'string' ? device : 'server_unavailable').toBe('server_unavailable');
    while (typeof device === 'string' && performance.now() < untilMs) {
      // Slowly: tries to enroll are limited too.
      await pause(500);
      device = await client.enroll({ code: made.json.code }).catch((error: Error & { code?: string }) => error.code);
    }
    expect(device).toMatchObject({ status: 'active' });

    const chat = async (): Promise<number> => {
      const response = await client.fetch(`${origin}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: 'keyguard-demo', messages: [{ role: 'user', content: 'Hello' }] }),
      });
      await response.text();
      return response.status;
    };
    expect(await chat()).toBe(200);

    server.freeze();
    expect(await chat()).toBe(503);
    await vi.waitFor(async () => expect(await readiness()).toEqual({ status: 503, redis: 'cannot be used' }), 5000);
    server.thaw();
    const healedMs = performance.now() + READY_AFTER_LOSS_MS;
    while ((await chat()) !== 200) {
      if (performance.now() > healedMs) throw new Error('It did not heal.');
      await pause(200);
    }
    // An answer is kept for a moment.
    await vi.waitFor(async () => expect(await readiness()).toEqual({ status: 200, redis: 'ok' }), 5000);

    // Full, and not allowed to forget: no nonce can be remembered, so nobody is let through.
    const operator = new Redis(redisUrl());
    await operator.config('SET', 'maxmemory', '1');
    await vi.waitFor(async () => expect(await readiness()).toEqual({ status: 503, redis: 'cannot be used' }), 5000);
    expect(await chat()).toBe(503);
    await operator.config('SET', 'maxmemory', '0');
    operator.disconnect();
    await vi.waitFor(async () => expect(await readiness()).toEqual({ status: 200, redis: 'ok' }), 5000);

    // The limit of the device is in Redis too: a new process goes on counting.
    let last = 200;
    // Twice the limit: a minute may end in between, and the count begins anew.
    for (let i = 0; i < 45 && last === 200; i += 1) last = await chat();
    expect(last).toBe(429);
    expect(await service.stop()).toBe(0);
    expect(service.output()).not.toContain(PASSWORD);
    service = await startService(deployment.folder, { ...environment(), PORT: new URL(origin).port });
    expect(await chat()).toBe(429);
  });
});
