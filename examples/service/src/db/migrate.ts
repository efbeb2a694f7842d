/**
 * Brings the schema up to date, or refuses the start where it is not and nobody here may change it.
 */
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { asRole, migrate, type MigrationSet, type SqlClient, type SqlScriptClient } from '@keyguard/storage-node/postgres';

export const SCHEMAS: readonly string[] = ['keyguard', 'keyguard_auth'];

const COMPONENT = 'service';
const DIRECTORY = new URL('../../migrations/', import.meta.url);
const OWN: MigrationSet = { component: COMPONENT, directory: DIRECTORY, schema: 'keyguard_auth' };

/** The stores' migrations, then the service's own. Answers with what was applied. */
export function migrateAll(sql: SqlScriptClient): Promise<readonly string[]> {
  return migrate(sql, { migrations: [OWN] });
}

export class NotMigratedError extends Error {
  override readonly name = 'NotMigratedError';
}

/** @throws NotMigratedError when the service's own files and what the database has on record are not the same */
export async function assertMigrated(sql: SqlClient): Promise<void> {
  const names = (await readdir(DIRECTORY)).filter((name) => name.endsWith('.sql'));
  const wanted = new Map<string, string>();
  for (const name of names) {
    const text = await readFile(new URL(name, DIRECTORY), 'utf8');
    wanted.set(name, createHash('sha256').update(text.replaceAll('\r\n', '\n')).digest('hex'));
  }
  let applied: Map<string, string>;
  try {
    const { rows } = await asRole(sql, 'kg_jobs', (tx) =>
      tx.query<{ name: string; checksum: string }>('SELECT name, checksum FROM keyguard.schema_migrations WHERE component = $1', [COMPONENT]),
    );
    applied = new Map(rows.map(({ name, checksum }) => [name, checksum]));
  } catch (cause) {
    throw new NotMigratedError(advice('has not been prepared for KeyGuard, or this login may not use it'), { cause });
  }
  const missing = [...wanted].filter(([name, checksum]) => applied.get(name) !== checksum).map(([name]) => name);
  const unknown = [...applied.keys()].filter((name) => !wanted.has(name));
  if (missing.length > 0) throw new NotMigratedError(advice(`lacks, or has another form of, the migrations ${missing.join(', ')}`));
  if (unknown.length > 0) throw new NotMigratedError(`The database is newer than this program: it has ${unknown.join(', ')}. Start the newer version.`);
}

function advice(what: string): string {
  return (
    `The database of DATABASE_URL ${what}. Start once with DATABASE_OWNER_URL set to a login that may create roles and schemas: ` +
    'it is used for the migrations, then closed.'
  );
}
