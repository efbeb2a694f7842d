/**
 * What every {@link KeyRecords} must keep: of all who start at once with keys of their own, all go on with the same ones; also while
 * what it is built on fails, hangs or is full.
 */
import { isUnavailable } from '@keyguard/core/errors';
import type { KeyRecord, KeyRecords, MaybePromise } from '@keyguard/core/seams';
import { afterAll, beforeAll, describe, expect } from 'vitest';
import { casesOf } from './cases.ts';
import { endings, endingsOverHang, errorsOf, FAILING_SHARE, failureDraw, seeded, valuesOf, type Ending, type Faults } from './faults.ts';

/** A store of wrapped keys to be judged, with what the suite needs beside it. */
export interface KeyRecordsSubject {
  readonly records: KeyRecords;
  /** The same records as another process sees them. */
  readonly peer: KeyRecords;
  readonly faults: Faults;
  /** Takes away what the records are built on. The last thing that is done to a subject. */
  break?(): MaybePromise<void>;
  /** Gives everything back. */
  close?(): MaybePromise<void>;
}

const RACING = 100;
const PURPOSES = 3;

/** `open` makes a subject without records. */
export function keyRecordsConformance(title: string, open: () => MaybePromise<KeyRecordsSubject>): void {
  describe(`${title} keeps the contract of KeyRecords`, { timeout: 30_000 }, () => {
    const it = casesOf('KeyRecords', title);
    let subject: KeyRecordsSubject;
    let serial = 0;

    beforeAll(async () => {
      subject = await open();
    }, 120_000);
    afterAll(() => subject?.close?.());

    function record(more: Partial<KeyRecord> = {}): KeyRecord {
      serial += 1;
      const id = `key-${String(serial).padStart(6, '0')}`;
      return { id, purpose: `purpose-${serial}`, state: 'primary', wrapped: new Uint8Array([serial % 256, 0, 255]), rootId: 'root', createdAtMs: 1_800_000_000_000 + serial, ...more };
    }
    const newPurposes = (): string[] => Array.from({ length: PURPOSES }, () => `shared-${(serial += 1)}`);
    /** As many starts, each with a key of its own for each purpose. */
    const starts = (purposes: readonly string[], count: number): (() => Promise<readonly KeyRecord[]>)[] =>
      Array.from({ length: count }, (_, i) => async () =>
        (i % 2 === 0 ? subject.records : subject.peer).insertIfAbsent(purposes.toReversed().map((purpose) => record({ purpose }))),
      );
    const among = (all: readonly KeyRecord[], purposes: readonly string[]): KeyRecord[] => all.filter(({ purpose }) => purposes.includes(purpose));

    /** That there is one key for each purpose, and that whoever had an answer had it with these. */
    async function expectAgreed(purposes: readonly string[], ends: readonly Ending<readonly KeyRecord[]>[]): Promise<void> {
      for (const error of errorsOf(ends)) expect(isUnavailable(error), String(error)).toBe(true);
      const kept = among(await subject.records.list(), purposes);
      for (const answer of valuesOf(ends)) expect(among(answer, purposes)).toEqual(kept);
      expect(new Set(kept.map(({ purpose }) => purpose)).size).toBe(kept.length);
      if (valuesOf(ends).length > 0) expect(kept).toHaveLength(purposes.length);
      const later = await starts(purposes, 1)[0]!();
      expect(among(later, purposes)).toEqual(expect.arrayContaining(kept));
      expect(among(later, purposes)).toHaveLength(purposes.length);
    }

    it.contract('begins empty, and is not changed by looking', async () => {
      expect(await subject.records.list()).toEqual([]);
      expect(await subject.records.insertIfAbsent([])).toEqual([]);
      expect(await subject.peer.list()).toEqual([]);
    });

    it.contract('keeps what it was given to the byte, oldest first, and answers with all of it', async () => {
      const younger = record({ state: 'decrypt-only', createdAtMs: 1_700_000_000_002, wrapped: Uint8Array.from({ length: 256 }, (_, i) => i) });
      const older = record({ state: 'disabled', createdAtMs: 1_700_000_000_001, purpose: "o'k \u{1f511}", rootId: 'root "2"' });
      const oldest = record({ state: 'destroyed', createdAtMs: 1_700_000_000_000, wrapped: new Uint8Array() });
      expect(await subject.records.insertIfAbsent([younger, oldest, older])).toEqual([oldest, older, younger]);
      for (const one of [subject.records, subject.peer]) expect(await one.list()).toEqual([oldest, older, younger]);
    });

    it.contract('has one primary key for a purpose, and any number of others', async () => {
      const first = record();
      const { purpose } = first;
      await subject.records.insertIfAbsent([first]);
      const second = record({ purpose });
      const others = (['pre-active', 'decrypt-only', 'decrypt-only'] as const).map((state) => record({ purpose, state }));
      const answer = await subject.peer.insertIfAbsent([second, ...others]);
      expect(among(answer, [purpose])).toEqual([first, ...others]);
      const elsewhere = record({ purpose: purpose.toUpperCase() });
      expect(await subject.records.insertIfAbsent([elsewhere])).toContainEqual(elsewhere);
    });

    it.contract('changes nothing of a key whose id it has', async () => {
      const first = record();
      await subject.records.insertIfAbsent([first]);
      const before = await subject.records.list();
      expect(await subject.peer.insertIfAbsent([{ ...first, purpose: 'another', state: 'destroyed', wrapped: new Uint8Array(9), rootId: 'another' }])).toEqual(before);
    });

    it.races(`gives ${RACING} who start at once with keys of their own the same ones`, async () => {
      const purposes = newPurposes();
      const ends = await endings(starts(purposes, RACING));
      expect(errorsOf(ends)).toEqual([]);
      await expectAgreed(purposes, ends);
    });

    it.failing('gives all who are given any the same ones, while every fifth call of the substrate fails, before or after it has acted', async () => {
      for (let round = 0; round < 4; round += 1) {
        const purposes = newPurposes();
        const draw = failureDraw(100 + round);
        await subject.faults.fail(FAILING_SHARE, draw.random);
        const ends = await endings(starts(purposes, RACING / 4));
        await subject.faults.calm();
        expect(draw.hits()).toBeGreaterThan(0);
        await expectAgreed(purposes, ends);
      }
    });

    it.hanging('gives nobody any while the substrate hangs, and all the same ones once it goes on', async () => {
      const purposes = newPurposes();
      await expectAgreed(purposes, await endingsOverHang(subject.faults, seeded(110), undefined, starts(purposes, RACING / 10)));
    });

    it.full('throws while there is no room, shows what there is, and goes on when there is', async () => {
      const before = await subject.records.list();
      const purposes = newPurposes();
      await subject.faults.fill();
      const ends = await endings(starts(purposes, RACING / 10));
      const shown = await subject.peer.list();
      await subject.faults.calm();
      expect(valuesOf(ends)).toEqual([]);
      expect(shown).toEqual(before);
      expect(await subject.records.list()).toEqual(before);
      await expectAgreed(purposes, ends);
    });

    it.failing('throws when what it is built on is gone', async () => {
      if (subject.break === undefined) await subject.faults.fail(1, () => 0);
      else await subject.break();
      const ends = await endings<unknown>([async () => subject.records.list(), ...starts(newPurposes(), 1)]);
      expect(valuesOf(ends)).toEqual([]);
      for (const error of errorsOf(ends)) expect(isUnavailable(error), String(error)).toBe(true);
    });
  });
}
