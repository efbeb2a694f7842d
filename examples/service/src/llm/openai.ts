/**
 * OpenAI: the only file that knows its name, its headers and its dialect. Others speak that dialect too, and take it from here.
 *
 * @see https://platform.openai.com/docs/api-reference
 */
import type { Failure } from './failures.ts';
import { bound, count, mayGoOn, member, parsed, text } from './metering.ts';
import { ELSEWHERE, NO_MODEL, namedInBody, type CallModels, type ModelQuestion } from './models.ts';
import type { Asked, BodySize, Meter, Provider, Spending } from './provider.ts';

const PREFIX = '/proxy/openai/v1/';

function errorType(status: number): string {
  if (status === 401) return 'authentication_error';
  if (status === 403) return 'permission_error';
  if (status === 429) return 'rate_limit_error';
  return status >= 500 ? 'server_error' : 'invalid_request_error';
}

function errorObject({ status, code, message }: Failure): object {
  return { message, type: errorType(status), param: null, code };
}

/** `{"error":{message,type,param,code}}` */
export function openaiErrorBody(failure: Failure): string {
  return JSON.stringify({ error: errorObject(failure) });
}

/** `rest` is the path below `/v1/`, or below a deployment. */
export function openaiErrorEvent(rest: string, failure: Failure): string {
  // The Responses API names its events and repeats the name inside; everything else sends bare data.
  if (rest.startsWith('responses')) return `event: error\ndata: ${JSON.stringify({ type: 'error', error: errorObject(failure) })}\n\n`;
  return `data: ${openaiErrorBody(failure)}\n\n`;
}

const TELLING = /^(?:chat\/completions|completions|responses(?:\/compact)?|embeddings|(?:images|audio)\/[a-z]+)$/;
// Moderation is free of charge.
const FREE = /^(?:moderations|files|responses\/input_tokens|chat\/completions\/[^/]+|uploads(?:\/[^/]+\/(?:parts|complete))?|conversations(?:\/[^/]+(?:\/items)?)?|(?:batches|fine_tuning\/jobs|responses|uploads)\/[^/]+\/(?:cancel|pause))$/;

export function openaiSpends(rest: string): Spending {
  if (TELLING.test(rest)) return 'here';
  return FREE.test(rest) ? 'none' : 'elsewhere';
}

/** The newer APIs say output, the older ones completion; an embedding has none. */
export function openaiAsks(rest: string, body: unknown): Asked {
  const most = count(member(body, 'max_output_tokens')) ?? count(member(body, 'max_completion_tokens')) ?? count(member(body, 'max_tokens'));
  return {
    model: text(member(body, 'model')),
    maxOutputTokens: rest === 'embeddings' ? 0 : bound(most, member(body, 'n')),
    // Of an image it says how it is to look.
    isInBackground: rest === 'responses' && mayGoOn(body),
  };
}

const LAST_OF_RESPONSE = new Set(['response.completed', 'response.incomplete', 'response.failed', 'response.cancelled', 'error']);

/** Chat completions, completions, responses, embeddings, images and transcriptions, by `rest` as in {@link openaiErrorEvent}. */
export function openaiMeter(rest: string): Meter {
  const endsWithDone = rest === 'chat/completions' || rest === 'completions';
  const isResponse = rest === 'responses';
  let isDone = false;
  let model: string | null = null;
  let inputTokens: number | null = null;
  let outputTokens: number | null = null;
  let cachedInputTokens: number | null = null;

  function look(value: unknown): void {
    model = text(member(value, 'model')) ?? model;
    const usage = member(value, 'usage');
    // The newer APIs say input and output, the older ones prompt and completion.
    inputTokens = count(member(usage, 'input_tokens')) ?? count(member(usage, 'prompt_tokens')) ?? inputTokens;
    const details = member(usage, 'input_tokens_details') ?? member(usage, 'prompt_tokens_details');
    cachedInputTokens = count(member(details, 'cached_tokens')) ?? cachedInputTokens;
    // An embedding reports its input alone, because there is no output of tokens.
    outputTokens = count(member(usage, 'output_tokens')) ?? count(member(usage, 'completion_tokens')) ?? outputTokens ?? (rest === 'embeddings' && inputTokens !== null ? 0 : null);
  }

  return {
    marks: ['"usage"', '[DONE]', '"response.completed"', '"response.incomplete"', '"response.failed"', '"response.cancelled"', '"error"'],
    event(data) {
      if (data === '[DONE]') {
        isDone = true;
        return;
      }
      const value = parsed(data);
      const type = text(member(value, 'type'));
      if (type !== null && LAST_OF_RESPONSE.has(type)) isDone = true;
      // An error is an end too: the SDK raises at it.
      if (typeof member(value, 'error') === 'object' && member(value, 'error') !== null) isDone = true;
      look(member(value, 'response') ?? value);
    },
    // What is used elsewhere is told there: a new batch says that it used nothing so far.
    answer: openaiSpends(rest) === 'elsewhere' ? () => {} : look,
    isWhole: () => (endsWithDone || isResponse ? isDone : null),
    usage: () => ({ model, inputTokens, outputTokens, cachedInputTokens, cacheWriteTokens: null }),
  };
}

const NAMING: ReadonlySet<string> = new Set([
  'chat/completions', 'completions', 'responses', 'responses/compact', 'responses/input_tokens', 'embeddings', 'moderations', 'images/generations',
  'images/edits', 'images/variations', 'audio/speech', 'audio/transcriptions', 'audio/translations',
]);

/** Whether a call of that path, by `rest` as in {@link openaiErrorEvent}, runs one model and names it where it is seen. */
export function namesOpenaiModel(rest: string, method: string): boolean {
  return method === 'POST' && NAMING.has(rest);
}

export function openaiModels(rest: string, question: ModelQuestion): CallModels {
  if (namesOpenaiModel(rest, question.method)) return namedInBody(question);
  return question.method === 'GET' && /^models(?:\/[^/]+)?$/.test(rest) ? NO_MODEL : ELSEWHERE;
}

const SMALL = /^(?:embeddings|moderations|models)(?:\/|$)/;
const UPLOADS = /^(?:files|audio\/(?:transcriptions|translations)|images\/(?:edits|variations)|uploads\/[^/]+\/parts)$/;

/** `rest` as in {@link openaiErrorEvent}. */
export function openaiBodySize(rest: string, form: boolean): BodySize {
  if (SMALL.test(rest)) return 'small';
  return form && UPLOADS.test(rest) ? 'upload' : 'call';
}

export const openai: Provider = Object.freeze({
  name: 'openai',
  title: 'OpenAI',
  keyVariable: 'OPENAI_API_KEY',
  baseUrlVariable: 'OPENAI_BASE_URL',
  defaultBaseUrl: 'https://api.openai.com/v1',
  baseUrlSuffix: '/v1',
  prefix: PREFIX,
  aliases: new Map([['/v1/chat/completions', 'chat/completions']]),
  refusal: () => null,
  models: openaiModels,
  bodySize: openaiBodySize,
  query: (query: string) => query,
  requestHeaders: new Set(['openai-beta', 'openai-organization', 'openai-project', 'idempotency-key']),
  responseHeaders: new Set(['retry-after-ms', 'x-should-retry']),
  responseHeaderPrefixes: ['openai-', 'x-ratelimit-'],
  authorization: (apiKey: string) => ({ authorization: `Bearer ${apiKey}` }),
  probe: () => ({ rest: 'models', query: '', headers: {} }),
  errorBody: openaiErrorBody,
  errorEvent: openaiErrorEvent,
  asks: openaiAsks,
  spends: openaiSpends,
  meter: openaiMeter,
});
