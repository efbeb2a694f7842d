/**
 * The client on the platform's own `fetch`, with a network that msw plays: the same suite in Node and in a real browser. What arrives
 * there is judged by the real verification, and answered as a KeyGuard server answers.
 */
import type { RequestHandler } from 'msw';
import { http } from 'msw/http';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { Bytes, KeyStore } from '@keyguard/core/seams';
import { readSignedHead, verifySignature, type SignedHead } from '@keyguard/core/verify';

/** Where msw stands: `setupServer` or `setupWorker`, begun and ended. */
export interface Network {
  start(): Promise<void>;
  use(...handlers: readonly RequestHandler[]): void;
  reset(): void;
  stop(): Promise<void>;
}

interface Arrived {
  readonly head: SignedHead;
  readonly body: Bytes;
  readonly headers: Headers;
}

const ORIGIN = 'https://keyguard.example';
const BODY = new Uint8Array([0, 255, 13, 10, 45, 45, 128]);

export function clientNetworkSuite(platform: string, network: Network): void {
  describe(`the client on the fetch of ${platform}`, () => {
    let keyStore: KeyStore;
    let guard: KeyGuardClient;
    let arrived: Arrived[];
    let answer: (arrival: Arrived, count: number) => Response;

    async function receive(request: Request): Promise<Response> {
      const { pathname, search } = new URL(request.url);
      const body = new Uint8Array(await request.arrayBuffer());
      const primitives = webCryptoPrimitives();
      const head = readSignedHead({ method: request.method, target: pathname + search, rawHeaders: [...request.headers].flat() }, ['keyguard.example']);
      const key = (await keyStore.get('keyguard.example'))!;
      // Throws for what does not verify, and msw makes an error of the network of it.
      await verifySignature(head, body, await primitives.importPublicKey(key.publicKey), 'keyguard-v1', primitives);
      arrived.push({ head, body, headers: request.headers });
      return answer(arrived.at(-1)!, arrived.length);
    }

    beforeAll(() => network.start());
    afterAll(() => network.stop());
    beforeEach(async () => {
      keyStore = memoryKeyStore();
      await keyStore.getOrCreate('keyguard.example');
      guard = new KeyGuardClient({ origin: ORIGIN, keyStore });
      arrived = [];
      answer = () => Response.json({ ok: true });
      network.use(http.all(`${ORIGIN}/*`, ({ request }) => receive(request)));
    });
    afterEach(() => network.reset());

    const form = (): FormData => {
      const data = new FormData();
      data.set('purpose', 'user_data');
      data.set('file', new File([BODY], 'ü.bin', { type: 'application/octet-stream' }));
      return data;
    };
    const problem = (status: number, code: string, detail: string, headers: Record<string, string> = {}): Response =>
      Response.json({ code, detail, status }, { status, headers: { 'content-type': 'application/problem+json', ...headers } });

    it.each<[string, () => Parameters<typeof fetch>]>([
      ['a question in a query', () => [`${ORIGIN}/a?b=%7E&c=[x]|^+%20`]],
      ['a text', () => [`${ORIGIN}/a`, { method: 'POST', body: 'héllo' }]],
      ['bytes', () => [`${ORIGIN}/a`, { method: 'PUT', body: BODY }]],
      ['a file', () => [`${ORIGIN}/a`, { method: 'POST', body: new Blob([BODY], { type: 'image/png' }) }]],
      ['a form', () => [`${ORIGIN}/a`, { method: 'POST', body: new URLSearchParams({ a: 'b c' }) }]],
      ['a Request', () => [new Request(`${ORIGIN}/a`, { method: 'POST', body: 'one', headers: { 'openai-beta': 'x' } })]],
      ['a Request and what changes it', () => [new Request(`${ORIGIN}/a`, { method: 'POST', body: 'one' }), { body: 'two' }]],
      ['a model whose name has brackets', () => [`${ORIGIN}/models/a[b]|c^d`, { method: 'DELETE' }]],
    ])('signs %s as it arrives', async (_, call) => {
      expect(await (await guard.fetch(...call())).json()).toEqual({ ok: true });
      expect(arrived).toHaveLength(1);
    });

    it('serialises a form with a file before it hashes it', async () => {
      await guard.fetch(`${ORIGIN}/v1/files`, { method: 'POST', body: form() });
      const [{ body, headers }] = arrived as [Arrived];
      const data = await new Response(body, { headers: { 'content-type': headers.get('content-type')! } }).formData();
      const file = data.get('file') as File;
      expect([data.get('purpose'), file.name, new Uint8Array(await file.arrayBuffer())]).toEqual(['user_data', 'ü.bin', BODY]);
    });

    it('signs each try of a caller who repeats anew, a form too', async () => {
      answer = (_, count) => (count < 3 ? problem(503, 'store_unavailable', 'Try again shortly.', { 'retry-after': '1' }) : Response.json({ ok: true }));
      const data = form();
      for (const status of [503, 503, 200]) expect((await guard.fetch(`${ORIGIN}/a`, { method: 'POST', body: data })).status).toBe(status);
      expect(new Set(arrived.map(({ headers }) => headers.get('x-keyguard-nonce'))).size).toBe(3);
    });

    it('corrects its clock once in a call, by at most a day, and keeps the body', async () => {
      const server = Math.floor(Date.now() / 1000) + 7200;
      answer = ({ head }) =>
        Math.abs(head.createdSeconds - server) < 60 ? Response.json({ ok: true }) : problem(401, 'timestamp_out_of_window', 'Your clock is off.', { 'x-keyguard-time': String(server) });
      expect((await guard.fetch(`${ORIGIN}/a`, { method: 'POST', body: form() })).status).toBe(200);
      expect(arrived.map(({ body }) => body.length)).toEqual([arrived[0]!.body.length, arrived[0]!.body.length]);
      expect((await guard.fetch(`${ORIGIN}/a`)).status).toBe(200);
      expect(arrived).toHaveLength(3);
      answer = () => problem(401, 'timestamp_out_of_window', 'Your clock is off.', { 'x-keyguard-time': String(server + 2 * 86_400) });
      expect((await guard.fetch(`${ORIGIN}/a`)).status).toBe(401);
      expect(arrived).toHaveLength(4);
    });

    it('hands on an answer that comes in pieces, as it comes', async () => {
      let goOn = (): void => {};
      const held = new Promise<void>((resolve) => (goOn = resolve));
      const pieces = (async function* () {
        yield 'data: one\n\n';
        await held;
        yield 'data: two\n\n';
      })();
      answer = () =>
        new Response(
          new ReadableStream({
            async pull(controller) {
              const { done, value } = await pieces.next();
              if (done) controller.close();
              else controller.enqueue(new TextEncoder().encode(value));
            },
          }),
          { headers: { 'content-type': 'text/event-stream' } },
        );
      const reader = (await guard.fetch(`${ORIGIN}/a`)).body!.pipeThrough(new TextDecoderStream()).getReader();
      expect(await reader.read()).toEqual({ done: false, value: 'data: one\n\n' });
      goOn();
      expect(await reader.read()).toEqual({ done: false, value: 'data: two\n\n' });
      expect((await reader.read()).done).toBe(true);
    });

    it.each([
      ['device_pending', 403, 'This device awaits approval by an administrator.'],
      ['device_suspended', 403, 'This device is suspended: ask an administrator.'],
      ['device_revoked', 403, 'This device is revoked for good: enroll a new key.'],
      ['signature_invalid', 401, 'The signature does not verify, or its key is not enrolled here.'],
    ])('lets the caller read that it is %s, and says it itself where it asks', async (code, status, detail) => {
      answer = () => problem(status, code, detail);
      const response = await guard.fetch(`${ORIGIN}/a`);
      expect([response.status, await response.json()]).toMatchObject([status, { code, detail }]);
      await expect(guard.status()).rejects.toMatchObject({ name: 'RejectedError', code, message: detail });
    });

    it('refuses before anything is sent what no verifier would take, and other origins', async () => {
      await expect(guard.fetch(`${ORIGIN}/models/a%2Fb`)).rejects.toMatchObject({ code: 'target_unsupported', message: expect.stringContaining('path') as string });
      await expect(guard.fetch(`${ORIGIN}/a`, { headers: { 'x-goog-upload-command': 'start' } })).rejects.toMatchObject({ code: 'header_unsupported', message: expect.stringContaining('x-goog-upload-command') as string });
      await expect(guard.fetch('https://elsewhere.example/a')).rejects.toMatchObject({ code: 'origin_not_allowed' });
      expect(arrived).toHaveLength(0);
      expect(await (await guard.fetch('data:,hello')).text()).toBe('hello');
    });
  });
}
