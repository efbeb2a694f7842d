/**
 * The embedded database as a service leaves it that has brought the schema up to date and done nothing else. Making one takes seconds,
 * copying it a fraction of one: it is made once for each state of the migrations. How an empty folder becomes one is for
 * `start.test.ts`.
 */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PGlite } from '@electric-sql/pglite';
import { pgliteClient } from '@keyguard/storage-node/postgres';
import { migrateAll } from '../src/db/migrate.ts';

const CACHE = fileURLToPath(new URL('../node_modules/.cache/keyguard-test/', import.meta.url));
const MIGRATIONS = ['../migrations/', '../../../packages/storage-node/migrations/'].map((path) => fileURLToPath(new URL(path, import.meta.url)));

let made: Promise<string> | undefined;

async function template(): Promise<string> {
  const hash = createHash('sha256').update(await readFile(join(dirname(createRequire(import.meta.url).resolve('@electric-sql/pglite')), '../package.json')));
  for (const directory of MIGRATIONS) {
    for (const name of (await readdir(directory)).toSorted()) hash.update(`\0${name}\0`).update(await readFile(join(directory, name)));
  }
  const path = join(CACHE, `migrated-${hash.digest('hex').slice(0, 16)}`);
  if (existsSync(path)) return path;
  await mkdir(CACHE, { recursive: true });
  const draft = await mkdtemp(join(CACHE, 'draft-'));
  const database = await PGlite.create(join(draft, 'database'));
  await migrateAll(pgliteClient(database));
  await database.close();
  try {
    await rename(join(draft, 'database'), path);
  } catch (error) {
    // Another worker was first.
    if (!existsSync(path)) throw error;
  }
  await rm(draft, { recursive: true, force: true });
  return path;
}

/** Puts one at `path`, of which only the parents may be there. */
export async function migratedAt(path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  await cp(await (made ??= template()), path, { recursive: true });
}

/** One that is open; `remove` closes it and leaves nothing behind. */
export async function migratedDatabase(): Promise<{ readonly database: PGlite; remove(): Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'keyguard-database-'));
  await migratedAt(join(folder, 'database'));
  const database = await PGlite.create(join(folder, 'database'));
  return {
    database,
    async remove() {
      if (!database.closed) await database.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
}
