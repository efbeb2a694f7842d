/** Ten thousand copies of one request at once, at four processes: one passes. */
import { startRedisServer, type RedisServer } from '@keyguard/conformance/redis-server';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, expect, inject, it } from 'vitest';
import { ioredisClient, redisReplayStore } from '../src/redis.ts';
import { raceProcesses } from './one-acceptance.ts';
import { connectIoredis } from './redis-clients.ts';
import { signingDevice } from './signed-requests.ts';

const PROCESSES = 4;
const COPIES = 10_000;

let server: RedisServer;
beforeAll(async () => {
  server = await startRedisServer(inject('redisServer')!);
});
afterAll(() => server.stop());

it(`lets one of ${COPIES} copies pass that reach ${PROCESSES} processes`, { timeout: 180_000 }, async () => {
  const redis = await connectIoredis(server.url);
  const { readyAtMs } = await redisReplayStore(ioredisClient(redis)).check();
  redis.disconnect();
  await pause(readyAtMs - Date.now());
  const { device, sign } = await signingDevice();
  const outcomes = await raceProcesses(PROCESSES, {
    store: { kind: 'redis', url: server.url },
    device,
    request: await sign(Date.now()),
    copies: COPIES / PROCESSES,
  });
  expect(outcomes).toEqual({ accepted: 1, replay_detected: COPIES - 1 });
});
