import { AuthenticationError, BadRequestError, NotFoundError } from 'openai';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DEMO_MODEL, startDemoUpstream, type DemoUpstream } from '../../src/llm/demo-upstream.ts';
import { startStage, until, type Stage } from './stage.ts';

let demo: DemoUpstream;
let stage: Stage;
const messages = [
  { role: 'system', content: 'Be brief.' },
  { role: 'user', content: 'What is a nonce?' },
] as const;

beforeAll(async () => {
  demo = await startDemoUpstream({ paceMs: 1 });
  stage = await startStage({ upstream: demo.upstream, apiKey: demo.apiKey });
});

afterAll(async () => {
  await stage.close();
  await demo.close();
});

describe('the demo upstream, through the proxy and the official SDK', () => {
  it('names its one model', async () => {
    const models = await stage.openai().models.list();
    expect(models.data.map(({ id }) => id)).toEqual([DEMO_MODEL]);
    expect(await stage.openai().models.retrieve(DEMO_MODEL)).toMatchObject({ id: DEMO_MODEL, object: 'model' });
  });

  it('says what it is and repeats the question, whatever model is asked for', async () => {
    for (const model of [DEMO_MODEL, 'gpt-5']) {
      const answer = await stage.openai().chat.completions.create({ model, messages: [...messages] });
      expect(answer.model).toBe(DEMO_MODEL);
      expect(answer.choices[0]!.message.content).toMatch(/KeyGuard's built-in demo upstream, not a language model.*What is a nonce\?/);
      expect(answer.choices[0]!.finish_reason).toBe('stop');
      expect(answer.usage).toMatchObject({ prompt_tokens: 6, completion_tokens: expect.any(Number) });
    }
  });

  it('streams the same, word by word, with usage where it is asked for', async () => {
    const stream = await stage.openai().chat.completions.create({ model: DEMO_MODEL, messages: [...messages], stream: true, stream_options: { include_usage: true } });
    const words: string[] = [];
    let usage = null;
    let finished = null;
    for await (const chunk of stream) {
      words.push(chunk.choices[0]?.delta.content ?? '');
      finished ??= chunk.choices[0]?.finish_reason ?? null;
      usage = chunk.usage;
    }
    expect(words.join('')).toMatch(/demo upstream.*What is a nonce\?$/);
    expect(words.length).toBeGreaterThan(20);
    expect(finished).toBe('stop');
    expect(usage).toMatchObject({ prompt_tokens: 6 });
  });

  it('helps the SDK to put a stream together', async () => {
    const stream = stage.openai().chat.completions.stream({ model: DEMO_MODEL, messages: [{ role: 'user', content: [{ type: 'text', text: 'In parts?' }] }] });
    expect((await stream.finalChatCompletion()).choices[0]!.message.content).toContain('In parts?');
  });

  it('stops when the client leaves', async () => {
    const stream = await stage.openai().chat.completions.create({ model: DEMO_MODEL, messages: [{ role: 'user', content: 'word '.repeat(300) }], stream: true });
    for await (const _ of stream) break;
    await until(() => stage.proxy.usage().runningCalls === 0);
    expect(stage.events.at(-1)).toMatchObject({ outcome: 'client_left' });
  });

  it.each([['no object', null], ['no messages', {}], ['no message', { messages: [] }], ['null as message', { messages: [null] }], ['a text', 'x']])('refuses %s', async (_, body) => {
    await expect(stage.openai().post('/chat/completions', { body })).rejects.toBeInstanceOf(BadRequestError);
  });

  it('knows nothing else, and says so in the dialect', async () => {
    const error = await stage.openai().embeddings.create({ model: 'm', input: 'x' }).catch((raised: unknown) => raised);
    expect(error).toBeInstanceOf(NotFoundError);
    expect(error).toMatchObject({ code: 'unknown_url', type: 'invalid_request_error' });
  });
});

describe('the demo upstream by itself', () => {
  it('answers nobody without its key', async () => {
    for (const headers of [{}, { authorization: 'Bearer x' }, { authorization: `bearer ${demo.apiKey}` }]) {
      const response = await fetch(`http://${demo.upstream.authority}/v1/models`, { headers });
      expect(response.status).toBe(401);
    }
    await expect(stage.openai({ baseURL: `http://${demo.upstream.authority}/v1`, fetch: globalThis.fetch }).models.list()).rejects.toBeInstanceOf(AuthenticationError);
  });

  it('listens on loopback, with another key at each start, and stops', async () => {
    const other = await startDemoUpstream();
    expect(other.upstream.hostname).toBe('127.0.0.1');
    expect(other.apiKey).not.toBe(demo.apiKey);
    expect(other.apiKey.length).toBeGreaterThan(40);
    await other.close();
    await expect(fetch(`http://${other.upstream.authority}/v1/models`)).rejects.toThrow('fetch failed');
  });
});
