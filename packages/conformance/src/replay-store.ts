/**
 * What every {@link ReplayStore} must keep: of all copies of a request one passes, however many arrive at once and wherever, and
 * what the store may have forgotten never passes again; also while what it is built on fails, hangs or is full.
 */
import { isUnavailable } from '@keyguard/core/errors';
import type { MaybePromise, ReplayStore } from '@keyguard/core/seams';
import { afterAll, beforeAll, describe, expect } from 'vitest';
import { casesOf } from './cases.ts';
import { faultsOf, type Faults, type Fullness, type Substrate } from './faults.ts';
import { replayStoreFaultCases } from './replay-store-faults.ts';

/** A replay store to be judged, with what the suite needs beside it. */
export interface ReplayStoreSubject {
  readonly store: ReplayStore;
  /** The same pairs as another process sees them; the same store where it is for one process only. */
  readonly peer: ReplayStore;
  /** The same pairs as still more processes see them. */
  readonly morePeers?: readonly ReplayStore[];
  /** The clock of all, which stands still but for {@link advance}, or runs with the time of day besides. */
  nowMs(): number;
  /** Lets so many milliseconds pass. */
  advance(ms: number): void;
  /** Gives the store the occasion to forget all that it may. */
  forget(): MaybePromise<void>;
  /** Left out in memory that has no bounds. */
  readonly faults?: Faults | Fullness;
  /** Within how many milliseconds `claim` answers or throws, where the store promises that. */
  readonly boundMs?: number;
  /** Takes away what the store is built on. The last thing that is done to a subject. */
  break?(): MaybePromise<void>;
  /** Gives everything back. */
  close?(): MaybePromise<void>;
}

/** On what the store stands. */
export interface ReplayStoreConformanceOptions {
  /** Default `external`. */
  readonly substrate?: Substrate;
}

const LIFE_MS = 360_000;
const RACING = 100;

/** `open` makes a subject that accepts requests dated now. */
export function replayStoreConformance(
  title: string,
  open: () => MaybePromise<ReplayStoreSubject>,
  { substrate = 'external' }: ReplayStoreConformanceOptions = {},
): void {
  describe(`${title} keeps the contract of ReplayStore`, { timeout: 30_000 }, () => {
    const it = casesOf('ReplayStore', title);
    let subject: ReplayStoreSubject;
    let serial = 0;

    beforeAll(async () => {
      subject = await open();
    }, 120_000);
    afterAll(() => subject?.close?.());

    const stores = (): readonly ReplayStore[] => [subject.store, subject.peer, ...(subject.morePeers ?? [])];
    const nowSeconds = (): number => Math.floor(subject.nowMs() / 1000);
    const fresh = (): string => `nonce-${String((serial += 1)).padStart(16, '0')}`;
    const claim = async (
      nonce: string,
      { store = subject.store, keyId = 'key-a', createdSeconds = nowSeconds(), lifeMs = LIFE_MS } = {},
    ): Promise<boolean> => store.claim(keyId, nonce, createdSeconds, createdSeconds * 1000 + lifeMs);
    const refused = async (work: Promise<boolean>): Promise<boolean> =>
      work.then(
        (claimed) => !claimed,
        (error: unknown) => isUnavailable(error),
      );

    it.contract('lets a pair pass once, and says so with a boolean', async () => {
      const nonce = fresh();
      expect(await claim(nonce)).toBe(true);
      for (const store of stores()) expect(await claim(nonce, { store })).toBe(false);
    });

    it.contract('tells pairs apart by key and by nonce, to the letter', async () => {
      const nonce = fresh();
      expect(await claim(nonce)).toBe(true);
      expect(await claim(nonce, { keyId: 'key-b' })).toBe(true);
      expect(await claim(nonce, { keyId: 'KEY-A' })).toBe(true);
      expect(await claim(nonce.toUpperCase())).toBe(true);
      expect(await claim('x', { keyId: 'key-c.y' })).toBe(true);
      expect(await claim('y.x', { keyId: 'key-c' })).toBe(true);
    });

    it.contract('takes a pair for the same whatever time it is claimed with', async () => {
      const nonce = fresh();
      const createdSeconds = nowSeconds();
      expect(await claim(nonce, { createdSeconds })).toBe(true);
      expect(await refused(claim(nonce, { createdSeconds: createdSeconds + 1 }))).toBe(true);
      expect(await refused(claim(nonce, { createdSeconds: createdSeconds - 1, store: subject.peer }))).toBe(true);
      expect(await refused(claim(nonce, { createdSeconds, lifeMs: LIFE_MS + 1 }))).toBe(true);
    });

    it.races(`lets one of ${RACING} racing copies pass, whichever process they reach`, async () => {
      for (let round = 0; round < 5; round += 1) {
        const nonce = fresh();
        const answers = await Promise.all(Array.from({ length: RACING }, (_, i) => claim(nonce, { store: stores()[i % stores().length]! })));
        expect(answers.filter(Boolean)).toHaveLength(1);
      }
    });

    it.expiry('remembers a pair to the last millisecond of its life', async () => {
      const nonce = fresh();
      const createdSeconds = nowSeconds();
      expect(await claim(nonce, { createdSeconds })).toBe(true);
      subject.advance(LIFE_MS / 2);
      await subject.forget();
      expect(await claim(nonce, { createdSeconds, store: subject.peer })).toBe(false);
      subject.advance(createdSeconds * 1000 + LIFE_MS - 1 - subject.nowMs());
      await subject.forget();
      expect(await claim(nonce, { createdSeconds })).toBe(false);
      subject.advance(1);
      await subject.forget();
      expect(await claim(nonce, { createdSeconds })).toBe(false);
    });

    it.expiry('remembers to the millisecond also what does not end with a second, and that is refused on both sides of it', async () => {
      const createdSeconds = nowSeconds();
      const lives = [1, 499, 500, 999].map((ms) => ({ nonce: fresh(), lifeMs: LIFE_MS + ms }));
      for (const { nonce, lifeMs } of lives) expect(await claim(nonce, { createdSeconds, lifeMs })).toBe(true);
      for (const { nonce, lifeMs } of lives) {
        for (const aroundMs of [-1, 0, 1]) {
          subject.advance(createdSeconds * 1000 + lifeMs + aroundMs - subject.nowMs());
          await subject.forget();
          expect(await refused(claim(nonce, { createdSeconds, lifeMs })), `${aroundMs} ms around ${lifeMs}`).toBe(true);
        }
      }
      for (const { nonce, lifeMs } of lives) expect(await refused(claim(nonce, { createdSeconds, lifeMs }))).toBe(true);
    });

    it.expiry('refuses an expired pair whether or not it is still there, and what it never saw from before its floor', async () => {
      const nonce = fresh();
      const createdSeconds = nowSeconds();
      expect(await claim(nonce, { createdSeconds })).toBe(true);
      subject.advance(LIFE_MS + 5000);
      expect(await refused(claim(nonce, { createdSeconds }))).toBe(true);
      await subject.forget();
      expect(await refused(claim(nonce, { createdSeconds }))).toBe(true);
      expect(await refused(claim(fresh(), { createdSeconds }))).toBe(true);
      expect(await refused(claim(fresh(), { createdSeconds: createdSeconds - 1 }))).toBe(true);
      expect(await claim(fresh())).toBe(true);
    });

    it.expiry('is not made to accept an old request by a clock that steps back', async () => {
      const nonce = fresh();
      const createdSeconds = nowSeconds();
      expect(await claim(nonce, { createdSeconds })).toBe(true);
      subject.advance(LIFE_MS + 5000);
      await subject.forget();
      subject.advance(-LIFE_MS - 5000);
      expect(await refused(claim(nonce, { createdSeconds }))).toBe(true);
      subject.advance(LIFE_MS + 5000);
    });

    it.races(`lets none of ${RACING} copies pass twice while it forgets`, async () => {
      const nonces = Array.from({ length: RACING }, fresh);
      const createdSeconds = nowSeconds();
      for (const answer of await Promise.all(nonces.map((nonce) => claim(nonce, { createdSeconds })))) expect(answer).toBe(true);
      subject.advance(LIFE_MS + 5000);
      const again = nonces.map((nonce, i) => refused(claim(nonce, { createdSeconds, store: stores()[i % stores().length]! })));
      const [answers] = await Promise.all([Promise.all(again), subject.forget()]);
      expect(answers.every(Boolean)).toBe(true);
    });

    if (substrate === 'memory') return;
    replayStoreFaultCases(it, { subject: () => subject, stores, claim: (nonce, store) => claim(nonce, { store }), fresh }, substrate);
    if (substrate === 'bounded') return;

    it.failing('throws, and lets nothing pass, when what it is built on is gone', async () => {
      if (subject.break === undefined) await faultsOf(subject).fail(1, () => 0);
      else await subject.break();
      expect(isUnavailable(await claim(fresh()).catch((thrown: unknown) => thrown))).toBe(true);
    });
  });
}
