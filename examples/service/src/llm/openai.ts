/**
 * OpenAI: the only file that knows its name, its headers and its dialect.
 *
 * @see https://platform.openai.com/docs/api-reference
 */
import type { Failure } from './failures.ts';
import { trustedUpstream, type Provider, type TrustedUpstream } from './provider.ts';

const PREFIX = '/proxy/openai/v1/';

/** The provider's own upstream, as its SDK has it by default. */
export const OPENAI_BASE_URL = 'https://api.openai.com/v1';

/** The upstream of `OPENAI_BASE_URL` (trusted: the operator's), which ends in `/v1`. @throws UsageError `invalid_option` */
export function openaiUpstream(baseUrl: string = OPENAI_BASE_URL): TrustedUpstream {
  return trustedUpstream(baseUrl, 'OPENAI_BASE_URL', '/v1');
}

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

export const openai: Provider = Object.freeze({
  name: 'openai',
  title: 'OpenAI',
  keyVariable: 'OPENAI_API_KEY',
  prefix: PREFIX,
  aliases: new Map([['/v1/chat/completions', 'chat/completions']]),
  requestHeaders: new Set(['openai-beta', 'openai-organization', 'openai-project', 'idempotency-key']),
  responseHeaders: new Set(['retry-after-ms', 'x-should-retry']),
  responseHeaderPrefixes: ['openai-', 'x-ratelimit-'],
  authorization: (apiKey: string) => ({ authorization: `Bearer ${apiKey}` }),
  errorBody: openaiErrorBody,
  errorEvent(rest: string, failure: Failure): string {
    // The Responses API names its events and repeats the name inside; everything else sends bare data.
    if (rest.startsWith('responses')) return `event: error\ndata: ${JSON.stringify({ type: 'error', error: errorObject(failure) })}\n\n`;
    return `data: ${openaiErrorBody(failure)}\n\n`;
  },
  lastEvent: (rest: string) => (rest === 'chat/completions' || rest === 'completions' ? '[DONE]' : null),
});
