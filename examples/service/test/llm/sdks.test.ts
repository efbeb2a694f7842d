/**
 * The official SDKs, current and the major before, through the proxy to upstreams that behave like the real ones: plain, streamed,
 * abandoned, given up, broken half-way, shut out half-way.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import { GoogleGenAI } from '@google/genai';
import { afterEach, describe, expect, it } from 'vitest';
import { MAX_CALL_BYTES } from '../../src/llm/body-limits.ts';
import { CLIENT_KEY, collect, given as stageFor, SUBJECTS, USAGE, WORDS } from './sdk-subjects.ts';
import { PROVIDER_KEY, SSE, until, type Stage } from './stage.ts';

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

describe.each(SUBJECTS)('$title', (subject) => {
  async function given(handler: (response: ServerResponse, call: number, request: IncomingMessage) => unknown): Promise<{ stage: Stage; seen: IncomingMessage[] }> {
    const seen: IncomingMessage[] = [];
    const { stage } = await stageFor(
      subject.provider,
      (request, response) => {
        seen.push(request);
        return handler(response, seen.length, request);
      },
      closers,
    );
    return { stage, seen };
  }
  const json = (response: ServerResponse, status: number, body: object, headers: Record<string, string> = {}): void => {
    response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
  };
  const endings = (stage: Stage): Promise<readonly object[]> =>
    until(() => stage.events.some(({ type }) => type === 'ended')).then(() => stage.events.filter(({ type }) => type === 'ended'));
  const whole = async (response: ServerResponse): Promise<void> => {
    const { words, last } = subject.events(WORDS);
    response.writeHead(200, SSE);
    for (const one of [...words, last]) {
      response.write(one);
      await pause(5);
    }
    response.end();
  };

  it('gets an answer; the provider gets its own key and nothing of ours, and its count is kept', async () => {
    const { stage, seen } = await given((response) => json(response, 200, subject.body));
    expect(await subject.plain(stage)).toBe('Hello there!');
    expect(seen).toHaveLength(1);
    const [{ headers, url, rawHeaders }] = seen as [IncomingMessage];
    expect(url).toMatch(subject.path);
    const [name, value] = subject.keyHeader;
    expect(headers[name]).toBe(value);
    const text = rawHeaders.join('\n');
    expect(text).not.toMatch(/keyguard-|cookie/i);
    expect(text).not.toContain(CLIENT_KEY);
    expect(text.split(PROVIDER_KEY)).toHaveLength(2);
    expect(await endings(stage)).toMatchObject([{ outcome: 'completed', status: 200, provider: subject.provider, usage: USAGE }]);
  });

  it('gets a stream, word by word, and its count is kept', async () => {
    const { stage } = await given(whole);
    expect(await collect(subject.stream(stage))).toEqual({ words: WORDS, error: null });
    expect(await endings(stage)).toMatchObject([{ outcome: 'completed', usage: USAGE }]);
  });

  it('raises when the stream breaks off, and when it merely ends too early', async () => {
    for (const ending of ['destroy', 'end'] as const) {
      const { stage } = await given(async (response) => {
        response.writeHead(200, SSE).write(subject.events(WORDS).words[0]);
        await pause(50);
        response[ending]();
      });
      const { words, error } = await collect(subject.stream(stage));
      expect([ending, words]).toEqual([ending, ['Hello']]);
      expect(String(error?.message)).toContain('broke off its answer');
      // As much as had been reported, and marked by its outcome.
      expect(await endings(stage)).toMatchObject([{ outcome: 'upstream_broken', usage: subject.reportedAtFirst }]);
    }
  });

  it('raises when its device is shut out half-way, and the provider stops working', async () => {
    let left = false;
    const { stage } = await given((response) => {
      response.writeHead(200, SSE).write(subject.events(WORDS).words[0]);
      response.on('close', () => (left = true));
    });
    const words: string[] = [];
    const error = await (async () => {
      for await (const word of subject.stream(stage)) {
        words.push(word);
        const device = (await stage.registry.findByKeyId(stage.key.keyId))!;
        stage.proxy.endCallsOf(device.deviceId);
      }
    })().catch((raised: unknown) => raised);
    expect(words).toEqual(['Hello']);
    expect(String((error as Error).message)).toContain('may no longer call');
    await until(() => left);
  });

  it('abandons a stream, and the provider stops working', async () => {
    let left = false;
    const { stage } = await given((response) => {
      response.writeHead(200, SSE).write(subject.events(WORDS).words[0]);
      response.on('close', () => (left = true));
    });
    const abort = new AbortController();
    try {
      for await (const word of subject.stream(stage, abort.signal)) if (word !== '') abort.abort();
    } catch {
      // Some raise, some end: it was the caller who left.
    }
    await until(() => left);
    expect(await endings(stage)).toMatchObject([{ outcome: 'client_left', usage: subject.reportedAtFirst }]);
  });

  it('raises when the provider itself fails half-way, with what it says', async () => {
    const { stage } = await given((response) => {
      response.writeHead(200, SSE).write(subject.events(WORDS).words[0]);
      response.end(subject.failed);
    });
    const { words, error } = await collect(subject.stream(stage));
    expect(words).toEqual(['Hello']);
    expect(error?.message).toContain('Overloaded');
    // It is the provider's word, and was handed on whole.
    expect(await endings(stage)).toMatchObject([{ outcome: 'completed' }]);
  });

  it('gives up when its own time is over, and the provider stops working', async () => {
    let left = 0;
    const { stage } = await given((response) => void response.on('close', () => (left += 1)));
    const before = Date.now();
    await expect(subject.plain(stage, { timeoutMs: 200, maxRetries: 0 })).rejects.toThrow(/time|abort/i);
    expect(Date.now() - before).toBeLessThan(5000);
    await until(() => left === 1);
    expect(await endings(stage)).toMatchObject([{ outcome: 'client_left', status: null }]);
  });

  it('raises what the provider says of a mistake', async () => {
    const { stage } = await given((response) => json(response, 400, subject.busy));
    await expect(subject.plain(stage)).rejects.toMatchObject({ status: 400 });
  });

  it('is told in its own dialect what is wrong with its device', async () => {
    const { stage } = await given((response) => json(response, 200, subject.body));
    const { deviceId } = (await stage.registry.findByKeyId(stage.key.keyId))!;
    stage.registry.transition(deviceId, 'revoke');
    const error = (await subject.plain(stage).catch((raised: unknown) => raised)) as Error & { status?: number };
    expect(error.status).toBe(403);
    expect(error.message).toMatch(/revoked/i);
  });
});

describe('what cannot be handed on', () => {
  it('is refused clearly: resumable uploads and WebSockets', async () => {
    const { stage } = await stageFor('google', (_request, response) => response.writeHead(200).end(), closers);
    const sdk = new GoogleGenAI({ apiKey: CLIENT_KEY, httpOptions: { baseUrl: `http://${stage.authority}/proxy/google`, fetch: stage.client.fetch as typeof fetch } });
    // Its SDK is told so before anything is sent, because no header of the upload's own protocol can be signed.
    const error = (await sdk.files.upload({ file: new Blob(['x'], { type: 'text/plain' }) }).catch((raised: unknown) => raised)) as Error;
    expect(error.message).toContain('x-goog-upload-command');
    const upload = await stage.send({ target: '/proxy/google/upload/v1beta/files', body: '{}' });
    expect(upload).toMatch(/^HTTP\/1\.1 501 [^]*"status":"UNIMPLEMENTED"[^]*UPLOAD_UNSUPPORTED/);
    const socket = ['connection: upgrade', 'upgrade: websocket', 'sec-websocket-version: 13', 'sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=='];
    const openai = await stage.send({ method: 'GET', target: '/proxy/openai/v1/realtime?model=m', headers: socket });
    expect(openai).toMatch(/^HTTP\/1\.1 501 [^]*"code":"upgrade_unsupported"/);
    expect(stage.events.filter(({ type }) => type === 'started')).toEqual([]);
  });

  it('is refused in the dialect: a body that is larger than allowed, before the provider hears of it', async () => {
    const body = new Uint8Array(MAX_CALL_BYTES + 1);
    for (const subject of SUBJECTS.filter(({ title }) => title === '@anthropic-ai/sdk, current' || title === '@google/genai, current')) {
      const { stage, upstream } = await stageFor(subject.provider, (_request, response) => response.writeHead(200).end(), closers);
      const large: typeof fetch = (input, init) => stage.client.fetch(input, { ...init, body });
      const place = { authority: stage.authority, client: { fetch: large } };
      await expect(subject.plain(place, { maxRetries: 0 })).rejects.toMatchObject({ status: 413, message: expect.stringContaining('large') as string });
      expect(upstream.requests).toHaveLength(0);
    }
  });

  it('is what is not signed: the SDK of Google takes a fetch in its httpOptions only', async () => {
    const { stage, upstream } = await stageFor('google', (_request, response) => response.writeHead(200).end(), closers);
    const options = { apiKey: CLIENT_KEY, fetch: stage.client.fetch, httpOptions: { baseUrl: `http://${stage.authority}/proxy/google` } };
    await expect(new GoogleGenAI(options).models.generateContent({ model: 'm', contents: 'Hello?' })).rejects.toMatchObject({ status: 400, message: expect.stringContaining('MALFORMED_REQUEST') as string });
    expect(upstream.requests).toHaveLength(0);
  });
});
