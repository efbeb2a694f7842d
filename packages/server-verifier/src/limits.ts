/**
 * Rate limits: one that counts in this process, and a thin wrapper that gives `rate-limiter-flexible`, whatever its store, the
 * shape of core's {@link RateLimiter}.
 */
import type { Clock, RateDecision, RateLimiter } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import type { RateLimiterAbstract, RateLimiterRes } from 'rate-limiter-flexible';

const WINDOW_MS = 60_000;
const SWEPT_PER_WINDOW = 2;

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
    async peek(key: string, limit: number = limiter.points): Promise<RateDecision> {
      return decide(await limiter.get(key), limit, 1);
    },
    // `penalty` counts without comparing, so that one limiter serves devices with limits of their own.
    async consume(key: string, cost: number, limit: number = limiter.points): Promise<RateDecision> {
      return decide(await limiter.penalty(key, cost), limit, 0);
    },
  };
}

export interface MemoryRateLimiterOptions {
  /** Cost units per minute and key. */
  readonly perMinute: number;
  readonly clock?: Clock;
}

interface Window {
  consumed: number;
  readonly startedAtMs: number;
}

/**
 * Counts in this process only: with several processes each lets the whole limit through. It answers at once, without a promise:
 * three limits are asked per request, and promises with their time-outs cost a fifth of a signature check.
 */
export function memoryRateLimiter({ perMinute, clock = systemClock }: MemoryRateLimiterOptions): RateLimiter {
  // In the order in which they began, so the windows that are over come first.
  const windows = new Map<string, Window>();

  function current(key: string, nowMs: number): Window | undefined {
    const window = windows.get(key);
    // A clock that stepped back must not stretch a window.
    return window !== undefined && nowMs >= window.startedAtMs && nowMs < window.startedAtMs + WINDOW_MS ? window : undefined;
  }

  function begin(key: string, startedAtMs: number): Window {
    // Two out for one in: what is over is forgotten sooner than it comes, and no request pays for all.
    let swept = 0;
    for (const [other, window] of windows) {
      if (swept === SWEPT_PER_WINDOW || startedAtMs < window.startedAtMs + WINDOW_MS) break;
      windows.delete(other);
      swept += 1;
    }
    const window = { consumed: 0, startedAtMs };
    windows.delete(key);
    windows.set(key, window);
    return window;
  }

  const decide = (consumed: number, limit: number, startedAtMs: number): RateDecision => ({
    allowed: consumed <= limit,
    limit,
    remaining: Math.max(0, limit - consumed),
    resetAtMs: startedAtMs + WINDOW_MS,
  });

  return {
    peek(key: string, limit: number = perMinute): RateDecision {
      const nowMs = clock.nowMs();
      const window = current(key, nowMs);
      return decide((window?.consumed ?? 0) + 1, limit, window?.startedAtMs ?? nowMs);
    },
    consume(key: string, cost: number, limit: number = perMinute): RateDecision {
      const nowMs = clock.nowMs();
      const window = current(key, nowMs) ?? begin(key, nowMs);
      window.consumed += cost;
      return decide(window.consumed, limit, window.startedAtMs);
    },
  };
}
