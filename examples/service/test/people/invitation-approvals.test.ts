/** That the approval of an invitation binds who comes in by it: none but who was given a token by each of two, or owns the address. */
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { postgresKeyRecords } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../../src/audit/log.ts';
import { createInvitations, type Invitations } from '../../src/auth/invitations.ts';
import { asAuth } from '../../src/db/as-user.ts';
import { openDeploymentKeys } from '../../src/keys/hierarchy.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { PASSWORD, startStage, type SignedIn, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 120_000 });

describe.each(backends())('the approval of an invitation on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;
  let invitations: Invitations;
  /** Makes the invitations. */
  let ada: SignedIn;
  let bea: SignedIn;
  let cyd: SignedIn;
  const secondTokens: string[] = [];

  const call = (by: SignedIn, method: string, path: string, body?: object): Promise<CallAnswer> => stage.call(method, path, { token: by.token, ...(body !== undefined && { body }) });
  const newAddress = (): string => `guest-${randomUUID()}@example.com`;
  const invite = async (gives: object, email = newAddress()): Promise<{ id: string; token: string; email: string }> => (await call(ada, 'POST', '/api/invitations', { email, ...gives })).json;
  const approve = async (by: SignedIn, id: string): Promise<string> => {
    const { status, json } = await call(by, 'POST', `/api/invitations/${id}/approve`);
    expect([status, json.approved_by]).toEqual([200, by.userId]);
    secondTokens.push(json.second_token);
    return json.second_token as string;
  };
  const accept = async (token: string, second?: string): Promise<CallAnswer> => {
    await stage.forgetAddresses();
    return stage.call('POST', '/api/invitations/accept', { body: { token, password: PASSWORD, name: 'A guest', ...(second !== undefined && { second_token: second }) } });
  };
  const codeOf = ({ status, json }: CallAnswer): unknown[] => [status, json.code];
  const administrators = async (): Promise<number> => (await asAuth(stage.sql(), (tx) => tx.query('SELECT 1 FROM keyguard.administrators'))).rows.length;

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
    ada = stage.admin;
    [bea, cyd] = [await stage.newPerson('bea'), await stage.newPerson('cyd')];
    await call(ada, 'PUT', `/api/users/${bea.userId}/administrator`);
    for (const by of [ada, bea]) await call(by, 'PUT', `/api/users/${cyd.userId}/administrator`);
    const keys = await openDeploymentKeys(postgresKeyRecords(stage.sql()), { kind: 'file', path: join(stage.deployment.folder, 'data/root.key') });
    const quiet = { record: async () => {}, recordIn: async () => {}, recordAsIs: async () => {} } as unknown as AuditLog;
    invitations = createInvitations({ sql: stage.sql(), keys, audit: quiet, clock: stage.time });
  });
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  it('lets in nobody with anything but the token that it made, and nobody with that one alone', async () => {
    const { id, token } = await invite({ is_administrator: true });
    const other = await approve(bea, (await invite({ is_administrator: true })).id);
    const second = await approve(bea, id);
    expect(codeOf(await accept(token))).toEqual([403, 'four_eyes_required']);
    for (const wrong of [token, other, `kga_${'A'.repeat(43)}`, 'nothing']) expect([wrong, ...codeOf(await accept(token, wrong))]).toEqual([wrong, 403, 'link_invalid']);
    for (const [first, beside] of [[second, undefined], [second, token], [second, second]] as const) expect(codeOf(await accept(first, beside))).toEqual([403, 'link_invalid']);
    const came = await accept(token, second);
    expect(came.status).toBe(201);
    expect(codeOf(await accept(token, second))).toEqual([403, 'link_invalid']);
    await asAuth(stage.sql(), (tx) => tx.query('DELETE FROM keyguard.administrators WHERE user_id = $1', [came.json.user_id]));
  });

  it('made again makes the token of before worthless, whoever of the others makes it', async () => {
    const { id, token } = await invite({ is_administrator: true });
    const lost = await approve(bea, id);
    const anew = await approve(bea, id);
    const last = await approve(cyd, id);
    for (const old of [lost, anew]) {
      const refused = await accept(token, old);
      expect([...codeOf(refused), refused.json.detail]).toEqual([403, 'link_invalid', expect.stringContaining('ask the administrator who approved')]);
    }
    const done = (await stage.auditEntries()).filter(({ action, resource }) => action === 'invitation.approve' && resource === `invitation:${id}`);
    expect(done.map(({ actor, in_place_of: before }) => [actor, before])).toEqual([[`user:${cyd.userId}`, bea.userId], [`user:${bea.userId}`, bea.userId], [`user:${bea.userId}`, undefined]]);
    const came = await accept(token, last);
    expect(came.status).toBe(201);
    await asAuth(stage.sql(), (tx) => tx.query('DELETE FROM keyguard.administrators WHERE user_id = $1', [came.json.user_id]));
  });

  it('is nobody’s who writes a token of their own into the database, and keeps none in clear', async () => {
    const [own, wanted] = [await invite({}), await invite({ is_administrator: true })];
    const known = await approve(bea, own.id);
    await approve(bea, wanted.id);
    await asAuth(stage.sql(), async (tx) => {
      await tx.query('UPDATE keyguard_auth.invitations SET approval_token_hash = (SELECT approval_token_hash FROM keyguard_auth.invitations WHERE id = $2) WHERE id = $1', [wanted.id, own.id]);
      const { rows } = await tx.query('SELECT row_to_json(i)::text AS row FROM keyguard_auth.invitations i');
      expect(secondTokens.filter((token) => JSON.stringify(rows).includes(token))).toEqual([]);
    });
    expect((await accept(wanted.token, known)).status).toBe(503);
    // One without a token, as all were before there were any, is no approval.
    await asAuth(stage.sql(), (tx) => tx.query('UPDATE keyguard_auth.invitations SET approval_token_hash = NULL WHERE id = $1', [wanted.id]));
    expect(codeOf(await accept(wanted.token, known))).toEqual([403, 'four_eyes_required']);
  });

  it('vouches for nobody who came in without its token', async () => {
    const reader = (await call(ada, 'GET', '/api/roles?limit=200')).json.data.find(({ name }: { name: string }) => name === 'secrets_reader').id as string;
    const grantTo = async (second: (id: string) => Promise<string | undefined>): Promise<CallAnswer> => {
      // Gives nothing that takes two.
      const { id, token } = await invite({});
      const given = await second(id);
      const { json } = await accept(token, given);
      return call(ada, 'POST', `/api/users/${json.user_id}/roles`, { role_id: reader });
    };
    expect(codeOf(await grantTo(async (id) => void (await approve(bea, id))))).toEqual([403, 'four_eyes_required']);
    expect(codeOf(await grantTo(async () => undefined))).toEqual([403, 'four_eyes_required']);
    expect((await grantTo((id) => approve(bea, id))).status).toBe(201);
  });

  it('is enough for who has proven to a provider that the invited address is theirs, and for nobody else', async () => {
    const before = await administrators();
    const { id, email } = await invite({ is_administrator: true });
    const comeAs = (address: string): Promise<string | null> =>
      asAuth(stage.sql(), async (tx) => {
        const userId = randomUUID();
        await tx.query('INSERT INTO keyguard_auth.users (id, name, email, email_verified) VALUES ($1, $2, $3, true)', [userId, 'Proven', address]);
        return (await invitations.claimForIn(tx, address, userId)) ? userId : null;
      });
    await expect(comeAs(email)).rejects.toMatchObject({ code: 'four_eyes_required', message: expect.stringContaining('Then sign in again') });
    await approve(bea, id);
    expect([await comeAs(newAddress()), await administrators()]).toEqual([null, before]);
    expect([await comeAs(email), await administrators()]).toEqual([expect.any(String), before + 1]);
  });

  it('leaves a trace without its tokens', async () => {
    const text = JSON.stringify(await stage.auditEntries());
    expect(secondTokens.length).toBeGreaterThan(5);
    expect([...secondTokens, '@example.com'].filter((secret) => text.includes(secret))).toEqual([]);
  });
});
