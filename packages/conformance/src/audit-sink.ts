/**
 * What every {@link AuditSink} must keep: one chain without a gap however many append at once, in the bytes that were sealed, with
 * each acknowledged entry once in its place; also while what it is built on fails, hangs or is full.
 */
import { verifyRecords } from '@keyguard/core/audit';
import { fromUtf8 } from '@keyguard/core/bytes';
import { hasCode, isUnavailable } from '@keyguard/core/errors';
import type { AuditEntry, AuditMacKey, AuditRecord, AuditSink, JsonValue, MaybePromise } from '@keyguard/core/seams';
import { afterAll, beforeAll, describe, expect } from 'vitest';
import { auditSinkFaultCases } from './audit-sink-faults.ts';
import { casesOf } from './cases.ts';
import { faultsOf, type Faults, type Substrate } from './faults.ts';

/** An audit sink to be judged, with what the suite needs beside it. */
export interface AuditSinkSubject<Tx> {
  readonly sink: AuditSink<Tx>;
  /** The same chain as another process continues it. */
  readonly peer: AuditSink<Tx>;
  readonly origin: string;
  readonly macKey: AuditMacKey;
  /** A transaction of the store: kept when `fn` resolves, undone when it throws. Left out where there are none. */
  readonly transaction?: <T>(fn: (tx: Tx) => Promise<T>) => Promise<T>;
  /** Left out in memory. {@link transaction} is under them too. */
  readonly faults?: Faults;
  /** Takes away what the sink is built on. The last thing that is done to a subject. */
  break?(): MaybePromise<void>;
  /** Gives everything back. */
  close?(): MaybePromise<void>;
}

/** On what the sink stands. */
export interface AuditSinkConformanceOptions {
  /** Default `external`. */
  readonly substrate?: Exclude<Substrate, 'bounded'>;
}

const RACING = 100;

/** `open` makes a subject whose chain is empty. */
export function auditSinkConformance<Tx>(
  title: string,
  open: () => MaybePromise<AuditSinkSubject<Tx>>,
  { substrate = 'external' }: AuditSinkConformanceOptions = {},
): void {
  describe(`${title} keeps the contract of AuditSink`, { timeout: 60_000 }, () => {
    const it = casesOf('AuditSink', title);
    let subject: AuditSinkSubject<Tx>;
    let serial = 0;

    beforeAll(async () => {
      subject = await open();
    }, 120_000);
    afterAll(() => subject?.close?.());

    const entry = (more: Readonly<Record<string, JsonValue>> = {}): AuditEntry => ({
      action: 'conformance.test',
      outcome: 'success',
      actor: 'user:1',
      serial: (serial += 1),
      ...more,
    });
    const content = ({ bytes }: AuditRecord): Record<string, JsonValue> => JSON.parse(fromUtf8(bytes)) as Record<string, JsonValue>;

    async function chain(): Promise<AuditRecord[]> {
      const records: AuditRecord[] = [];
      for await (const record of subject.sink.read(0)) records.push(record);
      const end = await verifyRecords(records, { origin: subject.origin, keys: new Map([[subject.macKey.keyId, subject.macKey]]) });
      expect(end.seq).toBe(records.length);
      expect(await subject.peer.head()).toEqual(records.at(-1) ?? null);
      return records;
    }

    it.contract('begins empty', async () => {
      expect(await subject.sink.head()).toBeNull();
      expect(await chain()).toEqual([]);
      expect(await subject.sink.append([])).toEqual([]);
    });

    it.contract('appends in order, and answers with what it keeps', async () => {
      const before = (await chain()).length;
      const one = await subject.sink.append([entry({ n: 1 }), entry({ n: 2 })]);
      const two = await subject.peer.append([entry({ n: 3 })]);
      const records = await chain();
      expect(records.slice(before)).toEqual([...one, ...two]);
      expect(records.slice(before).map((record) => content(record)['n'])).toEqual([1, 2, 3]);
      expect(one[0]!.seq).toBe(before);
    });

    it.races(`keeps one chain without a gap for ${RACING} who append at once, from two processes`, async () => {
      const before = (await chain()).length;
      const answers = await Promise.all(
        Array.from({ length: RACING }, (_, i) => {
          const sink = i % 2 === 0 ? subject.sink : subject.peer;
          return sink.append(Array.from({ length: (i % 3) + 1 }, () => entry({ caller: i })));
        }),
      );
      const records = (await chain()).slice(before);
      expect(records).toHaveLength(answers.flat().length);
      // Each caller's entries are there once, in a row, as it was told.
      for (const [i, own] of answers.entries()) {
        expect(own.map((record) => content(record)['caller'])).toEqual(Array.from({ length: (i % 3) + 1 }, () => i));
        expect(records.slice(own[0]!.seq - before, own.at(-1)!.seq + 1 - before)).toEqual(own);
      }
    });

    it.contract('keeps the bytes of whatever JSON can say', async () => {
      const hostile = {
        resource: `nul \0, quote ', backslash \\, ${'x'.repeat(20_000)}`,
        ip: 'é😀\u2028\ufeff',
        device_id: null,
        request_id: { z: 1, a: [1e21, -0.5, true, ''] },
        'a "name"': '$1 %s {}',
      } as const;
      const [record] = await subject.sink.append([entry(hostile)]);
      expect((await chain()).at(-1)).toEqual(record);
      expect(content(record!)).toMatchObject(hostile);
    });

    it.contract('reads on from any place', async () => {
      const records = await chain();
      const from = records.length - 2;
      const read: AuditRecord[] = [];
      for await (const record of subject.peer.read(from)) read.push(record);
      expect(read).toEqual(records.slice(from));
      for await (const record of subject.sink.read(records.length)) throw new Error(`There is no record ${record.seq}.`);
    });

    it.contract('refuses an entry that has no canonical form or takes a name of the chain, and nobody else with it', async () => {
      const before = (await chain()).length;
      const bad = [{ n: Number.NaN }, { text: '\ud800' }, { seq: 1 }, { ts: 'now' }, { origin: 'else' }];
      const good = Array.from({ length: 20 }, () => subject.sink.append([entry()]));
      const answers = await Promise.allSettled(bad.map((more) => subject.sink.append([entry(), entry(more)])));
      for (const answer of answers) {
        expect(answer.status === 'rejected' && (hasCode(answer.reason, 'json_not_canonical') || hasCode(answer.reason, 'invalid_option'))).toBe(true);
      }
      await Promise.all(good);
      expect(await chain()).toHaveLength(before + good.length);
    });

    if (substrate === 'memory') return;

    it.contract('appends in a transaction if and only if that is kept', async () => {
      const transaction = subject.transaction!;
      const before = (await chain()).length;
      const kept = await transaction((tx) => subject.sink.appendIn(tx, [entry({ kept: true }), entry({ kept: true })]));
      const lost = transaction(async (tx) => {
        await subject.sink.appendIn(tx, [entry({ kept: false })]);
        throw new Error('the caller changed its mind');
      });
      await expect(lost).rejects.toThrow('the caller changed its mind');
      const records = await chain();
      expect(records.slice(before)).toEqual(kept);
      await Promise.all(
        Array.from({ length: 20 }, (_, i) =>
          i % 2 === 0 ? transaction((tx) => subject.peer.appendIn(tx, [entry()])) : subject.sink.append([entry()]),
        ),
      );
      expect(await chain()).toHaveLength(before + 22);
    });

    auditSinkFaultCases(it, { subject: () => subject, chain, entry, content });

    it.failing('throws, and keeps nothing, when what it is built on is gone', async () => {
      if (subject.break === undefined) await faultsOf(subject).fail(1, () => 0);
      else await subject.break();
      const answers = await Promise.allSettled(Array.from({ length: 10 }, () => subject.sink.append([entry()])));
      for (const answer of answers) expect(answer.status === 'rejected' && isUnavailable(answer.reason)).toBe(true);
      expect(isUnavailable(await subject.sink.head().catch((thrown: unknown) => thrown))).toBe(true);
    });
  });
}
