/**
 * Brings a database to the state that the numbered SQL files describe: each file once, in order, each in one transaction, all of
 * them one process at a time. A file that fails leaves nothing behind and stops everything; so does a file that was changed after
 * it was applied, and a database that is ahead of the files.
 */
import { UnavailableError, UsageError } from '@keyguard/core/errors';
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { asRole, guarded, type SqlClient, type SqlScriptClient, type SqlScriptTransaction } from './client.ts';

const SEAM = 'migrations';
const FILE = /^\d{4}-[a-z0-9-]+\.sql$/;
const BOOTSTRAP = 'bootstrap.sql';
const IDENTIFIER = /^[a-z_][a-z0-9_]{0,62}$/;

/** A directory of `NNNN-name.sql` files. */
export interface MigrationSet {
  /** Under which name its files are recorded. */
  readonly component: string;
  readonly directory: string | URL;
  /** A schema that its files fill; made for `kg_owner` before the first of them runs. */
  readonly schema?: string;
}

interface Migration {
  readonly component: string;
  readonly name: string;
  readonly text: string;
  readonly checksum: string;
}

async function readText(directory: string, name: string): Promise<string> {
  // A checkout that changes line ends has not changed a migration.
  return (await readFile(`${directory}/${name}`, 'utf8')).replaceAll('\r\n', '\n');
}

async function readSet({ component, directory }: MigrationSet): Promise<readonly Migration[]> {
  const path = typeof directory === 'string' ? directory : fileURLToPath(directory);
  const names = (await readdir(path)).filter((name) => name.endsWith('.sql') && name !== BOOTSTRAP).toSorted();
  const numbers = new Set<string>();
  for (const name of names) {
    if (!FILE.test(name)) throw new UsageError('invalid_option', `${name} is not called as a migration must be: NNNN-name.sql.`);
    if (numbers.has(name.slice(0, 4))) throw new UsageError('invalid_option', `Two migrations have the number of ${name}.`);
    numbers.add(name.slice(0, 4));
  }
  return Promise.all(
    names.map(async (name) => {
      const text = await readText(path, name);
      return { component, name, text, checksum: createHash('sha256').update(text).digest('hex') };
    }),
  );
}

async function lock(tx: SqlScriptTransaction): Promise<void> {
  await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.migrations', 0))`);
}

async function appliedChecksums(tx: SqlScriptTransaction, component: string): Promise<ReadonlyMap<string, string>> {
  const { rows } = await tx.query<{ name: string; checksum: string }>(
    'SELECT name, checksum FROM keyguard.schema_migrations WHERE component = $1',
    [component],
  );
  return new Map(rows.map(({ name, checksum }) => [name, checksum]));
}

/** A file that is not in the database as it is here. */
export interface PendingMigration {
  readonly component: string;
  readonly name: string;
  /**
   * `missing`: it was not applied. `different`: it was applied, and is not the same file. `unknown`: the database has it, and this
   * program does not: the program is too old.
   */
  readonly state: 'missing' | 'different' | 'unknown';
}

/** What of `sets` and of the database is not the same, in the order in which it would be applied, and then what is unknown. */
export async function compareMigrations(client: SqlClient, sets: readonly MigrationSet[]): Promise<readonly PendingMigration[]> {
  const known = (await Promise.all(sets.map(readSet))).flat();
  const applied = await guarded(SEAM, async () => {
    const { rows } = await client.query(
      `SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'keyguard' AND c.relname = 'schema_migrations'`,
    );
    if (rows.length === 0) return [];
    return asRole(client, 'kg_jobs', async (tx) => {
      const recorded = await tx.query<{ component: string; name: string; checksum: string }>(
        'SELECT component, name, checksum FROM keyguard.schema_migrations WHERE component = ANY($1::text[]) ORDER BY component, name',
        [sets.map(({ component }) => component)],
      );
      return recorded.rows;
    });
  });
  const pending: PendingMigration[] = [];
  for (const { component, name, checksum } of known) {
    const found = applied.find((row) => row.component === component && row.name === name);
    if (found?.checksum !== checksum) pending.push({ component, name, state: found === undefined ? 'missing' : 'different' });
  }
  for (const { component, name } of applied) {
    if (!known.some((migration) => migration.component === component && migration.name === name)) {
      pending.push({ component, name, state: 'unknown' });
    }
  }
  return pending;
}

function changed(component: string, name: string): UsageError {
  return new UsageError(
    'invalid_option',
    `The migration ${component}/${name} was changed after it had been applied. Put back the file as it was, or start the version of the program that applied it.`,
  );
}

/** Whether the database is an earlier state of these files and nothing else. */
function check(component: string, migrations: readonly Migration[], applied: ReadonlyMap<string, string>): void {
  const known = new Map(migrations.map((migration) => [migration.name, migration]));
  let newest = '';
  for (const [name, checksum] of applied) {
    const migration = known.get(name);
    if (migration === undefined) {
      throw new UsageError('invalid_option', `The database has the migration ${component}/${name}, which this program does not know: it is too old. Start the newer version.`);
    }
    if (migration.checksum !== checksum) throw changed(component, name);
    if (name > newest) newest = name;
  }
  const skipped = migrations.find(({ name }) => name < newest && !applied.has(name));
  if (skipped !== undefined) {
    throw new UsageError('invalid_option', `The migration ${component}/${skipped.name} comes before one that has been applied.`);
  }
}

async function transactionId(tx: SqlScriptTransaction): Promise<string> {
  const { rows } = await tx.query<{ id: string }>('SELECT pg_current_xact_id()::text AS id');
  return rows[0]!.id;
}

async function apply(tx: SqlScriptTransaction, migration: Migration, clock: Clock): Promise<boolean> {
  const { component, name, text, checksum } = migration;
  await lock(tx);
  await tx.query('SET LOCAL ROLE kg_owner');
  const applied = (await appliedChecksums(tx, component)).get(name);
  // Another process was faster.
  if (applied === checksum) return false;
  if (applied !== undefined) throw changed(component, name);
  await tx.query(`SET LOCAL search_path = pg_catalog, pg_temp`);
  const before = await transactionId(tx);
  await tx.script(text);
  if ((await transactionId(tx)) !== before) {
    throw new UsageError('invalid_option', `The migration ${name} ends its transaction, which it must not.`);
  }
  await tx.query('SET LOCAL ROLE kg_owner');
  await tx.query('INSERT INTO keyguard.schema_migrations (component, name, checksum, applied_at_ms) VALUES ($1, $2, $3, $4)', [
    component,
    name,
    checksum,
    clock.nowMs(),
  ]);
  return true;
}

async function createSchema(tx: SqlScriptTransaction, schema: string): Promise<void> {
  if (!IDENTIFIER.test(schema)) throw new UsageError('invalid_option', 'A schema is named in lower case, digits and underscores.');
  await lock(tx);
  const { rows } = await tx.query('SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1', [schema]);
  if (rows.length === 0) await tx.script(`CREATE SCHEMA ${schema} AUTHORIZATION kg_owner`);
}

/**
 * Runs the bootstrap file of the first set, then what is not applied yet of every set, in order.
 * @returns the files that this call applied, as `component/name`
 */
export async function runMigrations(
  client: SqlScriptClient,
  sets: readonly [MigrationSet, ...MigrationSet[]],
  clock: Clock = systemClock,
): Promise<readonly string[]> {
  const components = sets.map(({ component }) => component);
  if (new Set(components).size !== sets.length) throw new UsageError('invalid_option', 'Two sets of migrations have one name.');
  const first = sets[0].directory;
  const bootstrap = await readText(typeof first === 'string' ? first : fileURLToPath(first), BOOTSTRAP);
  const read = await Promise.all(sets.map(readSet));
  const pending: (readonly Migration[])[] = [];
  await guarded(SEAM, () =>
    client.scripted(async (tx) => {
      await lock(tx);
      await tx.script(bootstrap);
      for (const [i, migrations] of read.entries()) {
        const applied = await appliedChecksums(tx, components[i]!);
        check(components[i]!, migrations, applied);
        pending.push(migrations.filter(({ name }) => !applied.has(name)));
      }
    }),
  );
  const done: string[] = [];
  for (const [i, migrations] of pending.entries()) {
    const { schema } = sets[i]!;
    if (schema !== undefined && migrations.length > 0) await guarded(SEAM, () => client.scripted((tx) => createSchema(tx, schema)));
    for (const migration of migrations) {
      const place = `${migration.component}/${migration.name}`;
      try {
        if (await guarded(SEAM, () => client.scripted((tx) => apply(tx, migration, clock)))) done.push(place);
      } catch (error) {
        if (!(error instanceof UnavailableError)) throw error;
        const kept = done.length === 0 ? '' : ` Before it were applied, and stay: ${done.join(', ')}.`;
        throw new UnavailableError(SEAM, `The migration ${place} failed and left nothing behind.${kept}`, { cause: error.cause });
      }
    }
  }
  return done;
}
