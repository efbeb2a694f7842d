/** What ends with a change of how somebody is known, and with a sign-out: the cookie, the bearer and every JWT of the session. */
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { codeOfStep, stepAt } from '../../src/auth/totp.ts';
import { bearerOf, fromBase32, PASSWORD, setUpFactor, startStage, type Authenticator, type SignedIn, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

/** Everything by which one session is known. */
interface Known {
  readonly id: string;
  readonly bearer: string;
  readonly cookie: string;
  readonly jwt: string;
}

describe.each(backends())('a session on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;
  let ada: SignedIn;
  let factor: Authenticator;

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
    ada = await stage.newPerson('ada');
  });
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  const cookieOf = (answer: CallAnswer): string => /keyguard\.session_token=[^;]+/.exec(answer.headers.get('set-cookie') ?? '')![0];

  async function known(answer: CallAnswer): Promise<Known> {
    const bearer = answer.headers.get('set-auth-token')!;
    const { json } = await stage.call('GET', '/api/auth/get-session', { token: bearer });
    const { token: jwt } = (await stage.call('GET', '/api/auth/token', { token: bearer })).json;
    return { id: json.session.id, bearer, cookie: cookieOf(answer), jwt };
  }

  async function statusesOf({ bearer, cookie, jwt }: Known): Promise<number[]> {
    const ways = [{ token: bearer }, { headers: { cookie } }, { token: jwt }];
    return Promise.all(ways.map(async (way) => (await stage.call('GET', '/api/users/me', way)).status));
  }

  const newest = async (action: string): Promise<Record<string, unknown> | undefined> => (await stage.auditEntries()).find((entry) => entry.action === action);

  const ENDED = [401, 401, 401];
  const LIVES = [200, 200, 200];

  it('is another one once a second factor was activated, and all others of the person end', async () => {
    const [here, there] = [await known(await stage.signIn(ada.email)), await known(await stage.signIn(ada.email))];
    expect([await statusesOf(here), await statusesOf(there)]).toEqual([LIVES, LIVES]);
    const bystander = await known(await stage.signIn(stage.admin.email));
    const begun = await stage.call('POST', '/api/auth/second-factor', { token: here.bearer, body: { password: PASSWORD } });
    expect(begun.status).toBe(201);
    factor = await setUpFactor(stage, here.bearer);
    expect([await statusesOf(here), await statusesOf(there), await statusesOf(bystander)]).toEqual([ENDED, ENDED, LIVES]);
    const now = (await stage.call('GET', '/api/auth/get-session', { token: factor.token })).json.session;
    expect(now.id).not.toBe(here.id);
    expect((await stage.call('GET', '/api/auth/second-factor', { token: factor.token })).json).toMatchObject({ is_set_up: true, proven_at: expect.any(String) });
    expect(await newest('second_factor.activate')).toMatchObject({ actor: `user:${ada.userId}`, session_id: here.id, new_session_id: now.id, sessions_ended: 2 });
  });

  it('lives no longer than it would have, whatever was activated in it', async () => {
    const eve = await stage.newPerson('eve');
    const endOf = async (token: string): Promise<string> => (await stage.call('GET', '/api/sessions', { token })).json.data.find((one: { is_current: boolean }) => one.is_current).ends_at;
    const before = await endOf(eve.token);
    const { token } = await setUpFactor(stage, eve.token);
    expect(await endOf(token)).toBe(before);
  });

  it('is one of twenty that activate the same factor at once', async () => {
    const carl = await stage.newPerson('carl');
    const begun = await stage.call('POST', '/api/auth/second-factor', { token: carl.token, body: { password: PASSWORD } });
    const code = codeOfStep(fromBase32(begun.json.secret), stepAt(stage.time.nowMs()));
    const answers = await Promise.all(Array.from({ length: 20 }, () => stage.call('POST', '/api/auth/second-factor/activate', { token: carl.token, body: { code } })));
    const made = answers.filter(({ status }) => status === 200);
    expect(made).toHaveLength(1);
    expect(answers.every(({ status, headers }) => (status === 200) === headers.has('set-auth-token'))).toBe(true);
    expect((await stage.call('GET', '/api/sessions', { token: bearerOf(made[0]!) })).json.data).toHaveLength(1);
  });

  it('is not made of a JWT: whoever has no more than that activates and removes nothing', async () => {
    const mallory = await stage.newPerson('mallory');
    const { token: jwt } = (await stage.call('GET', '/api/auth/token', { token: mallory.token })).json;
    expect((await stage.call('POST', '/api/auth/second-factor', { token: jwt, body: { password: PASSWORD } })).status).toBe(201);
    for (const [path, body] of [['activate', { code: '123456' }], ['disable', { password: PASSWORD, code: '123456' }]] as const) {
      const refused = await stage.call('POST', `/api/auth/second-factor/${path}`, { token: jwt, body });
      expect([refused.status, refused.json.code, refused.headers.get('set-auth-token')]).toEqual([401, 'not_authenticated', null]);
    }
    expect((await stage.call('GET', '/api/auth/second-factor', { token: mallory.token })).json).toMatchObject({ is_set_up: false, is_pending: true });
  });

  it('is another one once the factor was removed, and knows no proof of it', async () => {
    const half = bearerOf(await stage.signIn(ada.email));
    const whole = await stage.call('POST', '/api/auth/step-up', { token: half, body: { code: factor.next() } });
    const here = await known(whole);
    const removed = await stage.call('POST', '/api/auth/second-factor/disable', { token: here.bearer, body: { password: PASSWORD, code: factor.next() } });
    expect([removed.status, removed.text]).toEqual([204, '']);
    const now = await known(removed);
    expect([await statusesOf(here), await statusesOf(now)]).toEqual([ENDED, LIVES]);
    expect((await stage.call('GET', '/api/users/me', { token: factor.token })).status).toBe(401);
    expect((await stage.call('GET', '/api/auth/second-factor', { token: now.bearer })).json).toMatchObject({ is_set_up: false, proven_at: null });
    expect(await newest('second_factor.disable')).toMatchObject({ session_id: here.id, new_session_id: now.id, sessions_ended: 1 });
  });

  it('is another one once the password was changed, and all others of the person end', async () => {
    const [here, there] = [await known(await stage.signIn(ada.email)), await known(await stage.signIn(ada.email))];
    const changed = await stage.call('POST', '/api/auth/change-password', { token: here.bearer, body: { current_password: PASSWORD, new_password: PASSWORD } });
    expect(changed.status).toBe(200);
    const now = await known(changed);
    expect([await statusesOf(here), await statusesOf(there), await statusesOf(now)]).toEqual([ENDED, ENDED, LIVES]);
  });

  it('is half a sign-in once the password of somebody with a second factor was changed', async () => {
    const bob = await stage.newPerson('bob');
    const { token } = await setUpFactor(stage, bob.token);
    const changed = await stage.call('POST', '/api/auth/change-password', { token, body: { current_password: PASSWORD, new_password: PASSWORD } });
    const now = bearerOf(changed);
    expect((await stage.call('GET', '/api/users/me', { token })).status).toBe(401);
    expect((await stage.call('GET', '/api/users/me', { token: now })).json.code).toBe('second_factor_required');
  });

  it.each(['bearer', 'cookie', 'jwt'] as const)('ends by its %s, whole, and on record', async (by) => {
    const [here, there] = [await known(await stage.signIn(ada.email)), await known(await stage.signIn(ada.email))];
    const way = by === 'cookie' ? { headers: { cookie: here.cookie, origin: stage.origin() } } : { token: here[by] };
    expect((await stage.call('POST', '/api/auth/sign-out', way)).status).toBe(200);
    expect([await statusesOf(here), await statusesOf(there)]).toEqual([ENDED, LIVES]);
    expect(await newest('auth.sign_out')).toMatchObject({ outcome: 'success', actor: `user:${ada.userId}`, resource: `session:${here.id}`, session_id: here.id });
  });

  it('is not said to have ended to whom nothing was ended for', async () => {
    const here = await known(await stage.signIn(ada.email));
    const [head, body, signature] = here.jwt.split('.') as [string, string, string];
    const forged = `${head}.${body}.${signature.startsWith('A') ? 'B' : 'A'}${signature.slice(1)}`;
    for (const token of [forged, 'nothing', `${here.bearer}x`]) {
      const refused = await stage.call('POST', '/api/auth/sign-out', { token });
      expect([refused.status, refused.json.code]).toEqual([401, 'not_authenticated']);
    }
    expect(await statusesOf(here)).toEqual(LIVES);
    // Nor by a JWT whose session has ended before.
    const gone = await known(await stage.signIn(ada.email));
    const answers = [await stage.call('POST', '/api/auth/sign-out', { token: gone.bearer }), await stage.call('POST', '/api/auth/sign-out', { token: gone.jwt })];
    expect(answers.map(({ status }) => status)).toEqual([200, 401]);
    // A browser forgets a cookie that is worth nothing all the same.
    const forgets = await stage.call('POST', '/api/auth/sign-out', { headers: { cookie: 'keyguard.session_token=nothing', origin: stage.origin() } });
    expect([forgets.status, forgets.headers.get('set-cookie')]).toEqual([200, expect.stringContaining('Max-Age=0')]);
  });
});
