/**
 * That one administrator who means ill stays one: takes no other one away, makes no second self, and becomes nobody else, while there is
 * somebody who could have been asked; and that an organisation with one administrator, or with one who is left, goes on.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { asAuth } from '../../src/db/as-user.ts';
import { bearerOf, PASSWORD, startStage, type SignedIn, type Stage } from '../people/stage.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 120_000 });

const DAY_MS = 24 * 60 * 60_000;

describe.each(backends())('one administrator on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;
  /** Means ill, and was there first. */
  let ada: SignedIn;
  let bea: SignedIn;
  let cyd: SignedIn;
  let reader: string;

  const call = (by: SignedIn, method: string, path: string, body?: object): Promise<CallAnswer> => stage.call(method, path, { token: by.token, ...(body !== undefined && { body }) });
  const make = (by: SignedIn, who: SignedIn): Promise<CallAnswer> => call(by, 'PUT', `/api/users/${who.userId}/administrator`);
  const unmake = (by: SignedIn, who: SignedIn): Promise<CallAnswer> => call(by, 'DELETE', `/api/users/${who.userId}/administrator`);
  const administers = async (who: SignedIn): Promise<boolean> => (await call(who, 'GET', '/api/users/me')).json.is_administrator;
  const entries = async (action: string): Promise<Record<string, unknown>[]> => (await stage.auditEntries()).filter((entry) => entry.action === action);
  const codeOf = ({ status, json }: CallAnswer): unknown[] => [status, json.code];
  const NOT_ALONE = [403, 'four_eyes_required'];

  /** As nobody but these administers; nothing waits. */
  async function only(...those: readonly SignedIn[]): Promise<void> {
    await asAuth(stage.sql(), async (tx) => {
      await tx.query('DELETE FROM keyguard_auth.administrator_requests');
      await tx.query('DELETE FROM keyguard.administrators WHERE user_id <> $1', [ada.userId]);
    });
    for (const [i, one] of those.filter(({ userId }) => userId !== ada.userId).entries()) {
      await make(ada, one);
      if (i > 0) await make(those[1]!, one);
    }
  }

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
    ada = stage.admin;
    [bea, cyd] = [await stage.newPerson('bea'), await stage.newPerson('cyd')];
    reader = (await call(ada, 'GET', '/api/roles?limit=200')).json.data.find(({ name }: { name: string }) => name === 'secrets_reader').id;
  });
  beforeEach(() => only(ada));
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  it('who is the only one makes a second one alone, and gives it up then', async () => {
    expect((await make(ada, bea)).json).toMatchObject({ id: bea.userId, is_administrator: true });
    expect((await unmake(bea, bea)).json).toMatchObject({ id: bea.userId, is_administrator: false });
    expect(codeOf(await unmake(ada, ada))).toEqual([409, 'last_administrator']);
  });

  it('of two neither takes the other one away nor becomes the other one, and is told the way out', async () => {
    await only(ada, bea);
    const refused = await unmake(ada, bea);
    expect([...codeOf(refused), refused.json.detail]).toEqual([...NOT_ALONE, expect.stringContaining('keyguard administrators remove')]);
    expect(codeOf(await call(ada, 'POST', `/api/users/${bea.userId}/disable`))).toEqual([409, 'illegal_transition']);
    const { token } = (await call(ada, 'POST', `/api/users/${bea.userId}/password-reset`, {})).json;
    expect(codeOf(await stage.call('POST', '/api/password-resets/accept', { body: { token, password: 'a password of Ada’s' } }))).toEqual(NOT_ALONE);
    expect([await administers(bea), (await stage.signIn(bea.email)).status]).toEqual([true, 200]);
  });

  it('of two makes a third one with the other one, however often the first has asked', async () => {
    await only(ada, bea);
    const asked = [await make(ada, cyd), await make(ada, cyd)];
    expect(asked.map(({ status, json }) => [status, json.kind, json.user_id, json.requested_by])).toEqual(Array.from({ length: 2 }, () => [202, 'make', cyd.userId, ada.userId]));
    expect(await administers(cyd)).toBe(false);
    const waiting = await call(bea, 'GET', '/api/administrator-requests');
    expect(waiting.json.data).toEqual([asked[1]!.json]);
    expect((await call(cyd, 'GET', '/api/administrator-requests')).status).toBe(403);
    expect((await make(bea, cyd)).json).toMatchObject({ id: cyd.userId, is_administrator: true });
    expect((await entries('user.make_administrator'))[0]).toMatchObject({ actor: `user:${bea.userId}`, resource: `user:${cyd.userId}`, requested_by: ada.userId });
    expect((await entries('user.request_make_administrator'))[0]).toMatchObject({ actor: `user:${ada.userId}`, outcome: 'success' });
    expect((await call(bea, 'GET', '/api/administrator-requests')).json.data).toEqual([]);
  });

  it('of three takes another one away with the third, and not with the one of whom it is', async () => {
    await only(ada, bea, cyd);
    const { json: asked } = await unmake(ada, bea);
    expect([asked.kind, asked.user_id]).toEqual(['unmake', bea.userId]);
    // Whoever it is about cannot stop it.
    expect((await call(bea, 'DELETE', `/api/administrator-requests/${asked.id}`)).status).toBe(404);
    expect(await administers(bea)).toBe(true);
    expect((await unmake(cyd, bea)).json).toMatchObject({ id: bea.userId, is_administrator: false });
  });

  it('is not two by asking a hundred times at once', async () => {
    await only(ada, bea, cyd);
    const alone = await Promise.all(Array.from({ length: 100 }, () => unmake(ada, bea)));
    expect(new Set(alone.map(({ status }) => status))).toEqual(new Set([202]));
    expect(await administers(bea)).toBe(true);
    // All at once against the other two but the first: two have asked for the one who is gone, and two are left.
    const pairs = [[ada, bea], [ada, cyd], [bea, cyd], [cyd, bea]] as const;
    const answers = await Promise.all(Array.from({ length: 80 }, (_, i) => unmake(...pairs[i % 4]!)));
    expect(answers.filter(({ status }) => status >= 400).every(({ status }) => status === 403)).toBe(true);
    const { rows } = await asAuth(stage.sql(), (tx) => tx.query<{ user_id: string }>('SELECT user_id FROM keyguard.administrators'));
    expect([rows.length, rows.some(({ user_id: id }) => id === ada.userId)]).toEqual([2, true]);
    const last = (await entries('user.unmake_administrator')).find(({ outcome }) => outcome === 'success');
    expect([last!['requested_by'], last!['resource']]).toEqual([expect.any(String), expect.not.stringContaining(String(last!['requested_by']))]);
  });

  it('is not heard any more once the word is old, taken back, or of somebody who administers no longer', async () => {
    await only(ada, bea, cyd);
    const [dan, eve] = [await stage.newPerson(`dan-${Date.now()}`), await stage.newPerson(`eve-${Date.now()}`)];
    const { json: asked } = await make(ada, dan);
    expect((await call(ada, 'DELETE', `/api/administrator-requests/${asked.id}`)).status).toBe(204);
    expect((await make(bea, dan)).status).toBe(202);
    stage.time.aheadMs += 3 * DAY_MS;
    expect((await make(ada, dan)).status).toBe(202);
    stage.time.aheadMs -= 3 * DAY_MS;
    expect((await make(cyd, eve)).status).toBe(202);
    expect((await unmake(cyd, cyd)).status).toBe(200);
    expect((await make(ada, eve)).status).toBe(202);
    expect([await administers(dan), await administers(eve)]).toEqual([false, false]);
  });

  it('is not heard any more once the person was disabled since: whoever disabled them has changed their mind', async () => {
    await only(ada, bea);
    const fay = await stage.newPerson(`fay-${Date.now()}`);
    expect((await make(bea, fay)).status).toBe(202);
    expect((await call(bea, 'POST', `/api/users/${fay.userId}/disable`)).status).toBe(200);
    expect((await call(ada, 'POST', `/api/users/${fay.userId}/enable`)).status).toBe(200);
    expect((await make(ada, fay)).status).toBe(202);
  });

  it('is no two by a row that somebody wrote into the database', async () => {
    await only(ada, bea, cyd);
    await unmake(ada, bea);
    await asAuth(stage.sql(), (tx) =>
      tx.query(
        `INSERT INTO keyguard_auth.administrator_requests SELECT 'forged', kind, subject_id, $1, requested_at_ms, expires_at_ms, mac_key_id, mac FROM keyguard_auth.administrator_requests`,
        [cyd.userId],
      ),
    );
    expect((await unmake(ada, bea)).status).toBe(503);
    expect(await administers(bea)).toBe(true);
  });

  describe('by a second self', () => {
    const invite = async (by: SignedIn, extra: object): Promise<{ id: string; token: string; email: string }> =>
      (await call(by, 'POST', '/api/invitations', { email: `puppet-${Date.now()}-${Math.floor(performance.now() * 1000)}@example.com`, ...extra })).json;
    const accept = (token: string, second?: string): Promise<CallAnswer> =>
      stage.call('POST', '/api/invitations/accept', { body: { token, password: PASSWORD, name: 'Puppet', ...(second !== undefined && { second_token: second }) } });
    const asPuppet = async (answer: CallAnswer, email: string): Promise<SignedIn> => ({ userId: answer.json.user_id, email, token: bearerOf(await stage.signIn(email)) });

    it.each([['who administers', { is_administrator: true }], ['who reads the secrets of others', 'reader']] as const)('%s: it comes in once the other one has approved, and not by the token of who made it alone', async (_who, gives) => {
      await only(ada, bea);
      const { id, token, email } = await invite(ada, gives === 'reader' ? { role_ids: [reader] } : gives);
      expect(codeOf(await accept(token))).toEqual(NOT_ALONE);
      expect((await stage.signIn(email)).status).toBe(401);
      expect(codeOf(await call(ada, 'POST', `/api/invitations/${id}/approve`))).toEqual(NOT_ALONE);
      expect((await call(cyd, 'POST', `/api/invitations/${id}/approve`)).status).toBe(403);
      const { json: approved } = await call(bea, 'POST', `/api/invitations/${id}/approve`);
      expect(approved).toMatchObject({ id, approved_by: bea.userId, second_token: expect.stringMatching(/^kga_[\w-]{43}$/) });
      expect((await entries('invitation.approve'))[0]).toMatchObject({ actor: `user:${bea.userId}`, resource: `invitation:${id}`, invited_by: ada.userId });
      // All that Ada has, after an approval in good faith.
      const alone = await accept(token);
      expect([...codeOf(alone), alone.json.detail]).toEqual([...NOT_ALONE, expect.stringContaining('second_token')]);
      expect((await stage.signIn(email)).status).toBe(401);
      expect((await accept(token, approved.second_token)).status).toBe(201);
      expect((await entries('invitation.accept'))[0]).toMatchObject({ outcome: 'success', invited_by: ada.userId, approved_by: bea.userId });
    });

    it('that was prepared while nobody else was there, and comes when somebody is', async () => {
      const { token } = await invite(ada, { is_administrator: true });
      await only(ada, bea);
      expect(codeOf(await accept(token))).toEqual(NOT_ALONE);
    });

    it('whose approval is of somebody who administers no longer, or was written into the database', async () => {
      await only(ada, bea, cyd);
      const { id, token } = await invite(ada, { is_administrator: true });
      const second = (await call(cyd, 'POST', `/api/invitations/${id}/approve`)).json.second_token as string;
      await unmake(cyd, cyd);
      expect(codeOf(await accept(token, second))).toEqual(NOT_ALONE);
      await asAuth(stage.sql(), (tx) => tx.query('UPDATE keyguard_auth.invitations SET approved_by = $2 WHERE id = $1', [id, bea.userId]));
      expect((await accept(token, second)).status).toBe(503);
    });

    it('to whom the means to read are given later, by whatever way', async () => {
      await only(ada, bea);
      const { token, email } = await invite(ada, {});
      const puppet = await asPuppet(await accept(token), email);
      const grant = (by: SignedIn, to: string, role: string): Promise<CallAnswer> => call(by, 'POST', `/api/users/${to}/roles`, { role_id: role });
      expect(codeOf(await grant(ada, puppet.userId, reader))).toEqual(NOT_ALONE);
      const robot = (await call(puppet, 'POST', '/api/service-accounts', { name: 'robot', scopes: ['secrets:reveal', 'secrets:read'] })).json.id as string;
      expect(codeOf(await grant(ada, robot, reader))).toEqual(NOT_ALONE);
      for (const [i, holder] of [puppet.userId, robot].entries()) {
        const growing = (await call(ada, 'POST', '/api/roles', { name: `growing-${i}-${Date.now()}`, permissions: ['audit:read'] })).json.id as string;
        expect((await grant(ada, holder, growing)).status).toBe(201);
        expect(codeOf(await call(ada, 'PATCH', `/api/roles/${growing}`, { permissions: ['audit:read', 'secrets:reveal'] }))).toEqual(NOT_ALONE);
      }
      // The other one may; and whom the other one has let in, this one may.
      expect((await grant(bea, puppet.userId, reader)).status).toBe(201);
      const guest = await invite(bea, {});
      const theirs = await asPuppet(await accept(guest.token), guest.email);
      expect((await grant(ada, theirs.userId, reader)).status).toBe(201);
    });

    it('is nobody’s business where one administers: whom that one has let in gets what others get', async () => {
      const { token, email } = await invite(ada, { role_ids: [reader] });
      const person = await asPuppet(await accept(token), email);
      const { json } = await call(person, 'GET', `/api/users/${person.userId}/roles`);
      expect(json.data).toEqual([expect.objectContaining({ role_id: reader })]);
      const second = await invite(ada, { is_administrator: true });
      expect((await accept(second.token)).status).toBe(201);
    });
  });
});
