/** Redis or Valkey, where more than one process serves: the nonces that all of them have seen, and the counts of their limits. */
import { Redis } from 'ioredis';
import { UnavailableError } from '@keyguard/core/errors';
import type { RateLimiter } from '@keyguard/core/seams';
import { redisRateLimiter } from '@keyguard/server-verifier';
import { ioredisClient, ioredisOptions, redisReplayStore, type RedisReplayStore } from '@keyguard/storage-node/redis';

const CONNECT_MS = 5000;

export interface SharedStore {
  readonly replayStore: RedisReplayStore;
  /** A limiter whose counts no other name shares. */
  limiter(name: string, perMinute: number): RateLimiter;
  close(): void;
}

/**
 * Resolves when Redis can be used. `onError` hears once of each outage; connections are made anew by themselves.
 * @throws UnavailableError, saying what the operator must change
 */
export async function openRedis(url: string, onError: (error: Error) => void): Promise<SharedStore> {
  const redis = new Redis(url, { ...ioredisOptions });
  let lastError: Error | undefined;
  redis.on('error', (error: Error) => {
    if (lastError === undefined) onError(error);
    lastError = error;
  });
  redis.on('ready', () => {
    lastError = undefined;
  });
  const replayStore = redisReplayStore(ioredisClient(redis));
  try {
    await new Promise<void>((resolve, reject) => {
      const late = (): void => reject(new UnavailableError('redis', 'Redis cannot be reached: is it running where REDIS_URL says?', { cause: lastError }));
      const timer = setTimeout(late, CONNECT_MS);
      redis.once('ready', () => {
        clearTimeout(timer);
        resolve();
      });
    });
    await replayStore.check();
  } catch (error) {
    redis.disconnect();
    throw error;
  }
  return {
    replayStore,
    limiter: (name, perMinute) => redisRateLimiter(redis, { perMinute, prefix: `keyguard:limit:${name}` }),
    close: () => redis.disconnect(),
  };
}
