/** An upstream that says what it was asked and reports what it is told, and devices that call it through a service. */
import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';

export interface Reported {
  readonly model: string;
  readonly input: number;
  readonly output: number;
}

export interface CountingUpstream {
  readonly baseUrl: string;
  readonly calls: number;
  /** What it reports from now on; `null`: nothing. */
  report(next: Reported | null): void;
  /** Answers in the place of that, until `null`. */
  answer(next: ((response: ServerResponse) => void) | null): void;
  stop(): Promise<void>;
}

export async function startCountingUpstream(): Promise<CountingUpstream> {
  let calls = 0;
  let reported: Reported | null = { model: 'gpt-4o-mini', input: 10, output: 5 };
  let other: ((response: ServerResponse) => void) | null = null;
  const server = createServer((request, response) => {
    calls += 1;
    request.resume().on('end', () => {
      if (other !== null) return other(response);
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ model: reported?.model, choices: [], ...(reported && { usage: { prompt_tokens: reported.input, completion_tokens: reported.output } }) }));
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    baseUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
    get calls() {
      return calls;
    },
    report: (next) => void (reported = next),
    answer: (next) => void (other = next),
    async stop() {
      server.close();
      server.closeAllConnections();
      if (server.listening) await once(server, 'close');
    },
  };
}

export interface BudgetedDevice {
  readonly deviceId: string;
  readonly fetch: typeof fetch;
}

export async function enroll(origin: string, code: string): Promise<BudgetedDevice> {
  const client = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
  const { deviceId } = await client.enroll({ code });
  return { deviceId, fetch: client.fetch };
}

/** A call that asks for at most 100 tokens of output, with a body of 400 bytes, which is expected to be 100 tokens of input. */
export function ask(fetch: BudgetedDevice['fetch'], origin: string, more: object = {}): Promise<Response> {
  const bare = { model: 'gpt-4o-mini', max_tokens: 100, ...more, user: '' };
  const body = JSON.stringify({ ...bare, user: 'x'.repeat(Math.max(0, 400 - JSON.stringify(bare).length)) });
  return fetch(`${origin}/proxy/openai/v1/chat/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
}

/** Calls that use what is told only elsewhere, or what nobody here knows. */
export const UNTOLD: readonly [string, object][] = [
  ['openai/v1/batches', { input_file_id: 'file-1', endpoint: '/v1/chat/completions', completion_window: '24h' }],
  ['openai/v1/responses', { model: 'gpt-4o-mini', input: 'x', max_output_tokens: 9, background: true }],
  ['openai/v1/fine_tuning/jobs', { model: 'gpt-4o-mini', training_file: 'file-1' }],
  ['openai/v1/something/new', { model: 'gpt-4o-mini' }],
  ['anthropic/v1/messages/batches', { requests: [{ custom_id: 'a', params: { model: 'claude-haiku-4-5', max_tokens: 9, messages: [] } }] }],
  ['google/v1beta/models/gemini-2.5-flash:batchGenerateContent', { batch: {} }],
  ['google/v1beta/interactions', { agent: 'deep-research', input: 'x', background: true }],
  ['google/v1beta/openai/chat/completions', { model: 'gemini-2.5-flash', messages: [] }],
  ['azure/openai/v1/batches', { input_file_id: 'file-1' }],
  ['azure/openai/batches', { input_file_id: 'file-1' }],
];
