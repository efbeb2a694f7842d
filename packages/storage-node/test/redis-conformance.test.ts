/** The store keeps the contract of its seam on a real Redis, by either client. */
import { injectFaults, replayStoreConformance, type Faults } from '@keyguard/conformance';
import { startRedisServer, type RedisServer } from '@keyguard/conformance/redis-server';
import { afterAll, beforeAll, describe, inject } from 'vitest';
import { redisReplayStore } from '../src/redis.ts';
import { CLIENTS, movedTime } from './redis-clients.ts';

const PROCESSES = 5;
// Longer than by default, so that a machine which is busy with something else is not taken for a Redis that hangs.
const TIMEOUT_MS = 3000;

describe.each(CLIENTS)('$title', ({ title, connect }) => {
  let server: RedisServer;
  beforeAll(async () => {
    server = await startRedisServer(inject('redisServer')!);
  });
  afterAll(() => server.stop());

  replayStoreConformance(`redisReplayStore by ${title}`, async () => {
    const connections = await Promise.all(Array.from({ length: PROCESSES }, () => connect(server.url)));
    const time = movedTime();
    const injected = injectFaults({ failure: () => new Error('Connection is closed.'), full: () => new Error('Redis itself says so.') });
    const faults: Faults = {
      ...injected,
      // A real one: it lets be read what is there, and takes nothing more.
      fill: async () => void (await server.ask('CONFIG', 'SET', 'maxmemory', '1')),
      async calm() {
        injected.calm();
        await server.ask('CONFIG', 'SET', 'maxmemory', '0');
      },
    };
    const stores = connections.map(({ client }) => {
      const moved = time.wrap(client);
      return redisReplayStore({ send: (command) => injected.through(() => moved.send(command)) }, { clock: time, timeoutMs: TIMEOUT_MS });
    });
    const { readyAtMs } = await stores[0]!.check();
    time.advance(readyAtMs - time.nowMs());
    return {
      store: stores[0]!,
      peer: stores[1]!,
      morePeers: stores.slice(2),
      nowMs: time.nowMs,
      advance: time.advance,
      forget: async () => {
        await stores[0]!.check();
      },
      faults,
      boundMs: TIMEOUT_MS,
      break: () => server.kill(),
      close: () => {
        for (const { close } of connections) close();
      },
    };
  });
});
