/** What a fresh second factor is demanded for, once the settings demand it: also what would take that demand away. */
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { DEFAULT_SIGN_IN_POLICY, type StepUpAction } from '../../src/auth/policy.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { setUpFactor, startStage, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

let backend: Backend;
let stage: Stage;

beforeAll(async () => {
  backend = await backends()[0]![1]();
  stage = await startStage(backend);
  stage.admin = { ...stage.admin, token: (await setUpFactor(stage, stage.admin.token)).token };
  // Long ago.
  stage.time.aheadMs += 61_000;
});
afterAll(async () => {
  await stage.stop();
  await backend.stop();
});

const ID = '00000000-0000-4000-8000-000000000000';

function demand(action: StepUpAction): void {
  stage.policy = { ...DEFAULT_SIGN_IN_POLICY, stepUp: { actions: new Set([action]), withinSeconds: 60, serviceAccounts: 'refused' } };
}

it.each<readonly [string, string, object | undefined]>([
  ['POST', `/api/devices/${ID}/approve`, undefined],
  ['POST', '/api/enrollment-codes', { auto_approve: true }],
  // What is left out is what its maker may grant.
  ['POST', '/api/enrollment-codes', {}],
  ['PUT', `/api/users/${ID}/administrator`, undefined],
  ['DELETE', `/api/users/${ID}/administrator`, undefined],
  ['POST', `/api/invitations/${ID}/approve`, undefined],
  ['POST', `/api/users/${ID}/roles`, { role_id: ID }],
  ['PATCH', `/api/roles/${ID}`, { description: 'more' }],
  ['POST', '/api/invitations', { email: 'puppet@example.com', is_administrator: true }],
  ['POST', `/api/users/${ID}/password-reset`, {}],
  ['DELETE', `/api/users/${ID}/second-factor`, undefined],
])('whoever took over a session of an administrator does not %s %s', async (method, path, body) => {
  demand('approve');
  const { status, json } = await stage.call(method, path, { token: stage.admin.token, ...(body !== undefined && { body }) });
  expect([status, json.code]).toEqual([403, 'step_up_required']);
});

it('a code for a device that somebody will look at approves nothing', async () => {
  demand('approve');
  expect((await stage.call('POST', '/api/enrollment-codes', { token: stage.admin.token, body: { auto_approve: false } })).status).toBe(201);
});

it.each(['approve', 'reveal', 'share'] as const)('a demand for %s is not taken away without a fresh proof', async (action) => {
  const change = (): Promise<CallAnswer> =>
    stage.call('PATCH', '/api/settings', { token: stage.admin.token, headers: { 'if-match': '*' }, body: { step_up: { actions: [] } } });
  demand(action);
  expect((await change()).json.code).toBe('step_up_required');
  stage.policy = DEFAULT_SIGN_IN_POLICY;
  expect((await change()).status).toBe(200);
});
