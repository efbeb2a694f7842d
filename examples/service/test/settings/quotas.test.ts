/** How much one person may have of what anybody makes: never more, whatever races, and as administrators say. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { startOn, type Person, type RunningService } from '../roles/service.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

const LIMIT = 3;

interface Kind {
  readonly quota: string;
  readonly action: string;
  readonly path: () => string;
  readonly body: () => object;
  /** Makes room for one. */
  readonly end: (made: Record<string, string>, person: Person) => Promise<CallAnswer>;
}

describe.each(backends())('a quota on %s', (_title, open) => {
  let backend: Backend;
  let service: RunningService;
  let secretId = '';

  beforeAll(async () => {
    backend = await open();
    service = await startOn(backend);
  });
  afterAll(async () => {
    await service.stop();
    await backend.stop();
  });

  const as = (token: string, method: string, path: string, body?: object): Promise<CallAnswer> => service.call(method, path, { token, ...(body !== undefined && { body }) });
  const set = (quotas: object): Promise<CallAnswer> => service.call('PATCH', '/api/settings', { token: service.admin.token, headers: { 'if-match': '*' }, body: { quotas } });
  const name = (): string => `N_${randomUUID().replaceAll('-', '_')}`;
  const statuses = (answers: readonly CallAnswer[]): Record<string, number> => {
    const counts: Record<string, number> = {};
    for (const { status, json } of answers) {
      const key = `${status} ${status < 300 ? 'made' : json.code}`;
      counts[key] = (counts[key] ?? 0) + 1;
    }
    return counts;
  };

  const kinds: readonly Kind[] = [
    { quota: 'service_accounts', action: 'service_account.create', path: () => '/api/service-accounts', body: () => ({ name: 'robot', scopes: ['audit:read'] }), end: ({ id }, { token }) => as(token, 'DELETE', `/api/service-accounts/${id}`) },
    { quota: 'projects', action: 'project.create', path: () => '/api/projects', body: () => ({ name: 'Shop' }), end: ({ id }, { token }) => as(token, 'POST', `/api/projects/${id}/archive`) },
    { quota: 'enrollment_codes', action: 'enrollment_code.create', path: () => '/api/enrollment-codes', body: () => ({}), end: ({ id }, { token }) => as(token, 'POST', `/api/enrollment-codes/${id}/revoke`) },
    { quota: 'invitations', action: 'invitation.create', path: () => '/api/invitations', body: () => ({ email: `${name().toLowerCase()}@example.com` }), end: ({ id }, { token }) => as(token, 'POST', `/api/invitations/${id}/revoke`) },
    { quota: 'shares', action: 'secret.create_link', path: () => `/api/secrets/${secretId}/links`, body: () => ({}), end: ({ id }, { token }) => as(token, 'DELETE', `/api/secrets/${secretId}/shares/${id}`) },
    { quota: 'secrets', action: 'secret.create', path: () => '/api/secrets', body: () => ({ name: name(), value: 'x' }), end: ({ id }, { token }) => as(token, 'DELETE', `/api/secrets/${id}`) },
  ];

  it.each(kinds)('of $quota is not passed by a hundred at once, says so, and has room again when one has ended', async ({ quota, action, path, body, end }) => {
    // Only administrators invite.
    const person = quota === 'invitations' ? service.admin : await service.newPerson('maker');
    secretId = (await as(person.token, 'POST', '/api/secrets', { name: name(), value: 'x' })).json.id;
    const there = quota === 'secrets' ? 1 : 0;
    expect((await set({ [quota]: LIMIT + there })).status).toBe(200);
    const answers = await Promise.all(Array.from({ length: 100 }, () => as(person.token, 'POST', path(), body())));
    expect(statuses(answers)).toEqual({ '201 made': LIMIT, '409 quota_exceeded': 100 - LIMIT });
    expect(answers.find(({ status }) => status === 409)!.json.detail).toContain(`quotas.${quota}`);
    expect((await service.audit(action)).filter((entry) => entry['outcome'] === 'refused' && entry['code'] === 'quota_exceeded' && entry['actor'] === `user:${person.userId}`).length).toBeGreaterThan(50);

    const made = answers.find(({ status }) => status === 201)!;
    expect((await end(made.json, person)).status).toBeLessThan(300);
    const after = await Promise.all(Array.from({ length: 10 }, () => as(person.token, 'POST', path(), body())));
    expect(statuses(after)).toEqual({ '201 made': 1, '409 quota_exceeded': 9 });
    // Lowered, it takes nothing away; raised, it lets more in at once.
    expect((await set({ [quota]: 0 })).status).toBe(200);
    expect((await as(person.token, 'POST', path(), body())).json.code).toBe('quota_exceeded');
    expect((await set({ [quota]: 1000 })).status).toBe(200);
    expect((await as(person.token, 'POST', path(), body())).status).toBe(201);
  });

  it('is of a person with all service accounts, and of nobody else', async () => {
    const [person, other] = [await service.newPerson('maker'), await service.newPerson('other')];
    const robots: string[] = [];
    for (let i = 0; i < 3; i += 1) robots.push((await as(person.token, 'POST', '/api/service-accounts', { name: 'robot', scopes: ['secrets:create', 'secrets:read'] })).json.token);
    await set({ secrets: LIMIT });
    const answers = await Promise.all(Array.from({ length: 60 }, (_, i) => as([person.token, ...robots][i % 4]!, 'POST', '/api/secrets', { name: name(), value: 'x' })));
    expect(statuses(answers)).toEqual({ '201 made': LIMIT, '409 quota_exceeded': 60 - LIMIT });
    expect((await as(other.token, 'POST', '/api/secrets', { name: name(), value: 'x' })).status).toBe(201);
    await set({ secrets: 1000 });
  });

  it('counts what a service account had made also once the account is deleted, or each deletion would be room for as much again', async () => {
    const person = await service.newPerson('maker');
    await set({ secrets: LIMIT });
    const outcomes: number[] = [];
    for (let i = 0; i < LIMIT + 1; i += 1) {
      const { id, token } = (await as(person.token, 'POST', '/api/service-accounts', { name: 'robot', scopes: ['secrets:create'] })).json;
      outcomes.push((await as(token, 'POST', '/api/secrets', { name: name(), value: 'x' })).status);
      expect((await as(person.token, 'DELETE', `/api/service-accounts/${id}`)).status).toBe(204);
    }
    expect(outcomes).toEqual([201, 201, 201, 409]);
    await set({ secrets: 1000 });
  });

  it('lets an import in whole or not at all, and counts what it makes alone', async () => {
    const person = await service.newPerson('importer');
    await as(person.token, 'POST', '/api/secrets', { name: 'A', value: 'x', type: 'env' });
    await set({ secrets: LIMIT });
    const file = (names: readonly string[]): Promise<CallAnswer> => as(person.token, 'POST', '/api/secrets/import', { text: names.map((one) => `${one}=${randomUUID()}\n`).join('') });
    expect((await file(['A', 'B', 'C', 'D'])).json.code).toBe('quota_exceeded');
    expect((await as(person.token, 'GET', '/api/secrets')).json.data).toHaveLength(1);
    expect((await file(['A', 'B', 'C'])).json).toMatchObject({ applied: true, created: 2, updated: 1 });
    expect((await file(['A', 'B', 'C'])).json).toMatchObject({ applied: true, updated: 3 });
    await set({ secrets: 1000 });
  });

  it('of shares has room for one that takes the place of another', async () => {
    const [person, other] = [await service.newPerson('giver'), await service.newPerson('getter')];
    const { id } = (await as(person.token, 'POST', '/api/secrets', { name: name(), value: 'x' })).json;
    await set({ shares: 1 });
    const share = (grantee: string, permission: string): Promise<CallAnswer> => as(person.token, 'POST', `/api/secrets/${id}/shares`, { grantee: { type: 'user', id: grantee }, permission });
    expect((await share(other.userId, 'read')).status).toBe(201);
    expect((await share(other.userId, 'write')).status).toBe(201);
    expect((await share(service.admin.userId, 'read')).json.code).toBe('quota_exceeded');
    await set({ shares: 1000 });
  });

  it('is no number that makes no sense', async () => {
    for (const quotas of [{ secrets: -1 }, { secrets: 1.5 }, { secrets: 1_000_001 }, { secrets: null }, { moons: 1 }]) {
      expect([quotas, (await set(quotas)).status]).toEqual([quotas, 400]);
    }
    const person = await service.newPerson('person');
    expect((await service.call('PATCH', '/api/settings', { token: person.token, headers: { 'if-match': '*' }, body: { quotas: { secrets: 9 } } })).status).toBe(403);
  });
});
