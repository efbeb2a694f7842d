import { expect, it } from 'vitest';
import type { AuditEntry } from '@keyguard/core/seams';
import { strangers, type Strangers } from '../../src/audit/strangers.ts';

const ENTRY: AuditEntry = { action: 'request.refused', outcome: 'refused', actor: 'unknown', code: 'signature_invalid' };

function given(): { readonly bound: Strangers; readonly written: AuditEntry[]; readonly clock: { now: number }; fails: boolean } {
  const clock = { now: 60_000 };
  const written: AuditEntry[] = [];
  const all = {
    clock,
    written,
    fails: false,
    bound: strangers({
      clock: { nowMs: () => clock.now },
      perMinutePerKind: 5, perMinute: 50, summaries: 3,
      record: async (entry) => {
        if (all.fails) throw new Error('down');
        written.push(entry);
      },
    }),
  };
  return all;
}
const admitted = (bound: Strangers, address: string, times: number, code = 'signature_invalid'): number =>
  Array.from({ length: times }, () => bound.admit(`${code} ${address}`, { ...ENTRY, code }, address)).filter(Boolean).length;

it('a flood from one address is written a few times a minute, and the rest counted', async () => {
  const { bound, written, clock } = given();
  expect(admitted(bound, '192.0.2.1', 1000)).toBe(5);
  expect(admitted(bound, '192.0.2.1', 3, 'replay_detected')).toBe(3);
  await bound.flush();
  expect(written).toEqual([]);
  clock.now += 60_000;
  await bound.flush();
  expect(written).toEqual([{ action: 'request.refused_more', outcome: 'refused', actor: 'unknown', code: 'signature_invalid', ip: '192.0.2.1', stands_for: 995, minute: '1970-01-01T00:01:00.000Z' }]);
  expect(admitted(bound, '192.0.2.1', 1)).toBe(1);
});

it('a flood from ever new addresses makes the log no longer than one, fills no memory, and none is left out of the count', async () => {
  const { bound, written, clock } = given();
  let whole = 0;
  for (let i = 0; i < 20_000; i += 1) whole += admitted(bound, `2001:db8::${i}`, 1);
  expect(whole).toBe(50);
  clock.now += 60_000;
  await bound.flush();
  expect(written.length).toBe(4);
  expect(written.reduce((sum, entry) => sum + Number(entry['stands_for']), whole)).toBe(20_000);
  // The last one is for all whose addresses are not told.
  expect(written.at(-1)).not.toHaveProperty('ip');
});

it('tells so many kinds apart in a minute and no more, whoever comes: twice those that are written or told', async () => {
  for (const [perMinute, summaries] of [[50, 3], [3, 50]] as const) {
    const written: AuditEntry[] = [];
    const clock = { now: 60_000 };
    const bound = strangers({ clock: { nowMs: () => clock.now }, perMinutePerKind: 5, perMinute, summaries, record: async (entry) => void written.push(entry) });
    const count = (from: number, to: number): void => {
      for (let i = from; i < to; i += 1) bound.count(`rate_limited ${i}`, { code: 'rate_limited' }, `2001:db8::${i}`);
    };
    count(0, 99);
    expect(admitted(bound, 'the hundredth', 1)).toBe(1);
    expect(admitted(bound, 'one more', 1)).toBe(0);
    count(99, 1099);
    // Whoever was told apart still is.
    expect(admitted(bound, 'the hundredth', 1)).toBe(1);
    clock.now += 60_000;
    await bound.flush();
    expect(written.reduce((sum, entry) => sum + Number(entry['stands_for']), 2)).toBe(99 + 1 + 1 + 1000 + 1);
    // In the next minute there is room again.
    expect(admitted(bound, 'one more', 1)).toBe(1);
  }
});

it('what is not worth an entry of its own is counted, and told at the end of the minute', async () => {
  const { bound, written, clock } = given();
  for (let n = 0; n < 7; n += 1) bound.count('rate_limited a', { code: 'rate_limited' }, 'a');
  await bound.flush();
  expect(written).toEqual([]);
  clock.now += 60_000;
  await bound.flush();
  expect(written).toEqual([expect.objectContaining({ action: 'request.refused_more', code: 'rate_limited', ip: 'a', stands_for: 7 })]);
});

it('a flood while the log takes nothing, for a day and more, makes so many entries wait and no more, and none is left out of the count', async () => {
  const all = given();
  all.fails = true;
  let whole = 0;
  for (let minute = 0; minute < 2000; minute += 1) {
    for (let i = 0; i < 10; i += 1) whole += admitted(all.bound, `2001:db8::${i}`, 7, i % 2 === 0 ? 'signature_invalid' : 'replay_detected');
    all.clock.now += 60_000;
    await expect(all.bound.flush()).rejects.toThrow('down');
  }
  all.fails = false;
  await all.bound.flush();
  expect(all.written.length).toBeLessThanOrEqual(3 * 10 + 2);
  expect(all.written.reduce((sum, entry) => sum + Number(entry['stands_for']), whole)).toBe(2000 * 10 * 7);
  // And then as before.
  const before = all.written.length;
  admitted(all.bound, 'b', 7);
  all.clock.now += 60_000;
  await all.bound.flush();
  expect(all.written.slice(before)).toEqual([expect.objectContaining({ ip: 'b', stands_for: 2 })]);
});

it('what could not be written is written later, and what was counted last at the end', async () => {
  const all = given();
  admitted(all.bound, 'a', 10);
  all.clock.now += 60_000;
  all.fails = true;
  await expect(all.bound.flush()).rejects.toThrow('down');
  all.fails = false;
  admitted(all.bound, 'b', 7);
  await all.bound.flush(true);
  expect(all.written.map(({ ip, stands_for: count }) => [ip, count])).toEqual([['a', 5], ['b', 2]]);
});
