/** The limiter keeps the contract of its seam on a real Redis, for several processes. */
import { injectFaults, RATE_LIMIT, rateLimiterConformance, type Faults, type InjectedFaults } from '@keyguard/conformance';
import { startRedisServer } from '@keyguard/conformance/redis-server';
import { redisRateLimiter } from '@keyguard/server-verifier';
import type { ChainableCommander, Redis } from 'ioredis';
import { inject, vi } from 'vitest';
import { connectIoredis } from './redis-clients.ts';

// Longer than by default, so that a machine which is busy with something else is not taken for a Redis that hangs.
const TIMEOUT_MS = 3000;
const PREFIX = 'keyguard:limit:test';
const WINDOW_MS = 60_000;

/** `target`, whose method of that name goes through `faults`. */
function over<T extends object>(target: T, faults: InjectedFaults, name: string, needsRoom: boolean): T {
  const changed: T = new Proxy(target, {
    get(inner, property): unknown {
      const value: unknown = Reflect.get(inner, property, inner);
      if (typeof value !== 'function') return value;
      return (...args: unknown[]): unknown => {
        const call = (): unknown => Reflect.apply(value, inner, args);
        if (property === name) return faults.through(call, needsRoom);
        const answer = call();
        if (property === 'multi') return over(answer as ChainableCommander, faults, 'exec', false);
        return answer === inner ? changed : answer;
      };
    },
  });
  return changed;
}

rateLimiterConformance('redisRateLimiter', async () => {
  const server = await startRedisServer(inject('redisServer')!);
  const connections: Redis[] = await Promise.all([connectIoredis(server.url), connectIoredis(server.url)]);
  const [ours] = connections as [Redis, Redis];
  const injected = injectFaults({ failure: () => new Error('Connection is closed.'), full: () => new Error('Redis itself says so.') });
  const faults: Faults = {
    ...injected,
    fill: async () => void (await server.ask('CONFIG', 'SET', 'maxmemory', '1')),
    async calm() {
      injected.calm();
      await server.ask('CONFIG', 'SET', 'maxmemory', '0');
    },
  };
  const limiters = connections.map((redis) =>
    redisRateLimiter(over(redis, injected, 'rlflxIncr', true), { perMinute: RATE_LIMIT, prefix: PREFIX, timeoutMs: TIMEOUT_MS }),
  );
  let movedMs = 0;
  const realNow = Date.now.bind(Date);
  const clock = vi.spyOn(Date, 'now').mockImplementation(() => realNow() + movedMs);
  return {
    limiter: limiters[0]!,
    peer: limiters[1]!,
    windowMs: WINDOW_MS,
    precisionMs: 500,
    nowMs: () => Date.now(),
    // Redis has no clock that could be moved; so the ends of all windows are.
    async advance(ms) {
      for (const key of await ours.keys(`${PREFIX}*`)) await ours.pexpire(key, (await ours.pttl(key)) - Math.round(ms));
      movedMs += ms;
    },
    faults,
    boundMs: TIMEOUT_MS,
    break: () => server.kill(),
    async close() {
      clock.mockRestore();
      for (const redis of connections) redis.disconnect();
      await server.stop();
    },
  };
});
