/** The carriage in fields of RFC 9421: its template on record, what is refused beside it, and that the other one is never detected. */
import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { p256 } from '@noble/curves/nist.js';
import { fromBase64Url, utf8 } from '@keyguard/core/bytes';
import { COVERED_HEADERS, RFC9421_FIELDS, type SignatureTag } from '@keyguard/core/canonical';
import { isRejected } from '@keyguard/core/errors';
import { memoryKeyStore } from '@keyguard/core/memory';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { Bytes, PublicJwk, SigningKey } from '@keyguard/core/seams';
import { createSigner, type UnsignedRequest } from '@keyguard/core/sign';
import { readSignedHead, verifySignature } from '@keyguard/core/verify';
import golden from '../../../vectors/request-signing.json' with { type: 'json' };

type Vector = (typeof golden.cases)[number];

const primitives = webCryptoPrimitives();
const publicKey = await primitives.importPublicKey(golden.publicJwk as PublicJwk);
const privateKey = fromBase64Url(golden.privateD)!;

/** RFC 6979 on an independent library, as the vectors were made. */
const goldenKey: SigningKey = {
  keyId: golden.keyId,
  publicKey: golden.publicJwk as PublicJwk,
  sign: async (data) => p256.sign(data, privateKey, { lowS: false }) as Bytes,
};

const targetOf = ({ path, query }: Vector): string => (query === '' ? path : `${path}?${query}`);
const flat = (headers: object): string[] => Object.entries(headers).flat() as string[];
const vectorOf = (name: string): Vector => golden.cases.find((vector) => vector.name === name)!;

const control: UnsignedRequest = {
  method: 'POST',
  authority: 'a.example',
  target: '/a?b',
  headers: [['content-type', 'text/plain'], ['openai-project', 'p']],
  body: utf8('x'),
};

/** What a verifier that takes this carriage answers: `null`, or the code of its refusal. */
async function verdict(vector: Vector, rawHeaders: readonly string[], tag: string): Promise<string | null> {
  try {
    const head = readSignedHead({ method: vector.method, target: targetOf(vector), rawHeaders }, [vector.authority], 'rfc9421');
    // Who else's key it is would be told like a bad signature.
    if (head.keyId !== golden.keyId) return 'signature_invalid';
    await verifySignature(head, utf8(vector.body), publicKey, tag as SignatureTag, primitives);
    return null;
  } catch (error) {
    if (!isRejected(error)) throw error;
    return error.code;
  }
}

describe('the vectors', () => {
  it.each(golden.cases)('$name: our signer writes these fields', async (vector) => {
    const sign = createSigner({
      key: goldenKey,
      carriage: 'rfc9421',
      clock: { nowMs: () => vector.created * 1000 + 999 },
      random: { bytes: () => fromBase64Url(vector.nonce)! },
    });
    const { method, authority } = vector;
    const headers = Object.entries(vector.headers as Record<string, string>);
    const signed = await sign({ method, authority, target: targetOf(vector), headers, body: utf8(vector.body) }, vector.tag as SignatureTag);
    const expected = Object.entries(vector.expected.rfc9421).map(([name, value]) => [name.toLowerCase(), value]);
    expect(signed).toEqual(Object.fromEntries(expected));
  });

  it.each(golden.rfc9421Tests)('$tcId $flags.0: $comment', async ({ case: name, headers, fields, tag, result, code }) => {
    expect(await verdict(vectorOf(name), [...flat(headers), ...fields.flat()], tag)).toBe(result === 'valid' ? null : code);
  });

  it('hold a valid one for every case, and refusals of each kind', () => {
    expect(golden.rfc9421Tests.filter(({ result }) => result === 'valid').length).toBeGreaterThan(golden.cases.length);
    expect(golden.rfc9421Tests.filter(({ result }) => result === 'invalid').length).toBeGreaterThan(100);
  });
});

describe('one carriage', () => {
  it('says the same as the other: the very same head is read from both', async () => {
    for (const vector of golden.cases) {
      const request = { method: vector.method, target: targetOf(vector) };
      const inHeaders = readSignedHead({ ...request, rawHeaders: [...flat(vector.headers), ...flat(vector.expected.headers)] }, [vector.authority]);
      const inFields = readSignedHead({ ...request, rawHeaders: [...flat(vector.headers), ...flat(vector.expected.rfc9421)] }, [vector.authority], 'rfc9421');
      expect({ ...inFields, statedTag: null }).toEqual(inHeaders);
      expect(inFields.statedTag).toBe(vector.tag);
    }
  });

  it('is taken, the other one is not, and both together are not, in either mode', () => {
    const vector = golden.cases[0]!;
    const { headers, rfc9421 } = vector.expected;
    const read = (carriage: 'headers' | 'rfc9421' | undefined, ...carried: object[]) => () =>
      readSignedHead({ method: vector.method, target: targetOf(vector), rawHeaders: [...flat(vector.headers), ...carried.flatMap(flat)] }, [vector.authority], carriage);
    const malformed = expect.objectContaining({ code: 'malformed_request' });
    for (const carriage of ['headers', undefined] as const) {
      expect(read(carriage, headers)().keyId).toBe(golden.keyId);
      expect(read(carriage, rfc9421)).toThrow(malformed);
      expect(read(carriage, headers, rfc9421)).toThrow(malformed);
      for (const name of ['Signature', 'Signature-Input'] as const) expect(read(carriage, headers, { [name]: rfc9421[name] })).toThrow(malformed);
      // RFC 9530 knows this field for itself; alone it carries no signature, and is neither signed nor looked at.
      expect(read(carriage, headers, { 'Content-Digest': rfc9421['Content-Digest'] })().statedTag).toBeNull();
    }
    expect(read('rfc9421', rfc9421)().keyId).toBe(golden.keyId);
    expect(read('rfc9421', headers)).toThrow(malformed);
    expect(read('rfc9421', headers, rfc9421)).toThrow(malformed);
    for (const [name, value] of Object.entries(headers)) expect(read('rfc9421', rfc9421, { [name]: value })).toThrow(malformed);
  });

  it('names the one hash that it is, and no other of the same length', () => {
    const vector = golden.cases[0]!;
    const { rfc9421 } = vector.expected;
    const read = (digest: string) => () =>
      readSignedHead({ method: vector.method, target: targetOf(vector), rawHeaders: [...flat(vector.headers), ...flat({ ...rfc9421, 'Content-Digest': digest })] }, [vector.authority], 'rfc9421');
    const digest = rfc9421['Content-Digest'];
    expect(read(digest)().keyId).toBe(golden.keyId);
    for (const other of ['sha-512', 'sha-384', 'SHA-256', 'id-sha-256', 'sha256', '']) {
      expect(read(digest.replace('sha-256', other))).toThrow(expect.objectContaining({ code: 'malformed_request' }));
    }
    expect(read(`${digest}, ${digest.replace('sha-256', 'sha-512')}`)).toThrow(expect.objectContaining({ code: 'malformed_request' }));
  });

  it('is refused at construction when there is none of that name', async () => {
    const key = await memoryKeyStore().getOrCreate('device');
    for (const carriage of ['RFC9421', '', 'both']) {
      expect(() => createSigner({ key, carriage: carriage as 'headers' })).toThrow(expect.objectContaining({ code: 'invalid_option' }));
    }
  });

  it.each([...RFC9421_FIELDS, 'x-keyguard-version', 'x-keyguard-signature', 'content-encoding'])('is not signed over a request that has %s already', async (name) => {
    const sign = createSigner({ key: await memoryKeyStore().getOrCreate('device'), carriage: 'rfc9421' });
    await expect(sign({ ...control, headers: [[name, '1']] })).rejects.toMatchObject({ code: 'header_unsupported' });
  });
});

describe('properties', () => {
  const value = fc.stringMatching(/^[!-~]([ -~]{0,20}[!-~])?$/);
  const headers = fc
    .subarray(['content-type', ...COVERED_HEADERS])
    .chain((names) => fc.tuple(...names.map((name) => value.map((text): [string, string] => [name, text]))));
  const tags = fc.constantFrom<SignatureTag>('keyguard-v1', 'keyguard-enroll-v1', 'keyguard-rotate-v1');

  it('what the signer writes is read, whatever the headers, for its tag and no other', async () => {
    const key = await memoryKeyStore().getOrCreate('device');
    const imported = await primitives.importPublicKey(key.publicKey);
    const sign = createSigner({ key, carriage: 'rfc9421' });
    await fc.assert(
      fc.asyncProperty(headers, tags, tags, async (received, tag, route) => {
        const signed = await sign({ ...control, headers: received }, tag);
        const head = readSignedHead({ method: 'POST', target: '/a?b', rawHeaders: [...received.flat(), ...flat(signed)] }, ['a.example'], 'rfc9421');
        const verifying = verifySignature(head, control.body, imported, route, primitives);
        if (route === tag) await verifying;
        else await expect(verifying).rejects.toMatchObject({ code: 'signature_invalid' });
      }),
      { numRuns: 100 },
    );
  });

  it('a field with any one character changed, added or taken away is refused, or no longer verifies', async () => {
    const vector = vectorOf('post-covered-headers');
    const original = Object.entries(vector.expected.rfc9421);
    const edit = fc.tuple(fc.nat(2), fc.nat(1000), fc.constantFrom('replace', 'insert', 'delete'), fc.stringMatching(/^[\t -~\x80-\xff]$/));
    await fc.assert(
      fc.asyncProperty(edit, async ([field, position, kind, character]) => {
        const fields = original.map(([name, text], i) => {
          if (i !== field) return [name, text];
          const at = position % text.length;
          return [name, text.slice(0, at) + (kind === 'delete' ? '' : character) + text.slice(kind === 'insert' ? at : at + 1)];
        });
        if (JSON.stringify(fields) === JSON.stringify(original)) return;
        expect(await verdict(vector, [...flat(vector.headers), ...fields.flat() as string[]], vector.tag)).toMatch(/^(?:malformed_request|signature_invalid)$/);
      }),
      { numRuns: 3000 },
    );
  });

  it('is read in time linear in its length', () => {
    const vector = golden.cases[0]!;
    const time = (length: number): number => {
      const input = `keyguard=(${';created=;keyid=";nonce="'.repeat(length / 25)}`;
      const rawHeaders = ['signature-input', input, 'signature', `keyguard=${':'.repeat(length)}`, 'content-digest', `sha-256=${':'.repeat(length)}`];
      const started = performance.now();
      for (let i = 0; i < 20; i += 1) expect(() => readSignedHead({ method: 'GET', target: '/', rawHeaders }, [vector.authority], 'rfc9421')).toThrow('well-formed');
      return performance.now() - started;
    };
    time(25 * 400);
    const small = Math.max(time(25 * 400), 0.01);
    expect(time(25 * 400 * 100) / small).toBeLessThan(1000);
  });
});
