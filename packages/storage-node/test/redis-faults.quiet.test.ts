/**
 * A Redis that is stopped, killed, or cut in two under verifiers. Whatever happens, nothing that was accepted is accepted again, no
 * request waits, and all heals by itself. KEYGUARD_KILL_ROUNDS says how often it is killed amid claims; three times without it.
 */
import { startRedisServer, type RedisServer } from '@keyguard/conformance/redis-server';
import type { Redis } from 'ioredis';
import { setTimeout as pause } from 'node:timers/promises';
import { redisRateLimiter, type Verifier } from '@keyguard/server-verifier';
import { afterEach, beforeEach, expect, inject, it, vi } from 'vitest';
import { ioredisClient, redisReplayStore, type RedisReplayStore, type RedisReplayStoreOptions } from '../src/redis.ts';
import { CLIENTS, connectIoredis, movedTime, proxyTo, untilStatus, type MovedTime } from './redis-clients.ts';
import { readRequest, signingDevice, verifierOf, type SigningDevice, type WrittenRequest } from './signed-requests.ts';

const ROUNDS = Number(process.env['KEYGUARD_KILL_ROUNDS'] ?? 3);
const WORKERS = 32;
const LIFE_MS = 360_000;
const HEALED_WITHIN_MS = 5000;

vi.setConfig({ testTimeout: 60_000 + ROUNDS * 10_000, hookTimeout: 60_000 });

let server: RedisServer;
let redis: Redis;
let time: MovedTime;
let store: RedisReplayStore;
let signer: SigningDevice;
let verifier: Verifier;

/** `timeoutMs` is patient unless it is what a test is about: on a busy machine an answer may take its time. */
async function use(settings: Readonly<Record<string, string>> = {}, timeoutMs = 10_000): Promise<void> {
  server = await startRedisServer(inject('redisServer')!, settings);
  time = movedTime();
  redis = await connectIoredis(server.url);
  store = open(redis, { timeoutMs });
  signer = await signingDevice();
  verifier = verifierOf(store, {
    device: signer.device,
    clock: time,
    policy: { requestsPerMinute: 1_000_000 },
    deviceLimiter: redisRateLimiter(redis, { perMinute: 1_000_000, prefix: 'keyguard:device', timeoutMs }),
  });
  await settle();
}

const open = (connection: Redis, options: RedisReplayStoreOptions = {}): RedisReplayStore =>
  redisReplayStore(time.wrap(ioredisClient(connection)), { clock: time, ...options });

async function settle(by: RedisReplayStore = store): Promise<void> {
  const { readyAtMs } = await by.check();
  time.advance(Math.max(0, readyAtMs - time.nowMs()));
}

/** What `verify` says of it: `accepted` or a code. */
const verdict = (request: WrittenRequest): Promise<string> =>
  verifier.verify(readRequest(request)).then(
    () => 'accepted',
    (error: Error & { code?: string }) => error.code ?? error.message,
  );
const fresh = async (): Promise<string> => verdict(await signer.sign(time.nowMs()));

/** Waits until the store says that it can be used, and moves on to the time from which requests pass. */
async function heal(by: RedisReplayStore = store): Promise<void> {
  const untilMs = performance.now() + HEALED_WITHIN_MS;
  while (!(await by.check().catch(() => false))) {
    if (performance.now() > untilMs) throw new Error('It did not heal.');
    await pause(20);
  }
  await settle(by);
}

beforeEach(() => {
  server = undefined as never;
});
afterEach(async () => {
  redis?.disconnect();
  await server?.stop();
});

it('answers 503 within 250 ms while Redis is frozen, and goes on when it thaws', async () => {
  await use({}, 200);
  let used = await signer.sign(time.nowMs());
  while ((await verdict(used)) !== 'accepted') used = await signer.sign(time.nowMs());
  const took: number[] = [];
  server.freeze();
  for (let i = 0; i < 10; i += 1) {
    const request = await signer.sign(time.nowMs());
    const startedMs = performance.now();
    expect(await verdict(request)).toBe('store_unavailable');
    took.push(performance.now() - startedMs);
  }
  // A machine that is busy with something else may add to one or the other, not to all.
  expect(took.toSorted((a, b) => a - b)[took.length / 2 - 1]).toBeLessThan(250);
  server.thaw();
  await heal();
  await vi.waitFor(async () => expect(await fresh()).toBe('accepted'), HEALED_WITHIN_MS);
  await vi.waitFor(async () => expect(await verdict(used)).toBe('replay_detected'), HEALED_WITHIN_MS);
});

it.each(CLIENTS)('claims by $title after seconds without traffic, and after a Redis that was frozen for longer than the socket waits', async ({ connect }) => {
  await use();
  const { client, close } = await connect(server.url);
  const idle = redisReplayStore(time.wrap(client), { clock: time });
  const claim = (nonce: string): Promise<boolean> => {
    const createdSeconds = Math.floor(time.nowMs() / 1000);
    return idle.claim('key', nonce, createdSeconds, createdSeconds * 1000 + LIFE_MS);
  };
  try {
    await vi.waitFor(async () => expect(await claim('first')).toBe(true), HEALED_WITHIN_MS);
    await pause(1500);
    await vi.waitFor(async () => expect(await claim('second')).toBe(true), 1000);
    server.freeze();
    const untilMs = performance.now() + 1500;
    while (performance.now() < untilMs) expect(await claim('third').catch(() => false)).toBe(false);
    server.thaw();
    await heal(idle);
    await vi.waitFor(async () => expect(await claim('fourth')).toBe(true), HEALED_WITHIN_MS);
    expect(await claim('first')).toBe(false);
  } finally {
    close();
  }
});

it('answers 503 at once while there is no Redis, and after a restart without persistence accepts only what is created later', async () => {
  await use();
  const used = await Promise.all(Array.from({ length: 20 }, () => signer.sign(time.nowMs())));
  const unused = await signer.sign(time.nowMs());
  for (const request of used) expect(await verdict(request)).toBe('accepted');
  await server.kill();
  await untilStatus(redis, 'reconnecting');
  const startedMs = performance.now();
  for (let i = 0; i < 10; i += 1) expect(await fresh()).toBe('store_unavailable');
  expect(performance.now() - startedMs).toBeLessThan(1000);

  await server.start();
  await untilStatus(redis, 'ready');
  for (const request of used) expect(await verdict(request)).toBe('store_unavailable');
  await heal();
  for (const request of [...used, unused]) expect(await verdict(request)).toBe('replay_detected');
  expect(await fresh()).toBe('accepted');
});

it('lets nothing back in after a restart from a snapshot, in which the lineage is and the last claims are not', async () => {
  await use();
  const inSnapshot = await signer.sign(time.nowMs());
  expect(await verdict(inSnapshot)).toBe('accepted');
  expect(await server.ask('SAVE')).toBe('OK');
  const later = await signer.sign(time.nowMs());
  expect(await verdict(later)).toBe('accepted');
  await server.kill();
  await server.start();
  expect(await server.ask('ZCARD', 'keyguard:nonces')).toBe('2');
  await untilStatus(redis, 'ready');
  expect(await verdict(later)).toBe('store_unavailable');
  await heal();
  for (const request of [later, inSnapshot]) expect(await verdict(request)).toBe('replay_detected');
  expect(await fresh()).toBe('accepted');
});

it(`accepts no acknowledged claim again when it is killed amid claims and every write is on the disk, ${ROUNDS} times`, async () => {
  await use({ appendonly: 'yes', appendfsync: 'always' });
  const acknowledged: { readonly nonce: string; readonly createdSeconds: number }[] = [];
  let serial = 0;
  const claim = (nonce: string, createdSeconds: number): Promise<boolean> =>
    store.claim(signer.device.keyId, nonce, createdSeconds, createdSeconds * 1000 + LIFE_MS);

  for (let round = 0; round < ROUNDS; round += 1) {
    const before = acknowledged.length;
    const ending = new AbortController();
    const workers = Array.from({ length: WORKERS }, async () => {
      while (!ending.signal.aborted) {
        const nonce = `nonce-${(serial += 1)}`;
        const createdSeconds = Math.floor(time.nowMs() / 1000);
        const claimed = await claim(nonce, createdSeconds).catch(() => null);
        if (claimed === true) acknowledged.push({ nonce, createdSeconds });
        else {
          // Its own nonce, for the first time.
          expect(claimed).toBe(null);
          await pause(1);
        }
      }
    });
    while (acknowledged.length < before + 10 * WORKERS) await pause(5);
    await pause((100 * round) / ROUNDS);
    await server.kill();
    ending.abort();
    await Promise.all(workers);
    await server.start();
    await untilStatus(redis, 'ready');

    // All of this round, and some of every round before: the older ones must be as little forgotten.
    const older = acknowledged.slice(0, before);
    const tried = [...older.filter((_, i) => i % Math.ceil(older.length / 1000) === 0), ...acknowledged.slice(before)];
    const again = async (): Promise<number> => {
      let accepted = 0;
      for (let i = 0; i < tried.length; i += 500) {
        const batch = tried.slice(i, i + 500).map(({ nonce, createdSeconds }) => claim(nonce, createdSeconds).catch(() => false));
        accepted += (await Promise.all(batch)).filter(Boolean).length;
      }
      return accepted;
    };
    expect(await again()).toBe(0);
    await heal();
    expect(await again()).toBe(0);
    expect(await claim(`nonce-${(serial += 1)}`, Math.floor(time.nowMs() / 1000))).toBe(true);
  }
  expect(acknowledged.length).toBeGreaterThanOrEqual(ROUNDS * 10 * WORKERS);
});

it('accepts nothing twice while a master that was cut off goes on beside its successor', async () => {
  const MAX_LAG_S = 3;
  await use({ 'repl-diskless-sync-delay': '0' });
  const network = await proxyTo(server.port);
  const replica = await startRedisServer(inject('redisServer')!);
  await replica.ask('REPLICAOF', '127.0.0.1', String(network.port));
  while (!(await replica.ask('INFO', 'replication')).includes('master_link_status:up')) await pause(20);
  await server.ask('CONFIG', 'SET', 'min-replicas-max-lag', String(MAX_LAG_S));
  await server.ask('CONFIG', 'SET', 'min-replicas-to-write', '1');
  const onReplica = await connectIoredis(replica.url);
  try {
    const options = { isolatedMasterMs: (MAX_LAG_S + 2) * 1000, timeoutMs: 10_000 };
    const [old, successor] = [open(redis, options), open(onReplica, options)];
    await heal(old);
    const claim = (by: RedisReplayStore, nonce: string, createdSeconds: number): Promise<boolean> =>
      by.claim('key', nonce, createdSeconds, createdSeconds * 1000 + LIFE_MS).catch(() => false);

    network.cut();
    await replica.ask('REPLICAOF', 'NO', 'ONE');
    const { readyAtMs } = await successor.check();
    const accepted = { old: 0, successor: 0, both: 0 };
    for (let serial = 0; time.nowMs() < readyAtMs + 1000; serial += 1) {
      const createdSeconds = Math.floor(time.nowMs() / 1000) + (serial % 3);
      const [first, second] = [await claim(old, `nonce-${serial}`, createdSeconds), await claim(successor, `nonce-${serial}`, createdSeconds)];
      accepted.old += Number(first);
      accepted.successor += Number(second);
      accepted.both += Number(first && second);
      await pause(5);
    }
    expect(accepted.old).toBeGreaterThan(0);
    expect(accepted.successor).toBeGreaterThan(0);
    expect(accepted.both).toBe(0);
  } finally {
    onReplica.disconnect();
    await replica.stop();
    network.close();
  }
});
