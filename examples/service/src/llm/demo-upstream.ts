/**
 * KeyGuard's demo upstream: stands in for a provider when no key is configured, so that the whole path can be tried offline. It
 * is an HTTP server on loopback that demands a random key, so that a call takes the very path it takes to a real provider. It
 * thinks nothing: every answer says what it is and repeats the question.
 */
import { createHash, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { openai, openaiErrorBody } from './openai.ts';
import { trustedUpstream, type TrustedUpstream } from './provider.ts';

export const DEMO_MODEL = 'keyguard-demo';

export interface DemoUpstream {
  readonly apiKeyId: null;
  readonly upstream: TrustedUpstream;
  /** Demanded of every request; made at random at each start. */
  readonly apiKey: string;
  close(): Promise<void>;
}

export interface DemoUpstreamOptions {
  /** Between two words of a streamed answer. Default 30. */
  readonly paceMs?: number;
}

const MAX_BODY_BYTES = 64 * 1024 * 1024;
const MAX_ECHO_CHARACTERS = 2000;
const WORDS = /\S+\s*/g;

/** Starts it on a free port of 127.0.0.1. */
export async function startDemoUpstream({ paceMs = 30 }: DemoUpstreamOptions = {}): Promise<DemoUpstream> {
  const apiKey = `sk-keyguard-demo-${randomBytes(24).toString('base64url')}`;
  const expected = digest(`Bearer ${apiKey}`);
  const server = createServer((request, response) => {
    answer(request, response, expected, paceMs).catch(() => response.destroy());
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject).listen(0, '127.0.0.1', resolve);
  });
  const { port } = server.address() as AddressInfo;
  return {
    upstream: trustedUpstream(`http://127.0.0.1:${port}/v1`, openai),
    apiKey,
    apiKeyId: null,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function answer(request: IncomingMessage, response: ServerResponse, expected: Buffer, paceMs: number): Promise<void> {
  if (!timingSafeEqual(digest(request.headers.authorization ?? ''), expected)) {
    sendError(response, 401, 'invalid_api_key', "This is KeyGuard's demo upstream, and it answers its own service only.");
    return;
  }
  const path = (request.url ?? '').split('?', 1)[0]!;
  if (request.method === 'GET' && path === '/v1/models') send(response, 200, { object: 'list', data: [model()] });
  else if (request.method === 'GET' && path === `/v1/models/${DEMO_MODEL}`) send(response, 200, model());
  else if (request.method === 'POST' && path === '/v1/chat/completions') await complete(request, response, paceMs);
  else {
    sendError(response, 404, 'unknown_url', `KeyGuard's demo upstream knows /v1/models and /v1/chat/completions only, not ${request.method} ${path}.`);
  }
}

async function complete(request: IncomingMessage, response: ServerResponse, paceMs: number): Promise<void> {
  const asked = readQuestion(await readBody(request));
  if (asked === null) {
    sendError(response, 400, 'invalid_body', 'The body must be a JSON object with a non-empty array "messages".');
    return;
  }
  const { question, isStream, withUsage, promptTokens } = asked;
  const text = answerTo(question);
  const words = text.match(WORDS) ?? [];
  const usage = { prompt_tokens: promptTokens, completion_tokens: words.length, total_tokens: promptTokens + words.length };
  const common = { id: `chatcmpl-demo-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model: DEMO_MODEL };
  if (!isStream) {
    const message = { role: 'assistant', content: text, refusal: null };
    const choices = [{ index: 0, message, logprobs: null, finish_reason: 'stop' }];
    send(response, 200, { ...common, object: 'chat.completion', choices, usage });
    return;
  }

  response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8', 'x-request-id': randomUUID() });
  const chunk = (delta: object, finish_reason: string | null = null): void => {
    const choices = [{ index: 0, delta, logprobs: null, finish_reason }];
    response.write(event({ ...common, object: 'chat.completion.chunk', choices, ...(withUsage && { usage: null }) }));
  };
  chunk({ role: 'assistant', content: '' });
  for (const word of words) {
    await pause(paceMs);
    if (response.destroyed) return;
    chunk({ content: word });
  }
  chunk({}, 'stop');
  if (withUsage) response.write(event({ ...common, object: 'chat.completion.chunk', choices: [], usage }));
  response.end('data: [DONE]\n\n');
}

/** What the demo says to `question`. */
function answerTo(question: string): string {
  const quoted = question.length > MAX_ECHO_CHARACTERS ? `${question.slice(0, MAX_ECHO_CHARACTERS)}…` : question;
  return (
    "This is KeyGuard's built-in demo upstream, not a language model: no provider key is configured. " +
    `Your signed request arrived here through the proxy. You asked: ${quoted}`
  );
}

interface Question {
  readonly question: string;
  readonly isStream: boolean;
  readonly withUsage: boolean;
  readonly promptTokens: number;
}

function readQuestion(body: string): Question | null {
  try {
    const { messages, stream, stream_options: options } = JSON.parse(body);
    if (!Array.isArray(messages) || messages.length === 0) return null;
    const texts = messages.map((message: { content?: unknown }) => textOf(message.content));
    const asked = messages.findLastIndex((message: { role?: unknown }) => message.role === 'user');
    return {
      question: texts[asked] ?? '',
      isStream: stream === true,
      withUsage: options?.include_usage === true,
      promptTokens: texts.join(' ').match(WORDS)?.length ?? 0,
    };
  } catch {
    return null;
  }
}

function textOf(content: unknown): string {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) return '';
  return content.map((part) => (typeof part?.text === 'string' ? part.text : '')).join(' ');
}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request) {
    length += chunk.length;
    if (length > MAX_BODY_BYTES) throw new Error('The body is too large.');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function model(): object {
  return { id: DEMO_MODEL, object: 'model', created: 0, owned_by: 'keyguard' };
}

function event(data: object): string {
  return `data: ${JSON.stringify(data)}\n\n`;
}

function send(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { 'content-type': 'application/json', 'x-request-id': randomUUID() });
  response.end(JSON.stringify(body));
}

function sendError(response: ServerResponse, status: number, code: string, message: string): void {
  response.writeHead(status, { 'content-type': 'application/json', 'x-request-id': randomUUID() });
  response.end(openaiErrorBody({ status, code, message }));
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
