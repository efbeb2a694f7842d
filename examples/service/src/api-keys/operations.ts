/** `/api/api-keys`: whoever may write keys in a project stores, tries, rotates and revokes them. A value comes in here and never goes out. */
import type * as z from 'zod';
import type { Clock } from '@keyguard/core/seams';
import { operation, type Answer, type Operation } from '../http/operations.ts';
import { idParams, pageJson, pageOf, pageRequest } from '../http/pagination.ts';
import { versionParams, versionsQuery } from '../secrets/schema.ts';
import type { UsageReport } from '../usage/operations.ts';
import { usageAnswer, usageOfKeyQuery } from '../usage/operations.ts';
import type { Replacing } from './rotating.ts';
import type { StoredApiKey } from './rows.ts';
import { apiKey, apiKeyJson, apiKeyTest, apiKeyTestJson, apiKeyVersion, apiKeyVersionJson, createBody, expiryIn, listQuery, patchBody, policyIn, restoreBody, rotateBody } from './schema.ts';
import type { ApiKeys } from './store.ts';
import type { RotationSettings } from './versions.ts';

const TAG = 'Provider keys';
const CHANGING = ['not_found', 'illegal_transition', 'precondition_failed', 'integrity_failed'] as const;
const ASKING = ['upstream_not_allowed', 'rate_limited'] as const;

export interface ApiKeyOperationsOptions {
  readonly apiKeys: ApiKeys;
  readonly usage: UsageReport;
  readonly rotation: () => RotationSettings;
  readonly clock: Clock;
}

export function apiKeyOperations({ apiKeys, usage, rotation, clock }: ApiKeyOperationsOptions): readonly Operation[] {
  const json = (key: StoredApiKey): z.infer<typeof apiKey> => apiKeyJson(key, rotation(), clock.nowMs());
  const shown = (key: StoredApiKey, status: 200 | 201 = 200): Answer => ({ status, json: json(key), etag: String(key.revision) });
  const replacing = ({ overlap_s: overlap, reason, verify, expires_at: expires }: z.infer<typeof restoreBody>, ifMatch: readonly string[] | null): Replacing => ({
    overlapSeconds: overlap ?? null, reason: reason ?? null, verify, expiresAtMs: expiryIn(expires, clock.nowMs()), ifMatch,
  });

  return [
    operation(
      {
        id: 'createApiKey', action: 'api_key.create', method: 'post', path: '/api/api-keys', tag: TAG, access: 'api_keys:write',
        summary: 'Store a provider key, and make it the one that devices use with its provider',
        idempotent: true,
        body: createBody,
        answers: { 201: { description: 'Stored', json: apiKey } },
        problems: ['not_found', 'project_archived', 'verification_failed', 'integrity_failed', ...ASKING],
      },
      async ({ body, principal }) => {
        const { project_id: project, provider, name = provider, value, base_url: baseUrl, is_default: isDefault, verify, deployment, api_version: apiVersion } = body;
        const expiresAtMs = expiryIn(body.expires_at, clock.nowMs()) ?? null;
        return shown(
          await apiKeys.create(principal, project, { provider, name, value, baseUrl, options: { deployment, apiVersion }, ...policyIn(body.rotation_policy), expiresAtMs, isDefault, verify }),
          201,
        );
      },
    ),
    operation(
      {
        id: 'listApiKeys', action: 'api_key.list', method: 'get', path: '/api/api-keys', tag: TAG, access: 'api_keys:read',
        summary: 'List provider keys, newest first',
        query: listQuery,
        answers: { 200: { description: 'A page', json: pageOf(apiKey) } },
      },
      async ({ query: { limit, cursor, project_id: projectId, provider, rotation_due: due }, principal }) => {
        const filter = { projectId, provider, rotationDue: due === undefined ? undefined : due === 'true' };
        return { json: pageJson(await apiKeys.list(principal, filter, pageRequest({ limit, cursor })), json) };
      },
    ),
    operation(
      {
        id: 'getApiKey', action: 'api_key.read', method: 'get', path: '/api/api-keys/{id}', tag: TAG, access: 'api_keys:read',
        summary: 'Show a provider key, without its value',
        params: idParams,
        answers: { 200: { description: 'The key', json: apiKey } },
        problems: ['not_found'],
      },
      async ({ params: { id }, principal }) => shown(await apiKeys.get(principal, id)),
    ),
    operation(
      {
        id: 'updateApiKey', action: 'api_key.update', method: 'patch', path: '/api/api-keys/{id}', tag: TAG, access: 'api_keys:write',
        summary: 'Change the name, the rotation policy or the expiry of a provider key',
        description: 'Send the ETag that you have seen as If-Match, and nobody’s change is lost.',
        params: idParams,
        body: patchBody,
        answers: { 200: { description: 'The key as it is now', json: apiKey } },
        problems: CHANGING,
      },
      async ({ params: { id }, body: { name, rotation_policy: policy, expires_at: expires }, principal, ifMatch }) => {
        const expiresAtMs = expiryIn(expires, clock.nowMs());
        const change = { ...(name !== undefined && { name }), ...(policy !== undefined && policyIn(policy)), ...(expiresAtMs !== undefined && { expiresAtMs }) };
        return shown(await apiKeys.update(principal, id, change, ifMatch));
      },
    ),
    operation(
      {
        id: 'setDefaultApiKey', action: 'api_key.set_default', method: 'post', path: '/api/api-keys/{id}/default', tag: TAG, access: 'api_keys:write',
        summary: 'Make a provider key the one that the devices of its project use with its provider',
        params: idParams,
        answers: { 200: { description: 'The key as it is now', json: apiKey } },
        problems: CHANGING,
      },
      async ({ params: { id }, principal, ifMatch }) => shown(await apiKeys.setDefault(principal, id, ifMatch)),
    ),
    operation(
      {
        id: 'testApiKey', action: 'api_key.test', method: 'post', path: '/api/api-keys/{id}/test', tag: TAG, access: 'api_keys:write',
        summary: 'Ask the provider whether it takes the current value of a key',
        description: 'By a call that costs nothing. Of what the provider answers nothing but the status is read.',
        params: idParams,
        answers: { 200: { description: 'What came of it', json: apiKeyTest } },
        problems: ['not_found', 'illegal_transition', 'integrity_failed', ...ASKING],
      },
      async ({ params: { id }, principal }) => ({ json: apiKeyTestJson(await apiKeys.test(principal, id)) }),
    ),
    operation(
      {
        id: 'rotateApiKey', action: 'api_key.rotate', method: 'post', path: '/api/api-keys/{id}/rotate', tag: TAG, access: 'api_keys:write',
        summary: 'Give a provider key a new value',
        description:
          'The provider is asked first, unless you say otherwise. The value before it is kept for a week after its overlap, and can be restored until then. Calls that are under way go on with the value that they began with.',
        idempotent: true,
        params: idParams,
        body: rotateBody,
        answers: { 200: { description: 'The key with its new version', json: apiKey } },
        problems: [...CHANGING, 'verification_failed', ...ASKING],
      },
      async ({ params: { id }, body: { value, ...rest }, principal, ifMatch }) => shown(await apiKeys.rotate(principal, id, value, replacing(rest, ifMatch))),
    ),
    operation(
      {
        id: 'listApiKeyVersions', action: 'api_key.list_versions', method: 'get', path: '/api/api-keys/{id}/versions', tag: TAG, access: 'api_keys:read',
        summary: 'List the versions of a provider key, newest first, without their values',
        params: idParams,
        query: versionsQuery,
        answers: { 200: { description: 'A page', json: pageOf(apiKeyVersion) } },
        problems: ['not_found'],
      },
      async ({ params: { id }, query: { limit = 50, cursor }, principal }) => ({
        json: pageJson(await apiKeys.versions(principal, id, { limit, before: cursor === undefined ? null : Number(cursor) }), apiKeyVersionJson),
      }),
    ),
    operation(
      {
        id: 'restoreApiKeyVersion', action: 'api_key.restore_version', method: 'post', path: '/api/api-keys/{id}/versions/{version}/restore', tag: TAG, access: 'api_keys:write',
        summary: 'Put the value of an earlier version into use, as a new version',
        idempotent: true,
        params: versionParams,
        body: restoreBody,
        answers: { 200: { description: 'The key with its new version', json: apiKey } },
        problems: [...CHANGING, 'version_destroyed', 'verification_failed', ...ASKING],
      },
      async ({ params: { id, version }, body, principal, ifMatch }) => shown(await apiKeys.restore(principal, id, version, replacing(body, ifMatch))),
    ),
    operation(
      {
        id: 'revokeApiKey', action: 'api_key.revoke', method: 'post', path: '/api/api-keys/{id}/revoke', tag: TAG, access: 'api_keys:write',
        summary: 'Revoke a provider key for ever, and destroy its values',
        params: idParams,
        answers: { 200: { description: 'Revoked, now or before', json: apiKey } },
        problems: ['not_found'],
      },
      async ({ params, principal }) => shown(await apiKeys.revoke(principal, params.id)),
    ),
    operation(
      {
        id: 'getApiKeyUsage', action: 'api_key.usage', method: 'get', path: '/api/api-keys/{id}/usage', tag: TAG, access: 'usage:read',
        summary: 'Sum up the calls and tokens of a provider key',
        description: 'For who may see the key. Of whose devices: as in `GET /api/analytics/usage`.',
        params: idParams,
        query: usageOfKeyQuery,
        answers: { 200: usageAnswer },
        problems: ['not_found'],
      },
      async ({ params: { id }, query, principal }) => {
        await apiKeys.get(principal, id);
        return { json: await usage(principal, { ...query, api_key_id: id }) };
      },
    ),
  ];
}
