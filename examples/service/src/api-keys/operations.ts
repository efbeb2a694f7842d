/** `/api/api-keys`: whoever may write keys in a project stores and revokes them. A value comes in here once and never goes out. */
import * as z from 'zod';
import { operation, type Operation } from '../http/operations.ts';
import { idParams, pageJson, pageOf, pageQuery, pageRequest, time, timeJson } from '../http/pagination.ts';
import { PROVIDERS } from '../llm/providers.ts';
import { projectId } from '../projects/operations.ts';
import { DEFAULT_PROJECT_ID, type ApiKeys, type StoredApiKey } from './store.ts';

const TAG = 'Provider keys';
const provider = z.enum(PROVIDERS.map(({ name }) => name));

const createBody = z.strictObject({
  project_id: projectId.default(DEFAULT_PROJECT_ID).describe('Whose devices use it. Left out: the project that every deployment begins with.'),
  provider,
  name: z.string().trim().min(1).max(100).optional(),
  // What a header can hold; a pasted line break is a mistake that would show much later.
  value: z.string().regex(/^[\x21-\x7e]{8,512}$/, 'must be 8 to 512 printable characters without spaces'),
});

const apiKey = z
  .object({
    id: z.uuid(),
    project_id: z.string(),
    provider: z.string(),
    name: z.string(),
    last4: z.string().describe('The last four characters of the value, which is never shown.'),
    source: z.enum(['api', 'environment']),
    is_default: z.boolean().describe('Whether the devices of its project use it.'),
    is_active: z.boolean(),
    created_at: time,
    revoked_at: time.nullable(),
  })
  .meta({ id: 'ApiKey' });

export function apiKeyOperations(apiKeys: ApiKeys): readonly Operation[] {
  return [
    operation(
      {
        id: 'createApiKey', action: 'api_key.create', method: 'post', path: '/api/api-keys', tag: TAG, access: 'api_keys:write',
        summary: 'Store a provider key, and make it the one that devices use with its provider',
        idempotent: true,
        body: createBody,
        answers: { 201: { description: 'Stored', json: apiKey } },
        problems: ['not_found', 'project_archived'],
      },
      async ({ body: { project_id: project, provider, name = provider, value }, principal }) => ({
        status: 201,
        json: apiKeyJson(await apiKeys.create(principal, project, { provider, name, value })),
      }),
    ),
    operation(
      {
        id: 'listApiKeys', action: 'api_key.list', method: 'get', path: '/api/api-keys', tag: TAG, access: 'api_keys:read',
        summary: 'List provider keys, newest first',
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(apiKey) } },
      },
      async ({ query, principal }) => ({ json: pageJson(await apiKeys.list(principal, pageRequest(query)), apiKeyJson) }),
    ),
    operation(
      {
        id: 'revokeApiKey', action: 'api_key.revoke', method: 'post', path: '/api/api-keys/{id}/revoke', tag: TAG, access: 'api_keys:write',
        summary: 'Revoke a provider key for ever',
        params: idParams,
        answers: { 200: { description: 'Revoked, now or before', json: apiKey } },
        problems: ['not_found'],
      },
      async ({ params, principal }) => ({ json: apiKeyJson(await apiKeys.revoke(principal, params.id)) }),
    ),
  ];
}

function apiKeyJson(key: StoredApiKey): z.infer<typeof apiKey> {
  return {
    id: key.id,
    project_id: key.projectId,
    provider: key.provider,
    name: key.name,
    last4: key.last4,
    source: key.source,
    is_default: key.isDefault,
    is_active: key.isActive,
    created_at: timeJson(key.createdAtMs),
    revoked_at: timeJson(key.revokedAtMs),
  };
}
