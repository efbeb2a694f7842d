/**
 * Rate limits: a thin wrapper that gives `rate-limiter-flexible`, whatever its store, the shape of core's {@link RateLimiter}.
 */
import type { RateDecision, RateLimiter } from '@keyguard/core/seams';
import { RateLimiterMemory, type RateLimiterAbstract, type RateLimiterRes } from 'rate-limiter-flexible';

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
  return {
    peek(key: string, limit: number = limiter.points): Promise<RateDecision> {
      return limiter.get(key).then((result) => decide(result, limit, 1));
    },
    // `penalty` counts without comparing, so that one limiter serves devices with limits of their own.
    consume(key: string, cost: number, limit: number = limiter.points): Promise<RateDecision> {
      return limiter.penalty(key, cost).then((result) => decide(result, limit, 0));
    },
  };
}

export interface MemoryRateLimiterOptions {
  /** Cost units per minute and key. */
  readonly perMinute: number;
}

/** Counts in this process only: with several processes each lets the whole limit through. */
export function memoryRateLimiter({ perMinute }: MemoryRateLimiterOptions): RateLimiter {
  return rateLimiter(new RateLimiterMemory({ points: perMinute, duration: 60 }));
}
