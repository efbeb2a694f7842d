import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { condensedJson } from '../../src/llm/condensed-json.ts';

const MEBIBYTE = 1024 * 1024;

function condensed(json: string, size: number, maxBytes = MEBIBYTE): string | null {
  const taker = condensedJson(maxBytes);
  const bytes = Buffer.from(json);
  for (let i = 0; i < bytes.length; i += size) taker.take(bytes.subarray(i, i + size));
  return taker.rest()?.toString('utf8') ?? null;
}

/** What must be left, by a parser that shares nothing with it. */
function emptied(value: unknown): unknown {
  const short = (text: string): string => (Buffer.byteLength(JSON.stringify(text)) - 2 > 1024 ? '' : text);
  if (typeof value === 'string') return short(value);
  if (Array.isArray(value)) return value.map(emptied);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [short(name), emptied(one)]));
}

const long = fc.string({ unit: 'binary', minLength: 300, maxLength: 3000, size: 'max' });
const texts = fc.oneof(fc.string({ unit: fc.constantFrom('"', '\\', '\n', 'ä', 'a', '{', '\u2028') }), fc.string(), long);
const { value: values } = fc.letrec((tie) => ({
  value: fc.oneof({ maxDepth: 4 }, texts, fc.integer(), fc.constant(null), fc.array(tie('value'), { maxLength: 4 }), fc.dictionary(fc.string(), tie('value'), { maxKeys: 4 })),
}));

describe('condensedJson', () => {
  it('is the same JSON with its long texts emptied, however it comes', () => {
    fc.assert(
      fc.property(values, fc.integer({ min: 1, max: 5000 }), (value, size) => {
        expect(JSON.parse(condensed(JSON.stringify(value), size)!)).toEqual(emptied(value));
      }),
      { numRuns: 300 },
    );
  });

  it('leaves short texts as they are, to the byte', () => {
    const text = JSON.stringify({ 'a"\\': ['é\u0000', ''], b: -1.5e3 });
    for (const size of [1, 2, 3, 100]) expect(condensed(text, size)).toBe(text);
    for (const length of [1023, 1024, 1025]) expect(condensed(`["${'x'.repeat(length)}"]`, 7)).toBe(length > 1024 ? '[""]' : `["${'x'.repeat(length)}"]`);
  });

  it('reads events too: no text goes on behind the end of its line', () => {
    const events = `: it's 6" long\nevent: x\ndata: {"image":"${'A'.repeat(5000)}","type":"x"}\r\n\r\n`;
    expect(condensed(events, 100)).toBe(': it\'s 6" long\nevent: x\ndata: {"image":"","type":"x"}\r\n\r\n');
  });

  it('holds no more than it may, and says so', () => {
    expect(condensed('1,'.repeat(500), 10, 1000)).toBe('1,'.repeat(500));
    expect(condensed('1,'.repeat(501), 10, 1000)).toBeNull();
    expect(condensed(`["${'x'.repeat(MEBIBYTE)}"]`, 65_536, 2000)).toBe('[""]');
  });
});
