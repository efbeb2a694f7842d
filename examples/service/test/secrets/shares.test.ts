/** Sharing of secrets with people, roles and programs: who may, what it is worth, and when it ends. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { startInProcess, type Person, type Stage } from '../matrix/stage.ts';
import { firstAdministrator } from '../matrix/world.ts';
import type { CallAnswer } from '../stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 120_000 });

const VALUE = 'canary-value-of-the-owner';

let stage: Stage;
let owner: Person;
let reader: Person;
let writer: Person;
let stranger: Person;
let sharer: Person;
let administrator: Person;

beforeAll(async () => {
  stage = await startInProcess();
  owner = await stage.newPerson('owner');
  reader = await stage.newPerson('reader');
  writer = await stage.newPerson('writer');
  stranger = await stage.newPerson('stranger');
  sharer = await stage.newPerson('sharer');
  administrator = await firstAdministrator(stage);
});
afterAll(() => stage?.stop());

const as = (person: Person, method: string, path: string, body?: object): Promise<CallAnswer> => stage.call(method, path, { token: person.token, ...(body !== undefined && { body }) });
async function newSecret(by = owner, more: object = {}): Promise<string> {
  const answer = await as(by, 'POST', '/api/secrets', { name: `secret ${randomUUID()}`, value: VALUE, ...more });
  expect(answer.status).toBe(201);
  return answer.json.id;
}
const reveal = (person: Person, id: string): Promise<CallAnswer> => as(person, 'POST', `/api/secrets/${id}/reveal`, {});
const newVersion = (person: Person, id: string): Promise<CallAnswer> => as(person, 'POST', `/api/secrets/${id}/versions`, { value: 'another value' });
const share = (by: Person, id: string, to: Person, permission: string, more: object = {}): Promise<CallAnswer> =>
  as(by, 'POST', `/api/secrets/${id}/shares`, { grantee: { type: 'user', id: to.userId }, permission, ...more });
async function shared(by: Person, id: string, to: Person, permission: string, more: object = {}): Promise<string> {
  const answer = await share(by, id, to, permission, more);
  expect(answer.status, answer.text).toBe(201);
  return answer.json.id;
}
const entries = async (resource: string): Promise<{ action: string; outcome: string; actor: string; code?: string }[]> => {
  const { rows } = await stage.sql.query<{ entry: Uint8Array }>('SELECT entry FROM keyguard.secret_audit_logs WHERE resource = $1 ORDER BY seq', [resource]);
  return rows.map(({ entry }) => JSON.parse(Buffer.from(entry).toString('utf8')));
};

describe('a share', () => {
  it('to read lets read, to write lets write, and nothing lets share on', async () => {
    const id = await newSecret();
    expect((await reveal(reader, id)).status).toBe(404);
    await shared(owner, id, reader, 'read');
    await shared(owner, id, writer, 'write');
    expect((await reveal(reader, id)).json.value).toBe(VALUE);
    expect((await newVersion(reader, id)).status).toBe(403);
    expect((await newVersion(writer, id)).status).toBe(201);
    expect((await reveal(writer, id)).json.value).toBe('another value');
    for (const grantee of [reader, writer]) {
      expect((await share(grantee, id, stranger, 'read')).status).toBe(403);
      expect((await as(grantee, 'POST', `/api/secrets/${id}/links`, {})).status).toBe(403);
      expect((await as(grantee, 'GET', `/api/secrets/${id}/shares`)).status).toBe(403);
      expect((await as(grantee, 'DELETE', `/api/secrets/${id}`)).status).toBe(403);
    }
    expect((await share(stranger, id, stranger, 'read')).status).toBe(404);
    expect((await reveal(stranger, id)).status).toBe(404);
    expect(await entries(`secret:${id}`)).toContainEqual(expect.objectContaining({ action: 'secret.share', outcome: 'success', grantee: `user:${reader.userId}`, permission: 'read' }));
  });

  it('is found by e-mail, shown to both, and named', async () => {
    const id = await newSecret();
    const made = await as(owner, 'POST', `/api/secrets/${id}/shares`, { grantee: { type: 'user', email: reader.email.toUpperCase() }, permission: 'read' });
    expect(made.json).toMatchObject({ secret_id: id, grantee: { type: 'user', id: reader.userId, label: reader.email }, permission: 'read', intact: true });
    expect((await as(owner, 'GET', `/api/secrets/${id}/shares`)).json.data).toEqual([made.json]);
    const { data } = (await as(reader, 'GET', '/api/shares')).json;
    expect(data.find((one: { id: string }) => one.id === made.json.id)).toMatchObject({ secret: { id }, owner: { id: owner.userId, label: owner.email }, permission: 'read' });
    expect((await as(stranger, 'GET', '/api/shares')).json.data).toEqual([]);
    expect((await as(owner, 'GET', '/api/shares')).json.data).toEqual([]);
  });

  it('refuses who is not there, who owns it, and times that are over', async () => {
    const id = await newSecret();
    const give = (body: object): Promise<CallAnswer> => as(owner, 'POST', `/api/secrets/${id}/shares`, { permission: 'read', ...body });
    expect((await give({ grantee: { type: 'user', id: randomUUID() } })).json.code).toBe('grantee_not_found');
    expect((await give({ grantee: { type: 'user', email: 'nobody@example.com' } })).json.code).toBe('grantee_not_found');
    expect((await give({ grantee: { type: 'role', id: randomUUID() } })).json.code).toBe('grantee_not_found');
    expect((await give({ grantee: { type: 'user', id: owner.userId } })).status).toBe(400);
    expect((await give({ grantee: { type: 'user', id: reader.userId, email: reader.email } })).status).toBe(400);
    expect((await give({ grantee: { type: 'role', email: reader.email } })).status).toBe(400);
    expect((await give({ grantee: { type: 'user', id: reader.userId }, permission: 'manage' })).status).toBe(400);
    expect((await give({ grantee: { type: 'user', id: reader.userId }, owner_id: reader.userId })).status).toBe(400);
    expect((await give({ grantee: { type: 'user', id: reader.userId }, expires_at: new Date(Date.now() - 1000).toISOString() })).status).toBe(400);
  });

  it('takes the place of the one before', async () => {
    const id = await newSecret();
    await shared(owner, id, writer, 'write');
    await shared(owner, id, writer, 'read');
    expect((await newVersion(writer, id)).status).toBe(403);
    expect((await reveal(writer, id)).status).toBe(200);
  });

  it('ends at once when it is taken back, by the owner or by whom it was given to, and by nobody else', async () => {
    const id = await newSecret();
    const first = await shared(owner, id, reader, 'read');
    for (const other of [stranger, writer]) expect((await as(other, 'DELETE', `/api/secrets/${id}/shares/${first}`)).status).toBe(404);
    expect((await as(owner, 'DELETE', `/api/secrets/${await newSecret()}/shares/${first}`)).status).toBe(404);
    expect((await as(owner, 'DELETE', `/api/secrets/${id}/shares/${first}`)).status).toBe(204);
    expect((await reveal(reader, id)).status).toBe(404);
    expect((await as(owner, 'DELETE', `/api/secrets/${id}/shares/${first}`)).status).toBe(204);
    const second = await shared(owner, id, reader, 'read');
    expect((await reveal(reader, id)).status).toBe(200);
    expect((await as(reader, 'DELETE', `/api/secrets/${id}/shares/${second}`)).status).toBe(204);
    expect((await reveal(reader, id)).status).toBe(404);
    expect((await as(reader, 'GET', '/api/shares')).json.data.map((one: { secret: { id: string } }) => one.secret.id)).not.toContain(id);
  });

  it('ends when it expires', async () => {
    const id = await newSecret();
    await shared(owner, id, reader, 'read', { expires_at: new Date(Date.now() + 2000).toISOString() });
    expect((await reveal(reader, id)).status).toBe(200);
    await expect.poll(async () => (await reveal(reader, id)).status, { timeout: 10_000, interval: 200 }).toBe(404);
  });

  it('ends when the secret is deleted', async () => {
    const id = await newSecret();
    await shared(owner, id, reader, 'read');
    expect((await as(owner, 'DELETE', `/api/secrets/${id}`)).status).toBe(204);
    expect((await reveal(reader, id)).status).toBe(404);
    expect((await as(reader, 'GET', '/api/shares')).json.data.map((one: { secret: { id: string } }) => one.secret.id)).not.toContain(id);
  });
});

describe('a share by, or to, a role', () => {
  const newRole = async (permissions: readonly string[]): Promise<string> => (await as(administrator, 'POST', '/api/roles', { name: `role-${randomUUID().slice(0, 8)}`, permissions })).json.id;
  async function grant(person: Person, roleId: string): Promise<() => Promise<void>> {
    const answer = await as(administrator, 'POST', `/api/users/${person.userId}/roles`, { role_id: roleId });
    expect(answer.status, answer.text).toBe(201);
    return async () => {
      expect((await as(administrator, 'DELETE', `/api/users/${person.userId}/roles/${answer.json.id}`)).status).toBe(204);
    };
  }

  it('stands while whoever made it could still give it, and a link likewise', async () => {
    const id = await newSecret();
    const take = await grant(sharer, await newRole(['secrets:read', 'secrets:reveal', 'secrets:share']));
    expect((await share(sharer, id, reader, 'write')).status).toBe(403);
    await shared(sharer, id, reader, 'read');
    const link = (await as(sharer, 'POST', `/api/secrets/${id}/links`, { max_views: 2 })).json;
    expect((await reveal(reader, id)).json.value).toBe(VALUE);
    expect((await stage.call('POST', `/api/shares/${link.token}/open`, { body: {} })).json.value).toBe(VALUE);
    await take();
    expect((await reveal(reader, id)).status).toBe(404);
    expect((await as(reader, 'GET', '/api/shares')).json.data.map((one: { secret: { id: string } }) => one.secret.id)).not.toContain(id);
    expect((await stage.call('POST', `/api/shares/${link.token}/open`, { body: {} })).status).toBe(404);
    expect(await entries(`secret:${id}`)).toContainEqual(expect.objectContaining({ action: 'secret.open_link', outcome: 'refused', code: 'no_longer_shared' }));
    // The owner sees what was passed on, and takes it back.
    const { data } = (await as(owner, 'GET', `/api/secrets/${id}/shares`)).json;
    expect(data.map((one: { created_by: string }) => one.created_by)).toEqual([sharer.userId, sharer.userId]);
    expect((await as(owner, 'DELETE', `/api/secrets/${id}/shares/${data[0].id}`)).status).toBe(204);
  });

  it('passes on nothing that was only shared with whoever makes it', async () => {
    const id = await newSecret();
    const take = await grant(sharer, await newRole(['secrets:read', 'secrets:share']));
    await shared(owner, id, sharer, 'read');
    expect((await reveal(sharer, id)).status).toBe(200);
    expect((await share(sharer, id, reader, 'read')).status).toBe(403);
    expect((await as(sharer, 'POST', `/api/secrets/${id}/links`, {})).status).toBe(403);
    await take();
  });

  it('is for whoever holds the role', async () => {
    const id = await newSecret();
    const roleId = await newRole(['usage:read']);
    const made = await as(owner, 'POST', `/api/secrets/${id}/shares`, { grantee: { type: 'role', id: roleId }, permission: 'read' });
    expect(made.json.grantee).toMatchObject({ type: 'role', id: roleId });
    expect((await reveal(reader, id)).status).toBe(404);
    const take = await grant(reader, roleId);
    expect((await reveal(reader, id)).json.value).toBe(VALUE);
    expect((await reveal(stranger, id)).status).toBe(404);
    await take();
    expect((await reveal(reader, id)).status).toBe(404);
  });

  it('lets a program read, within its scopes', async () => {
    const id = await newSecret();
    const [able, unable] = await Promise.all(
      [['secrets:read', 'secrets:reveal'], ['secrets:read']].map(async (scopes) => (await as(stranger, 'POST', '/api/service-accounts', { name: `robot ${randomUUID()}`, scopes })).json),
    );
    for (const account of [able, unable]) {
      const made = await as(owner, 'POST', `/api/secrets/${id}/shares`, { grantee: { type: 'service_account', id: account.id }, permission: 'read' });
      expect(made.json.grantee).toMatchObject({ type: 'service_account', id: account.id });
    }
    expect((await stage.call('POST', `/api/secrets/${id}/reveal`, { token: able.token, body: {} })).json.value).toBe(VALUE);
    expect((await stage.call('POST', `/api/secrets/${id}/reveal`, { token: unable.token, body: {} })).status).toBe(403);
    expect((await reveal(stranger, id)).status).toBe(404);
  });
});

describe('a secret that has expired', () => {
  it('is given another date or value by its owner alone, or whoever may write it would read it again', async () => {
    const id = await newSecret();
    await shared(owner, id, reader, 'write');
    const soon = await as(owner, 'PATCH', `/api/secrets/${id}`, { expires_at: new Date(Date.now() + 1500).toISOString() });
    expect(soon.status, soon.text).toBe(200);
    await vi.waitFor(async () => expect((await reveal(reader, id)).status).toBe(410), { timeout: 20_000, interval: 250 });
    const later = new Date(Date.now() + 3_600_000).toISOString();
    for (const [method, path, body] of [
      ['PATCH', '', { expires_at: later }],
      ['PATCH', '', { expires_at: null }],
      ['POST', '/versions', { value: 'another', expires_at: later }],
    ] as const) {
      const answer = await as(reader, method, `/api/secrets/${id}${path}`, body);
      expect([answer.status, answer.json.code]).toEqual([410, 'secret_expired']);
    }
    expect((await as(owner, 'PATCH', `/api/secrets/${id}`, { expires_at: later })).status).toBe(200);
    expect((await reveal(reader, id)).json.value).toBe(VALUE);
  });
});

describe('a row of a share that somebody changed in the database', () => {
  // What each would have to be worth, had the row not been touched, shows that it is the change that counts.
  it.each([
    ['moved to another secret', 'subject_id', (other: string) => other],
    ['given to somebody else', 'grantee_id', () => stranger.userId],
    ['widened', 'permissions', () => ['secrets:read', 'secrets:reveal', 'secrets:update', 'secrets:delete']],
    ['made to last longer', 'expires_at_ms', () => Date.now() + 10 * 86_400_000],
    ['put in another’s name', 'created_by', () => stranger.userId],
  ])('grants nothing: %s', async (_what, column, to) => {
    const [id, other] = [await newSecret(), await newSecret()];
    const shareId = await shared(owner, id, reader, 'read', { expires_at: new Date(Date.now() + 3_600_000).toISOString() });
    expect((await reveal(reader, id)).json.value).toBe(VALUE);
    await stage.sql.query(`UPDATE keyguard.secret_shares SET ${column} = $2 WHERE id = $1`, [shareId, to(other)]);
    for (const person of [reader, stranger]) {
      for (const secretId of [id, other]) {
        for (const answer of [await reveal(person, secretId), await newVersion(person, secretId), await as(person, 'DELETE', `/api/secrets/${secretId}`)]) {
          expect(answer.status, answer.text).toBeGreaterThanOrEqual(400);
          expect(answer.text).not.toContain(VALUE);
        }
      }
    }
    expect((await reveal(owner, id)).json.value).toBe(VALUE);
  });

  it('takes nothing else away: lists show the rest, its owner sees that it was changed, and it is on record', async () => {
    const [changed, whole] = [await newSecret(), await newSecret()];
    const shareId = await shared(owner, changed, reader, 'read');
    await shared(owner, whole, reader, 'read');
    await stage.sql.query(`UPDATE keyguard.secret_shares SET permissions = ARRAY['secrets:read', 'secrets:reveal', 'secrets:update'] WHERE id = $1`, [shareId]);
    const [secrets, shares] = [await as(reader, 'GET', '/api/secrets?limit=200'), await as(reader, 'GET', '/api/shares?limit=200')];
    expect([secrets.status, shares.status]).toEqual([200, 200]);
    const listed = (secrets.json.data as { id: string }[]).map((one) => one.id);
    const given = (shares.json.data as { secret: { id: string } }[]).map(({ secret }) => secret.id);
    for (const ids of [listed, given]) expect([ids.includes(whole), ids.includes(changed)]).toEqual([true, false]);
    expect((await reveal(reader, whole)).json.value).toBe(VALUE);
    expect([(await reveal(reader, changed)).status, (await as(reader, 'GET', `/api/secrets/${changed}`)).status]).toEqual([404, 404]);
    const [seen] = (await as(owner, 'GET', `/api/secrets/${changed}/shares`)).json.data as { id: string; intact: boolean }[];
    expect(seen).toMatchObject({ id: shareId, intact: false });
    const entries = async (): Promise<unknown[]> =>
      (await stage.sql.query(`SELECT actor, outcome FROM keyguard.secret_audit_logs WHERE action = 'secret_share.tampered' AND resource = $1`, [`secret:${changed}`])).rows;
    // Once, however often it was met; twice where a minute ended in between.
    await expect.poll(async () => [1, 2].includes((await entries()).length)).toBe(true);
    expect((await entries())[0]).toEqual({ actor: 'system', outcome: 'failed' });
    // Its owner gives it anew.
    await shared(owner, changed, reader, 'read');
    expect((await reveal(reader, changed)).json.value).toBe(VALUE);
  });

  it('grants nothing where it was made up', async () => {
    const id = await newSecret();
    await stage.sql.query(
      `INSERT INTO keyguard.secret_shares (id, subject_type, subject_id, owner_id, grantee_type, grantee_id, permissions, created_by, created_at_ms, mac_key_id, mac)
        SELECT $1, 'secret', s.id, s.owner_id, 'user', $3, ARRAY['secrets:read', 'secrets:reveal'], s.owner_id, 1, s.mac_key_id, s.mac
        FROM keyguard.enterprise_secrets s WHERE s.id = $2`,
      [randomUUID(), id, stranger.userId],
    );
    expect((await reveal(stranger, id)).status).toBe(404);
    expect((await as(stranger, 'GET', '/api/secrets')).status).toBe(200);
    await stage.sql.query('DELETE FROM keyguard.secret_shares WHERE grantee_id = $1', [stranger.userId]);
  });
});

describe('an address', () => {
  it('is named thirty times a minute at most, whether anybody has it or not, and each that nobody has is on record', async () => {
    const id = await newSecret();
    const curious = await stage.newPerson('curious');
    const own = (await as(curious, 'POST', '/api/secrets', { name: `of the curious ${randomUUID()}`, value: VALUE })).json.id as string;
    const share = (email: string): Promise<{ status: number }> => as(curious, 'POST', `/api/secrets/${own}/shares`, { grantee: { type: 'user', email }, permission: 'read' });
    const statuses: number[] = [];
    // Twice as many: a minute may end in between.
    for (let n = 0; n < 62; n += 1) statuses.push((await share(n % 2 === 0 ? reader.email : `nobody-${n}@example.com`)).status);
    expect(statuses.slice(0, 4)).toEqual([201, 404, 201, 404]);
    expect(statuses).toContain(429);
    // Others, and who names somebody by an id that they know, are not held up.
    expect((await as(curious, 'POST', `/api/secrets/${own}/shares`, { grantee: { type: 'user', id: reader.userId }, permission: 'read' })).status).toBe(201);
    await shared(owner, id, reader, 'read');
    const { rows } = await stage.sql.query('SELECT 1 FROM keyguard.secret_audit_logs WHERE actor = $1 AND outcome = $2', [`user:${curious.userId}`, 'refused']);
    expect(rows.length).toBe(statuses.filter((status) => status >= 400).length);
  });
});

describe('a name', () => {
  it('that somebody else has used says nothing', async () => {
    const name = `the same name ${randomUUID()}`;
    const mine = await as(owner, 'POST', '/api/secrets', { name, value: VALUE });
    const theirs = await as(stranger, 'POST', '/api/secrets', { name, value: 'x' });
    expect([mine.status, theirs.status]).toEqual([201, 201]);
    // Nor does giving a secret a name that another of the owner's has, by who may change it.
    const id = await newSecret();
    await shared(owner, id, writer, 'write');
    const answers = [name, `free ${randomUUID()}`].map((wanted) => as(writer, 'PATCH', `/api/secrets/${id}`, { name: wanted }));
    const [taken, free] = await Promise.all(answers);
    expect([taken!.status, taken!.json.code]).toEqual([free!.status, free!.json.code]);
    expect(taken!.status).toBe(403);
  });
});
