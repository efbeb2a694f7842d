/** Limiters that follow the settings: how much is allowed is asked anew each time, and what was counted stays. */
import type { MaybePromise, RateDecision, RateLimiter } from '@keyguard/core/seams';

/** `limiter`, with `perMinute` in place of its own limit. Where `perMinute` throws, nobody is let through. */
export function following(limiter: RateLimiter, perMinute: () => number): RateLimiter {
  return {
    peek: (key, limit): MaybePromise<RateDecision> => limiter.peek(key, limit ?? perMinute()),
    consume: (key, cost, limit): MaybePromise<RateDecision> => limiter.consume(key, cost, limit ?? perMinute()),
  };
}
