/** `/api/api-keys`: an administrator stores and revokes provider keys. A value comes in here once and never goes out. */
import * as z from 'zod';
import { operation, type Operation } from '../http/operations.ts';
import { idParams, pageJson, pageOf, pageQuery, pageRequest, time, timeJson } from '../http/pagination.ts';
import { notFound } from '../http/problems.ts';
import { PROVIDERS } from '../llm/providers.ts';
import type { ApiKeys, StoredApiKey } from './store.ts';

const TAG = 'Provider keys';
const provider = z.enum(PROVIDERS.map(({ name }) => name));

const createBody = z.strictObject({
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
        id: 'createApiKey', action: 'api_key.create', method: 'post', path: '/api/api-keys', tag: TAG, access: 'administrator',
        summary: 'Store a provider key, and make it the one that devices use with its provider',
        idempotent: true,
        body: createBody,
        answers: { 201: { description: 'Stored', json: apiKey } },
      },
      async ({ body: { provider, name = provider, value }, principal }) => ({
        status: 201,
        json: apiKeyJson(await apiKeys.create({ provider, name, value }, principal.userId)),
      }),
    ),
    operation(
      {
        id: 'listApiKeys', action: 'api_key.list', method: 'get', path: '/api/api-keys', tag: TAG, access: 'api_keys:read',
        summary: 'List provider keys, newest first',
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(apiKey) } },
      },
      async ({ query, principal }) => ({ json: pageJson(await apiKeys.list({ ...pageRequest(query), asUserId: principal.userId }), apiKeyJson) }),
    ),
    operation(
      {
        id: 'revokeApiKey', action: 'api_key.revoke', method: 'post', path: '/api/api-keys/{id}/revoke', tag: TAG, access: 'administrator',
        summary: 'Revoke a provider key for ever',
        params: idParams,
        answers: { 200: { description: 'Revoked, now or before', json: apiKey } },
        problems: ['not_found'],
      },
      async ({ params, principal }) => {
        const revoked = await apiKeys.revoke(params.id, principal.userId);
        if (revoked === null) throw notFound();
        return { json: apiKeyJson(revoked) };
      },
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
