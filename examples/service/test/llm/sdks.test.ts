/**
 * The official SDKs, current and the major before, through the proxy to upstreams that behave like the real ones: plain, streamed,
 * abandoned, refused for a while, broken half-way, shut out half-way.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import Anthropic from '@anthropic-ai/sdk';
import AnthropicBefore from 'anthropic-sdk-0';
import { GoogleGenAI } from '@google/genai';
import { GoogleGenAI as GoogleBefore } from 'genai-2';
import OpenAI, { AzureOpenAI } from 'openai';
import OpenAIBefore, { AzureOpenAI as AzureBefore } from 'openai-6';
import { afterEach, describe, expect, it } from 'vitest';
import { PROVIDERS, upstreamOf } from '../../src/llm/providers.ts';
import type { Stage } from './stage.ts';
import { PROVIDER_KEY, SSE, startStage, startUpstream, until, type FakeUpstream } from './stage.ts';

const WORDS = ['Hello', ' there', '!'];
/** What a client sends where its provider key would be. */
const CLIENT_KEY = 'client-key-of-no-use-0123456789';

/** One SDK, and how its provider speaks. */
interface Subject {
  readonly provider: string;
  readonly title: string;
  readonly path: RegExp;
  readonly keyHeader: readonly [string, string];
  plain(stage: Stage): Promise<string>;
  stream(stage: Stage, signal?: AbortSignal): AsyncIterable<string>;
  readonly body: object;
  /** One event a word, then what comes last. */
  events(words: readonly string[]): { readonly words: readonly string[]; readonly last: string };
  readonly busy: object;
}

const USAGE = { inputTokens: 12, outputTokens: 3 };

const data = (value: object | string, name?: string): string => `${name === undefined ? '' : `event: ${name}\n`}data: ${typeof value === 'string' ? value : JSON.stringify(value)}\n\n`;
const MESSAGES = [{ role: 'user' as const, content: 'Hello?' }];

type OpenAIClass = new (options: ConstructorParameters<typeof OpenAI>[0]) => OpenAI;
type AzureClass = new (options: ConstructorParameters<typeof AzureOpenAI>[0]) => AzureOpenAI;

async function* deltas(stream: AsyncIterable<OpenAI.ChatCompletionChunk>): AsyncGenerator<string> {
  for await (const chunk of stream) if (typeof chunk.choices[0]?.delta.content === 'string') yield chunk.choices[0].delta.content;
}

const openaiDialect = {
  body: { id: 'c', object: 'chat.completion', model: 'm', choices: [{ index: 0, message: { role: 'assistant', content: WORDS.join('') }, finish_reason: 'stop' }], usage: { prompt_tokens: 12, completion_tokens: 3, total_tokens: 15 } },
  events: (words: readonly string[]) => ({
    words: words.map((content) => data({ id: 'c', object: 'chat.completion.chunk', model: 'm', choices: [{ index: 0, delta: { content }, finish_reason: null }] })),
    last: data({ id: 'c', object: 'chat.completion.chunk', model: 'm', choices: [], usage: { prompt_tokens: 12, completion_tokens: 3, total_tokens: 15 } }) + data('[DONE]'),
  }),
  busy: { error: { message: 'Rate limit reached', type: 'requests', param: null, code: 'rate_limit_exceeded' } },
};

function openaiSubject(title: string, Sdk: OpenAIClass): Subject {
  const sdk = ({ authority, client }: Stage): OpenAI => new Sdk({ baseURL: `http://${authority}/proxy/openai/v1`, apiKey: CLIENT_KEY, fetch: client.fetch, maxRetries: 1, logLevel: 'off' });
  return {
    ...openaiDialect,
    provider: 'openai',
    title,
    path: /^\/v1\/chat\/completions$/,
    keyHeader: ['authorization', `Bearer ${PROVIDER_KEY}`],
    plain: async (stage) => (await sdk(stage).chat.completions.create({ model: 'm', messages: MESSAGES })).choices[0]!.message.content!,
    stream: async function* (stage, signal) {
      yield* deltas(await sdk(stage).chat.completions.create({ model: 'm', messages: MESSAGES, stream: true, stream_options: { include_usage: true } }, { signal }));
    },
  };
}

function azureSubject(title: string, Sdk: AzureClass): Subject {
  const sdk = ({ authority, client }: Stage): AzureOpenAI =>
    new Sdk({ endpoint: `http://${authority}/proxy/azure`, apiKey: CLIENT_KEY, apiVersion: '2025-04-01-preview', deployment: 'my-deployment', fetch: client.fetch, maxRetries: 1, logLevel: 'off' });
  return {
    ...openaiDialect,
    provider: 'azure',
    title,
    path: /^\/openai\/deployments\/my-deployment\/chat\/completions\?api-version=2025-04-01-preview$/,
    keyHeader: ['api-key', PROVIDER_KEY],
    plain: async (stage) => (await sdk(stage).chat.completions.create({ model: 'm', messages: MESSAGES })).choices[0]!.message.content!,
    stream: async function* (stage, signal) {
      yield* deltas(await sdk(stage).chat.completions.create({ model: 'm', messages: MESSAGES, stream: true, stream_options: { include_usage: true } }, { signal }));
    },
  };
}

function anthropicSubject(title: string, Sdk: new (options: ConstructorParameters<typeof Anthropic>[0]) => Anthropic): Subject {
  const sdk = ({ authority, client }: Stage): Anthropic => new Sdk({ baseURL: `http://${authority}/proxy/anthropic`, apiKey: CLIENT_KEY, fetch: client.fetch, maxRetries: 1, logLevel: 'off' });
  const asked = { model: 'm', max_tokens: 100, messages: MESSAGES };
  return {
    provider: 'anthropic',
    title,
    path: /^\/v1\/messages$/,
    keyHeader: ['x-api-key', PROVIDER_KEY],
    plain: async (stage) => {
      const [block] = (await sdk(stage).messages.create(asked)).content;
      return block?.type === 'text' ? block.text : '';
    },
    stream: async function* (stage, signal) {
      for await (const event of await sdk(stage).messages.create({ ...asked, stream: true }, { signal })) {
        if (event.type === 'content_block_delta' && event.delta.type === 'text_delta') yield event.delta.text;
      }
    },
    body: { id: 'msg', type: 'message', role: 'assistant', model: 'm', content: [{ type: 'text', text: WORDS.join('') }], stop_reason: 'end_turn', usage: { input_tokens: 12, output_tokens: 3 } },
    events: (words) => ({
      words: words.map(
        (text, i) =>
          (i === 0
            ? data({ type: 'message_start', message: { id: 'msg', type: 'message', role: 'assistant', model: 'm', content: [], stop_reason: null, usage: { input_tokens: 12, output_tokens: 1 } } }, 'message_start') +
              data({ type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } }, 'content_block_start')
            : '') + data({ type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text } }, 'content_block_delta'),
      ),
      last:
        data({ type: 'content_block_stop', index: 0 }, 'content_block_stop') +
        data({ type: 'message_delta', delta: { stop_reason: 'end_turn' }, usage: { output_tokens: 3 } }, 'message_delta') +
        data({ type: 'message_stop' }, 'message_stop'),
    }),
    busy: { type: 'error', error: { type: 'rate_limit_error', message: 'Rate limit reached' } },
  };
}

function googleSubject(title: string, Sdk: new (options: ConstructorParameters<typeof GoogleGenAI>[0]) => GoogleGenAI): Subject {
  const sdk = ({ authority, client }: Stage): GoogleGenAI =>
    new Sdk({ apiKey: CLIENT_KEY, httpOptions: { baseUrl: `http://${authority}/proxy/google`, fetch: client.fetch as typeof fetch, retryOptions: { attempts: 2 } } });
  const chunk = (text: string, extra: object = {}): object => ({ candidates: [{ content: { parts: [{ text }], role: 'model' }, index: 0, ...extra }], usageMetadata: { promptTokenCount: 12, candidatesTokenCount: 3, totalTokenCount: 15 }, modelVersion: 'm' });
  return {
    provider: 'google',
    title,
    path: /^\/v1(?:beta)?\/models\/m:(?:generateContent|streamGenerateContent\?alt=sse)$/,
    keyHeader: ['x-goog-api-key', PROVIDER_KEY],
    plain: async (stage) => (await sdk(stage).models.generateContent({ model: 'm', contents: 'Hello?' })).text!,
    stream: async function* (stage, signal) {
      for await (const part of await sdk(stage).models.generateContentStream({ model: 'm', contents: 'Hello?', ...(signal && { config: { abortSignal: signal } }) })) {
        if (part.text !== undefined && part.text !== '') yield part.text;
      }
    },
    body: chunk(WORDS.join(''), { finishReason: 'STOP' }),
    events: (words) => ({ words: words.map((text) => data(chunk(text))), last: data(chunk('', { finishReason: 'STOP' })) }),
    busy: { error: { code: 429, message: 'Resource has been exhausted', status: 'RESOURCE_EXHAUSTED' } },
  };
}

const SUBJECTS: readonly Subject[] = [
  openaiSubject('openai, current', OpenAI),
  openaiSubject('openai, the major before', OpenAIBefore as unknown as OpenAIClass),
  azureSubject('openai for Azure, current', AzureOpenAI),
  azureSubject('openai for Azure, the major before', AzureBefore as unknown as AzureClass),
  anthropicSubject('@anthropic-ai/sdk, current', Anthropic),
  anthropicSubject('@anthropic-ai/sdk, the major before', AnthropicBefore as unknown as new (options: ConstructorParameters<typeof Anthropic>[0]) => Anthropic),
  googleSubject('@google/genai, current', GoogleGenAI),
  googleSubject('@google/genai, the major before', GoogleBefore as unknown as new (options: ConstructorParameters<typeof GoogleGenAI>[0]) => GoogleGenAI),
];

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

describe.each(SUBJECTS)('$title', (subject) => {
  const provider = PROVIDERS.find(({ name }) => name === subject.provider)!;

  async function given(handler: (response: ServerResponse, call: number, request: IncomingMessage) => unknown): Promise<{ stage: Stage; upstream: FakeUpstream; seen: IncomingMessage[] }> {
    const seen: IncomingMessage[] = [];
    const upstream = await startUpstream((request, response) => {
      seen.push(request);
      return handler(response, seen.length, request);
    });
    const { port } = new URL(`http://${upstream.upstream.authority}`);
    const stage = await startStage({ upstream: upstreamOf(provider, `http://127.0.0.1:${port}${provider.baseUrlSuffix}`)! });
    closers.push(() => upstream.close(), () => stage.close());
    return { stage, upstream, seen };
  }
  const json = (response: ServerResponse, status: number, body: object, headers: Record<string, string> = {}): void => {
    response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
  };
  const endings = (stage: Stage): Promise<readonly object[]> =>
    until(() => stage.events.some(({ type }) => type === 'ended')).then(() => stage.events.filter(({ type }) => type === 'ended'));
  async function collect(stream: AsyncIterable<string>): Promise<{ words: string[]; error: unknown }> {
    const words: string[] = [];
    try {
      for await (const word of stream) words.push(word);
      return { words, error: null };
    } catch (error) {
      return { words, error };
    }
  }
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
      expect(String((error as Error | null)?.message)).toContain('broke off its answer');
      expect(await endings(stage)).toMatchObject([{ outcome: 'upstream_broken' }]);
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
    expect(await endings(stage)).toMatchObject([{ outcome: 'client_left' }]);
  });

  it('repeats a call that was refused for a while, signed anew', async () => {
    const { stage, seen } = await given((response, call) => {
      if (call === 1) json(response, 429, subject.busy, { 'retry-after': '0' });
      else json(response, 200, subject.body);
    });
    expect(await subject.plain(stage)).toBe('Hello there!');
    expect(seen).toHaveLength(2);
    // Two calls to us, each accepted by itself: a copy would have been refused as a replay.
    expect(stage.events.filter(({ type }) => type === 'started')).toHaveLength(2);
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
    const upstream = await startUpstream((_request, response) => response.writeHead(200).end());
    const google = PROVIDERS.find(({ name }) => name === 'google')!;
    const { port } = new URL(`http://${upstream.upstream.authority}`);
    const stage = await startStage({ upstream: upstreamOf(google, `http://127.0.0.1:${port}`)! });
    closers.push(() => upstream.close(), () => stage.close());
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
});
