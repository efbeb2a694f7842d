/**
 * Google's Gemini API: the only file that knows its name, its headers and its dialect; its newer API, whose dialect is another one, is
 * beside it in `google-interactions.ts`.
 *
 * @see https://ai.google.dev/api
 */
import type { Failure, FailureCode } from './failures.ts';
import { isInteraction, interactionAsks, interactionErrorEvent, interactionMeter } from './google-interactions.ts';
import { bound, count, member, parsed, text } from './metering.ts';
import { ELSEWHERE, modelsInBody, NO_MODEL, UNCLEAR, type CallModels, type ModelQuestion } from './models.ts';
import type { Asked, Meter, Provider, Spending } from './provider.ts';

const PREFIX = '/proxy/google/';

const STATUSES: Readonly<Record<number, string>> = {
  400: 'INVALID_ARGUMENT',
  401: 'UNAUTHENTICATED',
  403: 'PERMISSION_DENIED',
  404: 'NOT_FOUND',
  409: 'ABORTED',
  429: 'RESOURCE_EXHAUSTED',
  501: 'UNIMPLEMENTED',
  503: 'UNAVAILABLE',
  504: 'DEADLINE_EXCEEDED',
};

/** `code` is the HTTP status, as Google has it; our code is the reason of the one detail. */
function errorBody({ status, code, message }: Failure): string {
  const name = STATUSES[status] ?? (status >= 500 ? 'INTERNAL' : 'FAILED_PRECONDITION');
  const details = [{ '@type': 'type.googleapis.com/google.rpc.ErrorInfo', reason: code.toUpperCase(), domain: 'keyguard' }];
  return JSON.stringify({ error: { code: status, message, status: name, details } });
}

// Credentials that its servers take from a query. None of a client's is handed on.
const CREDENTIALS: ReadonlySet<string> = new Set(['key', 'access_token', 'oauth_token', 'bearer_token', '$key', '$access_token', '$oauth_token']);
// With these a request can say that it is another one than the one that was signed.
const OVERRIDES = /^\$?(?:\$?http(?:method|headers)|x-http-method-override|method|alt-method)$/i;

const parametersOf = (query: string): string[] => query.split('&').filter((part) => part !== '');

/** The name of a parameter as a server would read it. */
function nameOf(parameter: string): string {
  const name = parameter.split('=', 1)[0]!.replaceAll('+', ' ');
  try {
    return decodeURIComponent(name).toLowerCase();
  } catch {
    return name.toLowerCase();
  }
}

function refusal(rest: string, query: string): FailureCode | null {
  // Its second request goes to an address of the provider's own, which no key of ours follows.
  if (rest.startsWith('upload/')) return 'upload_unsupported';
  if (!/^v1(?:alpha|beta)?\//.test(rest)) return 'route_unknown';
  if (parametersOf(query).some((parameter) => OVERRIDES.test(nameOf(parameter)))) return 'method_not_allowed';
  return null;
}

const modelOf = (rest: string): string | null => /\/models\/([^/:]+):/.exec(`/${rest}`)?.[1] ?? null;

function asks(rest: string, body: unknown): Asked {
  if (isInteraction(rest)) return interactionAsks(body);
  if (/:(?:embedContent|batchEmbedContents)$/.test(rest)) return { model: modelOf(rest), maxOutputTokens: 0, isInBackground: false };
  const config = member(body, 'generationConfig');
  return { model: modelOf(rest), maxOutputTokens: bound(count(member(config, 'maxOutputTokens')), member(config, 'candidateCount')), isInBackground: false };
}

const TELLING = /:(?:generateContent|streamGenerateContent|embedContent|batchEmbedContents|predict|generateAnswer)$/;
const FREE = /(?::count[A-Za-z]*Tokens|\/(?:batches|operations)\/[^/:]+:cancel|\/interactions\/[^/:]+\/cancel)$/;

function spends(rest: string): Spending {
  if (TELLING.test(rest) || isInteraction(rest)) return 'here';
  return FREE.test(rest) ? 'none' : 'elsewhere';
}

const NAMING: ReadonlySet<string> = new Set([
  'generateContent', 'streamGenerateContent', 'countTokens', 'embedContent', 'batchEmbedContents', 'predict', 'predictLongRunning',
]);
const plain = (name: string): string => name.replace(/^models\//, '');

/** The path names the model, and what a body names beside it counts as well. */
function models(rest: string, { method, query, contentType, body }: ModelQuestion): CallModels {
  if (method === 'GET' && /^v1(?:alpha|beta)?\/models(?:\/[^/:]+)?$/.test(rest)) return NO_MODEL;
  const [, kind, name, verb] = /^v1(?:alpha|beta)?\/(models|tunedModels)\/([^/:]+):([A-Za-z]+)$/.exec(rest) ?? [];
  if (method !== 'POST' || name === undefined || !NAMING.has(verb!)) return ELSEWHERE;
  // Its servers fill members of a request from the query too, and decode a path.
  if (name.includes('%') || parametersOf(query).some((parameter) => nameOf(parameter).split('.').at(-1) === 'model')) return UNCLEAR;
  const found = modelsInBody({ contentType, body });
  if (found === null) return UNCLEAR;
  const inPath = kind === 'models' ? name : `${kind}/${name}`;
  return { kind: 'named', names: [inPath, ...[...(found.model === null ? [] : [found.model]), ...found.inside].map(plain)] };
}

function meter(rest: string): Meter {
  if (isInteraction(rest)) return interactionMeter();
  const isStream = rest.endsWith(':streamGenerateContent');
  let isDone = false;
  let model = modelOf(rest);
  let inputTokens: number | null = null;
  let outputTokens: number | null = null;
  let cachedInputTokens: number | null = null;

  function look(value: unknown): void {
    model = text(member(value, 'modelVersion')) ?? model;
    const usage = member(value, 'usageMetadata');
    const prompt = count(member(usage, 'promptTokenCount'));
    if (prompt === null) return;
    // Each count stands for everything so far; thoughts are billed as output, and what tools brought in as input.
    inputTokens = prompt + (count(member(usage, 'toolUsePromptTokenCount')) ?? 0);
    cachedInputTokens = count(member(usage, 'cachedContentTokenCount')) ?? cachedInputTokens;
    outputTokens = (count(member(usage, 'candidatesTokenCount')) ?? 0) + (count(member(usage, 'thoughtsTokenCount')) ?? 0);
  }

  return {
    marks: ['"usageMetadata"', '"finishReason"', '"blockReason"', '"error"'],
    event(data) {
      const value = parsed(data);
      const candidates = member(value, 'candidates');
      const isFinished = Array.isArray(candidates) && candidates.some((one) => text(member(one, 'finishReason')) !== null);
      if (isFinished || text(member(member(value, 'promptFeedback'), 'blockReason')) !== null || member(value, 'error') !== undefined) isDone = true;
      look(value);
    },
    answer(value) {
      // Without alt=sse a stream is one JSON array.
      if (Array.isArray(value)) for (const one of value) look(one);
      else look(value);
    },
    isWhole: () => (isStream ? isDone : null),
    usage: () => ({ model, inputTokens, outputTokens, cachedInputTokens, cacheWriteTokens: null }),
  };
}

export const google: Provider = Object.freeze({
  name: 'google',
  title: 'Google Gemini',
  keyVariable: 'GOOGLE_API_KEY',
  baseUrlVariable: 'GOOGLE_GEMINI_BASE_URL',
  defaultBaseUrl: 'https://generativelanguage.googleapis.com',
  baseUrlSuffix: '',
  prefix: PREFIX,
  aliases: new Map<string, string>(),
  refusal,
  models,
  // Its uploads are not handed on: what else is large stands inside a call.
  bodySize: (rest: string) => (/:(?:batchEmbedContents|embedContent)$|^[^/]+\/models(?:\/[^/:]+)?$/.test(rest) ? 'small' : 'call'),
  query: (query: string) =>
    parametersOf(query)
      .filter((parameter) => !CREDENTIALS.has(nameOf(parameter)))
      .join('&'),
  requestHeaders: new Set<string>(),
  responseHeaders: new Set<string>(),
  responseHeaderPrefixes: [],
  authorization: (apiKey: string) => ({ 'x-goog-api-key': apiKey }),
  probe: () => ({ rest: 'v1beta/models', query: 'pageSize=1', headers: {} }),
  errorBody,
  errorEvent: (rest: string, failure: Failure) => (isInteraction(rest) ? interactionErrorEvent(failure) : `data: ${errorBody(failure)}\n\n`),
  asks,
  spends,
  meter,
});
