/** One-time links beside their HTTP: what ends one at which millisecond, also while it is being opened, and which of it the audit log knows. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { createLinks, type Links, type NewLink } from '../../src/secrets/shares-links.ts';
import { createShares } from '../../src/secrets/shares-store.ts';
import type { NewSecret } from '../../src/secrets/store.ts';
import { backends } from '../stage.ts';
import { addRole, assign, person } from '../roles/stage.ts';
import { openSecretStage, roleStage, type SecretStage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const ann = person('ann');
const bob = person('bob');
const VALUE = 'canary-value-behind-a-link';
const LIMITS = { max_life_s: 3600, max_views: 10 };
const LINK: NewLink = { maxViews: 1, expiresInSeconds: 60, passphrase: null };

describe.each(backends())('a link on %s', (_title) => {
  let stage: SecretStage;
  let links: Links;

  const newSecret = async (more: Partial<NewSecret> = {}): Promise<string> =>
    (await stage.store().create(ann, { name: randomUUID(), type: 'generic', value: VALUE, tags: [], projectId: null, expiresAtMs: undefined, ...more })).secret.id;
  const codes = async (id: string): Promise<unknown[]> =>
    (await stage.entriesOf(id)).filter(({ action }) => action === 'secret.open_link').map((entry) => entry['code'] ?? entry.outcome);

  beforeAll(async () => {
    stage = await openSecretStage();
    for (const id of ['ann', 'bob']) {
      await stage.superuser('INSERT INTO keyguard_auth.users (id, name, email, email_verified) VALUES ($1, $1, $2, true)', [id, `${id}@example.com`]);
    }
    links = createLinks({ ...stage, secrets: stage.store(), limits: () => LIMITS });
  });
  afterAll(() => stage.close());

  it('lives to the millisecond that it says, as long as the settings allow and no longer', async () => {
    const id = await newSecret();
    await expect(links.create(ann, id, { ...LINK, expiresInSeconds: 3601 })).rejects.toMatchObject({ code: 'invalid_request' });
    const { share, token } = await links.create(ann, id, { ...LINK, expiresInSeconds: 3600, maxViews: 2 });
    expect(share.expiresAtMs).toBe(stage.clock.now + 3_600_000);
    stage.clock.now += 3_600_000 - 1;
    expect(await links.open(token, null)).toMatchObject({ value: VALUE, viewsLeft: 1 });
    stage.clock.now += 1;
    expect(await links.open(token, null)).toBeNull();
    expect(await codes(id)).toEqual(['success', 'expired']);
  });

  it('gives nothing out that ends while it is being opened, and says in the log what ended it', async () => {
    const secrets = stage.store();
    const shares = createShares({ ...stage, secrets });
    for (const [code, overtake] of [
      ['expired', async () => void (stage.clock.now += 60_000)],
      ['revoked', async (id, shareId) => shares.revoke(ann, id, shareId)],
      ['used_up', async (_id, _shareId, token) => void (await links.open(token, null))],
    ] as const satisfies readonly [string, (id: string, shareId: string, token: string) => Promise<void>][]) {
      const id = await newSecret();
      const { share, token } = await links.create(ann, id, LINK);
      const openFor: typeof secrets.parts.openFor = async (...asked) => {
        const revealed = await secrets.parts.openFor(...asked);
        await overtake(id, share.id, token);
        return revealed;
      };
      const overtaken = createLinks({ ...stage, secrets: { rows: secrets.rows, parts: { ...secrets.parts, openFor } }, limits: () => LIMITS });
      expect(await overtaken.open(token, null), code).toBeNull();
      expect(await codes(id)).toEqual(code === 'used_up' ? ['success', code] : [code]);
    }
  });

  it('opens no secret that has expired, whose owner alone may read it then, and who would have to say so', async () => {
    const id = await newSecret({ expiresAtMs: stage.clock.now + 1000 });
    const { token } = await links.create(ann, id, LINK);
    stage.clock.now += 1000;
    expect(await links.open(token, null)).toBeNull();
    expect(await codes(id)).toEqual(['no_longer_shared']);
  });

  it('opens for nobody while its maker is disabled, also where the secret is the maker’s own', async () => {
    const id = await newSecret();
    const { token } = await links.create(ann, id, LINK);
    await stage.superuser(`INSERT INTO keyguard.disabled_people (user_id, disabled_by, disabled_at_ms) VALUES ('ann', 'root', 1)`);
    expect(await links.open(token, null)).toBeNull();
    await stage.superuser(`DELETE FROM keyguard.disabled_people WHERE user_id = 'ann'`);
    expect(await links.open(token, null)).toMatchObject({ value: VALUE });
    expect(await codes(id)).toEqual(['no_longer_shared', 'success']);
  });

  it('opens no more once what its maker may still read is only shared with the maker', async () => {
    const id = await newSecret();
    const roles = roleStage(stage);
    const assigned = await assign(roles, { userId: 'bob', roleId: await addRole(roles, randomUUID(), ['secrets:read', 'secrets:reveal', 'secrets:share']) });
    const { token } = await links.create(bob, id, LINK);
    await assign(roles, { userId: 'bob', roleId: await addRole(roles, randomUUID(), ['secrets:read', 'secrets:share']) });
    await createShares({ ...stage, secrets: stage.store() }).give(ann, id, { grantee: { type: 'user', id: 'bob' }, permission: 'read', expiresAtMs: null });
    await stage.superuser('DELETE FROM keyguard.secret_user_roles WHERE id = $1', [assigned]);
    expect((await stage.store().reveal(bob, id, { version: null, allowExpired: false })).value).toBe(VALUE);
    expect(await links.open(token, null)).toBeNull();
    expect(await codes(id)).toEqual(['no_longer_shared']);
    await stage.superuser(`DELETE FROM keyguard.secret_user_roles WHERE user_id = 'bob'`);
  });

  it('is on record as made by who made it, and not by whose secret it is', async () => {
    const id = await newSecret();
    const roles = roleStage(stage);
    await assign(roles, { userId: 'bob', roleId: await addRole(roles, randomUUID(), ['secrets:read', 'secrets:reveal', 'secrets:share']) });
    const { share } = await links.create(bob, id, LINK);
    expect(share.createdBy).toBe('bob');
    expect(await stage.entriesOf(id)).toContainEqual(expect.objectContaining({ action: 'secret.create_link', actor: 'user:bob', share_id: share.id }));
  });
});
