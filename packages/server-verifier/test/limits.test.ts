import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { RateLimiterMemory } from 'rate-limiter-flexible';
import type { RateDecision, RateLimiter } from '@keyguard/core/seams';
import { memoryRateLimiter, rateLimiter } from '@keyguard/server-verifier';

const MINUTE_MS = 60_000;

function workbench(perMinute: number): { limiter: RateLimiter; time: { nowMs: number } } {
  const time = { nowMs: 1_800_000_000_000 };
  return { time, limiter: memoryRateLimiter({ perMinute, clock: { nowMs: () => time.nowMs } }) };
}

describe('memoryRateLimiter', () => {
  it('lets exactly the limit through in a window, and as much again after it', async () => {
    const { limiter, time } = workbench(3);
    const window = [];
    for (let i = 0; i < 4; i += 1) window.push((await limiter.consume('a', 1)).allowed);
    expect(window).toEqual([true, true, true, false]);
    time.nowMs += MINUTE_MS - 1;
    expect((await limiter.consume('a', 1)).allowed).toBe(false);
    time.nowMs += 1;
    expect(await limiter.consume('a', 1)).toEqual({ allowed: true, limit: 3, remaining: 2, resetAtMs: time.nowMs + MINUTE_MS });
  });

  it('looks without debiting, and tells what a debit of one would', async () => {
    const { limiter } = workbench(1);
    for (let i = 0; i < 5; i += 1) expect((await limiter.peek('a')).allowed).toBe(true);
    expect((await limiter.consume('a', 1)).allowed).toBe(true);
    expect((await limiter.peek('a')).allowed).toBe(false);
  });

  it('counts every key by itself, and by the limit that the call names', async () => {
    const { limiter } = workbench(1);
    expect((await limiter.consume('a', 1)).allowed).toBe(true);
    expect((await limiter.consume('b', 1)).allowed).toBe(true);
    expect((await limiter.consume('a', 1, 2)).allowed).toBe(true);
    expect((await limiter.consume('a', 1, 2)).allowed).toBe(false);
  });

  it('does not lock a key out when the clock steps back', async () => {
    const { limiter, time } = workbench(1);
    await limiter.consume('a', 1);
    time.nowMs -= 3_600_000;
    expect((await limiter.consume('a', 1)).allowed).toBe(true);
    expect((await limiter.consume('a', 1)).allowed).toBe(false);
  });

  it('does not forget a live window while it forgets those that are over', async () => {
    const { limiter, time } = workbench(1);
    for (let i = 0; i < 1000; i += 1) await limiter.consume(`old${i}`, 1);
    time.nowMs += MINUTE_MS / 2;
    for (let i = 0; i < 100; i += 1) await limiter.consume(`live${i}`, 1);
    time.nowMs += MINUTE_MS / 2;
    for (let i = 0; i < 1000; i += 1) await limiter.consume(`new${i}`, 1);
    for (let i = 0; i < 100; i += 1) expect((await limiter.consume(`live${i}`, 1)).allowed).toBe(false);
    for (let i = 0; i < 1000; i += 1) expect((await limiter.consume(`old${i}`, 1)).allowed).toBe(true);
  });

  it('decides as rate-limiter-flexible does', async () => {
    const call = fc.record({
      verb: fc.constantFrom('peek' as const, 'consume' as const),
      key: fc.constantFrom('a', 'b'),
      cost: fc.integer({ min: 1, max: 4 }),
      limit: fc.option(fc.integer({ min: 1, max: 12 }), { nil: undefined }),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(call, { maxLength: 30 }), async (calls) => {
        const { limiter } = workbench(8);
        const theirs = rateLimiter(new RateLimiterMemory({ points: 8, duration: 60 }));
        const ask = (of: RateLimiter, { verb, key, cost, limit }: (typeof calls)[number]): RateDecision | Promise<RateDecision> =>
          verb === 'peek' ? of.peek(key, limit) : of.consume(key, cost, limit);
        for (const each of calls) {
          const { resetAtMs: _, ...expected } = await ask(theirs, each);
          expect(await ask(limiter, each)).toMatchObject(expected);
        }
      }),
    );
  });
});
