/**
 * The RFC 9421 carriage before two libraries that have nothing to do with this project, `http-message-signatures` and
 * `http-message-sig`. Both ways: they verify what our signer wrote, and what they sign passes our verifier behind Express, over real
 * sockets. On their side no line of ours runs: keys, hashes and nonces come from `node:crypto`.
 */
import { createHash, createPublicKey, generateKeyPairSync, randomBytes, sign as signBytes, verify as verifyBytes, type KeyObject } from 'node:crypto';
import { createSigner, createVerifier, httpbis } from 'http-message-signatures';
import { createSignature, isSignatureError, verifySignature, type SignatureParameters } from 'http-message-sig';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { COVERED_HEADERS, type SignatureTag } from '@keyguard/core/canonical';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import type { PublicJwk } from '@keyguard/core/seams';
import golden from '../../../vectors/request-signing.json' with { type: 'json' };
import { AUTHORITY, NOW_MS, send, valueOf, wireIn, withHeader, type Headers, type WireRequest, type Workbench } from './wire.ts';

const ALGORITHM = 'ecdsa-p256-sha256';
const ALWAYS = ['@method', '@authority', '@path', '@query', 'content-digest'];
const PARAMETERS = ['created', 'keyid', 'nonce', 'tag'];
const NOW_SECONDS = NOW_MS / 1000;
const TAGS: readonly SignatureTag[] = ['keyguard-v1', 'keyguard-enroll-v1', 'keyguard-rotate-v1'];

/** A key pair as someone without this project would have it. */
interface OutsideKey {
  readonly keyId: string;
  readonly publicJwk: PublicJwk;
  readonly privateKey: KeyObject;
}

/** What `@signature-params` is to say, in this order. */
interface Parameters {
  readonly created: number;
  readonly keyid: string;
  readonly nonce: string;
  readonly tag: string;
}

interface Judge {
  /** Whether the library finds one signature in `request`, over all that must be covered, and finds it good. */
  verifies(request: WireRequest, publicKey: KeyObject, components: readonly string[], nowSeconds?: number): Promise<boolean>;
  /** The library's `Signature-Input` and `Signature` for a request that has its `Content-Digest` already. */
  sign(request: WireRequest, key: OutsideKey, components: readonly string[], parameters: Parameters): Promise<Headers>;
}

const urlOf = ({ target }: WireRequest): string => `https://${AUTHORITY}${target}`;

const judges: Record<string, Judge> = {
  'http-message-signatures 1.0.6': {
    async verifies(request, publicKey, components, nowSeconds = NOW_SECONDS) {
      const message = { method: request.method, url: urlOf(request), headers: Object.fromEntries(request.headers) };
      // The library's type leaves out KeyObject, which it hands on to node:crypto as it is.
      const key = { id: valueOf(request, 'x-keyguard-key-id'), algs: [ALGORITHM], verify: createVerifier(publicKey as never, ALGORITHM) };
      const verdict = await httpbis.verifyMessage(
        { keyLookup: async ({ keyid }) => (keyid === key.id ? key : null), requiredFields: [...components], requiredParams: PARAMETERS, notAfter: new Date(nowSeconds * 1000), all: true },
        message,
      );
      return verdict === true;
    },
    async sign(request, key, components, { created, keyid, ...others }) {
      const message = { method: request.method, url: urlOf(request), headers: Object.fromEntries(request.headers) };
      const signer = createSigner(key.privateKey as never, ALGORITHM, keyid);
      const { headers } = await httpbis.signMessage(
        { key: signer, name: 'keyguard', fields: [...components], params: PARAMETERS, paramValues: { created: new Date(created * 1000), ...others } },
        message,
      );
      const { Signature: signature, 'Signature-Input': input } = headers as Record<string, string>;
      return fieldsOf(input!, signature!);
    },
  },
  'http-message-sig 0.3.0': {
    async verifies(request, publicKey, components, nowSeconds = NOW_SECONDS) {
      const policy = { algorithms: [ALGORITHM], requiredComponents: components, requiredParameters: PARAMETERS, now: nowSeconds, maxAge: 300, clockSkew: 60 };
      try {
        const verified = await verifySignature(descriptorOf(request), {
          label: 'keyguard',
          policy,
          resolveVerifier: () => ({ algorithm: ALGORITHM, verify: (data, signature) => verifyBytes('sha256', data, { key: publicKey, dsaEncoding: 'ieee-p1363' }, signature) }),
        });
        return verified.components.length === components.length;
      } catch (error) {
        if (isSignatureError(error) && error.code === 'VerificationFailed') return false;
        throw error;
      }
    },
    async sign(request, key, components, parameters) {
      const { signature, signatureInput } = await createSignature(descriptorOf(request), {
        label: 'keyguard',
        components,
        // The library writes them in the order in which they stand in the object.
        parameters: parameters as Parameters & SignatureParameters,
        signer: { algorithm: ALGORITHM, sign: (data) => signBytes('sha256', data, { key: key.privateKey, dsaEncoding: 'ieee-p1363' }) },
      });
      return fieldsOf(signatureInput, signature);
    },
  },
};

const fieldsOf = (input: string, signature: string): Headers => [['signature-input', input], ['signature', signature]];

function descriptorOf(request: WireRequest): { kind: 'request'; method: string; targetUri: string; fields: { name: string; value: string }[] } {
  return { kind: 'request', method: request.method, targetUri: urlOf(request), fields: request.headers.map(([name, value]) => ({ name, value })) };
}

interface Shape {
  readonly method: string;
  readonly target: string;
  readonly headers: Headers;
  readonly body: string;
}

const JSON_TYPE: [string, string] = ['content-type', 'application/json; charset=utf-8'];
const everyCovered = COVERED_HEADERS.map((name): [string, string] => [name, `value of ${name}, "quoted"; a=1`]);
const shapes: [name: string, shape: Shape][] = [
  ['a body, its type, a query', { method: 'POST', target: '/proxy/openai/v1/chat/completions?api-version=2024-10-21', headers: [JSON_TYPE], body: '{"model":"m","text":"héllo"}' }],
  ['neither body, type nor query', { method: 'GET', target: '/proxy/openai/v1/models', headers: [], body: '' }],
  ['a body without a type', { method: 'PUT', target: '/proxy/upload', headers: [], body: 'bytes' }],
  ['a type without a body', { method: 'POST', target: '/proxy/a', headers: [JSON_TYPE], body: '' }],
  ['one covered header', { method: 'POST', target: '/proxy/a', headers: [JSON_TYPE, ['openai-project', 'proj_1']], body: '{}' }],
  ['every covered header', { method: 'POST', target: '/proxy/a?b=c', headers: [JSON_TYPE, ...everyCovered], body: '{}' }],
  ['covered headers and no type', { method: 'DELETE', target: '/proxy/a', headers: everyCovered.slice(0, 3), body: '' }],
  ['a query of odd characters', { method: 'GET', target: '/proxy/a?b=%7E&b=~&&c=+/?:@!$()*,;', headers: [], body: '' }],
  ['a path of odd characters', { method: 'GET', target: "/proxy/a:b@c;d=e,f/%C3%A9%20/(g)!$&'*+=~", headers: [], body: '' }],
];

/** What must be covered of a request with these headers: KeyGuard's template. */
function componentsOf(headers: Headers): string[] {
  const has = (name: string): boolean => headers.some(([other]) => other === name);
  return [...ALWAYS, ...['content-type', ...COVERED_HEADERS].filter(has)];
}

function outsideKey(): OutsideKey {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const { x, y } = publicKey.export({ format: 'jwk' }) as { x: string; y: string };
  const keyId = createHash('sha256').update(`{"crv":"P-256","kty":"EC","x":"${x}","y":"${y}"}`).digest('base64url');
  return { keyId, publicJwk: { crv: 'P-256', kty: 'EC', x, y }, privateKey };
}

const { openWorkbench, signed } = wireIn('rfc9421');
let bench: Workbench;
beforeAll(async () => {
  bench = await openWorkbench();
});
afterAll(() => bench.close());

interface Outside {
  readonly tag?: string;
  readonly components?: readonly string[];
  readonly nonce?: string;
}

describe.each(Object.entries(judges))('%s', (_name, judge) => {
  /** A request that the library signed, with nothing of ours. */
  async function signedOutside(
    key: OutsideKey,
    shape: Shape,
    { tag = 'keyguard-v1', components = componentsOf(shape.headers), nonce = randomBytes(16).toString('base64url') }: Outside = {},
  ): Promise<WireRequest> {
    const body = new Uint8Array(Buffer.from(shape.body));
    const digest: [string, string] = ['content-digest', `sha-256=:${createHash('sha256').update(body).digest('base64')}:`];
    const unsigned: WireRequest = { method: shape.method, target: shape.target, headers: [['host', AUTHORITY], ...shape.headers, digest], body };
    const parameters = { created: NOW_SECONDS, keyid: key.keyId, nonce, tag };
    const fields = await judge.sign(unsigned, key, components, parameters);
    return { ...unsigned, headers: [...unsigned.headers, ...fields] };
  }

  function enrolledOutside(): OutsideKey {
    const key = outsideKey();
    const { keyId } = key;
    bench.registry.addCode({ codeHash: keyId, ownerId: 'owner', expiresAtMs: NOW_MS + 900_000 });
    bench.registry.enroll({ keyId, publicKey: key.publicJwk, codeHash: keyId, label: null, fingerprint: null, nowMs: NOW_MS });
    return key;
  }

  it.each(shapes)('verifies what we sign: %s', async (_name, shape) => {
    const key = await bench.newKey();
    const publicKey = createPublicKey({ key: { ...key.publicKey }, format: 'jwk' });
    for (const tag of TAGS) {
      const request = await signed(key, { ...shape, tag });
      const components = componentsOf(shape.headers);
      expect(await judge.verifies(request, publicKey, components)).toBe(true);
      expect(valueOf(request, 'content-digest')).toBe(`sha-256=:${createHash('sha256').update(shape.body).digest('base64')}:`);
      // And is one that can say no.
      const other = tag === 'keyguard-v1' ? 'keyguard-enroll-v1' : 'keyguard-v1';
      const bent: WireRequest[] = [
        { ...request, method: 'PATCH' },
        { ...request, target: `${request.target}${request.target.includes('?') ? '&' : '?'}x` },
        { ...request, target: request.target.replace('/proxy/', '/proxy/x') },
        withHeader(request, 'x-keyguard-timestamp', String(NOW_SECONDS - 1)),
        withHeader(request, 'x-keyguard-body-sha256', createHash('sha256').update('other').digest('base64')),
        withHeader(request, 'signature-input', valueOf(request, 'signature-input').replace(tag, other)),
        ...shape.headers.map(([name, value]) => withHeader(request, name, `${value}x`)),
      ];
      for (const one of bent) expect(await judge.verifies(one, publicKey, components)).toBe(false);
    }
  });

  it.each(golden.cases)('verifies the golden case $name', async (vector) => {
    const { path, query, expected } = vector;
    const headers: Headers = Object.entries(vector.headers as Record<string, string>);
    const request: WireRequest = {
      method: vector.method,
      target: query === '' ? path : `${path}?${query}`,
      headers: [...headers, ...Object.entries(expected.rfc9421).map(([name, value]): [string, string] => [name.toLowerCase(), value])],
      body: new Uint8Array(Buffer.from(vector.body)),
    };
    const publicKey = createPublicKey({ key: { ...golden.publicJwk }, format: 'jwk' });
    expect(await judge.verifies(request, publicKey, componentsOf(headers), vector.created)).toBe(true);
  });

  it.each(shapes)('signs what our verifier accepts: %s', async (_name, shape) => {
    const key = enrolledOutside();
    const before = bench.passed.length;
    const request = await signedOutside(key, shape);
    const answer = await send(bench, request);
    expect({ status: answer.status, code: answer.code }).toEqual({ status: 200, code: null });
    expect(bench.passed.length).toBe(before + 1);
    expect(bench.passed.at(-1)).toMatchObject({ keyId: key.keyId, method: shape.method, contentType: shape.headers.find(([name]) => name === 'content-type')?.[1] ?? null });
    expect(Buffer.from(bench.passed.at(-1)!.body).toString()).toBe(shape.body);
    // Our own signer, for the same values, writes the very same two lines but for the signature.
    expect(valueOf(request, 'signature-input')).toBe(
      `keyguard=(${componentsOf(shape.headers).map((name) => `"${name}"`).join(' ')});created=${NOW_SECONDS};keyid="${key.keyId}";nonce="${bench.passed.at(-1)!.nonce}";tag="keyguard-v1"`,
    );
    expect(await send(bench, request)).toMatchObject({ status: 401, code: 'replay_detected' });
  });

  it('signs an enrollment that ours accepts, and the device then calls', async () => {
    const key = outsideKey();
    const body = JSON.stringify({ jwk: key.publicJwk, code: bench.newCode() });
    const shape: Shape = { method: 'POST', target: '/api/keyguard/enroll', headers: [['content-type', 'application/json']], body };
    expect(await send(bench, await signedOutside(key, shape))).toMatchObject({ status: 401, code: 'signature_invalid' });
    expect((await send(bench, await signedOutside(key, shape, { tag: 'keyguard-enroll-v1' }))).status).toBe(201);
    expect((await send(bench, await signedOutside(key, { ...shape, target: '/proxy/a' }))).status).toBe(200);
    const status = await send(bench, await signedOutside(key, { method: 'GET', target: '/api/keyguard/status', headers: [], body: '' }));
    expect(JSON.parse(status.body)).toMatchObject({ key_id: key.keyId, status: 'active' });
  });

  it('signs a rotation that ours accepts, and the new key then calls', async () => {
    const [key, next] = [enrolledOutside(), outsideKey()];
    const nonce = randomBytes(16).toString('base64url');
    const proven = Buffer.from(['keyguard-rotate-proof-v1', key.keyId, next.keyId, NOW_SECONDS, nonce].join('\n'));
    const proof = signBytes('sha256', proven, { key: next.privateKey, dsaEncoding: 'ieee-p1363' }).toString('base64');
    const body = JSON.stringify({ jwk: next.publicJwk, proof, code: bench.newRotationCode(key) });
    const shape: Shape = { method: 'POST', target: '/api/keyguard/rotate', headers: [['content-type', 'application/json']], body };
    expect(await send(bench, await signedOutside(key, shape, { nonce }))).toMatchObject({ status: 401, code: 'signature_invalid' });
    expect((await send(bench, await signedOutside(key, shape, { nonce, tag: 'keyguard-rotate-v1' }))).status).toBe(200);
    expect((await send(bench, await signedOutside(next, shapes[0]![1]))).status).toBe(200);
  });

  it.each(['keyguard-enroll-v1', 'keyguard-rotate-v1', 'web-bot-auth'])('signs with the tag %s what an ordinary route refuses', async (tag) => {
    const before = bench.passed.length;
    expect(await send(bench, await signedOutside(enrolledOutside(), shapes[0]![1], { tag }))).toMatchObject({ status: 401, code: 'signature_invalid' });
    expect(bench.passed.length).toBe(before);
  });

  it('signs fewer components, more, or in another order: refused, although the signature is good', async () => {
    const key = enrolledOutside();
    const shape = shapes[4]![1];
    const template = componentsOf(shape.headers);
    const lists = [template.slice(0, -1), template.slice(1), template.toReversed(), [...template, '@target-uri'], [...template, 'host'], ['@method']];
    for (const components of lists) {
      const request = await signedOutside(key, shape, { components });
      expect(await judge.verifies(request, createPublicKey(key.privateKey), components)).toBe(true);
      expect(await send(bench, request)).toMatchObject({ status: 400, code: 'malformed_request' });
    }
  });
});

describe('as they come', () => {
  it('http-message-signatures signs keyid, alg, created and expires under the label sig: refused', async () => {
    const key = outsideKey();
    const headers = { 'content-digest': `sha-256=:${createHash('sha256').update('').digest('base64')}:` };
    const message = { method: 'GET', url: `https://${AUTHORITY}/proxy/a`, headers };
    const request = await httpbis.signMessage({ key: createSigner(key.privateKey as never, ALGORITHM, key.keyId), fields: ALWAYS }, message);
    expect((request.headers as Record<string, string>)['Signature-Input']).toMatch(/^sig=\("@method" "@authority" "@path" "@query" "content-digest"\);keyid=.*;alg="ecdsa-p256-sha256";created=[0-9]+;expires=[0-9]+$/);
    const wire: WireRequest = { method: 'GET', target: '/proxy/a', headers: [['host', AUTHORITY], ...(Object.entries(request.headers) as Headers)], body: new Uint8Array(0) };
    expect(await send(bench, wire)).toMatchObject({ status: 400, code: 'malformed_request' });
  });
});

it('our own client in this carriage enrolls, asks its status, calls and rotates; in the other one it is refused', async () => {
  const carriages: string[] = [];
  const overSocket: typeof fetch = (input, init) => {
    carriages.push([...(init!.headers as globalThis.Headers).keys()].filter((name) => /^(?:x-keyguard-|signature|content-digest)/.test(name)).join(' '));
    return fetch(String(input).replace(`https://${AUTHORITY}`, `http://127.0.0.1:${bench.port}`), init);
  };
  const options = { origin: `https://${AUTHORITY}`, keyStore: memoryKeyStore(), clock: { nowMs: () => NOW_MS }, fetch: overSocket };
  const guard = new KeyGuardClient({ ...options, carriage: 'rfc9421' });
  expect(await guard.enroll({ code: bench.newCode() })).toMatchObject({ status: 'active' });
  expect(await guard.status()).toMatchObject({ status: 'active' });
  const call = { method: 'POST', headers: { 'content-type': 'application/json', 'openai-project': 'p' }, body: '{}' };
  expect((await guard.fetch(`https://${AUTHORITY}/proxy/a?b=c`, call)).status).toBe(200);
  const { keyId } = (await options.keyStore.get(AUTHORITY))!;
  expect((await guard.rotate({ code: bench.newRotationCode({ keyId }) })).keyId).not.toBe(keyId);
  expect((await guard.fetch(`https://${AUTHORITY}/proxy/a`, call)).status).toBe(200);
  expect(new Set(carriages)).toEqual(new Set(['content-digest signature signature-input']));
  expect((await new KeyGuardClient(options).fetch(`https://${AUTHORITY}/proxy/a`, call)).status).toBe(400);
});

describe('the vectors, over a real socket', () => {
  const CREATED_MS = golden.cases[0]!.created * 1000;
  const vectors = new Map(golden.cases.map((vector) => [vector.name, vector]));
  // The route says what a signature is for, and this one is ordinary.
  const tests = golden.rfc9421Tests.filter(({ case: name, tag }) => tag === 'keyguard-v1' && vectors.get(name)!.path.startsWith('/proxy/'));
  let judged: Workbench;

  beforeAll(async () => {
    judged = await openWorkbench();
    judged.time.nowMs = CREATED_MS;
    const { keyId } = golden;
    judged.registry.addCode({ codeHash: keyId, ownerId: 'owner', expiresAtMs: NOW_MS });
    judged.registry.enroll({ keyId, publicKey: golden.publicJwk as PublicJwk, codeHash: keyId, label: null, fingerprint: null, nowMs: CREATED_MS });
  });
  afterAll(() => judged.close());

  it(`${tests.length} of them, each refused by its code or let through once`, async () => {
    const used = new Set<string>();
    for (const { tcId, case: name, headers, fields, result, code } of tests) {
      const { method, authority, path, query, body } = vectors.get(name)!;
        const expected = result === 'invalid' ? code : used.has(name) ? 'replay_detected' : null;
      const answer = await send(judged, {
        method,
        target: query === '' ? path : `${path}?${query}`,
        headers: [['host', authority], ...(Object.entries(headers) as Headers), ...(fields as Headers)],
        body: new Uint8Array(Buffer.from(body)),
      });
      expect({ tcId, code: answer.code }).toEqual({ tcId, code: expected });
      if (answer.status === 200) used.add(name);
      expect(judged.passed.length).toBe(used.size);
    }
    expect(used.size).toBeGreaterThan(3);
  });
});
