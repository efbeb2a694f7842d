import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ConfigError, readConfig } from '../../src/config.ts';
import { LIST_PRICES } from '../../src/usage/list-prices.ts';
import { priceDocument, priceList, type TokenCounts } from '../../src/usage/prices.ts';

const LIST = priceList({
  source: 'a list',
  providers: {
    acme: {
      small: { input: 0.0375, output: 0.15 },
      large: { input: 2, output: 10, cached_input: 0.2, cache_write: 2.5, long: { above_input_tokens: 1000, input: 4, output: 20 } },
      'large-pro': { input: 100, output: 600 },
    },
  },
});
const counts = (inputTokens: number | null, outputTokens: number | null, cachedInputTokens: number | null = null, cacheWriteTokens: number | null = null): TokenCounts => ({
  inputTokens, outputTokens, cachedInputTokens, cacheWriteTokens,
});
const microsOf = (model: string | null, usage: TokenCounts, provider = 'acme'): number | null => LIST.costOf(provider, model, usage)?.micros ?? null;

describe('the cost of a call', () => {
  it.each([
    ['input and output', 'large', counts(100, 10), 100 * 2 + 10 * 10],
    ['what came out of a cache', 'large', counts(100, 0, 60), 40 * 2 + 60 * 0.2],
    ['what was put into one', 'large', counts(100, 0, 60, 20), 20 * 2 + 12 + 20 * 2.5],
    ['a cache, where the list has no price of it', 'small', counts(1_000_000, 0, 1_000_000), 37_500],
    ['long input, all of it, and at the usual price a token before', 'large', counts(1001, 1), 4004 + 20],
    ['long input at its edge', 'large', counts(1000, 1), 2000 + 10],
    ['long input whose cached part has no price of its own', 'large', counts(2000, 0, 500), 8000],
    ['less than one: half a micro-dollar and more is one', 'small', counts(14, 0), 1],
    ['less than half', 'small', counts(13, 0), 0],
    ['what the provider says of its cache and cannot be', 'large', counts(10, 0, 99, 99), 2],
    ['output alone', 'large', counts(null, 5), 50],
  ])('counts %s', (_title, model, usage, expected) => {
    expect(microsOf(model, usage)).toBe(Math.round(expected));
  });

  it.each(['large', 'large-2026-01-31', 'large-20260131', 'large-001', 'large-0709', 'large-latest', 'large-preview', 'large-preview-09-2025'])('takes %s for the model', (model) => {
    expect(microsOf(model, counts(1, 0))).toBe(2);
  });

  it.each(['larger', 'large-', 'large-x', 'Large', 'large-mini', 'x-large', 'large-20', '__proto__', 'constructor', ''])('has no price for %j', (model) => {
    expect(microsOf(model, counts(1, 1))).toBeNull();
  });

  it('is not nothing where it is not known', () => {
    expect([microsOf(null, counts(1, 1)), microsOf('large', counts(null, null)), microsOf('large', counts(1, 1), 'other'), microsOf('large', counts(1, 1), '__proto__')]).toEqual([null, null, null, null]);
    expect(LIST.costOf('acme', 'large-pro-latest', counts(1, 0))).toEqual({ micros: 100, source: 'a list' });
  });

  it('is exact where doubles are not', () => {
    expect(microsOf('large-pro', counts(1_000_000_000_000, 1_000_000_000_001))).toBe(700_000_000_000_600);
    fc.assert(
      fc.property(fc.nat(10_000_000), fc.nat(10_000_000), (input, output) => {
        // In units of a hundredth of a nano-dollar, by another way.
        const sum = BigInt(input) * 3750n + BigInt(output) * 15_000n;
        expect(microsOf('small', counts(input, output))).toBe(Number((sum + 50_000n) / 100_000n));
      }),
    );
  });

  it('is at most what the dearest model of the provider takes, where the model is not known', () => {
    expect(LIST.atMost('acme', 'large', { input: 10, output: 10 })?.micros).toBe(25 + 100);
    expect(LIST.atMost('acme', 'unheard-of', { input: 10, output: 10 })?.micros).toBe(1000 + 6000);
    expect(LIST.atMost('acme', null, { input: 10, output: 10 })?.micros).toBe(7000);
    expect(LIST.atMost('other', 'large', { input: 10, output: 10 })).toBeNull();
  });
});

describe('a list of prices', () => {
  it('that is built in has the form, and the models that people call', () => {
    expect(priceDocument.safeParse(LIST_PRICES).success).toBe(true);
    const builtIn = priceList(LIST_PRICES);
    const known = [['openai', 'gpt-4o-2024-08-06'], ['azure', 'gpt-4o-mini-2024-07-18'], ['anthropic', 'claude-sonnet-4-5-20250929'], ['anthropic', 'claude-opus-4-20250514'], ['google', 'gemini-2.5-flash']] as const;
    expect(known.map(([provider, model]) => builtIn.costOf(provider, model, counts(1_000_000, 0))?.micros)).toEqual([2_500_000, 150_000, 6_000_000, 15_000_000, 300_000]);
  });

  it('of the operator is read at the start, with all its faults at once', () => {
    const folder = mkdtempSync(join(tmpdir(), 'keyguard-prices-'));
    const read = (text: string): unknown => {
      writeFileSync(join(folder, 'prices.json'), text);
      try {
        return readConfig({ KEYGUARD_PRICES_FILE: 'prices.json' }, folder).prices;
      } catch (error) {
        return error instanceof ConfigError ? error.message : error;
      }
    };
    const list = { source: 'a contract', providers: { openai: { m: { input: 1, output: 2 } } } };
    expect(read(JSON.stringify(list))).toEqual(list);
    expect(read('{')).toMatch(/KEYGUARD_PRICES_FILE: the file is not JSON/);
    const wrong = read(JSON.stringify({ source: '', providers: { openai: { m: { input: -1, output: 2, cheap: true } } } }));
    expect(wrong).toMatch(/source/);
    expect(wrong).toMatch(/providers\.openai\.m\.input/);
    expect(() => readConfig({ KEYGUARD_PRICES_FILE: 'none.json' }, folder)).toThrow(/KEYGUARD_PRICES_FILE: the file cannot be read \(ENOENT\)/);
    rmSync(folder, { recursive: true });
  });
});
