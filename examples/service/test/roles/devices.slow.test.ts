/** Roles on devices: who holds one in a project sees and shuts the devices there, by both layers, and nothing beyond. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { firstAdministrator } from '../matrix/world.ts';
import { startInProcess, type Mode, type Person, type Stage } from '../matrix/stage.ts';
import type { CallAnswer } from '../stage.ts';

type Name = 'owner' | 'manager' | 'viewer' | 'everywhere' | 'elsewhere' | 'stranger';

describe('a role with devices:*', () => {
  let stage: Stage;
  let administrator: Person;
  const people = {} as Record<Name, Person>;
  const roles = new Map<string, string>();
  let project = '';
  let other = '';

  const as = (who: Person, method: string, path: string, body?: object): Promise<CallAnswer> => stage.call(method, path, { token: who.token, ...(body !== undefined && { body }) });
  const made = async (who: Person, path: string, body: object): Promise<string> => {
    const answer = await as(who, 'POST', path, body);
    expect([path, answer.status, answer.text]).toEqual([path, 201, expect.any(String)]);
    return answer.json.id as string;
  };
  const grant = (who: Person, role: string, projectId: string | null): Promise<string> =>
    made(administrator, `/api/users/${who.userId}/roles`, { role_id: roles.get(role), ...(projectId !== null && { project_id: projectId }) });

  /** A device of the owner's in the project, let in by an administrator. */
  async function newDevice(approved = true): Promise<{ id: string; client: KeyGuardClient }> {
    const { json } = await as(people.owner, 'POST', '/api/enrollment-codes', { project_id: project });
    const client = new KeyGuardClient({ origin: stage.origin, keyStore: memoryKeyStore() });
    const { deviceId } = await client.enroll({ code: json.code });
    if (approved) expect((await as(administrator, 'POST', `/api/devices/${deviceId}/approve`)).status).toBe(200);
    return { id: deviceId, client };
  }
  const move = async (who: Person, id: string, verb: string): Promise<number> => (await as(who, 'POST', `/api/devices/${id}/${verb}`)).status;
  const sees = async (who: Person, id: string): Promise<[number, boolean]> => {
    const listed = (await as(who, 'GET', '/api/devices?limit=200')).json.data as { id: string }[];
    return [(await as(who, 'GET', `/api/devices/${id}`)).status, listed.some((one) => one.id === id)];
  };

  beforeAll(async () => {
    stage = await startInProcess();
    administrator = await firstAdministrator(stage);
    for (const name of ['owner', 'manager', 'viewer', 'everywhere', 'elsewhere', 'stranger'] as const) people[name] = await stage.newPerson(name);
    for (const { id, name } of (await as(administrator, 'GET', '/api/roles?limit=200')).json.data as { id: string; name: string }[]) roles.set(name, id);
    project = await made(people.owner, '/api/projects', { name: 'Shop' });
    other = await made(people.owner, '/api/projects', { name: 'Other' });
    await grant(people.manager, 'project_manager', project);
    await grant(people.viewer, 'viewer', project);
    await grant(people.everywhere, 'project_manager', null);
    await grant(people.elsewhere, 'project_manager', other);
  }, 120_000);
  afterAll(() => stage?.stop(), 60_000);

  it('shows the devices of its project, to whoever holds it there or everywhere, and to nobody else', async () => {
    const { id } = await newDevice();
    for (const [name, seen] of [['owner', true], ['manager', true], ['viewer', true], ['everywhere', true], ['elsewhere', false], ['stranger', false]] as const) {
      expect([name, await sees(people[name], id)]).toEqual([name, seen ? [200, true] : [404, false]]);
    }
    expect((await as(people.manager, 'GET', '/api/devices')).json.data[0]).toMatchObject({ id, owner_id: people.owner.userId, intact: true });
  });

  it('lets who may write suspend, resume what they suspended, and revoke; and never approve', async () => {
    const { id, client } = await newDevice();
    expect([await move(people.viewer, id, 'suspend'), await move(people.elsewhere, id, 'suspend'), await move(people.stranger, id, 'revoke')]).toEqual([403, 404, 404]);
    expect(await move(people.manager, id, 'suspend')).toBe(200);
    await expect(client.status()).resolves.toMatchObject({ status: 'suspended' });
    // Whoever else may write there has not suspended it, and its owner has not either.
    expect([await move(people.everywhere, id, 'resume'), await move(people.owner, id, 'resume')]).toEqual([403, 403]);
    expect(await move(people.manager, id, 'resume')).toBe(200);
    expect(await move(administrator, id, 'suspend')).toBe(200);
    expect([await move(people.manager, id, 'resume'), await move(people.manager, id, 'revoke')]).toEqual([403, 200]);
    await expect(client.status()).resolves.toMatchObject({ status: 'revoked' });
    const waiting = await newDevice(false);
    expect([await move(people.manager, waiting.id, 'approve'), await move(people.owner, waiting.id, 'approve'), await move(people.everywhere, waiting.id, 'revoke')]).toEqual([403, 403, 200]);
    const { rows } = await stage.sql.query<{ action: string; outcome: string; actor: string }>(
      `SELECT action, outcome, actor FROM keyguard.secret_audit_logs WHERE actor = $1 AND action LIKE 'device.%' ORDER BY seq`, [`user:${people.manager.userId}`]);
    expect(rows.map(({ action, outcome }) => `${action} ${outcome}`)).toEqual(['device.suspend success', 'device.resume success', 'device.resume refused', 'device.revoke success', 'device.approve refused']);
  });

  it('gives nobody a code with which a device replaces its key', async () => {
    const { id } = await newDevice();
    expect((await as(people.manager, 'POST', `/api/devices/${id}/rotation-codes`, {})).status).toBe(404);
    expect((await as(people.owner, 'POST', `/api/devices/${id}/rotation-codes`, {})).status).toBe(201);
  });

  it('does not let in again what belongs to somebody who may not come in', async () => {
    const guest = await stage.newPerson('guest');
    await grant(guest, 'project_manager', project);
    const { json } = await as(guest, 'POST', '/api/enrollment-codes', { project_id: project });
    const client = new KeyGuardClient({ origin: stage.origin, keyStore: memoryKeyStore() });
    const { deviceId } = await client.enroll({ code: json.code });
    expect([await move(administrator, deviceId, 'approve'), await move(people.manager, deviceId, 'suspend')]).toEqual([200, 200]);
    expect((await as(administrator, 'POST', `/api/users/${guest.userId}/disable`, {})).status).toBe(200);
    expect(await move(people.manager, deviceId, 'resume')).toBe(409);
  });

  it('ends with the assignment, and grants nothing where that was changed in the database', async () => {
    const { id } = await newDevice();
    const guest = await stage.newPerson('guest');
    const assignment = await grant(guest, 'project_manager', other);
    expect(await sees(guest, id)).toEqual([404, false]);
    await stage.sql.transaction(async (tx) => {
      await tx.query("SET LOCAL session_replication_role = 'replica'");
      await tx.query('UPDATE keyguard.secret_user_roles SET project_id = $2 WHERE id = $1', [assignment, project]);
    });
    expect([(await as(guest, 'GET', `/api/devices/${id}`)).status, await move(guest, id, 'revoke')]).toEqual([503, 503]);
    await stage.sql.query('DELETE FROM keyguard.secret_user_roles WHERE id = $1', [assignment]);
    expect(await sees(guest, id)).toEqual([404, false]);
  });

  it.each<Mode>(['without row-level security', 'without the application’s check'])('holds %s', async (mode) => {
    const { id } = await newDevice();
    await stage.take(mode);
    try {
      for (const name of ['elsewhere', 'stranger'] as const) {
        expect([name, await sees(people[name], id), await move(people[name], id, 'suspend')]).toEqual([name, [404, false], 404]);
      }
      expect(await move(people.viewer, id, 'suspend')).toBeGreaterThanOrEqual(400);
      expect([await sees(people.manager, id), await move(people.manager, id, 'suspend')]).toEqual([[200, true], 200]);
      const code = await as(people.manager, 'POST', `/api/devices/${id}/rotation-codes`, {});
      expect(code.status).toBe(404);
    } finally {
      await stage.take('as it is');
    }
  });
});
