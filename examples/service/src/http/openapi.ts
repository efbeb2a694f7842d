/** The API's document, OpenAPI 3.1, made of the operations and of nothing else. */
import type { ZodObject } from 'zod';
import * as z from 'zod';
import { createDocument, type ZodOpenApiOperationObject, type ZodOpenApiPathsObject, type ZodOpenApiResponsesObject } from 'zod-openapi';
import { PERMISSION_NAMES, PERMISSIONS } from '../roles/permissions.ts';
import { operation, type Operation } from './operations.ts';
import { problemType, refusalStatus, type Refusal } from './problems.ts';
import { typesOf } from './request-rules.ts';
import { signedRoutePaths } from './signed-routes.ts';

const problem = z
  .looseObject({
    type: z.string().describe('`urn:keyguard:problem:` and the code.'),
    status: z.int().describe('The status of the answer.'),
    title: z.string(),
    detail: z.string().describe('For a person to read.'),
    code: z.string().describe('For a program to decide by. Stable.'),
    request_id: z.string().describe('Finds this request in the log of the service and in the audit log.'),
    errors: z.array(z.object({ path: z.string(), message: z.string() })).optional().describe('With `invalid_request`: what is wrong with which field.'),
  })
  .meta({
    id: 'Problem',
    description: 'RFC 9457.',
    example: {
      type: problemType('not_found'),
      status: 404,
      title: 'Not found',
      detail: 'There is nothing of that id.',
      code: 'not_found',
      request_id: 'req_3q2-7wAAAAAAAAAA',
    },
  });

const requestId = z.string().describe('The id of the request, as in the log of the service and in the audit log.');
const retryAfter = z.string().describe('Seconds.').optional();
const etag = z.string().describe('Where what is shown has states, the one that it is in: send it as If-Match with a change.').optional();

/** Which refusals an operation may give, beside those that it names. */
function refusalsOf({ access, answers, problems = [], method, params, body, idempotent, setsCookies, stepUp, beforeSecondFactor }: Operation): readonly Refusal[] {
  const isUnsafe = method !== 'get';
  return [
    'malformed_request', 'invalid_request', 'misdirected_request', 'address_not_allowed', 'rate_limited', 'internal_error', 'store_unavailable', 'overloaded',
    ...(access === 'public' ? [] : (['not_authenticated', 'forbidden'] as const)),
    ...(access === 'public' || beforeSecondFactor === true ? [] : (['second_factor_required', 'second_factor_setup_required'] as const)),
    ...(stepUp === undefined ? [] : (['step_up_required'] as const)),
    ...(isUnsafe || setsCookies === true ? (['origin_not_allowed', 'precondition_failed'] as const) : []),
    ...(params === undefined ? [] : (['not_found'] as const)),
    ...(typesOf(answers).length === 0 ? [] : (['not_acceptable'] as const)),
    ...(body === undefined ? [] : (['request_timeout', 'body_too_large', 'unsupported_media_type'] as const)),
    ...(idempotent === undefined ? [] : (['idempotency_in_flight', 'idempotency_reply_lost', 'idempotency_key_reused'] as const)),
    ...(typeof idempotent === 'object' ? (['idempotency_reply_withheld'] as const) : []),
    ...problems,
  ];
}

function responsesOf(one: Operation): ZodOpenApiResponsesObject {
  const responses: Record<string, ZodOpenApiResponsesObject[`${1 | 2 | 3 | 4 | 5}${string}`]> = {};
  for (const [status, { description, json, types = [], headers }] of Object.entries(one.answers)) {
    const content = {
      ...(json !== undefined && { 'application/json': { schema: json } }),
      ...Object.fromEntries(types.map((type) => [type, { schema: type === 'application/json' ? z.unknown() : z.string() }])),
    };
    responses[status] = {
      description,
      headers: z.object({
        'x-request-id': requestId,
        etag,
        ...(types.length > 0 && { 'content-disposition': z.string().optional() }),
        ...(one.idempotent !== undefined && { 'idempotency-replayed': z.literal('true').optional().describe('This was answered before, to the same Idempotency-Key.') }),
        ...headers?.shape,
      }),
      ...(Object.keys(content).length > 0 && { content }),
    };
  }
  const refusals = new Map<number, Set<string>>();
  for (const code of refusalsOf(one)) {
    const status = refusalStatus(code);
    refusals.set(status, (refusals.get(status) ?? new Set()).add(code));
  }
  for (const [status, codes] of refusals) {
    responses[String(status)] ??= {
      description: [...codes].join(', '),
      headers: z.object({
        'x-request-id': requestId,
        ...([409, 429, 503].includes(status) && { 'retry-after': retryAfter }),
        ...(status === 401 && { 'www-authenticate': z.string() }),
      }),
      content: { 'application/problem+json': { schema: problem } },
    };
  }
  return responses as ZodOpenApiResponsesObject;
}

const cursorParameter = z.string().max(1024).optional().describe('`next_cursor` of the page before, for the same list, filters and reader.');
const limitParameter = z.int().min(1).max(200).default(50).describe('How many rows a page may have.');

/** The query as a client writes it. */
function queryParameters(query: ZodObject): ZodObject {
  const { shape } = query;
  return z.object({ ...shape, ...('limit' in shape && { limit: limitParameter }), ...('cursor' in shape && { cursor: cursorParameter }) });
}

const idempotencyKey = z
  .string()
  .max(257)
  .optional()
  .describe('Of your choice, a UUID is best: asking again with the same key, within a day, makes nothing twice and is answered as at first. A value that is shown once is shown again for ten minutes, to the same session or token, while it is good.');

function headerParameters({ idempotent, problems = [] }: Operation): ZodObject | null {
  const ifMatch = z.string().describe('The ETag of the state that you have seen: another one meanwhile is a 412.');
  const shape = {
    ...(idempotent !== undefined && { 'Idempotency-Key': idempotencyKey }),
    ...(problems.includes('precondition_failed') && { 'If-Match': problems.includes('precondition_required') ? ifMatch : ifMatch.optional() }),
  };
  return Object.keys(shape).length === 0 ? null : z.object(shape);
}

function describeAccess({ access }: Operation): string {
  switch (access) {
    case 'public':
      return 'Needs no credential.';
    case 'person':
      return 'For a person who is signed in.';
    case 'administrator':
      return 'For an administrator.';
    default:
      return `For a person who is signed in, and for a service account with the scope \`${access}\`.`;
  }
}

function operationObject(one: Operation): ZodOpenApiOperationObject {
  const { id, tag, summary, description, params, query, body, access } = one;
  const headers = headerParameters(one);
  return {
    operationId: id,
    tags: [tag],
    summary,
    description: [description, describeAccess(one)].filter((text) => text !== undefined).join('\n\n'),
    requestParams: { ...(params !== undefined && { path: params }), ...(query !== undefined && { query: queryParameters(query) }), ...(headers !== null && { header: headers }) },
    ...(body !== undefined && { requestBody: { required: true, content: { 'application/json': { schema: body } } } }),
    responses: responsesOf(one),
    security: access === 'public' ? [] : [{ bearer: [] }, { cookie: [] }],
  };
}

export interface DocumentOptions {
  /** Where people reach the service. */
  readonly origin: string;
  readonly version: string;
}

/** OpenAPI 3.1. */
export function openApiDocument(operations: readonly Operation[], { origin, version }: DocumentOptions): object {
  const paths: Record<string, Record<string, ZodOpenApiOperationObject>> = {};
  for (const one of operations) (paths[one.path] ??= {})[one.method] = operationObject(one);
  return createDocument({
    openapi: '3.1.0',
    info: {
      title: 'KeyGuard',
      version,
      description: `The control plane. Permissions:\n\n${PERMISSION_NAMES.map((name) => `- \`${name}\`: ${PERMISSIONS[name]}`).join('\n')}`,
    },
    servers: [{ url: origin }],
    paths: { ...(paths as ZodOpenApiPathsObject), ...signedRoutePaths(problem) },
    components: {
      securitySchemes: {
        bearer: { type: 'http', scheme: 'bearer', description: 'The token of a session, a JWT of it, or the token of a service account.' },
        cookie: { type: 'apiKey', in: 'cookie', name: 'keyguard.session_token', description: 'For pages of this service. Changes must come from one of them.' },
        signature: {
          type: 'apiKey',
          in: 'header',
          name: 'x-keyguard-signature',
          description: 'One of six headers with which a device signs each request: see docs/spec/request-signing.md, or use a client of KeyGuard.',
        },
      },
    },
  });
}

const VERSION = '0.1.0';

/** `GET /api/openapi.json`: the document of `operations` and of this one. */
export function openApiOperations(operations: readonly Operation[], { origin }: { readonly origin: string }): readonly Operation[] {
  let document: object | null = null;
  const own: Operation = operation(
    {
      id: 'getOpenApiDocument', action: 'openapi.read', method: 'get', path: '/api/openapi.json', tag: 'About', access: 'public',
      summary: 'This document',
      answers: { 200: { description: 'OpenAPI 3.1', json: z.looseObject({ openapi: z.string() }) } },
    },
    async () => ({ json: (document ??= openApiDocument([...operations, own], { origin, version: VERSION })) }),
  );
  return [own];
}
