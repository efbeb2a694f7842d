/** That whoever invites gets no more by what they do at the very moment at which the invitation is accepted. */
import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { asAuth } from '../../src/db/as-user.ts';
import { lockAdministrators } from '../../src/roles/four-eyes.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { PASSWORD, startStage, type SignedIn, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 120_000 });

// For a password to be hashed, and for what comes after it to wait.
const UNDER_WAY_MS = 1500;

describe.each(backends())('an invitation that is being accepted on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;
  let ada: SignedIn;
  let bea: SignedIn;

  const call = (by: SignedIn, method: string, path: string, body?: object): Promise<CallAnswer> => stage.call(method, path, { token: by.token, ...(body !== undefined && { body }) });
  const invite = async (by: SignedIn, email: string, gives: object): Promise<{ id: string; token: string }> => (await call(by, 'POST', '/api/invitations', { email, ...gives })).json;
  const accept = (token: string, second?: string): Promise<CallAnswer> =>
    stage.call('POST', '/api/invitations/accept', { body: { token, password: PASSWORD, name: 'Puppet', ...(second !== undefined && { second_token: second }) } });

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
    ada = stage.admin;
    bea = await stage.newPerson('bea');
    await call(ada, 'PUT', `/api/users/${bea.userId}/administrator`);
  });
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  it('gives by a role no more than the role gave when it was looked at', async () => {
    const role = (await call(ada, 'POST', '/api/roles', { name: 'growing', permissions: ['audit:read'] })).json.id as string;
    const { id, token } = await invite(ada, 'reader@example.com', { role_ids: [role] });
    let answers: Promise<readonly CallAnswer[]> | undefined;
    // Whoever accepts it has looked at all, and waits.
    await asAuth(stage.sql(), async (tx) => {
      await tx.query('SELECT 1 FROM keyguard_auth.invitations WHERE id = $1 FOR UPDATE', [id]);
      const accepting = accept(token);
      await setTimeout(UNDER_WAY_MS);
      answers = Promise.all([accepting, call(ada, 'PATCH', `/api/roles/${role}`, { permissions: ['audit:read', 'secrets:reveal'] })]);
      await setTimeout(UNDER_WAY_MS);
    });
    const [accepted, changed] = await answers!;
    expect([accepted!.json.code ?? 'accepted', changed!.json.code ?? 'changed'].filter((code) => code === 'four_eyes_required')).toHaveLength(1);
  });

  it('is not accepted by a second token that was replaced while the acceptance was under way', async () => {
    const { id, token } = await invite(ada, 'late@example.com', { is_administrator: true });
    const approve = (): Promise<CallAnswer> => call(bea, 'POST', `/api/invitations/${id}/approve`);
    const second = (await approve()).json.second_token as string;
    let answers: Promise<readonly CallAnswer[]> | undefined;
    await asAuth(stage.sql(), async (tx) => {
      await lockAdministrators(tx);
      const accepting = accept(token, second);
      await setTimeout(UNDER_WAY_MS);
      answers = Promise.all([accepting, approve()]);
      await setTimeout(UNDER_WAY_MS);
    });
    const [accepted, approvedAgain] = await answers!;
    // Whichever came first: a database of one connection lets nothing come in between.
    expect([[201, 404], [403, 200]]).toContainEqual([accepted!.status, approvedAgain!.status]);
    if (accepted!.status === 403) expect([accepted!.json.code, (await accept(token, approvedAgain!.json.second_token)).status]).toEqual(['link_invalid', 201]);
    // As before: of two administrators one is the other's.
    await asAuth(stage.sql(), (tx) => tx.query('DELETE FROM keyguard.administrators WHERE user_id NOT IN ($1, $2)', [ada.userId, bea.userId]));
  });

  it('is nobody’s once who invited has given up to administer, though the acceptance had begun before', async () => {
    const { token } = await invite(bea, 'administrator@example.com', { is_administrator: true });
    let accepting: Promise<CallAnswer> | undefined;
    await asAuth(stage.sql(), async (tx) => {
      await lockAdministrators(tx);
      accepting = accept(token);
      await setTimeout(UNDER_WAY_MS);
      await tx.query('DELETE FROM keyguard.administrators WHERE user_id = $1', [bea.userId]);
    });
    expect([(await accepting!).json.code, (await stage.signIn('administrator@example.com')).status]).toEqual(['link_invalid', 401]);
    const { rows } = await asAuth(stage.sql(), (tx) => tx.query<{ user_id: string }>('SELECT user_id FROM keyguard.administrators'));
    expect(rows.map(({ user_id: userId }) => userId)).toEqual([ada.userId]);
  });
});
