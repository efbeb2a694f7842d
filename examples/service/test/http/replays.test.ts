/**
 * What a repetition under the same Idempotency-Key shows of a value that is shown once: the value to who lost the answer on the way, and
 * nothing to anybody later or elsewhere, nor once it is worth nothing.
 */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { DEFAULT_SIGN_IN_POLICY } from '../../src/auth/policy.ts';
import { SHOWN_AGAIN_MS } from '../../src/http/idempotency.ts';
import { bearerOf, setUpFactor, startStage, type SignedIn, type Stage } from '../people/stage.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

/** An operation that shows a value once, and what makes that value worth nothing. */
interface Case {
  readonly path: string;
  readonly body?: object;
  readonly member: 'code' | 'token' | 'value';
  readonly end: (made: Record<string, string>) => Promise<CallAnswer>;
}

interface Shape {
  readonly $ref?: string;
  readonly properties?: Readonly<Record<string, unknown>>;
  readonly allOf?: readonly Shape[];
}

/** An operation, as the API's document has it. */
interface Described {
  readonly operationId: string;
  readonly parameters?: readonly { readonly name: string }[];
  readonly responses: Readonly<Record<string, { readonly description: string; readonly content: Readonly<Record<string, { readonly schema: Shape }>> }>>;
}

describe.each(backends())('a repetition on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;
  let person: SignedIn;
  let secretId: string;
  let deviceId: string;

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
    person = await stage.newPerson('person');
    secretId = (await asAdmin('POST', '/api/secrets', { name: 'Shared', value: 'a value' })).json.id;
    const { json } = await asAdmin('POST', '/api/enrollment-codes', {});
    const client = new KeyGuardClient({ origin: stage.origin(), keyStore: memoryKeyStore() });
    ({ deviceId } = await client.enroll({ code: json.code }));
  });
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  const asAdmin = (method: string, path: string, body?: object): Promise<CallAnswer> => stage.call(method, path, { token: stage.admin.token, ...(body !== undefined && { body }) });
  const make = (path: string, body: object | undefined, key: string, token = stage.admin.token): Promise<CallAnswer> =>
    stage.call('POST', path, { token, headers: { 'idempotency-key': key }, body: body ?? {} });

  const enroll = async (code: string): Promise<CallAnswer> => {
    await new KeyGuardClient({ origin: stage.origin(), keyStore: memoryKeyStore() }).enroll({ code });
    return asAdmin('GET', '/api/enrollment-codes');
  };
  const ofPerson = (): string => `/api/users/${person.userId}/password-reset`;
  const newName = (): string => `name-${randomUUID()}`;

  const cases: readonly (readonly [string, () => Case])[] = [
    ['an enrollment code that was revoked', () => ({ path: '/api/enrollment-codes', member: 'code', end: ({ id }) => asAdmin('POST', `/api/enrollment-codes/${id}/revoke`) })],
    ['an enrollment code that was used up', () => ({ path: '/api/enrollment-codes', member: 'code', end: ({ code }) => enroll(code!) })],
    ['a rotation code that another one has replaced', () => ({ path: `/api/devices/${deviceId}/rotation-codes`, member: 'code', end: () => asAdmin('POST', `/api/devices/${deviceId}/rotation-codes`, {}) })],
    ['an invitation that was revoked', () => ({ path: '/api/invitations', body: { email: `${newName()}@example.com` }, member: 'token', end: ({ id }) => asAdmin('POST', `/api/invitations/${id}/revoke`) })],
    [
      'an invitation that was accepted',
      () => ({
        path: '/api/invitations', body: { email: `${newName()}@example.com` }, member: 'token',
        end: ({ token }) => stage.call('POST', '/api/invitations/accept', { body: { token, password: 'a long and quiet password', name: 'Guest' } }),
      }),
    ],
    ['a token for a password that another one has replaced', () => ({ path: ofPerson(), member: 'token', end: () => asAdmin('POST', ofPerson(), {}) })],
    ['a service account whose token was rotated', () => ({ path: '/api/service-accounts', body: { name: 'robot', scopes: ['audit:read'] }, member: 'token', end: ({ id }) => asAdmin('POST', `/api/service-accounts/${id}/rotate`, {}) })],
    ['a service account that was disabled', () => ({ path: '/api/service-accounts', body: { name: 'robot', scopes: ['audit:read'] }, member: 'token', end: ({ id }) => asAdmin('POST', `/api/service-accounts/${id}/disable`) })],
    ['a link that was opened', () => ({ path: `/api/secrets/${secretId}/links`, body: { max_views: 1 }, member: 'token', end: ({ token }) => stage.call('POST', `/api/shares/${token}/open`, { body: {} }) })],
    ['a link that was taken back', () => ({ path: `/api/secrets/${secretId}/links`, body: {}, member: 'token', end: ({ id }) => asAdmin('DELETE', `/api/secrets/${secretId}/shares/${id}`) })],
    [
      'a generated value that is not the one that counts any more',
      () => ({ path: '/api/secrets', body: { name: newName(), generate: { kind: 'hex', bytes: 32 } }, member: 'value', end: ({ id }) => asAdmin('POST', `/api/secrets/${id}/versions`, { value: 'another' }) }),
    ],
    ['a generated value that was destroyed', () => ({ path: '/api/secrets', body: { name: newName(), generate: { kind: 'hex', bytes: 32 } }, member: 'value', end: ({ id }) => asAdmin('DELETE', `/api/secrets/${id}`) })],
    ['a generated version that another one has followed', () => ({ path: `/api/secrets/${secretId}/versions`, body: { generate: { kind: 'hex', bytes: 32 } }, member: 'value', end: () => asAdmin('POST', `/api/secrets/${secretId}/versions`, { value: 'a value' }) })],
  ];

  it.each(cases)('shows what was lost on the way, and no longer of %s', async (_name, what) => {
    const { path, body, member, end } = what();
    const key = randomUUID();
    const first = await make(path, body, key);
    expect([first.status, first.json[member]]).toEqual([201, expect.stringMatching(/./)]);
    const again = await make(path, body, key);
    expect([again.status, again.text, again.headers.get('idempotency-replayed')]).toEqual([201, first.text, 'true']);
    expect((await end(first.json)).status).toBeLessThan(300);
    const late = await make(path, body, key);
    expect([late.status, late.json.code]).toEqual([409, 'idempotency_reply_withheld']);
    expect(late.text).not.toContain(first.json[member]);
  });

  it('shows the second token of an invitation that was lost on the way, and no longer once the invitation was approved anew or revoked', async () => {
    const bea = await stage.newPerson('bea');
    await asAdmin('PUT', `/api/users/${bea.userId}/administrator`);
    const { id } = (await asAdmin('POST', '/api/invitations', { email: `${newName()}@example.com`, is_administrator: true })).json;
    const approve = (key: string): Promise<CallAnswer> => make(`/api/invitations/${id}/approve`, undefined, key, bea.token);
    const [key, later] = [randomUUID(), randomUUID()];
    const first = await approve(key);
    expect([first.status, (await approve(key)).text]).toEqual([200, first.text]);
    const second = await approve(later);
    expect(second.json.second_token).not.toBe(first.json.second_token);
    const late = await approve(key);
    expect([late.json.code, (await approve(later)).text]).toEqual(['idempotency_reply_withheld', second.text]);
    await asAdmin('POST', `/api/invitations/${id}/revoke`);
    expect((await approve(later)).json.code).toBe('idempotency_reply_withheld');
    await stage.call('DELETE', `/api/users/${bea.userId}/administrator`, { token: bea.token });
  });

  it('shows nothing to another session of the same person, however it signed in, and to a JWT what its session is shown', async () => {
    const key = randomUUID();
    const first = await make('/api/enrollment-codes', {}, key, person.token);
    const elsewhere = await make('/api/enrollment-codes', {}, key, bearerOf(await stage.signIn(person.email)));
    expect([elsewhere.status, elsewhere.json.code]).toEqual([409, 'idempotency_reply_withheld']);
    expect(elsewhere.text).not.toContain(first.json.code);
    const { token: jwt } = (await stage.call('GET', '/api/auth/token', { token: person.token })).json;
    expect((await make('/api/enrollment-codes', {}, key, jwt)).text).toBe(first.text);
    // Nor to the session that took its place when a factor came.
    const { token } = await setUpFactor(stage, person.token);
    expect((await make('/api/enrollment-codes', {}, key, token)).json.code).toBe('idempotency_reply_withheld');
    expect((await stage.call('GET', '/api/enrollment-codes', { token })).json.data).toHaveLength(1);
    const refusals = (await stage.auditEntries()).filter((entry) => entry.code === 'idempotency_reply_withheld' && entry.actor === `user:${person.userId}`);
    expect(refusals.map(({ action, outcome }) => [action, outcome])).toEqual([['enrollment_code.create', 'refused'], ['enrollment_code.create', 'refused']]);
  });

  it('of a program shows it to the token that asked, and not to the one that came after', async () => {
    const made = await asAdmin('POST', '/api/service-accounts', { name: 'maker', scopes: ['secrets:create', 'secrets:read'] });
    const [key, body] = [randomUUID(), { name: newName(), generate: { kind: 'hex', bytes: 32 } }];
    const first = await make('/api/secrets', body, key, made.json.token);
    expect((await make('/api/secrets', body, key, made.json.token)).text).toBe(first.text);
    const rotated = await asAdmin('POST', `/api/service-accounts/${made.json.id}/rotate`, { overlap_s: 60 });
    expect((await make('/api/secrets', body, key, rotated.json.token)).json.code).toBe('idempotency_reply_withheld');
    expect((await make('/api/secrets', body, key, made.json.token)).text).toBe(first.text);
  });

  it('shows it for ten minutes, and what is no secret for a day', async () => {
    const [codeKey, storedKey] = [randomUUID(), randomUUID()];
    const stored = { name: newName(), value: 'of my own' };
    const code = await make('/api/enrollment-codes', { expires_in_s: 86_400 }, codeKey);
    const secret = await make('/api/secrets', stored, storedKey);
    stage.time.aheadMs += SHOWN_AGAIN_MS - 5000;
    expect((await make('/api/enrollment-codes', { expires_in_s: 86_400 }, codeKey)).text).toBe(code.text);
    stage.time.aheadMs += 5000;
    expect((await make('/api/enrollment-codes', { expires_in_s: 86_400 }, codeKey)).json.code).toBe('idempotency_reply_withheld');
    expect((await make('/api/secrets', stored, storedKey)).text).toBe(secret.text);
    // Nothing was made a second time by any of it.
    const { json } = await asAdmin('GET', '/api/enrollment-codes?limit=200');
    expect(json.data.filter(({ id }: { id: string }) => id === code.json.id)).toHaveLength(1);
  });

  it('shows a code that approves to nobody whose proof of a second factor has become too old', async () => {
    const { token } = await setUpFactor(stage, stage.admin.token);
    stage.admin = { ...stage.admin, token };
    stage.policy = { ...DEFAULT_SIGN_IN_POLICY, stepUp: { actions: new Set(['approve'] as const), withinSeconds: 60, serviceAccounts: 'refused' } };
    const key = randomUUID();
    const first = await make('/api/enrollment-codes', {}, key);
    expect((await make('/api/enrollment-codes', {}, key)).text).toBe(first.text);
    stage.time.aheadMs += 61_000;
    const old = await make('/api/enrollment-codes', {}, key);
    expect([first.status, old.status, old.json.code]).toEqual([201, 403, 'step_up_required']);
    stage.policy = DEFAULT_SIGN_IN_POLICY;
  });

  it('is said by every operation whose answer has a value in it', async () => {
    const { json } = await stage.call('GET', '/api/openapi.json');
    const creations = Object.values(json.paths as Record<string, Record<string, Described>>)
      .flatMap((methods) => Object.values(methods))
      .filter(({ parameters = [] }) => parameters.some(({ name }) => name === 'Idempotency-Key'));
    const membersOf = ({ $ref, properties = {}, allOf = [] }: Shape): string[] =>
      $ref === undefined ? [...Object.keys(properties), ...allOf.flatMap(membersOf)] : membersOf(json.components.schemas[$ref.split('/').at(-1)!]);
    const shownBy = ({ responses }: Described): string[] => membersOf((responses['201'] ?? responses['200'])!.content['application/json']!.schema);
    const showing = creations.filter((one) => shownBy(one).some((name) => ['code', 'token', 'second_token', 'value'].includes(name)));
    const saying = creations.filter(({ responses }) => responses['409']!.description.includes('idempotency_reply_withheld'));
    const names = (some: readonly Described[]): string[] => some.map(({ operationId }) => operationId).toSorted();
    expect(creations.length).toBeGreaterThan(10);
    expect(names(showing)).toEqual(names(saying));
    expect(showing).toHaveLength(9);
  });
});
