/**
 * Anthropic: the only file that knows its name, its headers and its dialect.
 *
 * @see https://docs.anthropic.com/en/api/overview
 */
import type { Failure } from './failures.ts';
import { count, member, parsed, text } from './metering.ts';
import { ELSEWHERE, NO_MODEL, namedInBody, type CallModels, type ModelQuestion } from './models.ts';
import type { Asked, Meter, Provider, Spending } from './provider.ts';

const PREFIX = '/proxy/anthropic/';

const TYPES: Readonly<Record<number, string>> = {
  400: 'invalid_request_error',
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  413: 'request_too_large',
  429: 'rate_limit_error',
  504: 'timeout_error',
};

function errorBody({ status, code, message }: Failure): string {
  const type = TYPES[status] ?? (status >= 500 ? 'api_error' : 'invalid_request_error');
  return JSON.stringify({ type: 'error', error: { type, message, code } });
}

function asks(_rest: string, body: unknown): Asked {
  return { model: text(member(body, 'model')), maxOutputTokens: count(member(body, 'max_tokens')) ?? count(member(body, 'max_tokens_to_sample')), isInBackground: false };
}

const FREE = /^v1\/(?:messages\/count_tokens|files|messages\/batches\/[^/]+\/cancel)$/;

function spends(rest: string): Spending {
  if (rest === 'v1/messages' || rest === 'v1/complete') return 'here';
  return FREE.test(rest) ? 'none' : 'elsewhere';
}

/** Messages, streamed or whole; whatever else is asked for is not metered by tokens. */
function meter(rest: string): Meter {
  const isMessage = rest === 'v1/messages';
  let isDone = false;
  let model: string | null = null;
  let inputTokens: number | null = null;
  let outputTokens: number | null = null;
  let cachedInputTokens: number | null = null;
  let cacheWriteTokens: number | null = null;

  function look(message: unknown): void {
    model = text(member(message, 'model')) ?? model;
    const usage = member(message, 'usage');
    const input = count(member(usage, 'input_tokens'));
    // What is written to the cache or read from it is counted beside the rest, and is input all the same.
    if (input !== null) {
      cacheWriteTokens = count(member(usage, 'cache_creation_input_tokens'));
      cachedInputTokens = count(member(usage, 'cache_read_input_tokens'));
      inputTokens = input + (cacheWriteTokens ?? 0) + (cachedInputTokens ?? 0);
    }
    // Each count of output stands for everything so far.
    outputTokens = count(member(usage, 'output_tokens')) ?? outputTokens;
  }

  return {
    marks: ['"usage"', '"message_stop"', '"error"'],
    event(data) {
      const value = parsed(data);
      const type = text(member(value, 'type'));
      if (type === 'message_stop' || type === 'error') isDone = true;
      else look(member(value, 'message') ?? value);
    },
    answer: isMessage ? look : () => {},
    isWhole: () => (isMessage ? isDone : null),
    usage: () => ({ model, inputTokens, outputTokens, cachedInputTokens, cacheWriteTokens }),
  };
}

const NAMING: ReadonlySet<string> = new Set(['v1/messages', 'v1/messages/count_tokens', 'v1/complete']);

function models(rest: string, question: ModelQuestion): CallModels {
  if (question.method === 'POST' && NAMING.has(rest)) return namedInBody(question);
  return question.method === 'GET' && /^v1\/models(?:\/[^/]+)?$/.test(rest) ? NO_MODEL : ELSEWHERE;
}

export const anthropic: Provider = Object.freeze({
  name: 'anthropic',
  title: 'Anthropic',
  keyVariable: 'ANTHROPIC_API_KEY',
  baseUrlVariable: 'ANTHROPIC_BASE_URL',
  defaultBaseUrl: 'https://api.anthropic.com',
  baseUrlSuffix: '',
  prefix: PREFIX,
  aliases: new Map<string, string>(),
  refusal: (rest: string) => (rest.startsWith('v1/') ? null : 'route_unknown'),
  models,
  bodySize: (rest: string, form: boolean) => (/^v1\/models(?:\/|$)/.test(rest) ? 'small' : form && rest === 'v1/files' ? 'upload' : 'call'),
  query: (query: string) => query,
  requestHeaders: new Set(['anthropic-beta', 'anthropic-user-profile-id', 'anthropic-version', 'anthropic-workspace-id', 'idempotency-key']),
  responseHeaders: new Set(['request-id', 'x-should-retry']),
  responseHeaderPrefixes: ['anthropic-ratelimit-'],
  authorization: (apiKey: string) => ({ 'x-api-key': apiKey }),
  probe: () => ({ rest: 'v1/models', query: 'limit=1', headers: { 'anthropic-version': '2023-06-01' } }),
  errorBody,
  errorEvent: (_rest: string, failure: Failure) => `event: error\ndata: ${errorBody(failure)}\n\n`,
  asks,
  spends,
  meter,
});
