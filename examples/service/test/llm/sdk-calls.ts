/**
 * The calls that the official SDKs have beside the plain and the streamed one: what each sends, what its provider answers in its own
 * form, what the caller must get of it, and which tokens the provider reports.
 */
import { createReadStream } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { toFile, type OpenAI } from 'openai';
import { ANTHROPIC, AZURE, CLIENT_KEY, data, GOOGLE, OPENAI, type Place } from './sdk-subjects.ts';
import { SSE } from './stage.ts';

export interface Answer {
  readonly body: object | string | Buffer;
  readonly headers?: Readonly<Record<string, string>>;
}

/** One call of one SDK. */
export interface SdkCall {
  readonly sdk: string;
  readonly provider: string;
  readonly title: string;
  run(place: Place): Promise<unknown>;
  /** As the provider sees it: method and target. */
  readonly sent: string;
  readonly answer: Answer;
  /** What `run` resolves to. */
  readonly gives: unknown;
  /** As the provider reported; `null` where it reports nothing. */
  readonly usage: readonly [input: number, output: number] | null;
  /** The fields of the multipart body, files by their text. */
  readonly fields?: Readonly<Record<string, string>>;
}

type Case = Omit<SdkCall, 'sdk' | 'provider' | 'run'>;

const SOURCE = fileURLToPath(import.meta.url);
const IMAGE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0, 13, 10, 26, 10, 0xff, 0xfe, 45, 45]);
const json = (body: object): Answer => ({ body });
const sse = (...events: readonly string[]): Answer => ({ body: events.join(''), headers: SSE });
const MESSAGES = [{ role: 'user' as const, content: 'Hello?' }];
const VECTOR = [0.5, -1, 0.25];

async function all<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of stream) items.push(item);
  return items;
}

const RESPONSE = {
  id: 'resp', object: 'response', created_at: 0, model: 'gpt-y', status: 'completed',
  output: [{ type: 'message', id: 'msg', role: 'assistant', status: 'completed', content: [{ type: 'output_text', text: 'Hi', annotations: [] }] }],
  usage: { input_tokens: 36, input_tokens_details: { cached_tokens: 20 }, output_tokens: 87, output_tokens_details: { reasoning_tokens: 64 }, total_tokens: 123 },
};
const event = (value: { readonly type: string }): string => data(value, value.type);
const RESPONSE_EVENTS = sse(
  event({ type: 'response.created', sequence_number: 0, response: { ...RESPONSE, status: 'in_progress', output: [], usage: null } } as { type: string }),
  event({ type: 'response.output_item.added', sequence_number: 1, output_index: 0, item: { type: 'message', id: 'msg', role: 'assistant', status: 'in_progress', content: [] } } as { type: string }),
  event({ type: 'response.content_part.added', sequence_number: 2, item_id: 'msg', output_index: 0, content_index: 0, part: { type: 'output_text', text: '', annotations: [] } } as { type: string }),
  event({ type: 'response.output_text.delta', sequence_number: 3, item_id: 'msg', output_index: 0, content_index: 0, delta: 'Hi', logprobs: [] } as { type: string }),
  event({ type: 'response.completed', sequence_number: 4, response: RESPONSE } as { type: string }),
);
const CHAT_CHUNK = { id: 'c', object: 'chat.completion.chunk', created: 0, model: 'm' };
const EMBEDDINGS = { object: 'list', model: 'm', data: [{ object: 'embedding', index: 0, embedding: Buffer.from(new Float32Array(VECTOR).buffer).toString('base64') }], usage: { prompt_tokens: 8, total_tokens: 8 } };
const IMAGE_USAGE = { total_tokens: 1106, input_tokens: 50, output_tokens: 1056, input_tokens_details: { text_tokens: 10, image_tokens: 40 } };

type Run<Sdk> = (sdk: Sdk) => Promise<unknown>;
const image = (): Promise<File> => toFile(IMAGE, 'dot.png', { type: 'image/png' });

/** What both houses of OpenAI's models have, by the path below which they have it. */
function openaiCases(base: string, query: string, editBase = base): readonly (Case & { readonly run: Run<OpenAI> })[] {
  return [
    {
      title: 'a chat with cached and thought tokens', sent: `POST ${base}/chat/completions${query}`, usage: [120, 30], gives: 'Hi',
      answer: json({ id: 'c', object: 'chat.completion', model: 'm', choices: [{ index: 0, message: { role: 'assistant', content: 'Hi' }, finish_reason: 'stop' }], usage: { prompt_tokens: 120, completion_tokens: 30, total_tokens: 150, prompt_tokens_details: { cached_tokens: 100 }, completion_tokens_details: { reasoning_tokens: 20 } } }),
      run: async (sdk) => (await sdk.chat.completions.create({ model: 'm', messages: MESSAGES })).choices[0]!.message.content,
    },
    {
      title: 'the helper for streamed chats', sent: `POST ${base}/chat/completions${query}`, usage: [11, 7], gives: ['Hi', 11],
      answer: sse(
        data({ ...CHAT_CHUNK, choices: [{ index: 0, delta: { role: 'assistant', content: 'Hi' }, finish_reason: null }], usage: null }),
        data({ ...CHAT_CHUNK, choices: [{ index: 0, delta: {}, finish_reason: 'stop' }], usage: null }),
        data({ ...CHAT_CHUNK, choices: [], usage: { prompt_tokens: 11, completion_tokens: 7, total_tokens: 18 } }),
        data('[DONE]'),
      ),
      run: async (sdk) => {
        const completion = await sdk.chat.completions.stream({ model: 'm', messages: MESSAGES, stream_options: { include_usage: true } }).finalChatCompletion();
        return [completion.choices[0]!.message.content, completion.usage!.prompt_tokens];
      },
    },
    {
      title: 'embeddings', sent: `POST ${base}/embeddings${query}`, usage: [8, 0], gives: VECTOR, answer: json(EMBEDDINGS),
      run: async (sdk) => (await sdk.embeddings.create({ model: 'm', input: 'Hello?' })).data[0]!.embedding,
    },
    {
      title: 'an image that is edited', sent: `POST ${editBase}/images/edits${query}`, usage: [50, 1056], gives: 'aW1n',
      answer: json({ created: 0, data: [{ b64_json: 'aW1n' }], usage: IMAGE_USAGE }),
      fields: { model: 'm', prompt: 'brighter', image: IMAGE.toString('latin1') },
      run: async (sdk) => (await sdk.images.edit({ model: 'm', prompt: 'brighter', image: await image() })).data![0]!.b64_json,
    },
    {
      title: 'an image that comes as a stream', sent: `POST ${base}/images/generations${query}`, usage: [50, 1056], gives: ['image_generation.partial_image', 'image_generation.completed'],
      answer: sse(event({ type: 'image_generation.partial_image', b64_json: 'aW' } as { type: string }), event({ type: 'image_generation.completed', b64_json: 'aW1n', usage: IMAGE_USAGE } as { type: string })),
      run: async (sdk) => (await all(await sdk.images.generate({ model: 'm', prompt: 'a dot', stream: true }))).map(({ type }) => type),
    },
    {
      title: 'a transcription', sent: `POST ${base}/audio/transcriptions${query}`, usage: [14, 45], gives: 'said',
      answer: json({ text: 'said', usage: { type: 'tokens', input_tokens: 14, input_token_details: { text_tokens: 10, audio_tokens: 4 }, output_tokens: 45, total_tokens: 59 } }),
      fields: { model: 'm', file: 'RIFFé' },
      run: async (sdk) => (await sdk.audio.transcriptions.create({ model: 'm', file: await toFile(Buffer.from('RIFFé'), 'a.wav') })).text,
    },
    {
      title: 'a transcription that comes as a stream', sent: `POST ${base}/audio/transcriptions${query}`, usage: [14, 45], gives: ['transcript.text.delta', 'transcript.text.done'],
      answer: sse(event({ type: 'transcript.text.delta', delta: 'sa' } as { type: string }), event({ type: 'transcript.text.done', text: 'said', usage: { type: 'tokens', input_tokens: 14, output_tokens: 45, total_tokens: 59 } } as { type: string })),
      fields: { model: 'm', file: 'RIFF', stream: 'true' },
      run: async (sdk) => (await all(await sdk.audio.transcriptions.create({ model: 'm', stream: true, file: await toFile(Buffer.from('RIFF'), 'a.wav') }))).map(({ type }) => type),
    },
    {
      title: 'speech', sent: `POST ${base}/audio/speech${query}`, usage: null, gives: IMAGE, answer: { body: IMAGE, headers: { 'content-type': 'audio/mpeg' } },
      run: async (sdk) => Buffer.from(await (await sdk.audio.speech.create({ model: 'm', voice: 'alloy', input: 'Hello?' })).arrayBuffer()),
    },
  ];
}

/** What stands beside the models: not below a deployment. */
function openaiFiles(base: string, query: string): readonly (Case & { readonly run: Run<OpenAI> })[] {
  const file = { id: 'file-1', object: 'file', bytes: 1, created_at: 0, filename: 'x', purpose: 'user_data', status: 'processed' };
  return [
    {
      title: 'a file that is read as it is sent', sent: `POST ${base}/files${query}`, usage: null, gives: 'file-1', answer: json(file), fields: { purpose: 'user_data', file: SOURCE },
      run: async (sdk) => (await sdk.files.create({ purpose: 'user_data', file: createReadStream(SOURCE) })).id,
    },
    { title: 'the list of files', sent: `GET ${base}/files${query}${query === '' ? '?' : '&'}limit=2`, usage: null, gives: ['file-1'], answer: json({ object: 'list', data: [file], has_more: false }), run: async (sdk) => (await all(await sdk.files.list({ limit: 2 }))).map(({ id }) => id) },
    { title: 'what is in a file, to the byte', sent: `GET ${base}/files/file-1/content${query}`, usage: null, gives: IMAGE, answer: { body: IMAGE, headers: { 'content-type': 'text/html' } }, run: async (sdk) => Buffer.from(await (await sdk.files.content('file-1')).arrayBuffer()) },
    { title: 'a file that is deleted', sent: `DELETE ${base}/files/file-1${query}`, usage: null, gives: true, answer: json({ id: 'file-1', object: 'file', deleted: true }), run: async (sdk) => (await sdk.files.delete('file-1')).deleted },
    { title: 'the list of models', sent: `GET ${base}/models${query}`, usage: null, gives: ['m'], answer: json({ object: 'list', data: [{ id: 'm', object: 'model', created: 0, owned_by: 'o' }] }), run: async (sdk) => (await all(await sdk.models.list())).map(({ id }) => id) },
    { title: 'a model', sent: `GET ${base}/models/ft:m${query}`, usage: null, gives: 'ft:m', answer: json({ id: 'ft:m', object: 'model', created: 0, owned_by: 'o' }), run: async (sdk) => (await sdk.models.retrieve('ft:m')).id },
  ];
}

function openaiResponses(base: string): readonly (Case & { readonly run: Run<OpenAI> })[] {
  const asked = { model: 'm', input: 'Hello?' };
  return [
    { title: 'a response', sent: `POST ${base}/responses`, usage: [36, 87], gives: 'Hi', answer: json(RESPONSE), run: async (sdk) => (await sdk.responses.create(asked)).output_text },
    { title: 'a response that comes as a stream', sent: `POST ${base}/responses`, usage: [36, 87], gives: 5, answer: RESPONSE_EVENTS, run: async (sdk) => (await all(await sdk.responses.create({ ...asked, stream: true }))).length },
    { title: 'the helper for streamed responses', sent: `POST ${base}/responses`, usage: [36, 87], gives: 'Hi', answer: RESPONSE_EVENTS, run: async (sdk) => (await sdk.responses.stream(asked).finalResponse()).output_text },
    { title: 'a response that was kept', sent: `GET ${base}/responses/resp`, usage: null, gives: 'resp', answer: json(RESPONSE), run: async (sdk) => (await sdk.responses.retrieve('resp')).id },
    { title: 'a response that is deleted', sent: `DELETE ${base}/responses/resp`, usage: null, gives: undefined, answer: json({ id: 'resp', deleted: true }), run: (sdk) => sdk.responses.delete('resp').then(() => undefined) },
  ];
}

const CLAUDE = { id: 'msg', type: 'message', role: 'assistant', model: 'claude-x', content: [{ type: 'text', text: 'Hi' }], stop_reason: 'end_turn', stop_sequence: null };
const CLAUDE_USAGE = { input_tokens: 10, cache_creation_input_tokens: 20, cache_read_input_tokens: 100, output_tokens: 15 };
const ASKED = { model: 'claude-x', max_tokens: 100, messages: MESSAGES };
const CLAUDE_EVENTS = sse(
  event({ type: 'message_start', message: { ...CLAUDE, content: [], stop_reason: null, usage: { ...CLAUDE_USAGE, output_tokens: 1 } } } as { type: string }),
  event({ type: 'content_block_start', index: 0, content_block: { type: 'tool_use', id: 'tool', name: 'look', input: {} } } as { type: string }),
  event({ type: 'content_block_delta', index: 0, delta: { type: 'input_json_delta', partial_json: '{"at":"usage"}' } } as { type: string }),
  event({ type: 'content_block_stop', index: 0 } as { type: string }),
  event({ type: 'message_delta', delta: { stop_reason: 'tool_use', stop_sequence: null }, usage: { output_tokens: 89 } } as { type: string }),
  event({ type: 'message_stop' }),
);
const CLAUDE_FILE = { id: 'file-1', type: 'file', filename: 'x', mime_type: 'text/plain', size_bytes: 1, created_at: '2026-01-01T00:00:00Z', downloadable: false };

const anthropicCases = (beta: string): readonly (Case & { readonly run: Run<InstanceType<(typeof ANTHROPIC)[0][1]>> })[] => [
  { title: 'a message with a cache', sent: 'POST /v1/messages', usage: [130, 15], gives: 'msg', answer: json({ ...CLAUDE, usage: CLAUDE_USAGE }), run: async (sdk) => (await sdk.messages.create(ASKED)).id },
  { title: 'the helper for streamed messages, with a tool', sent: 'POST /v1/messages', usage: [130, 89], gives: [{ at: 'usage' }, 89], answer: CLAUDE_EVENTS, run: async (sdk) => { const message = await sdk.messages.stream(ASKED).finalMessage(); return [(message.content[0] as { input: unknown }).input, message.usage.output_tokens]; } },
  { title: 'a message of the beta', sent: `POST /v1/messages${beta}`, usage: [130, 15], gives: 'msg', answer: json({ ...CLAUDE, usage: CLAUDE_USAGE }), run: async (sdk) => (await sdk.beta.messages.create({ ...ASKED, betas: ['context-1m-2025-08-07'] })).id },
  { title: 'a count of tokens, which costs none', sent: 'POST /v1/messages/count_tokens', usage: null, gives: 7, answer: json({ input_tokens: 7 }), run: async (sdk) => (await sdk.messages.countTokens({ model: 'claude-x', messages: MESSAGES })).input_tokens },
  { title: 'a batch, which is counted elsewhere', sent: 'POST /v1/messages/batches', usage: null, gives: 'batch', answer: json({ id: 'batch', type: 'message_batch', processing_status: 'in_progress', request_counts: {} }), run: async (sdk) => (await sdk.messages.batches.create({ requests: [{ custom_id: 'a', params: ASKED }] })).id },
  { title: 'a file of the beta', sent: `POST /v1/files${beta}`, usage: null, gives: 'file-1', answer: json(CLAUDE_FILE), fields: { file: SOURCE }, run: async (sdk) => (await sdk.beta.files.upload({ file: createReadStream(SOURCE) })).id },
  { title: 'what is in a file, to the byte', sent: `GET /v1/files/file-1/content${beta}`, usage: null, gives: IMAGE, answer: { body: IMAGE, headers: { 'content-type': 'application/octet-stream' } }, run: async (sdk) => Buffer.from(await (await sdk.beta.files.download('file-1')).arrayBuffer()) },
  { title: 'a file that is deleted', sent: `DELETE /v1/files/file-1${beta}`, usage: null, gives: 'file-1', answer: json({ id: 'file-1', type: 'file_deleted' }), run: async (sdk) => (await sdk.beta.files.delete('file-1')).id },
  { title: 'the list of models', sent: 'GET /v1/models', usage: null, gives: ['claude-x'], answer: json({ data: [{ id: 'claude-x', type: 'model' }], has_more: false, first_id: null, last_id: null }), run: async (sdk) => (await all(await sdk.models.list())).map(({ id }) => id) },
  { title: 'a model', sent: 'GET /v1/models/claude-x', usage: null, gives: 'claude-x', answer: json({ id: 'claude-x', type: 'model' }), run: async (sdk) => (await sdk.models.retrieve('claude-x')).id },
];

const part = (text: string): object => ({ candidates: [{ content: { parts: [{ text }], role: 'model' }, index: 0, finishReason: 'STOP' }], modelVersion: 'gemini-x' });
const GEMINI_USAGE = { promptTokenCount: 40, cachedContentTokenCount: 30, toolUsePromptTokenCount: 5, candidatesTokenCount: 3, thoughtsTokenCount: 21, totalTokenCount: 69 };
const googleCases = (version: string): readonly (Case & { readonly run: Run<InstanceType<(typeof GOOGLE)[0][1]>> })[] => [
  { title: 'an answer with a cache, tools and thoughts', sent: `POST /${version}/models/m:generateContent`, usage: [45, 24], gives: 'Hi', answer: json({ ...part('Hi'), usageMetadata: GEMINI_USAGE }), run: async (sdk) => (await sdk.models.generateContent({ model: 'm', contents: [{ role: 'user', parts: [{ inlineData: { mimeType: 'image/png', data: IMAGE.toString('base64') } }, { text: 'what is it?' }] }] })).text },
  {
    title: 'a chat that is streamed', sent: `POST /${version}/models/m:streamGenerateContent?alt=sse`, usage: [45, 24], gives: 'Hi there',
    answer: sse(data({ candidates: [{ content: { parts: [{ text: 'Hi' }], role: 'model' }, index: 0 }], usageMetadata: { promptTokenCount: 40, totalTokenCount: 40 } }), data({ ...part(' there'), usageMetadata: GEMINI_USAGE })),
    run: async (sdk) => (await all(await sdk.chats.create({ model: 'm' }).sendMessageStream({ message: 'Hello?' }))).map(({ text }) => text).join(''),
  },
  { title: 'embeddings', sent: `POST /${version}/models/m:batchEmbedContents`, usage: [6, 0], gives: VECTOR, answer: json({ embeddings: [{ values: VECTOR }], usageMetadata: { promptTokenCount: 6 } }), run: async (sdk) => (await sdk.models.embedContent({ model: 'm', contents: 'Hello?' })).embeddings![0]!.values },
  { title: 'an interaction', sent: `POST /${version}/interactions`, usage: [4, 1], gives: 'i', answer: json({ id: 'i', status: 'completed', model: 'm', outputs: [{ type: 'text', text: 'Hi' }], usage: { total_input_tokens: 4, total_output_tokens: 1 } }), run: async (sdk) => (await sdk.interactions.create({ model: 'm', input: 'Hello?' })).id },
  { title: 'a count of tokens, which costs none', sent: `POST /${version}/models/m:countTokens`, usage: null, gives: 7, answer: json({ totalTokens: 7 }), run: async (sdk) => (await sdk.models.countTokens({ model: 'm', contents: 'Hello?' })).totalTokens },
  { title: 'the list of models', sent: `GET /${version}/models?pageSize=2`, usage: null, gives: ['models/m'], answer: json({ models: [{ name: 'models/m' }] }), run: async (sdk) => (await all(await sdk.models.list({ config: { pageSize: 2, queryBase: true } }))).map(({ name }) => name) },
  { title: 'a model', sent: `GET /${version}/models/m`, usage: null, gives: 'models/m', answer: json({ name: 'models/m' }), run: async (sdk) => (await sdk.models.get({ model: 'm' })).name },
  { title: 'the list of files', sent: `GET /${version}/files`, usage: null, gives: ['files/f'], answer: json({ files: [{ name: 'files/f' }] }), run: async (sdk) => (await all(await sdk.files.list())).map(({ name }) => name) },
  { title: 'a file that is deleted', sent: `DELETE /${version}/files/f`, usage: null, gives: undefined, answer: json({}), run: (sdk) => sdk.files.delete({ name: 'f' }).then(() => undefined) },
  { title: 'a cache that is filled', sent: `POST /${version}/cachedContents`, usage: null, gives: 'cachedContents/c', answer: json({ name: 'cachedContents/c' }), run: async (sdk) => (await sdk.caches.create({ model: 'm', config: { contents: 'long', ttl: '60s' } })).name },
];

const quiet = { apiKey: CLIENT_KEY, maxRetries: 0, logLevel: 'off' } as const;
const API_VERSION = '2025-04-01-preview';

// Where the majors differ, it is in the path that they ask for.
export const SDK_CALLS: readonly SdkCall[] = [
  ...OPENAI.flatMap(([sdk, Sdk]) =>
    [...openaiCases('/v1', ''), ...openaiFiles('/v1', ''), ...openaiResponses('/v1')].map((one) => ({
      ...one, sdk, provider: 'openai',
      run: ({ authority, client }: Place) => one.run(new Sdk({ ...quiet, baseURL: `http://${authority}/proxy/openai/v1`, fetch: client.fetch })),
    })),
  ),
  // By its own class, and as the documentation of the newer address has it: by that of the other house.
  ...AZURE.flatMap(([sdk, Sdk], i) =>
    [...openaiCases('/openai/deployments/m', `?api-version=${API_VERSION}`, i === 0 ? undefined : '/openai'), ...openaiFiles('/openai', `?api-version=${API_VERSION}`)].map((one) => ({
      ...one, sdk, provider: 'azure',
      run: ({ authority, client }: Place) => one.run(new Sdk({ ...quiet, endpoint: `http://${authority}/proxy/azure`, apiVersion: API_VERSION, fetch: client.fetch })),
    })),
  ),
  ...OPENAI.flatMap(([sdk, Sdk]) =>
    openaiResponses('/openai/v1').map((one) => ({
      ...one, sdk: `${sdk}, to Azure`, provider: 'azure',
      run: ({ authority, client }: Place) => one.run(new Sdk({ ...quiet, baseURL: `http://${authority}/proxy/azure/openai/v1`, fetch: client.fetch })),
    })),
  ),
  ...ANTHROPIC.flatMap(([sdk, Sdk], i) =>
    anthropicCases(i === 0 ? '' : '?beta=true').map((one) => ({
      ...one, sdk, provider: 'anthropic',
      run: ({ authority, client }: Place) => one.run(new Sdk({ ...quiet, baseURL: `http://${authority}/proxy/anthropic`, fetch: client.fetch })),
    })),
  ),
  ...GOOGLE.flatMap(([sdk, Sdk], i) =>
    googleCases(i === 0 ? 'v1' : 'v1beta').map((one) => ({
      ...one, sdk, provider: 'google',
      run: ({ authority, client }: Place) => one.run(new Sdk({ apiKey: CLIENT_KEY, httpOptions: { baseUrl: `http://${authority}/proxy/google`, fetch: client.fetch as typeof fetch } })),
    })),
  ),
];
