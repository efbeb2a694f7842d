/** Coming in by invitation, and a new password by a link: one winner each, and only what was given by who may give it. */
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { createInvitations } from '../../src/auth/invitations.ts';
import { createPasswordResets } from '../../src/auth/password-resets.ts';
import type { AuditLog } from '../../src/audit/log.ts';
import { asAuth, asUser } from '../../src/db/as-user.ts';
import { openDeploymentKeys, type DeploymentKeys } from '../../src/keys/hierarchy.ts';
import { postgresKeyRecords } from '@keyguard/storage-node/postgres';
import { join } from 'node:path';
import { createAttempts } from '../../src/auth/attempts.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { bearerOf, PASSWORD, setUpFactor, startStage, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe.each(backends())('invitations on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;
  let keys: DeploymentKeys;
  const tokens: string[] = [];

  const invite = async (body: object, token = stage.admin.token): Promise<CallAnswer> => {
    const answer = await stage.call('POST', '/api/invitations', { token, body });
    if (answer.status === 201) tokens.push(answer.json.token);
    return answer;
  };
  const accept = (token: string, body: object = {}): Promise<CallAnswer> =>
    stage.call('POST', '/api/invitations/accept', { body: { token, password: PASSWORD, name: 'A guest', ...body } });
  const roles = async (): Promise<{ id: string; name: string }[]> =>
    asUser(stage.sql(), stage.admin.userId, async (tx) => (await tx.query<{ id: string; name: string }>('SELECT id, name FROM keyguard.secret_roles ORDER BY name')).rows);
  const quiet = { record: async () => {}, recordIn: async () => {}, recordAsIs: async () => {} } as unknown as AuditLog;

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
    keys = await openDeploymentKeys(postgresKeyRecords(stage.sql()), { kind: 'file', path: join(stage.deployment.folder, 'data/root.key') });
  });
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  it('let in who holds the token, under the address and with the roles that were given', async () => {
    const [role] = await roles();
    const invited = await invite({ email: 'Ada@Example.com', role_ids: [role!.id], expires_in_s: 3600 });
    expect([invited.status, invited.json]).toEqual([201, expect.objectContaining({
      email: 'ada@example.com', role_ids: [role!.id], is_administrator: false, accepted_at: null, token: expect.stringMatching(/^kgi_[\w-]{43}$/),
    })]);
    for (const extra of [{ email: 'other@example.com' }, { role_ids: [] }, { is_administrator: true }]) expect((await accept(invited.json.token, extra)).status).toBe(400);
    expect((await accept(invited.json.token, { password: 'short' })).status).toBe(400);
    const came = await accept(invited.json.token);
    expect([came.status, came.json]).toEqual([201, { user_id: expect.any(String), email: 'ada@example.com' }]);
    const signedIn = await stage.signIn('ada@example.com');
    expect(signedIn.json.user).toEqual({ id: came.json.user_id, email: 'ada@example.com', name: 'A guest' });
    const { rows } = await asUser(stage.sql(), came.json.user_id, (tx) => tx.query('SELECT role_id, granted_by, project_id FROM keyguard.secret_user_roles'));
    expect(rows).toEqual([{ role_id: role!.id, granted_by: stage.admin.userId, project_id: null }]);
    expect((await invite({ email: 'nobody@example.com' }, bearerOf(signedIn))).status).toBe(403);
    expect((await accept(invited.json.token)).json.code).toBe('link_invalid');
    expect((await invite({ email: 'ada@example.com' })).json.code).toBe('account_exists');
    const [listed] = (await stage.call('GET', '/api/invitations', { token: stage.admin.token })).json.data;
    expect(listed).toMatchObject({ email: 'ada@example.com', accepted_user_id: came.json.user_id });
    expect(listed.token).toBeUndefined();
  });

  it('can make administrators, and refuse roles that are not there', async () => {
    expect((await invite({ email: 'x@example.com', role_ids: ['00000000-0000-4000-8000-000000000000'] })).status).toBe(400);
    const { json } = await invite({ email: 'grace@example.com', is_administrator: true });
    expect((await accept(json.token)).status).toBe(201);
    const grace = bearerOf(await stage.signIn('grace@example.com'));
    expect((await stage.call('GET', '/api/invitations', { token: grace })).status).toBe(200);
  });

  it('have one winner among a hundred who accept at once', async () => {
    const { json } = await invite({ email: 'race@example.com' });
    // Beside the limit of addresses and the line before the key derivation, which would let few come so far.
    const invitations = createInvitations({ sql: stage.sql(), keys, audit: quiet, clock: stage.time });
    const answers: string[] = [];
    for (let round = 0; round < 4; round += 1) {
      const settled = await Promise.allSettled(Array.from({ length: 25 }, (_, i) => invitations.accept(json.token, null, { password: PASSWORD, name: `Number ${i}` })));
      answers.push(...settled.map((one) => (one.status === 'fulfilled' ? 'won' : (one.reason as { code: string }).code)));
    }
    expect(answers.filter((answer) => answer === 'won')).toHaveLength(1);
    expect(new Set(answers)).toEqual(new Set(['won', 'link_invalid']));
    const { rows } = await asAuth(stage.sql(), (tx) => tx.query(`SELECT 1 FROM keyguard_auth.users WHERE email = 'race@example.com'`));
    expect(rows).toHaveLength(1);
  });

  it('are worth nothing when they were revoked, have expired, or whoever invited administers no longer', async () => {
    const revoked = await invite({ email: 'revoked@example.com' });
    const path = `/api/invitations/${revoked.json.id}/revoke`;
    expect((await stage.call('POST', path, { token: stage.admin.token })).json.revoked_at).toEqual(expect.any(String));
    expect((await stage.call('POST', path, { token: stage.admin.token })).status).toBe(404);
    const expired = await invite({ email: 'expired@example.com', expires_in_s: 60 });
    stage.time.aheadMs += 61_000;
    const grace = bearerOf(await stage.signIn('grace@example.com'));
    const orphaned = await invite({ email: 'orphaned@example.com', is_administrator: true }, grace);
    await asAuth(stage.sql(), (tx) => tx.query(`DELETE FROM keyguard.administrators a USING keyguard_auth.users u WHERE u.id = a.user_id AND u.email = 'grace@example.com'`));
    const refused = await Promise.all([revoked.json.token, expired.json.token, orphaned.json.token, `kgi_${'A'.repeat(43)}`, 'nothing'].map((token) => accept(token)));
    expect(refused.map(({ status, json }) => [status, json.code])).toEqual(refused.map(() => [403, 'link_invalid']));
    expect(new Set(refused.map(({ json }) => json.detail)).size).toBe(1);
  });

  it('give a writer of the database nothing', async () => {
    const { json } = await invite({ email: 'eve@example.com' });
    const change = (set: string): Promise<unknown> => asAuth(stage.sql(), (tx) => tx.query(`UPDATE keyguard_auth.invitations SET ${set} WHERE id = $1`, [json.id]));
    // The role of sign-in may not, and whoever is above it cannot make the MAC.
    for (const set of ['is_administrator = true', `email = 'admin@example.com'`, 'expires_at_ms = expires_at_ms + 1']) await expect(change(set)).rejects.toMatchObject({ name: 'UnavailableError' });
    await asAuth(stage.sql(), async (tx) => {
      await tx.query(
        `INSERT INTO keyguard_auth.invitations (id, token_hash, email, role_ids, is_administrator, invited_by, created_at_ms, expires_at_ms, mac_key_id, mac)
          SELECT 'forged', repeat('A', 43), email, role_ids, true, invited_by, created_at_ms, expires_at_ms, mac_key_id, mac FROM keyguard_auth.invitations WHERE id = $1`, [json.id]);
      await tx.query('DELETE FROM keyguard_auth.invitations WHERE id = $1', [json.id]);
      const { rows } = await tx.query<{ hash: string }>('SELECT token_hash AS hash FROM keyguard_auth.invitations');
      expect(rows.some(({ hash }) => tokens.some((token) => hash.includes(token)))).toBe(false);
    });
    const forged = createInvitations({ sql: stage.sql(), keys: { ...keys, hashToken: () => 'A'.repeat(43) }, audit: quiet, clock: stage.time });
    await expect(forged.accept(json.token, null, { password: PASSWORD, name: 'Eve' })).rejects.toMatchObject({ name: 'UnavailableError' });
    await expect(asAuth(stage.sql(), (tx) => tx.query(`UPDATE keyguard_auth.invitations SET accepted_at_ms = NULL, accepted_user_id = NULL WHERE accepted_at_ms IS NOT NULL`))).rejects.toMatchObject({ name: 'UnavailableError' });
  });

  describe('a new password by a link', () => {
    const reset = (userId: string): Promise<CallAnswer> => stage.call('POST', `/api/users/${userId}/password-reset`, { token: stage.admin.token, body: {} });

    it('is set once, ends all sessions, and leaves the second factor where it is', async () => {
      const bob = await stage.newPerson('bob');
      await setUpFactor(stage, bob.token);
      for (let i = 0; i < 6; i += 1) await stage.signIn(bob.email, 'not the password at all');
      const first = await reset(bob.userId);
      const { status, json } = await reset(bob.userId);
      tokens.push(first.json.token, json.token);
      expect([first.status, status, json.token]).toEqual([201, 201, expect.stringMatching(/^kgr_[\w-]{43}$/)]);
      const use = (token: string, password: string): Promise<CallAnswer> => stage.call('POST', '/api/password-resets/accept', { body: { token, password } });
      expect((await use(first.json.token, 'quite another password')).json.code).toBe('link_invalid');
      expect((await use(json.token, 'short')).status).toBe(400);
      expect((await use(json.token, 'quite another password')).status).toBe(204);
      expect((await use(json.token, 'and one more password')).json.code).toBe('link_invalid');
      expect((await stage.call('GET', '/api/auth/get-session', { token: bob.token })).status).toBe(401);
      expect((await stage.signIn(bob.email)).status).toBe(401);
      expect((await stage.signIn(bob.email, 'quite another password')).json.second_factor).toBe('required');
      expect((await reset(stage.admin.userId)).status).toBe(403);
      expect((await reset('nobody')).status).toBe(404);
    });

    it('has one winner among many, and is under a MAC', async () => {
      const carol = await stage.newPerson('carol');
      const { json } = await reset(carol.userId);
      const attempts = createAttempts({ sql: stage.sql(), hash: keys.hashToken, clock: stage.time });
      const resets = createPasswordResets({ sql: stage.sql(), keys, audit: quiet, attempts, clock: stage.time });
      const settled = await Promise.allSettled(Array.from({ length: 25 }, (_, i) => resets.accept(json.token, null, `the password number ${i}`)));
      expect(settled.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
      const again = await reset(carol.userId);
      await asAuth(stage.sql(), async (tx) => {
        await tx.query(
          `INSERT INTO keyguard_auth.password_resets (id, token_hash, user_id, created_by, created_at_ms, expires_at_ms, mac_key_id, mac)
            SELECT 'forged', repeat('B', 43), $1, created_by, created_at_ms, expires_at_ms, mac_key_id, mac FROM keyguard_auth.password_resets WHERE user_id = $2 AND used_at_ms IS NULL`,
          [stage.admin.userId, carol.userId]);
      });
      const forged = createPasswordResets({ sql: stage.sql(), keys: { ...keys, hashToken: () => 'B'.repeat(43) }, audit: quiet, attempts, clock: stage.time });
      await expect(forged.accept(again.json.token, null, 'a password of the forger')).rejects.toMatchObject({ name: 'UnavailableError' });
    });
  });

  describe('a new password where there are two administrators', () => {
    it('takes a token of each, for the same person, while both administer', async () => {
      const [dave, erin, frank] = [await stage.newPerson('dave'), await stage.newPerson('erin'), await stage.newPerson('frank')];
      expect((await stage.call('PUT', `/api/users/${erin.userId}/administrator`, { token: stage.admin.token })).status).toBeLessThan(300);
      const make = async (userId: string, by: { readonly token: string }): Promise<string> => {
        const { status, json } = await stage.call('POST', `/api/users/${userId}/password-reset`, { token: by.token, body: {} });
        expect(status).toBe(201);
        tokens.push(json.token);
        return json.token as string;
      };
      const use = (token: string, second?: string): Promise<CallAnswer> =>
        stage.call('POST', '/api/password-resets/accept', { body: { token, password: 'quite another password', ...(second !== undefined && { second_token: second }) } });

      const [one, two] = [await make(dave.userId, stage.admin), await make(dave.userId, erin)];
      expect((await use(one)).json.code).toBe('four_eyes_required');
      expect((await use(one, one)).json.code).toBe('link_invalid');
      expect((await use(one, await make(frank.userId, erin))).json.code).toBe('link_invalid');
      expect((await use(one, `kgr_${'A'.repeat(43)}`)).json.code).toBe('link_invalid');
      expect((await use(two, one)).status).toBe(204);
      expect((await use(one, two)).json.code).toBe('link_invalid');
      expect((await stage.signIn(dave.email, 'quite another password')).status).toBe(200);

      // Of two, none becomes the other one; nor anybody else, by taking the other one away.
      const herOwn = await make(erin.userId, stage.admin);
      expect((await use(herOwn)).json.code).toBe('four_eyes_required');
      const late = await make(frank.userId, stage.admin);
      expect((await stage.call('DELETE', `/api/users/${erin.userId}/administrator`, { token: stage.admin.token })).json.code).toBe('four_eyes_required');
      expect((await use(late)).json.code).toBe('four_eyes_required');
      // Who is the only one, because the other gave it up, has nobody to ask.
      expect((await stage.call('DELETE', `/api/users/${erin.userId}/administrator`, { token: erin.token })).status).toBe(200);
      expect((await use(late)).status).toBe(204);
    });
  });

  it('leave a trace without tokens and addresses', async () => {
    const entries = await stage.auditEntries();
    const done = new Set(entries.filter(({ outcome }) => outcome === 'success').map(({ action }) => action));
    for (const action of ['invitation.create', 'invitation.accept', 'invitation.revoke', 'password_reset.create', 'password_reset.accept']) expect(done).toContain(action);
    expect(entries.some(({ action, outcome }) => action === 'invitation.accept' && outcome === 'refused')).toBe(true);
    const text = JSON.stringify(entries);
    for (const secret of [...tokens, PASSWORD, '@example.com']) expect(text).not.toContain(secret);
  });
});
