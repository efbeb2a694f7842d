/** `/api/api-keys`: an administrator stores and revokes provider keys. A value comes in here once and never goes out. */
import { Router } from 'express';
import * as z from 'zod';
import { demandAdministrator, principalOf } from '../auth/principal.ts';
import { noBody, type JsonReader } from '../http/json-body.ts';
import { pageJson, pageQuery, pageRequest, timeJson } from '../http/pagination.ts';
import { notFound } from '../http/problems.ts';
import { PROVIDERS } from '../llm/providers.ts';
import type { ApiKeys, StoredApiKey } from './store.ts';

const createBody = z.strictObject({
  provider: z.enum(PROVIDERS.map(({ name }) => name)),
  name: z.string().trim().min(1).max(100).optional(),
  // What a header can hold; a pasted line break is a mistake that would show much later.
  value: z.string().regex(/^[\x21-\x7e]{8,512}$/, 'must be 8 to 512 printable characters without spaces'),
});

const id = z.uuid();

export function apiKeyRoutes({ apiKeys, readJson }: { readonly apiKeys: ApiKeys; readonly readJson: JsonReader }): Router {
  const router = Router({ caseSensitive: true, strict: true });

  router.post('/api/api-keys', async (request, response) => {
    const { userId } = demandAdministrator(request);
    const { provider, name = provider, value } = createBody.parse(await readJson(request));
    const stored = await apiKeys.create({ provider, name, value }, userId);
    response.status(201).set('cache-control', 'no-store').json(apiKeyJson(stored));
  });

  router.get('/api/api-keys', async (request, response) => {
    const { userId } = principalOf(request);
    const page = await apiKeys.list({ ...pageRequest(pageQuery.parse(request.query)), asUserId: userId });
    response.set('cache-control', 'no-store').json(pageJson(page, apiKeyJson));
  });

  router.post('/api/api-keys/:id/revoke', noBody, async (request, response) => {
    const { userId } = demandAdministrator(request);
    const keyId = id.safeParse(request.params['id']);
    const revoked = keyId.success ? await apiKeys.revoke(keyId.data, userId) : null;
    if (revoked === null) throw notFound();
    response.set('cache-control', 'no-store').json(apiKeyJson(revoked));
  });

  return router;
}

function apiKeyJson(key: StoredApiKey): object {
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
