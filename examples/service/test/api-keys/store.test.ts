/**
 * What provider keys promise, against the database itself: a value opens in its own place and as the newest one only, rotations that race
 * leave one value in use, no device's call is refused meanwhile, and nobody who acts for people reads a value.
 */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { ProviderKey } from '../../src/llm/routes.ts';
import { keyIn, keyMac, type KeyRow, type StoredApiKey } from '../../src/api-keys/rows.ts';
import type { ApiKeys } from '../../src/api-keys/store.ts';
import { RETIRED_KEPT_MS, DAY_MS } from '../../src/api-keys/versions.ts';
import { asJobs, asUser, asVerifier } from '../../src/db/as-user.ts';
import { keyUses } from '../../src/api-keys/uses.ts';
import { versionsOfKeys } from '../../src/api-keys/sealing.ts';
import { readSealed, rewrapRows, writeRewrapped } from '../../src/keys/sealed-tables.ts';
import { sealedVersions, versionsOfSecrets } from '../../src/secrets/rows.ts';
import { person } from '../roles/stage.ts';
import { backends } from '../stage.ts';
import { ann, AT_ONCE, deviceOf, newKey, openKeyStage, type KeyStage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const problem = (code: string): object => ({ name: 'HttpProblem', code });
const unavailable = { name: 'UnavailableError', seam: 'api_keys' };

describe.each(backends())('provider keys on %s', () => {
  let stage: KeyStage;
  let one: ReturnType<KeyStage['process']>;
  let keys: ApiKeys;

  beforeAll(async () => {
    stage = await openKeyStage();
    one = stage.process();
    keys = one.apiKeys;
    await keys.prepare();
    await edit(`INSERT INTO keyguard.administrators (user_id, granted_by, granted_at_ms, mac_key_id, mac) VALUES ('root', 'root', 1, 'none', decode(repeat('00', 32), 'hex'))`);
  });
  afterAll(() => stage?.close());

  const edit = <Row>(text: string, params: readonly unknown[] = []): Promise<Row[]> => stage.superuser<Row>(text, params);
  const value = (): string => `sk-${randomUUID()}`;
  /** What a device of the project calls with, without what the process has kept. */
  async function used(projectId: string, provider = 'openai', by = one): Promise<string> {
    by.providers.clear();
    const found = await by.providers.find(deviceOf(projectId), provider);
    return found === null ? 'none' : 'refusedBy' in found ? found.refusedBy : found.apiKey;
  }
  async function made(more: Parameters<typeof newKey>[1] = {}): Promise<{ readonly key: StoredApiKey; readonly projectId: string; readonly first: string }> {
    const [projectId, first] = [await stage.newProject(), value()];
    return { projectId, first, key: await keys.create(ann, projectId, newKey(first, more)) };
  }
  const root = person('root', true);
  const statesOf = async (id: string, who = ann): Promise<[number, string, string][]> => (await keys.versions(who, id, { limit: 100, before: null })).items.map(({ version, state, last4 }) => [version, state, last4]);
  const entries = (id: string): Promise<Record<string, unknown>[]> =>
    edit<{ entry: Uint8Array }>('SELECT entry FROM keyguard.secret_audit_logs WHERE resource = $1 ORDER BY seq', [`api_key:${id}`]).then((rows) => rows.map(({ entry }) => JSON.parse(Buffer.from(entry).toString()) as Record<string, unknown>));

  it('lives from its first value to its revocation, with each step on record and no value in any', async () => {
    const { key, projectId, first } = await made();
    expect(await used(projectId)).toBe(first);
    const [second, third] = [value(), value()];
    stage.provider.answer(() => 200);
    await keys.rotate(ann, key.id, second, { ...AT_ONCE, verify: true, reason: 'every quarter' });
    expect(await used(projectId)).toBe(second);
    expect(stage.provider.asked.at(-1)).toMatchObject({ method: 'GET', url: '/v1/models', headers: { authorization: `Bearer ${second}` } });
    await keys.rotate(ann, key.id, third, { ...AT_ONCE, overlapSeconds: 0 });
    expect(await statesOf(key.id)).toEqual([[3, 'active', third.slice(-4)], [2, 'retired', second.slice(-4)], [1, 'overlap', first.slice(-4)]]);

    // The overlap that the settings say is over, and the job comes by.
    stage.clock.now += 3600_000;
    await keys.endDue();
    expect((await statesOf(key.id)).map(([, state]) => state)).toEqual(['active', 'retired', 'retired']);
    const restored = await keys.restore(ann, key.id, 2, AT_ONCE);
    expect([restored.currentVersion, await used(projectId)]).toEqual([4, second]);
    // Of what was retired nothing is left after a week.
    stage.clock.now += RETIRED_KEPT_MS;
    await keys.endDue();
    await keys.endDue();
    expect((await statesOf(key.id)).map(([, state]) => state)).toEqual(['active', 'retired', 'destroyed', 'destroyed']);
    await expect(keys.restore(ann, key.id, 2, AT_ONCE)).rejects.toMatchObject(problem('version_destroyed'));
    await expect(keys.restore(ann, key.id, 4, AT_ONCE)).rejects.toMatchObject(problem('illegal_transition'));
    await expect(keys.restore(ann, key.id, 5, AT_ONCE)).rejects.toMatchObject(problem('not_found'));

    const revoked = await keys.revoke(ann, key.id);
    expect(revoked).toMatchObject({ isActive: false, isDefault: false, intact: true });
    expect(await used(projectId)).toBe('none');
    expect((await statesOf(key.id)).map(([, state]) => state)).toEqual(Array.from({ length: 4 }, () => 'destroyed'));
    expect(await edit(`SELECT 1 FROM keyguard.secret_versions WHERE subject_id = $1 AND (ciphertext IS NOT NULL OR wrapped_dek IS NOT NULL OR kek_id IS NOT NULL)`, [key.id])).toEqual([]);
    for (const late of [() => keys.rotate(ann, key.id, value(), AT_ONCE), () => keys.restore(ann, key.id, 3, AT_ONCE), () => keys.setDefault(ann, key.id, null), () => keys.update(ann, key.id, { name: 'x' }, null), () => keys.test(ann, key.id)]) {
      await expect(late()).rejects.toMatchObject(problem('illegal_transition'));
    }

    const log = await entries(key.id);
    expect(log.map(({ action, version }) => [action, version])).toEqual([
      ['api_key.create', 1], ['api_key.rotate', 2], ['api_key.rotate', 3], ['api_key.retire_version', 1], ['api_key.restore_version', 4],
      ['api_key.destroy_version', 1], ['api_key.destroy_version', 2], ['api_key.retire_version', 3], ['api_key.revoke', 4],
    ]);
    expect(log[1]).toMatchObject({ actor: 'user:ann', last4: second.slice(-4), replaced_version: 1, verified: true, reason: 'every quarter', revision: 2 });
    for (const secret of [first, second, third]) expect(JSON.stringify(log)).not.toContain(secret);
  });

  it('changes nothing for a value that the provider does not take', async () => {
    const { key, projectId, first } = await made();
    for (const status of [401, 403, 404, 429, 500, 302]) {
      stage.provider.answer((asked) => (asked === first ? 200 : status));
      await expect(keys.rotate(ann, key.id, value(), { ...AT_ONCE, verify: true })).rejects.toMatchObject(problem('verification_failed'));
      await expect(keys.create(ann, projectId, newKey(value(), { verify: true }))).rejects.toMatchObject(problem('verification_failed'));
    }
    expect(stage.provider.asked.filter(({ url }) => url === '/elsewhere')).toEqual([]);
    expect([await used(projectId), (await keys.get(ann, key.id)).revision]).toEqual([first, 1]);
    expect((await keys.list(ann, { projectId }, {})).items).toHaveLength(1);
    // What is in use is tried in the same way, and that is on record.
    expect(await keys.test(ann, key.id)).toMatchObject({ ok: true, code: 'accepted', status: 200, checkedAtMs: stage.clock.now });
    stage.provider.answer(() => 401);
    expect(await keys.test(ann, key.id)).toMatchObject({ ok: false, code: 'key_refused', status: 401 });
    stage.provider.answer(() => 200);
    expect((await entries(key.id)).filter(({ action }) => action === 'api_key.test')).toMatchObject([{ outcome: 'success', code: 'accepted' }, { outcome: 'failed', code: 'key_refused', status: 401 }]);
  });

  it('keeps one value in use while twenty rotations race in two processes, numbers them without a gap, and refuses no device', async () => {
    const { key, projectId, first } = await made();
    const two = stage.process();
    const values = Array.from({ length: 20 }, value);
    const known = new Set([first, ...values]);
    const race = { isOver: false };
    const readers = Promise.all(
      [one, two].map(async (process) => {
        const seen: string[] = [];
        while (!race.isOver) seen.push(await used(projectId, 'openai', process));
        return seen;
      }),
    );
    const rotated = await Promise.all(values.map((next, i) => (i % 2 === 0 ? keys : two.apiKeys).rotate(ann, key.id, next, AT_ONCE)));
    race.isOver = true;
    const seen = (await readers).flat();
    expect(seen.filter((found) => !known.has(found))).toEqual([]);
    expect(seen.length).toBeGreaterThan(10);
    expect(rotated.map(({ currentVersion }) => currentVersion).toSorted((a, b) => a - b)).toEqual(values.map((_, i) => i + 2));
    const states = await statesOf(key.id);
    expect(states.map(([version]) => version)).toEqual(Array.from({ length: 21 }, (_, i) => 21 - i));
    expect(states.filter(([, state]) => state === 'active')).toEqual([[21, 'active', states[0]![2]]]);
    const last = values[rotated.findIndex(({ currentVersion }) => currentVersion === 21)]!;
    expect([await used(projectId), await used(projectId, 'openai', two)]).toEqual([last, last]);
    expect((await entries(key.id)).filter(({ action }) => action === 'api_key.rotate').map(({ revision }) => revision)).toEqual(values.map((_, i) => i + 2));
  });

  it('is out of use in another process within a second of its rotation or revocation, and at once in its own', async () => {
    const [rotated, revoked] = [await made(), await made()];
    const two = stage.process();
    const kept = async (process: typeof one): Promise<(string | null)[]> =>
      Promise.all([rotated, revoked].map(async ({ projectId }) => ((await process.providers.find(deviceOf(projectId), 'openai')) as ProviderKey | null)?.apiKey ?? null));
    const before = [rotated.first, revoked.first];
    expect([await kept(one), await kept(two)]).toEqual([before, before]);
    const second = value();
    await keys.rotate(ann, rotated.key.id, second, AT_ONCE);
    expect(await kept(one)).toEqual([second, revoked.first]);
    await keys.revoke(ann, revoked.key.id);
    const sinceMs = performance.now();
    expect(await kept(one)).toEqual([second, null]);
    await vi.waitFor(async () => expect(await kept(two)).toEqual([second, null]), { timeout: 1500, interval: 20 });
    expect(performance.now() - sinceMs).toBeLessThan(1500);
    expect(new Set(two.used)).toEqual(new Set([rotated.key.id, revoked.key.id]));
  });

  it('opens no value in another place: row, version, project, provider, address, deployment', async () => {
    const { key, projectId, first } = await made();
    const other = await made();
    const placed = await made({ provider: 'azure', baseUrl: stage.provider.origin, options: { deployment: 'mine', apiVersion: '2024-10-21' } });
    expect(await used(placed.projectId, 'azure')).toBe(placed.first);
    const versionsOf = (id: string): Promise<Record<string, unknown>[]> => edit('SELECT ciphertext, wrapped_dek, kek_id FROM keyguard.secret_versions WHERE subject_id = $1 AND version = 1', [id]);
    const [[mine], [theirs]] = [await versionsOf(key.id), await versionsOf(other.key.id)];
    const write = (row: Record<string, unknown>): Promise<unknown> =>
      edit('UPDATE keyguard.secret_versions SET ciphertext = $2, wrapped_dek = $3, kek_id = $4 WHERE subject_id = $1 AND version = 1', [key.id, row['ciphertext'], row['wrapped_dek'], row['kek_id']]);
    for (const swap of [theirs!, { ...mine!, ciphertext: theirs!['ciphertext'] }, { ...mine!, wrapped_dek: theirs!['wrapped_dek'] }]) {
      await write(swap);
      await expect(used(projectId)).rejects.toMatchObject(unavailable);
    }
    await write(mine!);
    expect(await used(projectId)).toBe(first);

    // With a MAC that was made for the row as it is now, as whoever holds that key could: the seal holds alone.
    const vouch = async (id: string): Promise<void> => {
      const [row] = await edit<KeyRow>('SELECT * FROM keyguard.stored_api_keys WHERE id = $1', [id]);
      await edit('UPDATE keyguard.stored_api_keys SET mac = $2 WHERE id = $1', [id, await keyMac(stage.keys.rowMacKey, await keyIn(stage.keys.rowMacKey, row!))]);
      expect((await keys.get(ann, id)).intact).toBe(true);
    };
    const asked = stage.provider.asked.length;
    const columns: [string, unknown, StoredApiKey][] = [
      ['base_url', `${stage.provider.origin}/v1`, key], ['base_url', null, placed.key], ['deployment', 'theirs', placed.key], ['deployment', null, placed.key],
      ['api_version', '2099-01-01', placed.key], ['project_id', other.projectId, key], ['provider', 'anthropic', key], ['current_version', 2, key],
    ];
    for (const [column, changed, { id }] of columns) {
      const [row] = await edit<Record<string, unknown>>('SELECT * FROM keyguard.stored_api_keys WHERE id = $1', [id]);
      const isVersion = column === 'current_version';
      await edit(`UPDATE keyguard.stored_api_keys SET ${column} = $2, is_default = false WHERE id = $1`, [id, changed]);
      if (isVersion) await edit('UPDATE keyguard.secret_versions SET version = 2 WHERE subject_id = $1', [id]);
      expect([column, (await keys.get(ann, id)).intact]).toEqual([column, false]);
      await expect(keys.test(ann, id)).rejects.toMatchObject(problem('integrity_failed'));
      await vouch(id);
      await expect(keys.test(ann, id), column).rejects.toMatchObject(problem('integrity_failed'));
      await edit(`UPDATE keyguard.stored_api_keys SET ${column} = $2, is_default = $3, mac = $4 WHERE id = $1`, [id, row![column], row!['is_default'], row!['mac']]);
      if (isVersion) await edit('UPDATE keyguard.secret_versions SET version = 1 WHERE subject_id = $1', [id]);
    }
    expect(stage.provider.asked.length).toBe(asked);
    expect([await used(projectId), await used(placed.projectId, 'azure')]).toEqual([first, placed.first]);
  });

  it('acts on no row that was changed or put back in the database, and can still revoke it', async () => {
    const { key, projectId, first } = await made();
    const snapshot = async (): Promise<[Record<string, unknown>, Record<string, unknown>[]]> => [
      (await edit<Record<string, unknown>>('SELECT * FROM keyguard.stored_api_keys WHERE id = $1', [key.id]))[0]!,
      await edit<Record<string, unknown>>('SELECT * FROM keyguard.secret_versions WHERE subject_id = $1', [key.id]),
    ];
    const put = async (table: string, row: Record<string, unknown>): Promise<unknown> => {
      const names = Object.keys(row);
      return edit(`INSERT INTO keyguard.${table} (${names.join(', ')}) VALUES (${names.map((_, i) => `$${i + 1}`).join(', ')})`, Object.values(row));
    };
    const putBack = async ([row, versions]: Awaited<ReturnType<typeof snapshot>>): Promise<void> => {
      await edit('DELETE FROM keyguard.secret_versions WHERE subject_id = $1', [key.id]);
      await edit('DELETE FROM keyguard.stored_api_keys WHERE id = $1', [key.id]);
      await put('stored_api_keys', row);
      for (const version of versions) await put('secret_versions', version);
    };
    const old = await snapshot();
    expect(await used(projectId)).toBe(first);
    const second = value();
    await keys.rotate(ann, key.id, second, AT_ONCE);
    const now = await snapshot();

    // All of it, with its MAC and a value that opens: only the log knows better.
    await putBack(old);
    await expect(used(projectId)).rejects.toMatchObject(unavailable);
    // Nor does it help to change the columns beside the log's last word: another process, which remembers nothing, reads the entry itself.
    for (const column of ["action = 'api_key.test'", "resource = 'api_key:of-nobody'"]) {
      const elsewhere = stage.process();
      await edit(`UPDATE keyguard.secret_audit_logs SET ${column} WHERE resource = $1 AND action = 'api_key.rotate'`, [`api_key:${key.id}`]);
      await expect(used(projectId, 'openai', elsewhere), column).rejects.toMatchObject(unavailable);
      await edit(`UPDATE keyguard.secret_audit_logs SET action = 'api_key.rotate', resource = $1 WHERE convert_from(entry, 'UTF8') LIKE '%"action":"api_key.rotate"%' || $1::text || '"%'`, [`api_key:${key.id}`]);
    }
    for (const refused of [() => keys.update(ann, key.id, { name: 'x' }, null), () => keys.setDefault(ann, key.id, null), () => keys.create(ann, projectId, newKey(value()))]) {
      await expect(refused()).rejects.toMatchObject(problem('integrity_failed'));
    }
    await expect(keys.rotate(ann, key.id, value(), AT_ONCE)).rejects.toMatchObject(problem('integrity_failed'));
    await expect(keys.test(ann, key.id)).rejects.toMatchObject(problem('integrity_failed'));

    for (const change of ['name = name || $2', 'expires_at_ms = $2', 'rotate_every_days = $2', 'revision = revision + $2', 'last4 = $2']) {
      await putBack(now);
      await edit(`UPDATE keyguard.stored_api_keys SET ${change} WHERE id = $1`, [key.id, 7]);
      await expect(used(projectId)).rejects.toMatchObject(unavailable);
      await expect(keys.rotate(ann, key.id, value(), AT_ONCE)).rejects.toMatchObject(problem('integrity_failed'));
    }
    // The mark of a row of before the upgrade: nobody vouches for it again.
    await putBack(now);
    await edit('UPDATE keyguard.stored_api_keys SET mac = NULL, mac_key_id = NULL WHERE id = $1', [key.id]);
    await keys.prepare();
    await expect(used(projectId)).rejects.toMatchObject(unavailable);
    const untouched = await made();
    await edit('UPDATE keyguard.stored_api_keys SET mac = NULL, mac_key_id = NULL, name = $2 WHERE id = $1', [untouched.key.id, 'another']);
    await keys.prepare();
    await expect(used(untouched.projectId)).rejects.toMatchObject(unavailable);
    // An old version made the one that is in use, beside the row.
    await putBack(now);
    await edit(`UPDATE keyguard.secret_versions SET state = CASE version WHEN 1 THEN 'retired' ELSE state END, overlap_until_ms = NULL, retired_at_ms = CASE version WHEN 1 THEN 1 END WHERE subject_id = $1`, [key.id]);
    await edit('DELETE FROM keyguard.secret_versions WHERE subject_id = $1 AND version = 2', [key.id]);
    await edit(`UPDATE keyguard.secret_versions SET state = 'active', retired_at_ms = NULL WHERE subject_id = $1`, [key.id]);
    await expect(used(projectId)).rejects.toMatchObject(unavailable);
    await expect(keys.rotate(ann, key.id, value(), AT_ONCE)).rejects.toMatchObject(problem('integrity_failed'));

    await putBack(old);
    expect((await keys.revoke(ann, key.id)).isActive).toBe(false);
    expect(await used(projectId)).toBe('none');
    const next = await keys.create(ann, projectId, newKey(second));
    expect([next.isDefault, await used(projectId)]).toEqual([true, second]);
  });

  it('restores no version that was destroyed and came back with its row', async () => {
    const { key, projectId } = await made();
    const [version] = await edit<Record<string, unknown>>('SELECT ciphertext, wrapped_dek, kek_id FROM keyguard.secret_versions WHERE subject_id = $1', [key.id]);
    await keys.rotate(ann, key.id, value(), { ...AT_ONCE, overlapSeconds: 0 });
    stage.clock.now += RETIRED_KEPT_MS;
    await keys.endDue();
    await edit(`UPDATE keyguard.secret_versions SET state = 'retired', destroyed_at_ms = NULL, ciphertext = $2, wrapped_dek = $3, kek_id = $4 WHERE subject_id = $1 AND version = 1`, [key.id, version!['ciphertext'], version!['wrapped_dek'], version!['kek_id']]);
    await expect(keys.restore(ann, key.id, 1, AT_ONCE)).rejects.toMatchObject(problem('integrity_failed'));
    expect(await used(projectId)).not.toBe('none');
  });

  it('has one default for each project and provider, whoever races for it, and the old one does not come back', async () => {
    const { key, projectId, first } = await made();
    const second = value();
    const kept = await keys.create(ann, projectId, newKey(second, { isDefault: false }));
    expect([kept.isDefault, await used(projectId)]).toEqual([false, first]);
    const [asDefault] = await edit<Record<string, unknown>>('SELECT * FROM keyguard.stored_api_keys WHERE id = $1', [key.id]);
    await Promise.all(Array.from({ length: 6 }, (_, i) => keys.setDefault(ann, i % 2 === 0 ? kept.id : key.id, null)));
    await keys.setDefault(ann, kept.id, null);
    expect(await used(projectId)).toBe(second);
    const shown = await Promise.all([key.id, kept.id].map(async (id) => (await keys.get(ann, id)).isDefault));
    expect(shown).toEqual([false, true]);
    expect((await entries(key.id)).at(-1)).toMatchObject({ action: 'api_key.displace', in_favour_of: kept.id });
    // The row as it was when it was the default, with its MAC, in place of the other's default.
    await edit('UPDATE keyguard.stored_api_keys SET is_default = false WHERE id = $1', [kept.id]);
    await edit('UPDATE keyguard.stored_api_keys SET is_default = true, revision = $2, mac = $3 WHERE id = $1', [key.id, asDefault!['revision'], asDefault!['mac']]);
    expect((await keys.get(ann, key.id)).intact).toBe(true);
    await expect(used(projectId)).rejects.toMatchObject(unavailable);
  });

  it('goes where the operator lets it go, when it is stored and when it is used', async () => {
    const [projectId, first] = [await stage.newProject(), value()];
    const { origin } = stage.provider;
    for (const baseUrl of ['https://evil.example/v1', `${origin}@evil.example/v1`, `${origin}/v1?x=1`, `${origin}/v2`, 'http://example.com/v1', `${origin}/a/../v1x`, 'file:///v1', 'nonsense', origin.replace('127.0.0.1', 'localhost') + '/v1']) {
      await expect(keys.create(ann, projectId, newKey(first, { baseUrl })), baseUrl).rejects.toMatchObject(problem('upstream_not_allowed'));
    }
    const key = await keys.create(ann, projectId, newKey(first, { baseUrl: `${origin}/team/v1/`, verify: true }));
    expect([key.baseUrl, stage.provider.asked.at(-1)!.url]).toEqual([`${origin}/team/v1`, '/team/v1/models']);
    const found = (await one.providers.find(deviceOf(projectId), 'openai')) as ProviderKey;
    expect(found.upstream).toMatchObject({ basePath: '/team/v1', secure: false });
    // The same database under a list that has become shorter.
    const narrow = stage.process({ allowedOrigins: new Set() });
    expect(await used(projectId, 'openai', narrow)).toBe('provider_key_unplaced');
    const asked = stage.provider.asked.length;
    await expect(narrow.apiKeys.test(ann, key.id)).rejects.toMatchObject(problem('upstream_not_allowed'));
    await expect(narrow.apiKeys.rotate(ann, key.id, value(), { ...AT_ONCE, verify: true })).rejects.toMatchObject(problem('upstream_not_allowed'));
    expect(stage.provider.asked.length).toBe(asked);
    // Nothing of where it goes can be changed, by whoever acts for people.
    for (const change of [`base_url = 'x'`, `deployment = 'x'`, `provider = 'anthropic'`, `project_id = 'default'`]) {
      await expect(asUser(stage.sql, 'ann', (tx) => tx.query(`UPDATE keyguard.stored_api_keys SET ${change}, revision = revision + 1 WHERE id = $1`, [key.id]))).rejects.toMatchObject({ name: 'UnavailableError' });
    }
  });

  it('is used no more when it has expired, until it has another date or a value with one', async () => {
    const { key, projectId, first } = await made({ expiresAtMs: stage.clock.now + 1000 });
    expect(await used(projectId)).toBe(first);
    stage.clock.now += 1000;
    expect(await used(projectId)).toBe('provider_key_expired');
    await expect(keys.rotate(ann, key.id, value(), AT_ONCE)).rejects.toMatchObject(problem('illegal_transition'));
    const second = value();
    await keys.rotate(ann, key.id, second, { ...AT_ONCE, expiresAtMs: stage.clock.now + 1000 });
    expect(await used(projectId)).toBe(second);
    stage.clock.now += 1000;
    await keys.update(ann, key.id, { expiresAtMs: null }, null);
    expect(await used(projectId)).toBe(second);
  });

  it('is due for rotation as its policy says, or else the settings, in the list as in the key', async () => {
    const { projectId, key: usual } = await made();
    const [monthly, never] = await Promise.all([keys.create(ann, projectId, newKey(value(), { rotateEveryDays: 30, isDefault: false })), keys.create(ann, projectId, newKey(value(), { rotateEveryDays: 0, isDefault: false }))]);
    const due = async (rotationDue: boolean): Promise<Set<string>> => new Set((await keys.list(ann, { projectId, rotationDue }, {})).items.map(({ id }) => id));
    const ids = (...all: StoredApiKey[]): Set<string> => new Set(all.map(({ id }) => id));
    expect([await due(true), await due(false)]).toEqual([ids(), ids(usual, monthly, never)]);
    stage.clock.now += 30 * DAY_MS;
    expect([await due(true), await due(false)]).toEqual([ids(monthly), ids(usual, never)]);
    stage.clock.now += 60 * DAY_MS;
    expect(await due(true)).toEqual(ids(monthly, usual));
    stage.settings.every_days = 365;
    expect(await due(true)).toEqual(ids(monthly));
    stage.settings.every_days = null as never;
    expect(await due(true)).toEqual(ids(monthly));
    stage.settings.every_days = 90;
    await keys.rotate(ann, monthly.id, value(), AT_ONCE);
    await keys.revoke(ann, usual.id);
    expect(await due(true)).toEqual(ids());
  });

  it('knows when it was last used, stays as it was written, and opens when its keys were wrapped anew', async () => {
    const { key, projectId, first } = await made({ baseUrl: `${stage.provider.origin}/v1` });
    const uses = keyUses(stage.sql);
    uses.note(key.id);
    await uses.flush();
    expect(await keys.get(ann, key.id)).toMatchObject({ lastUsedAtMs: expect.any(Number), revision: 1, intact: true });
    const table = sealedVersions([versionsOfSecrets(stage.keys.deploymentId), versionsOfKeys(stage.keys.deploymentId)]);
    const { kek } = stage.keys;
    const rows = (await asJobs(stage.sql, (tx) => readSealed(tx, table, kek.primaryId(), null, 1000))).filter((row) => row['subject_id'] === key.id);
    const rewrapped = await rewrapRows(table, rows, kek.one(kek.primaryId()), kek.one(kek.primaryId()));
    expect(rewrapped.map(({ newWrapped }) => newWrapped !== null)).toEqual([true]);
    expect(await asJobs(stage.sql, (tx) => writeRewrapped(tx, table, rewrapped, kek.primaryId(), kek.primaryId()))).toBe(1);
    expect(await used(projectId)).toBe(first);
  });

  it('imports what the environment says once, again when it changes, and neither brings a revoked key back nor a value that was rotated', async () => {
    const [first, second, rotated] = [value(), value(), value()];
    const environment = async (): Promise<readonly StoredApiKey[]> => (await keys.list(root, { projectId: 'default', provider: 'google' }, {})).items;
    expect([await keys.importFromEnvironment('google', first), await keys.importFromEnvironment('google', first)]).toEqual(['stored', 'kept']);
    const [key] = await environment();
    await keys.rotate(root, key!.id, rotated, AT_ONCE);
    expect([await keys.importFromEnvironment('google', first), await used('default', 'google')]).toEqual(['kept', rotated]);
    stage.clock.now += 1;
    expect([await keys.importFromEnvironment('google', second), await used('default', 'google')]).toEqual(['stored', second]);
    expect((await environment()).map(({ isActive, last4 }) => [isActive, last4])).toEqual([[true, second.slice(-4)], [false, rotated.slice(-4)]]);
    expect((await statesOf(key!.id, root)).map(([, state]) => state)).toEqual(['destroyed', 'destroyed']);
    await keys.revoke(root, (await environment())[0]!.id);
    expect([await keys.importFromEnvironment('google', second), await used('default', 'google')]).toEqual(['kept', 'none']);
  });

  it('lets whoever acts for people write values and read none, devices the one in use, and jobs move states of keys alone', async () => {
    const { key, projectId } = await made();
    await keys.rotate(ann, key.id, value(), AT_ONCE);
    const kept = await keys.create(ann, projectId, newKey(value(), { isDefault: false }));
    const select = `SELECT subject_id, version FROM keyguard.secret_versions WHERE subject_type = 'api_key' AND subject_id = ANY ($1::text[])`;
    expect((await asUser(stage.sql, 'ann', (tx) => tx.query(select, [[key.id, kept.id]]))).rows).toEqual([]);
    expect((await asVerifier(stage.sql, (tx) => tx.query(select, [[key.id, kept.id]]))).rows).toEqual([{ subject_id: key.id, version: 2 }]);
    const insert = (id: string, as: string, by: string): Promise<unknown> =>
      asUser(stage.sql, as, (tx) => tx.query(`INSERT INTO keyguard.secret_versions (subject_type, subject_id, version, ciphertext, wrapped_dek, kek_id, state, created_by, created_at_ms, last4)
        SELECT 'api_key', $1, $2, '\\x00', '\\x00', id, 'active', $3, 1, 'last' FROM (SELECT $4::text AS id) AS k`, [id, 9, by, stage.keys.kek.primaryId()]));
    // With no version that is in its way.
    await edit('DELETE FROM keyguard.secret_versions WHERE subject_id = $1', [kept.id]);
    for (const [id, as, by] of [[kept.id, 'bob', 'bob'], [kept.id, 'ann', 'bob'], [randomUUID(), 'ann', 'ann'], [(await keys.revoke(ann, (await made()).key.id)).id, 'ann', 'ann']] as const) {
      await expect(insert(id, as, by)).rejects.toMatchObject({ seam: 'database' });
    }
    await insert(kept.id, 'ann', 'ann');
    for (const [state, more] of [['active', ''], ['destroyed', ', ciphertext = NULL, wrapped_dek = NULL, kek_id = NULL, destroyed_at_ms = 1, overlap_until_ms = NULL']] as const) {
      expect((await asUser(stage.sql, 'ann', (tx) => tx.query(`UPDATE keyguard.secret_versions SET state = '${state}'${more} WHERE subject_id = $1 RETURNING 1`, [key.id]))).rows).toEqual([]);
    }
    await expect(asJobs(stage.sql, (tx) => tx.query(`UPDATE keyguard.secret_versions SET state = 'active', overlap_until_ms = NULL WHERE subject_id = $1 AND version = 1`, [key.id]))).rejects.toMatchObject({ seam: 'database' });
    const secret = await stage.store().create(ann, { name: randomUUID(), type: 'generic', value: 'v', tags: [], projectId: null, expiresAtMs: undefined });
    await expect(asJobs(stage.sql, (tx) => tx.query(`UPDATE keyguard.secret_versions SET state = 'retired' WHERE subject_id = $1`, [secret.secret.id]))).rejects.toMatchObject({ seam: 'database' });
    // A stranger is told of nothing, and changes nothing.
    const bob = person('bob');
    for (const refused of [() => keys.get(bob, key.id), () => keys.versions(bob, key.id, { limit: 1, before: null }), () => keys.rotate(bob, key.id, value(), AT_ONCE), () => keys.test(bob, key.id), () => keys.setDefault(bob, kept.id, null), () => keys.revoke(bob, key.id)]) {
      await expect(refused()).rejects.toMatchObject(problem('not_found'));
    }
  });
});
