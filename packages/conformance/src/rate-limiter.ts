/**
 * What every {@link RateLimiter} must keep: within a window no more is let through than the limit says, however many ask at once and
 * wherever; also while what it is built on fails, hangs or is full.
 */
import { isUnavailable } from '@keyguard/core/errors';
import type { MaybePromise, RateDecision, RateLimiter } from '@keyguard/core/seams';
import { afterAll, beforeAll, describe, expect } from 'vitest';
import { casesOf } from './cases.ts';
import { endings, endingsOverHang, errorsOf, FAILING_SHARE, failureDraw, faultsOf, seeded, valuesOf, type Ending, type Faults, type Substrate } from './faults.ts';

/** A limiter to be judged, with what the suite needs beside it. */
export interface RateLimiterSubject {
  /** Lets {@link RATE_LIMIT} cost units through in a window. */
  readonly limiter: RateLimiter;
  /** The same counts as another process sees them; the same limiter where it is for one process only. */
  readonly peer: RateLimiter;
  /** The clock of all, which stands still but for {@link advance}, or runs with the time of day besides. */
  nowMs(): number;
  /** Lets so many milliseconds pass. */
  advance(ms: number): MaybePromise<void>;
  /** How long a window is. */
  readonly windowMs: number;
  /** To how many milliseconds windows end when they say. Default 1. More only where the clock runs, or the substrate has its own. */
  readonly precisionMs?: number;
  /** Left out in memory. */
  readonly faults?: Faults;
  /** Within how many milliseconds both verbs answer or throw, where the limiter promises that. */
  readonly boundMs?: number;
  /** Takes away what the limiter is built on. The last thing that is done to a subject. */
  break?(): MaybePromise<void>;
  /** Gives everything back. */
  close?(): MaybePromise<void>;
}

/** On what the limiter stands. */
export interface RateLimiterConformanceOptions {
  /** Default `external`. */
  readonly substrate?: Exclude<Substrate, 'bounded'>;
}

/** What the limiter of a subject lets through in a window. */
export const RATE_LIMIT = 10;
const RACING = 100;
const ATTEMPTS = 5;

/** `open` makes a subject that has counted nothing. */
export function rateLimiterConformance(
  title: string,
  open: () => MaybePromise<RateLimiterSubject>,
  { substrate = 'external' }: RateLimiterConformanceOptions = {},
): void {
  describe(`${title} keeps the contract of RateLimiter`, { timeout: 30_000 }, () => {
    const it = casesOf('RateLimiter', title);
    let subject: RateLimiterSubject;
    let serial = 0;

    beforeAll(async () => {
      subject = await open();
    }, 120_000);
    afterAll(() => subject?.close?.());

    const fresh = (): string => `key-${(serial += 1)}`;
    const limiter = (i: number): RateLimiter => (i % 2 === 0 ? subject.limiter : subject.peer);
    const consumers = (key: string, count: number, cost = 1): (() => Promise<RateDecision>)[] =>
      Array.from({ length: count }, (_, i) => async () => limiter(i).consume(key, cost));
    const allowed = (all: readonly RateDecision[]): number => all.filter((decision) => decision.allowed).length;

    function expectOutages(all: readonly Ending<unknown>[]): void {
      for (const error of errorsOf(all)) expect(isUnavailable(error), String(error)).toBe(true);
    }

    it.contract('debits what something costs, and says what is left and until when', async () => {
      const key = fresh();
      const before = subject.nowMs();
      const decisions: RateDecision[] = [];
      for (const cost of [4, 6, 1]) decisions.push(await subject.limiter.consume(key, cost));
      expect(decisions.map(({ allowed, limit, remaining }) => [allowed, limit, remaining])).toEqual([
        [true, RATE_LIMIT, 6],
        [true, RATE_LIMIT, 0],
        [false, RATE_LIMIT, 0],
      ]);
      const precisionMs = subject.precisionMs ?? 1;
      for (const { resetAtMs } of decisions) {
        expect(resetAtMs).toBeGreaterThan(before);
        expect(resetAtMs).toBeLessThanOrEqual(subject.nowMs() + subject.windowMs + precisionMs);
      }
      // A window ends when it was to end, whoever knocks meanwhile.
      expect(decisions[2]!.resetAtMs).toBeLessThanOrEqual(decisions[0]!.resetAtMs + precisionMs);
    });

    it.contract('looks without debiting, and decides as it would for a cost of 1', async () => {
      const key = fresh();
      for (let i = 0; i < 2 * RATE_LIMIT; i += 1) expect(await limiter(i).peek(key)).toMatchObject({ allowed: true, limit: RATE_LIMIT, remaining: RATE_LIMIT - 1 });
      await subject.limiter.consume(key, RATE_LIMIT - 1);
      expect(await subject.peer.peek(key)).toMatchObject({ allowed: true, remaining: 0 });
      await subject.peer.consume(key, 1);
      expect(await subject.limiter.peek(key)).toMatchObject({ allowed: false, remaining: 0 });
      expect((await subject.peer.peek(key)).allowed).toBe(false);
    });

    it.contract('takes a limit that is handed in for its own', async () => {
      const key = fresh();
      expect(await subject.limiter.consume(key, 1, 2)).toMatchObject({ allowed: true, limit: 2, remaining: 1 });
      expect(await subject.peer.consume(key, 1, 2)).toMatchObject({ allowed: true, limit: 2, remaining: 0 });
      expect(await subject.limiter.consume(key, 1, 2)).toMatchObject({ allowed: false, limit: 2, remaining: 0 });
      expect(await subject.limiter.peek(key, 2)).toMatchObject({ allowed: false, limit: 2 });
      expect(await subject.peer.peek(key, 100)).toMatchObject({ allowed: true, limit: 100 });
    });

    it.contract('counts each key by itself, to the letter', async () => {
      const keys = [fresh(), 'a', 'A', 'a:', ':a', 'a b', '__proto__', 'constructor', '\u00e9', 'e\u0301', 'k'.repeat(300), `${'k'.repeat(300)}k`];
      for (const key of keys) expect(await subject.limiter.consume(key, 1), key).toMatchObject({ remaining: RATE_LIMIT - 1 });
      for (const key of keys) expect(await subject.peer.consume(key, 1), key).toMatchObject({ remaining: RATE_LIMIT - 2 });
    });

    it.races(`lets as many of ${RACING} racing callers through as the limit says, whichever process they reach`, async () => {
      for (const [cost, most] of [[1, RATE_LIMIT], [3, 3], [RATE_LIMIT, 1], [RATE_LIMIT + 1, 0]] as const) {
        const decisions = await Promise.all(consumers(fresh(), RACING, cost).map((call) => call()));
        expect(allowed(decisions), `at ${cost} each`).toBe(most);
      }
    });

    it.expiry('forgets a window when it said it would end, and not before', async () => {
      const precisionMs = subject.precisionMs ?? 1;
      for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
        const key = fresh();
        const { resetAtMs } = await subject.limiter.consume(key, RATE_LIMIT);
        await subject.advance(resetAtMs - precisionMs - subject.nowMs());
        const [early, looked] = [await subject.peer.consume(key, 1), await subject.limiter.peek(key)];
        // Where the clock runs, the window may have ended meanwhile; then this was no evidence, and another key is.
        const wasEarly = subject.nowMs() < resetAtMs;
        await subject.advance(Math.max(0, resetAtMs + (subject.precisionMs ?? 0) - subject.nowMs()));
        expect(await subject.peer.peek(key)).toMatchObject({ allowed: true });
        expect(await subject.limiter.consume(key, RATE_LIMIT)).toMatchObject({ allowed: true, remaining: 0 });
        if (!wasEarly) continue;
        expect([early.allowed, looked.allowed]).toEqual([false, false]);
        return;
      }
      throw new Error('This machine was too busy to look before a window ended.');
    });

    if (substrate === 'memory') return;

    it.failing('lets no more through than the limit says while every fifth call of the substrate fails, before or after it has acted', async () => {
      const faults = faultsOf(subject);
      for (let round = 0; round < 4; round += 1) {
        const key = fresh();
        const draw = failureDraw(80 + round);
        await faults.fail(FAILING_SHARE, draw.random);
        const ends = await endings(consumers(key, RACING / 2));
        await faults.calm();
        ends.push(...(await endings(consumers(key, 2 * RATE_LIMIT))));
        expectOutages(ends);
        expect(draw.hits()).toBeGreaterThan(0);
        expect(allowed(valuesOf(ends))).toBeGreaterThan(0);
        expect(allowed(valuesOf(ends))).toBeLessThanOrEqual(RATE_LIMIT);
      }
    });

    it.hanging('lets nobody through while the substrate hangs, and no more than the limit says once it goes on', async () => {
      const key = fresh();
      const ends = await endingsOverHang(faultsOf(subject), seeded(90), subject.boundMs, [
        ...consumers(key, 2 * RATE_LIMIT),
        async () => subject.limiter.peek(key),
      ]);
      expectOutages(ends);
      ends.splice(2 * RATE_LIMIT, 1);
      ends.push(...(await endings(consumers(key, 2 * RATE_LIMIT))));
      expect(allowed(valuesOf(ends))).toBeLessThanOrEqual(RATE_LIMIT);
      expect(await subject.limiter.consume(fresh(), 1)).toMatchObject({ allowed: true });
    });

    it.full('throws while there is no room, and goes on when there is', async () => {
      const faults = faultsOf(subject);
      const keys = Array.from({ length: RATE_LIMIT }, fresh);
      await faults.fill();
      const ends = await endings(keys.map((key, i) => async () => limiter(i).consume(key, 1)));
      await faults.calm();
      expect(valuesOf(ends)).toEqual([]);
      expectOutages(ends);
      for (const key of keys) expect(await subject.peer.consume(key, RATE_LIMIT)).toMatchObject({ allowed: true, remaining: 0 });
    });

    it.failing('throws when what it is built on is gone', async () => {
      if (subject.break === undefined) await faultsOf(subject).fail(1, () => 0);
      else await subject.break();
      const ends = await endings([async () => subject.limiter.consume(fresh(), 1), async () => subject.limiter.peek(fresh())]);
      expect(valuesOf(ends)).toEqual([]);
      expectOutages(ends);
    });
  });
}
