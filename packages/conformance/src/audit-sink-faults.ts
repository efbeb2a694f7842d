/**
 * An {@link AuditSink} on a substrate that goes wrong. The chain verifies at any time; what was acknowledged is in it once, in the
 * place that was told; what was not is in it once and whole, or not at all, for an answer may be lost after the commit.
 */
import { isUnavailable } from '@keyguard/core/errors';
import type { AuditEntry, AuditRecord, AuditSink, JsonValue } from '@keyguard/core/seams';
import { expect } from 'vitest';
import type { AuditSinkSubject } from './audit-sink.ts';
import type { Cases } from './cases.ts';
import { endings, endingsOverHang, errorsOf, FAILING_SHARE, failureDraw, faultsOf, seeded, valuesOf, type Ending } from './faults.ts';

export interface AuditSinkSuite<Tx> {
  subject(): AuditSinkSubject<Tx>;
  /** All records, verified. */
  chain(): Promise<AuditRecord[]>;
  entry(more?: Readonly<Record<string, JsonValue>>): AuditEntry;
  content(record: AuditRecord): Record<string, JsonValue>;
}

const ROUNDS = 12;
const CALLERS = 10;

export function auditSinkFaultCases<Tx>(it: Cases, { subject, chain, entry, content }: AuditSinkSuite<Tx>): void {
  type Call = () => Promise<readonly AuditRecord[]>;

  const batch = (caller: string, i: number): AuditEntry[] => Array.from({ length: (i % 3) + 1 }, (_, part) => entry({ caller, part }));

  const append = (sink: AuditSink<Tx>, caller: string, i: number): Call => () => sink.append(batch(caller, i));

  const appendIn = (caller: string, i: number): Call => () => subject().transaction!((tx) => subject().peer.appendIn(tx, batch(caller, i)));

  /** That each call's entries are in the chain as they must be, given how it ended. */
  async function expectKept(calls: ReadonlyMap<string, { readonly entries: number; readonly ending: Ending<readonly AuditRecord[]> }>): Promise<void> {
    const records = await chain();
    for (const [caller, { entries, ending: end }] of calls) {
      const own = records.filter((record) => content(record)['caller'] === caller);
      if ('value' in end) expect(own, caller).toEqual(end.value);
      if ('value' in end || own.length > 0) {
        expect(own.map((record) => content(record)['part']), caller).toEqual(Array.from({ length: entries }, (_, part) => part));
        expect(own.at(-1)!.seq - own[0]!.seq, caller).toBe(entries - 1);
      }
    }
  }

  it.failing('keeps a chain in which each acknowledged entry is once, while every fifth call of the substrate fails, before or after it has acted', async () => {
    const faults = faultsOf(subject());
    const all = new Map<string, { entries: number; ending: Ending<readonly AuditRecord[]> }>();
    const appendErrors: unknown[] = [];
    const draw = failureDraw(3);
    await faults.fail(FAILING_SHARE, draw.random);
    for (let round = 0; round < ROUNDS; round += 1) {
      const callers = Array.from({ length: CALLERS }, (_, i) => `failing ${round}.${i}`);
      const calls = callers.map((caller, i) => (i % 3 === 2 ? appendIn(caller, i) : append(i % 2 === 0 ? subject().sink : subject().peer, caller, i)));
      const ends = await endings(calls);
      for (const [i, caller] of callers.entries()) {
        all.set(caller, { entries: (i % 3) + 1, ending: ends[i]! });
        if (i % 3 !== 2) appendErrors.push(...errorsOf([ends[i]!]));
      }
    }
    await faults.calm();
    for (const error of appendErrors) expect(isUnavailable(error), String(error)).toBe(true);
    const ends = [...all.values()].map((one) => one.ending);
    // Neither all nor nothing failed, or this shows nothing.
    expect(draw.hits()).toBeGreaterThan(ROUNDS);
    expect(valuesOf(ends).length).toBeGreaterThan(ROUNDS);
    await expectKept(all);
    const [last] = await subject().sink.append([entry()]);
    expect((await chain()).at(-1)).toEqual(last);
  });

  it.hanging('acknowledges nothing while the substrate hangs, and has nothing twice once it goes on', async () => {
    const callers = Array.from({ length: 2 * CALLERS }, (_, i) => `hanging ${i}`);
    const calls = callers.map((caller, i) => append(i % 2 === 0 ? subject().sink : subject().peer, caller, i));
    const ends = await endingsOverHang(faultsOf(subject()), seeded(4), undefined, calls);
    for (const error of errorsOf(ends)) expect(isUnavailable(error), String(error)).toBe(true);
    await expectKept(new Map(callers.map((caller, i) => [caller, { entries: (i % 3) + 1, ending: ends[i]! }])));
    await subject().peer.append([entry()]);
    await chain();
  });

  it.full('throws and keeps nothing while there is no room, can be read, and goes on when there is', async () => {
    const faults = faultsOf(subject());
    await subject().sink.append([entry()]);
    const before = await chain();
    await faults.fill();
    const ends = await endings([
      ...Array.from({ length: CALLERS }, (_, i) => append(i % 2 === 0 ? subject().sink : subject().peer, `full ${i}`, i)),
      appendIn('full in a transaction', 1),
    ]);
    expect(valuesOf(ends)).toEqual([]);
    for (const error of errorsOf(ends.slice(0, CALLERS))) expect(isUnavailable(error), String(error)).toBe(true);
    expect(await chain()).toEqual(before);
    await faults.calm();
    const after = await Promise.all([append(subject().sink, 'after', 2)(), append(subject().peer, 'after too', 2)()]);
    expect((await chain()).slice(before.length)).toHaveLength(after.flat().length);
  });
}
