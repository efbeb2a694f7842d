import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { KeyGuardClient } from '@keyguard/core';
import { memoryKeyStore } from '@keyguard/core/memory';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { Bytes, KeyStore } from '@keyguard/core/seams';
import { readSignedHead, verifySignature, type SignedHead } from '@keyguard/core/verify';

interface Received {
  readonly request: IncomingMessage;
  readonly body: Bytes;
}

type Answer = (received: Received, count: number) => { status: number; headers?: Record<string, string>; body?: unknown };

let server: Server;
let origin: string;
let received: Received[];
let answer: Answer;
let keyStore: KeyStore;

beforeEach(async () => {
  received = [];
  answer = () => ({ status: 200, body: {} });
  keyStore = memoryKeyStore();
  server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const body = Buffer.concat(chunks);
      received.push({ request, body: new Uint8Array(body) });
      const { status, headers = {}, body: payload } = answer(received.at(-1)!, received.length);
      response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(payload === undefined ? '' : JSON.stringify(payload));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterEach(() => new Promise((resolve) => server.close(resolve)));

async function client(options: Partial<ConstructorParameters<typeof KeyGuardClient>[0]> = {}): Promise<KeyGuardClient> {
  await keyStore.getOrCreate(new URL(origin).host);
  return new KeyGuardClient({ origin, keyStore, ...options });
}

/** Judges what arrived as a verifier would. */
async function verified({ request, body }: Received, tag: 'keyguard-v1' | 'keyguard-enroll-v1' = 'keyguard-v1'): Promise<SignedHead> {
  const head = readSignedHead({ method: request.method!, target: request.url!, rawHeaders: request.rawHeaders }, [new URL(origin).host]);
  const key = (await keyStore.get(new URL(origin).host))!;
  const primitives = webCryptoPrimitives();
  await verifySignature(head, body, await primitives.importPublicKey(key.publicKey), tag, primitives);
  return head;
}

describe('fetch', () => {
  it.each<[string, string | URL, RequestInit | undefined]>([
    ['a plain GET', '/a', undefined],
    ['a bare question mark, which fetch drops', '/a?', undefined],
    ['a query that is not touched', '/a?b=%7E&b=~&c=[x]|^+%20', undefined],
    ['characters that URLs leave alone in a path', '/v1/a[b]|c^d', undefined],
    ['characters that URLs encode', '/v1/ä b"<>{}`', undefined],
    ['dot segments, which URLs resolve', '/a/../b/./c', undefined],
    ['a fragment, which is never sent', '/a#b', undefined],
    ['a string body, whose type fetch adds', '/a', { method: 'POST', body: 'héllo' }],
    ['a JSON body', '/a', { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"a":1}' }],
    ['lower-case patch, which fetch does not upper-case', '/a', { method: 'patch', body: 'x' }],
    ['bytes', '/a', { method: 'PUT', body: new Uint8Array([0, 255, 254]) }],
    ['a form', '/a', { method: 'POST', body: new URLSearchParams({ a: 'b c' }) }],
    ['covered headers', '/a', { method: 'POST', headers: { 'Idempotency-Key': 'k', 'OpenAI-Project': 'p', 'x-stainless-lang': 'js' }, body: 'x' }],
    ['an empty body', '/a', { method: 'POST', body: '' }],
    ['DELETE without a body', '/a', { method: 'DELETE' }],
  ])('signs what goes over the wire: %s', async (_name, path, init) => {
    const response = await (await client()).fetch(origin + path, init);
    expect(response.status).toBe(200);
    await verified(received[0]!);
  });

  it('serialises a FormData before it hashes', async () => {
    const form = new FormData();
    form.set('file', new Blob(['content'], { type: 'text/plain' }), 'a.txt');
    await (await client()).fetch(`${origin}/v1/files`, { method: 'POST', body: form });
    await verified(received[0]!);
    expect(received[0]!.request.headers['content-type']).toMatch(/^multipart\/form-data; boundary=/);
    expect(Buffer.from(received[0]!.body).toString()).toContain('content');
  });

  it('takes a Request, and a Request with an init', async () => {
    const guard = await client();
    await guard.fetch(new Request(`${origin}/a`, { method: 'POST', body: 'one' }));
    await guard.fetch(new Request(`${origin}/a`, { method: 'POST', body: 'one' }), { body: 'two' });
    await guard.fetch(new URL(`${origin}/a`));
    for (const one of received) await verified(one);
    expect(received.map(({ body }) => Buffer.from(body).toString())).toEqual(['one', 'two', '']);
  });

  it('signs a stream, and may be detached from the client', async () => {
    const { fetch } = await client();
    const stream = new ReadableStream({
      start(controller) {
        controller.enqueue(new TextEncoder().encode('streamed'));
        controller.close();
      },
    });
    await fetch(`${origin}/a`, { method: 'POST', body: stream, duplex: 'half' } as RequestInit);
    await verified(received[0]!);
  });

  it('draws a fresh nonce for every call', async () => {
    const guard = await client();
    for (let i = 0; i < 3; i += 1) await guard.fetch(`${origin}/a`);
    expect(new Set(received.map(({ request }) => request.headers['x-keyguard-nonce'])).size).toBe(3);
  });

  it('lets URLs that are not HTTP pass untouched', async () => {
    expect(await (await (await client()).fetch('data:,hello')).text()).toBe('hello');
  });

  it('signs for its origin only, and sends nothing elsewhere', async () => {
    const guard = await client();
    for (const url of ['http://127.0.0.1:1/a', origin.replace('127.0.0.1', 'localhost'), origin.replace('http:', 'https:')]) {
      await expect(guard.fetch(`${url}/a`)).rejects.toMatchObject({ code: 'origin_not_allowed' });
    }
    expect(received).toHaveLength(0);
  });

  it('follows no redirect: signature and body would go along', async () => {
    answer = ({ request }) => (request.url === '/a' ? { status: 307, headers: { location: `${origin}/b` } } : { status: 200 });
    await expect((await client()).fetch(`${origin}/a`, { method: 'POST', body: 'x' })).rejects.toThrow(TypeError);
    expect(received).toHaveLength(1);
  });

  it.each(['/models/a%2Fb', '/a//b', '/%00', '/a%25b'])('refuses %s before anything is sent', async (path) => {
    await expect((await client()).fetch(origin + path)).rejects.toMatchObject({ code: 'target_unsupported' });
    expect(received).toHaveLength(0);
  });

  it('demands an enrollment first, and says so', async () => {
    const guard = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
    await expect(guard.fetch(`${origin}/a`)).rejects.toMatchObject({ code: 'not_enrolled', message: expect.stringContaining('enroll()') as string });
  });

  /** Stands in for the platform's fetch, and keeps what it was called with. */
  function spy(calls: RequestInit[]): typeof globalThis.fetch {
    return async (_input, init) => {
      calls.push(init!);
      return Response.json({});
    };
  }

  it('sends no cookies and follows no redirect, whatever the caller asks for', async () => {
    const calls: RequestInit[] = [];
    const guard = await client({ fetch: spy(calls) });
    await guard.fetch(`${origin}/a`);
    await guard.fetch(`${origin}/a`, { credentials: 'include', redirect: 'follow' });
    await guard.fetch(new Request(`${origin}/a`, { credentials: 'include', redirect: 'follow' }));
    await guard.status().catch(() => {});
    expect(calls.map(({ credentials, redirect }) => ({ credentials, redirect }))).toEqual(Array.from({ length: 4 }, () => ({ credentials: 'omit', redirect: 'error' })));
  });

  it('hands on what else the caller asks of fetch', async () => {
    const calls: RequestInit[] = [];
    const guard = await client({ fetch: spy(calls) });
    await guard.fetch(`${origin}/a`, { method: 'POST', body: 'x', cache: 'no-store', keepalive: true });
    expect(calls).toMatchObject([{ method: 'POST', cache: 'no-store', keepalive: true }]);
    expect(Buffer.from(calls[0]!.body as Bytes).toString()).toBe('x');
  });

  it('signs in the carriage, and hashes by the primitives, that it is given', async () => {
    const calls: RequestInit[] = [];
    let hashed = 0;
    const { sha256 } = webCryptoPrimitives();
    const guard = await client({ fetch: spy(calls), carriage: 'rfc9421', primitives: { sha256: (data) => ((hashed += 1), sha256(data)) } });
    await guard.fetch(`${origin}/a`, { method: 'POST', body: 'x' });
    const names = [...new Headers(calls[0]!.headers).keys()];
    expect(names).toEqual(expect.arrayContaining(['content-digest', 'signature', 'signature-input']));
    expect(names.filter((name) => name.startsWith('x-keyguard-'))).toEqual([]);
    expect(hashed).toBe(1);
  });

  it('is aborted by the signal of a Request as by that of an init', async () => {
    const calls: RequestInit[] = [];
    const guard = await client({ fetch: spy(calls) });
    const [ofRequest, ofInit] = [new AbortController(), new AbortController()];
    await guard.fetch(new Request(`${origin}/a`, { signal: ofRequest.signal }));
    await guard.fetch(new Request(`${origin}/a`), { signal: ofInit.signal });
    const aborted = (): (boolean | undefined)[] => calls.map(({ signal }) => signal?.aborted);
    expect(aborted()).toEqual([false, false]);
    ofRequest.abort();
    expect(aborted()).toEqual([true, false]);
    ofInit.abort();
    expect(aborted()).toEqual([true, true]);
  });

  it.each<[string, (signal: AbortSignal) => Parameters<typeof fetch>]>([
    ['an init', (signal) => [`${origin}/a`, { signal }]],
    ['a Request', (signal) => [new Request(`${origin}/a`, { signal })]],
  ])('is aborted by the signal of %s in the middle of an answer too, whatever was collected meanwhile', async (_name, call) => {
    let left = 0;
    server.removeAllListeners('request').on('request', (_request, response) => {
      response.writeHead(200).write('a');
      response.on('close', () => (left += 1));
    });
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    const controller = new AbortController();
    const guard = await client();
    const reads = await Promise.all(
      Array.from({ length: 10 }, async () => {
        const reader = (await guard.fetch(...call(controller.signal))).body!.getReader();
        await reader.read();
        return { ended: reader.read().then(() => 'ended', ({ name }: Error) => name) };
      }),
    );
    for (let i = 0; i < 3; i += 1) {
      collect();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    controller.abort();
    expect(await Promise.all(reads.map(({ ended }) => ended))).toEqual(reads.map(() => 'AbortError'));
    await expect.poll(() => left).toBe(10);
  });

  it('honours an abort signal', async () => {
    const controller = new AbortController();
    const guard = await client();
    answer = () => {
      controller.abort();
      return { status: 200 };
    };
    await expect(guard.fetch(`${origin}/a`, { signal: controller.signal })).rejects.toMatchObject({ name: 'AbortError' });
  });
});

describe('the clock', () => {
  const SERVER = 1_800_000_000;
  beforeEach(() => {
    answer = ({ request }) =>
      Math.abs(Number(request.headers['x-keyguard-timestamp']) - SERVER) <= 1
        ? { status: 200, body: {} }
        : { status: 401, headers: { 'x-keyguard-time': String(SERVER) }, body: { code: 'timestamp_out_of_window' } };
  });

  it.each([-3_600_000, 3_600_000, 86_390_000])('is corrected once by what the server says, and stays corrected (%i ms off)', async (off) => {
    const guard = await client({ clock: { nowMs: () => SERVER * 1000 + off } });
    expect((await guard.fetch(`${origin}/a`, { method: 'POST', body: 'x' })).status).toBe(200);
    expect(received).toHaveLength(2);
    expect(Buffer.from(received[1]!.body).toString()).toBe('x');
    await verified(received[1]!);
    expect((await guard.fetch(`${origin}/a`)).status).toBe(200);
    expect(received).toHaveLength(3);
  });

  it('is not corrected by more than a day', async () => {
    const guard = await client({ clock: { nowMs: () => (SERVER - 90_000) * 1000 } });
    expect((await guard.fetch(`${origin}/a`)).status).toBe(401);
    expect(received).toHaveLength(1);
  });

  it('is corrected once per call, not for ever', async () => {
    answer = () => ({ status: 401, headers: { 'x-keyguard-time': String(SERVER) }, body: { code: 'timestamp_out_of_window' } });
    const guard = await client({ clock: { nowMs: () => (SERVER - 3600) * 1000 } });
    expect((await guard.fetch(`${origin}/a`)).status).toBe(401);
    expect(received).toHaveLength(2);
  });

  it.each<[string, number, object]>([
    ['a 401 of something behind the server', 401, { code: 'invalid_api_key' }],
    ['a 401 in another dialect', 401, { error: { code: 'invalid_api_key' } }],
    ['another status', 400, { code: 'timestamp_out_of_window' }],
  ])('is not moved by %s', async (_name, status, body) => {
    answer = () => ({ status, headers: { 'x-keyguard-time': String(SERVER) }, body });
    const guard = await client({ clock: { nowMs: () => (SERVER - 3600) * 1000 } });
    const response = await guard.fetch(`${origin}/a`);
    expect({ status: response.status, body: (await response.json()) as object }).toEqual({ status, body });
    await guard.fetch(`${origin}/a`);
    expect(received.map(({ request }) => Number(request.headers['x-keyguard-timestamp']))).toEqual([SERVER - 3600, SERVER - 3600]);
  });

  it('is corrected by a proxy that answers in the dialect of a provider', async () => {
    answer = ({ request }) =>
      Math.abs(Number(request.headers['x-keyguard-timestamp']) - SERVER) <= 1
        ? { status: 200, body: {} }
        : { status: 401, headers: { 'x-keyguard-time': String(SERVER) }, body: { error: { code: 'timestamp_out_of_window' } } };
    const guard = await client({ clock: { nowMs: () => SERVER * 1000 + 3_600_000 } });
    expect((await guard.fetch(`${origin}/a`)).status).toBe(200);
  });

  it.each(['1800000000.0', '1.8e9', ' ', '01800000000', '18000000000', 'NaN', '+1800000000', '0x6b49d200'])('is not moved by %j, which is no time', async (time) => {
    answer = () => ({ status: 401, headers: { 'x-keyguard-time': time }, body: { code: 'timestamp_out_of_window' } });
    const guard = await client({ clock: { nowMs: () => (SERVER - 3600) * 1000 } });
    expect((await guard.fetch(`${origin}/a`)).status).toBe(401);
    await guard.fetch(`${origin}/a`);
    expect(received.map(({ request }) => Number(request.headers['x-keyguard-timestamp']))).toEqual([SERVER - 3600, SERVER - 3600]);
  });

  it('is corrected from its own time each time, not from what it was corrected to', async () => {
    let own = (SERVER - 3600) * 1000;
    const guard = await client({ clock: { nowMs: () => own } });
    expect((await guard.fetch(`${origin}/a`)).status).toBe(200);
    // It was set by somebody meanwhile, and is off by as much to the other side.
    own = (SERVER + 3600) * 1000;
    expect((await guard.fetch(`${origin}/a`)).status).toBe(200);
    expect(received.map(({ request }) => Number(request.headers['x-keyguard-timestamp']) - SERVER)).toEqual([-3600, 0, 7200, 0]);
  });

  it('is not signed when it tells no time', async () => {
    const guard = await client({ clock: { nowMs: () => Number.NaN } });
    await expect(guard.fetch(`${origin}/a`)).rejects.toMatchObject({ name: 'UnavailableError' });
    expect(received).toHaveLength(0);
  });
});

describe('enroll and status', () => {
  /** What a server says of the device that asks. */
  const device = ({ request }: Received, status = 'active') => ({ device_id: 'd', key_id: request.headers['x-keyguard-key-id'], status });

  it('proves possession and sends the code in the body only', async () => {
    answer = (asked) => ({ status: 201, body: device(asked) });
    const guard = new KeyGuardClient({ origin, keyStore });
    const { keyId } = await keyStore.getOrCreate('other');
    expect(await guard.enroll({ code: 'SECRET-CODE', label: 'laptop' })).toEqual({ deviceId: 'd', keyId: (await keyStore.get(new URL(origin).host))!.keyId, status: 'active' });
    expect(keyId).not.toBe((await guard.status()).keyId);
    await verified(received[0]!, 'keyguard-enroll-v1');
    expect(received[0]!.request.url).toBe('/api/keyguard/enroll');
    expect(JSON.stringify(received[0]!.request.rawHeaders)).not.toContain('SECRET-CODE');
    const body = JSON.parse(Buffer.from(received[0]!.body).toString()) as Record<string, unknown>;
    expect(Object.keys(body)).toEqual(['jwk', 'code', 'label']);
    expect(Object.keys(body['jwk'] as object)).toEqual(['crv', 'kty', 'x', 'y']);
  });

  it('asks for the status first when there is a key already, and enrolls it only if the server does not know it', async () => {
    await keyStore.getOrCreate(new URL(origin).host);
    const guard = new KeyGuardClient({ origin, keyStore });
    answer = (asked) => ({ status: 200, body: device(asked) });
    expect(await guard.enroll({ code: 'unused' })).toMatchObject({ deviceId: 'd' });
    answer = (asked) => (asked.request.url!.endsWith('/status') ? { status: 401, body: { code: 'signature_invalid' } } : { status: 201, body: device(asked) });
    expect(await guard.enroll({ code: 'used' })).toMatchObject({ deviceId: 'd' });
    expect(received.map(({ request }) => request.url)).toEqual(['/api/keyguard/status', '/api/keyguard/status', '/api/keyguard/enroll']);
    answer = () => ({ status: 403, body: { code: 'ip_not_allowed' } });
    await expect(guard.enroll()).rejects.toMatchObject({ code: 'ip_not_allowed' });
    // Whoever could not say whether it knows the key is not sent a code.
    expect(received.map(({ request }) => request.url).slice(3)).toEqual(['/api/keyguard/status']);
  });

  it('asks for the status when another caller enrolled the same key meanwhile', async () => {
    answer = (asked) => (asked.request.url!.endsWith('/enroll') ? { status: 409, body: { code: 'key_exists' } } : { status: 200, body: device(asked, 'suspended') });
    expect(await new KeyGuardClient({ origin, keyStore }).enroll()).toMatchObject({ status: 'suspended' });
    await verified(received[1]!);
  });

  it('believes its own key id, not the answer’s: that is what people compare', async () => {
    answer = () => ({ status: 201, body: { device_id: 'd', key_id: 'someone-elses', status: 'active' } });
    await expect(new KeyGuardClient({ origin, keyStore }).enroll()).rejects.toMatchObject({ code: 'server_unavailable' });
  });

  it('tells a refusal by its code and an outage by its own', async () => {
    const guard = new KeyGuardClient({ origin, keyStore });
    answer = () => ({ status: 403, body: { code: 'enrollment_rejected', detail: 'ask for a new one' } });
    await expect(guard.enroll()).rejects.toMatchObject({ name: 'RejectedError', code: 'enrollment_rejected', message: 'ask for a new one' });
    answer = () => ({ status: 503, headers: { 'retry-after': '3' }, body: { code: 'store_unavailable' } });
    await expect(guard.enroll()).rejects.toMatchObject({ name: 'UnavailableError', code: 'server_unavailable', retryAfterMs: 3000, message: 'The server answered 503.' });
    answer = () => ({ status: 503, body: { code: 'store_unavailable', detail: 'Try again shortly.' } });
    await expect(guard.enroll()).rejects.toMatchObject({ code: 'server_unavailable', message: 'The server answered 503: Try again shortly.' });
    answer = () => ({ status: 404, body: 'nothing here' });
    await expect(guard.status()).rejects.toMatchObject({ code: 'server_unavailable' });
    answer = () => ({ status: 200, body: { hello: 'world' } });
    await expect(guard.status()).rejects.toMatchObject({ code: 'server_unavailable' });
  });

  it('takes for a status, a code or a delay only what is one', async () => {
    const guard = await client();
    const { keyId } = (await keyStore.get(new URL(origin).host))!;
    for (const status of ['ACTIVE', 'deleted', '', null, 1]) {
      answer = () => ({ status: 200, body: { device_id: 'd', key_id: keyId, status } });
      await expect(guard.status()).rejects.toMatchObject({ name: 'UnavailableError', code: 'server_unavailable' });
    }
    for (const deviceId of [undefined, null, 7, {}]) {
      answer = () => ({ status: 200, body: { device_id: deviceId, key_id: keyId, status: 'active' } });
      await expect(guard.status()).rejects.toMatchObject({ name: 'UnavailableError', code: 'server_unavailable' });
    }
    for (const code of ['', '<b>', 'Rate limited', 'x'.repeat(65)]) {
      answer = () => ({ status: 403, body: { code } });
      await expect(guard.status()).rejects.toMatchObject({ name: 'UnavailableError', code: 'server_unavailable' });
    }
    for (const delay of ['-5', '1e9', '0x10', '3.5', 'Wed, 21 Oct 2026 07:28:00 GMT']) {
      answer = () => ({ status: 429, headers: { 'retry-after': delay }, body: { code: 'rate_limited' } });
      await expect(guard.status()).rejects.toMatchObject({ code: 'rate_limited', retryAfterMs: undefined });
    }
    answer = () => ({ status: 429, headers: { 'retry-after': '999999999' }, body: { code: 'rate_limited' } });
    await expect(guard.status()).rejects.toMatchObject({ code: 'rate_limited', retryAfterMs: 86_400_000 });
  });

  it('forgets its key on request and then makes another', async () => {
    answer = (asked) => ({ status: 201, body: device(asked) });
    const guard = new KeyGuardClient({ origin, keyStore });
    await guard.enroll();
    await guard.forget();
    await expect(guard.status()).rejects.toMatchObject({ code: 'not_enrolled' });
    await guard.enroll();
    expect(received[0]!.request.headers['x-keyguard-key-id']).not.toBe(received[1]!.request.headers['x-keyguard-key-id']);
  });

  it('says at once that the key store is missing', () => {
    const options = { origin } as ConstructorParameters<typeof KeyGuardClient>[0];
    expect(() => new KeyGuardClient(options)).toThrow(expect.objectContaining({ code: 'invalid_option', message: 'keyStore must be a KeyStore.' }));
  });

  it.each(['', 'keyguard.example', 'ftp://a', 'http://a/b', 'http://a?b', 'http://u@a', 'http://:p@a', 'javascript:0'])('refuses %j as an origin', (odd) => {
    expect(() => new KeyGuardClient({ origin: odd, keyStore })).toThrow(expect.objectContaining({ code: 'invalid_option' }));
  });
});
