import { afterEach, describe, expect, it, vi } from 'vitest';
import { fromBase64Url, utf8 } from '@keyguard/core/bytes';
import type { SignatureTag } from '@keyguard/core/canonical';
import { generateNobleKey, nobleHmac, noblePrimitives, nobleSigningKey } from '@keyguard/core/noble';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { Bytes } from '@keyguard/core/seams';
import { createSigner } from '@keyguard/core/sign';
import { webCryptoRandom } from '@keyguard/core/system';
import { readSignedHead, verifySignature } from '@keyguard/core/verify';
import golden from '../../../vectors/request-signing.json' with { type: 'json' };
import { fromHex, portableSuite } from './portable.ts';

const random = webCryptoRandom();
const ORDER = fromHex('ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551');

portableSuite('noble', {
  primitives: noblePrimitives(),
  newKey: async () => nobleSigningKey(generateNobleKey(random)),
  random,
  hmac: nobleHmac,
  crypto: null,
});

describe('nobleSigningKey', () => {
  it.each(golden.cases)('writes the very headers on record: $name', async (vector) => {
    const key = await nobleSigningKey(fromBase64Url(golden.privateD)!);
    expect(key.keyId).toBe(golden.keyId);
    expect(key.publicKey).toEqual(golden.publicJwk);
    const sign = createSigner({
      key,
      primitives: noblePrimitives(),
      clock: { nowMs: () => vector.created * 1000 },
      random: { bytes: () => fromBase64Url(vector.nonce)! },
    });
    const { method, authority, path, query } = vector;
    const headers = Object.entries(vector.headers as Record<string, string>);
    const target = query === '' ? path : `${path}?${query}`;
    expect(await sign({ method, authority, target, headers, body: utf8(vector.body) }, vector.tag as SignatureTag)).toEqual(vector.expected.headers);
  });

  it('keeps its own copy of the key, and shows it nowhere', async () => {
    for (const bytes of [generateNobleKey(random), Buffer.from(generateNobleKey(random))]) {
      const key = await nobleSigningKey(bytes);
      bytes.fill(0);
      const signature = await key.sign(utf8('data'));
      const primitives = webCryptoPrimitives();
      expect(await primitives.verify(await primitives.importPublicKey(key.publicKey), utf8('data'), signature)).toBe(true);
      expect(Object.keys(key).toSorted()).toEqual(['keyId', 'publicKey', 'sign']);
    }
  });

  it.each([
    ['zero', new Uint8Array(32)],
    ['the order of the curve', ORDER],
    ['more than the order', new Uint8Array(32).fill(255)],
    ['31 bytes', new Uint8Array(31).fill(1)],
    ['33 bytes', new Uint8Array(33).fill(1)],
    ['nothing', new Uint8Array(0)],
  ])('takes no private key that is %s', async (_, bytes: Bytes) => {
    await expect(nobleSigningKey(bytes)).rejects.toMatchObject({ name: 'UsageError', code: 'invalid_option' });
  });

  it('takes the least and the greatest', async () => {
    const least = new Uint8Array(32);
    least[31] = 1;
    const greatest = ORDER.slice();
    greatest[31]! -= 1;
    // The keys 1 and n - 1 are one point and its negative: one x.
    expect((await nobleSigningKey(least)).publicKey.x).toBe((await nobleSigningKey(greatest)).publicKey.x);
  });
});

describe('generateNobleKey', () => {
  it('draws again what is no private key, and gives up on a generator that gives nothing else', () => {
    const draws = [new Uint8Array(32), ORDER.slice(), new Uint8Array(32).fill(7)];
    expect(generateNobleKey({ bytes: () => draws.shift()! })).toEqual(new Uint8Array(32).fill(7));
    const broken = expect.objectContaining({ name: 'UnavailableError', seam: 'random' }) as Error;
    expect(() => generateNobleKey({ bytes: () => new Uint8Array(32) })).toThrow(broken);
    expect(() => generateNobleKey({ bytes: () => new Uint8Array(16).fill(7) })).toThrow(broken);
  });
});

describe('with getRandomValues and nothing else of WebCrypto', () => {
  afterEach(() => void vi.unstubAllGlobals());

  it('makes a key, signs and verifies', async () => {
    const { crypto } = globalThis;
    vi.stubGlobal('crypto', { getRandomValues: crypto.getRandomValues.bind(crypto) });
    const key = await nobleSigningKey(generateNobleKey());
    const primitives = noblePrimitives();
    const sign = createSigner({ key, primitives });
    const signed = await sign({ method: 'GET', authority: 'a.example', target: '/', headers: [], body: new Uint8Array(0) });
    const head = readSignedHead({ method: 'GET', target: '/', rawHeaders: Object.entries(signed).flat() }, ['a.example']);
    await verifySignature(head, new Uint8Array(0), await primitives.importPublicKey(key.publicKey), 'keyguard-v1', primitives);
  });
});
