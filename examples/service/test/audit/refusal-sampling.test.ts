import { describe, expect, it } from 'vitest';
import type { AuditEntry } from '@keyguard/core/seams';
import { refusalSampler } from '../../src/audit/refusal-sampling.ts';

const ENTRY: AuditEntry = { action: 'request.refused', outcome: 'refused', actor: 'unknown', code: 'replay_detected' };

describe('refusals', () => {
  it('are all written unless somebody says otherwise', () => {
    const sample = refusalSampler(() => ({ perMinute: 2, thenOneIn: 1 }));
    for (let i = 0; i < 100; i += 1) expect(sample('one', ENTRY)).toBe(ENTRY);
  });

  it('beyond the number of a minute leave each n-th, which says for how many it stands: none is lost from the count', () => {
    let nowMs = 0;
    const sample = refusalSampler(() => ({ perMinute: 3, thenOneIn: 10 }), { nowMs: () => nowMs });
    const written = (times: number): unknown[] => Array.from({ length: times }, () => sample('one', ENTRY)).filter((entry) => entry !== null).map((entry) => entry['stands_for'] ?? 1);
    expect(written(28)).toEqual([1, 1, 1, 10, 10]);
    // Another kind, or another caller, has a number of its own.
    expect(sample('other', ENTRY)).toBe(ENTRY);
    nowMs += 60_000;
    expect(written(3)).toEqual([6, 1, 1]);
  });

  it('are written when nobody knows how many shall be', () => {
    const sample = refusalSampler(() => {
      throw new Error('unknown');
    });
    for (let i = 0; i < 10; i += 1) expect(sample('one', ENTRY)).toBe(ENTRY);
  });

  it('of ten thousand kinds are counted each for itself; of one more, the kind that was known longest is forgotten', () => {
    const sample = refusalSampler(() => ({ perMinute: 1, thenOneIn: 1000 }), { nowMs: () => 0 });
    for (let i = 0; i < 10_000; i += 1) expect(sample(`kind ${i}`, ENTRY)).toBe(ENTRY);
    expect([sample('kind 0', ENTRY), sample('kind 9999', ENTRY)]).toEqual([null, null]);
    expect(sample('one more', ENTRY)).toBe(ENTRY);
    expect(sample('kind 1', ENTRY)).toBeNull();
    expect(sample('kind 0', ENTRY)).toBe(ENTRY);
  });

  it('of ever new kinds fill no memory, and are written', () => {
    const sample = refusalSampler(() => ({ perMinute: 1, thenOneIn: 1000 }));
    for (let i = 0; i < 25_000; i += 1) expect(sample(`kind ${i}`, ENTRY)).toBe(ENTRY);
  });
});
