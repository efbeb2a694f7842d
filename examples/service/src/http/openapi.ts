/** The API's document, OpenAPI 3.1, made of the operations and of nothing else. */
import * as z from 'zod';
import { createDocument, type ZodOpenApiOperationObject, type ZodOpenApiPathsObject, type ZodOpenApiResponsesObject } from 'zod-openapi';
import { PERMISSION_NAMES, PERMISSIONS } from '../roles/permissions.ts';
import { operation, type Operation } from './operations.ts';
import { problemStatus, type ProblemCode } from './problems.ts';

const problem = z
  .object({
    status: z.int().describe('The status of the answer.'),
    title: z.string(),
    detail: z.string().describe('For a person to read.'),
    code: z.string().describe('For a program to decide by. Stable.'),
    request_id: z.string().describe('Finds this request in the log of the service and in the audit log.'),
  })
  .meta({ id: 'Problem', description: 'RFC 9457.' });

// What every operation may answer with.
const EVERYWHERE: readonly ProblemCode[] = ['malformed_request', 'invalid_request', 'rate_limited', 'internal_error'];
const SIGNED_IN: readonly ProblemCode[] = ['not_authenticated', 'forbidden'];
const LACKING: readonly ProblemCode[] = ['second_factor_required', 'second_factor_setup_required'];

function responsesOf({ access, answers, problems = [], stepUp, beforeSecondFactor }: Operation): ZodOpenApiResponsesObject {
  const responses: Record<string, ZodOpenApiResponsesObject[`${1 | 2 | 3 | 4 | 5}${string}`]> = {};
  for (const [status, { description, json, types, headers }] of Object.entries(answers)) {
    const content = json === undefined ? Object.fromEntries((types ?? []).map((type) => [type, {}])) : { 'application/json': { schema: json } };
    responses[status] = { description, ...(headers !== undefined && { headers }), ...(Object.keys(content).length > 0 && { content }) };
  }
  const refusals = new Map<number, ProblemCode[]>();
  const proofs: readonly ProblemCode[] = access === 'public' ? [] : beforeSecondFactor === true ? [] : LACKING;
  const stepUps: readonly ProblemCode[] = stepUp === undefined ? [] : ['step_up_required'];
  for (const code of [...EVERYWHERE, ...(access === 'public' ? [] : SIGNED_IN), ...proofs, ...stepUps, ...problems]) {
    refusals.set(problemStatus(code), [...(refusals.get(problemStatus(code)) ?? []), code]);
  }
  for (const [status, codes] of refusals) {
    responses[String(status)] = { description: [...new Set(codes)].join(', '), content: { 'application/problem+json': { schema: problem } } };
  }
  return responses as ZodOpenApiResponsesObject;
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
  return {
    operationId: id,
    tags: [tag],
    summary,
    description: [description, describeAccess(one)].filter((text) => text !== undefined).join('\n\n'),
    requestParams: { ...(params !== undefined && { path: params }), ...(query !== undefined && { query }) },
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
    paths: paths as ZodOpenApiPathsObject,
    components: {
      securitySchemes: {
        bearer: { type: 'http', scheme: 'bearer', description: 'The token of a session, a JWT of it, or the token of a service account.' },
        cookie: { type: 'apiKey', in: 'cookie', name: 'keyguard.session_token', description: 'For pages of this service.' },
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
