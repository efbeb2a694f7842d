/** Changes of secrets where two of them meet, or meet an end: who may change what has expired, for how long anything may live, and what is left of the rest. */
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { Permission } from '../../src/roles/permissions.ts';
import { listSecrets } from '../../src/secrets/listing.ts';
import type { HeldSecret } from '../../src/secrets/rows.ts';
import { stateOf, type NewSecret, type NewVersion, type SecretStore } from '../../src/secrets/store.ts';
import { backends } from '../stage.ts';
import { addProject, addRole, assign, person } from '../roles/stage.ts';
import { CERTIFICATE, openSecretStage, roleStage, type SecretStage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const [ann, bob] = [person('ann'), person('bob')];
const DAY_MS = 86_400_000;
const problem = (code: string): object => ({ name: 'HttpProblem', code });
const version = (value: string, more: Partial<NewVersion> = {}): NewVersion => ({ value, reason: null, expiresAtMs: undefined, ifMatch: null, ...more });

describe.each(backends())('secrets on %s', (_title) => {
  let stage: SecretStage;
  let store: SecretStore;

  beforeAll(async () => {
    stage = await openSecretStage();
    store = stage.store();
  });
  afterAll(() => stage.close());

  const newSecret = (value: string, more: Partial<NewSecret> = {}, by = store): Promise<HeldSecret> =>
    by.create(ann, { name: randomUUID(), type: 'generic', value, tags: [], projectId: null, expiresAtMs: undefined, ...more });
  const read = async (id: string, which: number | null = null): Promise<string> => (await store.reveal(ann, id, { version: which, allowExpired: false })).value;
  const hold = async (userId: string, permissions: readonly Permission[]): Promise<string> => {
    const rows = roleStage(stage);
    const projectId = await addProject(rows, 'ann');
    await assign(rows, { userId, roleId: await addRole(rows, randomUUID(), permissions), projectId });
    return projectId;
  };

  it('that have expired are neither read nor changed by others from that millisecond on, whatever they ask for', async () => {
    const projectId = await hold('bob', ['secrets:read', 'secrets:reveal', 'secrets:update']);
    const expiresAtMs = stage.clock.now + 1000;
    const { secret } = await newSecret('stale', { projectId, expiresAtMs });
    stage.clock.now += 999;
    expect((await store.update(bob, secret.id, { tags: ['in time'] }, null)).secret.tags).toEqual(['in time']);
    stage.clock.now += 1;
    await expect(store.update(bob, secret.id, { expiresAtMs: null }, null)).rejects.toMatchObject(problem('secret_expired'));
    await expect(store.addVersion(bob, secret.id, version('mine', { expiresAtMs: null }))).rejects.toMatchObject(problem('secret_expired'));
    for (const allowExpired of [false, true]) await expect(store.reveal(bob, secret.id, { version: null, allowExpired })).rejects.toMatchObject(problem('secret_expired'));
    expect((await store.update(ann, secret.id, { expiresAtMs: null }, null)).secret.expiresAtMs).toBeNull();
  });

  it('live no longer than the settings allow, whichever way the end is set', async () => {
    const limited = stage.store({ lives: () => ({ default_life_days: 1, max_life_days: 2 }) });
    const tooLong = stage.clock.now + 3 * DAY_MS;
    for (const expiresAtMs of [tooLong, null]) {
      await expect(newSecret('x', { expiresAtMs }, limited)).rejects.toMatchObject(problem('invalid_request'));
      const { secret } = await newSecret('x', {}, limited);
      expect(secret.expiresAtMs).toBe(stage.clock.now + DAY_MS);
      await expect(limited.update(ann, secret.id, { expiresAtMs }, null)).rejects.toMatchObject(problem('invalid_request'));
      await expect(limited.addVersion(ann, secret.id, version('y', { expiresAtMs }))).rejects.toMatchObject(problem('invalid_request'));
      expect((await store.read(ann, secret.id)).secret).toEqual(secret);
    }
  });

  it('live no longer than the settings allow where a new value brings along an end of its own', async () => {
    const { secret } = await newSecret(CERTIFICATE, { type: 'certificate' });
    expect(new Date(secret.expiresAtMs!).getUTCFullYear()).toBe(2126);
    const limited = stage.store({ lives: () => ({ default_life_days: null, max_life_days: 30 }) });
    expect((await limited.addVersion(ann, secret.id, version(CERTIFICATE))).secret.expiresAtMs).toBe(stage.clock.now + 30 * DAY_MS);
  });

  it('lose no update of two that have seen the same state', async () => {
    const { secret } = await newSecret('x');
    let arrived = 0;
    let go = (): void => {};
    const both = new Promise<void>((resolve) => {
      go = resolve;
    });
    const abreast = stage.store({
      access: {
        async permissionsOn(...asked) {
          if ((arrived += 1) === 2) go();
          // The embedded database has one connection, so there the second has not begun.
          await Promise.race([both, pause(200)]);
          return stage.access.permissionsOn(...asked);
        },
      },
    });
    const all = await Promise.allSettled(['a', 'b'].map((tag) => abreast.update(ann, secret.id, { tags: [tag] }, [stateOf(secret)])));
    expect(all.map(({ status }) => status).toSorted()).toEqual(['fulfilled', 'rejected']);
    expect(all.find((each) => each.status === 'rejected')!.reason).toMatchObject(problem('precondition_failed'));
  });

  it('take no value over a change that was made while it was being sealed', async () => {
    const { secret } = await newSecret('x');
    const { kek } = stage.keys;
    let hasChanged = false;
    const slow = stage.store({
      keys: {
        ...stage.keys,
        kek: {
          ...kek,
          async wrap(...asked) {
            if (!hasChanged) await store.update(ann, secret.id, { tags: ['by another'] }, null);
            hasChanged = true;
            return kek.wrap(...asked);
          },
        },
      },
    });
    await expect(slow.addVersion(ann, secret.id, version('y', { ifMatch: [stateOf(secret)] }))).rejects.toMatchObject(problem('precondition_failed'));
    expect((await store.read(ann, secret.id)).secret).toMatchObject({ currentVersion: 1, tags: ['by another'] });
  });

  it('keep all versions but the one that is destroyed', async () => {
    const { secret } = await newSecret('first');
    for (const value of ['second', 'third']) await store.addVersion(ann, secret.id, version(value));
    await store.destroyVersion(ann, secret.id, 2);
    await expect(read(secret.id, 2)).rejects.toMatchObject(problem('version_destroyed'));
    expect([await read(secret.id, 1), await read(secret.id, 3)]).toEqual(['first', 'third']);
  });

  it('are restored by who may change them, who need not be let read them, and not to what they are', async () => {
    const projectId = await hold('editor', ['secrets:read', 'secrets:update']);
    const { secret } = await newSecret('first', { projectId });
    await store.addVersion(ann, secret.id, version('second'));
    await expect(store.restore(person('editor'), secret.id, 2, null)).rejects.toMatchObject(problem('illegal_transition'));
    expect((await store.restore(person('editor'), secret.id, 1, null)).secret.currentVersion).toBe(3);
    expect(await read(secret.id)).toBe('first');
  });

  it('come into no project that is archived', async () => {
    const projectId = await addProject(roleStage(stage), 'ann');
    await stage.superuser('UPDATE keyguard.api_key_projects SET archived_at_ms = 2 WHERE id = $1', [projectId]);
    await expect(newSecret('x', { projectId })).rejects.toMatchObject(problem('not_found'));
  });

  it('open for nobody where the entry of their last version was cut out of the log', async () => {
    const { secret } = await newSecret('first');
    await store.addVersion(ann, secret.id, version('second'));
    await stage.superuser(`DELETE FROM keyguard.secret_audit_logs WHERE resource = $1 AND action = 'secret.add_version'`, [`secret:${secret.id}`]);
    await expect(stage.store().reveal(ann, secret.id, { version: null, allowExpired: false })).rejects.toMatchObject(problem('integrity_failed'));
  });

  it('are in no list once they are deleted, by its own check alone, and in that of what expires only before the end of it', async () => {
    const expiresAtMs = stage.clock.now + 5 * DAY_MS;
    const { secret } = await newSecret('x', { expiresAtMs });
    const listed = async (expiringBeforeMs?: number): Promise<boolean> =>
      (await listSecrets(stage.sql, store.rows, ann, { name: secret.name, expiringBeforeMs }, {} as never)).items.some(({ secret: { id } }) => id === secret.id);
    expect([await listed(), await listed(expiresAtMs), await listed(expiresAtMs + 1)]).toEqual([true, false, true]);
    await store.destroy(ann, secret.id, null);
    await stage.superuser('ALTER ROLE kg_app BYPASSRLS');
    try {
      expect(await listed()).toBe(false);
    } finally {
      await stage.superuser('ALTER ROLE kg_app NOBYPASSRLS');
    }
  });
});
