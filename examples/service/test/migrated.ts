/**
 * The embedded database as a service leaves it that has brought the schema up to date and done nothing else. Making one takes seconds,
 * copying it a fraction of one: it is made once for each state of the migrations. How an empty folder becomes one is for
 * `start.slow.test.ts`.
 */
import { createHash } from 'node:crypto';
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PGlite } from '@electric-sql/pglite';
import { pgliteClient } from '@keyguard/storage-node/postgres';
import { madeOnce } from '../../../scripts/made-once.ts';
import { migrateAll } from '../src/db/migrate.ts';

const CACHE = fileURLToPath(new URL('../node_modules/.cache/keyguard-test/', import.meta.url));
const MIGRATIONS = ['../migrations/', '../../../packages/storage-node/migrations/'].map((path) => fileURLToPath(new URL(path, import.meta.url)));

// The databases that only CREATE DATABASE reads, which nobody here calls: they are half of all files, and copying is paid by the file.
const TEMPLATES = 'SELECT oid FROM pg_database WHERE datname <> current_database()';

let made: Promise<string> | undefined;

/** A folder with the database in `database`, and the same as an archive in `database.tar`. */
async function template(): Promise<string> {
  const hash = createHash('sha256').update(await readFile(join(dirname(createRequire(import.meta.url).resolve('@electric-sql/pglite')), '../package.json')));
  for (const directory of MIGRATIONS) {
    for (const name of (await readdir(directory)).toSorted()) hash.update(`\0${name}\0`).update(await readFile(join(directory, name)));
  }
  return madeOnce(join(CACHE, `image-${hash.digest('hex').slice(0, 16)}`), async (draft) => {
    const folder = join(draft, 'database');
    const database = await PGlite.create(folder);
    await migrateAll(pgliteClient(database));
    const { rows } = await database.query<{ oid: number }>(TEMPLATES);
    await database.close();
    for (const { oid } of rows) {
      const unused = join(folder, 'base', String(oid));
      for (const name of await readdir(unused)) await rm(join(unused, name));
    }
    const small = await PGlite.create(folder);
    await writeFile(join(draft, 'database.tar'), await (await small.dumpDataDir('none')).bytes());
    await small.close();
  });
}

/** Puts one at `path`, of which only the parents may be there. */
export async function migratedAt(path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  await cp(join(await (made ??= template()), 'database'), path, { recursive: true });
}

/** One that is open, in memory. */
export async function migratedDatabase(): Promise<PGlite> {
  const archive = await readFile(join(await (made ??= template()), 'database.tar'));
  return PGlite.create({ loadDataDir: new Blob([archive]) });
}
