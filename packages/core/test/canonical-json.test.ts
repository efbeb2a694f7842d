import { readFileSync } from 'node:fs';
import vm from 'node:vm';
import canonicalize from 'canonicalize';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { canonicalJson, parseCanonicalJson } from '../src/canonical-json.ts';
import type { RejectedError } from '../src/errors.ts';
import type { JsonValue } from '../src/seams.ts';

interface Vector {
  tcId: number;
  comment: string;
  result: 'valid' | 'invalid';
  canonical: string;
}
const vectors = JSON.parse(readFileSync(new URL('../../../vectors/canonical-json.json', import.meta.url), 'utf8')) as {
  numberOfTests: number;
  testGroups: [
    { tests: (Vector & { ieee754: string })[] },
    { tests: (Vector & { input: string })[] },
    { tests: (Vector & { bytes: string })[] },
  ];
};
const [numbers, write, read] = vectors.testGroups;

const bytesOf = (text: string): Uint8Array => new Uint8Array(Buffer.from(text));
const refusal = expect.objectContaining({ name: 'RejectedError', code: 'json_not_canonical' }) as RejectedError;
const anyJson = fc.jsonValue({ stringUnit: 'binary', maxDepth: 6 }) as fc.Arbitrary<JsonValue>;

describe('vectors', () => {
  test('are all there', () => {
    expect(numbers.tests.length + write.tests.length + read.tests.length).toBe(vectors.numberOfTests);
  });

  test.each(numbers.tests)('$tcId $result: $comment ($ieee754)', ({ ieee754, canonical, result }) => {
    const value = Buffer.from(ieee754, 'hex').readDoubleBE();
    if (result === 'valid') expect(canonicalJson(value)).toBe(canonical);
    else expect(() => canonicalJson(value)).toThrow(refusal);
  });

  test.each(write.tests)('$tcId $result: $comment', ({ input, canonical, result }) => {
    const value = JSON.parse(input) as JsonValue;
    if (result === 'valid') expect(Buffer.from(canonicalJson(value)).toString('hex')).toBe(canonical);
    else expect(() => canonicalJson(value)).toThrow(refusal);
  });

  test.each(read.tests)('$tcId $result: $comment', ({ bytes, result }) => {
    const given = Buffer.from(bytes, 'hex');
    if (result === 'valid') expect(canonicalJson(parseCanonicalJson(given))).toBe(given.toString());
    else expect(() => parseCanonicalJson(given)).toThrow(refusal);
  });
});

describe('canonicalJson', () => {
  test('agrees with an independent implementation on every value', () => {
    const property = fc.property(anyJson, (value) => {
      expect(canonicalJson(value)).toBe(canonicalize(value));
    });
    fc.assert(property, { numRuns: 1000 });
  });

  test('agrees with it on every double', () => {
    const property = fc.property(fc.double({ noNaN: true, noDefaultInfinity: true }), (value) => {
      expect(canonicalJson(value)).toBe(canonicalize(value));
    });
    fc.assert(property, { numRuns: 1000 });
  });

  test('agrees with it on every UTF-16 code unit that is text by itself', () => {
    for (let unit = 0; unit < 0x10000; unit += 1) {
      if (unit >= 0xd800 && unit < 0xe000) continue;
      const text = String.fromCharCode(unit);
      if (canonicalJson(text) !== canonicalize(text)) expect.fail(`U+${unit.toString(16)}`);
    }
  });

  test('does not depend on the order in which members were added', () => {
    const property = fc.property(fc.dictionary(fc.string({ unit: 'binary' }), anyJson), (value) => {
      const reversed = Object.fromEntries(Object.entries(value).reverse());
      expect(canonicalJson(reversed)).toBe(canonicalJson(value));
    });
    fc.assert(property);
  });

  const cycle: unknown[] = [];
  cycle.push(cycle);
  const members: Record<string, unknown> = {};
  members['self'] = members;
  class Point {
    x = 1;
  }

  test.each<[string, unknown]>([
    ['undefined', undefined],
    ['an undefined member', { a: undefined }],
    ['an undefined element', [undefined]],
    ['a hole', Array(1)],
    ['a bigint', 1n],
    ['a symbol', Symbol('s')],
    ['a function', () => 1],
    ['NaN inside', { a: [Number.NaN] }],
    ['an infinity', Number.NEGATIVE_INFINITY],
    ['a Date', new Date(0)],
    ['a Map', new Map()],
    ['a Set', new Set([1])],
    ['a typed array', new Uint8Array(2)],
    ['an instance of a class', new Point()],
    ['a boxed string', Object('a')],
    ['a regular expression', /a/],
    ['an error', new Error('a')],
    ['an object with toJSON', { toJSON: () => 1 }],
    ['a cycle of arrays', cycle],
    ['a cycle of objects', members],
    ['a lone surrogate', 'a\ud800'],
    ['a lone surrogate in a name', { '\udfff': 1 }],
  ])('refuses %s', (_, value) => {
    expect(() => canonicalJson(value as JsonValue)).toThrow(refusal);
  });

  test('takes plain objects of other realms and without a prototype', () => {
    expect(canonicalJson(vm.runInNewContext('({ b: [1], a: 2 })') as JsonValue)).toBe('{"a":2,"b":[1]}');
    expect(canonicalJson(Object.assign(Object.create(null) as object, { b: 1, a: 2 }) as JsonValue)).toBe('{"a":2,"b":1}');
  });

  test('does not quote the value in what it throws', () => {
    for (const attempt of [
      () => canonicalJson({ password: 'hunter2\ud800' }),
      () => parseCanonicalJson(bytesOf('{"password": "hunter2"}')),
      () => parseCanonicalJson(bytesOf('{"password":"hunter2"')),
    ]) {
      let caught: unknown;
      try {
        attempt();
      } catch (error) {
        caught = error;
      }
      const { message, detail, cause } = caught as RejectedError;
      expect(cause).toBeUndefined();
      expect(`${message} ${detail}`).not.toMatch(/hunter2|password/);
    }
  });
});

describe('parseCanonicalJson', () => {
  test('is the inverse of canonicalJson', () => {
    const property = fc.property(anyJson, (value) => {
      const text = canonicalJson(value);
      const back = parseCanonicalJson(bytesOf(text));
      expect(canonicalJson(back)).toBe(text);
      expect(back).toEqual(JSON.parse(JSON.stringify(value)));
    });
    fc.assert(property, { numRuns: 300 });
  });

  test('accepts of all bytes only those that canonicalJson writes', () => {
    const nearly = fc.oneof(
      fc.uint8Array({ maxLength: 8 }),
      fc.tuple(anyJson, fc.nat(), fc.nat(255)).map(([value, at, byte]) => {
        const bytes = bytesOf(canonicalJson(value));
        bytes[at % bytes.length] = byte;
        return bytes;
      }),
      anyJson.map((value) => bytesOf(JSON.stringify(value, null, 1))),
    );
    let accepted = 0;
    const property = fc.property(nearly, (bytes) => {
      let value: JsonValue;
      try {
        value = parseCanonicalJson(bytes);
      } catch (error) {
        expect(error).toEqual(refusal);
        return;
      }
      accepted += 1;
      expect(Buffer.compare(bytesOf(canonicalize(value)!), bytes)).toBe(0);
    });
    fc.assert(property, { numRuns: 2000 });
    expect(accepted).toBeGreaterThan(0);
  });
});
