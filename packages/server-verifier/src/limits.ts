/**
 * Rate limits: one in the memory of this process, which answers at once, and a thin wrapper that gives `rate-limiter-flexible`, whatever
 * its store, the shape of core's {@link RateLimiter}.
 */
import { UnavailableError, UsageError } from '@keyguard/core/errors';
import type { RateDecision, RateLimiter } from '@keyguard/core/seams';
import { RateLimiterRedis, type RateLimiterAbstract, type RateLimiterRes } from 'rate-limiter-flexible';
import { TIMED_OUT, within } from './deadline.ts';
import { elapsedMs, present, type Moment } from './elapsed.ts';

const MINUTE_MS = 60_000;

/** A {@link RateLimiter} over any limiter of `rate-limiter-flexible`; its `points` are the default limit per `duration`. */
export function rateLimiter(limiter: RateLimiterAbstract): RateLimiter {
  const decide = (result: RateLimiterRes | null, limit: number, ahead: number): RateDecision => {
    const consumed = (result?.consumedPoints ?? 0) + ahead;
    return {
      allowed: consumed <= limit,
      limit,
      remaining: Math.max(0, limit - consumed),
      resetAtMs: Date.now() + (result?.msBeforeNext ?? limiter.duration * 1000),
    };
  };
  const failed = (cause: unknown): never => {
    throw new UnavailableError('rate_limiter', 'The store of the limiter could not be asked.', { cause });
  };
  return {
    peek(key: string, limit: number = limiter.points): Promise<RateDecision> {
      return limiter.get(key).then((result) => decide(result, limit, 1), failed);
    },
    // `penalty` counts without comparing, so that one limiter serves devices with limits of their own.
    consume(key: string, cost: number, limit: number = limiter.points): Promise<RateDecision> {
      return limiter.penalty(key, cost).then((result) => decide(result, limit, 0), failed);
    },
  };
}

/** How much a key may cost in this process. */
export interface MemoryRateLimiterOptions {
  /** Cost units per minute and key. */
  readonly perMinute: number;
}

interface Window {
  readonly began: Moment;
  consumed: number;
}

/**
 * Counts in this process only: with several processes each lets the whole limit through. The minute of a key begins with its first
 * request. Holds the keys of the last two minutes, and no timer.
 */
export function memoryRateLimiter({ perMinute }: MemoryRateLimiterOptions): RateLimiter {
  let windows = new Map<string, Window>();
  // Those that began in the minute before, some of which are still open.
  let before = new Map<string, Window>();
  let turned = present();

  function openWindow(key: string, now: Moment): Window | undefined {
    const sinceTurnMs = elapsedMs(turned, now);
    if (sinceTurnMs >= MINUTE_MS) {
      before = sinceTurnMs < 2 * MINUTE_MS ? windows : new Map();
      windows = new Map();
      turned = now;
    }
    const found = windows.get(key) ?? before.get(key);
    return found !== undefined && elapsedMs(found.began, now) < MINUTE_MS ? found : undefined;
  }

  const decide = (window: Window | undefined, now: Moment, limit: number, ahead: number): RateDecision => {
    const consumed = (window?.consumed ?? 0) + ahead;
    const leftMs = window === undefined ? MINUTE_MS : MINUTE_MS - elapsedMs(window.began, now);
    return { allowed: consumed <= limit, limit, remaining: Math.max(0, limit - consumed), resetAtMs: now.wallMs + Math.ceil(leftMs) };
  };

  return {
    peek(key: string, limit: number = perMinute): RateDecision {
      const now = present();
      return decide(openWindow(key, now), now, limit, 1);
    },
    consume(key: string, cost: number, limit: number = perMinute): RateDecision {
      const now = present();
      let window = openWindow(key, now);
      if (window === undefined) {
        window = { began: now, consumed: 0 };
        windows.set(key, window);
      }
      window.consumed += cost;
      return decide(window, now, limit, 0);
    },
  };
}

/** The part of an `ioredis` client that is used, besides what `rate-limiter-flexible` calls. */
export interface LimiterRedis {
  readonly status: string;
  readonly options: { readonly enableOfflineQueue?: boolean | undefined };
}

/** How much a key may cost in all processes that share the Redis. */
export interface RedisRateLimiterOptions {
  /** Cost units per minute and key. */
  readonly perMinute: number;
  /** What the names of all keys begin with. Limiters that share it count together. */
  readonly prefix: string;
  /** Within how many milliseconds both verbs answer or throw. Default 200. */
  readonly timeoutMs?: number;
}

/**
 * Counts in Redis or Valkey, for all processes together, by a client of ioredis that was made with `ioredisOptions` of
 * `@keyguard/storage-node/redis`. Without Redis nobody is let through. A Redis that forgot begins to count anew.
 * @throws UsageError `invalid_option` for a client that would keep commands until there is a connection
 */
export function redisRateLimiter(redis: LimiterRedis, { perMinute, prefix, timeoutMs = 200 }: RedisRateLimiterOptions): RateLimiter {
  if (redis?.options?.enableOfflineQueue !== false) {
    throw new UsageError('invalid_option', 'redis must be an ioredis client made with enableOfflineQueue: false.');
  }
  const limiter = rateLimiter(
    new RateLimiterRedis({ storeClient: redis, points: perMinute, duration: 60, keyPrefix: prefix, rejectIfRedisNotReady: true }),
  );
  const bounded = (decision: RateDecision | Promise<RateDecision>): Promise<RateDecision> =>
    within(timeoutMs, Promise.resolve(decision), (cause) =>
      cause === TIMED_OUT ? new UnavailableError('rate_limiter', `Redis did not answer within ${timeoutMs} ms.`) : (cause as Error),
    );
  return {
    peek: (key, limit): Promise<RateDecision> => bounded(limiter.peek(key, limit)),
    consume: (key, cost, limit): Promise<RateDecision> => bounded(limiter.consume(key, cost, limit)),
  };
}
