/** A backup is whole, refuses what it must, and gives back a service that goes on; damage is found before anything is kept. */
import { readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { backends, caller, runCli, startService, type Backend, type Deployment, type PostgresBackend } from '../stage.ts';
import { openKeys, openRows, sealRows } from '../keys/stage.ts';

vi.setConfig({ testTimeout: 600_000, hookTimeout: 120_000 });

const ADMIN = { KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: 'a long and quiet password' };
const ROWS = 50;

describe.each(backends())('a backup of %s', (_title, openBackend) => {
  let backend: Backend;
  let from: Deployment;
  let to: Deployment;
  beforeAll(async () => {
    backend = await openBackend();
    from = await backend.deploy();
    to = await backend.deploy({ isEmpty: true });
  });
  afterAll(() => backend.stop());

  const isServer = (deployment: Deployment): boolean => deployment.environment['DATABASE_URL'] !== undefined;
  const run = (deployment: Deployment, args: readonly string[], environment: Record<string, string> = {}): ReturnType<typeof runCli> =>
    runCli(deployment.folder, [...args, '--folder', deployment.folder], {
      ...deployment.environment,
      KEYGUARD_ROOT_KEY_FILE: join(from.folder, 'data', 'root.key'),
      ...(isServer(deployment) && { BACKUP_DATABASE_URL: (backend as PostgresBackend).superuserUrl(deployment) }),
      ...environment,
    });

  it('is put into an empty database alone, whole and verified, and the service goes on with it', async () => {
    const stage = await openKeys(from);
    await sealRows(stage.sql, stage.keys, ROWS);
    const before = await openRows(stage.sql, stage.keys);
    await stage.close();
    const service = await startService(from.folder, { ...from.environment, ...ADMIN });
    const call = caller(() => service.origin);
    const body = { email: ADMIN.KEYGUARD_ADMIN_EMAIL, password: ADMIN.KEYGUARD_ADMIN_PASSWORD };
    const token = (await call('POST', '/api/auth/sign-in/email', { body })).headers.get('set-auth-token')!;
    await call('POST', '/api/enrollment-codes', { token, body: { label: 'in the backup' } });
    const file = join(from.folder, 'kept.backup');
    if (!isServer(from)) expect((await run(from, ['backup', '--to', file])).output).toContain('is in use by another KeyGuard');
    else {
      expect((await run(from, ['backup', '--to', file], { BACKUP_DATABASE_URL: '' })).output).toContain('Set BACKUP_DATABASE_URL');
      expect((await run(from, ['backup', '--to', file], { BACKUP_DATABASE_URL: from.environment['DATABASE_URL']! })).output).toMatch(/does not see all rows|permission denied|did not do/);
    }
    expect(await service.stop()).toBe(0);

    const made = await run(from, ['--json', 'backup', '--to', file]);
    expect([made.code, made.output]).toEqual([0, expect.stringContaining('keyguard-backup-v1')]);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect((await run(from, ['backup', '--to', file])).output).toContain('is there already');

    // What is damaged, cut off or changed is found before anything is kept.
    const good = await readFile(file);
    const lines = gunzipSync(good).toString('utf8');
    const bad = join(from.folder, 'bad.backup');
    for (const [content, words] of [
      [gzipSync(lines.replace('in the backup', 'on the backup')), 'checksum is another'],
      [gzipSync(lines.slice(0, lines.lastIndexOf('\n{"end"') + 1)), 'is cut off'],
      [good.subarray(0, good.length - 100), 'is damaged, or no backup'],
      [Buffer.from('no backup'), 'is damaged, or no backup'],
    ] as const) {
      await writeFile(bad, content);
      const refused = await run(to, ['restore', '--from', bad]);
      expect([refused.code, refused.output]).toEqual([1, expect.stringContaining(words)]);
    }
    expect((await run(from, ['restore', '--from', file])).output).toMatch(/empty (?:one|database)/);
    const otherKey = await run(to, ['restore', '--from', file], { KEYGUARD_ROOT_KEY_FILE: join(to.folder, 'other.key') });
    expect([otherKey.code, otherKey.output]).toEqual([1, expect.stringMatching(/root key|is missing/)]);

    const restored = await run(to, ['restore', '--from', file]);
    expect([restored.code, restored.output]).toEqual([0, expect.stringContaining('the whole audit log were verified')]);
    const again = await openKeys(to, { kind: 'file', path: join(from.folder, 'data', 'root.key') });
    expect(await openRows(again.sql, again.keys)).toEqual(before);
    await again.close();

    const second = await startService(to.folder, { ...to.environment, KEYGUARD_ROOT_KEY_FILE: join(from.folder, 'data', 'root.key') });
    expect(second.setupCode).toBeNull();
    const ask = caller(() => second.origin);
    const session = (await ask('POST', '/api/auth/sign-in/email', { body })).headers.get('set-auth-token')!;
    expect((await ask('GET', '/api/enrollment-codes', { token: session })).json.data[0].label).toBe('in the backup');
    expect((await ask('GET', '/readyz')).status).toBe(200);
    expect(await second.stop()).toBe(0);
  });

  it('that is behind what was signed for outside is refused until somebody answers for it', async () => {
    // The first deployment signed for more after the backup: its checkpoints are what the restored one is held to.
    const outside = join(to.folder, 'data', 'checkpoints');
    const service = await startService(from.folder, { ...from.environment, ...ADMIN });
    const call = caller(() => service.origin);
    const token = (await call('POST', '/api/auth/sign-in/email', { body: { email: ADMIN.KEYGUARD_ADMIN_EMAIL, password: ADMIN.KEYGUARD_ADMIN_PASSWORD } })).headers.get('set-auth-token')!;
    const signed = await call('POST', '/api/audit/checkpoint', { token });
    expect(signed.status, signed.text).toBeLessThan(300);
    expect(await service.stop()).toBe(0);
    await rm(outside, { recursive: true, force: true });
    await rename(join(from.folder, 'data', 'checkpoints'), outside);
    const environment = { ...to.environment, KEYGUARD_ROOT_KEY_FILE: join(from.folder, 'data', 'root.key') };
    const refused = await startService(to.folder, environment).then(
      () => 'started',
      (error: Error) => error.message,
    );
    expect(refused).toContain('KEYGUARD_ACKNOWLEDGE_RESTORE');
    const acknowledged = /KEYGUARD_ACKNOWLEDGE_RESTORE=([0-9a-f]+)/.exec(refused)![1]!;
    const third = await startService(to.folder, { ...environment, KEYGUARD_ACKNOWLEDGE_RESTORE: acknowledged });
    expect(await third.stop()).toBe(0);
  });
});
