/**
 * One server in a process of its own, on one core. All read the body of the request and give the same answer; they differ in
 * what they demand before.
 */
import { createServer, type RequestListener, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { verify as verifyBytes } from 'node:crypto';
import { keyguard } from '@keyguard/adapters-express';
import { memoryReplayStore } from '@keyguard/core/memory';
import { toBase64, utf8 } from '@keyguard/core/bytes';
import { signatureBase } from '@keyguard/core/canonical';
import type { Bytes } from '@keyguard/core/seams';
import { assertFresh, readSignedHead } from '@keyguard/core/verify';
import { createVerifier, nodePrimitives } from '@keyguard/server-verifier';
import express, { type Express, type RequestHandler } from 'express';
import { createVerifier as createRfc9421Verifier, httpbis } from 'http-message-signatures';
import { jwtVerify } from 'jose';
import { AUTHORITY, cachedRegistryOf, contentDigest, keyFrom, makeRequest, quickSigner, type Key, type PrivateJwk } from './material.ts';
import { RFC9421_REQUIRED } from './rfc9421.ts';

export type ServerName = keyof typeof SERVERS;

const ANSWER = '{"ok":true}';
const UNLIMITED_PER_MINUTE = 1_000_000_000;

const SERVERS = {
  'node:http': () => bare(() => true),

  async 'node:http + one bare verify'(key: Key) {
    const { base, signatureDer } = await makeRequest(quickSigner(key));
    return bare(() => verifyBytes('sha256', base, key.publicObject, signatureDer));
  },

  'Express': () => application(rawBody()),

  'Express + jose ES256 bearer': (key: Key) => application(bearer(key), rawBody()),

  'Express + jose ES256 bearer, body left unread': (key: Key) => application(bearer(key)),

  'Express + http-message-signatures': (key: Key) => application(rawBody(), rfc9421(key)),

  'Express + the bare steps by hand': (key: Key) => application(bareSteps(key)),

  'Express + KeyGuard': (key: Key) =>
    application(
      keyguard(
        createVerifier({
          policy: { authorities: [AUTHORITY], requestsPerMinute: UNLIMITED_PER_MINUTE, requestsPerMinutePerIp: UNLIMITED_PER_MINUTE },
          registry: cachedRegistryOf(key),
          replayStore: memoryReplayStore({ startedAtMs: 0 }),
        }),
      ),
    ),
} satisfies Record<string, (key: Key) => RequestListener | Promise<RequestListener>>;

function bare(admits: () => boolean): RequestListener {
  return (request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      if (!admits()) throw new Error('The bare check failed.');
      answer(response);
    });
  };
}

// The same everywhere: how Express writes JSON is not what is measured.
function answer(response: ServerResponse): void {
  response.writeHead(200, { 'content-type': 'application/json', 'content-length': ANSWER.length }).end(ANSWER);
}

function application(...handlers: RequestHandler[]): Express {
  const app = express().disable('x-powered-by');
  app.use(...handlers, (_request, response) => answer(response));
  return app;
}

const rawBody = (): RequestHandler => express.raw({ type: () => true });

/**
 * What the protocol costs at least behind Express: head, signature, body hash, one Set of nonces, and none of what makes it safe to run
 * (limits of size, memory, time and rate, a registry, time-outs of seams, a store that forgets).
 */
function bareSteps(key: Key): RequestHandler {
  const primitives = nodePrimitives();
  const used = new Set<string>();
  return (request, _response, next) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const body = chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
      const head = readSignedHead({ method: request.method, target: request.originalUrl, rawHeaders: request.rawHeaders }, [AUTHORITY]);
      assertFresh(head.createdSeconds, { maxAgeSeconds: 300, maxFutureSeconds: 60 }, Date.now());
      const valid = primitives.verify(key.publicObject, utf8(signatureBase(head, 'keyguard-v1')), head.signature);
      const matches = toBase64(primitives.sha256(body as Bytes) as Bytes) === head.bodySha256;
      const pair = `${head.keyId}.${head.nonce}`;
      if (valid !== true || !matches || used.has(pair)) throw new Error('The bare steps refused a request.');
      used.add(pair);
      request.body = body;
      next();
    });
  };
}

function bearer(key: Key): RequestHandler {
  const { publicKey } = key.webCryptoPair;
  return async (request, _response, next) => {
    const token = request.headers.authorization?.slice('Bearer '.length) ?? '';
    await jwtVerify(token, publicKey, { algorithms: ['ES256'] });
    next();
  };
}

function rfc9421(key: Key): RequestHandler {
  const known = { id: key.keyId, verify: createRfc9421Verifier(key.publicObject as never, 'ecdsa-p256-sha256') };
  const options = { keyLookup: async () => known, maxAge: 300, tolerance: 60, ...RFC9421_REQUIRED };
  return async (request, _response, next) => {
    if (request.headers['content-digest'] !== contentDigest(request.body as Buffer)) throw new Error('The digest does not match.');
    const message = { method: request.method, url: `https://${AUTHORITY}${request.originalUrl}`, headers: request.headers as Record<string, string> };
    if ((await httpbis.verifyMessage(options, message)) !== true) throw new Error('The signature does not verify.');
    next();
  };
}

/** Started with this; tells its port, and at every message the processor time that it has taken so far, in microseconds. */
export interface ServerStart {
  readonly name: ServerName;
  readonly privateJwk: PrivateJwk;
}

const { name, privateJwk } = JSON.parse(process.argv[2]!) as ServerStart;
const server = createServer(await SERVERS[name](await keyFrom(privateJwk)));
server.listen(0, '127.0.0.1', () => process.send!((server.address() as AddressInfo).port));
process.on('message', () => {
  const { user, system } = process.cpuUsage();
  process.send!(user + system);
});
process.on('disconnect', () => process.exit());
