/**
 * A database of the version before keys had versions: its values open after the upgrade, a revoked key stays revoked and loses its value,
 * and a row of which the audit log knows nothing is not vouched for.
 */
import { randomUUID } from 'node:crypto';
import { cp, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { utf8 } from '@keyguard/core/bytes';
import { seal } from '@keyguard/core/vault';
import { grantRolesTo, migrate, postgresKeyRecords, type SqlClient } from '@keyguard/storage-node/postgres';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import { auditLog } from '../../src/audit/log.ts';
import { asJobs } from '../../src/db/as-user.ts';
import { loginOf, openEmbedded, openPostgresOwner } from '../../src/db/connect.ts';
import { openDeploymentKeys } from '../../src/keys/hierarchy.ts';
import { rootKeyOf } from '../keys/stage.ts';
import { backends, caller, folder, remove, startService, type Backend, type Deployment, type Running } from '../stage.ts';
import { startProvider, type FakeProvider } from './stage.ts';

const MIGRATIONS = fileURLToPath(new URL('../../migrations', import.meta.url));
const ADMIN = { KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: 'a long and quiet password' };

vi.setConfig({ testTimeout: 120_000, hookTimeout: 60_000 });

describe.each(backends())('keys of the version before, on %s', (_title, open) => {
  let backend: Backend;
  let deployment: Deployment;
  let provider: FakeProvider;
  let service: Running | undefined;
  let files: string;
  const value = (): string => `sk-${randomUUID()}`;
  const values = { used: value(), kept: value(), revoked: value(), ofEnvironment: value(), forged: value(), moved: value() };
  const ids = Object.fromEntries(Object.keys(values).map((name) => [name, randomUUID()])) as Record<keyof typeof values, string>;

  /** What the service of then had: the migrations up to it. */
  async function migrateBefore(): Promise<void> {
    files = await folder();
    await cp(MIGRATIONS, files, { recursive: true });
    for (const name of await readdir(files)) if (name >= '0055') await rm(join(files, name));
    const migrations = [{ component: 'service', directory: files, schema: 'keyguard_auth' }];
    const { DATABASE_URL: url, DATABASE_OWNER_URL: ownerUrl } = deployment.environment;
    const owner = url === undefined ? await openEmbedded(join(deployment.folder, 'data')) : openPostgresOwner(ownerUrl!, () => {});
    await migrate(owner.sql, { migrations });
    if (url !== undefined) await grantRolesTo(owner.sql, loginOf(url));
    await owner.close();
  }

  /** As it was written then. */
  async function writeBefore(sql: SqlClient): Promise<void> {
    const keys = await openDeploymentKeys(postgresKeyRecords(sql), rootKeyOf(deployment));
    const audit = auditLog(sql, keys);
    await asJobs(sql, (tx) => tx.query(`INSERT INTO keyguard.api_key_projects (id, owner_id, name, environment, created_at_ms) VALUES ('default', 'system', 'default', 'production', 1)`));
    const rows: [keyof typeof values, string, 'api' | 'environment', boolean, boolean][] = [
      ['used', 'openai', 'api', true, true], ['kept', 'openai', 'api', false, true], ['revoked', 'anthropic', 'environment', false, false],
      ['ofEnvironment', 'google', 'environment', true, true], ['forged', 'openai', 'api', false, true], ['moved', 'openai', 'api', false, true],
    ];
    for (const [name, provider, source, isDefault, isActive] of rows) {
      const sealed = await seal(utf8(values[name]), { deploymentId: keys.deploymentId, table: 'stored_api_keys', row: ids[name], column: 'value', version: 1, purpose: `provider-key\n${provider}\ndefault` }, { keyProvider: keys.kek, primitives: nodeVaultPrimitives() });
      await sql.transaction(async (tx) => {
        await tx.query(`SELECT set_config('role', 'kg_jobs', true)`);
        await tx.query(
          `INSERT INTO keyguard.stored_api_keys (id, project_id, owner_id, provider, name, last4, source, ciphertext, wrapped_dek, kek_id, current_version, is_default, created_at_ms)
            VALUES ($1, 'default', 'system', $2, $3, $4, 'environment', $5, $6, $7, 1, $8, 1)`,
          [ids[name], provider, name, values[name].slice(-4), sealed.ciphertext, sealed.wrappedDek, sealed.kekId, isDefault],
        );
        if (!isActive) await tx.query('UPDATE keyguard.stored_api_keys SET is_active = false, revoked_at_ms = 2 WHERE id = $1', [ids[name]]);
      });
      // Somebody has written a row that nobody stored; and one that is another provider's by its entry.
      if (name === 'forged') continue;
      const entry = { outcome: 'success', actor: 'system', resource: `api_key:${ids[name]}`, provider: name === 'moved' ? 'google' : provider } as const;
      await audit.record({ ...entry, action: source === 'api' ? 'api_key.create' : 'api_key.import', project_id: 'default' });
      if (!isActive) await audit.record({ ...entry, action: 'api_key.revoke' });
    }
  }

  beforeAll(async () => {
    [backend, provider] = [await open(), await startProvider()];
    deployment = await backend.deploy({ isEmpty: true });
    await migrateBefore();
    await deployment.withDatabase(writeBefore);
  });
  afterAll(async () => {
    await service?.stop('SIGKILL');
    await provider?.stop();
    await remove(files);
    await backend?.stop();
  });

  it('open as before, get their MACs once, and live on', async () => {
    const environment = {
      ...ADMIN, ...deployment.environment, OPENAI_BASE_URL: `${provider.origin}/v1`, ANTHROPIC_BASE_URL: provider.origin, GOOGLE_GEMINI_BASE_URL: provider.origin,
      ANTHROPIC_API_KEY: values.revoked, GOOGLE_API_KEY: values.ofEnvironment,
    };
    service = await startService(deployment.folder, environment);
    expect(service.output()).toMatch(/the schema was brought up to date/);
    let { origin } = service;
    const call = caller(() => origin);
    const token = (await call('POST', '/api/auth/sign-in/email', { body: { email: ADMIN.KEYGUARD_ADMIN_EMAIL, password: ADMIN.KEYGUARD_ADMIN_PASSWORD } })).headers.get('set-auth-token')!;
    const { code } = (await call('POST', '/api/enrollment-codes', { token, body: {} })).json;
    const client = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
    await client.enroll({ code });
    const ask = async (path: string): Promise<number> => (await client.fetch(origin + path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"model":"m"}' })).status;

    expect([await ask('/v1/chat/completions'), provider.asked.at(-1)!.headers.authorization]).toEqual([200, `Bearer ${values.used}`]);
    expect([await ask('/proxy/google/v1/models/m:generateContent'), provider.asked.at(-1)!.headers['x-goog-api-key']]).toEqual([200, values.ofEnvironment]);
    // What was revoked does not come back with the environment that still says it.
    expect(await ask('/proxy/anthropic/v1/messages')).toBe(403);
    const shown = (await call('GET', '/api/api-keys', { token })).json.data as { id: string; intact: boolean; is_active: boolean; current_version: number }[];
    expect(shown).toHaveLength(Object.keys(values).length);
    const stateOf = (name: keyof typeof values): unknown => {
      const { intact, is_active: isActive } = shown.find(({ id }) => id === ids[name])!;
      return [intact, isActive];
    };
    expect([stateOf('used'), stateOf('kept'), stateOf('ofEnvironment'), stateOf('revoked')]).toEqual([[true, true], [true, true], [true, true], [true, false]]);
    expect([stateOf('forged'), stateOf('moved')]).toEqual([[false, true], [false, true]]);
    expect((await call('GET', `/api/api-keys/${ids.revoked}/versions`, { token })).json.data).toMatchObject([{ version: 1, state: 'destroyed' }]);
    for (const name of ['forged', 'moved'] as const) expect((await call('POST', `/api/api-keys/${ids[name]}/default`, { token })).json.code).toBe('integrity_failed');

    const next = value();
    expect((await call('POST', `/api/api-keys/${ids.used}/rotate`, { token, body: { value: next } })).json).toMatchObject({ current_version: 2 });
    expect([await ask('/v1/chat/completions'), provider.asked.at(-1)!.headers.authorization]).toEqual([200, `Bearer ${next}`]);
    expect((await call('POST', `/api/api-keys/${ids.used}/versions/1/restore`, { token, body: {} })).json).toMatchObject({ current_version: 3, last4: values.used.slice(-4) });

    await service.stop();
    // A second start vouches for nothing more.
    service = await startService(deployment.folder, { ...environment, PORT: new URL(origin).port });
    ({ origin } = service);
    expect([await ask('/v1/chat/completions'), provider.asked.at(-1)!.headers.authorization]).toEqual([200, `Bearer ${values.used}`]);
    const entries = (await call('GET', '/api/audit?limit=200', { token })).json.data as { action: string; resource: string }[];
    expect(entries.filter(({ action }) => action === 'api_key.adopt').map(({ resource }) => resource.slice('api_key:'.length)).toSorted()).toEqual([ids.used, ids.kept, ids.ofEnvironment, ids.revoked].toSorted());
  });
});
