/** Second factors, end to end: enrolment, sign-in, step-up, and that each code lets somebody in once, whatever races. */
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { asAuth } from '../../src/db/as-user.ts';
import { DEFAULT_SIGN_IN_POLICY } from '../../src/auth/policy.ts';
import { codeOfStep, stepAt } from '../../src/auth/totp.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { bearerOf, fromBase32, PASSWORD, setUpFactor, startStage, type Authenticator, type SignedIn, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe.each(backends())('second factors on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;
  let ada: SignedIn;
  let factor: Authenticator;
  let token = '';

  const stepUp = (bearer: string, code: string): Promise<CallAnswer> => stage.call('POST', '/api/auth/step-up', { token: bearer, body: { code } });
  /** Signed in with a password, and with nothing else yet. */
  const halfSignIn = async (email = ada.email): Promise<string> => {
    const answer = await stage.signIn(email);
    expect(answer.json.second_factor).toBe('required');
    return bearerOf(answer);
  };
  const unlock = (): Promise<unknown> => asAuth(stage.sql(), (tx) => tx.query('DELETE FROM keyguard_auth.sign_in_attempts'));

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
    ada = await stage.newPerson('ada');
  });
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  it('is set up with the password, counts from its first code on, and ends all other sessions', async () => {
    const other = bearerOf(await stage.signIn(ada.email));
    expect((await stage.call('GET', '/api/auth/second-factor', { token: ada.token })).json).toEqual({
      is_set_up: false, is_pending: false, activated_at: null, backup_codes_left: 0, proven_at: null,
    });
    for (const body of [{}, { password: 'not my password at all' }]) {
      const refused = await stage.call('POST', '/api/auth/second-factor', { token: ada.token, body });
      expect([refused.status, refused.json.code]).toEqual([400, 'invalid_password']);
    }
    await unlock();
    factor = await setUpFactor(stage, ada.token);
    expect(factor.backupCodes).toHaveLength(10);
    expect(new Set(factor.backupCodes).size).toBe(10);
    expect((await stage.call('GET', '/api/devices', { token: other })).status).toBe(401);
    expect((await stage.call('GET', '/api/devices', { token: ada.token })).status).toBe(401);
    expect((await stage.call('GET', '/api/devices', { token: factor.token })).status).toBe(200);
    expect((await stage.call('GET', '/api/auth/second-factor', { token: factor.token })).json).toMatchObject({ is_set_up: true, backup_codes_left: 10, proven_at: expect.any(String) });
    expect((await stage.call('POST', '/api/auth/second-factor', { token: factor.token, body: { password: PASSWORD } })).json.code).toBe('second_factor_exists');
    // The code that made it count is used up by that.
    expect((await stepUp(await halfSignIn(), factor.code())).json.code).toBe('second_factor_invalid');
    await unlock();
  });

  it('keeps neither the secret nor a backup code in clear', async () => {
    const { rows } = await asAuth(stage.sql(), (tx) => tx.query<Record<string, unknown>>(
      `SELECT encode(ciphertext, 'hex') AS ciphertext, encode(wrapped_dek, 'hex') AS wrapped, (SELECT string_agg(code_hash, ' ') FROM keyguard_auth.backup_codes) AS hashes
        FROM keyguard_auth.second_factors`));
    const kept = JSON.stringify(rows);
    const raw = Buffer.from(fromBase32(factor.secret));
    const forms = [factor.secret, raw.toString('hex'), raw.toString('base64'), ...factor.backupCodes, ...factor.backupCodes.map((code) => code.replace('-', ''))];
    expect(forms.filter((form) => kept.toLowerCase().includes(form.toLowerCase()))).toEqual([]);
    expect(rows[0]!['hashes']).toEqual(expect.stringMatching(/^([\w-]{43} ?){10}$/));
  });

  it('opens nothing with the password alone, and everything after a code, under a new token', async () => {
    const half = await halfSignIn();
    for (const [method, path] of [['GET', '/api/devices'], ['GET', '/api/auth/token'], ['GET', '/api/audit'], ['POST', '/api/auth/revoke-other-sessions'], ['GET', '/api/nothing']] as const) {
      const refused = await stage.call(method, path, { token: half });
      expect([path, refused.status, refused.json.code]).toEqual([path, 403, 'second_factor_required']);
    }
    const changed = await stage.call('POST', '/api/auth/change-password', { token: half, body: { current_password: PASSWORD, new_password: 'something else entirely' } });
    expect(changed.json.code).toBe('second_factor_required');
    const disabled = await stage.call('POST', '/api/auth/second-factor/disable', { token: half, body: { password: PASSWORD, code: factor.next() } });
    expect(disabled.json.code).toBe('second_factor_required');

    const whole = await stepUp(half, factor.code());
    token = bearerOf(whole);
    expect(token).not.toBe(half);
    expect(whole.headers.get('set-cookie')).toMatch(/^keyguard\.session_token=.*HttpOnly; SameSite=Strict$/);
    expect((await stage.call('GET', '/api/devices', { token })).status).toBe(200);
    expect((await stage.call('GET', '/api/devices', { token: half })).status).toBe(401);
    expect((await stage.call('GET', '/api/devices', { headers: { cookie: whole.headers.get('set-cookie')!.split(';')[0]! } })).status).toBe(200);
    expect((await stage.call('GET', '/api/auth/token', { token })).status).toBe(200);
  });

  it('has no time for who gives the code long after the password', async () => {
    const half = await halfSignIn();
    stage.time.aheadMs += 11 * 60_000;
    const late = await stepUp(half, factor.next());
    expect([late.status, late.json.code]).toEqual([401, 'not_authenticated']);
    stage.time.aheadMs -= 11 * 60_000 + 30_000;
  });

  it('lets one of a hundred in with one code, and none later or after a restart', async () => {
    const halves = await Promise.all(Array.from({ length: 4 }, () => halfSignIn()));
    const code = factor.next();
    const answers = await Promise.all(Array.from({ length: 100 }, (_, i) => stepUp(halves[i % halves.length]!, code)));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
    await unlock();
    const again = await stepUp(await halfSignIn(), code);
    expect([again.status, again.json.code]).toEqual([403, 'second_factor_invalid']);
    await stage.restart();
    await unlock();
    expect((await stepUp(await halfSignIn(), code)).json.code).toBe('second_factor_invalid');
    // Nor an older one that nobody used.
    stage.time.aheadMs -= 30_000;
    expect((await stepUp(await halfSignIn(), factor.code())).json.code).toBe('second_factor_invalid');
    stage.time.aheadMs += 30_000;
    await unlock();
    expect((await stepUp(await halfSignIn(), factor.next())).status).toBe(200);
  });

  it('judges the database, and not only this process: the claim is refused where the step was taken', async () => {
    const code = factor.next();
    const half = await halfSignIn();
    await asAuth(stage.sql(), (tx) => tx.query('UPDATE keyguard_auth.second_factors SET last_step = last_step + 100 WHERE user_id = $1', [ada.userId]));
    expect((await stepUp(half, code)).json.code).toBe('second_factor_invalid');
    await asAuth(stage.sql(), (tx) => tx.query('UPDATE keyguard_auth.second_factors SET last_step = last_step - 100 WHERE user_id = $1', [ada.userId]));
    expect((await stepUp(half, code)).status).toBe(200);
  });

  it('takes a backup code once, however it is typed, from one of a hundred', async () => {
    const [first, second] = factor.backupCodes as [string, string];
    expect((await stepUp(await halfSignIn(), ` ${first.toLowerCase().replace('-', ' ')}`.trim())).status).toBe(200);
    expect((await stepUp(await halfSignIn(), first)).json.code).toBe('second_factor_invalid');
    await unlock();
    const halves = await Promise.all(Array.from({ length: 4 }, () => halfSignIn()));
    const answers = await Promise.all(Array.from({ length: 100 }, (_, i) => stepUp(halves[i % halves.length]!, second)));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
    await unlock();
    expect((await stage.call('GET', '/api/auth/second-factor', { token })).json.backup_codes_left).toBe(8);
    const renewed = await stage.call('POST', '/api/auth/second-factor/backup-codes', { token, body: { code: factor.next() } });
    expect(renewed.json.backup_codes).toHaveLength(10);
    expect((await stepUp(await halfSignIn(), factor.backupCodes[2]!)).json.code).toBe('second_factor_invalid');
    expect((await stepUp(await halfSignIn(), renewed.json.backup_codes[2])).status).toBe(200);
  });

  it('locks guessing, for longer each time, and not the session that has proven it', async () => {
    const locks = async (): Promise<number> => (await stage.auditEntries()).filter(({ action }) => action === 'auth.lock').length;
    const before = await locks();
    const half = await halfSignIn();
    const guesses = await Promise.all(Array.from({ length: 40 }, (_, i) => stepUp(half, String(100000 + i))));
    expect(guesses.filter(({ status }) => status === 403)).toHaveLength(5);
    expect(guesses.filter(({ status }) => status === 429)).toHaveLength(35);
    const locked = await stepUp(half, factor.next());
    expect([locked.status, locked.json.code]).toEqual([429, 'rate_limited']);
    expect(Number(locked.headers.get('retry-after'))).toBeGreaterThan(20);
    await stage.restart();
    expect((await stepUp(half, factor.code())).status).toBe(429);
    // Its owner goes on where the factor was proven before.
    expect((await stepUp(token, factor.code())).status).toBe(200);
    stage.time.aheadMs += 61_000;
    expect((await stepUp(half, '000000')).status).toBe(403);
    const longer = await stepUp(half, factor.next());
    expect([longer.status, Number(longer.headers.get('retry-after')) > 60]).toEqual([429, true]);
    expect((await locks()) - before).toBe(2);
    await unlock();
  });

  it('is no way in for who writes to the database', async () => {
    const half = await halfSignIn();
    const { id } = (await stage.call('GET', '/api/auth/get-session', { token: half })).json.session;
    const forge = (mac: string): Promise<unknown> => asAuth(stage.sql(), (tx) => tx.query(
      `INSERT INTO keyguard_auth.session_proofs (session_id, user_id, second_factor_at_ms, mac_key_id, mac)
        SELECT $1, user_id, second_factor_at_ms, mac_key_id, ${mac} FROM keyguard_auth.session_proofs WHERE session_id <> $1 LIMIT 1`, [id]));
    for (const mac of ['mac', `decode(repeat('00', 32), 'hex')`]) {
      await forge(mac);
      expect((await stage.call('GET', '/api/devices', { token: half })).status).toBe(503);
      await asAuth(stage.sql(), (tx) => tx.query('DELETE FROM keyguard_auth.session_proofs WHERE session_id = $1', [id]));
    }
    // A secret of one's own under another's name does not open there.
    const eve = await stage.newPerson('eve');
    await setUpFactor(stage, eve.token);
    await asAuth(stage.sql(), (tx) => tx.query(
      `UPDATE keyguard_auth.second_factors f SET ciphertext = e.ciphertext, wrapped_dek = e.wrapped_dek FROM keyguard_auth.second_factors e WHERE f.user_id = $1 AND e.user_id = $2`,
      [ada.userId, eve.userId]));
    expect((await stepUp(half, '123456')).status).toBe(503);
    expect((await stage.call('DELETE', `/api/users/${ada.userId}/second-factor`, { token: stage.admin.token })).status).toBe(204);
    token = bearerOf(await stage.signIn(ada.email));
    factor = await setUpFactor(stage, token);
    token = factor.token;
    await unlock();
  });

  it('is removed by its owner with password and code, and by an administrator for who lost it', async () => {
    const wrong = await stage.call('POST', '/api/auth/second-factor/disable', { token, body: { password: 'not my password at all', code: factor.next() } });
    expect(wrong.json.code).toBe('invalid_password');
    const without = await stage.call('POST', '/api/auth/second-factor/disable', { token, body: { password: PASSWORD, code: '000000' } });
    expect(without.json.code).toBe('second_factor_invalid');
    const disabled = await stage.call('POST', '/api/auth/second-factor/disable', { token, body: { password: PASSWORD, code: factor.next() } });
    expect(disabled.status).toBe(204);
    // What the session had proven went with it: a later factor is proven anew.
    expect((await stage.call('GET', '/api/auth/second-factor', { token: disabled.headers.get('set-auth-token')! })).json).toMatchObject({ is_set_up: false, proven_at: null });
    const plain = await stage.signIn(ada.email);
    expect(plain.json.second_factor).toBe('none');
    token = bearerOf(plain);
    factor = await setUpFactor(stage, token);
    token = factor.token;
    expect((await stage.call('DELETE', `/api/users/${ada.userId}/second-factor`, { token })).status).toBe(403);
    expect((await stage.call('DELETE', `/api/users/${stage.admin.userId}/second-factor`, { token: stage.admin.token })).status).toBe(403);
    expect((await stage.call('DELETE', `/api/users/${ada.userId}/second-factor`, { token: stage.admin.token })).status).toBe(204);
    expect((await stage.call('DELETE', `/api/users/${ada.userId}/second-factor`, { token: stage.admin.token })).status).toBe(404);
    expect((await stage.call('GET', '/api/devices', { token })).status).toBe(401);
    token = bearerOf(await stage.signIn(ada.email));
  });

  it('can be demanded: who has none may do nothing but set one up', async () => {
    stage.policy = { ...DEFAULT_SIGN_IN_POLICY, secondFactorRequiredFor: 'administrators' };
    expect((await stage.call('GET', '/api/devices', { token })).status).toBe(200);
    const refused = await stage.call('GET', '/api/devices', { token: stage.admin.token });
    expect([refused.status, refused.json.code, refused.json.detail]).toEqual([403, 'second_factor_setup_required', expect.stringContaining('POST /api/auth/second-factor')]);
    stage.policy = { ...DEFAULT_SIGN_IN_POLICY, secondFactorRequiredFor: 'everyone' };
    const signedIn = await stage.signIn(ada.email);
    expect(signedIn.json.second_factor).toBe('setup_required');
    token = bearerOf(signedIn);
    expect((await stage.call('GET', '/api/devices', { token })).json.code).toBe('second_factor_setup_required');
    factor = await setUpFactor(stage, token);
    token = factor.token;
    expect((await stage.call('GET', '/api/devices', { token })).status).toBe(200);
    stage.policy = DEFAULT_SIGN_IN_POLICY;
  });

  it('can be demanded afresh for an action, and is then asked for again when it is too old', async () => {
    const eve = bearerOf(await stage.signIn('eve@example.com'));
    stage.policy = { ...DEFAULT_SIGN_IN_POLICY, stepUp: { actions: new Set(['approve'] as const), withinSeconds: 60, serviceAccounts: 'refused' } };
    const remove = (): Promise<CallAnswer> => stage.call('DELETE', '/api/users/nobody/second-factor', { token: stage.admin.token });
    expect((await remove()).json.code).toBe('second_factor_setup_required');
    const admin = await setUpFactor(stage, stage.admin.token);
    stage.admin = { ...stage.admin, token: admin.token };
    expect((await remove()).status).toBe(404);
    stage.time.aheadMs += 61_000;
    const old = await remove();
    expect([old.status, old.json.code]).toEqual([403, 'step_up_required']);
    expect((await stepUp(stage.admin.token, admin.next())).json.proven_at).toEqual(expect.any(String));
    expect((await remove()).status).toBe(404);
    // A clock that was set back makes no old proof a fresh one.
    stage.time.aheadMs -= 40_000;
    expect((await remove()).json.code).toBe('step_up_required');
    stage.time.aheadMs += 40_000;
    expect((await stage.call('GET', '/api/devices', { token: eve })).json.code).toBe('second_factor_required');
    stage.policy = DEFAULT_SIGN_IN_POLICY;
  });

  it('counts for nothing before its first code', async () => {
    const ida = await stage.newPerson('ida');
    const begun = await stage.call('POST', '/api/auth/second-factor', { token: ida.token, body: { password: PASSWORD } });
    const code = codeOfStep(fromBase32(begun.json.secret), stepAt(stage.time.nowMs()));
    expect((await stepUp(ida.token, code)).json.code).toBe('second_factor_missing');
    expect((await stage.call('POST', '/api/auth/second-factor/activate', { token: ida.token, body: { code } })).status).toBe(200);
    await unlock();
  });

  it('says nothing of codes and secrets in the audit log, and all that was done', async () => {
    const entries = await stage.auditEntries();
    const actions = new Set(entries.filter(({ outcome }) => outcome === 'success').map(({ action }) => action));
    for (const verb of ['begin', 'activate', 'prove', 'renew_backup_codes', 'disable', 'remove']) expect(actions).toContain(`second_factor.${verb}`);
    expect(entries.filter(({ action, outcome }) => action === 'second_factor.remove' && outcome === 'success').map(({ actor, resource }) => [actor, resource])).toContainEqual([`user:${stage.admin.userId}`, `user:${ada.userId}`]);
    expect(entries.some(({ action, outcome, code }) => action === 'second_factor.prove' && outcome === 'refused' && code === 'second_factor_invalid')).toBe(true);
    const text = JSON.stringify(entries);
    for (const secret of [factor.secret, ...factor.backupCodes, PASSWORD]) expect(text).not.toContain(secret);
  });
});
