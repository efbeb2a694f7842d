/** Core in a real browser, on its WebCrypto: what is signed here verifies, and what was signed elsewhere verifies here. */
import { describe, expect, it } from 'vitest';
import { createSigner, generateKeyPair, importKeyPair, parsePublicJwk, signingKey, thumbprint, type SigningKey } from '@keyguard/core';
import { fromBase64, fromBase64Url, toBase64, utf8 } from '@keyguard/core/bytes';
import { signatureBase, splitTarget, type CoveredHeader, type SignatureTag } from '@keyguard/core/canonical';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import { readSignedHead, verifySignature } from '@keyguard/core/verify';
import golden from '../../../vectors/request-signing.json' with { type: 'json' };
import rfc9421 from '../../../vectors/rfc9421-ecdsa-p256.json' with { type: 'json' };

const primitives = webCryptoPrimitives();

describe('a golden request', () => {
  const publicKey = parsePublicJwk(golden.publicJwk);

  it.each(golden.cases)('$name has the same body hash and signature base, and its signature verifies', async (vector) => {
    const { expected, method, authority, path, query, created, nonce, keyId } = vector;
    const tag = vector.tag as SignatureTag;
    const body = utf8(vector.body);
    const headers: Record<string, string> = { ...vector.headers };
    const { 'content-type': contentType = null, ...others } = headers as Record<string, string> & { 'content-type'?: string };
    const coveredHeaders: CoveredHeader[] = Object.entries(others);
    expect(toBase64(await primitives.sha256(body))).toBe(expected.bodySha256);
    const base = signatureBase(
      { method, authority, path, query, bodySha256: expected.bodySha256, contentType, coveredHeaders, timestamp: String(created), keyId, nonce },
      tag,
    );
    expect(base).toBe(expected.signatureBase);

    const rawHeaders = [...Object.entries(headers), ...Object.entries(expected.headers)].flat();
    const head = readSignedHead({ method, target: query === '' ? path : `${path}?${query}`, rawHeaders }, [authority]);
    const key = await primitives.importPublicKey(publicKey);
    await verifySignature(head, body, key, tag, primitives);
    for (const forged of [{ ...head, path: `${path}x` }, { ...head, method: 'PUT' }, { ...head, nonce: 'A'.repeat(22) }]) {
      await expect(verifySignature(forged, body, key, tag, primitives)).rejects.toMatchObject({ code: 'signature_invalid' });
    }
    await expect(verifySignature(head, utf8('another body'), key, tag, primitives)).rejects.toMatchObject({ code: 'signature_invalid' });
    await expect(verifySignature(head, body, key, 'keyguard-rotate-v1', primitives)).rejects.toMatchObject({ code: 'signature_invalid' });
  });

  it('has the thumbprint of its key as key id', async () => {
    expect(await thumbprint(publicKey, primitives)).toBe(golden.keyId);
  });
});

describe('the examples of RFC 9421', () => {
  const { crv, kty, x, y } = rfc9421.keyJwk;
  const publicKey = parsePublicJwk({ crv, kty, x, y });

  it('have the thumbprint that is on record', async () => {
    expect(await thumbprint(publicKey, primitives)).toBe(rfc9421.thumbprint);
  });

  it.each(rfc9421.vectors)('$id verifies, and not once a byte is changed', async ({ base, sigB64, valid }) => {
    const key = await primitives.importPublicKey(publicKey);
    const signature = fromBase64(sigB64)!;
    expect(await primitives.verify(key, utf8(base), signature)).toBe(valid);
    expect(await primitives.verify(key, utf8(`${base} `), signature)).toBe(false);
    signature[40]! ^= 1;
    expect(await primitives.verify(key, utf8(base), signature)).toBe(false);
  });
});

describe('a request that this browser signs', () => {
  const target = '/proxy/openai/v1/chat/completions?stream=1';
  const headers = [['content-type', 'application/json'], ['openai-beta', 'assistants=v2'], ['accept', '*/*']] as const;
  const body = utf8('{"text":"h\u00e9llo \u{1f511}"}');

  async function roundTrip(key: SigningKey): Promise<void> {
    const sign = createSigner({ key });
    const signature = await sign({ method: 'POST', authority: 'api.example.com', target, headers, body });
    const rawHeaders = [...headers, ...Object.entries(signature)].flat();
    const head = readSignedHead({ method: 'POST', target, rawHeaders }, ['api.example.com']);
    const verifyKey = await primitives.importPublicKey(key.publicKey);
    await verifySignature(head, body, verifyKey, 'keyguard-v1', primitives);
    const flipped = head.signature.slice();
    flipped[0]! ^= 1;
    await expect(verifySignature({ ...head, signature: flipped }, body, verifyKey, 'keyguard-v1', primitives)).rejects.toMatchObject({
      code: 'signature_invalid',
    });
    const elsewhere = readSignedHead({ method: 'POST', target, rawHeaders }, ['other.example.com']);
    await expect(verifySignature(elsewhere, body, verifyKey, 'keyguard-v1', primitives)).rejects.toMatchObject({ code: 'signature_invalid' });
  }

  it('verifies, and nothing of it can be changed', async () => {
    // About half of these signatures have a high s, which must verify as well.
    for (let i = 0; i < 20; i += 1) await roundTrip(await signingKey(await generateKeyPair()));
  });

  it('verifies when the key came in as PKCS #8, which no one can take out again', async () => {
    const pair = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify']);
    const pkcs8 = new Uint8Array(await crypto.subtle.exportKey('pkcs8', pair.privateKey));
    const { crv, kty, x, y } = await crypto.subtle.exportKey('jwk', pair.publicKey);
    const imported = await importKeyPair(pkcs8, parsePublicJwk({ crv, kty, x, y }));
    await expect(crypto.subtle.exportKey('pkcs8', imported.privateKey)).rejects.toMatchObject({ name: 'InvalidAccessError' });
    await roundTrip(await signingKey(imported));
  });
});

describe('a public key', () => {
  const { x, y } = golden.publicJwk;

  it.each([
    ['off the curve', x, `${y.slice(0, -2)}A0`],
    ['the point (0, 0)', 'A'.repeat(43), 'A'.repeat(43)],
    ['coordinates past the field', '_'.repeat(42) + '8', '_'.repeat(42) + '8'],
  ])('is refused: %s', async (_, badX, badY) => {
    const jwk = parsePublicJwk({ crv: 'P-256', kty: 'EC', x: badX, y: badY });
    await expect(primitives.importPublicKey(jwk)).rejects.toMatchObject({ code: 'jwk_invalid' });
  });

  it('verifies nothing but signatures: any 64 bytes answer false', async () => {
    const key = await primitives.importPublicKey(parsePublicJwk(golden.publicJwk));
    const order = fromBase64Url('_____wAAAAD__________7zm-q2nF56E87nKwvxjJVE')!;
    const zero = new Uint8Array(32);
    for (const [r, s] of [[zero, zero], [order, order], [zero, order], [new Uint8Array(32).fill(255), new Uint8Array(32).fill(1)]]) {
      expect(await primitives.verify(key, utf8('data'), new Uint8Array([...r!, ...s!]))).toBe(false);
    }
  });
});

it('splits a target as the signer does', () => {
  expect(splitTarget('/a?b')).toEqual({ path: '/a', query: 'b' });
});
