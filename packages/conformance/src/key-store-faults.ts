/**
 * A {@link KeyStore} on a substrate that goes wrong. Whoever is given a key of a name is given the same one, for ever; a promotion or
 * a discard is told to one caller at most, and a name is never left without a key, or with a weaker one.
 */
import { hasCode } from '@keyguard/core/errors';
import type { KeyStore, MaybePromise, SigningKey } from '@keyguard/core/seams';
import { expect } from 'vitest';
import type { Cases } from './cases.ts';
import { endings, endingsOverHang, errorsOf, FAILING_SHARE, failureDraw, faultsOf, seeded, valuesOf, type Ending, type Faults } from './faults.ts';
import { expectToSign, openAll, RACING, type OpenKeyStore } from './key-store-steps.ts';

export interface KeyStoreFaultSubject {
  readonly place: () => MaybePromise<OpenKeyStore>;
  readonly faults?: Faults;
  readonly boundMs?: number;
}

const ROUNDS = 4;
const CALLERS = 20;
const LONE_ROUNDS = 80;
const MAX_ATTEMPTS = 500;

/** Every other round fails less: where a verb is dozens of calls of the substrate, it would hardly ever come to its last ones. */
const shareOf = (round: number): number => (round % 2 === 0 ? FAILING_SHARE : FAILING_SHARE / 8);

function expectRefusals(all: readonly Ending<unknown>[]): void {
  for (const error of errorsOf(all)) expect(hasCode(error as Error, 'key_store_unusable'), String(error)).toBe(true);
}

const idsOf = (all: readonly Ending<SigningKey>[]): Set<string> => new Set(valuesOf(all).map(({ keyId }) => keyId));

export function keyStoreFaultCases(it: Cases, subject: KeyStoreFaultSubject): void {
  const { place, boundMs } = subject;
  const calls = <T>(stores: readonly KeyStore[], count: number, work: (store: KeyStore, i: number) => Promise<T>): (() => Promise<T>)[] =>
    Array.from({ length: count }, (_, i) => () => work(stores[i % stores.length]!, i));

  /** That every store, and one that is opened now, has this key under the name, and that it signs. */
  async function expectKey(open: OpenKeyStore, stores: readonly KeyStore[], name: string, keyId: string): Promise<void> {
    for (const store of [...stores, await open()]) expect((await store.get(name))?.keyId).toBe(keyId);
    await expectToSign((await stores[0]!.get(name))!);
  }

  /**
   * Given how promotions (even) and discards (odd) of one pending key ended, the key of the name, once it was seen to be the one that
   * it must be.
   */
  async function settledKey(stores: readonly KeyStore[], keyId: string, pendingId: string, ends: readonly Ending<boolean>[]): Promise<string> {
    const winners = ends.flatMap((end, i) => ('value' in end && end.value ? [i % 2 === 0 ? 'promoted' : 'discarded'] : []));
    expect(winners.length).toBeLessThanOrEqual(1);
    // Where everybody had an answer, somebody was told that it was him.
    if (errorsOf(ends).length === 0) expect(winners).toHaveLength(1);
    const current = (await stores[0]!.get('a'))!.keyId;
    const pending = (await stores[1]!.getPending('a'))?.keyId;
    // Nobody may have been told: then it was the one or the other, or neither, and all see the same.
    if (winners[0] === 'promoted') expect(current).toBe(pendingId);
    if (winners[0] === 'discarded') expect([current, pending]).toEqual([keyId, undefined]);
    expect([keyId, pendingId]).toContain(current);
    expect(pending === undefined || (pending === pendingId && current === keyId)).toBe(true);
    for (const store of stores) expect([(await store.get('a'))?.keyId, (await store.getPending('a'))?.keyId]).toEqual([current, pending]);
    if (pending !== undefined) expect(await stores[0]!.discard('a', pending)).toBe(true);
    return current;
  }

  it.failing('gives one key to all who are given one, while every fifth call of the substrate fails, before or after it has acted', async () => {
    const faults = faultsOf(subject);
    const draw = failureDraw(10);
    for (let round = 0; round < ROUNDS; round += 1) {
      const open = await place();
      const stores = await openAll(open);
      await faults.fail(shareOf(round), draw.random);
      const ends: Ending<SigningKey>[] = [];
      // Where a verb is dozens of calls of the substrate, few come through: whoever wants a key asks again.
      for (let attempt = 0; attempt < MAX_ATTEMPTS && (attempt < 2 || valuesOf(ends).length === 0); attempt += 1) {
        ends.push(...(await endings(calls(stores, CALLERS, (store) => store.getOrCreate('a')))));
      }
      await faults.calm();
      expectRefusals(ends);
      expect(idsOf(ends).size).toBe(1);
      const [keyId] = idsOf(ends);
      await expectKey(open, stores, 'a', keyId!);
      await expectToSign(valuesOf(ends)[0]!);
    }
    expect(draw.hits()).toBeGreaterThan(ROUNDS);
  });

  it.failing('gives one pending key, and lets one caller at most settle it, while calls fail; the name keeps the one key or the other', async () => {
    const faults = faultsOf(subject);
    const open = await place();
    const stores = await openAll(open);
    let { keyId } = await stores[0]!.getOrCreate('a');
    const draw = failureDraw(20);
    for (let round = 0; round < 4 * ROUNDS; round += 1) {
      await faults.fail(shareOf(round), draw.random);
      const pendings = await endings(calls(stores, CALLERS, (store) => store.getOrCreatePending('a')));
      await faults.calm();
      expectRefusals(pendings);
      expect(idsOf(pendings).size).toBeLessThanOrEqual(1);
      const pendingId = (await stores[0]!.getOrCreatePending('a')).keyId;
      for (const id of idsOf(pendings)) expect(id).toBe(pendingId);
      expect(pendingId).not.toBe(keyId);
      await faults.fail(shareOf(round), draw.random);
      const ends = await endings(
        calls(stores, CALLERS, (store, i) => (i % 2 === 0 ? store.promote('a', pendingId) : store.discard('a', pendingId))),
      );
      await faults.calm();
      expectRefusals(ends);
      keyId = await settledKey(stores, keyId, pendingId, ends);
      await expectKey(open, stores, 'a', keyId);
    }
    expect(draw.hits()).toBeGreaterThan(ROUNDS);
  });

  it.failing('tells a lone caller what it did: a yes has settled the pending key, a no has settled nothing', async () => {
    const faults = faultsOf(subject);
    const open = await place();
    const store = await open();
    let { keyId } = await store.getOrCreate('a');
    const draw = failureDraw(70);
    for (let round = 0; round < LONE_ROUNDS; round += 1) {
      const pendingId = (await store.getOrCreatePending('a')).keyId;
      const isPromotion = round % 2 === 0;
      await faults.fail(shareOf(round >> 1), draw.random);
      const ends = await endings([() => (isPromotion ? store.promote('a', pendingId) : store.discard('a', pendingId))]);
      await faults.calm();
      expectRefusals(ends);
      const [current, pending] = [(await store.get('a'))?.keyId, (await store.getPending('a'))?.keyId];
      const settled = isPromotion ? [pendingId, undefined] : [keyId, undefined];
      const told = valuesOf(ends)[0];
      // Nobody else could have settled it: whoever is told no after it was done would never look for the key that it has.
      if (told === true) expect([current, pending]).toEqual(settled);
      else if (told === false) expect([current, pending]).toEqual([keyId, pendingId]);
      else expect([[keyId, pendingId], settled]).toContainEqual([current, pending]);
      keyId = current!;
      if (pending !== undefined) expect(await store.discard('a', pending)).toBe(true);
    }
    expect(draw.hits()).toBeGreaterThan(ROUNDS);
  });

  it.failing('loses no key to calls that fail, and takes no failure for a key that is not there', async () => {
    const faults = faultsOf(subject);
    const open = await place();
    const stores = await openAll(open);
    const { keyId } = await stores[0]!.getOrCreate('a');
    const draw = failureDraw(60);
    await faults.fail(FAILING_SHARE, draw.random);
    const ends = await endings(
      calls<SigningKey | null>(stores, RACING, (store, i) => (i % 2 === 0 ? store.get('a') : store.getOrCreate('a'))),
    );
    await faults.calm();
    expectRefusals(ends);
    for (const key of valuesOf(ends)) expect(key?.keyId).toBe(keyId);
    expect(draw.hits()).toBeGreaterThan(0);
    await expectKey(open, stores, 'a', keyId);
  });

  it.hanging('gives nobody a key while the substrate hangs, and everybody the same one once it goes on', async () => {
    const faults = faultsOf(subject);
    const open = await place();
    const stores = await openAll(open);
    const { keyId: known } = await stores[0]!.getOrCreate('known');
    const ends = await endingsOverHang<SigningKey | null>(
      faults,
      seeded(61),
      boundMs,
      calls<SigningKey | null>(stores, CALLERS, (store, i) => (i % 4 === 3 ? store.get('known') : store.getOrCreate('a'))),
    );
    expectRefusals(ends);
    const { keyId } = await stores[0]!.getOrCreate('a');
    for (const [i, end] of ends.entries()) if ('value' in end) expect(end.value?.keyId).toBe(i % 4 === 3 ? known : keyId);
    await expectKey(open, stores, 'a', keyId);
    await expectKey(open, stores, 'known', known);
  });

  it.hanging('settles a pending key once, however late', async () => {
    const faults = faultsOf(subject);
    const open = await place();
    const stores = await openAll(open);
    const { keyId } = await stores[0]!.getOrCreate('a');
    const pendingId = (await stores[0]!.getOrCreatePending('a')).keyId;
    const ends = await endingsOverHang(
      faults,
      seeded(62),
      boundMs,
      calls(stores, CALLERS, (store, i) => (i % 2 === 0 ? store.promote('a', pendingId) : store.discard('a', pendingId))),
    );
    expectRefusals(ends);
    await expectKey(open, stores, 'a', await settledKey(stores, keyId, pendingId, ends));
  });

  it.full('throws while there is no room, keeps the keys that it has, and goes on when there is', async () => {
    const faults = faultsOf(subject);
    const open = await place();
    const stores = await openAll(open);
    const { keyId } = await stores[0]!.getOrCreate('a');
    await faults.fill();
    const ends = await endings([
      ...calls(stores, CALLERS, (store) => store.getOrCreate('b')),
      ...calls(stores, CALLERS, (store) => store.getOrCreatePending('a')),
    ]);
    expect(valuesOf(ends)).toEqual([]);
    expectRefusals(ends);
    for (const store of stores) expect([(await store.get('a'))?.keyId, await store.getPending('a'), await store.get('b')]).toEqual([keyId, null, null]);
    await faults.calm();
    const made = await Promise.all(calls(stores, CALLERS, (store) => store.getOrCreate('b')).map((call) => call()));
    expect(new Set(made.map((key) => key.keyId)).size).toBe(1);
    await expectKey(open, stores, 'b', made[0]!.keyId);
    await expectKey(open, stores, 'a', keyId);
    const pending = await stores[0]!.getOrCreatePending('a');
    expect(await stores[1]!.promote('a', pending.keyId)).toBe(true);
    await expectKey(open, stores, 'a', pending.keyId);
  });
}
