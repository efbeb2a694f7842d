/** What a share is worth when whoever gave it is not who they were, and whose shares are whose where no policy helps. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { Permission } from '../../src/roles/permissions.ts';
import { createShares, type Share, type Shares } from '../../src/secrets/shares-store.ts';
import { backends } from '../stage.ts';
import { addRole, assign, person, program } from '../roles/stage.ts';
import { openSecretStage, roleStage, type SecretStage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const [ann, bob, cat, dan] = [person('ann'), person('bob'), person('cat'), person('dan')];
const MAY_SHARE: readonly Permission[] = ['secrets:read', 'secrets:reveal', 'secrets:share'];
const PAGE = { binding: 'shares', limit: 50 } as never;

describe.each(backends())('shares on %s', (_title) => {
  let stage: SecretStage;
  let shares: Shares;

  beforeAll(async () => {
    stage = await openSecretStage();
    for (const { userId } of [ann, bob, cat, dan]) {
      await stage.superuser('INSERT INTO keyguard_auth.users (id, name, email, email_verified) VALUES ($1, $1, $2, true)', [userId, `${userId}@example.com`]);
    }
    shares = createShares({ ...stage, secrets: stage.store() });
  });
  afterAll(() => stage.close());

  const newSecret = async (): Promise<string> =>
    (await stage.store().create(ann, { name: randomUUID(), type: 'generic', value: 'canary', tags: [], projectId: null, expiresAtMs: undefined })).secret.id;
  const give = (by: typeof ann, id: string, to: typeof ann, permission: 'read' | 'write' = 'read'): Promise<Share> =>
    shares.give(by, id, { grantee: { type: 'user', id: to.userId }, permission, expiresAtMs: null });
  const opens = (who: typeof ann, id: string): Promise<boolean> =>
    stage.store().reveal(who, id, { version: null, allowExpired: false }).then(() => true, () => false);
  const hold = async (userId: string, permissions: readonly Permission[]): Promise<() => Promise<unknown>> => {
    const assignment = await assign(roleStage(stage), { userId, roleId: await addRole(roleStage(stage), randomUUID(), permissions) });
    return () => stage.superuser('DELETE FROM keyguard.secret_user_roles WHERE id = $1', [assignment]);
  };
  const disabled = async (userId: string, work: () => Promise<void>): Promise<void> => {
    await stage.superuser(`INSERT INTO keyguard.disabled_people (user_id, disabled_by, disabled_at_ms) VALUES ($1, 'root', 1)`, [userId]);
    await work();
    await stage.superuser('DELETE FROM keyguard.disabled_people WHERE user_id = $1', [userId]);
  };

  it('count while who passed them on may come in, and those of the owner whether or not', async () => {
    const [byBob, byAnn] = [await newSecret(), await newSecret()];
    const take = await hold('bob', MAY_SHARE);
    await give(bob, byBob, cat);
    await give(ann, byAnn, cat);
    expect([await opens(cat, byBob), await opens(cat, byAnn)]).toEqual([true, true]);
    await disabled('bob', async () => expect([await opens(cat, byBob), await opens(cat, byAnn)]).toEqual([false, true]));
    await disabled('ann', async () => expect(await opens(cat, byAnn)).toBe(true));
    expect(await opens(cat, byBob)).toBe(true);
    await take();
  });

  it('count no more once who passed them on may share and not open, or open and not share', async () => {
    const id = await newSecret();
    const takeAll = await hold('bob', MAY_SHARE);
    await give(bob, id, cat);
    const takeSharing = await hold('bob', ['secrets:read', 'secrets:share']);
    await takeAll();
    expect(await opens(cat, id)).toBe(false);
    await takeSharing();
    const takeAgain = await hold('bob', MAY_SHARE);
    const takeRest = await hold('bob', ['secrets:read', 'secrets:reveal']);
    expect(await opens(cat, id)).toBe(true);
    await takeAgain();
    expect([await opens(bob, id), await opens(cat, id)]).toEqual([true, false]);
    await takeRest();
  });

  it('are not a program’s to give of what others own, whatever roles it holds', async () => {
    const id = await newSecret();
    const take = await hold('robot', MAY_SHARE);
    await expect(shares.give(program('robot', MAY_SHARE), id, { grantee: { type: 'user', id: 'cat' }, permission: 'read', expiresAtMs: null })).rejects.toMatchObject({ code: 'forbidden' });
    expect(await opens(cat, id)).toBe(false);
    await take();
  });

  it('are an administrator’s to give no more than anybody’s: nobody shares more than they may do themselves', async () => {
    const id = await newSecret();
    const take = await hold('root', ['secrets:read', 'secrets:share']);
    await expect(give(person('root', true), id, cat)).rejects.toMatchObject({ code: 'forbidden' });
    await take();
  });

  it('are shown to whom they are for as far as each counts, and are for some time to come', async () => {
    const id = await newSecret();
    const take = await hold('bob', MAY_SHARE);
    await give(bob, id, cat);
    const byAnn = await give(ann, id, cat);
    const shown = async (): Promise<string[]> => (await shares.withMe(cat, PAGE)).items.filter(({ secret }) => secret.id === id).map(({ share }) => share.id);
    const again = await give(bob, id, cat);
    expect((await shown()).toSorted()).toEqual([byAnn.id, again.id].toSorted());
    await take();
    expect(await shown()).toEqual([byAnn.id]);
    const until = (expiresAtMs: number): Promise<Share> => shares.give(ann, id, { grantee: { type: 'user', id: 'cat' }, permission: 'read', expiresAtMs });
    await expect(until(stage.clock.now)).rejects.toMatchObject({ code: 'invalid_request' });
    expect(await shown()).toEqual([byAnn.id]);
    const brief = await until(stage.clock.now + 60_000);
    expect(await shown()).toEqual([brief.id]);
    stage.clock.now += 60_000;
    expect(await shown()).toEqual([]);
  });

  it('are taken back in the name of who does it', async () => {
    const id = await newSecret();
    const take = await hold('bob', MAY_SHARE);
    const { id: shareId } = await give(bob, id, cat);
    await shares.revoke(ann, id, shareId);
    expect((await stage.entriesOf(id)).filter(({ action }) => action.includes('share'))).toMatchObject([
      { action: 'secret.share', actor: 'user:bob', share_id: shareId, grantee: 'user:cat' },
      { action: 'secret.unshare', actor: 'user:ann', share_id: shareId, grantee: 'user:cat' },
    ]);
    await take();
  });

  it('are not over who else made them to change, to list or to take back, by its own check alone', async () => {
    const id = await newSecret();
    const take = await hold('bob', MAY_SHARE);
    await stage.superuser('ALTER ROLE kg_app BYPASSRLS');
    try {
      const byAnn = await give(ann, id, cat, 'write');
      const byBob = await give(bob, id, cat);
      const { items } = await shares.list(ann, id, PAGE);
      expect(items.map((share) => [share.id, share.revokedAtMs]).toSorted()).toEqual([[byAnn.id, null], [byBob.id, null]].toSorted());
      expect((await shares.list(bob, id, PAGE)).items.map((share) => share.id)).toEqual([byBob.id]);
      for (const other of [bob, dan]) await expect(shares.revoke(other, id, byAnn.id)).rejects.toMatchObject({ code: 'not_found' });
    } finally {
      await stage.superuser('ALTER ROLE kg_app NOBYPASSRLS');
    }
    await take();
  });
});
