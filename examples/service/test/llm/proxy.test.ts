import { once } from 'node:events';
import http from 'node:http';
import { type APIError, AuthenticationError, InternalServerError, PermissionDeniedError } from 'openai';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { Allowance } from '../../src/llm/allowance.ts';
import { callAuditEntry, type CallEvent } from '../../src/llm/call-events.ts';
import { llmProxy } from '../../src/llm/routes.ts';
import { openaiUpstream,
  chunkEvent,
  PLAIN,
  PROVIDER_KEY,
  SSE,
  startRawUpstream,
  startStage,
  startUpstream,
  STREAMED,
  until,
  type FakeUpstream,
  type Stage,
  type StageOptions,
} from './stage.ts';

const COMPLETION = {
  id: 'chatcmpl-1',
  object: 'chat.completion',
  created: 0,
  model: 'm',
  choices: [{ index: 0, message: { role: 'assistant', content: 'Hello!' }, finish_reason: 'stop' }],
};

const closing: (() => Promise<void>)[] = [];

afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close();
});

async function given(
  handler: (request: http.IncomingMessage, response: http.ServerResponse) => unknown,
  options: Partial<StageOptions> = {},
): Promise<{ fake: FakeUpstream; stage: Stage }> {
  const fake = await startUpstream(handler);
  closing.push(fake.close);
  const stage = await startStage({ upstream: fake.upstream, ...options });
  closing.push(stage.close);
  return { fake, stage };
}

const answerCompletion = (_: unknown, response: http.ServerResponse): void => {
  response.writeHead(200, { 'content-type': 'application/json', 'x-request-id': 'req_1' }).end(JSON.stringify(COMPLETION));
};

async function caught(work: Promise<unknown>): Promise<APIError> {
  const error = await work.then(
    () => null,
    (raised: unknown) => raised,
  );
  expect(error).toBeInstanceOf(Error);
  return error as APIError;
}

/** The headers of a signed request, for clients that are not raw sockets. */
async function headersOf(stage: Stage, target: string, body: string): Promise<Record<string, string>> {
  const head = (await stage.signedBytes({ target, body })).toString('latin1').split('\r\n\r\n', 1)[0]!;
  const headers = Object.fromEntries(head.split('\r\n').slice(1).map((line) => line.split(': ', 2) as [string, string]));
  for (const name of ['host', 'connection', 'content-length']) delete headers[name];
  return headers;
}

describe('a call through the official SDK', () => {
  it('comes back as the provider answered it', async () => {
    const { fake, stage } = await given(answerCompletion);
    const { data, response } = await stage.openai().chat.completions.create(PLAIN).withResponse();
    expect(data).toMatchObject(COMPLETION);
    // `x-request-id` is the service's own, by which its logs can be searched.
    expect(response.headers.get('x-upstream-request-id')).toBe('req_1');
    expect(fake.requests[0]).toMatchObject({ method: 'POST', url: '/v1/chat/completions' });
    expect(fake.received()).toContain(JSON.stringify(PLAIN));
  });

  it('reaches the provider by the alias too', async () => {
    const { fake, stage } = await given(answerCompletion);
    await stage.openai({ baseURL: `http://${stage.authority}/v1` }).chat.completions.create(PLAIN);
    expect(fake.requests[0]!.url).toBe('/v1/chat/completions');
  });

  it('sends to the provider exactly the headers that are meant for it', async () => {
    const { fake, stage } = await given(answerCompletion);
    const sdk = stage.openai({ organization: 'org-1', project: 'proj_1', defaultHeaders: { cookie: 'session=1', 'x-forwarded-for': '1.2.3.4' } });
    await sdk.chat.completions.create(PLAIN, { headers: { 'idempotency-key': 'idem-1' } });
    const { headers } = fake.requests[0]!;
    const body = JSON.stringify(PLAIN);
    expect(headers).toEqual({
      host: fake.upstream.authority,
      connection: 'keep-alive',
      accept: 'application/json',
      'accept-encoding': 'identity',
      authorization: `Bearer ${PROVIDER_KEY}`,
      'content-type': 'application/json',
      'content-length': String(body.length),
      'idempotency-key': 'idem-1',
      'openai-organization': 'org-1',
      'openai-project': 'proj_1',
      'user-agent': 'keyguard',
    });
    expect(fake.received()).not.toContain('sk-client');
  });

  it('keeps signed headers that are not the provider\'s from it', async () => {
    const { fake, stage } = await given(answerCompletion);
    const covered = ['anthropic-beta', 'anthropic-version', 'openai-beta', 'x-keyguard-challenge', 'x-keyguard-credential', 'x-keyguard-token'];
    expect(await stage.send({ target: '/proxy/openai/v1/x', body: '{}', covered: covered.map((name) => [name, `${name}-value`]) })).toMatch(/^HTTP\/1\.1 200 /);
    expect(Object.keys(fake.requests[0]!.headers).toSorted()).toEqual(['accept', 'accept-encoding', 'authorization', 'connection', 'content-length', 'content-type', 'host', 'openai-beta', 'user-agent']);
  });

  it('uses a connection to the provider again', async () => {
    const { fake, stage } = await given(answerCompletion);
    for (let i = 0; i < 3; i += 1) await stage.openai().chat.completions.create(PLAIN);
    expect(new Set(fake.requests.map(({ socket }) => socket.remotePort)).size).toBe(1);
    expect(stage.proxy.usage()).toEqual({ runningCalls: 0, upstreamSockets: 0, keptSockets: 1 });
  });

  it('hands path, query and body on untouched', async () => {
    const { fake, stage } = await given(answerCompletion);
    const body = '{ "model":"m",\t"messages" : [] , "model":"again", "\\u00e9": "é\u0000" }';
    await stage.send({ target: "/proxy/openai/v1/odd;p=1/a:b@c/(x)'*,+%C3%A9?b=2&a=1&a=%2F..%2F&q=[x]|^{}&sig", body, contentType: 'text/odd' });
    expect(fake.requests[0]!.url).toBe("/v1/odd;p=1/a:b@c/(x)'*,+%C3%A9?b=2&a=1&a=%2F..%2F&q=[x]|^{}&sig");
    expect(fake.requests[0]!.headers['content-type']).toBe('text/odd');
    expect(fake.received().endsWith(body)).toBe(true);
  });

  it.each(['GET', 'HEAD', 'PUT', 'PATCH', 'DELETE'])('hands %s on', async (method) => {
    const { fake, stage } = await given((_, response) => response.writeHead(200, { 'content-length': 2 }).end('ok'));
    const response = await stage.client.fetch(`http://${stage.authority}/proxy/openai/v1/files/f1`, { method });
    expect(response.status).toBe(200);
    expect(fake.requests[0]!.method).toBe(method);
  });

  it('refuses TRACE, which would repeat the provider key', async () => {
    const { fake, stage } = await given((request, response) => response.end(request.rawHeaders.join('\n')));
    const answer = await stage.send({ method: 'TRACE', target: '/proxy/openai/v1/models' });
    expect(answer).toMatch(/^HTTP\/1\.1 405 /);
    expect(answer).toContain('"code":"method_not_allowed"');
    expect(fake.requests).toHaveLength(0);
  });

  it('lets only known headers of the answer through', async () => {
    const { stage } = await given((_, response) => {
      response.writeHead(200, {
        'content-type': 'application/json',
        'openai-processing-ms': '12',
        'x-keyguard-overhead-ms': expect.stringMatching(/^\d+\.\d\d$/),
      'x-ratelimit-remaining-requests': '7',
        'x-request-id': 'req_2',
        'retry-after': '3',
        'set-cookie': ['a=1', 'b=2'],
        authorization: `Bearer ${PROVIDER_KEY}`,
        'x-echo': PROVIDER_KEY,
        'access-control-allow-origin': '*',
        server: 'upstream/1',
        'strict-transport-security': 'max-age=1',
        'cache-control': 'public, max-age=600',
      });
      response.end('{}');
    });
    const response = await stage.client.fetch(`http://${stage.authority}/proxy/openai/v1/models`);
    const { date, ...headers } = Object.fromEntries(response.headers);
    expect(date).toBeDefined();
    expect(headers).toEqual({
      'cache-control': 'no-store',
      connection: 'keep-alive',
      'content-type': 'application/json',
      'keep-alive': expect.any(String),
      'openai-processing-ms': '12',
      ratelimit: expect.stringMatching(/^"default";r=99\d{4};t=\d\d?$/),
      'ratelimit-policy': '"default";q=1000000;w=60',
      'retry-after': '3',
      'transfer-encoding': 'chunked',
      'x-accel-buffering': 'no',
      'x-keyguard-overhead-ms': expect.stringMatching(/^\d+\.\d\d$/),
      'x-ratelimit-remaining-requests': '7',
      'x-upstream-request-id': 'req_2',
    });
  });

  it("hands the provider's own errors on", async () => {
    const { fake, stage } = await given((_, response) => {
      response.writeHead(429, { 'content-type': 'application/json', 'retry-after-ms': '1' }).end('{"error":{"message":"slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}');
    });
    const error = await caught(stage.openai({ maxRetries: 1 }).chat.completions.create(PLAIN));
    expect(error).toMatchObject({ status: 429, code: 'rate_limit_exceeded' });
    // The SDK tried twice, and its second try was signed anew.
    expect(fake.requests).toHaveLength(2);
  });
});

describe('a streamed answer', () => {
  it('comes as it was sent', async () => {
    const { stage } = await given((_, response) => {
      response.writeHead(200, SSE);
      for (const word of ['Hel', 'lo', '!']) response.write(chunkEvent(word));
      response.end('data: [DONE]\n\n');
    });
    let text = '';
    for await (const chunk of await stage.openai().chat.completions.create(STREAMED)) text += chunk.choices[0]!.delta.content;
    expect(text).toBe('Hello!');
    expect(stage.events.at(-1)).toMatchObject({ type: 'ended', outcome: 'completed', status: 200 });
  });

  it('reaches the client event by event: the upstream goes on only after the client has seen what it sent', async () => {
    const next: (() => void)[] = [];
    const step = (): Promise<void> => new Promise((resolve) => next.push(resolve));
    const { stage } = await given(async (_, response) => {
      response.writeHead(200, SSE).flushHeaders();
      await step();
      for (const word of ['one', 'two', 'three']) {
        response.write(chunkEvent(word));
        await step();
      }
      response.end('data: [DONE]\n\n');
    });
    // The head alone comes first: `create` resolves while the upstream has sent no event at all.
    const stream = await stage.openai().chat.completions.create(STREAMED);
    const seen: string[] = [];
    await until(() => next.length === 1);
    next.shift()!();
    for await (const chunk of stream) {
      seen.push(chunk.choices[0]!.delta.content!);
      await until(() => next.length === 1);
      next.shift()!();
    }
    expect(seen).toEqual(['one', 'two', 'three']);
  });

  it('says that nobody may buffer or store it', async () => {
    const { stage } = await given((_, response) => response.writeHead(200, { ...SSE, 'content-length': 14 }).end('data: [DONE]\n\n'));
    const response = await stage.client.fetch(`http://${stage.authority}/proxy/openai/v1/chat/completions`, { method: 'POST', body: '{}' });
    expect(response.headers.get('x-accel-buffering')).toBe('no');
    expect(response.headers.get('cache-control')).toBe('no-store');
    expect(response.headers.get('content-length')).toBeNull();
    expect(await response.text()).toBe('data: [DONE]\n\n');
  });
});

describe("a refusal in the provider's dialect", () => {
  it('says what to do when the project has no key', async () => {
    const { fake, stage } = await given(answerCompletion, { providerKeys: async () => null });
    const error = await caught(stage.openai().chat.completions.create(PLAIN));
    expect(error).toBeInstanceOf(PermissionDeniedError);
    expect(error).toMatchObject({ status: 403, code: 'provider_key_missing', type: 'permission_error' });
    expect(error.message).toMatch(/administrator.*OPENAI_API_KEY/s);
    expect(error.headers?.get('x-should-retry')).toBe('false');
    expect(fake.requests).toHaveLength(0);
    expect(stage.events).toMatchObject([{ type: 'refused', code: 'provider_key_missing', status: 403 }]);
  });

  it('asks for the key of the device that signed', async () => {
    const providerKeys = vi.fn(async () => null);
    const { stage } = await given(answerCompletion, { providerKeys });
    await caught(stage.openai().chat.completions.create(PLAIN));
    expect(providerKeys).toHaveBeenCalledExactlyOnceWith(stage.registry.list()[0], 'openai');
  });

  it('tells a revoked device so, and the SDK does not try again', async () => {
    const { fake, stage } = await given(answerCompletion);
    stage.registry.transition(stage.registry.list()[0]!.deviceId, 'revoke');
    const error = await caught(stage.openai({ maxRetries: 3 }).chat.completions.create(PLAIN));
    expect(error).toBeInstanceOf(PermissionDeniedError);
    expect(error).toMatchObject({ code: 'device_revoked', type: 'permission_error' });
    expect(error.headers?.get('x-should-retry')).toBe('false');
    expect(fake.requests).toHaveLength(0);
  });

  it('tells an unsigned request so', async () => {
    const { fake, stage } = await given(answerCompletion);
    const error = await caught(stage.openai({ fetch: globalThis.fetch }).chat.completions.create(PLAIN));
    expect(error).toMatchObject({ status: 400, code: 'malformed_request', type: 'invalid_request_error' });
    expect(fake.requests).toHaveLength(0);
  });

  it('tells a foreign signature so', async () => {
    const { fake, stage } = await given(answerCompletion);
    const { stage: other } = await given(answerCompletion);
    const signedElsewhere: typeof fetch = async (input, init) =>
      globalThis.fetch(input, { method: 'POST', body: String(init?.body), headers: await headersOf(other, '/proxy/openai/v1/chat/completions', String(init?.body)) });
    const error = await caught(stage.openai({ fetch: signedElsewhere }).chat.completions.create(PLAIN));
    expect(error).toBeInstanceOf(AuthenticationError);
    expect(error).toMatchObject({ status: 401, code: 'signature_invalid', type: 'authentication_error' });
    expect(error.headers?.get('x-should-retry')).toBe('false');
    expect(fake.requests).toHaveLength(0);
  });

  it('lets a client correct its clock: the time of the server is told', async () => {
    let skewMs = 0;
    const { stage } = await given(answerCompletion, { clientClock: { nowMs: () => Date.now() - skewMs } });
    skewMs = 3_600_000;
    expect(await stage.openai().chat.completions.create(PLAIN)).toMatchObject(COMPLETION);
  });

  it('knows no other route below its prefix', async () => {
    const { fake, stage } = await given(answerCompletion);
    const response = await stage.client.fetch(`http://${stage.authority}/proxy/openai/v1`);
    expect(response.status).toBe(404);
    expect(await response.json()).toMatchObject({ error: { code: 'route_unknown', type: 'invalid_request_error', param: null } });
    expect(fake.requests).toHaveLength(0);
  });

  it('leaves what is not its own to the application', async () => {
    const { fake, stage } = await given(answerCompletion);
    for (const path of ['/proxy/other/v1/models', '/v1/models', '/PROXY/openai/v1/models']) {
      const response = await stage.client.fetch(`http://${stage.authority}${path}`);
      expect(response.status).toBe(404);
      expect(await response.text()).toContain('Cannot GET');
    }
    const refused = await fetch(`http://${stage.authority}/proxy/other/v1/models`);
    expect(refused.headers.get('content-type')).toMatch(/^application\/problem\+json/);
    expect(fake.requests).toHaveLength(0);
  });
});

describe('what an upstream may do wrong', () => {
  it('refuses our key: told as our fault, without its text, and not tried again', async () => {
    const { fake, stage } = await given((_, response) => {
      response.writeHead(401, { 'content-type': 'application/json' }).end(`{"error":{"message":"Incorrect API key provided: ${PROVIDER_KEY}"}}`);
    });
    const error = await caught(stage.openai({ maxRetries: 3 }).chat.completions.create(PLAIN));
    expect(error).toBeInstanceOf(InternalServerError);
    expect(error).toMatchObject({ status: 502, code: 'upstream_key_refused' });
    expect(JSON.stringify(error) + error.message).not.toContain(PROVIDER_KEY);
    expect(fake.requests).toHaveLength(1);
  });

  it.each([301, 302, 303, 304, 307, 308])('redirects (%d): not followed', async (status) => {
    const target = await startUpstream((_, response) => response.end('reached'));
    closing.push(target.close);
    const { fake, stage } = await given((_, response) => {
      response.writeHead(status, { location: `http://${target.upstream.authority}/v1/chat/completions` }).end();
    });
    const error = await caught(stage.openai({ maxRetries: 3 }).chat.completions.create(PLAIN));
    expect(error).toMatchObject({ status: 502, code: 'upstream_redirect' });
    expect(error.headers?.get('location')).toBeNull();
    expect(fake.requests).toHaveLength(1);
    expect(target.requests).toHaveLength(0);
  });

  it('compresses although it was asked not to', async () => {
    const { stage } = await given((_, response) => response.writeHead(200, { ...SSE, 'content-encoding': 'gzip' }).end('xx'));
    expect(await caught(stage.openai().chat.completions.create(STREAMED))).toMatchObject({ status: 502, code: 'upstream_invalid' });
  });

  it.each([
    ['is no HTTP server', 'SSH-2.0-OpenSSH_9.2\r\n'],
    ['leaves at once', ''],
    ['switches protocols', 'HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n'],
    ['sends a head without an end', `HTTP/1.1 200 OK\r\n${'x-a: b\r\n'.repeat(10_000)}`],
    ['has both lengths', 'HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n'],
  ])('%s', async (_, bytes) => {
    const raw = await startRawUpstream((socket) => socket.end(bytes));
    closing.push(raw.close);
    const { stage } = await given(answerCompletion, { upstream: raw.upstream });
    const error = await caught(stage.openai().chat.completions.create(PLAIN));
    expect(error).toMatchObject({ status: 502, code: 'upstream_broken' });
    expect(JSON.stringify(error)).not.toContain(PROVIDER_KEY);
  });

  it('puts any byte into a header: an answer or a refusal, and the service lives', async () => {
    let byte = 0;
    const raw = await startRawUpstream((socket) => {
      socket.end(Buffer.concat([Buffer.from('HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-request-id: a'), Buffer.of(byte), Buffer.from('b\r\n\r\n')]));
    });
    closing.push(raw.close);
    const { stage } = await given(answerCompletion, { upstream: raw.upstream });
    for (byte = 0; byte < 256; byte += 1) {
      const answer = await stage.send({ target: '/proxy/openai/v1/models', method: 'GET' });
      expect(answer).toMatch(/^HTTP\/1\.1 (?:200 OK|502 Bad Gateway)\r\n/);
      if (answer.startsWith('HTTP/1.1 200')) expect(answer).toContain(`x-upstream-request-id: a${String.fromCharCode(byte)}b\r\n`);
    }
    expect(stage.faults).toEqual([]);
  });

  it('is not there', async () => {
    const gone = await startUpstream(answerCompletion);
    await gone.close();
    const { stage } = await given(answerCompletion, { upstream: gone.upstream });
    const error = await caught(stage.openai().chat.completions.create(PLAIN));
    expect(error).toMatchObject({ status: 502, code: 'upstream_unreachable' });
    // The SDK may try again by itself: nothing was sent.
    expect(error.headers?.get('x-should-retry')).toBeNull();
    expect(stage.events.at(-1)).toMatchObject({ type: 'ended', outcome: 'upstream_unreachable', status: 502 });
  });

  it('takes the connection and says nothing', async () => {
    const raw = await startRawUpstream(() => {});
    closing.push(raw.close);
    const { stage } = await given(answerCompletion, { upstream: openaiUpstream(`https://${raw.upstream.authority}/v1`), limits: { connectTimeoutMs: 150 } });
    expect(await caught(stage.openai().chat.completions.create(PLAIN))).toMatchObject({ status: 502, code: 'upstream_unreachable' });
  });

  it('speaks no TLS where TLS is configured, and sees no byte of the key', async () => {
    let received = '';
    const raw = await startRawUpstream((socket) => socket.on('data', (bytes) => (received += bytes.toString('latin1'))).end('HTTP/1.1 200 OK\r\n\r\n'));
    closing.push(raw.close);
    const upstream = openaiUpstream(`https://${raw.upstream.authority}/v1`);
    const { stage } = await given(answerCompletion, { upstream });
    expect(await caught(stage.openai().chat.completions.create(PLAIN))).toMatchObject({ status: 502, code: 'upstream_unreachable' });
    expect(received).not.toContain(PROVIDER_KEY);
  });
});

describe('the audit log', () => {
  it.each([
    ['a stream', SSE, `${chunkEvent('a')}data: [DONE]\n\n`],
    ['an answer of known length', { 'content-type': 'application/json', 'content-length': JSON.stringify(COMPLETION).length }, JSON.stringify(COMPLETION)],
  ])('has the call before the provider has it, and its ending before %s ends', async (_, headers, body) => {
    const order: string[] = [];
    let releaseEnd = (): void => {};
    const endHeld = new Promise<void>((resolve) => {
      releaseEnd = resolve;
    });
    const audit = async (event: CallEvent): Promise<void> => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      if (event.type === 'ended') await endHeld;
      order.push(event.type);
    };
    const { stage } = await given(
      (__, response) => {
        order.push('upstream');
        response.writeHead(200, headers).end(body);
      },
      { audit },
    );
    const reading = stage.client.fetch(`http://${stage.authority}/v1/chat/completions`, { method: 'POST', body: '{}' }).then(async (response) => {
      const text = await response.text();
      order.push('client has the end');
      return text;
    });
    await until(() => order.includes('upstream'));
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(order).toEqual(['started', 'upstream']);
    releaseEnd();
    expect(await reading).toBe(body);
    expect(order).toEqual(['started', 'upstream', 'ended', 'client has the end']);
  });

  it('cannot be written: nothing is sent, 503', async () => {
    for (const audit of [() => Promise.reject(new Error('disk full')), () => new Promise<void>(() => {})]) {
      const { fake, stage } = await given(answerCompletion, { audit, limits: { seamTimeoutMs: 100 } });
      const error = await caught(stage.openai().chat.completions.create(PLAIN));
      expect(error).toMatchObject({ status: 503, code: 'service_unavailable' });
      expect(error.headers?.get('retry-after')).toBe('1');
      expect(fake.requests).toHaveLength(0);
      expect(stage.faults).toHaveLength(1);
    }
  });

  it('fails at the ending only: the answer stands, the operator is told', async () => {
    const audit = async (event: CallEvent): Promise<void> => {
      if (event.type === 'ended') throw new Error('disk full');
    };
    const { stage } = await given(answerCompletion, { audit });
    expect(await stage.openai().chat.completions.create(PLAIN)).toMatchObject(COMPLETION);
    expect(stage.faults).toMatchObject([{ seam: 'audit' }]);
  });

  it('cannot be told who refuses: a refusal that cannot be written is 503 too', async () => {
    const { stage } = await given(answerCompletion, { providerKeys: async () => null, audit: () => Promise.reject(new Error('disk full')) });
    expect(await caught(stage.openai().chat.completions.create(PLAIN))).toMatchObject({ status: 503 });
  });

  it('gets entries that name who, what and how it ended, and no content', async () => {
    const { stage } = await given(answerCompletion);
    await stage.client.fetch(`http://${stage.authority}/proxy/openai/v1/files?secret=query`, { method: 'POST', body: 'secret body' }).then((r) => r.text());
    const entries = stage.events.map(callAuditEntry);
    const { deviceId } = stage.registry.list()[0]!;
    const common = { actor: `device:${deviceId}`, owner_id: 'owner', project_id: 'project', key_id: stage.key.keyId, provider: 'openai', method: 'POST', path: '/proxy/openai/v1/files', call_id: stage.events[0]!.callId };
    expect(entries).toEqual([
      { action: 'llm.call', outcome: 'success', ...common },
      { action: 'llm.call_ended', outcome: 'success', ...common, status: 200, code: 'completed', request_bytes: 11, response_bytes: JSON.stringify(COMPLETION).length, duration_ms: expect.any(Number), model: 'm' },
    ]);
    expect(JSON.stringify(entries)).not.toContain('secret');
  });
});

describe('provider keys', () => {
  it('that cannot be had give 503, and nothing is sent', async () => {
    for (const providerKeys of [() => Promise.reject(new Error(`no ${PROVIDER_KEY}`)), () => new Promise<null>(() => {}), (): never => { throw new Error('sync'); }]) {
      const { fake, stage } = await given(answerCompletion, { providerKeys, limits: { seamTimeoutMs: 100 } });
      const error = await caught(stage.openai().chat.completions.create(PLAIN));
      expect(error).toMatchObject({ status: 503, code: 'service_unavailable' });
      expect(JSON.stringify(error) + error.message).not.toContain(PROVIDER_KEY);
      expect(fake.requests).toHaveLength(0);
    }
  });

  it('that no header can hold give 500 without the key, and the call is recorded as failed', async () => {
    const { fake, stage } = await given(answerCompletion, { apiKey: `${PROVIDER_KEY}\r\nx-evil: 1` });
    const error = await caught(stage.openai().chat.completions.create(PLAIN));
    expect(error).toMatchObject({ status: 500, code: 'internal_error' });
    expect(JSON.stringify(error) + error.message + String(stage.faults[0])).not.toContain(PROVIDER_KEY);
    expect(fake.requests).toHaveLength(0);
    expect(stage.events.map(({ type }) => type)).toEqual(['started', 'ended']);
  });
});

describe('stopping and cutting off', () => {
  const openStream = (_: unknown, response: http.ServerResponse): void => {
    response.writeHead(200, SSE).write(chunkEvent('a'));
  };

  it('lets running calls end within the time, answers new ones 503, and ends the rest with an error event', async () => {
    let finish = (): void => {};
    const { stage } = await given((request, response) => {
      openStream(request, response);
      if (request.url === '/v1/chat/completions') finish = () => response.end('data: [DONE]\n\n');
    });
    const short = await stage.openai().chat.completions.create(STREAMED);
    const long = await Promise.all(
      Array.from({ length: 20 }, () => stage.client.fetch(`http://${stage.authority}/proxy/openai/v1/long`, { method: 'POST', body: '{}' })),
    );
    const draining = stage.proxy.drain(300);
    const refused = await caught(stage.openai().chat.completions.create(PLAIN));
    expect(refused).toMatchObject({ status: 503, code: 'service_stopping' });
    expect(refused.headers?.get('connection')).toBe('close');
    finish();
    const words: string[] = [];
    for await (const chunk of short) words.push(chunk.choices[0]!.delta.content!);
    expect(words).toEqual(['a']);
    expect(stage.proxy.usage().runningCalls).toBe(20);
    for (const response of long) {
      const text = await response.text();
      expect(text.startsWith(chunkEvent('a'))).toBe(true);
      expect(JSON.parse(text.split('\n\n').at(-2)!.slice('data: '.length))).toMatchObject({ error: { code: 'service_stopping' } });
    }
    await draining;
    expect(stage.proxy.usage().runningCalls).toBe(0);
    await until(() => stage.proxy.usage().upstreamSockets === 0);
    stage.proxy.close();
    await until(() => stage.proxy.usage().keptSockets === 0);
  });

  it('answers a call whose head has not come with an error, and cuts who takes no last word', async () => {
    const { fake, stage } = await given((request, response) => {
      if (request.url === '/v1/flood') {
        response.writeHead(200, SSE);
        const pour = (): void => {
          while (response.write(`data: ${'x'.repeat(60_000)}\n\n`));
        };
        response.on('drain', pour);
        pour();
      }
    });
    const silent = caught(stage.openai().chat.completions.create(PLAIN));
    const deaf = http.request({ port: stage.port, method: 'POST', path: '/proxy/openai/v1/flood', headers: await headersOf(stage, '/proxy/openai/v1/flood', '{}') }).end('{}');
    deaf.on('error', () => {});
    await once(deaf, 'response').then(([response]) => (response as http.IncomingMessage).on('error', () => {}).pause());
    await until(() => fake.requests.length === 2);
    await stage.proxy.drain(0);
    expect(await silent).toMatchObject({ status: 503, code: 'service_stopping' });
    expect(stage.proxy.usage().runningCalls).toBe(0);
    deaf.destroy();
  });

  it('cuts the calls of one device, and of no other', async () => {
    const { stage } = await given(openStream);
    const stream = await stage.openai().chat.completions.create(STREAMED);
    stage.proxy.endCallsOf('another');
    expect(stage.proxy.usage().runningCalls).toBe(1);
    stage.proxy.endCallsOf(stage.registry.list()[0]!.deviceId);
    const error = await caught((async () => { for await (const _ of stream); })());
    expect(error).toMatchObject({ code: 'device_cut_off' });
  });

  it('cuts a call that is still being looked up: nothing is sent', async () => {
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const { fake, stage } = await given(answerCompletion, { audit: async (event) => (event.type === 'started' ? held : undefined) });
    const call = caught(stage.openai().chat.completions.create(PLAIN));
    await until(() => stage.proxy.usage().runningCalls === 1);
    stage.proxy.endCallsOf(stage.registry.list()[0]!.deviceId);
    release();
    expect(await call).toMatchObject({ status: 403, code: 'device_cut_off' });
    expect(fake.requests).toHaveLength(0);
  });
});

describe('a budget', () => {
  it('that is charged too late for its call is given back, and nothing is sent', async () => {
    let charge = (): void => {};
    let takenBack = 0;
    const late = new Promise<Allowance>((resolve) => {
      charge = () => resolve({ limits: [], charge: () => ({ tokens: 0, costMicros: 0, isEstimated: false }), takeBack: async () => void (takenBack += 1) });
    });
    const { fake, stage } = await given(answerCompletion, { admit: () => late, limits: { seamTimeoutMs: 100 } });
    expect(await caught(stage.openai().chat.completions.create(PLAIN))).toMatchObject({ status: 503, code: 'service_unavailable' });
    expect(takenBack).toBe(0);
    charge();
    await until(() => takenBack === 1);
    expect(fake.requests).toHaveLength(0);
  });
});

describe('llmProxy', () => {
  const seams = { providerKeys: async () => null, modelLists: () => [], audit: async () => {}, recheck: async () => {}, onFault: () => {} };

  it.each([{ idleTimeoutMs: 0 }, { connectTimeoutMs: Number.NaN }, { callTimeoutMs: 2 ** 31 }, { maxEventBytes: 1000 }, { seamTimeoutMs: 1.5 }])('refuses the limits %o', (limits) => {
    expect(() => llmProxy({ ...seams, limits })).toThrow(expect.objectContaining({ code: 'invalid_option' }));
  });
});
