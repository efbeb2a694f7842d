/** The store keeps the contract of its seam on a real Redis, by either client. */
import { replayStoreConformance } from '@keyguard/conformance';
import { startRedisServer, type RedisServer } from '@keyguard/conformance/redis-server';
import { afterAll, beforeAll, describe, inject } from 'vitest';
import { redisReplayStore } from '../src/redis.ts';
import { CLIENTS, movedTime } from './redis-clients.ts';

const PROCESSES = 5;

describe.each(CLIENTS)('$title', ({ title, connect }) => {
  let server: RedisServer;
  beforeAll(async () => {
    server = await startRedisServer(inject('redisServer')!);
  });
  afterAll(() => server.stop());

  replayStoreConformance(`redisReplayStore by ${title}`, async () => {
    const connections = await Promise.all(Array.from({ length: PROCESSES }, () => connect(server.url)));
    const time = movedTime();
    const stores = connections.map(({ client }) => redisReplayStore(time.wrap(client), { clock: time, timeoutMs: 10_000 }));
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
      break: () => server.kill(),
      close: () => {
        for (const { close } of connections) close();
      },
    };
  });
});
