/** The limits of a device and of its project: who sets them, and that they hold, over HTTP and signed requests, on both databases. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { asUser, asVerifier } from '../../src/db/as-user.ts';
import { startOn, type Person, type RunningService } from '../roles/service.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 180_000 });

describe.each(backends())('the limits of a device on %s', (_title, open) => {
  let backend: Backend;
  let service: RunningService;
  let upstream: Server;
  let received: string[] = [];
  let owner: Person;
  let stranger: Person;
  let projectId: string;
  let deviceId: string;
  let client: KeyGuardClient;

  const as = (person: Person, method: string, path: string, body?: object, headers: Record<string, string> = {}): Promise<CallAnswer> =>
    service.call(method, path, { token: person.token, headers, ...(body !== undefined && { body }) });
  const asAdmin = (method: string, path: string, body?: object, headers?: Record<string, string>): Promise<CallAnswer> => as(service.admin, method, path, body, headers);
  const limit = async (body: object): Promise<void> => {
    const answer = await asAdmin('PATCH', `/api/devices/${deviceId}`, body);
    expect(answer.status, answer.text).toBe(200);
  };
  const chat = (body: string | object, path = '/proxy/openai/v1/chat/completions'): Promise<Response> =>
    client.fetch(`${service.origin}${path}`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: typeof body === 'string' ? body : JSON.stringify(body) });
  const codeOf = async (answer: Response): Promise<[number, string | undefined]> => [answer.status, ((await answer.json()) as { error?: { code?: string } }).error?.code];

  beforeAll(async () => {
    upstream = createServer((request, response) => {
      received.push(request.url!);
      request.resume().on('end', () => {
        response.setHeader('content-type', 'application/json').end('{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":1}}');
      });
    });
    await new Promise<void>((resolve) => void upstream.listen(0, '127.0.0.1', resolve));
    backend = await open();
    service = await startOn(backend, { OPENAI_API_KEY: 'sk-of-nobody', OPENAI_BASE_URL: `http://127.0.0.1:${(upstream.address() as AddressInfo).port}/v1` });
    [owner, stranger] = [await service.newPerson('owner'), await service.newPerson('stranger')];
    projectId = (await as(owner, 'POST', '/api/projects', { name: 'A project' })).json.id;
    await as(owner, 'POST', '/api/api-keys', { project_id: projectId, provider: 'openai', value: 'sk-of-this-project' });
    const { code } = (await as(owner, 'POST', '/api/enrollment-codes', { project_id: projectId })).json;
    client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    ({ deviceId } = await client.enroll({ code }));
    await asAdmin('POST', `/api/devices/${deviceId}/approve`);
  });
  beforeEach(() => {
    received = [];
  });
  afterAll(async () => {
    await service?.stop();
    await backend?.stop();
    upstream?.close();
  });

  it('are set by administrators, seen by its owner, who may name it, and nothing to strangers', async () => {
    const path = `/api/devices/${deviceId}`;
    const limits = { requests_per_minute: 500, ip_allowlist: ['127.0.0.0/8', '::1'], allowed_models: ['gpt-4o*'] };
    for (const body of Object.entries(limits).map(([name, value]) => ({ [name]: value }))) {
      expect((await as(owner, 'PATCH', path, body)).json.code).toBe('forbidden');
      expect((await as(stranger, 'PATCH', path, body)).status).toBe(404);
    }
    expect((await as(stranger, 'PATCH', path, { label: 'mine' })).status).toBe(404);
    expect((await asAdmin('PATCH', path, limits)).json).toMatchObject({ ...limits, intact: true });
    expect((await as(owner, 'PATCH', path, { label: 'A laptop' })).json).toMatchObject({ ...limits, label: 'A laptop', intact: true });
    expect((await as(owner, 'GET', path)).json).toMatchObject({ ...limits, label: 'A laptop' });
    const written = await service.audit('device.update');
    expect(written.filter((entry) => entry['outcome'] === 'success').map(({ actor, allowed_models: models, label }) => ({ actor, models, label }))).toEqual([
      { actor: `user:${owner.userId}`, models: undefined, label: 'A laptop' },
      { actor: `user:${service.admin.userId}`, models: ['gpt-4o*'], label: undefined },
    ]);
    for (const body of [{}, { status: 'active' }, { requests_per_minute: 0 }, { ip_allowlist: [] }, { ip_allowlist: ['localhost'] }, { allowed_models: ['a*b'] }, { label: '' }]) {
      expect((await asAdmin('PATCH', path, body)).status, JSON.stringify(body)).toBe(400);
    }
    await limit({ requests_per_minute: null, ip_allowlist: null, allowed_models: null });
  });

  it('are changed in the state that was seen, which a call of the device does not change', async () => {
    const path = `/api/devices/${deviceId}`;
    const etag = (await asAdmin('GET', path)).headers.get('etag')!;
    expect((await chat({ model: 'm' })).status).toBe(200);
    expect((await asAdmin('GET', path)).headers.get('etag')).toBe(etag);
    const racing = await Promise.all([7000, 8000, 9000].map((n) => asAdmin('PATCH', path, { requests_per_minute: n }, { 'if-match': etag })));
    expect(racing.map(({ status }) => status).toSorted()).toEqual([200, 412, 412]);
    await limit({ requests_per_minute: null });
  });

  it('hold from the next call on: the number of calls, and the addresses', async () => {
    await limit({ ip_allowlist: ['192.0.2.1'] });
    expect(await codeOf(await chat({ model: 'm' }))).toEqual([403, 'ip_not_allowed']);
    await limit({ ip_allowlist: null, requests_per_minute: 1 });
    expect(await codeOf(await chat({ model: 'm' }))).toEqual([429, 'rate_limited']);
    await limit({ requests_per_minute: null });
    expect((await chat({ model: 'm' })).status).toBe(200);
  });

  it('hold it to models that both lists allow, at once and for all that names a model', async () => {
    const ofProject = (models: readonly string[] | null): Promise<CallAnswer> => as(owner, 'PATCH', `/api/projects/${projectId}`, { allowed_models: models });
    const outcomes = async (): Promise<number[]> => Promise.all(['gpt-4o', 'gpt-4o-mini', 'o3'].map(async (model) => (await chat({ model })).status));
    expect(await outcomes()).toEqual([200, 200, 200]);
    await limit({ allowed_models: ['gpt-4o*'] });
    expect(await outcomes()).toEqual([200, 200, 403]);
    expect((await ofProject(['gpt-4o', 'o3'])).json.allowed_models).toEqual(['gpt-4o', 'o3']);
    expect(await outcomes()).toEqual([200, 403, 403]);
    await limit({ allowed_models: null });
    expect(await outcomes()).toEqual([200, 403, 200]);

    received = [];
    expect(await codeOf(await chat({ model: 'gpt-4o-mini' }))).toEqual([403, 'model_not_allowed']);
    expect(await codeOf(await chat('{"model":"gpt-4o","mod\\u0065l":"gpt-4o-mini"}'))).toEqual([400, 'model_ambiguous']);
    expect(await codeOf(await chat('{"model":"gpt-4o","mod\\u0065l":"gpt-4o-mini"}', '/v1/chat/completions'))).toEqual([400, 'model_ambiguous']);
    expect(await codeOf(await chat({ model: 'gpt-4o' }, '/proxy/openai/v1/batches'))).toEqual([403, 'model_not_allowed']);
    const refused = await chat({ model: 'x' });
    expect(refused.headers.get('x-should-retry')).toBe('false');
    expect(received).toEqual([]);
    expect((await client.fetch(`${service.origin}/proxy/openai/v1/models`)).status).toBe(200);
    expect((await service.audit('llm.call_refused')).map((entry) => entry['code'])).toContain('model_ambiguous');
    await ofProject([]);
    expect(await outcomes()).toEqual([403, 403, 403]);
    await ofProject(null);
    // Without a list nobody reads the body.
    expect((await chat('{"model":"a","model":"b"}')).status).toBe(200);
  });

  it('are nothing where somebody changed the row in the database', async () => {
    await as(owner, 'PATCH', `/api/projects/${projectId}`, { allowed_models: ['gpt-4o'] });
    await service.asSuperuser('UPDATE keyguard.api_key_projects SET allowed_models = NULL WHERE id = $1', [projectId]);
    await vi.waitFor(async () => expect((await chat({ model: 'o3' })).status).toBe(503), { timeout: 5000, interval: 100 });
    await service.asSuperuser(`UPDATE keyguard.api_key_projects SET allowed_models = '{gpt-4o}' WHERE id = $1`, [projectId]);
    await vi.waitFor(async () => expect((await chat({ model: 'gpt-4o' })).status).toBe(200), { timeout: 5000, interval: 100 });
    await as(owner, 'PATCH', `/api/projects/${projectId}`, { allowed_models: null });
  });

  it('are kept apart by the database itself', async () => {
    const change = `UPDATE keyguard.api_key_projects SET allowed_models = '{x}' WHERE id = $1 RETURNING id`;
    expect(await asUser(service.sql, stranger.userId, async (tx) => (await tx.query(change, [projectId])).rows)).toEqual([]);
    await expect(asVerifier(service.sql, (tx) => tx.query(change, [projectId]))).rejects.toMatchObject({ code: 'store_unavailable' });
    await expect(asVerifier(service.sql, (tx) => tx.query('SELECT name FROM keyguard.api_key_projects'))).rejects.toMatchObject({ code: 'store_unavailable' });
    await expect(asUser(service.sql, owner.userId, (tx) => tx.query(`UPDATE keyguard.devices SET allowed_models = '{x}' WHERE device_id = $1`, [deviceId]))).rejects.toMatchObject({ code: 'store_unavailable' });
  });
});
