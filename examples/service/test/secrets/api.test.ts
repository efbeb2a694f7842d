/** `/api/secrets` as a client sees it: what it takes and refuses, what it answers, and what is never in an answer. */
import { parseEnv } from 'node:util';
import { parse } from 'dotenv';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { startInProcess, type Stage } from '../matrix/stage.ts';
import type { CallAnswer } from '../stage.ts';
import { CERTIFICATE } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 180_000 });

describe('/api/secrets', () => {
  let stage: Stage;
  let token = '';
  let other = '';
  const heard: string[] = [];
  const ask = async (method: string, path: string, body?: object, headers: Record<string, string> = {}, as = token): Promise<CallAnswer> => {
    const answer = await stage.call(method, `/api/secrets${path}`, { token: as, headers, ...(body !== undefined && { body }) });
    heard.push(answer.text);
    return answer;
  };

  beforeAll(async () => {
    stage = await startInProcess();
    token = (await stage.newPerson('ann')).token;
    other = (await stage.newPerson('bob')).token;
  });
  afterAll(() => stage?.stop());

  it('stores, shows, lists, reveals and changes a secret, with a state to hold on to', async () => {
    const made = await ask('POST', '', { name: 'The database', type: 'database_url', value: 'postgres://u:p@h/db', tags: ['prod', 'prod', 'db'], expires_in_s: 3600 });
    expect([made.status, made.headers.get('etag'), made.headers.get('cache-control')]).toEqual([201, '"r1"', 'no-store']);
    expect(made.json).toMatchObject({ name: 'The database', type: 'database_url', tags: ['prod', 'db'], current_version: 1, project_id: null, intact: true,
      permissions: ['secrets:read', 'secrets:reveal', 'secrets:update', 'secrets:delete', 'secrets:share'] });
    expect(made.text).not.toContain('postgres:');
    const { id } = made.json;
    for (const query of ['q=DATABASE', 'q=rod', 'tag=db', 'type=database_url', 'name=The%20database', 'expiring_before=2100-01-01T00:00:00Z']) {
      expect([query, (await ask('GET', `?${query}`)).json.data.map((one: { id: string }) => one.id)]).toEqual([query, [id]]);
    }
    for (const query of ['q=%25', 'q=_he', 'tag=d', 'type=env', 'project_id=default', 'expiring_before=2001-01-01T00:00:00Z']) expect([query, (await ask('GET', `?${query}`)).json.data]).toEqual([query, []]);

    const changed = await ask('PATCH', `/${id}`, { name: 'Renamed', expires_at: null }, { 'if-match': '"r1"' });
    expect([changed.status, changed.headers.get('etag'), changed.json.expires_at]).toEqual([200, '"r2"', null]);
    const lost = await ask('POST', `/${id}/versions`, { value: 'postgres://late' }, { 'if-match': '"r1"' });
    expect([lost.status, lost.json.code]).toEqual([412, 'precondition_failed']);
    expect((await ask('POST', `/${id}/versions`, { value: 'postgres://second', reason: 'moved' }, { 'if-match': '"r2"' })).status).toBe(201);
    const revealed = await ask('POST', `/${id}/reveal`, {});
    expect(revealed.json).toEqual({ id, name: 'Renamed', type: 'database_url', version: 2, expires_at: null, value: 'postgres://second' });
    const versions = (await ask('GET', `/${id}/versions?limit=1`)).json;
    expect([versions.data[0].version, versions.data[0].state, versions.data[0].reason, versions.has_more]).toEqual([2, 'active', 'moved', true]);
    expect((await ask('GET', `/${id}/versions?cursor=${versions.next_cursor}`)).json.data).toMatchObject([{ version: 1, state: 'retired' }]);
    expect((await ask('POST', `/${id}/versions/1/restore`)).json.current_version).toBe(3);
    expect((await ask('DELETE', `/${id}/versions/2`)).status).toBe(204);
    expect((await ask('POST', `/${id}/reveal`, { version: 2 })).json.code).toBe('version_destroyed');
    expect((await ask('DELETE', `/${id}`, undefined, { 'if-match': '"r1"' })).status).toBe(412);
    expect((await ask('DELETE', `/${id}`)).status).toBe(204);
    for (const [method, path] of [['GET', `/${id}`], ['POST', `/${id}/reveal`], ['GET', `/${id}/versions`], ['DELETE', `/${id}`]] as const) {
      expect((await ask(method, path, method === 'POST' ? {} : undefined)).json.code).toBe('not_found');
    }
  });

  it('takes nothing that it does not know, and nothing that is too much', async () => {
    const good = { name: 'x', value: 'y' };
    const bad: object[] = [
      ...['owner_id', 'id', 'ciphertext', 'wrapped_dek', 'kek_id', 'current_version', 'mac', 'revision', 'created_at', 'permissions', 'intact'].map((name) => ({ ...good, [name]: 'z' })),
      {}, { name: 'x' }, { value: 'y' }, { ...good, name: '' }, { ...good, name: 'a\nb' }, { ...good, name: 'x'.repeat(201) }, { ...good, value: '' }, { ...good, value: 7 },
      { ...good, value: 'x'.repeat(48 * 1024 + 1) }, { ...good, value: '🔑'.repeat(12 * 1024 + 1) }, { ...good, type: 'nothing' }, { ...good, tags: 'x' }, { ...good, tags: Array.from({ length: 21 }, (_, i) => String(i)) },
      { ...good, expires_in_s: 0 }, { ...good, expires_at: '2001-01-01T00:00:00Z' }, { ...good, expires_at: 'soon' }, { ...good, expires_in_s: 1, expires_at: null },
      { ...good, generate: { kind: 'uuid' } }, { ...good, type: 'certificate' }, { ...good, type: 'ssh_key' }, { ...good, type: 'private_key' }, { ...good, type: 'database_url' },
    ];
    for (const body of bad) {
      const { status, json } = await ask('POST', '', body);
      expect([JSON.stringify(body).slice(0, 80), status, json.code]).toEqual([JSON.stringify(body).slice(0, 80), 400, 'invalid_request']);
    }
    expect((await ask('POST', '', { ...good, value: 'x'.repeat(48 * 1024) })).status).toBe(201);
    expect((await ask('POST', '', good)).json.code).toBe('name_taken');
    expect((await ask('POST', '', { ...good, project_id: 'default' })).status).toBe(404);
  });

  it('makes values: shows them once where they are stored, and every time where they are not', async () => {
    const made = await ask('POST', '', { name: 'Made', type: 'private_key', generate: { kind: 'ed25519' } });
    expect(made.json).toMatchObject({ value: expect.stringContaining('PRIVATE KEY'), public_key: expect.stringContaining('PUBLIC KEY'), entropy_bits: 128 });
    expect((await ask('GET', `/${made.json.id}`)).json.value).toBeUndefined();
    expect((await ask('POST', `/${made.json.id}/reveal`, {})).json.value).toBe(made.json.value);
    expect((await ask('POST', '/generate', { kind: 'template', template: 'sk-{base62:48}' })).json).toEqual({ value: expect.stringMatching(/^sk-[0-9A-Za-z]{48}$/), entropy_bits: 285.8 });
    expect((await ask('POST', '/generate', { kind: 'hex', bytes: 4 })).status).toBe(400);
  });

  it('knows until when a certificate is good', async () => {
    const { status, json } = await ask('POST', '', { name: 'A certificate', type: 'certificate', value: CERTIFICATE });
    expect([status, json.expires_at]).toEqual([201, '2126-10-30T04:23:09.000Z']);
    expect((await ask('POST', '', { name: 'One that ends sooner', type: 'certificate', value: CERTIFICATE, expires_at: '2100-01-01T00:00:00Z' })).json.expires_at).toBe('2100-01-01T00:00:00.000Z');
  });

  it('imports a .env file whole or not at all, and gives it back to the same bytes', async () => {
    const mine = (await stage.newPerson('cleo')).token;
    const as = (path: string, body: object): Promise<CallAnswer> => ask('POST', path, body, {}, mine);
    const values: Record<string, string> = { PLAIN: 'a', SPACED: ' a b ', HASH: 'a # b', QUOTES: `it's "quoted"`, MONEY: '$HOME ${X} `id`', LINES: 'a\nb\n', SLASH: 'C:\\new\\', UNICODE: 'ключ 🔑', URL: 'https://u:p@h/?a=b&c#d' };
    for (const [name, value] of Object.entries(values)) expect((await as('', { name, value, type: 'env' })).status).toBe(201);
    const exported = await as('/export', {});
    expect([exported.status, exported.headers.get('content-type'), exported.headers.get('cache-control'), exported.headers.get('x-keyguard-secrets')]).toEqual([200, 'text/plain; charset=utf-8', 'no-store', '9']);
    expect([parse(exported.text), { ...parseEnv(exported.text) }]).toEqual([values, values]);
    expect((await as('/export', { format: 'json' })).json).toEqual(values);

    const theirs = (await stage.newPerson('dora')).token;
    const into = (body: object): Promise<CallAnswer> => ask('POST', '/import', body, {}, theirs);
    const dry = await into({ text: exported.text, dry_run: true });
    expect(dry.json).toMatchObject({ applied: false, created: 9, updated: 0, unchanged: 0, invalid: 0 });
    expect((await ask('GET', '', undefined, {}, theirs)).json.data).toEqual([]);
    const broken = await into({ text: `${exported.text}\nB="open` });
    expect([broken.status, broken.json.detail]).toEqual([400, expect.stringContaining('(B): a quote is not closed')]);
    expect((await ask('GET', '', undefined, {}, theirs)).json.data).toEqual([]);
    expect((await into({ text: exported.text, tags: ['imported'] })).json).toMatchObject({ applied: true, created: 9 });
    expect((await ask('GET', '?tag=imported', undefined, {}, theirs)).json.data).toHaveLength(9);
    const again = await into({ text: exported.text.replace("PLAIN='a'", "PLAIN='b'\nNEW=1") });
    expect(again.json).toMatchObject({ applied: true, created: 1, updated: 1, unchanged: 8, invalid: 0 });
    expect(again.json.variables.find((one: { name: string }) => one.name === 'PLAIN')).toMatchObject({ outcome: 'updated', problem: null });
    expect(parse((await ask('POST', '/export', {}, {}, theirs)).text)).toEqual({ ...values, PLAIN: 'b', NEW: '1' });
    for (const { text } of [dry, again, broken]) for (const value of ['ключ', 'it’s', 'u:p@h']) expect(text).not.toContain(value);
    expect((await into({ text: Array.from({ length: 201 }, (_, i) => `V${i}=1`).join('\n') })).status).toBe(400);
    expect((await into({ text: 'A=1', project_id: 'default' })).status).toBe(404);

    await as('', { name: 'CR', value: 'a\r\nb' });
    const refused = await as('/export', {});
    expect([refused.status, refused.json.code, refused.text.includes('it’s')]).toEqual([409, 'not_exportable', false]);
    expect((await as('/export', { format: 'json' })).json).toEqual({ ...values, CR: 'a\r\nb' });
    const { rows } = await stage.sql.query<{ n: unknown }>(`SELECT count(*) AS n FROM keyguard.secret_audit_logs WHERE action = 'secret.reveal' AND convert_from(entry, 'UTF8') LIKE '%"via":"env_file"%'`);
    // Two files of nine, the other’s of ten, and ten in the end; none for what was refused.
    expect(Number(rows[0]!.n)).toBe(9 + 9 + 10 + 10);
  });

  it('is nobody else’s, and nobody’s without a session', async () => {
    const { id } = (await ask('POST', '', { name: 'private', value: 'not yours' })).json;
    for (const [method, path, body] of [
      ['GET', `/${id}`, undefined], ['POST', `/${id}/reveal`, {}], ['PATCH', `/${id}`, { tags: [] }], ['POST', `/${id}/versions`, { value: 'x' }], ['GET', `/${id}/versions`, undefined],
      ['POST', `/${id}/versions/1/restore`, undefined], ['DELETE', `/${id}/versions/1`, undefined], ['DELETE', `/${id}`, undefined],
    ] as const) {
      expect([method, path, (await ask(method, path, body, {}, other)).status]).toEqual([method, path, 404]);
      expect([method, path, (await stage.call(method, `/api/secrets${path}`, body === undefined ? {} : { body })).status]).toEqual([method, path, 401]);
    }
    expect((await ask('GET', '', undefined, {}, other)).json.data).toEqual([]);
  });

  it('never answered with anything sealed, hashed or meant for itself', async () => {
    const { rows } = await stage.sql.query<Record<string, Uint8Array | null>>('SELECT ciphertext, wrapped_dek FROM keyguard.secret_versions UNION ALL SELECT mac, NULL FROM keyguard.enterprise_secrets');
    const said = heard.join('\n');
    for (const bytes of rows.flatMap((row) => Object.values(row))) {
      if (bytes === null) continue;
      for (const encoding of ['hex', 'base64', 'base64url'] as const) expect(said).not.toContain(Buffer.from(bytes).toString(encoding).slice(0, 40));
    }
    expect(said).not.toMatch(/"(?:ciphertext|wrapped_dek|kek_id|mac|mac_key_id|token_hash)":/);
  });
});
