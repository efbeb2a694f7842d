import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test, vi } from 'vitest';
import { webCryptoVaultPrimitives } from '../src/algorithms.ts';
import { isRejected, type RejectedError, UnavailableError } from '../src/errors.ts';
import type { Bytes, KeyProvider, Random, VaultPrimitives } from '../src/seams.ts';
import { aesKeyProvider, open, passphraseKey, rewrap, seal } from '../src/vault.ts';
import type { SealedValue, VaultPlace } from '../src/vault.ts';
import * as judge from './vault-judge.ts';

interface Vector {
  tcId: number;
  comment: string;
  result: 'valid' | 'invalid';
}
interface OpenVector extends Vector {
  place: VaultPlace;
  kekId: string;
  ciphertext: string;
  wrappedDek: string;
  plaintext: string;
  dek?: string;
  dekId?: string;
  iv: string;
  wrapIv: string;
}
interface PassphraseVector extends Vector {
  passphrase: string;
  kekId: string;
  context: string;
  wrapped: string;
  key: string;
  header: string;
  iterations: number;
}
const vectors = JSON.parse(readFileSync(new URL('../../../vectors/vault.json', import.meta.url), 'utf8')) as {
  numberOfTests: number;
  testGroups: [{ kekId: string; kek: string; tests: OpenVector[] }, { tests: PassphraseVector[] }];
};
const [openGroup, passphraseGroup] = vectors.testGroups;

const fromHex = (hex: string): Bytes => new Uint8Array(Buffer.from(hex, 'hex'));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const text = (value: string): Bytes => new Uint8Array(Buffer.from(value));
const random = (length: number): Bytes => new Uint8Array(randomBytes(length));

const place: VaultPlace = {
  deploymentId: 'dep-1',
  table: 'secrets',
  row: 'row-1',
  column: 'value',
  version: 3,
  purpose: 'secret',
};
const kek = random(32);
const keyProvider = await aesKeyProvider({ kekId: 'kek-1', key: kek });

async function failure(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => expect.fail('it opened'),
    (error: unknown) => error,
  );
}

async function expectOpaque(promise: Promise<unknown>): Promise<void> {
  const error = (await failure(promise)) as RejectedError;
  expect(isRejected(error)).toBe(true);
  expect({ code: error.code, message: error.message, detail: error.detail, cause: error.cause }).toEqual({
    code: 'vault_open_failed',
    message: 'The value cannot be opened.',
    detail: undefined,
    cause: undefined,
  });
}

function flipped(bytes: Bytes, bit: number): Bytes {
  const copy = bytes.slice();
  copy[bit >> 3]! ^= 1 << (bit & 7);
  return copy;
}

function fixedRandom(...answers: readonly Bytes[]): Random {
  const left = [...answers];
  return { bytes: () => left.shift()!.slice() };
}

describe('vectors', () => {
  test('are all there', () => {
    expect(openGroup.tests.length + passphraseGroup.tests.length).toBe(vectors.numberOfTests);
    expect(openGroup.tests.filter((v) => v.result === 'valid').length).toBeGreaterThanOrEqual(9);
  });

  test.each(openGroup.tests)('$tcId $result: $comment', async (v) => {
    const sealed = { ciphertext: fromHex(v.ciphertext), wrappedDek: fromHex(v.wrappedDek), kekId: v.kekId };
    const provider = await aesKeyProvider({ kekId: openGroup.kekId, key: fromHex(openGroup.kek) });
    const opened = open(sealed, v.place, { keyProvider: provider });
    if (v.result === 'valid') expect(toHex(await opened)).toBe(v.plaintext);
    else await expectOpaque(opened);
  });

  test.each(openGroup.tests.filter((v) => v.dekId !== undefined))('$tcId is sealed to the very same bytes', async (v) => {
    const provider = await aesKeyProvider({
      kekId: openGroup.kekId,
      key: fromHex(openGroup.kek),
      random: fixedRandom(fromHex(v.wrapIv)),
    });
    const sealed = await seal(fromHex(v.plaintext), v.place, {
      keyProvider: provider,
      random: fixedRandom(fromHex(v.dek! + v.dekId! + v.iv)),
    });
    expect(toHex(sealed.ciphertext)).toBe(v.ciphertext);
    expect(toHex(sealed.wrappedDek)).toBe(v.wrappedDek);
  });

  test.each(passphraseGroup.tests)('$tcId $result: $comment', async (v) => {
    const unwrap = async (): Promise<{ key: Bytes; header: Bytes; iterations: number; belowDefault: boolean }> => {
      const bytes = fromHex(v.wrapped);
      const derived = await passphraseKey(v.passphrase, { kekId: v.kekId, header: bytes });
      const key = await derived.keyProvider.unwrap({ kekId: 'root-1', bytes }, fromHex(v.context));
      return { ...derived, key };
    };
    if (v.result === 'invalid') return expectOpaque(unwrap());
    const { key, header, iterations, belowDefault } = await unwrap();
    expect({ key: toHex(key), header: toHex(header), iterations }).toEqual({
      key: v.key,
      header: v.header,
      iterations: v.iterations,
    });
    expect(belowDefault).toBe(v.iterations < 600_000);
  });
});

describe('seal and open', () => {
  const aPart = fc.string({ unit: 'binary', minLength: 1, maxLength: 20 });
  const aPlace = fc.record({
    deploymentId: aPart,
    table: aPart,
    row: aPart,
    column: aPart,
    version: fc.maxSafeNat(),
    purpose: aPart,
  });

  test('give back any value at any place, and nothing else opens there', async () => {
    const property = fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), aPlace, aPlace, async (bytes, here, there) => {
      const plaintext = Uint8Array.from(bytes);
      const sealed = await seal(plaintext, here, { keyProvider });
      expect(sealed.ciphertext.length).toBe(plaintext.length + 81);
      expect(await open(sealed, here, { keyProvider })).toEqual(plaintext);
      if (JSON.stringify(here) !== JSON.stringify(there)) await expectOpaque(open(sealed, there, { keyProvider }));
    });
    await fc.assert(property, { numRuns: 100 });
  });

  test('an independent implementation on node:crypto opens what the vault seals, and the reverse', async () => {
    const property = fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), aPlace, async (bytes, where) => {
      const sealed = await seal(Uint8Array.from(bytes), where, { keyProvider });
      const dekId = sealed.ciphertext.subarray(5, 21);
      const context = judge.dekContext(where, dekId);
      const dek = judge.judgeUnwrap(kek, sealed.kekId, sealed.wrappedDek, context);
      expect(toHex(judge.judgeOpen(sealed.ciphertext, dek, where))).toBe(toHex(bytes));

      const again = { place: where, dek: random(32), dekId: random(16), iv: random(12), plaintext: bytes };
      const theirs: SealedValue = {
        ciphertext: Uint8Array.from(judge.judgeSeal(again)),
        wrappedDek: Uint8Array.from(
          judge.judgeWrap(kek, 'kek-1', random(12), again.dek, judge.dekContext(where, again.dekId)),
        ),
        kekId: 'kek-1',
      };
      expect(toHex(await open(theirs, where, { keyProvider }))).toBe(toHex(bytes));
    });
    await fc.assert(property, { numRuns: 50 });
  });

  test('every bit of the envelope, of the wrapped DEK and of the KEK id counts', async () => {
    const sealed = await seal(text('abc'), place, { keyProvider });
    for (const part of ['ciphertext', 'wrappedDek'] as const) {
      for (let bit = 0; bit < sealed[part].length * 8; bit += 1) {
        await expectOpaque(open({ ...sealed, [part]: flipped(sealed[part], bit) }, place, { keyProvider }));
      }
    }
    await expectOpaque(open({ ...sealed, kekId: 'kek-2' }, place, { keyProvider }));
    expect(await open(sealed, place, { keyProvider })).toEqual(text('abc'));
  });

  test('every shorter and any longer envelope or wrapped DEK fails', async () => {
    const sealed = await seal(text('abc'), place, { keyProvider });
    for (const part of ['ciphertext', 'wrappedDek'] as const) {
      const whole = sealed[part];
      for (let length = 0; length < whole.length; length += 1) {
        await expectOpaque(open({ ...sealed, [part]: whole.slice(0, length) }, place, { keyProvider }));
      }
      const longer = new Uint8Array([...whole, 0]);
      await expectOpaque(open({ ...sealed, [part]: longer }, place, { keyProvider }));
    }
  });

  test('no part of one of two values of the same place fits the other', async () => {
    const a = await seal(text('a'), place, { keyProvider });
    const b = await seal(text('b'), place, { keyProvider });
    await expectOpaque(open({ ...a, wrappedDek: b.wrappedDek }, place, { keyProvider }));
    for (const [from, to] of [[5, 21], [21, 33], [33, 65], [65, 66], [66, 82]] as const) {
      const mixed = a.ciphertext.slice();
      mixed.set(b.ciphertext.subarray(from, to), from);
      await expectOpaque(open({ ...a, ciphertext: mixed }, place, { keyProvider }));
    }
  });

  test('a ciphertext that GCM opens under two DEKs opens only under the one that is committed to', async () => {
    const [dekA, dekB, dekId, iv] = [random(32), random(32), random(16), random(12)];
    const [keyA, keyB] = [judge.hkdf(dekA, 'kg-vault-enc-v1'), judge.hkdf(dekB, 'kg-vault-enc-v1')];
    const aad = judge.valueAad(place, dekId);
    const forged = judge.twoKeyCiphertext(keyA, keyB, iv, aad);
    const readings = [judge.gcmDecrypt(keyA, iv, aad, forged), judge.gcmDecrypt(keyB, iv, aad, forged)];
    expect(readings[0]).not.toEqual(readings[1]);

    const head = judge.header(dekId, iv);
    for (const [committed, other, reading] of [[dekA, dekB, readings[0]!], [dekB, dekA, readings[1]!]] as const) {
      const ciphertext = Uint8Array.from(Buffer.concat([head, judge.commitmentOf(committed, head, aad), forged]));
      const under = async (dek: Bytes): Promise<SealedValue> => {
        const wrapped = await keyProvider.wrap(dek, Uint8Array.from(judge.dekContext(place, dekId)));
        return { ciphertext, wrappedDek: wrapped.bytes, kekId: wrapped.kekId };
      };
      expect(toHex(await open(await under(committed), place, { keyProvider }))).toBe(toHex(reading));
      await expectOpaque(open(await under(other), place, { keyProvider }));
    }
  });

  test('the commitment is checked before anything is decrypted', async () => {
    const sealed = await seal(text('abc'), place, { keyProvider });
    const calls: string[] = [];
    const { subtle } = globalThis.crypto;
    const watched = new Proxy(subtle, {
      get: (target, name: keyof SubtleCrypto) => {
        const method = target[name] as (...args: unknown[]) => unknown;
        return (...args: unknown[]) => {
          calls.push(name);
          return method.apply(target, args);
        };
      },
    });
    const crypto = { subtle: watched } as unknown as Crypto;
    await expectOpaque(open({ ...sealed, ciphertext: flipped(sealed.ciphertext, 40 * 8) }, place, { keyProvider, crypto }));
    expect(calls).toContain('sign');
    expect(calls).not.toContain('decrypt');
    await open(sealed, place, { keyProvider, crypto });
    expect(calls).toContain('decrypt');
  });

  test('no key that is imported or derived on WebCrypto can be had back from it', async () => {
    const { subtle } = globalThis.crypto;
    const made: CryptoKey[] = [];
    const watched = new Proxy(subtle, {
      get: (target, name: keyof SubtleCrypto) => {
        const method = (target[name] as (...args: unknown[]) => Promise<unknown>).bind(target);
        if (name !== 'importKey' && name !== 'deriveKey') return method;
        return async (...args: unknown[]) => {
          const key = (await method(...args)) as CryptoKey;
          made.push(key);
          return key;
        };
      },
    });
    const crypto = { subtle: watched, getRandomValues: globalThis.crypto.getRandomValues.bind(globalThis.crypto) } as unknown as Crypto;
    const { keyProvider: own } = await passphraseKey('a passphrase', { kekId: 'kek-2', iterations: 100_000, crypto });
    for (const provider of [await aesKeyProvider({ kekId: 'kek-1', key: random(32), crypto }), own]) {
      const sealed = await seal(text('abc'), place, { keyProvider: provider, crypto });
      expect(await open(sealed, place, { keyProvider: provider, crypto })).toEqual(text('abc'));
    }
    expect(new Set(made.map(({ algorithm }) => algorithm.name))).toEqual(new Set(['AES-GCM', 'HKDF', 'HMAC', 'PBKDF2']));
    expect(made.filter(({ extractable }) => extractable)).toEqual([]);
  });

  test('the same value is never sealed to the same bytes, DEK or IV', async () => {
    const seen = new Set<string>();
    for (let i = 0; i < 50; i += 1) {
      const { ciphertext, wrappedDek } = await seal(text('same'), place, { keyProvider });
      for (const part of [ciphertext.slice(5, 21), ciphertext.slice(21, 33), ciphertext.slice(33, 65), wrappedDek]) {
        seen.add(toHex(part));
      }
    }
    expect(seen.size).toBe(200);
  });

  test('a mebibyte goes in and out in one call', async () => {
    const plaintext = random(1_048_576);
    const sealed = await seal(plaintext, place, { keyProvider });
    expect(Buffer.compare(await open(sealed, place, { keyProvider }), plaintext)).toBe(0);
  });

  // What WebCrypto answers with has no room in front for header and commitment: one copy of it is what sealing takes, and opening none.
  test('64 MiB go in and out in one call, and are copied once', async () => {
    const lengthBytes = 67_108_864;
    const plaintext = new Uint8Array(lengthBytes).fill(7);
    const handed: Bytes[] = [];
    const answered: ArrayBuffer[] = [];
    const { subtle } = globalThis.crypto;
    const crypto = {
      getRandomValues: globalThis.crypto.getRandomValues.bind(globalThis.crypto),
      subtle: new Proxy(subtle, {
        get: (target, name: keyof SubtleCrypto) => {
          const method = (target[name] as (...args: unknown[]) => Promise<unknown>).bind(target);
          if (name !== 'encrypt' && name !== 'decrypt') return method;
          return async (...args: unknown[]) => {
            const answer = (await method(...args)) as ArrayBuffer;
            handed.push(args[2] as Bytes);
            answered.push(answer);
            return answer;
          };
        },
      }),
    } as unknown as Crypto;

    // Every way to a new array: a constructor that is not given a buffer to look at, and the methods that copy.
    let allocatedBytes = 0;
    const Original = globalThis.Uint8Array;
    const slice = vi.spyOn(Original.prototype, 'slice').mockImplementation(function (this: Bytes, ...range) {
      const copy = new Original(this.subarray(...range));
      allocatedBytes += copy.length;
      return copy;
    });
    vi.stubGlobal('Uint8Array', new Proxy(Original, {
      construct: (target, args: [number], newTarget) => {
        const made = Reflect.construct(target, args, newTarget) as Bytes;
        if (!((args[0] as unknown) instanceof ArrayBuffer)) allocatedBytes += made.length;
        return made;
      },
    }));
    try {
      const sealed = await seal(plaintext, place, { keyProvider, crypto });
      expect(allocatedBytes / lengthBytes).toBeGreaterThanOrEqual(1);
      expect(allocatedBytes / lengthBytes).toBeLessThan(1.01);
      expect(sealed.ciphertext.buffer.byteLength).toBe(lengthBytes + 81);
      expect(handed[0]).toBe(plaintext);

      allocatedBytes = 0;
      const opened = await open(sealed, place, { keyProvider, crypto });
      expect(allocatedBytes).toBeLessThan(10_000);
      expect(handed[1]!.buffer).toBe(sealed.ciphertext.buffer);
      expect(opened.buffer).toBe(answered[1]);
      expect(Buffer.compare(opened, plaintext)).toBe(0);
    } finally {
      slice.mockRestore();
      vi.unstubAllGlobals();
    }
  }, 60_000);

  test('a generator that answers with pieces of a pool leaves no key of zeros, and nothing in the pool', async () => {
    const pool = Buffer.concat([random(100), random(60), random(100)]);
    const drawn = pool.subarray(100, 160);
    const dek = toHex(drawn.subarray(0, 32));
    const seen: string[] = [];
    const spying: KeyProvider = {
      ...keyProvider,
      wrap: (given, context) => {
        seen.push(toHex(given));
        return keyProvider.wrap(given, context);
      },
    };
    const sealed = await seal(text('x'), place, { keyProvider: spying, random: { bytes: () => drawn } });
    expect(seen).toEqual([dek]);
    expect(toHex(drawn)).toBe('00'.repeat(60));
    expect(await open(sealed, place, { keyProvider })).toEqual(text('x'));
  });

  test('what is done to the array of an envelope while it is opened changes nothing of what was read, also where it is a Buffer', async () => {
    const sealed = await seal(text('abc'), place, { keyProvider });
    for (const ciphertext of [new Uint8Array(sealed.ciphertext), Buffer.from(sealed.ciphertext)]) {
      const overwriting: KeyProvider = {
        ...keyProvider,
        unwrap: (key, context) => {
          ciphertext.fill(0, 0, 65);
          return keyProvider.unwrap(key, context);
        },
      };
      expect(await open({ ...sealed, ciphertext }, place, { keyProvider: overwriting })).toEqual(text('abc'));
    }
    const wrappedDek = Buffer.from(sealed.wrappedDek);
    const unwrapping = keyProvider.unwrap({ kekId: 'kek-1', bytes: wrappedDek }, Uint8Array.from(judge.dekContext(place, sealed.ciphertext.subarray(5, 21))));
    wrappedDek.fill(0, 0, 17);
    expect((await unwrapping).length).toBe(32);
  });

  test('primitives that answer with what is no ciphertext, tag or MAC are an outage, and nothing is sealed', async () => {
    const good = webCryptoVaultPrimitives(globalThis.crypto);
    const broken: Partial<VaultPrimitives>[] = [
      { encrypt: async () => ({ ciphertext: new Uint8Array(2), tag: new Uint8Array(16) }) },
      { encrypt: async () => ({ ciphertext: new Uint8Array(3), tag: new Uint8Array(12) }) },
      { hmac: async () => new Uint8Array(31) },
    ];
    for (const part of broken) {
      const primitives = { ...good, ...part };
      await expect(seal(text('abc'), place, { keyProvider, primitives })).rejects.toMatchObject({ seam: 'vault_primitives' });
    }
    const sealed = await seal(text('abc'), place, { keyProvider, primitives: good });
    for (const hmac of [async () => new Uint8Array(0), () => undefined as unknown as Bytes]) {
      await expectOpaque(open(sealed, place, { keyProvider, primitives: { ...good, hmac } }));
    }
  });

  test('what a database driver gives back (a view into a larger buffer) opens', async () => {
    const sealed = await seal(text('abc'), place, { keyProvider });
    const view = (bytes: Bytes): Bytes => Buffer.concat([Buffer.alloc(7), bytes, Buffer.alloc(9)]).subarray(7, 7 + bytes.length);
    const stored = { ciphertext: view(sealed.ciphertext), wrappedDek: view(sealed.wrappedDek), kekId: sealed.kekId };
    expect(await open(stored, place, { keyProvider })).toEqual(text('abc'));
  });

  test.each([
    ...(['deploymentId', 'table', 'row', 'column', 'purpose'] as const).map((part): [string, Partial<VaultPlace>] => [`an empty ${part}`, { [part]: '' }]),
    ['a lone surrogate', { row: '\ud800' }],
    ['a negative version', { version: -1 }],
    ['a version that is no integer', { version: 1.5 }],
    ['a version beyond 2^53 - 1', { version: 2 ** 53 }],
    ['a part that is no text', { table: 7 as unknown as string }],
  ])('a place with %s is refused when sealing, and opens nothing', async (_, part) => {
    await expect(seal(text('x'), { ...place, ...part }, { keyProvider })).rejects.toMatchObject({ code: 'invalid_option' });
    const sealed = await seal(text('x'), place, { keyProvider });
    await expectOpaque(open(sealed, { ...place, ...part }, { keyProvider }));
  });

  test('rubbish in place of a sealed value is refused like any other', async () => {
    const sealed = await seal(text('x'), place, { keyProvider });
    for (const rubbish of [null, undefined, {}, { ...sealed, ciphertext: 'KGV' }, { ...sealed, wrappedDek: null }]) {
      await expectOpaque(open(rubbish as unknown as SealedValue, place, { keyProvider }));
    }
  });

  test('an outage of the key provider is told from a refusal; any other failure of it is not', async () => {
    const sealed = await seal(text('x'), place, { keyProvider });
    const failing = (error: Error): KeyProvider => ({
      wrap: () => Promise.reject(error),
      unwrap: () => Promise.reject(error),
    });
    const outage = new UnavailableError('key_provider', 'down');
    const down = failing(outage);
    expect(await failure(open(sealed, place, { keyProvider: down }))).toBe(outage);
    expect(await failure(seal(text('x'), place, { keyProvider: down }))).toBe(outage);
    expect(await failure(rewrap(sealed, place, { from: down, to: keyProvider }))).toBe(outage);
    expect(await failure(rewrap(sealed, place, { from: keyProvider, to: down }))).toBe(outage);
    await expectOpaque(open(sealed, place, { keyProvider: failing(new TypeError('secret in here')) }));
  });

  test('a key provider that gives a DEK of another size opens nothing, even where all else fits', async () => {
    for (const size of [16, 31, 33]) {
      const parts = { place, dek: random(size), dekId: random(16), iv: random(12), plaintext: text('x') };
      const sealed = { ciphertext: Uint8Array.from(judge.judgeSeal(parts)), wrappedDek: text('w'), kekId: 'k' };
      const unwrap = (): Promise<Bytes> => Promise.resolve(parts.dek.slice());
      await expectOpaque(open(sealed, place, { keyProvider: { ...keyProvider, unwrap } }));
    }
  });

  test('the bytes of the DEK are wiped after sealing, opening and rewrapping', async () => {
    const seen: Bytes[] = [];
    const spying: KeyProvider = {
      wrap: (dek, context) => {
        seen.push(dek);
        return keyProvider.wrap(dek, context);
      },
      unwrap: async (key, context) => {
        const dek = await keyProvider.unwrap(key, context);
        seen.push(dek);
        return dek;
      },
    };
    const sealed = await seal(text('x'), place, { keyProvider: spying });
    await open(sealed, place, { keyProvider: spying });
    await expectOpaque(open({ ...sealed, ciphertext: flipped(sealed.ciphertext, 600) }, place, { keyProvider: spying }));
    await rewrap(sealed, place, { from: spying, to: keyProvider });
    expect(seen.map((dek) => toHex(dek))).toEqual(Array.from({ length: 4 }, () => '00'.repeat(32)));
  });

  test('a generator that gives too few bytes is an outage, not a weak key', async () => {
    const short = { bytes: () => new Uint8Array(1) };
    await expect(seal(text('x'), place, { keyProvider, random: short })).rejects.toMatchObject({ seam: 'random' });
  });
});

describe('rewrap', () => {
  test('moves a value to another KEK without touching the envelope', async () => {
    const to = await aesKeyProvider({ kekId: 'kek-2', key: random(32) });
    const sealed = await seal(text('abc'), place, { keyProvider });
    const moved = await rewrap(sealed, place, { from: keyProvider, to });
    expect(moved.ciphertext).toBe(sealed.ciphertext);
    expect(moved.kekId).toBe('kek-2');
    expect(await open(moved, place, { keyProvider: to })).toEqual(text('abc'));
    await expectOpaque(open(moved, place, { keyProvider }));
    await expectOpaque(open({ ...moved, kekId: 'kek-1' }, place, { keyProvider }));
    expect(await open(sealed, place, { keyProvider })).toEqual(text('abc'));
  });

  test('refuses what the old provider does not unwrap for this place', async () => {
    const sealed = await seal(text('abc'), place, { keyProvider });
    const options = { from: keyProvider, to: keyProvider };
    await expectOpaque(rewrap(sealed, { ...place, version: 4 }, options));
    await expectOpaque(rewrap({ ...sealed, wrappedDek: flipped(sealed.wrappedDek, 300) }, place, options));
    await expectOpaque(rewrap({ ...sealed, ciphertext: flipped(sealed.ciphertext, 64) }, place, options));
  });
});

describe('aesKeyProvider', () => {
  test('imports the key as non-extractable, and does without the bytes afterwards', async () => {
    const imports: unknown[][] = [];
    const { subtle } = globalThis.crypto;
    const crypto = {
      subtle: {
        importKey: (...args: Parameters<SubtleCrypto['importKey']>) => {
          imports.push(args);
          return subtle.importKey(...args);
        },
        encrypt: subtle.encrypt.bind(subtle),
        decrypt: subtle.decrypt.bind(subtle),
      },
      getRandomValues: globalThis.crypto.getRandomValues.bind(globalThis.crypto),
    } as unknown as Crypto;
    const key = random(32);
    const provider = await aesKeyProvider({ kekId: 'k', key, crypto });
    expect(imports.map((args) => args[3])).toEqual([false]);
    key.fill(0);
    const dek = random(32);
    const wrapped = await provider.wrap(dek, text('context'));
    expect(await provider.unwrap(wrapped, text('context'))).toEqual(dek);
    await expectOpaque(provider.unwrap(wrapped, text('contexT')));
  });

  test('refuses keys of another size and a name that is none', async () => {
    for (const options of [
      { kekId: 'k', key: random(16) },
      { kekId: 'k', key: random(33) },
      { kekId: '', key: random(32) },
      { kekId: '\udc00', key: random(32) },
    ]) {
      await expect(aesKeyProvider(options)).rejects.toMatchObject({ code: 'invalid_option' });
    }
    await expect(keyProvider.wrap(random(31), text(''))).rejects.toMatchObject({ code: 'invalid_option' });
  });
});

describe('passphraseKey', () => {
  const floor = 100_000;

  test('opens what it wrapped, by the header that the wrapped key begins with', async () => {
    const made = await passphraseKey('Zoë', { kekId: 'root', iterations: floor });
    expect(made).toMatchObject({ iterations: floor, belowDefault: true });
    const key = random(32);
    const wrapped = await made.keyProvider.wrap(key, text('kek-1'));
    expect(toHex(wrapped.bytes).startsWith(toHex(made.header))).toBe(true);
    const read = await passphraseKey('Zoe\u0308', { kekId: 'root', header: wrapped.bytes });
    expect(read).toMatchObject({ iterations: floor, belowDefault: true });
    expect(await read.keyProvider.unwrap(wrapped, text('kek-1'))).toEqual(key);
    await expectOpaque(read.keyProvider.unwrap(wrapped, text('kek-2')));
    await expectOpaque(passphraseKey('Zoe', { kekId: 'root', header: wrapped.bytes }));
  });

  test('what is done to the array of the header while it is derived from changes nothing, also where it is a Buffer', async () => {
    const made = await passphraseKey('p', { kekId: 'root', iterations: floor });
    const header = Buffer.from(made.header);
    const deriving = passphraseKey('p', { kekId: 'root', header });
    header.fill(0);
    expect(toHex((await deriving).header)).toBe(toHex(made.header));
  });

  test('the default is 600,000 iterations and a fresh salt of 16 bytes', async () => {
    const made = await passphraseKey('p', { kekId: 'root' });
    expect(made).toMatchObject({ iterations: 600_000, belowDefault: false });
    expect(toHex(made.header)).toMatch(/^4b475001010*927c010/);
    const other = await passphraseKey('p', { kekId: 'root', iterations: floor });
    expect(toHex(other.header.subarray(10, 26))).not.toBe(toHex(made.header.subarray(10, 26)));
  });

  test('a key wrapped under one header does not unwrap under another of the same passphrase', async () => {
    const a = await passphraseKey('p', { kekId: 'root', iterations: floor });
    const b = await passphraseKey('p', { kekId: 'root', iterations: floor });
    const wrapped = await a.keyProvider.wrap(random(32), text('c'));
    await expectOpaque(b.keyProvider.unwrap(wrapped, text('c')));
  });

  test.each([99_999, 2_000_001, 0, 1.5, Number.NaN])('does not write %d iterations', async (iterations) => {
    await expect(passphraseKey('p', { kekId: 'root', iterations })).rejects.toMatchObject({ code: 'invalid_option' });
  });

  test.each(['', '\ud83d', 'p\0'])('refuses the passphrase %j', async (passphrase) => {
    await expect(passphraseKey(passphrase, { kekId: 'root' })).rejects.toMatchObject({ code: 'invalid_option' });
  });

  test('a header and iterations together are a mistake of the program', async () => {
    const both = { kekId: 'root', header: new Uint8Array(58), iterations: floor };
    await expect(passphraseKey('p', both)).rejects.toMatchObject({ code: 'invalid_option' });
  });

  test('any change of the header is refused', async () => {
    const { header } = await passphraseKey('p', { kekId: 'root', iterations: floor });
    expect(header.length).toBe(58);
    for (let byte = 0; byte < header.length; byte += 1) {
      // The two high bytes of the iterations and the salt's length are refused without deriving; the rest by the check value.
      await expectOpaque(passphraseKey('p', { kekId: 'root', header: flipped(header, byte * 8) }));
    }
  });

  test('derives one at a time, lets 16 wait, and answers "overloaded" to the rest', async () => {
    const { subtle } = globalThis.crypto;
    let running = 0;
    let most = 0;
    const counted = new Proxy(subtle, {
      get: (target, name: keyof SubtleCrypto) => {
        const method = (target[name] as (...args: unknown[]) => Promise<unknown>).bind(target);
        return async (...args: unknown[]) => {
          const isDerivation = name === 'deriveBits' && (args[0] as Algorithm).name === 'PBKDF2';
          if (isDerivation) most = Math.max(most, (running += 1));
          try {
            return await method(...args);
          } finally {
            if (isDerivation) running -= 1;
          }
        };
      },
    });
    const crypto = {
      subtle: counted,
      getRandomValues: globalThis.crypto.getRandomValues.bind(globalThis.crypto),
    } as unknown as Crypto;
    const derive = (): Promise<unknown> => passphraseKey('p', { kekId: 'root', iterations: floor, crypto });
    const outcomes = await Promise.allSettled(Array.from({ length: 25 }, derive));
    expect(outcomes.map(({ status }) => status)).toEqual([
      ...Array.from({ length: 17 }, () => 'fulfilled'),
      ...Array.from({ length: 8 }, () => 'rejected'),
    ]);
    for (const outcome of outcomes) {
      if (outcome.status === 'rejected') {
        expect(outcome.reason).toMatchObject({ name: 'UnavailableError', code: 'overloaded', seam: 'key_derivation' });
      }
    }
    expect(most).toBe(1);
    await expect(derive()).resolves.toBeDefined();
  });
});
