/** Verifying one request with a body of one KiB, whole and in parts, against the bare check of its signature. */
import { verify as verifyBytes } from 'node:crypto';
import { utf8 } from '@keyguard/core/bytes';
import { signatureBase } from '@keyguard/core/canonical';
import { memoryReplayStore } from '@keyguard/core/memory';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { DeviceRegistry, Primitives } from '@keyguard/core/seams';
import { assertFresh, readSignedHead, verifySignature } from '@keyguard/core/verify';
import { createVerifier, ipBucket, memoryRateLimiter, nodePrimitives, type Verifier } from '@keyguard/server-verifier';
import { createVerifier as createRfc9421Verifier, httpbis } from 'http-message-signatures';
import { jwtVerify, SignJWT } from 'jose';
import jsonwebtoken from 'jsonwebtoken';
import { AUTHORITY, BODY, cachedRegistryOf, contentDigest, IP, makeKey, makeRequest, nonces, quickSigner, registryOf, type SignedRequest } from './material.ts';
import { RFC9421_REQUIRED, rfc9421Signer } from './rfc9421.ts';
import { rowOf, rowsOf, type Row, type Suite } from './results.ts';
import { median, pairedMedian, timeInTurn, type Contestant } from './rounds.ts';

const LIMIT = 'bare crypto.verify (DER, KeyObject)';
const WHOLE = 'KeyGuard verifier.verify, whole';
const CACHED = 'KeyGuard verifier.verify, whole, devices kept and watched';
const FUNCTIONS = 'KeyGuard functions, no stores';
const SUBTLE_LIMIT = 'bare subtle.verify';
const SUBTLE_WHOLE = 'KeyGuard verifier.verify on WebCrypto';

// About as many as a busy server takes in one turn of its event loop.
const OPERATIONS = 25;
const ECDSA = { name: 'ECDSA', hash: 'SHA-256' } as const;
const WINDOW = { maxAgeSeconds: 300, maxFutureSeconds: 60 };
const UNLIMITED_PER_MINUTE = 1_000_000_000;

export const verify: Suite = async ({ quick }) => {
  const key = await makeKey();
  const sign = quickSigner(key);
  const { publicObject } = key;
  const publicCryptoKey = key.webCryptoPair.publicKey;
  const { subtle } = globalThis.crypto;
  const node = nodePrimitives();
  const importedKey = await node.importPublicKey(key.publicJwk);

  const verifierOn = (primitives: Primitives, registry: DeviceRegistry = registryOf(key)): Verifier =>
    createVerifier({
      policy: { authorities: [AUTHORITY], requestsPerMinute: UNLIMITED_PER_MINUTE, requestsPerMinutePerIp: UNLIMITED_PER_MINUTE },
      registry,
      replayStore: memoryReplayStore({ startedAtMs: 0 }),
      primitives,
    });
  const onNode = verifierOn(node);
  const cached = verifierOn(node, cachedRegistryOf(key));
  const onWebCrypto = verifierOn(webCryptoPrimitives());

  const token = await new SignJWT({ jti: 'x', htm: 'POST', htu: `https://${AUTHORITY}/` })
    .setProtectedHeader({ alg: 'ES256', kid: key.keyId })
    .setIssuedAt()
    .setExpirationTime('10m')
    .sign(key.webCryptoPair.privateKey);
  const rfc9421Verify = createRfc9421Verifier(publicObject as never, 'ecdsa-p256-sha256');
  const rfc9421Key = { id: key.keyId, verify: rfc9421Verify };
  const rfc9421Message = await rfc9421Signer(key)();

  let batch: SignedRequest[] = [];
  const prepare = async (): Promise<void> => {
    const next: SignedRequest[] = [];
    for (let i = 0; i < OPERATIONS; i += 1) next.push(await makeRequest(sign));
    batch = next;
  };
  const verifyAll = (verifier: Verifier) => async (operations: number) => {
    for (let i = 0; i < operations; i += 1) await verifier.verify(batch[i]!.incoming);
  };

  const rounds = quick ? 60 : 300;
  // Only after some thousand calls has V8 compiled what it will compile.
  const warmUpRounds = quick ? 100 : 300;
  const timings = await timeInTurn({
    operations: OPERATIONS,
    rounds,
    warmUpRounds,
    budgetMs: quick ? 8_000 : 40_000,
    prepare,
    contestants: [
      {
        name: LIMIT,
        run(operations) {
          for (let i = 0; i < operations; i += 1) demand(verifyBytes('sha256', batch[i]!.base, publicObject, batch[i]!.signatureDer));
        },
      },
      { name: WHOLE, run: verifyAll(onNode) },
      { name: CACHED, run: verifyAll(cached) },
      {
        name: FUNCTIONS,
        async run(operations) {
          for (let i = 0; i < operations; i += 1) {
            const head = readSignedHead(batch[i]!.incoming, [AUTHORITY]);
            assertFresh(head.createdSeconds, WINDOW, Date.now());
            await verifySignature(head, BODY, importedKey, 'keyguard-v1', node);
          }
        },
      },
      {
        name: 'jsonwebtoken ES256 (no body, no replay)',
        run(operations) {
          for (let i = 0; i < operations; i += 1) jsonwebtoken.verify(token, publicObject, { algorithms: ['ES256'] });
        },
      },
      {
        name: 'jose jwtVerify ES256 (no body, no replay)',
        async run(operations) {
          for (let i = 0; i < operations; i += 1) await jwtVerify(token, publicCryptoKey, { algorithms: ['ES256'] });
        },
      },
      {
        name: 'http-message-signatures (no replay)',
        async run(operations) {
          for (let i = 0; i < operations; i += 1) {
            demand(rfc9421Message.headers['content-digest'] === contentDigest(BODY));
            demand(await httpbis.verifyMessage({ keyLookup: async () => rfc9421Key, maxAge: 300, tolerance: 60, ...RFC9421_REQUIRED }, rfc9421Message));
          }
        },
      },
      {
        name: SUBTLE_LIMIT,
        async run(operations) {
          for (let i = 0; i < operations; i += 1) demand(await subtle.verify(ECDSA, publicCryptoKey, batch[i]!.head.signature, batch[i]!.base));
        },
      },
      { name: SUBTLE_WHOLE, run: verifyAll(onWebCrypto) },
    ],
  });
  const limit = timings.get(LIMIT)!;
  const whole = timings.get(WHOLE)!;
  const over = (a: string, b: string): number => pairedMedian([timings.get(a)!, timings.get(b)!], (x, y) => x / y);

  const parts = await timeParts({ quick });
  const restMicroseconds = pairedMedian([limit, whole], (bare, ours) => ours - bare);
  const accounted = parts.reduce((sum, row) => sum + row.median, 0);
  return [
    {
      title: 'Verify one request, body of 1 KiB',
      about:
        'One after the other, on one core; every request has a nonce of its own and was signed ahead. Whole: address limit, head, clock, device, body hash, ' +
        'signature, status, device limit, replay store. The limit is one ECDSA check alone. Tokens cover neither body nor replay.',
      unit: 'µs',
      rows: rowsOf(timings, { [LIMIT]: 'limit', [SUBTLE_LIMIT]: 'limit', [WHOLE]: 'ours', [CACHED]: 'ours', [FUNCTIONS]: 'ours', [SUBTLE_WHOLE]: 'ours' }),
      ratios: [
        { name: 'bare crypto.verify / whole', value: over(LIMIT, WHOLE), goal: { atLeast: 0.93 } },
        { name: 'bare crypto.verify / whole, devices kept and watched', value: over(LIMIT, CACHED), goal: null },
        { name: 'bare crypto.verify / functions, no stores', value: over(LIMIT, FUNCTIONS), goal: { atLeast: 0.93 } },
        { name: 'bare subtle.verify / whole on WebCrypto', value: over(SUBTLE_LIMIT, SUBTLE_WHOLE), goal: null },
        { name: 'everything but ECDSA / one bare verify', value: pairedMedian([limit, whole], (bare, ours) => (ours - bare) / bare), goal: { atMost: 0.15 } },
      ],
    },
    {
      title: 'Where the rest of a verification goes',
      about:
        'Each part timed alone, with requests as above. The rest is what the whole costs beyond one bare verify and these parts: promises, the order of the steps, ' +
        'the frozen result, and caches that the ECDSA arithmetic has emptied.',
      unit: 'µs',
      rows: [...parts, rowOf('rest', [restMicroseconds - accounted], 'part')],
      ratios: [{ name: 'sum of the parts / one bare verify', value: accounted / median(limit), goal: null }],
    },
  ];
};

/** Each part of a verification but ECDSA, alone. */
async function timeParts({ quick }: { quick: boolean }): Promise<Row[]> {
  const key = await makeKey();
  const sign = quickSigner(key);
  const requests: SignedRequest[] = [];
  for (let i = 0; i < 200; i += 1) requests.push(await makeRequest(sign));
  const registry = registryOf(key);
  const replayStore = memoryReplayStore({ startedAtMs: 0 });
  const ipLimiter = memoryRateLimiter({ perMinute: UNLIMITED_PER_MINUTE });
  const deviceLimiter = memoryRateLimiter({ perMinute: UNLIMITED_PER_MINUTE });
  const node = nodePrimitives();
  const createdSeconds = Math.floor(Date.now() / 1000);
  const expiresAtMs = (createdSeconds + 360) * 1000;
  let fresh: string[] = [];
  let made = 0;
  let sink: unknown = null;

  const operations = 1000;
  const request = (i: number): SignedRequest => requests[i % requests.length]!;
  const each = (name: string, body: (i: number) => unknown): Contestant => ({
    name,
    run(operations) {
      for (let i = 0; i < operations; i += 1) sink = body(i);
    },
  });
  const eachAwaited = (name: string, body: (i: number) => Promise<unknown> | unknown): Contestant => ({
    name,
    async run(operations) {
      for (let i = 0; i < operations; i += 1) sink = await body(i);
    },
  });
  const timings = await timeInTurn({
    operations,
    rounds: quick ? 20 : 60,
    warmUpRounds: quick ? 10 : 20,
    budgetMs: quick ? 3_000 : 10_000,
    prepare() {
      fresh = nonces(made, operations);
      made += operations;
    },
    contestants: [
      each('read the head (syntax, single occurrence, target)', (i) => readSignedHead(request(i).incoming, [AUTHORITY])),
      each('hash the body', () => node.sha256(BODY)),
      each('build the signature base, as bytes', (i) => utf8(signatureBase(request(i).head, 'keyguard-v1'))),
      eachAwaited('address limiter (bucket, consume)', () => ipLimiter.consume(ipBucket(IP), 1)),
      each('find the device', () => registry.findByKeyId(key.keyId)),
      each('claim the nonce', (i) => replayStore.claim(key.keyId, fresh[i]!, createdSeconds, expiresAtMs)),
      eachAwaited('device limiter: look', () => deviceLimiter.peek(key.keyId, UNLIMITED_PER_MINUTE)),
      eachAwaited('device limiter: debit', () => deviceLimiter.consume(key.keyId, 1, UNLIMITED_PER_MINUTE)),
    ],
  });
  demand(sink !== undefined);
  return rowsOf(timings, Object.fromEntries([...timings.keys()].map((name) => [name, 'part' as const])));
}

function demand(holds: unknown): void {
  if (holds !== true) throw new Error('A contestant refused what it should accept.');
}
