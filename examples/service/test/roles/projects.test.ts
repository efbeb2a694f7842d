/** Projects: whose they are, who is in them by role, what comes into them, and how they end. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { asUser } from '../../src/db/as-user.ts';
import { backends, type Backend } from '../stage.ts';
import { startOn, type Person, type RunningService } from './service.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 180_000 });

describe.each(backends())('projects on %s', (_title, open) => {
  let backend: Backend;
  let service: RunningService;
  let owner: Person;
  let member: Person;
  let stranger: Person;
  type As = (method: string, path: string, body?: object, headers?: Record<string, string>) => ReturnType<RunningService['call']>;
  const as = (person: () => Person): As => (method, path, body, headers = {}) => service.call(method, path, { token: person().token, headers, ...(body !== undefined && { body }) });
  const asOwner = as(() => owner);
  const asMember = as(() => member);
  const asStranger = as(() => stranger);
  const asAdmin = as(() => service.admin);
  const newProject = async (by: As = asOwner): Promise<string> => (await by('POST', '/api/projects', { name: 'A project', environment: 'staging' })).json.id;
  const giveRole = async (userId: string, name: string, projectId?: string): Promise<string> => {
    const { json } = await asAdmin('GET', '/api/roles?limit=200');
    const roleId = json.data.find((role: { name: string }) => role.name === name).id;
    const given = await asAdmin('POST', `/api/users/${userId}/roles`, { role_id: roleId, ...(projectId !== undefined && { project_id: projectId }) });
    expect(given.status, given.text).toBe(201);
    return given.json.id;
  };
  const idsOf = async (by: As): Promise<string[]> => (await by('GET', '/api/projects?limit=200')).json.data.map(({ id }: { id: string }) => id);

  beforeAll(async () => {
    backend = await open();
    service = await startOn(backend);
    [owner, member, stranger] = [await service.newPerson('owner'), await service.newPerson('member'), await service.newPerson('stranger')];
  });
  afterAll(async () => {
    await service?.stop();
    await backend?.stop();
  });

  it('belong to who made them, and are nothing to strangers', async () => {
    const id = await newProject();
    expect((await asOwner('GET', `/api/projects/${id}`)).json).toMatchObject({ owner_id: owner.userId, environment: 'staging', archived_at: null });
    expect((await asAdmin('GET', `/api/projects/${id}`)).status).toBe(200);
    const nothing = await asStranger('GET', `/api/projects/${randomUUID()}`);
    for (const [method, path, body] of [['GET', '', undefined], ['PATCH', '', { name: 'Mine' }], ['POST', '/archive', undefined], ['GET', '/members', undefined]] as const) {
      const told = await asStranger(method, `/api/projects/${id}${path}`, body);
      expect({ ...told.json, request_id: '' }).toEqual({ ...nothing.json, request_id: '' });
    }
    expect(await idsOf(asStranger)).toEqual([]);
    for (const body of [{ name: 'x', owner_id: stranger.userId }, { name: 'x', id: 'default' }, { name: 'x', archived_at: null }, { name: 'x', environment: 'moon' }, { name: '' }]) {
      expect((await asStranger('POST', '/api/projects', body)).status, JSON.stringify(body)).toBe(400);
    }
  });

  it('are seen and changed by those whose roles in them say so, and by nobody for a role in another', async () => {
    const [one, two] = [await newProject(), await newProject()];
    await giveRole(member.userId, 'viewer', one);
    expect(await idsOf(asMember)).toEqual([one]);
    expect((await asMember('PATCH', `/api/projects/${one}`, { name: 'Mine' })).status).toBe(403);
    expect((await asMember('GET', `/api/projects/${two}`)).status).toBe(404);
    expect((await asMember('GET', `/api/projects/${one}/members`)).status).toBe(403);
    await giveRole(member.userId, 'project_manager', two);
    expect((await asMember('PATCH', `/api/projects/${two}`, { name: 'Managed' })).json.name).toBe('Managed');
    expect((await asMember('PATCH', `/api/projects/${one}`, { name: 'Mine' })).status).toBe(403);
    for (const by of [asOwner, asMember, asAdmin]) {
      expect((await by('GET', `/api/projects/${two}/members`)).json.data.map((entry: { user_id: string; role: string }) => [entry.user_id, entry.role])).toEqual([[member.userId, 'project_manager']]);
    }
    // Whoever manages a project gives no roles in it.
    expect((await asMember('POST', `/api/users/${member.userId}/roles`, { role_id: randomUUID(), project_id: two })).status).toBe(403);
  });

  it('are changed in the state that was seen, or not at all', async () => {
    const id = await newProject();
    const etag = (await asOwner('GET', `/api/projects/${id}`)).headers.get('etag')!;
    expect((await asOwner('PATCH', `/api/projects/${id}`, { name: 'First' }, { 'if-match': etag })).status).toBe(200);
    expect((await asOwner('PATCH', `/api/projects/${id}`, { name: 'Second' }, { 'if-match': etag })).json.code).toBe('precondition_failed');
    expect((await asOwner('POST', `/api/projects/${id}/archive`, undefined, { 'if-match': etag })).json.code).toBe('precondition_failed');
  });

  it('take devices and provider keys of those who may put them there', async () => {
    const id = await newProject();
    const key = { project_id: id, provider: 'openai', value: 'sk-of-this-project-alone' };
    const code = { project_id: id };
    for (const body of [key, code]) {
      const path = body === key ? '/api/api-keys' : '/api/enrollment-codes';
      expect((await asStranger('POST', path, body)).status).toBe(404);
      expect((await asOwner('POST', path, body)).status).toBe(201);
    }
    await giveRole(stranger.userId, 'viewer', id);
    expect((await asStranger('POST', '/api/api-keys', key)).status).toBe(403);
    expect((await asStranger('POST', '/api/enrollment-codes', code)).status).toBe(403);
    const shown = (await asStranger('GET', '/api/api-keys')).json.data as { id: string; project_id: string }[];
    expect(shown.map(({ project_id: projectId }) => projectId)).toEqual([id]);
    expect((await asStranger('POST', `/api/api-keys/${shown[0]!.id}/revoke`)).status).toBe(403);
    await giveRole(stranger.userId, 'project_manager', id);
    expect((await asStranger('POST', `/api/api-keys/${shown[0]!.id}/revoke`)).json.is_active).toBe(false);
    expect((await asMember('GET', '/api/api-keys')).json.data).toEqual([]);
    // The first project takes everybody's devices, and keys of administrators.
    expect((await asMember('POST', '/api/api-keys', { provider: 'openai', value: 'sk-of-a-member-or-so' })).status).toBe(403);
    expect((await asMember('POST', '/api/enrollment-codes', {})).json.project_id).toBe('default');
  });

  it('end when nothing is in them any more, and nothing comes in afterwards', async () => {
    const id = await newProject();
    const newCode = async (): Promise<string> => (await asOwner('POST', '/api/enrollment-codes', { project_id: id })).json.code;
    const enroll = async (code: string): Promise<string> => (await new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() }).enroll({ code })).deviceId;
    const [first, late] = [await newCode(), await newCode()];
    const deviceId = await enroll(first);
    const keyId = (await asOwner('POST', '/api/api-keys', { project_id: id, provider: 'openai', value: 'sk-until-the-very-end' })).json.id;
    await giveRole(stranger.userId, 'project_manager', id);

    const inUse = await asOwner('POST', `/api/projects/${id}/archive`);
    expect([inUse.status, inUse.json.code, inUse.json.detail]).toEqual([409, 'project_in_use', 'There are devices and provider keys in it: revoke them first.']);
    await asOwner('POST', `/api/devices/${deviceId}/revoke`);
    await asOwner('POST', `/api/api-keys/${keyId}/revoke`);
    expect(typeof (await asOwner('POST', `/api/projects/${id}/archive`)).json.archived_at).toBe('string');

    await expect(enroll(late)).rejects.toMatchObject({ code: 'enrollment_rejected' });
    expect((await asOwner('POST', '/api/enrollment-codes', { project_id: id })).json.code).toBe('project_archived');
    expect((await asOwner('POST', '/api/api-keys', { project_id: id, provider: 'openai', value: 'sk-after-the-very-end' })).json.code).toBe('project_archived');
    expect((await asOwner('PATCH', `/api/projects/${id}`, { name: 'Again' })).json.code).toBe('project_archived');
    expect((await asStranger('GET', `/api/projects/${id}`)).status).toBe(404);
    const { rows } = await asUser(service.sql, stranger.userId, (tx) => tx.query<{ may: boolean }>(`SELECT keyguard.acting_has_permission('projects:write', $1) AS may`, [id]));
    expect(rows[0]!.may).toBe(false);
    expect((await asAdmin('POST', `/api/users/${member.userId}/roles`, { role_id: (await asAdmin('GET', '/api/roles')).json.data[0].id, project_id: id })).json.code).toBe('unknown_project');
    expect((await asAdmin('POST', '/api/projects/default/archive')).json.code).toBe('project_in_use');
  });

  it('are never archived with a device in them, whatever races', async () => {
    for (let round = 0; round < 5; round += 1) {
      const id = await newProject();
      const { code } = (await asOwner('POST', '/api/enrollment-codes', { project_id: id })).json;
      const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
      const [enrolled, archived] = await Promise.allSettled([client.enroll({ code }), asOwner('POST', `/api/projects/${id}/archive`)]);
      const isArchived = archived.status === 'fulfilled' && archived.value.status === 200;
      expect([enrolled.status === 'fulfilled', isArchived].filter(Boolean)).toHaveLength(1);
    }
  });

  it('belong to nobody else for a row that somebody changed', async () => {
    const id = await newProject();
    await service.asSuperuser('ALTER TABLE keyguard.api_key_projects DISABLE TRIGGER USER');
    await service.asSuperuser('UPDATE keyguard.api_key_projects SET owner_id = $2 WHERE id = $1', [id, member.userId]);
    expect((await asMember('GET', `/api/projects/${id}`)).status).toBe(503);
    expect((await asMember('POST', '/api/api-keys', { project_id: id, provider: 'openai', value: 'sk-that-listens-to-all' })).status).toBe(503);
    expect((await asMember('POST', '/api/enrollment-codes', { project_id: id })).status).toBe(503);
    await service.asSuperuser('UPDATE keyguard.api_key_projects SET owner_id = $2 WHERE id = $1', [id, owner.userId]);
    // What was archived is not opened again by who can write to the database, nor is a row without a MAC anybody's.
    await asOwner('POST', `/api/projects/${id}/archive`);
    await service.asSuperuser('UPDATE keyguard.api_key_projects SET archived_at_ms = NULL WHERE id = $1', [id]);
    expect((await asOwner('POST', '/api/enrollment-codes', { project_id: id })).status).toBe(503);
    await service.asSuperuser('UPDATE keyguard.api_key_projects SET mac = NULL, mac_key_id = NULL WHERE id = $1', [id]);
    expect((await asOwner('GET', `/api/projects/${id}`)).status).toBe(503);
    await service.asSuperuser('DELETE FROM keyguard.enrollment_codes WHERE project_id = $1', [id]);
    await service.asSuperuser('DELETE FROM keyguard.api_key_projects WHERE id = $1', [id]);
    await service.asSuperuser(`UPDATE keyguard.api_key_projects SET owner_id = $1 WHERE id = 'default'`, [member.userId]);
    expect((await asMember('GET', '/api/projects/default')).status).toBe(503);
    await service.asSuperuser(`UPDATE keyguard.api_key_projects SET owner_id = 'system' WHERE id = 'default'`);
    await service.asSuperuser('ALTER TABLE keyguard.api_key_projects ENABLE TRIGGER USER');
    expect((await asAdmin('GET', '/api/projects/default')).status).toBe(200);
  });

  it('are hidden by row-level security alone, with the keys in them', async () => {
    const id = await newProject();
    await asOwner('POST', '/api/api-keys', { project_id: id, provider: 'openai', value: 'sk-that-nobody-sees' });
    const nobody = await service.newPerson('nobody');
    const seen = await asUser(service.sql, nobody.userId, async (tx) => [
      (await tx.query('SELECT id FROM keyguard.api_key_projects')).rows,
      (await tx.query('SELECT id FROM keyguard.stored_api_keys')).rows,
      (await tx.query(`UPDATE keyguard.api_key_projects SET name = 'x' RETURNING id`)).rows,
      (await tx.query('UPDATE keyguard.stored_api_keys SET is_active = false, is_default = false, revoked_at_ms = 1 RETURNING id')).rows,
    ]);
    expect(seen).toEqual([[], [], [], []]);
    const forged = asUser(service.sql, nobody.userId, (tx) =>
      tx.query(`INSERT INTO keyguard.api_key_projects (id, owner_id, name, environment, created_at_ms) VALUES ('x', $1, 'x', 'test', 1)`, [owner.userId]),
    );
    await expect(forged).rejects.toMatchObject({ cause: { message: 'SQLSTATE 42501' } });
  });
});
