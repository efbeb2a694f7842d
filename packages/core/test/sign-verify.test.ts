import { describe, expect, it } from 'vitest';
import { p256 } from '@noble/curves/nist.js';
import { fromBase64Url, toBase64, toBase64Url, utf8 } from '@keyguard/core/bytes';
import type { SignatureTag } from '@keyguard/core/canonical';
import { hasCode } from '@keyguard/core/errors';
import { parsePublicJwk, thumbprint } from '@keyguard/core/keys';
import { memoryKeyStore } from '@keyguard/core/memory';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { Bytes, Primitives, PublicJwk, SigningKey } from '@keyguard/core/seams';
import { createSigner } from '@keyguard/core/sign';
import { assertFresh, readSignedHead, verifyBody, verifySignature } from '@keyguard/core/verify';
import golden from '../../../vectors/request-signing.json' with { type: 'json' };
import rfc9421 from '../../../vectors/rfc9421-ecdsa-p256.json' with { type: 'json' };

const primitives: Primitives = webCryptoPrimitives();
const publicJwk = golden.publicJwk as PublicJwk;

/** RFC 6979 on an independent library: the deterministic signer with which the golden vectors were made. */
function deterministicKey(privateKey: Bytes): SigningKey {
  return {
    keyId: golden.keyId,
    publicKey: publicJwk,
    sign: async (data) => p256.sign(data, privateKey, { lowS: false }) as Bytes,
  };
}

function rawHeaders(headers: Record<string, string>): string[] {
  return Object.entries(headers).flat();
}

describe('golden vectors', () => {
  it.each(golden.cases)('$name: our signer writes these headers, our verifier accepts them', async (vector) => {
    const sign = createSigner({
      key: deterministicKey(fromBase64Url(golden.privateD)!),
      clock: { nowMs: () => vector.created * 1000 + 999 },
      random: { bytes: () => fromBase64Url(vector.nonce)! },
    });
    const target = vector.query === '' ? vector.path : `${vector.path}?${vector.query}`;
    const headers = Object.entries(vector.headers as Record<string, string>);
    const { method, authority } = vector;
    const signed = await sign({ method, authority, target, headers, body: utf8(vector.body) }, vector.tag as SignatureTag);
    expect(signed).toEqual(vector.expected.headers);

    const head = readSignedHead({ method, target, rawHeaders: [...headers.flat(), ...rawHeaders(signed)] }, [authority]);
    const key = await primitives.importPublicKey(publicJwk);
    await verifySignature(head, utf8(vector.body), key, vector.tag as SignatureTag, primitives);
  });

  it.each(rfc9421.vectors)('RFC 9421 $id: base and signature', async (vector) => {
    const key = await primitives.importPublicKey(publicJwk);
    const signature = new Uint8Array(Buffer.from(vector.sigB64, 'base64'));
    expect(await primitives.verify(key, utf8(vector.base), signature)).toBe(vector.valid);
    signature[10]! ^= 1;
    expect(await primitives.verify(key, utf8(vector.base), signature)).toBe(false);
  });

  it('the thumbprint is that of RFC 7638', async () => {
    expect(await thumbprint(publicJwk, primitives)).toBe(rfc9421.thumbprint);
  });
});

describe('a signed request', () => {
  it('verifies, and every call draws a fresh nonce', async () => {
    const key = await memoryKeyStore().getOrCreate('device');
    const sign = createSigner({ key });
    const request = { method: 'GET', authority: 'a.example', target: '/', headers: [], body: new Uint8Array(0) };
    const [first, second] = [await sign(request), await sign(request)];
    expect(first['x-keyguard-nonce']).not.toBe(second['x-keyguard-nonce']);
    const head = readSignedHead({ method: 'GET', target: '/', rawHeaders: rawHeaders(second) }, ['a.example']);
    await verifySignature(head, request.body, await primitives.importPublicKey(key.publicKey), 'keyguard-v1', primitives);
    await expect(
      verifySignature(head, request.body, await primitives.importPublicKey(key.publicKey), 'keyguard-enroll-v1', primitives),
    ).rejects.toMatchObject({ code: 'signature_invalid' });
  });

  it('holds the body that was signed, to the last bit of its hash, and none that was put in its place', async () => {
    const key = await memoryKeyStore().getOrCreate('device');
    const request = { method: 'POST', authority: 'a.example', target: '/', headers: [], body: utf8('{"code":"mine"}') };
    const head = readSignedHead({ method: 'POST', target: '/', rawHeaders: rawHeaders(await createSigner({ key })(request)) }, ['a.example']);
    const imported = await primitives.importPublicKey(key.publicKey);
    const invalid = { code: 'signature_invalid', detail: 'body' };
    for (const body of [utf8('{"code":"ours"}'), new Uint8Array(0), utf8('{"code":"mine"} ')]) {
      await expect(verifySignature(head, body, imported, 'keyguard-v1', primitives)).rejects.toMatchObject(invalid);
    }
    const hash = await primitives.sha256(request.body);
    await verifyBody(head, request.body, { sha256: () => hash });
    for (let bit = 0; bit < 256; bit += 1) {
      const near = hash.slice();
      near[bit >> 3]! ^= 1 << (bit & 7);
      await expect(verifyBody(head, request.body, { sha256: () => near }), `bit ${bit}`).rejects.toMatchObject(invalid);
    }
    await expect(verifyBody(head, request.body, { sha256: () => hash.slice(0, 31) })).rejects.toMatchObject(invalid);
  });

  it('is read into a list of headers that nobody changes', async () => {
    const headers: [string, string][] = [['openai-project', 'p'], ['idempotency-key', 'k']];
    const signed = await createSigner({ key: await memoryKeyStore().getOrCreate('device') })({ method: 'GET', authority: 'a.example', target: '/', headers, body: new Uint8Array(0) });
    const head = readSignedHead({ method: 'GET', target: '/', rawHeaders: [...headers.flat(), ...rawHeaders(signed)] }, ['a.example']);
    expect(head.coveredHeaders).toEqual([['idempotency-key', 'k'], ['openai-project', 'p']]);
    expect(Object.isFrozen(head.coveredHeaders)).toBe(true);
  });

  it.each([
    ['lower-case method', { method: 'get' }, 'target_unsupported'],
    ['authority with upper case', { authority: 'A.example' }, 'target_unsupported'],
    ['encoded slash', { target: '/models/a%2Fb' }, 'target_unsupported'],
    ['dot segment', { target: '/a/../b' }, 'target_unsupported'],
    ['fragment', { target: '/a#b' }, 'target_unsupported'],
    ['unsupported header', { headers: [['openai-debug', '1']] as [string, string][] }, 'header_unsupported'],
    ['empty covered header', { headers: [['openai-project', '']] as [string, string][] }, 'header_unsupported'],
    ['doubled content type', { headers: [['content-type', 'a'], ['content-type', 'b']] as [string, string][] }, 'header_unsupported'],
    ['doubled covered header', { headers: [['openai-project', 'a'], ['openai-project', 'b']] as [string, string][] }, 'header_unsupported'],
    ['compressed body', { headers: [['content-encoding', 'gzip']] as [string, string][] }, 'header_unsupported'],
    ['half of the other carriage', { headers: [['signature-input', 'x']] as [string, string][] }, 'header_unsupported'],
    ['the other half', { headers: [['signature', 'x']] as [string, string][] }, 'header_unsupported'],
  ])('refuses early what a verifier would refuse: %s', async (_name, change, code) => {
    const sign = createSigner({ key: await memoryKeyStore().getOrCreate('device') });
    const request = { method: 'GET', authority: 'a.example', target: '/', headers: [], body: new Uint8Array(0), ...change };
    await expect(sign(request)).rejects.toSatisfy((error) => hasCode(error, code as 'target_unsupported'));
  });
});

describe('a head', () => {
  const signed = async (headers: [string, string][]): Promise<string[]> => {
    const sign = createSigner({ key: await memoryKeyStore().getOrCreate('device') });
    const carriage = await sign({ method: 'GET', authority: 'kk.example', target: '/', headers: [], body: new Uint8Array(0) });
    return [...Object.entries(carriage), ...headers].flat();
  };
  const read = (rawHeaders: string[]): unknown => readSignedHead({ method: 'GET', target: '/', rawHeaders }, ['kk.example', 'other.example']);
  const malformed = expect.objectContaining({ code: 'malformed_request' }) as Error;

  it('is not read by letters that only become ours in lower case: U+212A is no K', async () => {
    const rawHeaders = await signed([['host', 'KK.example']]);
    expect(read(rawHeaders)).toMatchObject({ authority: 'kk.example' });
    expect(() => read(rawHeaders.map((text) => text.replace('x-keyguard-nonce', 'x-\u212aeyguard-nonce')))).toThrow(malformed);
    expect(() => read(rawHeaders.map((text) => text.replace('KK.example', '\u212ak.example')))).toThrow(malformed);
  });
});

describe('the window', () => {
  const window = { maxAgeSeconds: 300, maxFutureSeconds: 60 };
  it('is exact at both ends, in whole seconds', () => {
    const nowMs = 1_800_000_000_999;
    for (const created of [1_800_000_000 - 300, 1_800_000_000 + 60]) assertFresh(created, window, nowMs);
    for (const created of [1_800_000_000 - 301, 1_800_000_000 + 61]) {
      expect(() => assertFresh(created, window, nowMs)).toThrow(expect.objectContaining({ code: 'timestamp_out_of_window' }));
    }
  });

  it('is closed to a clock that tells no time', () => {
    expect(() => assertFresh(1_800_000_000, window, Number.NaN)).toThrow(expect.objectContaining({ code: 'timestamp_out_of_window' }));
  });
});

describe('public keys', () => {
  const { x, y } = publicJwk;
  const aliases: [string, unknown][] = [
    ['no object', 'key'],
    ['null', null],
    ['array', [publicJwk]],
    ['padded', { ...publicJwk, x: `${x}=` }],
    ['leading zero byte', { ...publicJwk, x: toBase64Url(new Uint8Array([0, ...fromBase64Url(x)!])) }],
    ['trailing byte', { ...publicJwk, y: toBase64Url(new Uint8Array([...fromBase64Url(y)!, 0])) }],
    ['31 bytes', { ...publicJwk, y: toBase64Url(fromBase64Url(y)!.slice(1)) }],
    ['the other alphabet', { ...publicJwk, x: toBase64(fromBase64Url(x)!).slice(0, 43).replace(/[A-Za-z0-9]$/, '+') }],
    ['stray trailing bits', { ...publicJwk, x: `${x.slice(0, -1)}B` }],
    ['private member', { ...publicJwk, d: golden.privateD }],
    ['alg', { ...publicJwk, alg: 'ES256' }],
    ['key_ops', { ...publicJwk, key_ops: ['verify'] }],
    ['no kty', { crv: 'P-256', x, y }],
    ['P-384', { ...publicJwk, crv: 'P-384' }],
    ['OKP', { ...publicJwk, kty: 'OKP' }],
    ['a number', { ...publicJwk, x: 1 }],
  ];
  it.each(aliases)('refuses an alias: %s', (_name, value) => {
    expect(() => parsePublicJwk(value)).toThrow(expect.objectContaining({ code: 'jwk_invalid' }));
  });

  it('refuses points that are not on the curve', async () => {
    const zero = toBase64Url(new Uint8Array(32));
    const off = toBase64Url(fromBase64Url(y)!.map((byte, i) => (i === 31 ? byte ^ 1 : byte)));
    for (const jwk of [{ ...publicJwk, x: zero, y: zero }, { ...publicJwk, y: off }]) {
      await expect(primitives.importPublicKey(jwk)).rejects.toMatchObject({ code: 'jwk_invalid' });
    }
  });
});
