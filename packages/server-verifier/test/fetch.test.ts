/**
 * The door for WHATWG `Request`s, without a socket: what becomes the message, what a body may cost, and what a handler is given.
 * Over real sockets it is attacked by the numbers in `packages/conformance`.
 */
import { beforeEach, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core';
import { utf8 } from '@keyguard/core/bytes';
import { memoryDeviceRegistry, memoryKeyStore, memoryReplayStore, type MemoryDeviceRegistry } from '@keyguard/core/memory';
import type { SigningKey } from '@keyguard/core/seams';
import { createSigner } from '@keyguard/core/sign';
import { webCryptoRandom } from '@keyguard/core/system';
import {
  createEnrollment,
  createRotation,
  createVerifier,
  generateEnrollmentCode,
  generateRotationCode,
  hashEnrollmentCode,
  hashRotationCode,
  type PolicyOptions,
  type RejectionEvent,
  type VerifiedRequest,
} from '@keyguard/server-verifier';
import { fetchDevices, fetchDoor, type FetchDoor, type FetchDoorOptions } from '@keyguard/server-verifier/fetch';

const AUTHORITY = 'api.example.com';
const ORIGIN = `https://${AUTHORITY}`;
const NOW_MS = 1_800_000_000_000;
const clock = { nowMs: (): number => NOW_MS };

let registry: MemoryDeviceRegistry;
let rejections: RejectionEvent[];
let key: SigningKey;

function optionsOf(policy: Partial<PolicyOptions> = {}) {
  return {
    registry,
    clock,
    replayStore: memoryReplayStore({ clock, maxFutureSeconds: 60, startedAtMs: 0 }),
    policy: { authorities: [AUTHORITY], ...policy },
    onRejected: (event: RejectionEvent) => void rejections.push(event),
  };
}

function open(policy?: Partial<PolicyOptions>, options: Partial<FetchDoorOptions<unknown[]>> = {}): FetchDoor<unknown[]> {
  return fetchDoor(createVerifier(optionsOf(policy)), { ip: () => '192.0.2.1', ...options });
}

beforeEach(async () => {
  registry = memoryDeviceRegistry();
  rejections = [];
  key = await memoryKeyStore().getOrCreate('device');
  registry.addCode({ codeHash: 'code', ownerId: 'owner', expiresAtMs: NOW_MS + 1 });
  registry.enroll({ keyId: key.keyId, publicKey: key.publicKey, codeHash: 'code', label: null, fingerprint: null, nowMs: NOW_MS });
});

interface Bent {
  readonly method?: string;
  readonly target?: string;
  readonly authority?: string;
  readonly headers?: [string, string][];
  readonly body?: string;
  /** What is sent, where it is not what was signed. */
  readonly url?: string;
  readonly sentHeaders?: [string, string][];
  readonly sentBody?: BodyInit | ReadableStream | null;
  readonly by?: SigningKey;
}

async function signed({ method = 'POST', target = '/api/echo?a=1', authority = AUTHORITY, headers = [['content-type', 'application/json']], body = '{"n":1}', ...sent }: Bent = {}): Promise<Request> {
  const signature = await createSigner({ key: sent.by ?? key, clock })({ method, authority, target, headers, body: utf8(body) });
  const init = {
    method,
    headers: [...(sent.sentHeaders ?? headers), ...Object.entries(signature)],
    body: sent.sentBody === undefined ? (method === 'GET' ? null : body) : sent.sentBody,
    duplex: 'half',
  };
  return new Request(sent.url ?? `${ORIGIN}${target}`, init as RequestInit);
}

/** The code of the refusal, or `null` where the door let it through. */
async function codeOf(door: FetchDoor<unknown[]>, request: Request): Promise<string | null> {
  const { refusal } = await door.verify(request);
  return refusal === null ? null : ((await refusal.json()) as { code: string }).code;
}

/** A stream that gives the chunks one by one, and tells how many were asked for. */
function streamOf(chunks: Iterable<unknown>): { stream: ReadableStream; pulls: () => number } {
  const iterator = chunks[Symbol.iterator]();
  let pulls = 0;
  const stream = new ReadableStream(
    {
      pull(controller) {
        pulls += 1;
        const { done, value } = iterator.next();
        if (done === true) controller.close();
        else controller.enqueue(value);
      },
    },
    { highWaterMark: 0 },
  );
  return { stream, pulls: () => pulls };
}

describe('a handler behind the door', () => {
  it('is given what was verified, and never the request', async () => {
    const seen: unknown[][] = [];
    const handler = open().guarded((...given) => {
      seen.push(given);
      return new Response('in');
    });
    expect(await (await handler(await signed(), 'context')).text()).toBe('in');
    const [[verified, context, ...rest]] = seen as [[VerifiedRequest, string, ...unknown[]]];
    expect({ context, rest }).toEqual({ context: 'context', rest: [] });
    expect(verified).toMatchObject({ method: 'POST', authority: AUTHORITY, path: '/api/echo', query: 'a=1', contentType: 'application/json' });
    expect(new TextDecoder().decode(verified.body)).toBe('{"n":1}');
    expect(Object.isFrozen(verified)).toBe(true);
  });

  it('is called for the RFC 9421 carriage where the policy takes it, and for no field that came twice', async () => {
    const guarded = open({ carriage: 'rfc9421' }).guarded(() => new Response('in'));
    const sign = createSigner({ key, clock, carriage: 'rfc9421' });
    const message = { method: 'POST', authority: AUTHORITY, target: '/api/echo', headers: [], body: new Uint8Array(0) };
    const sent = async (twice?: string): Promise<Request> => {
      const fields = new Headers(await sign(message));
      if (twice !== undefined) fields.append(twice, fields.get(twice)!);
      return new Request(`${ORIGIN}/api/echo`, { method: 'POST', headers: fields });
    };
    expect((await guarded(await sent())).status).toBe(200);
    for (const field of ['signature-input', 'signature', 'content-digest']) expect((await guarded(await sent(field))).status).toBe(400);
    expect((await guarded(await signed())).status).toBe(400);
    expect((await open().verify(await sent())).refusal?.status).toBe(400);
  });

  it('is not called for a request that is unsigned, used, changed, or by a stranger', async () => {
    const handler = vi.fn(() => new Response('in'));
    const guarded = open().guarded(handler);
    const request = await signed();
    expect((await guarded(request.clone())).status).toBe(200);
    const stranger = await memoryKeyStore().getOrCreate('stranger');
    const refused: [Request, number, string][] = [
      [new Request(`${ORIGIN}/api/echo`, { method: 'POST', body: '{}' }), 400, 'malformed_request'],
      [request, 401, 'replay_detected'],
      [await signed({ sentBody: '{"n":2}' }), 401, 'signature_invalid'],
      [await signed({ url: `${ORIGIN}/api/echo?a=2` }), 401, 'signature_invalid'],
      [await signed({ by: stranger }), 401, 'signature_invalid'],
    ];
    for (const [odd, status, code] of refused) {
      const answer = await guarded(odd);
      expect({ status: answer.status, ...(await answer.json() as object) }).toMatchObject({ status, code });
      expect(answer.headers.get('content-type')).toBe('application/problem+json');
      expect(answer.headers.get('cache-control')).toBe('no-store');
    }
    expect(handler).toHaveBeenCalledTimes(1);
  });

  it('may answer refusals in its own dialect', async () => {
    const door = open({}, { answerRejection: ({ status, headers, problem }) => Response.json({ error: problem.code }, { status, headers }) });
    const { refusal } = await door.verify(new Request(`${ORIGIN}/api/echo`));
    expect(await refusal!.json()).toEqual({ error: 'malformed_request' });
  });
});

it('the connection ends with a refusal whose body was not read, and with no other', async () => {
  const door = open();
  const connection = async (request: Request): Promise<string | null> => (await door.verify(request)).refusal!.headers.get('connection');
  expect(await connection(await signed({ by: await memoryKeyStore().getOrCreate('stranger') }))).toBe('close');
  expect(await connection(await signed({ sentBody: 'other' }))).toBeNull();
  expect(await connection(new Request(`${ORIGIN}/api/echo`))).toBeNull();
});

describe('the address', () => {
  it('is what the caller of the door says, and no header', async () => {
    const door = open({}, { ip: (_request, address) => address as string });
    const request = new Request(`${ORIGIN}/api/echo`, { headers: { 'x-forwarded-for': '10.0.0.1', forwarded: 'for=10.0.0.1', 'x-real-ip': '10.0.0.1' } });
    await door.verify(request, '203.0.113.7');
    expect(rejections.map(({ ip }) => ip)).toEqual(['203.0.113.7']);
    const closed = open({ ipAllowlist: ['10.0.0.0/8'] });
    expect(await codeOf(closed, request)).toBe('ip_not_allowed');
  });

  it('has no default', () => {
    const verifier = createVerifier(optionsOf());
    const enrollment = createEnrollment(optionsOf());
    for (const ip of [undefined, null, '127.0.0.1']) {
      expect(() => fetchDoor(verifier, { ip: ip as never })).toThrow(expect.objectContaining({ code: 'invalid_option' }));
      expect(() => fetchDevices({ verifier, enrollment, ip: ip as never })).toThrow(expect.objectContaining({ code: 'invalid_option' }));
    }
  });

  it('that fails to be told lets nobody in', async () => {
    const door = open({}, { ip: () => { throw new Error('no connection'); } });
    await expect(door.verify(await signed())).rejects.toThrow('no connection');
  });
});

describe('the message is what the runtime made of it', () => {
  it('a target in another spelling is the one that it was resolved to, once', async () => {
    const door = open();
    const request = await signed({ target: '/api/b', url: `${ORIGIN}/api/a/../b` });
    const { verified } = await door.verify(request.clone());
    expect(verified).toMatchObject({ path: '/api/b' });
    expect(await codeOf(door, request)).toBe('replay_detected');
  });

  it.each([`${ORIGIN}/api//evil`, `${ORIGIN}/api/\\evil`, `${ORIGIN}/api/a%2fb`, `${ORIGIN}/api/a%00b`, `${ORIGIN}/api/a|b`, `${ORIGIN}/api/echo?a=1#b`])('%s', async (url) => {
    expect(await codeOf(open(), await signed({ url }))).toBe('malformed_request');
  });

  it('a covered header or Content-Type that came twice is its joined value: that must have been signed', async () => {
    const door = open();
    for (const name of ['content-type', 'anthropic-beta']) {
      expect(await codeOf(door, await signed({ headers: [[name, 'a']], sentHeaders: [[name, 'a'], [name, 'a']] }))).toBe('signature_invalid');
      expect(await codeOf(door, await signed({ headers: [[name, 'a']], sentHeaders: [[name, 'a'], [name, 'b']] }))).toBe('signature_invalid');
    }
    const split = await signed({ headers: [['anthropic-beta', 'a, b']], sentHeaders: [['anthropic-beta', 'a'], ['anthropic-beta', 'b']], sentBody: null, body: '' });
    const { verified } = await door.verify(split);
    expect(verified!.coveredHeaders).toEqual([['anthropic-beta', 'a, b']]);
  });

  it('a carriage header that came twice breaks its grammar', async () => {
    for (const name of ['x-keyguard-key-id', 'x-keyguard-timestamp', 'x-keyguard-nonce', 'x-keyguard-body-sha256', 'x-keyguard-signature']) {
      const request = await signed();
      request.headers.append(name, request.headers.get(name)!);
      expect(await codeOf(open(), request)).toBe('malformed_request');
    }
  });

  it('the authority is the configured one; of several the URL names it, and no header does', async () => {
    const one = open();
    expect(await codeOf(one, await signed({ url: 'http://internal:3000/api/echo?a=1' }))).toBeNull();
    expect(await codeOf(one, await signed({ authority: 'other.example.com' }))).toBe('signature_invalid');
    const two = open({ authorities: ['a.example', 'b.example:8080'] });
    expect(await codeOf(two, await signed({ authority: 'b.example:8080', url: 'http://b.example:8080/api/echo?a=1' }))).toBeNull();
    expect(await codeOf(two, await signed({ authority: 'a.example', url: 'https://a.example/api/echo?a=1' }))).toBeNull();
    expect(await codeOf(two, await signed({ authority: 'c.example', url: 'http://c.example/api/echo?a=1' }))).toBe('signature_invalid');
    const spoofed: [string, string][] = [['host', 'a.example'], ['x-forwarded-host', 'a.example']];
    expect(await codeOf(two, await signed({ authority: 'a.example', url: 'http://b.example:8080/api/echo?a=1', sentHeaders: spoofed, headers: [] }))).toBe('signature_invalid');
  });

  it('a Host that came twice is refused', async () => {
    const request = await signed({ sentHeaders: [['host', AUTHORITY], ['host', AUTHORITY]], headers: [] });
    expect(await codeOf(open(), request)).toBe('malformed_request');
  });
});

describe('the body', () => {
  it('is not touched for who has not proven a key', async () => {
    const { stream, pulls } = streamOf([utf8('{"n":1}')]);
    const request = await signed({ by: await memoryKeyStore().getOrCreate('stranger'), sentBody: stream });
    const body = vi.spyOn(request, 'body', 'get');
    expect(await codeOf(open(), request)).toBe('signature_invalid');
    expect({ pulls: pulls(), looks: body.mock.calls.length }).toEqual({ pulls: 0, looks: 0 });
  });

  it('is read to its end, however it is cut', async () => {
    const text = 'x'.repeat(5000);
    for (const size of [1, 7, 1023, 1024, 1025, 4999, 5000]) {
      const chunks = Array.from({ length: Math.ceil(5000 / size) }, (_, i) => utf8(text.slice(i * size, (i + 1) * size)));
      const { verified } = await open().verify(await signed({ body: text, sentBody: streamOf(chunks).stream }));
      expect(new TextDecoder().decode(verified!.body)).toBe(text);
    }
  });

  it('of a request without one is no bytes', async () => {
    expect((await open().verify(await signed({ method: 'DELETE', body: '', sentBody: null, headers: [] }))).verified!.body).toHaveLength(0);
    expect(await codeOf(open(), await signed({ method: 'DELETE', body: '', sentBody: 'evil', headers: [] }))).toBe('signature_invalid');
  });

  it('over the limit, announced or not, is read no further', async () => {
    const door = open({ maxBodyBytes: 10 });
    const { stream, pulls } = streamOf(Array.from({ length: 100 }, () => utf8('xxxx')));
    expect(await codeOf(door, await signed({ body: 'x'.repeat(400), sentBody: stream }))).toBe('body_too_large');
    expect(pulls()).toBe(3);
    const announced = streamOf([utf8('x')]);
    expect(await codeOf(door, await signed({ sentHeaders: [['content-length', '11']], headers: [], sentBody: announced.stream }))).toBe('body_too_large');
    expect(announced.pulls()).toBe(0);
  });

  it('over the limit of its route is read no further', async () => {
    const door = open({ maxBodyBytes: 1000 }, { maxBodyBytes: ({ method }) => (method === 'POST' ? 10 : 0) });
    const { stream, pulls } = streamOf(Array.from({ length: 100 }, () => utf8('xxxx')));
    expect(await codeOf(door, await signed({ body: 'x'.repeat(400), sentBody: stream }))).toBe('body_too_large');
    expect(pulls()).toBe(3);
    expect(await codeOf(door, await signed({ body: 'x'.repeat(10) }))).toBeNull();
  });

  it.each(['', '-1', 'x', '1', '7, 7', '99999999999999999999', '1e9'])('is read whatever its length is said to be: %j', async (length) => {
    const text = 'x'.repeat(3000);
    const { verified } = await open().verify(
      await signed({ headers: [], sentHeaders: [['content-length', length]], body: text, sentBody: streamOf([utf8(text.slice(0, 7)), utf8(text.slice(7))]).stream }),
    );
    expect(verified!.body).toHaveLength(3000);
  });

  it('that does not come in time is not waited for, and what comes later is not read', async () => {
    let asked = 0;
    const never = new ReadableStream({ pull: () => ((asked += 1), new Promise(() => {})) }, { highWaterMark: 0 });
    const door = open({ bodyTimeoutMs: 50, maxUnverifiedBytes: 1500 });
    expect(await codeOf(door, await signed({ sentBody: never }))).toBe('request_timeout');
    expect(asked).toBe(1);
    let late: ReadableStreamDefaultController;
    const dripping = new ReadableStream({ start: (controller) => ((late = controller), controller.enqueue(utf8('{"n"'))) });
    expect(await codeOf(door, await signed({ sentBody: dripping }))).toBe('request_timeout');
    late!.enqueue(utf8(':1}'));
    late!.close();
    // What it held is free again.
    expect(await codeOf(door, await signed())).toBeNull();
  });

  it('that breaks off is refused, and its nonce is not used', async () => {
    const door = open();
    const whole = await signed();
    const broken = new Request(whole.url, {
      method: 'POST',
      headers: whole.headers,
      duplex: 'half',
      body: new ReadableStream({ start: (controller) => (controller.enqueue(utf8('{')), controller.error(new Error('gone'))) }),
    } as RequestInit);
    expect(await codeOf(door, broken)).toBe('malformed_request');
    expect(rejections[0]!.error).toMatchObject({ detail: 'body ended early' });
    expect(await codeOf(door, whole)).toBeNull();
  });

  it('has a budget for all together, which is free again after every outcome', async () => {
    const door = open({ maxUnverifiedBytes: 3000 });
    const body = 'x'.repeat(2000);
    for (let i = 0; i < 3; i += 1) {
      expect(await codeOf(door, await signed({ body }))).toBeNull();
      expect(await codeOf(door, await signed({ body, sentBody: 'y'.repeat(2000) }))).toBe('signature_invalid');
      expect(await codeOf(door, await signed({ body: 'x'.repeat(3001) }))).toBe('overloaded');
    }
  });

  it('that something else has read, is reading, or that is no bytes, is a mistake in the program', async () => {
    const used = await signed();
    await used.text();
    const locked = await signed();
    locked.body!.getReader();
    const odd = await signed({ sentBody: streamOf(['{"n":1}']).stream });
    for (const request of [used, locked, odd]) {
      await expect(open().verify(request)).rejects.toMatchObject({ name: 'UsageError', code: 'invalid_option' });
    }
    expect(rejections).toEqual([]);
  });
});

describe('the routes of devices', () => {
  function devices(basePath?: string): (request: Request) => Promise<Response> {
    const options = optionsOf();
    return fetchDevices({ verifier: createVerifier(options), enrollment: createEnrollment(options), ip: () => null, ...(basePath !== undefined && { basePath }) });
  }

  function newCode(): string {
    const code = generateEnrollmentCode(webCryptoRandom());
    registry.addCode({ codeHash: hashEnrollmentCode(code)!, ownerId: 'owner', expiresAtMs: NOW_MS + 1 });
    return code;
  }

  it.each([undefined, '/keys', ''])('enroll the client and tell it its status, below %j', async (basePath) => {
    const handler = devices(basePath);
    const guard = new KeyGuardClient({
      origin: ORIGIN,
      keyStore: memoryKeyStore(),
      clock,
      fetch: (url, init) => handler(new Request(url, init)),
      ...(basePath !== undefined && { basePath }),
    });
    expect(await guard.enroll({ code: newCode() })).toMatchObject({ status: 'active' });
    expect(await guard.status()).toMatchObject({ status: 'active' });
    registry.transition((await guard.status()).deviceId, 'suspend');
    expect(await guard.status()).toMatchObject({ status: 'suspended' });
  });

  it('let the client replace its key, where a rotation is given', async () => {
    const options = optionsOf();
    const handler = fetchDevices({ verifier: createVerifier(options), enrollment: createEnrollment(options), rotation: createRotation(options), ip: () => null });
    const guard = new KeyGuardClient({ origin: ORIGIN, keyStore: memoryKeyStore(), clock, fetch: (url, init) => handler(new Request(url, init)) });
    const { deviceId, keyId } = await guard.enroll({ code: newCode() });
    const code = generateRotationCode(webCryptoRandom());
    registry.addRotationCode({ codeHash: hashRotationCode(code)!, deviceId, expiresAtMs: NOW_MS + 1 });
    await expect(guard.rotate()).rejects.toMatchObject({ code: 'rotation_rejected' });
    const rotated = await guard.rotate({ code });
    expect(rotated).toMatchObject({ deviceId, status: 'active' });
    expect(rotated.keyId).not.toBe(keyId);
    expect(registry.findByKeyId(keyId)).toMatchObject({ keyState: 'retiring', keyRetiresAtMs: NOW_MS + 60_000 });
    expect(await guard.status()).toEqual(rotated);
  });

  it('are these, exactly', async () => {
    const handler = devices();
    const answer = async (method: string, path: string): Promise<number> => (await handler(new Request(`${ORIGIN}/api/keyguard${path}`, { method }))).status;
    expect(await answer('GET', '/time')).toBe(200);
    expect(await answer('GET', '/status')).toBe(400);
    expect(await answer('POST', '/enroll')).toBe(400);
    for (const [method, path] of [['POST', '/time'], ['HEAD', '/time'], ['GET', '/enroll'], ['POST', '/rotate'], ['GET', '/TIME'], ['GET', '/time/'], ['GET', ''], ['GET', '/x/../../time']] as const) {
      expect(await answer(method, path)).toBe(404);
    }
    const time = await handler(new Request(`${ORIGIN}/api/keyguard/time`));
    expect(time.headers.get('cache-control')).toBe('no-store');
    expect(await time.json()).toEqual({ server_time: NOW_MS / 1000 });
  });

  it.each(['/', '/api/', 'api', '//x', '/a?b'])('a base path that is none: %j', (basePath) => {
    expect(() => devices(basePath)).toThrow(expect.objectContaining({ code: 'invalid_option' }));
  });
});
