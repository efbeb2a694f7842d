/**
 * What every framework must do with KeyGuard mounted: the examples are started as their READMEs say, as a process of their own, and
 * called over a real socket, by the client and by those who mean ill.
 *
 * An example prints `enrollment code: …`, listens on `PORT`, answers `GET /api/hello` with `{ hello: label }` and `POST /api/orders` with
 * 201 `{ by: label, bytes, order }`, where `order` is the JSON that was sent.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { request, type IncomingMessage } from 'node:http';
import { createServer, type AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import { setTimeout as wait } from 'node:timers/promises';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { KeyGuardClient } from '@keyguard/core';
import { utf8 } from '@keyguard/core/bytes';
import { memoryDeviceRegistry, memoryKeyStore, memoryReplayStore } from '@keyguard/core/memory';
import { createSigner } from '@keyguard/core/sign';
import { createVerifier, type Verifier } from '@keyguard/server-verifier';

const READY_TIMEOUT_MS = 90_000;
const POLL_MS = 100;
/** One byte more than a policy takes that says nothing else. */
const TOO_LARGE_BYTES = 10 * 1024 * 1024 + 1;

/** An example that a person would start from. */
export interface FrameworkExample {
  /** Its folder. */
  readonly folder: URL;
  /** Its scripts, in the order of its README; the last one serves. */
  readonly scripts: readonly string[];
}

interface Sent {
  readonly url: string;
  readonly init: RequestInit;
}

/** Runs an example as its README says, and holds it to what every framework must keep. */
export function frameworkConformance(name: string, { folder, scripts }: FrameworkExample): void {
  describe(`KeyGuard in ${name}`, () => {
    let served: ChildProcess;
    let origin: string;
    let code: string;
    let guard: KeyGuardClient;
    /** What the client sends last, and how it is bent before it goes out. */
    let sent: Sent;
    let bend: (sent: Sent) => Sent = (given) => given;

    beforeAll(async () => {
      const port = await freePort();
      origin = `http://localhost:${port}`;
      for (const script of scripts.slice(0, -1)) await finished(run(folder, script, port));
      served = run(folder, scripts.at(-1)!, port);
      code = await printedCode(served);
      await answering(`${origin}/api/keyguard/time`);
      guard = new KeyGuardClient({
        origin,
        keyStore: memoryKeyStore(),
        fetch: (url, init) => {
          sent = { url: String(url), init: init! };
          const { url: bentUrl, init: bentInit } = bend(sent);
          return fetch(bentUrl, bentInit);
        },
      });
      await enrolled();
    }, 2 * READY_TIMEOUT_MS);

    afterAll(() => ended(served));

    /** For its first seconds a store in memory cannot know what was used before, and says when to come again. */
    async function enrolled(): Promise<void> {
      try {
        expect(await guard.enroll({ code, label: 'laptop' })).toMatchObject({ status: 'active' });
      } catch (error) {
        const { retryAfterMs } = error as { retryAfterMs?: number };
        if (retryAfterMs === undefined) throw error;
        await wait(retryAfterMs);
        await enrolled();
      }
    }

    async function order(body: BodyInit, headers: Record<string, string> = { 'content-type': 'application/json' }, bent?: (sent: Sent) => Sent): Promise<Response> {
      if (bent !== undefined) bend = bent;
      try {
        return await guard.fetch(`${origin}/api/orders?dry=1`, { method: 'POST', headers, body });
      } finally {
        bend = (given) => given;
      }
    }

    /** A signed order that was not sent; what asks for the time in its place is of no interest. */
    async function held(body: string): Promise<Sent> {
      let kept: Sent | undefined;
      await order(body, undefined, (given) => ((kept = given), { url: `${origin}/api/keyguard/time`, init: {} }));
      return kept!;
    }

    async function expectRefused(answer: Response, status: number, refusal: string): Promise<void> {
      const body = await answer.text();
      expect({ status: answer.status, body }).toEqual({ status, body: expect.stringContaining(`"code":"${refusal}"`) as string });
      expect(answer.headers.get('content-type')).toMatch(/^application\/problem\+json/);
      expect(answer.headers.get('cache-control')).toBe('no-store');
    }

    it('lets an enrolled device through, and hands on what was verified', async () => {
      const hello = await guard.fetch(`${origin}/api/hello`);
      expect({ status: hello.status, body: await hello.json() as unknown }).toEqual({ status: 200, body: { hello: 'laptop' } });
      const answer = await order('{"n":1}');
      expect({ status: answer.status, body: await answer.json() as unknown }).toEqual({ status: 201, body: { by: 'laptop', bytes: 7, order: { n: 1 } } });
      expect(await guard.status()).toMatchObject({ status: 'active' });
    });

    it('enrolls nobody with a code that was used', async () => {
      const other = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
      await expect(other.enroll({ code })).rejects.toMatchObject({ code: 'enrollment_rejected' });
    });

    it('refuses what is not signed, and whom it does not know', async () => {
      await expectRefused(await fetch(`${origin}/api/hello`), 400, 'malformed_request');
      await expectRefused(await fetch(`${origin}/api/orders`, { method: 'POST', body: '{}', headers: { 'content-type': 'application/json' } }), 400, 'malformed_request');
      const stranger = await memoryKeyStore().getOrCreate('stranger');
      const signature = await createSigner({ key: stranger })({ method: 'GET', authority: new URL(origin).host, target: '/api/hello', headers: [], body: new Uint8Array() });
      await expectRefused(await fetch(`${origin}/api/hello`, { headers: { ...signature } }), 401, 'signature_invalid');
    });

    it('refuses a request that was used', async () => {
      expect((await order('{"n":1}')).status).toBe(201);
      await expectRefused(await fetch(sent.url, sent.init), 401, 'replay_detected');
    });

    it('refuses a request that was changed, and a nonce is not used up by that', async () => {
      const changed: ((sent: Sent) => Sent)[] = [
        ({ url, init }) => ({ url, init: { ...init, body: '{"n":2}' } }),
        ({ url, init }) => ({ url, init: { ...init, body: utf8('{"n":1} ') } }),
        ({ url, init }) => ({ url, init: { ...init, body: null } }),
        ({ url, init }) => ({ url: `${url}&wet=1`, init }),
        ({ url, init }) => ({ url, init: { ...init, headers: { ...Object.fromEntries(init.headers as Headers), 'content-type': 'text/plain' } } }),
      ];
      for (const bent of changed) await expectRefused(await order('{"n":1}', undefined, bent), 401, 'signature_invalid');
      expect((await fetch(sent.url, sent.init)).status).toBe(201);
    });

    it.each(['application/json; charset=utf-8', 'text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'application/octet-stream'])(
      'leaves the bytes to the verifier, whatever they are said to be: %s',
      async (type) => {
        const answer = await order('{"n":1}', { 'content-type': type });
        expect({ status: answer.status, body: await answer.json() as unknown }).toMatchObject({ status: 201, body: { bytes: 7, order: { n: 1 } } });
      },
    );

    it('reads a body to its end, in pieces and beyond what parsers take', async () => {
      const body = JSON.stringify('x'.repeat(2 * 1024 * 1024));
      const answer = await order(body);
      expect({ status: answer.status, bytes: ((await answer.json()) as { bytes: number }).bytes }).toEqual({ status: 201, bytes: body.length });
      const pieces = ({ url, init }: Sent): Sent => ({ url, init: { ...init, body: new Blob([utf8('{"n"'), utf8(':1}')]).stream(), duplex: 'half' } as RequestInit });
      expect((await order('{"n":1}', undefined, pieces)).status).toBe(201);
      const more = ({ url, init }: Sent): Sent => ({ url, init: { ...init, body: new Blob([utf8('{"n":1}'), utf8(' ')]).stream(), duplex: 'half' } as RequestInit });
      await expectRefused(await order('{"n":1}', undefined, more), 401, 'signature_invalid');
    });

    it('takes no header twice for another message', async () => {
      const nonce = await sentByHand(await held('{"n":1}'), { 'x-keyguard-nonce': 'AAAAAAAAAAAAAAAAAAAAAA' }, '{"n":1}');
      expect(nonce.statusCode).toBe(400);
      nonce.resume();
      const typed = await sentByHand(await held('{"n":1}'), { 'content-type': 'text/plain' }, '{"n":1}');
      // Refused; or, where a runtime drops the second one, the message that was signed.
      const seen = typed.statusCode === 201 ? (JSON.parse(await text(typed)) as unknown) : null;
      typed.resume();
      expect([[400, 401].includes(typed.statusCode!), seen]).toEqual(seen === null ? [true, null] : [false, { by: 'laptop', bytes: 7, order: { n: 1 } }]);
    });

    it('refuses more than the limit by what is announced, without waiting for it, and goes on', async () => {
      const answer = await sentByHand(await held('x'.repeat(TOO_LARGE_BYTES)), { 'content-length': String(TOO_LARGE_BYTES) });
      expect({ status: answer.statusCode, connection: answer.headers.connection }).toEqual({ status: 413, connection: 'close' });
      answer.destroy();
      expect((await order('{"n":1}')).status).toBe(201);
    });
  });
}

/** A verifier that knows one device, and what that device sends: for a server that mounts the verifier in the wrong place. */
export interface KnownDevice {
  readonly verifier: Verifier;
  /** A signed `POST` of JSON to a path of this server, which the verifier would let through. */
  signedOrder(path: string): Promise<RequestInit>;
}

/**
 * A server that knows one device, and that device.
 * @throws UsageError as a signer does
 */
export async function knownDevice(): Promise<KnownDevice> {
  const authority = 'api.example.com';
  const registry = memoryDeviceRegistry();
  const key = await memoryKeyStore().getOrCreate('device');
  const nowMs = Date.now();
  registry.addCode({ codeHash: 'code', ownerId: 'owner', expiresAtMs: nowMs + 60_000 });
  registry.enroll({ keyId: key.keyId, publicKey: key.publicKey, codeHash: 'code', label: null, fingerprint: null, nowMs });
  return {
    verifier: createVerifier({ registry, replayStore: memoryReplayStore({ startedAtMs: 0 }), policy: { authorities: [authority] } }),
    async signedOrder(target) {
      const headers: [string, string][] = [['content-type', 'application/json']];
      const body = utf8('{"n":1}');
      const signature = await createSigner({ key })({ method: 'POST', authority, target, headers, body });
      return { method: 'POST', headers: [...headers, ...Object.entries(signature)], body };
    },
  };
}

/** Sends the head with further headers, which come on lines of their own, and what there is of a body. */
function sentByHand({ url, init }: Sent, added: Record<string, string>, body?: string): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const headers = [...(init.headers as Headers), ['host', new URL(url).host], ...Object.entries(added), ...(body === undefined ? [] : [['content-length', String(body.length)]])];
    const sending = request(url, { method: 'POST', headers: headers.flat() }, resolve).on('error', reject);
    if (body === undefined) sending.flushHeaders();
    else sending.end(body);
  });
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function run(folder: URL, script: string, port: number): ChildProcess {
  // As in the shell of someone who read the README: nothing that makes it part of a test run.
  const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(?:VITEST|NODE_ENV$|NODE_OPTIONS$)/.test(name)));
  // A group of its own, so that the package manager's children end with it.
  return spawn('pnpm', ['run', script], {
    cwd: fileURLToPath(folder),
    detached: true,
    env: { ...environment, PORT: String(port) },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

function collecting(child: ChildProcess): { text: string } {
  const printed = { text: '' };
  for (const stream of [child.stdout!, child.stderr!]) stream.setEncoding('utf8').on('data', (text: string) => (printed.text += text));
  return printed;
}

async function finished(child: ChildProcess): Promise<void> {
  const printed = collecting(child);
  const timer = setTimeout(() => process.kill(-child.pid!, 'SIGKILL'), 2 * READY_TIMEOUT_MS);
  const status = await new Promise((resolve) => child.once('close', resolve));
  clearTimeout(timer);
  if (status !== 0) throw new Error(`ended with ${String(status)}:\n${printed.text}`);
}

/** The code that an example prints when it begins to serve. */
async function printedCode(child: ChildProcess): Promise<string> {
  const printed = collecting(child);
  const deadline = Date.now() + READY_TIMEOUT_MS;
  while (Date.now() < deadline && child.exitCode === null) {
    const code = /enrollment code: (\S+)/.exec(printed.text)?.[1];
    if (code !== undefined) return code;
    await wait(POLL_MS);
  }
  throw new Error(`printed no enrollment code:\n${printed.text}`);
}

async function answering(url: string): Promise<void> {
  const deadline = Date.now() + READY_TIMEOUT_MS;
  while (!(await fetch(url).then(({ ok }) => ok, () => false))) {
    if (Date.now() > deadline) throw new Error(`${url} does not answer.`);
    await wait(POLL_MS);
  }
}

async function ended(child: ChildProcess | undefined): Promise<void> {
  if (child === undefined || child.exitCode !== null) return;
  const gone = new Promise((resolve) => child.once('close', resolve));
  process.kill(-child.pid!, 'SIGTERM');
  const timer = setTimeout(() => process.kill(-child.pid!, 'SIGKILL'), 5000);
  await gone;
  clearTimeout(timer);
}
