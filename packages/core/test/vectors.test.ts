/**
 * The vectors of bytes, keys and the wire grammar, and the shape of all files: cases that must be accepted and cases that must be
 * refused, each with a comment and with flags that the file explains.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { fromBase64, fromBase64Url, fromUtf8, toBase64, toBase64Url } from '../src/bytes.ts';
import { isAuthority, isFieldValue, splitTarget } from '../src/canonical.ts';
import { parsePublicJwk, thumbprint } from '../src/keys.ts';
import { noblePrimitives } from '../src/noble.ts';
import { webCryptoPrimitives } from '../src/primitives.ts';
import type { PublicJwk } from '../src/seams.ts';
import { readSignedHead } from '../src/verify.ts';

const folder = new URL('../../../vectors/', import.meta.url);

interface Case {
  readonly tcId: number;
  readonly comment: string;
  readonly flags: readonly string[];
  readonly result: 'valid' | 'invalid' | 'acceptable';
}

interface File {
  readonly algorithm: string;
  readonly schema: string;
  readonly numberOfTests: number;
  readonly notes: Readonly<Record<string, string>>;
  readonly testGroups: readonly { readonly type: string; readonly tests: readonly Case[] }[];
}

const read = (name: string): File => JSON.parse(readFileSync(new URL(name, folder), 'utf8')) as File;

function casesOf<T>(name: string, type: string): (Case & T & { readonly group: Readonly<Record<string, unknown>> })[] {
  return read(name)
    .testGroups.filter((group) => group.type === type)
    .flatMap((group) => group.tests.map((each) => ({ ...(each as Case & T), group: group as unknown as Record<string, unknown> })));
}

describe('bytes', () => {
  test.each(casesOf<{ text: string; bytes: string }>('bytes.json', 'Decode'))('$tcId $result: $comment', ({ text, bytes, result, group }) => {
    const [decode, encode] = group['alphabet'] === 'base64' ? [fromBase64, toBase64] : [fromBase64Url, toBase64Url];
    expect(decode(text)).toEqual(result === 'valid' ? new Uint8Array(Buffer.from(bytes, 'hex')) : null);
    if (result === 'valid') expect(encode(Buffer.from(bytes, 'hex'))).toBe(text);
  });

  test.each(casesOf<{ text: string; bytes: string }>('bytes.json', 'Utf8'))('$tcId $result: $comment', ({ text, bytes, result }) => {
    const decode = (): string => fromUtf8(Buffer.from(bytes, 'hex'));
    if (result === 'valid') expect(decode()).toBe(text);
    else expect(decode).toThrow(TypeError);
  });
});

describe('keys', () => {
  const refusal = expect.objectContaining({ name: 'RejectedError', code: 'jwk_invalid' }) as Error;

  test.each(casesOf<{ jwk: unknown; keyId: string }>('keys.json', 'ParseJwk'))('$tcId $result: $comment', async ({ jwk, keyId, result }) => {
    if (result === 'invalid') {
      expect(() => parsePublicJwk(jwk)).toThrow(refusal);
      return;
    }
    expect(parsePublicJwk(jwk)).toEqual(jwk);
    expect(await thumbprint(jwk as PublicJwk, noblePrimitives())).toBe(keyId);
  });

  test.each(casesOf<{ jwk: PublicJwk }>('keys.json', 'ImportKey'))('$tcId $result: $comment', async ({ jwk, result }) => {
    for (const primitives of [webCryptoPrimitives(), noblePrimitives()]) {
      const imported = (async () => primitives.importPublicKey(jwk))();
      if (result === 'valid') expect(await imported).toBeTypeOf('object');
      else await expect(imported).rejects.toThrow(refusal);
    }
  });
});

describe('the grammar', () => {
  test.each(casesOf<{ target: string; path: string; query: string }>('canonical.json', 'SplitTarget'))('$tcId $result: $comment', ({ target, path, query, result }) => {
    expect(splitTarget(target)).toEqual(result === 'valid' ? { path, query } : null);
  });

  test.each(casesOf<{ text: string }>('canonical.json', 'Authority'))('$tcId $result: $comment', ({ text, result }) => {
    expect(isAuthority(text)).toBe(result === 'valid');
  });

  test.each(casesOf<{ text: string }>('canonical.json', 'FieldValue'))('$tcId $result: $comment', ({ text, result }) => {
    expect(isFieldValue(text)).toBe(result === 'valid');
  });

  interface Head {
    readonly method: string;
    readonly target: string;
    readonly headers: readonly (readonly [string, string])[];
    readonly authorities: readonly string[];
    readonly code: string;
  }
  test.each(casesOf<Head>('canonical.json', 'ReadHead'))('$tcId $result: $comment', ({ method, target, headers, authorities, code, result }) => {
    const readHead = (): unknown => readSignedHead({ method, target, rawHeaders: headers.flat() }, authorities);
    if (result === 'invalid') expect(readHead).toThrow(expect.objectContaining({ name: 'RejectedError', code }));
    else expect(readHead()).toMatchObject({ method, path: target, createdSeconds: 1_780_000_000 });
  });
});

describe('every file', () => {
  // Whole requests, and what others made: their own shape.
  const others = new Set(['request-signing.json', 'rfc9421-ecdsa-p256.json']);
  const names = readdirSync(folder).filter((name) => name.endsWith('.json') && !others.has(name));

  test.each(names)('%s has the shape of Wycheproof, what must be accepted, and what must be refused', (name) => {
    const { algorithm, schema, numberOfTests, notes, testGroups } = read(name);
    expect(algorithm !== '' && schema !== '').toBe(true);
    const cases = testGroups.flatMap(({ tests }) => tests);
    expect(cases.map(({ tcId }) => tcId).toSorted((a, b) => a - b)).toEqual(Array.from({ length: numberOfTests }, (_, i) => i + 1));
    for (const { tcId, comment, flags, result } of cases) {
      expect([tcId, comment === '', ['valid', 'invalid'].includes(result), flags.filter((flag) => notes[flag] === undefined)]).toEqual([tcId, false, true, []]);
    }
    const count = (wanted: Case['result']): number => cases.filter(({ result }) => result === wanted).length;
    expect(count('valid')).toBeGreaterThan(5);
    expect(count('invalid')).toBeGreaterThan(5);
  });

  test('is described in the README', () => {
    const readme = readFileSync(new URL('README.md', folder), 'utf8');
    expect(names.filter((name) => !readme.includes(`\`${name}\``))).toEqual([]);
  });
});
