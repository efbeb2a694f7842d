/** That an import says of no value that it is the same to who may not read it at this moment, and to nobody without its being on record. */
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { DEFAULT_SIGN_IN_POLICY } from '../../src/auth/policy.ts';
import { setUpFactor, startStage, type Authenticator, type Stage } from '../people/stage.ts';
import { backends, type Backend } from '../stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe.each(backends())('an import on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;
  let factor: Authenticator;
  let userId: string;

  const RIGHT = 'THE_KEY=right\n';
  const WRONG = 'THE_KEY=wrong\n';

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
    const ada = await stage.newPerson('ada');
    factor = await setUpFactor(stage, ada.token);
    ({ userId } = ada);
    await stage.call('POST', '/api/secrets', { token: factor.token, body: { name: 'THE_KEY', type: 'env', value: 'right' } });
  });
  beforeEach(() => {
    stage.policy = DEFAULT_SIGN_IN_POLICY;
  });
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  async function outcomeOf(text: string, token = factor.token, dryRun = true): Promise<string> {
    const { status, json } = await stage.call('POST', '/api/secrets/import', { token, body: { text, dry_run: dryRun } });
    expect([status, json.variables.length]).toEqual([200, 1]);
    return json.variables[0].outcome;
  }

  const reveals = async (actor = `user:${userId}`): Promise<Record<string, unknown>[]> =>
    (await stage.auditEntries()).filter((entry) => entry.action === 'secret.reveal' && entry.actor === actor);

  function demandFactor(): void {
    stage.policy = { ...DEFAULT_SIGN_IN_POLICY, stepUp: { actions: new Set(['reveal'] as const), withinSeconds: 60, serviceAccounts: 'refused' } };
  }

  it('compares for who may reveal, which is on record as a reveal of each, whatever came of it', async () => {
    expect([await outcomeOf(RIGHT), await outcomeOf(WRONG)]).toEqual(['unchanged', 'updated']);
    const entries = await reveals();
    expect(entries).toHaveLength(2);
    for (const entry of entries) expect(entry).toMatchObject({ outcome: 'success', version: 1, via: 'env_import', resource: expect.stringMatching(/^secret:/) });
  });

  it('tells a right guess from a wrong one by nothing, where a reveal would demand a factor that was proven too long ago', async () => {
    const before = (await reveals()).length;
    stage.time.aheadMs += 61_000;
    demandFactor();
    const answers = [];
    for (const text of [RIGHT, WRONG]) answers.push(await stage.call('POST', '/api/secrets/import', { token: factor.token, body: { text, dry_run: true } }));
    expect(answers.map(({ status, json }) => [status, json.variables[0].outcome])).toEqual([[200, 'updated'], [200, 'updated']]);
    expect(answers[0]!.json).toEqual(answers[1]!.json);
    expect(await reveals()).toHaveLength(before);

    expect((await stage.call('POST', '/api/auth/step-up', { token: factor.token, body: { code: factor.next() } })).status).toBe(200);
    expect([await outcomeOf(RIGHT), await outcomeOf(WRONG)]).toEqual(['unchanged', 'updated']);
    expect(await reveals()).toHaveLength(before + 2);
  });

  it.each([
    ['without the scope', ['secrets:create', 'secrets:update', 'secrets:read'], DEFAULT_SIGN_IN_POLICY.stepUp, 'updated'],
    ['where programs may not do what demands a factor', ['secrets:create', 'secrets:update', 'secrets:read', 'secrets:reveal'], { actions: new Set(['reveal'] as const), withinSeconds: 60, serviceAccounts: 'refused' }, 'updated'],
    ['that may reveal', ['secrets:create', 'secrets:update', 'secrets:read', 'secrets:reveal'], DEFAULT_SIGN_IN_POLICY.stepUp, 'unchanged'],
  ] as const)('of a program %s', async (name, scopes, stepUp, expected) => {
    const made = await stage.call('POST', '/api/service-accounts', { token: factor.token, body: { name, scopes } });
    expect(made.status).toBe(201);
    stage.policy = { ...DEFAULT_SIGN_IN_POLICY, stepUp };
    expect(await outcomeOf(RIGHT, made.json.token, false)).toBe('created');
    expect([await outcomeOf(RIGHT, made.json.token, false), await outcomeOf(WRONG, made.json.token, false)]).toEqual([expected, 'updated']);
    stage.policy = DEFAULT_SIGN_IN_POLICY;
    expect(await reveals(`service_account:${made.json.id}`)).toHaveLength(expected === 'unchanged' ? 2 : 0);
  });

  it('of a program that may make secrets and not read which there are says that the name is taken', async () => {
    const made = await stage.call('POST', '/api/service-accounts', { token: factor.token, body: { name: 'that only makes', scopes: ['secrets:create'] } });
    const importing = (): ReturnType<typeof stage.call> => stage.call('POST', '/api/secrets/import', { token: made.json.token, body: { text: 'MADE_BLINDLY=1\n' } });
    expect((await importing()).status).toBe(200);
    const again = await importing();
    expect([again.status, again.json.code]).toEqual([409, 'name_taken']);
  });
});
