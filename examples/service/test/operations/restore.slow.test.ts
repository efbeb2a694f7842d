/** What a restore takes the word of nobody for: a backup whose writer could give it a checksum of its own. */
import { createHash } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { PGlite } from '@electric-sql/pglite';
import { pgliteClient, postgresKeyRecords } from '@keyguard/storage-node/postgres';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { auditLog } from '../../src/audit/log.ts';
import { dump } from '../../src/backup/dump.ts';
import { writeBackup } from '../../src/backup/file.ts';
import { restore } from '../../src/backup/restore.ts';
import type { RootKeyConfig } from '../../src/config.ts';
import { openDeploymentKeys } from '../../src/keys/hierarchy.ts';
import { migratedAt } from '../migrated.ts';
import { folder, remove } from '../stage.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

let directory: string;
let rootKey: RootKeyConfig;
let lines: string[];

beforeAll(async () => {
  directory = await folder();
  rootKey = { kind: 'file', path: join(directory, 'root.key') };
  await migratedAt(join(directory, 'database'));
  const database = await PGlite.create(join(directory, 'database'));
  const sql = pgliteClient(database);
  const audit = auditLog(sql, await openDeploymentKeys(postgresKeyRecords(sql), rootKey));
  for (const outcome of ['success', 'refused'] as const) await audit.record({ action: 'secret.reveal', outcome, actor: 'user:ann' });
  const file = join(directory, 'good.backup');
  await dump(sql, (all) => writeBackup(file, all));
  await database.close();
  lines = gunzipSync(await readFile(file)).toString('utf8').trimEnd().split('\n').slice(0, -1);
});
afterAll(() => remove(directory));

async function restored(changed: readonly string[]): Promise<string> {
  const path = join(directory, 'changed.backup');
  const text = changed.map((line) => `${line}\n`).join('');
  const end = { lines: changed.length, sha256: createHash('sha256').update(text).digest('hex') };
  await writeFile(path, gzipSync(`${text}${JSON.stringify({ end })}\n`));
  const database = await PGlite.create();
  try {
    return await restore({ sql: pgliteClient(database), path, rootKey }).then(() => 'restored', (error: Error) => error.message);
  } finally {
    await database.close();
  }
}

const withManifest = (change: object): string[] => lines.map((line) => (line.startsWith('{"manifest"') ? JSON.stringify({ manifest: { ...JSON.parse(line).manifest, ...change } }) : line));
const manifest = (): { audit: { origin: string; seq: number; mac: string }[]; migrations: [string, string, string][] } =>
  JSON.parse(lines.find((line) => line.startsWith('{"manifest"'))!).manifest;
const forged = (all: readonly string[]): string[] => all.map((line) => line.replace('secret.reveal', 'secret.list').replace(Buffer.from('secret.reveal').toString('hex'), Buffer.from('secret.listed').toString('hex')));

it('takes what is whole, and neither a log that the manifest keeps silent about nor a table that is left out or comes twice', async () => {
  expect(await restored(lines)).toBe('restored');
  expect(forged(lines)).not.toEqual(lines);
  expect(await restored(forged(withManifest({ audit: [] })))).toContain('not those that it says it has');
  const at = lines.findIndex((line) => line.startsWith('{"table":"keyguard.disabled_people"'));
  expect(await restored(lines.toSpliced(at, 1))).toContain('lacks the table "keyguard.disabled_people"');
  expect(await restored(lines.toSpliced(at, 0, lines[at]!))).toContain('twice');
});

it('takes no log with an entry that was changed, or that ends elsewhere, and no backup of another version or of other columns', async () => {
  const [log] = manifest().audit;
  expect(await restored(forged(lines))).toContain('does not verify');
  expect(await restored(withManifest({ audit: [{ ...log, seq: log!.seq - 1 }] }))).toContain('does not end where the backup says');
  expect(await restored(withManifest({ audit: [{ ...log, mac: '00'.repeat(32) }] }))).toContain('does not end where the backup says');
  expect(await restored(withManifest({ migrations: manifest().migrations.slice(1) }))).toContain('of another version');
  const at = lines.findIndex((line) => line.startsWith('{"table":"keyguard.disabled_people"'));
  const { columns, ...rest } = JSON.parse(lines[at]!) as { columns: string[] };
  expect(await restored(lines.toSpliced(at, 1, JSON.stringify({ ...rest, columns: columns.toReversed() })))).toContain('not one of this version');
});
