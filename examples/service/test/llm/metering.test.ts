import { describe, expect, it } from 'vitest';
import { eventReader, jsonReader } from '../../src/llm/metering.ts';
import type { Meter } from '../../src/llm/provider.ts';
import { PROVIDERS } from '../../src/llm/providers.ts';

const meterOf = (name: string, rest: string): Meter => PROVIDERS.find((one) => one.name === name)!.meter(rest);
const event = (data: object | string, name?: string): string => `${name === undefined ? '' : `event: ${name}\n`}data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`;

interface Case {
  readonly provider: string;
  readonly rest: string;
  readonly events: readonly string[];
  readonly usage: object;
}

const CHAT = [
  event({ id: 'c', model: 'gpt-x', choices: [{ delta: { content: 'Hi' } }], usage: null }),
  event({ id: 'c', model: 'gpt-x', choices: [{ delta: { content: ' "usage": {"prompt_tokens": 999} ' } }], usage: null }),
  event({ id: 'c', model: 'gpt-x', choices: [], usage: { prompt_tokens: 11, completion_tokens: 7, total_tokens: 18 } }),
  event('[DONE]'),
];

const CASES: readonly Case[] = [
  { provider: 'openai', rest: 'chat/completions', events: CHAT, usage: { model: 'gpt-x', inputTokens: 11, outputTokens: 7 } },
  {
    provider: 'openai',
    rest: 'responses',
    events: [
      event({ type: 'response.created', response: { model: 'gpt-y', usage: null } }, 'response.created'),
      event({ type: 'response.output_text.delta', delta: 'Hi' }, 'response.output_text.delta'),
      event({ type: 'response.completed', response: { model: 'gpt-y', usage: { input_tokens: 5, output_tokens: 3 } } }, 'response.completed'),
    ],
    usage: { model: 'gpt-y', inputTokens: 5, outputTokens: 3 },
  },
  { provider: 'azure', rest: 'openai/deployments/d/chat/completions', events: CHAT, usage: { model: 'gpt-x', inputTokens: 11, outputTokens: 7 } },
  {
    provider: 'anthropic',
    rest: 'v1/messages',
    events: [
      event({ type: 'message_start', message: { model: 'claude-x', usage: { input_tokens: 10, cache_read_input_tokens: 100, cache_creation_input_tokens: 20, output_tokens: 1 } } }, 'message_start'),
      event({ type: 'ping' }, 'ping'),
      event({ type: 'content_block_delta', delta: { text: 'Hi' } }, 'content_block_delta'),
      event({ type: 'message_delta', delta: { stop_reason: 'end_turn' }, usage: { output_tokens: 15 } }, 'message_delta'),
      // It pads some of its events.
      event('{"type":"message_stop"            }', 'message_stop'),
    ],
    usage: { model: 'claude-x', inputTokens: 130, outputTokens: 15, cachedInputTokens: 100, cacheWriteTokens: 20 },
  },
  {
    provider: 'google',
    rest: 'v1beta/models/gemini-x:streamGenerateContent',
    events: [
      event({ candidates: [{ content: { parts: [{ text: 'Hi' }] } }], usageMetadata: { promptTokenCount: 4, candidatesTokenCount: 1 }, modelVersion: 'gemini-x-001' }),
      event({ candidates: [{ content: { parts: [{ text: '!' }] }, finishReason: 'STOP' }], usageMetadata: { promptTokenCount: 4, candidatesTokenCount: 2, thoughtsTokenCount: 30 }, modelVersion: 'gemini-x-001' }),
    ],
    usage: { model: 'gemini-x-001', inputTokens: 4, outputTokens: 32 },
  },
  {
    provider: 'google',
    rest: 'v1beta/interactions',
    events: [
      event({ event_type: 'interaction.created', interaction: { id: 'i', model: 'gemini-x', status: 'in_progress' } }, 'interaction.created'),
      event({ event_type: 'step.delta', index: 0, delta: { type: 'text', text: ' "usage": {"total_input_tokens": 999} ' } }, 'step.delta'),
      event({ event_type: 'step.stop', index: 0, step_usage: { total_input_tokens: 900 }, usage: { total_input_tokens: 10, total_output_tokens: 1 } }, 'step.stop'),
      event({ event_type: 'interaction.status_update', interaction_id: 'i', status: 'in_progress', usage: { total_input_tokens: 10, total_output_tokens: 4, total_thought_tokens: 2 } }, 'interaction.status_update'),
      event({ event_type: 'interaction.completed', interaction: { id: 'i', model: 'gemini-x-001', status: 'completed', usage: { total_input_tokens: 12, total_tool_use_tokens: 30, total_output_tokens: 5, total_thought_tokens: 40, total_cached_tokens: 6 } } }, 'interaction.completed'),
    ],
    usage: { model: 'gemini-x-001', inputTokens: 42, outputTokens: 45, cachedInputTokens: 6 },
  },
];

describe.each(CASES)('a stream of $provider $rest', ({ provider, rest, events, usage }) => {
  const bytes = Buffer.from(events.join(''));

  it('is counted to the token, however it is cut', () => {
    for (const size of [1, 2, 3, 7, 50, 1000, bytes.length]) {
      const meter = meterOf(provider, rest);
      const reader = eventReader(meter);
      for (let i = 0; i < bytes.length; i += size) reader.take(bytes.subarray(i, i + size));
      reader.end();
      expect([size, meter.usage(), meter.isWhole()]).toMatchObject([size, usage, true]);
    }
  });

  it('is counted with CRLF too', () => {
    const meter = meterOf(provider, rest);
    const reader = eventReader(meter);
    reader.take(Buffer.from(events.join('').replaceAll('\n', '\r\n')));
    reader.end();
    expect([meter.usage(), meter.isWhole()]).toMatchObject([usage, true]);
  });

  it('is not whole without its last event', () => {
    const meter = meterOf(provider, rest);
    const reader = eventReader(meter);
    for (const one of events.slice(0, -1)) reader.take(Buffer.from(one));
    reader.end();
    expect(meter.isWhole()).toBe(false);
    // What had been reported so far.
    if (rest === 'v1beta/interactions') expect(meter.usage()).toMatchObject({ inputTokens: 10, outputTokens: 6 });
  });

  it('takes no nonsense for a count, and throws at none', () => {
    const bad = ['{', '[]', 'null', '"usage"', '{"usage":null}', '{"usage":{"prompt_tokens":-1,"completion_tokens":1.5}}', '{"usage":{"input_tokens":"7","output_tokens":1e99}}', '{"usageMetadata":[]}', '{"message":7,"usage":8}', '{"error":null,"response":[]}'];
    const meter = meterOf(provider, rest);
    const reader = eventReader(meter);
    for (const one of bad) reader.take(Buffer.from(event(one)));
    reader.take(Buffer.from([0xff, 0xfe, 0x22, 0x75, 10, 10]));
    reader.end();
    for (const one of bad) meter.answer(JSON.parse(one === '{' ? '0' : one));
    expect([meter.usage().inputTokens, meter.usage().outputTokens]).toEqual([null, null]);
  });
});

describe('a stream with a generated image of megabytes in it', () => {
  const image = 'iVBORw0KGgo'.repeat(300_000);

  it.each([
    ['openai', 'responses', { type: 'response.completed', response: { model: 'gpt-y', output: [{ type: 'image_generation_call', result: image }], usage: { input_tokens: 50, input_tokens_details: { cached_tokens: 4 }, output_tokens: 4160 }, metadata: {} } }, { model: 'gpt-y', inputTokens: 50, outputTokens: 4160, cachedInputTokens: 4 }, true],
    ['openai', 'images/generations', { type: 'image_generation.completed', b64_json: image, usage: { total_tokens: 100, input_tokens: 50, output_tokens: 50, input_tokens_details: { text_tokens: 10, image_tokens: 40 } } }, { model: null, inputTokens: 50, outputTokens: 50 }, null],
    ['google', 'v1beta/models/m:streamGenerateContent', { candidates: [{ content: { parts: [{ inlineData: { mimeType: 'image/png', data: image } }] }, finishReason: 'STOP' }], usageMetadata: { promptTokenCount: 8, candidatesTokenCount: 1290 }, modelVersion: 'm-1' }, { model: 'm-1', inputTokens: 8, outputTokens: 1290 }, true],
  ])('of %s %s is whole and counted', (provider, rest, value, usage, isWhole) => {
    const bytes = Buffer.from(event(value));
    for (const size of [65_536, bytes.length]) {
      const meter = meterOf(provider, rest);
      const reader = eventReader(meter);
      for (let i = 0; i < bytes.length; i += size) reader.take(bytes.subarray(i, i + size));
      reader.end();
      expect([meter.usage(), meter.isWhole()]).toMatchObject([usage, isWhole]);
    }
  });
});

describe('a whole answer', () => {
  const count = (provider: string, rest: string, value: object | string, size = 1000): object => {
    const meter = meterOf(provider, rest);
    const reader = jsonReader(meter);
    const bytes = Buffer.from(typeof value === 'string' ? value : JSON.stringify(value));
    for (let i = 0; i < bytes.length; i += size) reader.take(bytes.subarray(i, i + size));
    reader.end();
    return meter.usage();
  };

  it.each([
    ['openai', 'chat/completions', { model: 'm', usage: { prompt_tokens: 3, completion_tokens: 4 } }, { model: 'm', inputTokens: 3, outputTokens: 4 }],
    ['openai', 'responses', { model: 'm', usage: { input_tokens: 3, output_tokens: 4 } }, { model: 'm', inputTokens: 3, outputTokens: 4 }],
    ['openai', 'embeddings', { model: 'm', usage: { prompt_tokens: 3, total_tokens: 3 } }, { model: 'm', inputTokens: 3, outputTokens: 0 }],
    ['openai', 'models', { object: 'list', data: [] }, { model: null, inputTokens: null, outputTokens: null }],
    ['anthropic', 'v1/messages', { model: 'm', usage: { input_tokens: 3, output_tokens: 4 } }, { model: 'm', inputTokens: 3, outputTokens: 4 }],
    ['anthropic', 'v1/messages/count_tokens', { input_tokens: 3 }, { model: null, inputTokens: null, outputTokens: null }],
    ['google', 'v1beta/models/m:generateContent', { usageMetadata: { promptTokenCount: 3, candidatesTokenCount: 4 }, modelVersion: 'm-1' }, { model: 'm-1', inputTokens: 3, outputTokens: 4 }],
    ['google', 'v1beta/models/m:embedContent', { embedding: { values: [1] } }, { model: 'm', inputTokens: null, outputTokens: null }],
    ['google', 'v1beta/interactions', { id: 'i', model: 'm', status: 'completed', usage: { total_input_tokens: 3, total_tool_use_tokens: 1, total_output_tokens: 4, total_thought_tokens: 2, total_tokens: 10 } }, { model: 'm', inputTokens: 4, outputTokens: 6 }],
    ['google', 'v1beta/interactions', { id: 'i', model: 'm', status: 'in_progress' }, { model: 'm', inputTokens: null, outputTokens: null }],
    ['openai', 'batches', { id: 'b', usage: { input_tokens: 0, output_tokens: 0 } }, { model: null, inputTokens: null, outputTokens: null }],
    ['azure', 'openai/v1/batches', { id: 'b', usage: { input_tokens: 0, output_tokens: 0 } }, { model: null, inputTokens: null, outputTokens: null }],
    ['anthropic', 'v1/messages/batches', { id: 'b', usage: { input_tokens: 0, output_tokens: 0 } }, { model: null, inputTokens: null, outputTokens: null }],
    ['google', 'v1beta/models/m:streamGenerateContent', [{ usageMetadata: { promptTokenCount: 3, candidatesTokenCount: 1 } }, { usageMetadata: { promptTokenCount: 3, candidatesTokenCount: 4 } }], { model: 'm', inputTokens: 3, outputTokens: 4 }],
  ])('of %s %s is counted', (provider, rest, value, usage) => {
    expect(count(provider, rest, value)).toMatchObject(usage);
    expect(count(provider, rest, value, 1)).toMatchObject(usage);
  });

  it('that is too long to keep is counted by what stands at its end', () => {
    const data = Array.from({ length: 200 }, () => ({ embedding: Array.from({ length: 1536 }, () => 0.123_456) }));
    for (const size of [100_000, 3000]) {
      expect(count('openai', 'embeddings', { object: 'list', data, model: 'm', usage: { prompt_tokens: 9, total_tokens: 9 } }, size)).toMatchObject({ inputTokens: 9, outputTokens: 0 });
    }
  });

  it('that is long because of an image is counted wherever its usage stands', () => {
    const usage = { input_tokens: 50, output_tokens: 1056, input_tokens_details: { text_tokens: 10, image_tokens: 40 } };
    const data = [{ b64_json: 'iVBORw0KGgo'.repeat(300_000) }];
    for (const value of [{ created: 0, data, usage }, { usage, created: 0, data, size: '1024x1024' }]) {
      expect(count('openai', 'images/generations', value, 65_536)).toMatchObject({ model: null, inputTokens: 50, outputTokens: 1056 });
    }
  });

  it('that is just too long to keep is counted by its end, even if that comes in crumbs', () => {
    const json = JSON.stringify({ data: [{ embedding: Array.from({ length: 120_000 }, () => 0.123_456) }], usage: { prompt_tokens: 9, total_tokens: 9, prompt_tokens_details: { cached_tokens: 1 } } });
    for (const size of [57, 65_536]) expect(count('openai', 'embeddings', json, size)).toMatchObject({ inputTokens: 9, outputTokens: 0 });
  });

  it('that is no JSON counts for nothing', () => {
    expect(count('openai', 'chat/completions', '{"usage":{"prompt_tokens":3')).toMatchObject({ model: null, inputTokens: null, outputTokens: null });
  });
});

describe('what a call uses', () => {
  const spending = (provider: string, rest: string): string => PROVIDERS.find(({ name }) => name === provider)!.spends(rest);

  it.each<[string, 'none' | 'here' | 'elsewhere', readonly string[]]>([
    ['openai', 'here', ['chat/completions', 'responses', 'responses/compact', 'embeddings', 'images/edits', 'audio/speech']],
    ['openai', 'none', ['moderations', 'files', 'uploads', 'uploads/u/parts', 'responses/input_tokens', 'responses/r/cancel', 'batches/b/cancel', 'conversations/c/items', 'chat/completions/c']],
    ['openai', 'elsewhere', ['batches', 'fine_tuning/jobs', 'fine_tuning/jobs/j/resume', 'evals/e/runs', 'threads/t/runs', 'videos', 'batches/', 'chat/completions/c/x', 'x/files', 'Responses']],
    ['azure', 'here', ['openai/v1/responses', 'openai/responses', 'openai/deployments/d/chat/completions']],
    ['azure', 'none', ['openai/files', 'openai/v1/files']],
    ['azure', 'elsewhere', ['openai/batches', 'openai/v1/batches', 'openai/deployments/d/extensions/chat/completions', 'openai/threads/runs']],
    ['anthropic', 'here', ['v1/messages', 'v1/complete']],
    ['anthropic', 'none', ['v1/messages/count_tokens', 'v1/files', 'v1/messages/batches/b/cancel']],
    ['anthropic', 'elsewhere', ['v1/messages/batches', 'v1/messages/', 'v1/sessions']],
    ['google', 'here', ['v1beta/models/m:generateContent', 'v1/models/m:streamGenerateContent', 'v1beta/interactions', 'v1alpha/interactions']],
    ['google', 'none', ['v1beta/models/m:countTokens', 'v1beta/interactions/i/cancel', 'v1beta/batches/b:cancel']],
    ['google', 'elsewhere', ['v1beta/models/m:batchGenerateContent', 'v1beta/models/m:asyncBatchEmbedContent', 'v1beta/models/m:predictLongRunning', 'v1beta/cachedContents', 'v1beta/openai/chat/completions', 'v1beta/tunedModels', 'v1beta/interactions/i']],
  ])('of %s is told %s', (provider, expected, paths) => {
    for (const path of paths) expect([path, spending(provider, path)]).toEqual([path, expected]);
  });
});
