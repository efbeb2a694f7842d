/** One-time links: whoever has one opens it as often as it says, and whatever does not open is answered alike. */
import { randomInt, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { startInProcess, type Person, type Stage } from '../matrix/stage.ts';
import type { CallAnswer } from '../stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 120_000 });

const VALUE = 'canary-value-behind-a-link';

interface Link {
  readonly id: string;
  readonly token: string;
  readonly url: string;
}

let stage: Stage;
let owner: Person;
let secretId: string;

const as = (person: Person, method: string, path: string, body?: object): Promise<CallAnswer> => stage.call(method, path, { token: person.token, ...(body !== undefined && { body }) });
// Each from an address of its own, so that what limits addresses is met by the one test that is about it.
const anywhere = (): string => `198.51.${randomInt(256)}.${randomInt(256)}`;
const openLink = (token: string, body: object = {}, address = anywhere()): Promise<CallAnswer> =>
  stage.call('POST', `/api/shares/${token}/open`, { body, headers: { 'x-forwarded-for': address } });
const revokeLink = (link: Link): Promise<CallAnswer> => as(owner, 'DELETE', `/api/secrets/${secretId}/shares/${link.id}`);
async function newLink(options: object = {}, id = secretId): Promise<Link> {
  const answer = await as(owner, 'POST', `/api/secrets/${id}/links`, options);
  expect(answer.status, answer.text).toBe(201);
  return answer.json;
}
const withoutIds = ({ text }: CallAnswer): string => text.replace(/"request_id":"[^"]*"/, '');
const entriesOf = async (link: Link): Promise<{ action: string; outcome: string; code?: string }[]> => {
  const { rows } = await stage.sql.query<{ entry: Uint8Array }>(`SELECT entry FROM keyguard.secret_audit_logs WHERE actor = $1 ORDER BY seq`, [`share_link:${link.id}`]);
  return rows.map(({ entry }) => JSON.parse(Buffer.from(entry).toString('utf8')));
};

beforeAll(async () => {
  stage = await startInProcess();
  owner = await stage.newPerson('owner');
  secretId = (await as(owner, 'POST', '/api/secrets', { name: 'behind a link', value: VALUE })).json.id;
});
afterAll(() => stage?.stop());

describe('a link', () => {
  it('opens as often as it says, on record, and is kept as a keyed hash alone', async () => {
    const link = await newLink({ max_views: 2 });
    expect(link.token).toMatch(/^kgl_[A-Za-z0-9_-]{43}$/);
    expect(link.url).toBe(`${stage.origin}/s#${link.token}`);
    const opened = await openLink(link.token);
    expect(opened.json).toEqual({ value: VALUE, views_left: 1, expires_at: expect.any(String) as string });
    expect(opened.headers.get('cache-control')).toBe('no-store');
    expect((await openLink(link.token)).json.views_left).toBe(0);
    expect((await openLink(link.token)).status).toBe(404);
    expect((await entriesOf(link)).map(({ outcome, code }) => code ?? outcome)).toEqual(['success', 'success', 'used_up']);
    const { rows } = await stage.sql.query<{ row: string }>('SELECT s::text AS row FROM keyguard.secret_shares s WHERE id = $1', [link.id]);
    expect(rows[0]!.row).not.toContain(link.token.slice(4));
  });

  it('with one view is won by one of a hundred', async () => {
    const link = await newLink();
    const answers = await Promise.all(Array.from({ length: 100 }, () => openLink(link.token)));
    expect(answers.filter(({ status }) => status === 200).map(({ json }) => json.value)).toEqual([VALUE]);
    expect(answers.filter(({ status }) => status === 404)).toHaveLength(99);
    expect((await entriesOf(link)).filter(({ outcome }) => outcome === 'success')).toHaveLength(1);
  });

  it('of a program opens while the program may come in and share', async () => {
    const account = (await as(owner, 'POST', '/api/service-accounts', { name: `robot ${randomUUID()}`, scopes: ['secrets:create', 'secrets:read', 'secrets:reveal', 'secrets:share'] })).json;
    const robot = (path: string, body: object): Promise<CallAnswer> => stage.call('POST', path, { token: account.token, body });
    const own = (await robot('/api/secrets', { name: `of a program ${randomUUID()}`, value: VALUE })).json.id;
    const made = await robot(`/api/secrets/${own}/links`, { max_views: 10 });
    expect(made.status, made.text).toBe(201);
    const link: Link = made.json;
    expect((await openLink(link.token)).json.value).toBe(VALUE);
    const change = async (body: object): Promise<void> => {
      const answer = await as(owner, 'PATCH', `/api/service-accounts/${account.id}`, body);
      expect(answer.status, answer.text).toBe(200);
    };
    const opens = async (): Promise<number> => (await openLink(link.token)).status;
    expect((await as(owner, 'POST', `/api/service-accounts/${account.id}/disable`)).status).toBe(200);
    expect(await opens()).toBe(404);
    expect((await as(owner, 'POST', `/api/service-accounts/${account.id}/enable`)).status).toBe(200);
    expect(await opens()).toBe(200);
    await change({ scopes: ['secrets:read', 'secrets:reveal'] });
    expect(await opens()).toBe(404);
    await change({ scopes: ['secrets:reveal', 'secrets:share'] });
    expect(await opens()).toBe(404);
    await change({ scopes: ['secrets:read', 'secrets:reveal', 'secrets:share'] });
    expect(await opens()).toBe(200);
    // Nobody vouches for a row that was changed, whatever it says now.
    await stage.sql.query('UPDATE keyguard.service_accounts SET expires_at_ms = 9000000000000 WHERE id = $1', [account.id]);
    expect(await opens()).toBe(404);
    expect((await as(owner, 'DELETE', `/api/service-accounts/${account.id}`)).status).toBe(204);
    expect(await opens()).toBe(404);
    expect((await entriesOf(link)).filter(({ code }) => code === 'no_longer_shared')).toHaveLength(5);
  });

  it('answers alike whatever it does not open for', async () => {
    const used = await newLink();
    await openLink(used.token);
    const revoked = await newLink();
    expect((await revokeLink(revoked)).status).toBe(204);
    const expired = await newLink();
    await stage.sql.query('UPDATE keyguard.secret_shares SET expires_at_ms = 1 WHERE id = $1', [expired.id]);
    const asks = await newLink({ passphrase: 'horse battery' });
    const answers = [
      await openLink(used.token),
      await openLink(revoked.token),
      await openLink(expired.token),
      await openLink(asks.token),
      await openLink(asks.token, { passphrase: 'wrong horse' }),
      await openLink(`kgl_${'A'.repeat(43)}`),
      await openLink('nonsense'),
      await openLink(randomUUID()),
    ];
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([404]));
    expect(new Set(answers.map(withoutIds)).size).toBe(1);
    expect((await entriesOf(revoked)).map(({ code }) => code)).toEqual(['revoked']);
    expect((await entriesOf(asks)).map(({ code }) => code)).toEqual(['passphrase_missing', 'passphrase_wrong']);
  });

  it('takes five wrong passphrases at most, however many come at once, and then opens for none', async () => {
    const link = await newLink({ passphrase: 'horse battery', max_views: 3 });
    expect(link.token).toMatch(/^kgp_/);
    expect((await openLink(link.token, { passphrase: 'horse battery' })).json.value).toBe(VALUE);
    const wrong = await Promise.all(Array.from({ length: 20 }, (_, i) => openLink(link.token, { passphrase: `wrong horse ${i}` })));
    expect(new Set(wrong.map(({ status }) => status))).toEqual(new Set([404]));
    expect((await entriesOf(link)).filter(({ code }) => code === 'passphrase_wrong')).toHaveLength(5);
    expect((await openLink(link.token, { passphrase: 'horse battery' })).status).toBe(404);
  });

  it('opens the version that counted when it was made, and none of a secret that is gone', async () => {
    const { id } = (await as(owner, 'POST', '/api/secrets', { name: 'with versions', value: 'the first' })).json;
    const first = await newLink({ max_views: 2 }, id);
    expect((await as(owner, 'POST', `/api/secrets/${id}/versions`, { value: 'the second' })).status).toBe(201);
    const second = await newLink({}, id);
    expect((await openLink(first.token)).json.value).toBe('the first');
    expect((await openLink(second.token)).json.value).toBe('the second');
    const late = await newLink({}, id);
    expect((await as(owner, 'DELETE', `/api/secrets/${id}`)).status).toBe(204);
    for (const link of [first, late]) expect((await openLink(link.token)).status).toBe(404);
  });

  it.each([
    ['another secret', `subject_id = (SELECT id FROM keyguard.enterprise_secrets WHERE name = 'of somebody else')`],
    ['more views', 'max_views = 100'],
    ['a later end', 'expires_at_ms = expires_at_ms + 1'],
    ['no passphrase', 'passphrase_hash = NULL'],
    ['another version', 'version = 2'],
  ])('grants nothing after a writer of the database gave it %s', async (_what, change) => {
    const stranger = await stage.newPerson('somebody');
    await as(stranger, 'POST', '/api/secrets', { name: 'of somebody else', value: 'canary-of-somebody-else' });
    const link = await newLink({ passphrase: 'horse battery' });
    await stage.sql.query(`UPDATE keyguard.secret_shares SET ${change} WHERE id = $1`, [link.id]);
    expect((await openLink(link.token, { passphrase: 'horse battery' })).status).toBe(404);
    expect((await entriesOf(link)).map(({ code }) => code)).toEqual(['changed']);
    await stage.sql.query(`DELETE FROM keyguard.secret_versions WHERE subject_id IN (SELECT id FROM keyguard.enterprise_secrets WHERE name = 'of somebody else')`);
    await stage.sql.query(`DELETE FROM keyguard.enterprise_secrets WHERE name = 'of somebody else'`);
  });

  it('cannot be made for longer or more often than the settings allow', async () => {
    expect((await as(owner, 'POST', `/api/secrets/${secretId}/links`, { expires_in_s: 8 * 86_400 })).status).toBe(400);
    expect((await as(owner, 'POST', `/api/secrets/${secretId}/links`, { max_views: 11 })).status).toBe(400);
    expect((await as(owner, 'POST', `/api/secrets/${secretId}/links`, { max_views: 101 })).status).toBe(400);
    expect((await as(owner, 'POST', `/api/secrets/${secretId}/links`, { max_views: 0 })).status).toBe(400);
    expect((await as(owner, 'POST', `/api/secrets/${secretId}/links`, { passphrase: 'short' })).status).toBe(400);
  });
});

describe('an address', () => {
  it('may not try without end', async () => {
    const link = await newLink();
    const statuses: number[] = [];
    for (let i = 0; i < 100 && statuses.at(-1) !== 429; i += 1) statuses.push((await openLink(`kgl_${String(i).padEnd(43, 'x')}`, {}, '203.0.113.7')).status);
    expect(statuses.at(-1)).toBe(429);
    expect((await openLink(link.token, {}, '203.0.113.7')).status).toBe(429);
    expect((await openLink(link.token, {}, '203.0.113.8')).status).toBe(200);
  });
});
