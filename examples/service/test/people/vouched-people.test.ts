/** What somebody gains who writes to the database and holds no key: passwords, factors and sessions that are not as the service wrote them. */
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { comparingWith, judgedPassword } from '../../src/auth/judged-password.ts';
import { asAuth } from '../../src/db/as-user.ts';
import { backends, type Backend } from '../stage.ts';
import { bearerOf, PASSWORD, setUpFactor, startStage, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe.each(backends())('people whose rows somebody else has written, on %s', (_title, open) => {
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

  const write = (text: string, params: readonly unknown[] = []): Promise<unknown> => asAuth(stage.sql(), (tx) => tx.query(text, params));
  const me = async (token: string): Promise<number> => (await stage.call('GET', '/api/users/me', { token })).status;

  it('sign in with no password that was put in the place of theirs, and it is said once a minute', async () => {
    const [ada, eve] = [await stage.newPerson('ada'), await stage.newPerson('eve')];
    const mine = 'only eve knows this one';
    const changed = await stage.call('POST', '/api/auth/change-password', { token: eve.token, body: { current_password: PASSWORD, new_password: mine } });
    const token = bearerOf(changed);
    const { rows } = await asAuth(stage.sql(), (tx) =>
      tx.query<{ user_id: string; password: string }>('SELECT user_id, password FROM keyguard_auth.accounts WHERE user_id = ANY($1)', [[ada.userId, eve.userId]]),
    );
    const hashOf = (userId: string): string => rows.find(({ user_id: id }) => id === userId)!.password;
    const give = (userId: string, hash: string): Promise<unknown> => write('UPDATE keyguard_auth.accounts SET password = $2 WHERE user_id = $1', [userId, hash]);
    await give(ada.userId, hashOf(eve.userId));
    expect([(await stage.signIn(ada.email, mine)).status, (await stage.signIn(ada.email)).status, await me(ada.token)]).toEqual([503, 503, 503]);
    expect([(await stage.signIn(eve.email, mine)).status, await me(token)]).toEqual([200, 200]);
    const told = (await stage.auditEntries()).filter(({ action, resource }) => action === 'auth.tampered' && resource === `user:${ada.userId}`);
    expect(told).toEqual([expect.objectContaining({ outcome: 'failed', actor: 'system' })]);
    // Nor does eve go on as somebody else by giving the row itself away.
    await give(ada.userId, hashOf(ada.userId));
    expect([(await stage.signIn(ada.email)).status, await me(ada.token)]).toEqual([200, 200]);
    await write('UPDATE keyguard_auth.users SET email = $2 WHERE id = $1', [ada.userId, 'elsewhere@example.com']);
    await write('UPDATE keyguard_auth.users SET email = $2 WHERE id = $1', [eve.userId, ada.email]);
    expect((await stage.signIn(ada.email, mine)).status).toBe(503);
  });

  it('are asked for the password though its row is gone', async () => {
    const gus = await stage.newPerson('gus');
    await write('DELETE FROM keyguard_auth.accounts WHERE user_id = $1', [gus.userId]);
    const begun = await stage.call('POST', '/api/auth/second-factor', { token: gus.token, body: {} });
    expect([begun.status, (await stage.signIn(gus.email)).status]).toEqual([503, 503]);
  });

  it('are asked for the second factor though it is gone, or does not count any more', async () => {
    for (const [name, text] of [
      ['fay', 'DELETE FROM keyguard_auth.second_factors WHERE user_id = $1'],
      ['fio', 'UPDATE keyguard_auth.second_factors SET activated_at_ms = NULL WHERE user_id = $1'],
    ] as const) {
      const person = await stage.newPerson(name);
      await setUpFactor(stage, person.token);
      const half = bearerOf(await stage.signIn(person.email));
      expect(await me(half)).toBe(403);
      await write(text, [person.userId]);
      expect([name, await me(half), (await stage.signIn(person.email)).status]).toEqual([name, 503, 503]);
    }
  });

  it('are nobody whose session’s row was given to them, by any way in which it is known', async () => {
    const [hal, eve] = [await stage.newPerson('hal'), await stage.newPerson('eva')];
    await write('UPDATE keyguard_auth.sessions SET user_id = $1 WHERE user_id = $2', [hal.userId, eve.userId]);
    expect(await me(eve.token)).toBe(401);
    for (const path of ['/api/auth/get-session', '/api/auth/token']) expect([path, (await stage.call('GET', path, { token: eve.token })).status]).toEqual([path, 401]);
    expect(await me(hal.token)).toBe(200);
  });

  it('are who they were once they are enabled again, whatever was taken from them meanwhile', async () => {
    const jan = await stage.newPerson('jan');
    await setUpFactor(stage, jan.token);
    const asAdmin = async (method: string, path: string): Promise<number> => (await stage.call(method, `/api/users/${jan.userId}/${path}`, { token: stage.admin.token })).status;
    expect(await asAdmin('POST', 'disable')).toBe(200);
    expect((await stage.signIn(jan.email)).status).toBe(401);
    expect(await asAdmin('DELETE', 'second-factor')).toBe(204);
    expect(await asAdmin('POST', 'enable')).toBe(200);
    const again = await stage.signIn(jan.email);
    expect([again.status, again.json.second_factor, await me(bearerOf(again))]).toEqual([200, 'none', 200]);
  });

  it('have proven nothing in a session that was given the id of one in which they have', async () => {
    const ian = await stage.newPerson('ian');
    const factor = await setUpFactor(stage, ian.token);
    const half = bearerOf(await stage.signIn(ian.email));
    expect([await me(factor.token), await me(half)]).toEqual([200, 403]);
    const idOf = async (token: string): Promise<string> => (await stage.call('GET', '/api/auth/get-session', { token })).json.session.id;
    const [whole, given] = [await idOf(factor.token), await idOf(half)];
    const { rows } = await asAuth(stage.sql(), (tx) => tx.query<{ mac: Uint8Array }>('SELECT * FROM keyguard_auth.session_proofs WHERE session_id = $1', [whole]));
    const [columns, values] = [Object.keys(rows[0]!), Object.values(rows[0]!)];
    // Its proof goes with it, and is put back.
    await write('DELETE FROM keyguard_auth.sessions WHERE id = $1', [whole]);
    await write('UPDATE keyguard_auth.sessions SET id = $2 WHERE id = $1', [given, whole]);
    await write(`INSERT INTO keyguard_auth.session_proofs (${columns.join(', ')}) VALUES (${columns.map((_, i) => `$${i + 1}`).join(', ')})`, values);
    expect(await me(half)).toBe(401);
  });

  it('get no MAC by a restart where theirs is gone', async () => {
    const ida = await stage.newPerson('ida');
    await write('UPDATE keyguard_auth.users SET mac = NULL, mac_key_id = NULL WHERE id = $1', [ida.userId]);
    await stage.restart();
    expect([(await stage.signIn(ida.email)).status, await me(ida.token)]).toEqual([503, 503]);
    expect((await stage.signIn(stage.admin.email)).status).toBe(200);
  });
});

describe('what better-auth compares a password with', () => {
  it('is what was vouched for, and nothing where nothing was', async () => {
    const [hash, other] = [await judgedPassword.hash(PASSWORD), await judgedPassword.hash(PASSWORD)];
    const compare = (given: string): Promise<boolean> => judgedPassword.verify({ hash: given, password: PASSWORD });
    expect(await compare(hash)).toBe(false);
    expect(await comparingWith(hash, () => compare(hash))).toBe(true);
    expect(await comparingWith(hash, () => compare(other))).toBe(false);
    expect(await comparingWith(null, () => compare(hash))).toBe(false);
    expect(await comparingWith(hash, () => judgedPassword.verify({ hash, password: 'another one' }))).toBe(false);
  });
});
