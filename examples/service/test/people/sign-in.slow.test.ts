/** Signing in and being signed in: what guessing costs and whom, and which sessions there are and how they end. */
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { createAttempts } from '../../src/auth/attempts.ts';
import { DEFAULT_SIGN_IN_POLICY } from '../../src/auth/policy.ts';
import { asAuth } from '../../src/db/as-user.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { bearerOf, PASSWORD, startStage, type SignedIn, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const WRONG = 'not the password at all';

describe.each(backends())('signing in on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;
  let ada: SignedIn;

  const without = ({ json }: CallAnswer): object => ({ ...json, request_id: '' });
  const unlockAll = (): Promise<unknown> => asAuth(stage.sql(), (tx) => tx.query('DELETE FROM keyguard_auth.sign_in_attempts'));
  /** Tries of one address are limited as well; what is counted here is by account. */
  const guess = async (email: string, times: number, headers = {}): Promise<CallAnswer[]> => {
    const answers = [];
    for (let i = 0; i < times; i += 1) answers.push(await stage.signIn(email, WRONG, headers));
    return answers;
  };

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
    ada = await stage.newPerson('ada');
  });
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  describe('an account at which somebody guesses', () => {
    it('is locked after five tries, and longer each time, and after a restart still', async () => {
      expect((await guess(ada.email, 5)).map(({ status }) => status)).toEqual([401, 401, 401, 401, 401]);
      const locked = await stage.signIn(ada.email);
      expect([locked.status, locked.json.code]).toEqual([429, 'rate_limited']);
      await stage.restart();
      const still = await stage.signIn(ada.email);
      const waits = Number(still.headers.get('retry-after'));
      expect([still.status, waits > 20 && waits <= 60]).toEqual([429, true]);
      stage.time.aheadMs += 61_000;
      expect((await stage.signIn(ada.email, WRONG)).status).toBe(401);
      const longer = await stage.signIn(ada.email);
      expect([longer.status, Number(longer.headers.get('retry-after')) > 60]).toEqual([429, true]);
      stage.time.aheadMs += 121_000;
      expect((await stage.signIn(ada.email)).status).toBe(200);
      // What was counted is forgotten with a sign-in.
      expect((await guess(ada.email, 4)).map(({ status }) => status)).toEqual([401, 401, 401, 401]);
      expect((await stage.signIn(ada.email)).status).toBe(200);
    });

    it('tells nothing of whether it exists', async () => {
      const there = [...(await guess(ada.email, 6)), await stage.signIn(ada.email.toUpperCase())];
      const nobody = [...(await guess('nobody@example.com', 6)), await stage.signIn('NOBODY@example.com')];
      expect(there.map(({ status }) => status)).toEqual([401, 401, 401, 401, 401, 429, 429]);
      expect(nobody.map(({ status }) => status)).toEqual(there.map(({ status }) => status));
      expect(nobody.map(without)).toEqual(there.map(without));
      expect(nobody.map(({ headers }) => headers.getSetCookie().length)).toEqual(there.map(({ headers }) => headers.getSetCookie().length));
      await unlockAll();
    });

    it('takes no more guesses at once than one after the other', async () => {
      const attempts = createAttempts({ sql: stage.sql(), hash: (text) => Buffer.from(text).toString('base64url').padEnd(43, 'A').slice(-43), clock: stage.time });
      const claims = await Promise.all(Array.from({ length: 100 }, () => attempts.claim({ account: 'account-of-a-hundred-guesses', of: 'password' })));
      expect(claims.filter(({ isAllowed }) => isAllowed)).toHaveLength(5);
      expect(claims.filter(({ hasLocked }) => hasLocked)).toHaveLength(1);
      await unlockAll();
    });

    it('counts a try although what it belonged to was rolled back, and none that was never judged', async () => {
      const attempts = createAttempts({ sql: stage.sql(), hash: (text) => Buffer.from(text).toString('base64url').padEnd(43, 'B').slice(-43), clock: stage.time });
      const counter = { account: 'rolled-back-account-with-a-long-name', of: 'password' };
      for (let i = 0; i < 5; i += 1) {
        await attempts.claim(counter);
        await asAuth(stage.sql(), async (tx) => {
          await attempts.succeeded(counter, tx);
          throw new Error('rolled back');
        }).catch(() => {});
      }
      const locked = await attempts.claim(counter);
      expect(locked.isAllowed).toBe(false);
      expect(await attempts.unlock(counter.account)).toBe(true);
      for (let i = 0; i < 20; i += 1) await attempts.giveBack(counter, await attempts.claim(counter));
      expect((await attempts.claim(counter)).isAllowed).toBe(true);
      await unlockAll();
    });

    it('is not shut to its owner in a browser that it knows, which cannot guess without end either', async () => {
      const known = (await stage.signIn(ada.email)).headers.getSetCookie().find((cookie) => cookie.startsWith('keyguard.known_browser='))!;
      const headers = { cookie: known.split(';')[0]!, origin: stage.origin() };
      await guess(ada.email, 6);
      expect((await stage.signIn(ada.email)).status).toBe(429);
      const own = await stage.signIn(ada.email, PASSWORD, headers);
      expect([own.status, own.headers.getSetCookie().length]).toEqual([200, 1]);
      expect((await guess(ada.email, 6, headers)).map(({ status }) => status)).toEqual([401, 401, 401, 401, 401, 429]);
      // The cookie is of this account alone, and of nobody who makes one up.
      const forged = headers.cookie.replace(/.{3}$/, 'AAA');
      for (const cookie of [forged, 'keyguard.known_browser=x.y', `a=b; ${forged}`]) expect((await stage.signIn(ada.email, PASSWORD, { ...headers, cookie })).status).toBe(429);
      await guess('nobody@example.com', 5);
      expect((await stage.signIn('nobody@example.com', PASSWORD, headers)).status).toBe(429);
      await unlockAll();
    });

    it('is opened again by an administrator, and leaves a trace of all of it', async () => {
      await guess(ada.email, 6);
      expect((await stage.call('POST', `/api/users/${ada.userId}/unlock`, { token: ada.token })).status).toBe(403);
      expect((await stage.call('POST', '/api/users/nobody/unlock', { token: stage.admin.token })).status).toBe(404);
      expect((await stage.call('POST', `/api/users/${ada.userId}/unlock`, { token: stage.admin.token })).status).toBe(204);
      expect((await stage.signIn(ada.email)).status).toBe(200);
      const entries = await stage.auditEntries();
      expect(entries.some(({ action, resource }) => action === 'auth.unlock' && resource === `user:${ada.userId}`)).toBe(true);
      expect(entries.some(({ action, tries_of: tries }) => action === 'auth.lock' && tries === 'password')).toBe(true);
      // As words: a pseudonym is random text, in which such letters come together now and then.
      expect(JSON.stringify(entries.filter(({ actor }) => actor === 'unknown'))).not.toMatch(/@|\b(?:ada|nobody)\b/i);
    });

    it('counts wrong passwords of who is signed in by session', async () => {
      const change = (password: string, token = ada.token): Promise<CallAnswer> =>
        stage.call('POST', '/api/auth/change-password', { token, body: { current_password: password, new_password: PASSWORD } });
      for (let i = 0; i < 5; i += 1) {
        await stage.forgetAddresses();
        expect((await change(WRONG)).json.code).toBe('invalid_password');
      }
      await stage.forgetAddresses();
      expect((await change(PASSWORD)).status).toBe(429);
      ada = { ...ada, token: bearerOf(await stage.signIn(ada.email)) };
      expect((await change(PASSWORD)).status).toBe(200);
      ada = { ...ada, token: bearerOf(await stage.signIn(ada.email)) };
    });
  });

  describe('sessions', () => {
    const list = (token: string, query = ''): Promise<CallAnswer> => stage.call('GET', `/api/sessions${query}`, { token });
    const jwtOf = async (token: string): Promise<string> => (await stage.call('GET', '/api/auth/token', { token })).json.token;
    const opens = async (token: string): Promise<boolean> => (await stage.call('GET', '/api/devices', { token })).status === 200;

    it('are listed for their owner, and for administrators, by page', async () => {
      await stage.call('POST', '/api/sessions/end-others', { token: ada.token });
      for (let i = 0; i < 3; i += 1) await stage.signIn(ada.email, PASSWORD, { 'user-agent': `browser ${i}` });
      const first = await list(ada.token, '?limit=2');
      expect(first.json.data.map(({ user_agent: agent }: { user_agent: string }) => agent)).toEqual(['browser 2', 'browser 1']);
      const rest = await list(ada.token, `?limit=2&cursor=${first.json.next_cursor}`);
      expect(rest.json.data.map(({ is_current: isCurrent }: { is_current: boolean }) => isCurrent)).toEqual([false, true]);
      expect(rest.json.data[0]).toEqual({
        id: expect.any(String), user_id: ada.userId, is_current: false, started_at: expect.any(String), last_used_at: expect.any(String),
        ends_at: expect.any(String), ip: '127.0.0.1', user_agent: 'browser 0', second_factor_at: null,
      });
      expect(rest.json.has_more).toBe(false);
      expect((await list(stage.admin.token, `?user_id=${ada.userId}`)).json.data).toHaveLength(4);
      for (const userId of [stage.admin.userId, 'nobody']) expect((await list(ada.token, `?user_id=${userId}`)).status).toBe(403);
    });

    it('are ended one by one, and their JWTs at once', async () => {
      const other = bearerOf(await stage.signIn(ada.email));
      const jwt = await jwtOf(other);
      expect([await opens(jwt), await opens(other)]).toEqual([true, true]);
      const { id } = (await list(other)).json.data.find(({ is_current: isCurrent }: { is_current: boolean }) => isCurrent);
      const eve = await stage.newPerson(`eve-${Date.now()}`);
      expect((await stage.call('DELETE', `/api/sessions/${id}`, { token: eve.token })).status).toBe(404);
      expect((await stage.call('DELETE', `/api/sessions/${id}`, { token: ada.token })).status).toBe(204);
      expect([await opens(jwt), await opens(other)]).toEqual([false, false]);
      expect((await stage.call('DELETE', `/api/sessions/${id}`, { token: ada.token })).status).toBe(404);
      const [theirs] = (await list(stage.admin.token, `?user_id=${eve.userId}`)).json.data;
      expect((await stage.call('DELETE', `/api/sessions/${theirs.id}`, { token: stage.admin.token })).status).toBe(204);
      expect(await opens(eve.token)).toBe(false);
    });

    it('are ended all at once, by their owner and by an administrator', async () => {
      const others = await Promise.all([1, 2, 3].map(async () => bearerOf(await stage.signIn(ada.email))));
      const { json } = await stage.call('POST', '/api/sessions/end-others', { token: ada.token });
      expect(json.ended).toBeGreaterThanOrEqual(3);
      expect(await Promise.all(others.map(opens))).toEqual([false, false, false]);
      expect(await opens(ada.token)).toBe(true);
      const again = bearerOf(await stage.signIn(ada.email));
      expect((await stage.call('POST', `/api/users/${ada.userId}/end-sessions`, { token: stage.admin.token })).json).toEqual({ ended: 2 });
      expect([await opens(ada.token), await opens(again)]).toEqual([false, false]);
      ada = { ...ada, token: bearerOf(await stage.signIn(ada.email)) };
    });

    it('last as long as the settings say, also those that began before, and are used up to then', async () => {
      stage.policy = { ...DEFAULT_SIGN_IN_POLICY, sessionLengthSeconds: 3600, sessionIdleSeconds: 600 };
      const answer = await stage.signIn(ada.email);
      expect(answer.headers.get('set-cookie')).toContain('Max-Age=3600;');
      const token = bearerOf(answer);
      const { id, ends_at: endsAt, started_at: startedAt } = (await list(token)).json.data.find(({ is_current: isCurrent }: { is_current: boolean }) => isCurrent);
      expect(Math.abs(Date.parse(endsAt) - Date.parse(startedAt) - 3_600_000)).toBeLessThan(5000);
      const age = (columns: string): Promise<unknown> => asAuth(stage.sql(), (tx) => tx.query(`UPDATE keyguard_auth.sessions SET ${columns} WHERE id = $1`, [id]));
      await age(`updated_at = updated_at - interval '500 s'`);
      expect(await opens(token)).toBe(true);
      // It was used just now, and has as long again.
      await age(`updated_at = updated_at - interval '500 s'`);
      const jwt = await jwtOf(token);
      await age(`updated_at = updated_at - interval '601 s'`);
      expect([await opens(token), await opens(jwt)]).toEqual([false, false]);
      await age(`updated_at = CURRENT_TIMESTAMP, created_at = created_at - interval '3601 s'`);
      expect([await opens(token), await opens(jwt)]).toEqual([false, false]);
      stage.policy = DEFAULT_SIGN_IN_POLICY;
      expect(await opens(token)).toBe(true);
    });

    it('are deleted when they have ended by themselves, with what else counts no longer', async () => {
      const count = (table: string): Promise<number> => asAuth(stage.sql(), async (tx) => Number((await tx.query<{ n: unknown }>(`SELECT count(*) AS n FROM keyguard_auth.${table}`)).rows[0]!.n));
      await guess('purged@example.com', 1);
      const ended = await stage.newPerson(`purged-${Date.now()}`);
      await asAuth(stage.sql(), async (tx) => {
        await tx.query(`UPDATE keyguard_auth.sessions SET expires_at = CURRENT_TIMESTAMP - interval '1 s' WHERE user_id = $1`, [ended.userId]);
        await tx.query(`INSERT INTO keyguard_auth.verifications (id, identifier, value, expires_at) VALUES ('old', 'old', '', CURRENT_TIMESTAMP - interval '1 s')`);
        await tx.query(`INSERT INTO keyguard_auth.rate_limits (id, key, count, last_request) VALUES ('old', 'old', 1, 0)`);
      });
      const before = [await count('sessions'), await count('rate_limits')];
      await stage.purge();
      expect([before[0]! - (await count('sessions')), before[1]! - (await count('rate_limits'))]).toEqual([1, 1]);
      expect([await count('verifications'), await count('sign_in_attempts') > 0]).toEqual([0, true]);
      stage.time.aheadMs += 25 * 3_600_000;
      await stage.purge();
      expect(await count('sign_in_attempts')).toBe(0);
      expect(await opens(ada.token)).toBe(true);
    });
  });
});
