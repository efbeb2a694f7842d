/** Provider keys as people and devices meet them: over HTTP, in one service, with a provider that answers as it is told. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { startOn, type RunningService } from '../roles/service.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { startProvider, type FakeProvider } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe.each(backends())('provider keys over HTTP, on %s', (_title, open) => {
  let backend: Backend;
  let service: RunningService;
  let provider: FakeProvider;
  const clock = { now: Date.now(), nowMs: (): number => clock.now };
  const values: string[] = [];

  beforeAll(async () => {
    [backend, provider] = [await open(), await startProvider()];
    service = await startOn(
      backend,
      { OPENAI_BASE_URL: `${provider.origin}/v1`, ANTHROPIC_BASE_URL: provider.origin, AZURE_OPENAI_ENDPOINT: 'http://127.0.0.1:9', KEYGUARD_UPSTREAM_ORIGINS: provider.origin },
      { clock },
    );
  });
  afterAll(async () => {
    await service?.stop();
    await provider?.stop();
    await backend?.stop();
  });

  const value = (): string => {
    const made = `sk-${randomUUID()}`;
    values.push(made);
    return made;
  };
  const asAdmin = (method: string, path: string, body?: object, headers: Record<string, string> = {}): Promise<CallAnswer> => service.call(method, path, { token: service.admin.token, headers, ...(body !== undefined && { body }) });
  async function newProject(): Promise<{ readonly id: string; readonly fetch: typeof fetch }> {
    const { id } = (await asAdmin('POST', '/api/projects', { name: 'A project' })).json;
    const { code } = (await asAdmin('POST', '/api/enrollment-codes', { project_id: id })).json;
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    await client.enroll({ code });
    return { id, fetch: client.fetch };
  }
  const post = (fetch: (typeof globalThis)['fetch'], path: string): Promise<Response> =>
    fetch(`${service.origin}${path}`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"model":"m"}' });
  const lastKey = (): unknown => provider.asked.at(-1)!.headers.authorization;

  it('rotates the key of a device between two of its calls, and tells no one a value', async () => {
    const project = await newProject();
    const [first, second] = [value(), value()];
    const stored = await asAdmin('POST', '/api/api-keys', { project_id: project.id, provider: 'openai', value: first, verify: true });
    expect([stored.status, stored.json]).toEqual([201, expect.objectContaining({ current_version: 1, last4: first.slice(-4), rotation_policy: null, rotation_due: false, intact: true })]);
    const path = `/api/api-keys/${stored.json.id}`;
    expect([(await post(project.fetch, '/v1/chat/completions')).status, lastKey()]).toEqual([200, `Bearer ${first}`]);
    const rotated = await asAdmin('POST', `${path}/rotate`, { value: second, overlap_s: 60, reason: 'every quarter' });
    expect([rotated.status, rotated.json, rotated.headers.get('etag')]).toEqual([200, expect.objectContaining({ current_version: 2, last4: second.slice(-4) }), '"2"']);
    expect([(await post(project.fetch, '/v1/chat/completions')).status, lastKey()]).toEqual([200, `Bearer ${second}`]);
    const { data } = (await asAdmin('GET', `${path}/versions`)).json;
    expect(data).toMatchObject([{ version: 2, state: 'active', reason: 'every quarter', verified_at: expect.any(String) }, { version: 1, state: 'overlap', overlap_until: expect.any(String) }]);
    expect((await asAdmin('POST', `${path}/versions/1/restore`, {})).json).toMatchObject({ current_version: 3, last4: first.slice(-4) });
    expect((await asAdmin('POST', `${path}/test`)).json).toMatchObject({ ok: true, status: 200, code: 'accepted', latency_ms: expect.any(Number) });
    await vi.waitFor(async () => expect((await asAdmin('GET', `${path}/usage?group_by=api_key_id`)).json.data).toMatchObject([{ api_key_id: stored.json.id, requests: 2, input_tokens: 6, output_tokens: 8 }]), { timeout: 10_000, interval: 100 });
    expect((await asAdmin('POST', `${path}/revoke`)).json).toMatchObject({ is_active: false });
    const refused = await post(project.fetch, '/v1/chat/completions');
    expect([refused.status, await refused.json()]).toEqual([403, expect.objectContaining({ error: expect.objectContaining({ code: 'provider_key_missing' }) })]);
  });

  it('refuses a value that the provider refuses, and leaves everything as it was', async () => {
    const project = await newProject();
    const first = value();
    const { id } = (await asAdmin('POST', '/api/api-keys', { project_id: project.id, provider: 'openai', value: first })).json;
    for (const status of [401, 500, 302]) {
      provider.answer((key) => (key === first ? 200 : status));
      const refused = await asAdmin('POST', `/api/api-keys/${id}/rotate`, { value: value() });
      expect([refused.status, refused.json.code, refused.json.detail]).toEqual([422, 'verification_failed', expect.stringContaining(String(status))]);
    }
    provider.answer(() => 200);
    expect([(await post(project.fetch, '/v1/chat/completions')).status, lastKey(), (await asAdmin('GET', `/api/api-keys/${id}`)).json.current_version]).toEqual([200, `Bearer ${first}`, 1]);
    expect((await service.audit('api_key.rotate')).filter(({ outcome }) => outcome === 'refused').slice(0, 3)).toMatchObject(Array.from({ length: 3 }, () => ({ code: 'verification_failed', path: `/api/api-keys/${id}/rotate` })));
  });

  it('does a rotation once for an Idempotency-Key, and for the state that somebody has seen', async () => {
    const { id } = await newProject();
    const stored = await asAdmin('POST', '/api/api-keys', { project_id: id, provider: 'openai', value: value() });
    const path = `/api/api-keys/${stored.json.id}`;
    const [body, key] = [{ value: value(), verify: false }, { 'idempotency-key': randomUUID() }];
    const answers = [await asAdmin('POST', `${path}/rotate`, body, key), await asAdmin('POST', `${path}/rotate`, body, key)];
    expect(answers.map(({ status, json }) => [status, json.current_version])).toEqual([[200, 2], [200, 2]]);
    const seen = { 'if-match': stored.headers.get('etag')! };
    expect((await asAdmin('POST', `${path}/rotate`, { value: value(), verify: false }, seen)).status).toBe(412);
    expect((await asAdmin('PATCH', path, { name: 'Anew' }, seen)).status).toBe(412);
    const patched = await asAdmin('PATCH', path, { name: 'Anew', rotation_policy: { every_days: 1, overlap_s: 5 } }, { 'if-match': answers[1]!.headers.get('etag')! });
    expect([patched.status, patched.json]).toEqual([200, expect.objectContaining({ name: 'Anew', rotation_policy: { every_days: 1, overlap_s: 5 }, rotation_due: false })]);
    clock.now += 24 * 60 * 60 * 1000;
    expect((await asAdmin('GET', `/api/api-keys?project_id=${id}&rotation_due=true`)).json.data).toMatchObject([{ id: stored.json.id, rotation_due: true }]);
    for (const [method, at, body] of [['PATCH', '', {}], ['PATCH', '', { base_url: provider.origin }], ['PATCH', '', { expires_at: '2020-01-01T00:00:00Z' }], ['POST', '/rotate', { value: 'with space in it' }], ['POST', '/rotate', { value: value(), version: 7 }]] as const) {
      expect([at, body, (await asAdmin(method, path + at, body)).status]).toEqual([at, body, 400]);
    }
  });

  it('sends a key to its own address, where the operator allows that, and no call of another deployment', async () => {
    const project = await newProject();
    const body = { project_id: project.id, provider: 'azure', value: value(), deployment: 'mine', api_version: '2024-10-21' };
    for (const baseUrl of ['https://evil.example', 'http://169.254.169.254']) {
      expect((await asAdmin('POST', '/api/api-keys', { ...body, base_url: baseUrl })).json.code).toBe('upstream_not_allowed');
    }
    expect((await asAdmin('POST', '/api/api-keys', { ...body, provider: 'openai' })).status).toBe(400);
    expect((await asAdmin('POST', '/api/api-keys', { ...body, base_url: `${provider.origin}/resource`, verify: true })).status).toBe(201);
    expect(provider.asked.at(-1)).toMatchObject({ url: '/resource/openai/models?api-version=2024-10-21', headers: { 'api-key': body.value } });
    expect((await post(project.fetch, '/proxy/azure/openai/deployments/mine/chat/completions')).status).toBe(200);
    expect(provider.asked.at(-1)!.url).toBe('/resource/openai/deployments/mine/chat/completions?api-version=2024-10-21');
    for (const path of ['openai/deployments/theirs/chat/completions', 'openai/v1/responses']) {
      const refused = await post(project.fetch, `/proxy/azure/${path}`);
      expect([refused.status, await refused.json()]).toEqual([403, expect.objectContaining({ error: expect.objectContaining({ code: 'deployment_not_allowed' }) })]);
    }
  });

  it('uses an expired key no more, and says in the provider’s dialect what is to be done', async () => {
    const project = await newProject();
    const { id } = (await asAdmin('POST', '/api/api-keys', { project_id: project.id, provider: 'anthropic', value: value(), expires_at: new Date(clock.now + 60_000).toISOString() })).json;
    expect((await post(project.fetch, '/proxy/anthropic/v1/messages')).status).toBe(200);
    clock.now += 60_000;
    await vi.waitFor(async () => {
      const refused = await post(project.fetch, '/proxy/anthropic/v1/messages');
      expect([refused.status, await refused.json()]).toEqual([403, { type: 'error', error: { type: 'permission_error', code: 'provider_key_expired', message: expect.stringMatching(/administrator must rotate it, or give it another date/) } }]);
    }, { timeout: 3000, interval: 100 });
    expect((await asAdmin('PATCH', `/api/api-keys/${id}`, { expires_at: null })).status).toBe(200);
    expect((await post(project.fetch, '/proxy/anthropic/v1/messages')).status).toBe(200);
  });

  it('lets those who may see keys see them, and change nothing', async () => {
    const project = await newProject();
    const { id } = (await asAdmin('POST', '/api/api-keys', { project_id: project.id, provider: 'openai', value: value() })).json;
    const reader = await service.newPerson('reader');
    const role = (await asAdmin('POST', '/api/roles', { name: `key-readers-${randomUUID()}`, permissions: ['projects:read', 'api_keys:read', 'usage:read'] })).json;
    await asAdmin('POST', `/api/users/${reader.userId}/roles`, { role_id: role.id, project_id: project.id });
    const asReader = async (method: string, path: string, body?: object): Promise<number> => (await service.call(method, `/api/api-keys/${id}${path}`, { token: reader.token, ...(body !== undefined && { body }) })).status;
    expect([await asReader('GET', ''), await asReader('GET', '/versions'), await asReader('GET', '/usage')]).toEqual([200, 200, 200]);
    for (const [path, body] of [['/rotate', { value: value() }], ['/versions/1/restore', {}], ['/test', undefined], ['/default', undefined], ['/revoke', undefined]] as const) {
      expect([path, await asReader('POST', path, body)]).toEqual([path, 403]);
    }
    expect(await asReader('PATCH', '', { name: 'x' })).toBe(403);
  });

  it('has said none of the values to anybody, and written none down', async () => {
    const heard = (service.call as unknown as { heard: string[] }).heard.join('\n');
    const { rows } = await service.asSuperuser<{ text: string }>(`SELECT convert_from(entry, 'UTF8') AS text FROM keyguard.secret_audit_logs`);
    expect(values.length).toBeGreaterThan(10);
    for (const one of values) expect([heard.includes(one), rows.some(({ text }) => text.includes(one))]).toEqual([false, false]);
  });
});
