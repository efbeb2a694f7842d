/**
 * The promise of cached devices against a model, under random schedules: changes that become visible and are acknowledged at
 * different times, look-ups and polls that read at any moment between question and answer, failures, hangs, resets and clocks that
 * are set. Time is simulated.
 */
import fc from 'fast-check';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { isUnavailable } from '@keyguard/core/errors';
import type { ChangedDevices, Device } from '@keyguard/core/seams';
import { cachedDeviceRegistry, watchDeviceChanges } from '@keyguard/server-verifier';
import { device } from './registry-script.ts';

const MAX_STALE_MS = 1000;
const DEVICES = ['a', 'b', 'c'] as const;
type Name = (typeof DEVICES)[number];

const STEPS = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant('look up' as const), name: fc.constantFrom(...DEVICES) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constantFrom('change here' as const, 'change elsewhere' as const), name: fc.constantFrom(...DEVICES) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom('feed fails' as const, 'feed hangs' as const, 'feed resets' as const, 'registry fails' as const, 'all is well' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('set the clock' as const), byMs: fc.integer({ min: -5000, max: 5000 }) }) },
);
const SCHEDULE = fc.record({
  steps: fc.array(fc.record({ waitMs: fc.oneof(fc.integer({ min: 0, max: 20 }), fc.integer({ min: 0, max: 700 })), step: STEPS }), { minLength: 5, maxLength: 60 }),
  delays: fc.array(fc.oneof(fc.integer({ min: 0, max: 5 }), fc.integer({ min: 0, max: 400 })), { minLength: 7, maxLength: 31 }),
});

interface Change {
  readonly version: number;
  visibleAt: number;
  ackedAt: number;
  readonly here: boolean;
}

/** What it takes to notice that this test has become blind. */
interface Tally {
  answers: number;
  /** Answers that left out a change which had been acknowledged less than a second before. */
  behind: number;
  refusals: number;
}

async function play({ steps, delays }: typeof SCHEDULE extends fc.Arbitrary<infer T> ? T : never, tally: Tally): Promise<void> {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date', 'performance'] });
  const nowMs = (): number => performance.now();
  let drawn = 0;
  const pause = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, delays[(drawn += 1) % delays.length]));

  const truth = new Map<Name, Change[]>(DEVICES.map((name) => [name, []]));
  const log: Name[] = [];
  let feed: 'well' | 'fails' | 'hangs' | 'resets' = 'well';
  let registryFails = false;

  async function change(name: Name, here: boolean): Promise<void> {
    const changes = truth.get(name)!;
    const made: Change = { version: changes.length + 1, visibleAt: Infinity, ackedAt: Infinity, here };
    changes.push(made);
    await pause();
    // As a store has it: later changes of one device wait for earlier ones.
    while (changes.some(({ version, visibleAt }) => version < made.version && visibleAt === Infinity)) await pause();
    made.visibleAt = nowMs();
    log.push(name);
    await pause();
    if (here) watch.note(`device of ${name}`);
    made.ackedAt = nowMs();
  }

  const watch = watchDeviceChanges({
    async since(cursor): Promise<ChangedDevices> {
      const mode = feed;
      await pause();
      if (mode === 'hangs') await new Promise((resolve) => setTimeout(resolve, 1500));
      const end = log.length;
      const named = [...new Set(log.slice(Number(cursor ?? 0), end))].map((name) => `device of ${name}`);
      await pause();
      if (mode === 'fails') throw new Error('scripted');
      return { cursor: String(end), deviceIds: cursor === null || mode === 'resets' ? 'reset' : named };
    },
  });
  const cache = cachedDeviceRegistry(
    {
      async findByKeyId(keyId): Promise<Device | null> {
        const fails = registryFails;
        await pause();
        const visible = truth.get(keyId as Name)!.filter(({ visibleAt }) => visibleAt <= nowMs());
        const found = visible.length === 0 ? null : device(keyId, { label: String(visible.at(-1)!.version) });
        await pause();
        if (fails) throw new Error('scripted');
        return found;
      },
      enroll: () => ({ outcome: 'rejected' }),
      rotate: () => ({ outcome: 'rejected' }),
    },
    watch,
    { maxDevices: 2 },
  );

  const faults: string[] = [];
  async function lookUp(name: Name): Promise<void> {
    const askedAt = nowMs();
    let answer: Device | null;
    try {
      answer = await cache.findByKeyId(name);
    } catch (error) {
      tally.refusals += 1;
      if (!isUnavailable(error) && (error as Error).message !== 'scripted') faults.push(String(error));
      return;
    }
    const answeredAt = nowMs();
    const changes = truth.get(name)!;
    const got = answer === null ? 0 : Number(answer.label);
    // Of an unknown key: everything that was acknowledged before the question. Of a known one: what was acknowledged a second
    // before the answer, and what this process had made by then.
    const owed = changes.filter(({ ackedAt, here }) =>
      answer === null ? ackedAt < askedAt : ackedAt < answeredAt - MAX_STALE_MS || (here && ackedAt < answeredAt),
    );
    const least = Math.max(0, ...owed.map(({ version }) => version));
    if (got < least) faults.push(`${name} at ${answeredAt}: got ${got}, owed ${least} of ${JSON.stringify(changes)}`);
    tally.answers += 1;
    if (changes.some(({ version, ackedAt }) => version > got && ackedAt < answeredAt)) tally.behind += 1;
  }

  const running: Promise<void>[] = [];
  for (const { waitMs, step } of steps) {
    if (step.do === 'look up') running.push(lookUp(step.name));
    else if (step.do === 'change here' || step.do === 'change elsewhere') running.push(change(step.name, step.do === 'change here'));
    else if (step.do === 'set the clock') vi.setSystemTime(Date.now() + step.byMs);
    else if (step.do === 'registry fails') registryFails = true;
    else if (step.do === 'all is well') [feed, registryFails] = ['well', false];
    else feed = step.do === 'feed fails' ? 'fails' : step.do === 'feed hangs' ? 'hangs' : 'resets';
    await vi.advanceTimersByTimeAsync(waitMs);
    // One more everywhere: a stale answer that nobody asks for is found by nobody.
    running.push(...DEVICES.map(lookUp));
  }
  [feed, registryFails] = ['well', false];
  await vi.advanceTimersByTimeAsync(20_000);
  await Promise.all(running);

  // It heals: with a feed that answers in time, the newest state is what everyone gets.
  delays.fill(1);
  await vi.advanceTimersByTimeAsync(3000);
  for (const name of DEVICES) {
    const found = Promise.resolve(cache.findByKeyId(name));
    await vi.advanceTimersByTimeAsync(10);
    const newest = truth.get(name)!.length;
    expect((await found)?.label ?? '0').toBe(String(newest));
  }
  watch.stop();
  expect(faults).toEqual([]);
}

describe('a cached device, under any schedule', () => {
  afterEach(() => void vi.useRealTimers());

  it('is never given out without a change that was acknowledged a second ago, or that its own process made', async () => {
    const tally: Tally = { answers: 0, behind: 0, refusals: 0 };
    await fc.assert(
      fc.asyncProperty(SCHEDULE, async (schedule) => {
        try {
          await play({ ...schedule, delays: [...schedule.delays] }, tally);
        } finally {
          vi.useRealTimers();
        }
      }),
      { numRuns: 400 },
    );
    // Within its bound it does answer from what it keeps, and it does refuse.
    expect(tally.answers).toBeGreaterThan(10_000);
    expect(tally.behind).toBeGreaterThan(100);
    expect(tally.refusals).toBeGreaterThan(100);
  }, 120_000);
});
