/**
 * A {@link ReplayStore} on a substrate that goes wrong. Of all calls for a pair at most one answers `true`, ever; and a pair that was
 * answered `true` once is never claimable again, however ambiguous the answers between were.
 */
import { isUnavailable } from '@keyguard/core/errors';
import type { ReplayStore } from '@keyguard/core/seams';
import { expect } from 'vitest';
import type { Cases } from './cases.ts';
import { ending, endings, endingsOverHang, errorsOf, FAILING_SHARE, failureDraw, faultsOf, fullnessOf, seeded, valuesOf, type Ending, type Substrate } from './faults.ts';
import type { ReplayStoreSubject } from './replay-store.ts';

export interface ReplayStoreSuite {
  subject(): ReplayStoreSubject;
  stores(): readonly ReplayStore[];
  claim(nonce: string, store: ReplayStore): Promise<boolean>;
  fresh(): string;
}

const PAIRS = 40;
const COPIES = 5;

export function replayStoreFaultCases(it: Cases, suite: ReplayStoreSuite, substrate: Exclude<Substrate, 'memory'>): void {
  const { claim, fresh, stores } = suite;

  /** A copy for each of so many, over all the stores in turn. */
  const copies = (nonce: string, count: number): (() => Promise<boolean>)[] =>
    Array.from({ length: count }, (_, i) => () => claim(nonce, stores()[i % stores().length]!));

  const accepted = (all: readonly Ending<boolean>[]): number => valuesOf(all).filter(Boolean).length;

  function expectOutages(all: readonly Ending<unknown>[]): void {
    for (const error of errorsOf(all)) expect(isUnavailable(error), String(error)).toBe(true);
  }

  /** Claims it again, wherever; with those before, at most one may have been accepted, and nothing once one was. */
  async function expectOneAtMost(nonce: string, before: readonly Ending<boolean>[]): Promise<void> {
    const after = await endings(copies(nonce, stores().length));
    expect(errorsOf(after)).toEqual([]);
    expect(accepted(before) + accepted(after), nonce).toBeLessThanOrEqual(1);
    const last = await endings(copies(nonce, stores().length));
    expect(valuesOf(last), nonce).toEqual(stores().map(() => false));
  }

  if (substrate === 'external') {
    it.failing('accepts a pair once at most while every fifth call of the substrate fails, before or after it has acted, and never after', async () => {
      const faults = faultsOf(suite.subject());
      const nonces = Array.from({ length: PAIRS }, fresh);
      const draw = failureDraw(1);
      await faults.fail(FAILING_SHARE, draw.random);
      // The copies of a pair race, one pair after the other: a store may ask its substrate once for all that are there together.
      const answers: (readonly Ending<boolean>[])[] = [];
      for (const nonce of nonces) answers.push(await endings(copies(nonce, COPIES)));
      // A verifier's clients come again.
      const retried: (readonly Ending<boolean>[])[] = [];
      for (const nonce of nonces) retried.push(await endings(copies(nonce, COPIES)));
      await faults.calm();
      const all = nonces.map((nonce, i) => ({ nonce, ends: [...answers[i]!, ...retried[i]!] }));
      expectOutages(all.flatMap(({ ends }) => ends));
      // Neither all nor nothing failed, or this shows nothing.
      expect(draw.hits()).toBeGreaterThan(PAIRS / 2);
      expect(all.filter(({ ends }) => accepted(ends) === 1).length).toBeGreaterThan(PAIRS / 2);
      for (const { nonce, ends } of all) await expectOneAtMost(nonce, ends);
    });

    it.hanging('accepts nothing while the substrate hangs, and nothing twice once it goes on', async () => {
      const { boundMs } = suite.subject();
      const nonces = Array.from({ length: PAIRS / 2 }, fresh);
      const calls = nonces.flatMap((nonce) => copies(nonce, 2));
      const ends = await endingsOverHang(faultsOf(suite.subject()), seeded(2), boundMs, calls);
      expectOutages(ends);
      for (const [i, nonce] of nonces.entries()) await expectOneAtMost(nonce, ends.slice(2 * i, 2 * i + 2));
    });
  }

  it.full('throws while there is no room, forgets nothing for it, and goes on when there is', async () => {
    const faults = fullnessOf(suite.subject());
    const before = fresh();
    expect(await claim(before, stores()[0]!)).toBe(true);
    await faults.fill();
    const nonces = Array.from({ length: PAIRS / 4 }, fresh);
    const refused = await Promise.all(nonces.map((nonce) => endings(copies(nonce, 2))));
    expect(valuesOf(refused.flat())).toEqual([]);
    expectOutages(refused.flat());
    const again = await ending(() => claim(before, stores()[0]!));
    expectOutages([again]);
    expect(accepted([again])).toBe(0);
    await faults.calm();
    expect(await claim(before, stores()[0]!).catch((error: unknown) => !isUnavailable(error))).toBe(false);
    for (const [i, nonce] of nonces.entries()) await expectOneAtMost(nonce, refused[i]!);
    const after = fresh();
    expect(accepted(await endings(copies(after, COPIES)))).toBe(1);
  });
}
