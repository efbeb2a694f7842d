/** Copies of one request at once, at four processes: one passes. KEYGUARD_COPIES says how many. */
import { startRedisServer, type RedisServer } from '@keyguard/conformance/redis-server';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, expect, inject, it } from 'vitest';
import { ioredisClient, redisReplayStore } from '../src/redis.ts';
import { raceProcesses } from './one-acceptance.ts';
import { connectIoredis } from './redis-clients.ts';
import { signingDevice } from './signed-requests.ts';

const PROCESSES = 4;
const COPIES = Number(process.env['KEYGUARD_COPIES'] ?? 1000);

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
  // A claim that reaches Redis more than a second after it was sent is not answered, which happens on a busy machine.
  const { accepted, replay_detected: replays = 0, store_unavailable: late = 0 } = outcomes;
  expect({ accepted, refused: replays + late }).toEqual({ accepted: 1, refused: COPIES - 1 });
  expect(replays).toBeGreaterThan(COPIES / 2);
});
