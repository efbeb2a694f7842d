import { describe, expect, it } from 'vitest';
import { allowedExpiry, defaultExpiry, longestExpiry, UNLIMITED_LIVES } from '../../src/secrets/lives.ts';

const NOW_MS = 1_800_000_000_000;
const days = (n: number): number => NOW_MS + n * 86_400_000;

describe('the lives of secrets', () => {
  it('are as long as anybody likes where the settings say nothing', () => {
    for (const one of [null, days(1), days(10_000)]) expect(allowedExpiry(UNLIMITED_LIVES, one, NOW_MS)).toBe(one);
    expect(defaultExpiry(UNLIMITED_LIVES, null, NOW_MS)).toBeNull();
    expect(defaultExpiry(UNLIMITED_LIVES, days(5), NOW_MS)).toBe(days(5));
  });

  it('are no longer than the longest, to the millisecond, and not without end', () => {
    const lives = { default_life_days: 10, max_life_days: 30 };
    expect(allowedExpiry(lives, days(30), NOW_MS)).toBe(days(30));
    for (const one of [null, days(30) + 1, days(400)]) expect(() => allowedExpiry(lives, one, NOW_MS)).toThrow('30 days at most');
  });

  it('are the usual one where nothing is said, or end with the value before', () => {
    const lives = { default_life_days: 10, max_life_days: null };
    expect(defaultExpiry(lives, null, NOW_MS)).toBe(days(10));
    expect(defaultExpiry(lives, days(5), NOW_MS)).toBe(days(5));
    expect(defaultExpiry(lives, days(50), NOW_MS)).toBe(days(10));
  });

  it('are no longer than the longest either where a new value brings along an end of its own', () => {
    const lives = { default_life_days: 10, max_life_days: 30 };
    expect(longestExpiry(lives, days(5), NOW_MS)).toBe(days(5));
    expect(longestExpiry(lives, days(3650), NOW_MS)).toBe(days(30));
    expect(longestExpiry(UNLIMITED_LIVES, days(3650), NOW_MS)).toBe(days(3650));
  });
});
