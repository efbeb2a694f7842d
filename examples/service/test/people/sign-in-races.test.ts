/** That no sign-in that was under way outlives what takes its ground away: a new password, and the person's being shut out. */
import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { asAuth } from '../../src/db/as-user.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { PASSWORD, startStage, type SignedIn, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 60_000 });

const ROUNDS = 4;
const AT_ONCE = 6;

describe.each(backends())('a sign-in on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
  });
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  const end: readonly (readonly [string, (who: SignedIn) => Promise<CallAnswer>])[] = [
    ['the password is changed', ({ token }) => stage.call('POST', '/api/auth/change-password', { token, body: { current_password: PASSWORD, new_password: 'another long password' } })],
    [
      'the password is reset',
      async ({ userId }) => {
        const { token } = (await stage.call('POST', `/api/users/${userId}/password-reset`, { token: stage.admin.token, body: {} })).json;
        return stage.call('POST', '/api/password-resets/accept', { body: { token, password: 'another long password' } });
      },
    ],
    ['the person is disabled', ({ userId }) => stage.call('POST', `/api/users/${userId}/disable`, { token: stage.admin.token })],
  ];

  it.each(end)('opens nothing once %s meanwhile', async (what, ends) => {
    for (let round = 0; round < ROUNDS; round += 1) {
      const who = await stage.newPerson(`p${round}-${end.findIndex(([name]) => name === what)}`);
      await stage.forgetAddresses();
      const signingIn = Array.from({ length: AT_ONCE }, () => stage.call('POST', '/api/auth/sign-in/email', { body: { email: who.email, password: PASSWORD } }));
      const ended = await ends(who);
      expect([ended.status, ended.text]).toEqual([expect.any(Number), expect.any(String)]);
      expect(ended.status).toBeLessThan(300);
      const answers = await Promise.all(signingIn);
      const tokens = answers.flatMap(({ headers }) => headers.get('set-auth-token') ?? []);
      const alive = await Promise.all(tokens.map((token) => stage.call('GET', '/api/users/me', { token })));
      expect([round, alive.filter(({ status }) => status === 200).length]).toEqual([round, 0]);
    }
  });

  it('is with the password of a reset, whatever whoever knew the old one was changing meanwhile', async () => {
    for (let round = 0; round < ROUNDS; round += 1) {
      const who = await stage.newPerson(`r${round}`);
      const { token } = (await stage.call('POST', `/api/users/${who.userId}/password-reset`, { token: stage.admin.token, body: {} })).json;
      await stage.forgetAddresses();
      const resetting = stage.call('POST', '/api/password-resets/accept', { body: { token, password: 'another long password' } });
      const changing = Array.from({ length: 3 }, () =>
        stage.call('POST', '/api/auth/change-password', { token: who.token, body: { current_password: PASSWORD, new_password: 'the thief has this one' } }),
      );
      expect((await resetting).status).toBe(204);
      const changed = await Promise.all(changing);
      // One of them at most: each ends the session of all others.
      expect(changed.filter(({ status }) => status === 200).length).toBeLessThan(2);
      const tokens = changed.flatMap(({ headers }) => headers.get('set-auth-token') ?? []);
      const alive = await Promise.all(tokens.map((one) => stage.call('GET', '/api/users/me', { token: one })));
      expect(alive.filter(({ status }) => status === 200)).toEqual([]);
      expect([(await stage.signIn(who.email, 'the thief has this one')).status, (await stage.signIn(who.email, 'another long password')).status]).toEqual([401, 200]);
    }
  });

  it('opens nothing once a person is enabled again, where its session was kept just as the person was disabled', async () => {
    const who = await stage.newPerson('late');
    const asAdmin = (path: string): Promise<CallAnswer> => stage.call('POST', `/api/users/${who.userId}/${path}`, { token: stage.admin.token });
    const me = (): Promise<CallAnswer> => stage.call('GET', '/api/users/me', { token: who.token });
    let disabling: Promise<CallAnswer> | undefined;
    // Whoever ends the sessions that there are does not see one that is not kept yet.
    await asAuth(stage.sql(), async (tx) => {
      const { rows } = await tx.query<Record<string, unknown>>('DELETE FROM keyguard_auth.sessions WHERE user_id = $1 RETURNING *', [who.userId]);
      const [columns, values] = [Object.keys(rows[0]!), Object.values(rows[0]!)];
      await tx.query(`INSERT INTO keyguard_auth.sessions (${columns.join(', ')}) VALUES (${columns.map((_, i) => `$${i + 1}`).join(', ')})`, values);
      disabling = asAdmin('disable');
      await setTimeout(1000);
    });
    expect([(await disabling!).status, (await me()).status]).toEqual([200, 401]);
    expect([(await asAdmin('enable')).status, (await me()).status]).toEqual([200, 401]);
  });
});
