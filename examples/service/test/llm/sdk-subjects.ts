/**
 * The official SDKs, current and the major before, and how the providers behind them speak: what a test says once, for all of them.
 */
import Anthropic from '@anthropic-ai/sdk';
import AnthropicBefore from 'anthropic-sdk-0';
import { GoogleGenAI } from '@google/genai';
import { GoogleGenAI as GoogleBefore } from 'genai-2';
import OpenAI, { AzureOpenAI } from 'openai';
import OpenAIBefore, { AzureOpenAI as AzureBefore } from 'openai-6';
import type { KeyGuardClient } from '@keyguard/core/client';
import { upstreamOf, PROVIDERS } from '../../src/llm/providers.ts';
import { PROVIDER_KEY, startStage, startUpstream, type FakeUpstream, type Stage, type StageOptions } from './stage.ts';

export const WORDS = ['Hello', ' there', '!'];
/** What a client sends where its provider key would be. */
export const CLIENT_KEY = 'client-key-of-no-use-0123456789';

/** Where an SDK calls, and how it signs. */
export type Place = Readonly<Pick<Stage, 'authority'>> & { readonly client: Pick<KeyGuardClient, 'fetch'> };

export interface SdkOptions {
  /** By itself, after the first try. Default 1. */
  readonly maxRetries?: number;
  readonly timeoutMs?: number;
}

/** One SDK, and how its provider speaks. */
export interface Subject {
  readonly provider: string;
  readonly title: string;
  readonly path: RegExp;
  readonly keyHeader: readonly [string, string];
  plain(place: Place, options?: SdkOptions): Promise<string>;
  stream(place: Place, signal?: AbortSignal, options?: SdkOptions): AsyncIterable<string>;
  readonly body: object;
  /** One event a word, then what comes last. */
  events(words: readonly string[]): { readonly words: readonly string[]; readonly last: string };
  /** What it has reported with the first word. */
  readonly reportedAtFirst: object;
  readonly busy: object;
  /** What the provider sends when it fails in the middle of a stream, with `Overloaded` as its text. */
  readonly failed: string;
}

export const USAGE = { inputTokens: 12, outputTokens: 3 };

export const data = (value: object | string, name?: string): string => `${name === undefined ? '' : `event: ${name}\n`}data: ${typeof value === 'string' ? value : JSON.stringify(value)}\n\n`;
const MESSAGES = [{ role: 'user' as const, content: 'Hello?' }];

type OpenAIClass = new (options: ConstructorParameters<typeof OpenAI>[0]) => OpenAI;
type AzureClass = new (options: ConstructorParameters<typeof AzureOpenAI>[0]) => AzureOpenAI;
type AnthropicClass = new (options: ConstructorParameters<typeof Anthropic>[0]) => Anthropic;
type GoogleClass = new (options: ConstructorParameters<typeof GoogleGenAI>[0]) => GoogleGenAI;

// The current types speak for both majors: what the tests call is in both.
export const OPENAI: readonly [title: string, OpenAIClass][] = [['openai, current', OpenAI], ['openai, the major before', OpenAIBefore as unknown as OpenAIClass]];
export const AZURE: readonly [title: string, AzureClass][] = [['openai for Azure, current', AzureOpenAI], ['openai for Azure, the major before', AzureBefore as unknown as AzureClass]];
export const ANTHROPIC: readonly [title: string, AnthropicClass][] = [['@anthropic-ai/sdk, current', Anthropic], ['@anthropic-ai/sdk, the major before', AnthropicBefore as unknown as AnthropicClass]];
export const GOOGLE: readonly [title: string, GoogleClass][] = [['@google/genai, current', GoogleGenAI], ['@google/genai, the major before', GoogleBefore as unknown as GoogleClass]];

async function* deltas(stream: AsyncIterable<OpenAI.ChatCompletionChunk>): AsyncGenerator<string> {
  for await (const chunk of stream) if (typeof chunk.choices[0]?.delta.content === 'string') yield chunk.choices[0].delta.content;
}

const openaiDialect = {
  body: { id: 'c', object: 'chat.completion', model: 'm', choices: [{ index: 0, message: { role: 'assistant', content: WORDS.join('') }, finish_reason: 'stop' }], usage: { prompt_tokens: 12, completion_tokens: 3, total_tokens: 15 } },
  events: (words: readonly string[]) => ({
    words: words.map((content) => data({ id: 'c', object: 'chat.completion.chunk', model: 'm', choices: [{ index: 0, delta: { content }, finish_reason: null }] })),
    last: data({ id: 'c', object: 'chat.completion.chunk', model: 'm', choices: [], usage: { prompt_tokens: 12, completion_tokens: 3, total_tokens: 15 } }) + data('[DONE]'),
  }),
  reportedAtFirst: { model: 'm', inputTokens: null, outputTokens: null },
  busy: { error: { message: 'Rate limit reached', type: 'requests', param: null, code: 'rate_limit_exceeded' } },
  failed: data({ error: { message: 'Overloaded', type: 'server_error', param: null, code: null } }),
};

function openaiSubject(title: string, Sdk: OpenAIClass): Subject {
  const sdk = ({ authority, client }: Place, { maxRetries = 1, timeoutMs }: SdkOptions = {}): OpenAI => new Sdk({ baseURL: `http://${authority}/proxy/openai/v1`, apiKey: CLIENT_KEY, fetch: client.fetch, maxRetries, ...(timeoutMs !== undefined && { timeout: timeoutMs }), logLevel: 'off' });
  return {
    ...openaiDialect,
    provider: 'openai',
    title,
    path: /^\/v1\/chat\/completions$/,
    keyHeader: ['authorization', `Bearer ${PROVIDER_KEY}`],
    plain: async (place, options) => (await sdk(place, options).chat.completions.create({ model: 'm', messages: MESSAGES })).choices[0]!.message.content!,
    stream: async function* (place, signal, options) {
      yield* deltas(await sdk(place, options).chat.completions.create({ model: 'm', messages: MESSAGES, stream: true, stream_options: { include_usage: true } }, { signal }));
    },
  };
}

function azureSubject(title: string, Sdk: AzureClass): Subject {
  const sdk = ({ authority, client }: Place, { maxRetries = 1, timeoutMs }: SdkOptions = {}): AzureOpenAI =>
    new Sdk({ endpoint: `http://${authority}/proxy/azure`, apiKey: CLIENT_KEY, apiVersion: '2025-04-01-preview', deployment: 'my-deployment', fetch: client.fetch, maxRetries, ...(timeoutMs !== undefined && { timeout: timeoutMs }), logLevel: 'off' });
  return {
    ...openaiDialect,
    provider: 'azure',
    title,
    path: /^\/openai\/deployments\/my-deployment\/chat\/completions\?api-version=2025-04-01-preview$/,
    keyHeader: ['api-key', PROVIDER_KEY],
    plain: async (place, options) => (await sdk(place, options).chat.completions.create({ model: 'm', messages: MESSAGES })).choices[0]!.message.content!,
    stream: async function* (place, signal, options) {
      yield* deltas(await sdk(place, options).chat.completions.create({ model: 'm', messages: MESSAGES, stream: true, stream_options: { include_usage: true } }, { signal }));
    },
  };
}

function anthropicSubject(title: string, Sdk: AnthropicClass): Subject {
  const sdk = ({ authority, client }: Place, { maxRetries = 1, timeoutMs }: SdkOptions = {}): Anthropic => new Sdk({ baseURL: `http://${authority}/proxy/anthropic`, apiKey: CLIENT_KEY, fetch: client.fetch, maxRetries, ...(timeoutMs !== undefined && { timeout: timeoutMs }), logLevel: 'off' });
  const asked = { model: 'm', max_tokens: 100, messages: MESSAGES };
  return {
    provider: 'anthropic',
    title,
    path: /^\/v1\/messages$/,
    keyHeader: ['x-api-key', PROVIDER_KEY],
    plain: async (place, options) => {
      const [block] = (await sdk(place, options).messages.create(asked)).content;
      return block?.type === 'text' ? block.text : '';
    },
    stream: async function* (place, signal, options) {
      for await (const event of await sdk(place, options).messages.create({ ...asked, stream: true }, { signal })) {
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
    reportedAtFirst: { model: 'm', inputTokens: 12, outputTokens: 1 },
    busy: { type: 'error', error: { type: 'rate_limit_error', message: 'Rate limit reached' } },
    failed: data({ type: 'error', error: { type: 'overloaded_error', message: 'Overloaded' } }, 'error'),
  };
}

function googleSubject(title: string, Sdk: GoogleClass): Subject {
  const sdk = ({ authority, client }: Place, { maxRetries = 1, timeoutMs }: SdkOptions = {}): GoogleGenAI =>
    new Sdk({ apiKey: CLIENT_KEY, httpOptions: { baseUrl: `http://${authority}/proxy/google`, fetch: client.fetch as typeof fetch, retryOptions: { attempts: maxRetries + 1 }, ...(timeoutMs !== undefined && { timeout: timeoutMs }) } });
  const chunk = (text: string, extra: object = {}): object => ({ candidates: [{ content: { parts: [{ text }], role: 'model' }, index: 0, ...extra }], usageMetadata: { promptTokenCount: 12, candidatesTokenCount: 3, totalTokenCount: 15 }, modelVersion: 'm' });
  return {
    provider: 'google',
    title,
    path: /^\/v1(?:beta)?\/models\/m:(?:generateContent|streamGenerateContent\?alt=sse)$/,
    keyHeader: ['x-goog-api-key', PROVIDER_KEY],
    plain: async (place, options) => (await sdk(place, options).models.generateContent({ model: 'm', contents: 'Hello?' })).text!,
    stream: async function* (place, signal, options) {
      for await (const part of await sdk(place, options).models.generateContentStream({ model: 'm', contents: 'Hello?', ...(signal && { config: { abortSignal: signal } }) })) {
        if (part.text !== undefined && part.text !== '') yield part.text;
      }
    },
    body: chunk(WORDS.join(''), { finishReason: 'STOP' }),
    events: (words) => ({ words: words.map((text, i) => data({ ...chunk(text), usageMetadata: { promptTokenCount: 12, candidatesTokenCount: i + 1 } })), last: data(chunk('', { finishReason: 'STOP' })) }),
    reportedAtFirst: { model: 'm', inputTokens: 12, outputTokens: 1 },
    busy: { error: { code: 429, message: 'Resource has been exhausted', status: 'RESOURCE_EXHAUSTED' } },
    failed: data({ error: { code: 503, message: 'Overloaded', status: 'UNAVAILABLE' } }),
  };
}

export const SUBJECTS: readonly Subject[] = [
  ...OPENAI.map(([title, Sdk]) => openaiSubject(title, Sdk)),
  ...AZURE.map(([title, Sdk]) => azureSubject(title, Sdk)),
  ...ANTHROPIC.map(([title, Sdk]) => anthropicSubject(title, Sdk)),
  ...GOOGLE.map(([title, Sdk]) => googleSubject(title, Sdk)),
];


export interface Given {
  readonly stage: Stage;
  readonly upstream: FakeUpstream;
}

/** A stage whose calls of `provider` go to an upstream that answers as `handler` says; to be closed in the order of `closers`, last first. */
export async function given(provider: string, handler: Parameters<typeof startUpstream>[0], closers: (() => Promise<unknown>)[], options: Partial<StageOptions> = {}): Promise<Given> {
  const upstream = await startUpstream(handler);
  closers.push(() => upstream.close());
  const stage = await startStage({ upstream: upstreamAt(provider, `http://${upstream.upstream.authority}`), ...options });
  closers.push(() => stage.close());
  return { stage, upstream };
}

/** The upstream of `provider` at that origin. */
export function upstreamAt(name: string, origin: string): NonNullable<ReturnType<typeof upstreamOf>> {
  const provider = PROVIDERS.find((one) => one.name === name)!;
  return upstreamOf(provider, `${origin}${provider.baseUrlSuffix}`)!;
}

/** What a stream said, and what was raised at its end. */
export async function collect(stream: AsyncIterable<string>): Promise<{ words: string[]; error: Error | null }> {
  const words: string[] = [];
  try {
    for await (const word of stream) words.push(word);
    return { words, error: null };
  } catch (error) {
    return { words, error: error as Error };
  }
}
