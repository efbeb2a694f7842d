/**
 * The embedded database as it is made, and as the migrations leave it. Making one takes seconds, loading it a fraction of one: both
 * are made once for each state of the migrations, and kept for all test files.
 */
import { PGlite } from '@electric-sql/pglite';
import { createHash } from 'node:crypto';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { madeOnce } from '../../../scripts/made-once.ts';
import { migrate, pgliteClient } from '../src/postgres.ts';

export interface Images {
  /** An empty database, as an archive that PGlite loads. */
  readonly empty: Buffer<ArrayBuffer>;
  /** One that is migrated. */
  readonly migrated: Buffer<ArrayBuffer>;
}

const CACHE = fileURLToPath(new URL('../node_modules/.cache/keyguard-test/', import.meta.url));
// What makes another image when it changes.
const SOURCES = ['../migrations/', '../src/postgres/'].map((path) => fileURLToPath(new URL(path, import.meta.url)));

let made: Promise<Images> | undefined;

export function embeddedImages(): Promise<Images> {
  return (made ??= keptOrMade());
}

async function keptOrMade(): Promise<Images> {
  const path = await madeOnce(join(CACHE, `images-${await fingerprint()}`), make);
  return { empty: await readFile(join(path, 'empty.tar')), migrated: await readFile(join(path, 'migrated.tar')) };
}

async function fingerprint(): Promise<string> {
  const hash = createHash('sha256').update(await readFile(join(dirname(createRequire(import.meta.url).resolve('@electric-sql/pglite')), '../package.json')));
  for (const directory of SOURCES) {
    for (const name of (await readdir(directory)).toSorted()) hash.update(`\0${name}\0`).update(await readFile(join(directory, name)));
  }
  return hash.digest('hex').slice(0, 16);
}

async function make(draft: string): Promise<void> {
  const database = await PGlite.create();
  const keep = async (name: string): Promise<void> => writeFile(join(draft, name), await (await database.dumpDataDir('none')).bytes());
  await keep('empty.tar');
  await migrate(pgliteClient(database));
  await keep('migrated.tar');
  await database.close();
}
