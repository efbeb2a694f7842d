/**
 * What the document says of the routes that are no operations of the control plane: those that devices sign, and the probes. What
 * they do is decided in `@keyguard/server-verifier`, `llm/` and `health.ts`.
 */
import * as z from 'zod';
import type { ZodOpenApiOperationObject, ZodOpenApiPathsObject, ZodOpenApiResponsesObject } from 'zod-openapi';

const DEVICES = 'Calls of devices';
const PROBES = 'Probes';

const jwk = z
  .strictObject({ kty: z.literal('EC'), crv: z.literal('P-256'), x: z.string(), y: z.string() })
  .meta({ id: 'DevicePublicKey', description: 'An ECDSA key on P-256. The private key stays in the device.' });

const enrolled = z
  .object({ device_id: z.string(), key_id: z.string(), status: z.enum(['pending', 'active', 'suspended', 'revoked']) })
  .meta({ id: 'EnrolledDevice' });

const deviceStatus = z.object({
  ...enrolled.shape,
  key_state: z.enum(['current', 'retiring', 'retired']),
  server_time: z.int().describe('Unix seconds.'),
});

const enrollment = z.strictObject({
  jwk,
  code: z.string().max(64).nullish().describe('The enrollment code.'),
  label: z.string().nullish().describe('What people call the device: 1 to 64 printable characters.'),
  fingerprint: z.string().nullish().describe('A risk signal, never an identity.'),
});

const keyRotation = z.strictObject({
  jwk,
  proof: z.string().describe('A signature by the new key, which proves that it is held.'),
  code: z.string().max(64).nullish().describe('The rotation code, of the device’s owner or an administrator.'),
});

const readiness = z.object({ status: z.enum(['ready', 'not ready']), checks: z.record(z.string(), z.string()) });

const headers = z.object({
  'x-request-id': z.string().describe('The id of the request, as in the log of the service and in the audit log.'),
  'retry-after': z.string().describe('Seconds.').optional(),
});

const json = (description: string, schema: z.ZodType): ZodOpenApiResponsesObject[`${1 | 2 | 3 | 4 | 5}${string}`] => ({
  description,
  headers,
  content: { 'application/json': { schema } },
});

interface SignedRoute {
  readonly operationId: string;
  readonly summary: string;
  readonly description?: string;
  readonly body?: z.ZodType;
  readonly answers: ZodOpenApiResponsesObject;
  readonly isSigned?: false;
  /** Everything else is answered in the dialect of a provider, or by one. */
  readonly isProxied?: true;
}

function deviceRoute({ operationId, summary, description, body, answers, isSigned, isProxied }: SignedRoute, problem: z.ZodType): ZodOpenApiOperationObject {
  const refusal = (codes: string): object => ({ description: codes, headers, content: { 'application/problem+json': { schema: problem } } });
  const refusals: ZodOpenApiResponsesObject = {
    400: refusal('malformed_request, unsupported_version, unsupported_header'),
    401: refusal('signature_invalid, timestamp_out_of_window, challenge_required, replay_detected'),
    403: refusal('device_pending, device_suspended, device_revoked, ip_not_allowed, enrollment_rejected, rotation_rejected'),
    408: refusal('request_timeout'),
    409: refusal('key_exists'),
    413: refusal('body_too_large'),
    415: refusal('unsupported_encoding'),
    429: refusal('rate_limited'),
    503: refusal('store_unavailable, overloaded, server_unavailable'),
  };
  return {
    operationId,
    tags: [DEVICES],
    summary,
    ...(description !== undefined && { description }),
    ...(body !== undefined && { requestBody: { required: true, content: { 'application/json': { schema: body } } } }),
    responses: { ...answers, ...(isProxied === true ? { default: json('What the provider answered, or a refusal of this service in its dialect', z.looseObject({})) } : isSigned !== false && refusals) },
    security: isSigned === false ? [] : [{ signature: [] }],
    // Others than operations of the control plane: they take no session.
    'x-plane': isProxied === true ? 'proxy' : 'device',
  };
}

/** @param problem the schema of refusals */
export function signedRoutePaths(problem: z.ZodType): ZodOpenApiPathsObject {
  const of = (route: SignedRoute): ZodOpenApiOperationObject => deviceRoute(route, problem);
  const chat = z.looseObject({ model: z.string(), messages: z.array(z.looseObject({ role: z.string() })) });
  return {
    '/api/keyguard/enroll': {
      post: of({
        operationId: 'enrollDevice',
        summary: 'Enroll a device, signed by its new key',
        body: enrollment,
        answers: { 201: json('The device, which may call once it is active', enrolled) },
      }),
    },
    '/api/keyguard/rotate': {
      post: of({
        operationId: 'rotateDeviceKey',
        summary: 'Replace the key of a device, signed by the old key and proven by the new one',
        body: keyRotation,
        answers: { 201: json('The device, with its new key', enrolled) },
      }),
    },
    '/api/keyguard/status': {
      get: of({ operationId: 'getDeviceStatus', summary: 'What the service thinks of the device that signs', answers: { 200: json('Its state', deviceStatus) } }),
    },
    '/api/keyguard/time': {
      get: of({
        operationId: 'getTime',
        summary: 'The time by which signatures are judged',
        answers: { 200: json('Unix seconds', z.object({ server_time: z.int() })) },
        isSigned: false,
      }),
    },
    '/proxy/openai/v1/chat/completions': {
      post: of({
        operationId: 'proxyChatCompletions',
        summary: 'Call the provider, with the provider key of the device’s project',
        description:
          'As the provider’s own API, below `/proxy/{provider}`: body, answer and errors are in its dialect, and streams are passed on as they come. This path stands for all of them.',
        body: chat,
        answers: { 200: json('What the provider answered', z.looseObject({})) },
        isProxied: true,
      }),
    },
    '/healthz': {
      get: {
        operationId: 'getHealth', tags: [PROBES], summary: 'Whether the process runs', security: [], 'x-plane': 'probe',
        responses: { 200: json('It runs', z.object({ status: z.literal('ok') })) },
      },
    },
    '/readyz': {
      get: {
        operationId: 'getReadiness', tags: [PROBES], summary: 'Whether the service can do its work, or which part cannot', security: [], 'x-plane': 'probe',
        responses: { 200: json('It can', readiness), 503: json('It cannot', readiness) },
      },
    },
  };
}
