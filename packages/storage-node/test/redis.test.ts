/** What only Redis does: evicts, forgets, fills up, is a replica, keeps a time of its own. Whatever it does, no pair passes twice. */
import { startRedisServer, type RedisServer } from '@keyguard/conformance/redis-server';
import type { Redis } from 'ioredis';
import { setTimeout as pause } from 'node:timers/promises';
import { hasCode, isUnavailable, type UnavailableError } from '@keyguard/core/errors';
import type { MaybePromise } from '@keyguard/core/seams';
import { redisRateLimiter } from '@keyguard/server-verifier';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { ioredisClient, redisReplayStore, type RedisReplayStore } from '../src/redis.ts';
import { connectIoredis, movedTime, proxyTo, untilStatus, type MovedTime } from './redis-clients.ts';

const KEY = 'keyguard:nonces';
const LIFE_MS = 360_000;
const RECHECK_MS = 1000;

let server: RedisServer;
let redis: Redis;
let time: MovedTime;
let store: RedisReplayStore;
let serial = 0;

const fresh = (): string => `nonce-${(serial += 1)}`;
const nowSeconds = (): number => Math.floor(time.nowMs() / 1000);
const claim = (nonce: string, createdSeconds = nowSeconds(), by: RedisReplayStore = store): Promise<boolean> =>
  by.claim('key', nonce, createdSeconds, createdSeconds * 1000 + LIFE_MS);

/** Why a claim was refused by an outage. @throws where it was answered */
async function outage(work: MaybePromise<unknown>): Promise<UnavailableError> {
  const answer = await Promise.resolve(work).catch((error: unknown) => error);
  if (!isUnavailable(answer)) throw new Error(`It was ${String(answer)}.`);
  return answer;
}

/** Moves to the time from which new requests pass. */
async function settle(by: RedisReplayStore = store): Promise<void> {
  const { readyAtMs } = await by.check();
  time.advance(Math.max(0, readyAtMs - time.nowMs()));
}

/** Patient: on a busy machine an answer may take its time. */
const open = (connection: Redis, timeoutMs = 10_000): RedisReplayStore => redisReplayStore(time.wrap(ioredisClient(connection)), { clock: time, timeoutMs });

beforeAll(async () => {
  server = await startRedisServer(inject('redisServer')!, { 'repl-diskless-sync-delay': '0' });
});
afterAll(() => server.stop());
beforeEach(async () => {
  await server.ask('FLUSHALL');
  time = movedTime();
  redis = await connectIoredis(server.url);
  store = open(redis);
  await settle();
});
afterEach(() => redis.disconnect());

describe('what Redis may have forgotten', () => {
  it.each([
    ['FLUSHALL', ['FLUSHALL']],
    ['FLUSHDB', ['FLUSHDB']],
    ['the loss of the key', ['DEL', KEY]],
    ['databases that change places', ['SWAPDB', '0', '1']],
  ])('does not pass after %s: it is noticed with the claim itself', async (_title, command) => {
    const nonce = fresh();
    const createdSeconds = nowSeconds();
    expect(await claim(nonce, createdSeconds)).toBe(true);
    await server.ask(...command);
    const early = await outage(claim(nonce, createdSeconds));
    expect(early.retryAfterMs).toBeGreaterThan(0);
    expect(early.retryAfterMs).toBeLessThanOrEqual(5000);
    // Dated as far ahead as anything that was accepted before can have been.
    expect(await outage(claim(fresh(), nowSeconds() + store.maxFutureSeconds!))).toMatchObject({ code: 'store_unavailable' });
    time.advance(early.retryAfterMs!);
    expect(await claim(nonce, createdSeconds)).toBe(false);
    expect(await claim(fresh())).toBe(true);
  });

  it('is the same to all processes, and to those that come later', async () => {
    const createdSeconds = nowSeconds();
    expect(await claim(fresh(), createdSeconds)).toBe(true);
    await server.ask('FLUSHALL');
    const connections = await Promise.all(Array.from({ length: 10 }, () => connectIoredis(server.url)));
    const answers = await Promise.all(connections.map((connection) => open(connection).check()));
    expect(new Set(answers.map(({ readyAtMs }) => readyAtMs)).size).toBe(1);
    time.advance(2000);
    expect(await store.check()).toEqual(answers[0]);
    for (const connection of connections) connection.disconnect();
  });

  it('covers what the process whose clock is furthest ahead accepted, whichever process notices the loss', async () => {
    const wrapped = time.wrap(ioredisClient(redis));
    const by = (aheadMs: number): RedisReplayStore =>
      redisReplayStore(wrapped, { clock: { nowMs: () => time.nowMs() + aheadMs }, timeoutMs: 10_000 });
    const [early, late] = [by(900), by(-900)];
    // In the middle of a second, so that the one is already in the next.
    time.advance(1500 - (time.nowMs() % 1000));
    const nonce = fresh();
    const createdSeconds = Math.floor((time.nowMs() + 900) / 1000) + 2;
    expect(await claim(nonce, createdSeconds, early)).toBe(true);
    await server.ask('FLUSHALL');
    await settle(late);
    time.advance(2000);
    expect(await claim(nonce, createdSeconds, early)).toBe(false);
    expect(await claim(nonce, createdSeconds, late)).toBe(false);
    expect(await claim(fresh())).toBe(true);
  });

  it('stays refused over a second loss, though the first one was by a clock that was ahead', async () => {
    const aheadSeconds = nowSeconds() + 100;
    await redis.del(KEY);
    await redis.zadd(KEY, -aheadSeconds, 'lineage:0123456789abcdef0123456789abcdef01234567');
    const { readyAtMs } = await store.check();
    expect(readyAtMs).toBe((aheadSeconds + 1) * 1000);
    expect(await redis.zcard(KEY)).toBe(1);
  });

  it('is little: the set shrinks to what is alive', async () => {
    for (let batch = 0; batch < 30; batch += 1) {
      expect((await Promise.all(Array.from({ length: 100 }, () => claim(fresh())))).every(Boolean)).toBe(true);
    }
    time.advance(LIFE_MS + 2000);
    for (let i = 0; i < 100; i += 1) expect(await claim(fresh())).toBe(true);
    expect(Number(await redis.zcard(KEY))).toBeLessThan(2800);
    for (let i = 0; i < 3; i += 1) await store.check();
    // The hundred, the lineage, and up to when was forgotten.
    expect(await redis.zcard(KEY)).toBe(102);
    expect(await redis.ttl(KEY)).toBe(-1);
  });

  it('is not made more by a forgotten script', async () => {
    const nonce = fresh();
    expect(await claim(nonce)).toBe(true);
    await server.ask('SCRIPT', 'FLUSH');
    const real = redisReplayStore(ioredisClient(redis), { key: 'another' });
    await real.check();
    await server.ask('SCRIPT', 'FLUSH');
    await real.check();
    expect(await claim(nonce)).toBe(false);
  });
});

describe('a server that is not fit', () => {
  it.each(['allkeys-lru', 'allkeys-lfu', 'allkeys-random', 'volatile-lru', 'volatile-lfu', 'volatile-random', 'volatile-ttl'])(
    'is refused at the start and in use when it evicts by %s, and taken when it does not any more',
    async (policy) => {
      const nonce = fresh();
      expect(await claim(nonce)).toBe(true);
      await server.ask('CONFIG', 'SET', 'maxmemory-policy', policy);
      try {
        expect((await outage(store.check())).message).toContain(policy);
        expect((await outage(claim(fresh(), undefined, open(redis)))).message).toContain(policy);
        await pause(RECHECK_MS);
        expect((await outage(claim(fresh()))).message).toContain('noeviction');
      } finally {
        await server.ask('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');
      }
      expect(await claim(nonce)).toBe(false);
      expect(await claim(fresh())).toBe(true);
    },
  );

  it('that has evicted lets nothing back in, though it was not looked at meanwhile', async () => {
    const nonces = Array.from({ length: 50 }, fresh);
    const createdSeconds = nowSeconds();
    for (const nonce of nonces) expect(await claim(nonce, createdSeconds)).toBe(true);
    await server.ask('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-random');
    await server.ask('CONFIG', 'SET', 'maxmemory', '1');
    await server.ask('SET', 'a', 'b').catch(() => {});
    await server.ask('CONFIG', 'SET', 'maxmemory', '0');
    await server.ask('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');
    expect(await redis.exists(KEY)).toBe(0);
    for (const nonce of nonces) await outage(claim(nonce, createdSeconds));
    await settle();
    for (const nonce of nonces) expect(await claim(nonce, createdSeconds)).toBe(false);
  });

  it('because it is full, says so, and is fit again when there is room', async () => {
    const nonce = fresh();
    expect(await claim(nonce)).toBe(true);
    await server.ask('CONFIG', 'SET', 'maxmemory', '1');
    try {
      const full = await outage(claim(fresh()));
      expect(hasCode(full, 'overloaded')).toBe(true);
      // Also whoever only looks is told, before anybody has to find out.
      expect(hasCode(await outage(store.check()), 'overloaded')).toBe(true);
    } finally {
      await server.ask('CONFIG', 'SET', 'maxmemory', '0');
    }
    expect(await claim(nonce)).toBe(false);
    expect(await claim(fresh())).toBe(true);
  });

  it('because it is full of nonces, is fit again when they have expired', async () => {
    const nonces = Array.from({ length: 200 }, fresh);
    const createdSeconds = nowSeconds();
    await Promise.all(nonces.map((nonce) => claim(nonce, createdSeconds)));
    await server.ask('CONFIG', 'SET', 'maxmemory', '1');
    try {
      expect(hasCode(await outage(claim(fresh())), 'overloaded')).toBe(true);
      time.advance(LIFE_MS + 2000);
      const [first, second] = [fresh(), fresh()];
      expect([await claim(first), await claim(second)]).toEqual([true, true]);
      expect([await claim(first), await claim(second)]).toEqual([false, false]);
      for (const nonce of nonces) expect(await claim(nonce, createdSeconds).catch(() => false)).toBe(false);
    } finally {
      await server.ask('CONFIG', 'SET', 'maxmemory', '0');
    }
  });

  it.each([
    [1500, 'ahead of'],
    [-1500, 'behind'],
    [24 * 3_600_000, 'ahead of'],
  ])('because its clock is off by %i ms, is refused with the difference, and forgets nothing by it', async (ms, words) => {
    const nonce = fresh();
    const createdSeconds = nowSeconds();
    expect(await claim(nonce, createdSeconds)).toBe(true);
    time.advanceServer(ms);
    expect((await outage(claim(fresh()))).message).toContain(words);
    expect((await outage(claim(nonce, createdSeconds))).message).toContain(words);
    time.advanceServer(-ms);
    expect(await claim(nonce, createdSeconds)).toBe(false);
    expect(await claim(fresh())).toBe(true);
  });

  it.each([
    ['all zeros', `role:master\r\nmaster_replid:${'0'.repeat(40)}\r\n`],
    ['no id at all', 'role:master\r\n'],
    ['another text', 'role:master\r\nmaster_replid:?\r\n'],
  ])('because its replication id is %s, is refused', async (_title, info) => {
    const inner = ioredisClient(redis);
    const hiding = redisReplayStore({
      async send([name, script, ...rest]) {
        if (name === 'EVALSHA') throw new Error('NOSCRIPT');
        return inner.send([name!, script!.replace("redis.call('INFO', 'replication')", JSON.stringify(`# Replication\r\n${info}`)), ...rest]);
      },
    });
    expect((await outage(hiding.check())).message).toContain('replication id');
  });

  it('is no reason to begin a lineage by a clock that is off', async () => {
    await server.ask('FLUSHALL');
    time.advanceServer(3_600_000);
    await outage(store.check());
    time.advanceServer(-3_600_000);
    const { readyAtMs } = await store.check();
    expect(readyAtMs - time.nowMs()).toBeLessThanOrEqual(6000);
  });
});

describe('a replica', () => {
  let replica: RedisServer;
  let onReplica: Redis;

  beforeEach(async () => {
    replica = await startRedisServer(inject('redisServer')!, { 'repl-diskless-sync-delay': '0' });
    await replica.ask('REPLICAOF', '127.0.0.1', String(server.port));
    while (!(await replica.ask('INFO', 'replication')).includes('master_link_status:up')) await pause(20);
    onReplica = await connectIoredis(replica.url);
    await settle();
  });
  afterEach(async () => {
    onReplica.disconnect();
    await replica.stop();
  });

  it('claims nothing, though it be told to take writes', async () => {
    for (const readOnly of ['yes', 'no']) {
      await replica.ask('CONFIG', 'SET', 'replica-read-only', readOnly);
      expect((await outage(claim(fresh(), undefined, open(onReplica)))).message).toContain('replica');
    }
  });

  it('that became the master lets nothing pass that the old one accepted, whether or not it heard of it', async () => {
    const createdSeconds = nowSeconds();
    const [heard, unheard] = [fresh(), fresh()];
    expect(await claim(heard, createdSeconds)).toBe(true);
    expect(await server.ask('WAIT', '1', '5000')).toBe('1');
    await replica.ask('REPLICAOF', 'NO', 'ONE');
    expect(await claim(unheard, createdSeconds)).toBe(true);
    const successor = open(onReplica);
    for (const nonce of [heard, unheard]) await outage(claim(nonce, createdSeconds, successor));
    await settle(successor);
    for (const nonce of [heard, unheard]) expect(await claim(nonce, createdSeconds, successor)).toBe(false);
    expect(await claim(fresh(), undefined, successor)).toBe(true);
  });

  it('that gave the mastership back does not make the first master trust what it holds', async () => {
    const createdSeconds = nowSeconds();
    const lost = fresh();
    await replica.ask('REPLICAOF', 'NO', 'ONE');
    expect(await claim(lost, createdSeconds)).toBe(true);
    await server.ask('REPLICAOF', '127.0.0.1', String(replica.port));
    while (!(await server.ask('INFO', 'replication')).includes('master_link_status:up')) await pause(20);
    await server.ask('REPLICAOF', 'NO', 'ONE');
    await outage(claim(lost, createdSeconds));
    await settle();
    expect(await claim(lost, createdSeconds)).toBe(false);
    expect(await claim(fresh())).toBe(true);
  });
});

describe('a claim', () => {
  it('is refused when it is dated further ahead than a loss would be covered for', async () => {
    expect(await claim(fresh(), nowSeconds() + 2)).toBe(true);
    expect((await outage(claim(fresh(), nowSeconds() + 4))).message).toContain('2 s ahead');
  });

  it('is a mistake of the program when its times are none', async () => {
    for (const wrong of [Number.NaN, Infinity, 1.5]) {
      await expect(store.claim('key', fresh(), wrong, time.nowMs() + LIFE_MS)).rejects.toMatchObject({ code: 'invalid_option' });
      await expect(store.claim('key', fresh(), nowSeconds(), wrong)).rejects.toMatchObject({ code: 'invalid_option' });
    }
  });

  it('whose connection is cut throws, and the next ones pass as soon as there is a connection', async () => {
    const nonces = Array.from({ length: 200 }, fresh);
    const createdSeconds = nowSeconds();
    const first = Promise.allSettled(nonces.map((nonce) => claim(nonce, createdSeconds)));
    await server.ask('CLIENT', 'KILL', 'TYPE', 'normal').catch(() => {});
    const passed = new Map<string, number>();
    const note = (nonce: string, ok: boolean): unknown => passed.set(nonce, (passed.get(nonce) ?? 0) + (ok ? 1 : 0));
    for (const [i, result] of (await first).entries()) {
      if (result.status === 'fulfilled') note(nonces[i]!, result.value);
      else expect(isUnavailable(result.reason)).toBe(true);
    }
    // The end of a connection is noticed with some delay, and then there is another one.
    while (!(await store.check().catch(() => false))) await pause(10);
    for (const nonce of nonces) note(nonce, await claim(nonce, createdSeconds));
    expect([...passed.values()].every((count) => count <= 1)).toBe(true);
    expect(await claim(fresh())).toBe(true);
  });

  it('is not given up while its answer waits to be read', async () => {
    const quick = redisReplayStore(ioredisClient(redis), { key: 'quick', timeoutMs: 50 });
    await quick.check();
    const answer = quick.check();
    await new Promise(setImmediate);
    const untilMs = performance.now() + 200;
    while (performance.now() < untilMs);
    await expect(answer).resolves.toMatchObject({ readyAtMs: expect.any(Number) });
  });

  it.each([
    ['nothing', null],
    ['a word', 'OK'],
    ['a verdict alone', ['claimed']],
    ['an unknown verdict', ['yes', 1_800_000_000_000]],
    ['no time', ['claimed', 'now']],
    ['no floor', ['floor', 1_800_000_000_000, null]],
    ['truth', true],
  ])('is not taken for one that was answered when the reply is %s', async (_title, reply) => {
    const broken = redisReplayStore({ send: async () => reply }, { clock: time });
    await outage(claim(fresh(), nowSeconds(), broken));
    await outage(broken.check());
  });

  it('fails as an outage however the client fails', async () => {
    const failures = [new Error('READONLY You cannot write'), new Error('LOADING Redis is loading the dataset in memory'), 'text', null];
    for (const failure of failures) {
      const broken = redisReplayStore({ send: () => Promise.reject(failure) });
      await outage(claim(fresh(), nowSeconds(), broken));
    }
    const throwing = redisReplayStore({
      send: () => {
        throw new Error('at once');
      },
    });
    await outage(claim(fresh(), nowSeconds(), throwing));
  });

  it('needs no more rights than the documentation names', async () => {
    const nonces = '~keyguard:nonces +eval +evalsha +info +time +zscore +zadd +zrem +zrangebyscore';
    const limits = '~keyguard:limit:* +set +get +incrby +pttl +expire +multi +exec';
    await server.ask('ACL', 'SETUSER', 'keyguard', 'reset', 'on', '>secret', ...nonces.split(' '));
    const least = await connectIoredis(server.url.replace('//', '//keyguard:secret@'));
    const by = open(least);
    const nonce = fresh();
    expect(await claim(nonce, undefined, by)).toBe(true);
    expect(await claim(nonce)).toBe(false);
    time.advance(LIFE_MS + 2000);
    expect(await claim(fresh(), undefined, by)).toBe(true);
    await expect(least.set('x', 'y')).rejects.toThrow('NOPERM');
    const limiter = redisRateLimiter(least, { perMinute: 5, prefix: 'keyguard:limit:device' });
    await outage(limiter.consume('d', 1));
    await server.ask('ACL', 'SETUSER', 'keyguard', ...limits.split(' '));
    expect(await limiter.consume('d', 1)).toMatchObject({ allowed: true });
    expect(await limiter.peek('d')).toMatchObject({ allowed: true, remaining: 3 });
    least.disconnect();
  });
});

describe('options', () => {
  it('are refused when they are none', () => {
    const client = ioredisClient(redis);
    for (const options of [{ timeoutMs: 0 }, { timeoutMs: 1.5 }, { timeoutMs: 60_001 }, { isolatedMasterMs: -1 }, { isolatedMasterMs: Number.NaN }]) {
      expect(() => redisReplayStore(client, options)).toThrow(expect.objectContaining({ code: 'invalid_option' }));
    }
    expect(() => redisReplayStore(null as never)).toThrow(expect.objectContaining({ code: 'invalid_option' }));
  });
});

describe('a socket that says nothing', () => {
  it('costs a claim its time and no more, and the connection that has gone dead is given up', async () => {
    const proxy = await proxyTo(server.port);
    const through = await connectIoredis(`redis://127.0.0.1:${proxy.port}`);
    expect(await claim(fresh(), undefined, open(through))).toBe(true);
    const by = open(through, 200);

    proxy.cut();
    const startedMs = performance.now();
    expect((await outage(claim(fresh(), undefined, by))).message).toContain('200 ms');
    expect(performance.now() - startedMs).toBeLessThan(1000);
    await untilStatus(through, 'close');
    // No connection now: not even the time is waited for.
    const laterMs = performance.now();
    await outage(claim(fresh(), undefined, by));
    expect(performance.now() - laterMs).toBeLessThan(150);

    proxy.mend();
    await untilStatus(through, 'ready');
    expect(await claim(fresh(), undefined, open(through))).toBe(true);
    through.disconnect();
    proxy.close();
  });
});

describe('redisRateLimiter', () => {
  it('counts for all processes together, and looks without counting', async () => {
    const other = await connectIoredis(server.url);
    const [here, there] = [redis, other].map((connection) => redisRateLimiter(connection, { perMinute: 3, prefix: 'keyguard:device' }));
    const elsewhere = redisRateLimiter(redis, { perMinute: 3, prefix: 'keyguard:ip' });
    expect(await here!.peek('d')).toMatchObject({ allowed: true, limit: 3, remaining: 2 });
    expect(await here!.peek('d')).toMatchObject({ allowed: true, limit: 3, remaining: 2 });
    expect(await here!.consume('d', 1)).toMatchObject({ allowed: true, remaining: 2 });
    expect(await there!.consume('d', 2)).toMatchObject({ allowed: true, remaining: 0 });
    expect(await here!.peek('d')).toMatchObject({ allowed: false, remaining: 0 });
    const refused = await there!.consume('d', 1);
    expect(refused).toMatchObject({ allowed: false, limit: 3, remaining: 0 });
    expect(refused.resetAtMs).toBeGreaterThan(Date.now());
    expect(refused.resetAtMs).toBeLessThanOrEqual(Date.now() + 60_000);
    expect(await there!.consume('d', 1, 10)).toMatchObject({ allowed: true, limit: 10 });
    expect(await elsewhere.peek('d')).toMatchObject({ allowed: true, remaining: 2 });
    other.disconnect();
  });

  it('is exact under a race', async () => {
    const limiter = redisRateLimiter(redis, { perMinute: 10, prefix: 'race' });
    const decisions = await Promise.all(Array.from({ length: 100 }, () => limiter.consume('d', 1)));
    expect(decisions.filter(({ allowed }) => allowed)).toHaveLength(10);
  });

  it('throws when it cannot count: at once without a connection, within its time when nothing comes back', async () => {
    const limiter = redisRateLimiter(redis, { perMinute: 10, prefix: 'outage' });
    await limiter.peek('d');
    server.freeze();
    try {
      const startedMs = performance.now();
      for (const error of await Promise.all([outage(limiter.peek('d')), outage(limiter.consume('d', 1))])) expect(error.seam).toBe('rate_limiter');
      expect(performance.now() - startedMs).toBeLessThan(1000);
    } finally {
      server.thaw();
    }
    redis.disconnect();
    await outage(limiter.consume('d', 1));
  });

  it('is not made of a client that would keep commands for later', () => {
    const patient = { status: 'ready', options: { enableOfflineQueue: true } };
    expect(() => redisRateLimiter(patient, { perMinute: 1, prefix: 'x' })).toThrow(expect.objectContaining({ code: 'invalid_option' }));
    expect(() => redisRateLimiter({ status: 'ready', options: {} }, { perMinute: 1, prefix: 'x' })).toThrow(expect.objectContaining({ code: 'invalid_option' }));
  });
});
