/** Sessions in the database: which are still listed, which are purged, and in whose name they end. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { DEFAULT_SIGN_IN_POLICY } from '../../src/auth/policy.ts';
import { createSessions, type Sessions } from '../../src/auth/sessions.ts';
import { backends } from '../stage.ts';
import { person } from '../roles/stage.ts';
import { openSecretStage, type SecretStage } from '../secrets/stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const root = person('root', true);
const PAGE = {} as never;

describe.each(backends())('sessions on %s', (_title) => {
  let stage: SecretStage;
  let sessions: Sessions;
  beforeAll(async () => {
    stage = await openSecretStage();
    sessions = createSessions({ ...stage, policy: () => ({ ...DEFAULT_SIGN_IN_POLICY, sessionLengthSeconds: 3600, sessionIdleSeconds: 600 }) });
  });
  afterAll(() => stage.close());

  async function newPerson(): Promise<string> {
    const userId = randomUUID();
    await stage.superuser('INSERT INTO keyguard_auth.users (id, name, email, email_verified) VALUES ($1, $1, $2, true)', [userId, `${userId}@example.com`]);
    return userId;
  }
  async function newSession(userId: string, ago: { readonly startedSeconds?: number; readonly usedSeconds?: number } = {}): Promise<string> {
    const id = randomUUID();
    await stage.superuser(
      `INSERT INTO keyguard_auth.sessions (id, user_id, token, expires_at, created_at, updated_at)
        VALUES ($1, $2, $1, CURRENT_TIMESTAMP + interval '1 day', CURRENT_TIMESTAMP - make_interval(secs => $3), CURRENT_TIMESTAMP - make_interval(secs => $4))`,
      [id, userId, ago.startedSeconds ?? 0, ago.usedSeconds ?? 0],
    );
    return id;
  }
  const there = async (userId: string): Promise<string[]> =>
    (await stage.superuser<{ id: string }>('SELECT id FROM keyguard_auth.sessions WHERE user_id = $1', [userId])).map(({ id }) => id);
  const entries = async (resource: string): Promise<unknown[]> =>
    (await stage.superuser<{ entry: Uint8Array }>('SELECT entry FROM keyguard.secret_audit_logs WHERE resource = $1 ORDER BY seq', [resource])).map(({ entry }) => JSON.parse(Buffer.from(entry).toString()));

  it('are listed and kept while they are neither too old nor too long unused', async () => {
    const userId = await newPerson();
    const good = [await newSession(userId), await newSession(userId, { startedSeconds: 3500, usedSeconds: 500 })];
    await newSession(userId, { startedSeconds: 3700, usedSeconds: 10 });
    await newSession(userId, { startedSeconds: 700, usedSeconds: 650 });
    expect((await sessions.list(userId, PAGE)).items.map(({ id }) => id).toSorted()).toEqual(good.toSorted());
    expect(await there(userId)).toHaveLength(4);
    await sessions.purge();
    expect((await there(userId)).toSorted()).toEqual(good.toSorted());
  });

  it('end in the name of who ends them, one or all, and of nobody but their person and administrators', async () => {
    const userId = await newPerson();
    const [first, second, third] = [await newSession(userId), await newSession(userId), await newSession(userId)];
    expect(await sessions.end(first!, person('somebody'))).toBe(false);
    expect(await sessions.end(first!, root)).toBe(true);
    expect(await entries(`session:${first}`)).toMatchObject([{ action: 'session.end', outcome: 'success', actor: 'user:root', user_id: userId }]);
    expect(await sessions.endAll(userId, person(userId), { except: third! })).toBe(1);
    expect(await there(userId)).toEqual([third]);
    expect(await sessions.endAll(userId, root)).toBe(1);
    expect(await entries(`user:${userId}`)).toMatchObject([
      { action: 'session.end_all', actor: `user:${userId}`, ended: 1 },
      { action: 'session.end_all', actor: 'user:root', ended: 1 },
    ]);
    expect(await entries(`session:${second}`)).toEqual([]);
  });
});
