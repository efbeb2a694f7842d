/** Puts a backup into an empty database: all of it in one transaction, verified before it is kept. */
import { verifyRecords } from '@keyguard/core/audit';
import { postgresAuditSink, postgresKeyRecords, type SqlClient, type SqlScriptClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { RootKeyConfig } from '../config.ts';
import { migrateAll } from '../db/migrate.ts';
import { openDeploymentKeys } from '../keys/hierarchy.ts';
import { demandAllRows, SCHEMAS, tablesIn, type DumpTable } from './dump.ts';
import { BackupError, checkBackup, readBackup, type Manifest } from './file.ts';

const ROWS_AT_ONCE = 500;

async function demandEmpty(sql: SqlClient): Promise<void> {
  const { rows } = await sql.query('SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = ANY($1::text[])', [SCHEMAS]);
  if (rows.length > 0) throw new BackupError('The database is not empty: a backup is put into an empty one only. Nothing was changed.');
}

async function demandSameVersion(tx: SqlTransaction, manifest: Manifest): Promise<void> {
  const { rows } = await tx.query<{ component: string; name: string; checksum: string }>('SELECT component, name, checksum FROM keyguard.schema_migrations ORDER BY component, name');
  const mine = JSON.stringify(rows.map(({ component, name, checksum }) => [component, name, checksum]));
  if (mine !== JSON.stringify(manifest.migrations)) {
    throw new BackupError('The backup is of another version of KeyGuard: restore it with the version that made it, then start the newer one.');
  }
}

async function load(tx: SqlTransaction, path: string): Promise<void> {
  const tables = new Map((await tablesIn(tx)).map((table) => [table.name, table]));
  // What the migrations put in is in the backup too.
  for (const name of tables.keys()) await tx.query(`DELETE FROM ${name}`);
  const missing = new Set(tables.keys());
  let table: DumpTable | null = null;
  let rows: (readonly (string | null)[])[] = [];
  async function flush(): Promise<void> {
    if (table === null || rows.length === 0) return;
    const { name, columns } = table;
    const given = rows;
    rows = [];
    const values = await tx.query<{ column: string; type: string }>(
      `SELECT quote_ident(attname) AS column, pg_catalog.format_type(atttypid, atttypmod) AS type FROM pg_catalog.pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped`,
      [name],
    );
    const types = new Map(values.rows.map(({ column, type }) => [column, type]));
    await tx.query(
      `INSERT INTO ${name} (${columns.join(', ')}) OVERRIDING SYSTEM VALUE
        SELECT ${columns.map((column, i) => `(r.value ->> ${i})::${types.get(column)!}`).join(', ')} FROM json_array_elements($1::json) AS r (value)`,
      [JSON.stringify(given)],
    );
  }
  for await (const line of readBackup(path)) {
    if ('manifest' in line) continue;
    if ('table' in line) {
      await flush();
      if (!missing.delete(line.table) && tables.has(line.table)) throw new BackupError(`The backup has the table ${JSON.stringify(line.table)} twice.`);
      // Its names come from a file: only what this database itself says of its tables goes into a statement.
      const known = tables.get(line.table);
      if (known === undefined || JSON.stringify(known.columns) !== JSON.stringify(line.columns)) throw new BackupError(`The backup has a table ${JSON.stringify(line.table)} which is not one of this version.`);
      table = known;
    } else {
      rows.push(line);
      if (rows.length >= ROWS_AT_ONCE) await flush();
    }
  }
  await flush();
  if (missing.size > 0) throw new BackupError(`The backup lacks the table ${JSON.stringify([...missing][0])}: it is not whole.`);
}

/**
 * That the keys open, that each chain is whole, and that it ends where the manifest says. Which chains there are is not the manifest's
 * to say: whoever wrote the file wrote that as well.
 */
async function verifyIn(tx: SqlTransaction, manifest: Manifest, rootKey: RootKeyConfig): Promise<void> {
  const keys = await openDeploymentKeys(postgresKeyRecords(tx), rootKey);
  const { rows } = await tx.query<{ origin: string }>('SELECT DISTINCT origin FROM keyguard.secret_audit_logs ORDER BY origin');
  const named = manifest.audit.map(({ origin }) => origin);
  if (rows.length === 0 || JSON.stringify(rows.map(({ origin }) => origin)) !== JSON.stringify(named.toSorted())) {
    throw new BackupError('The audit logs in the backup are not those that it says it has.');
  }
  for (const { origin, seq, mac } of manifest.audit) {
    const sink = postgresAuditSink(tx, { origin, macKey: keys.auditMac.macKey, previousMacKeys: keys.auditMac.previousMacKeys });
    const head = await sink.head();
    if (head === null || head.seq !== seq || Buffer.from(head.mac).toString('hex') !== mac) throw new BackupError(`The audit log ${origin} does not end where the backup says.`);
    const known = new Map([keys.auditMac.macKey, ...keys.auditMac.previousMacKeys].map((key) => [key.keyId, key]));
    await verifyRecords(sink.read(0), { origin, keys: known });
  }
}

export interface RestoreOptions {
  /** Of a login that sees and writes all rows, in a database without KeyGuard's schemas. */
  readonly sql: SqlScriptClient;
  readonly path: string;
  readonly rootKey: RootKeyConfig;
}

/**
 * Resolves when all of it is there and verified. Where it throws, the database is as empty as before.
 * @throws BackupError
 */
export async function restore({ sql, path, rootKey }: RestoreOptions): Promise<Manifest> {
  const manifest = await checkBackup(path);
  await demandEmpty(sql);
  await sql.transaction(demandAllRows);
  try {
    await migrateAll(sql);
    await sql.scripted(async (tx) => {
      await demandSameVersion(tx, manifest);
      // Rows come in an order of their own, and were checked when they were written.
      await tx.script('SET LOCAL session_replication_role = replica');
      await load(tx, path);
      await tx.script('SET LOCAL session_replication_role = origin');
      await verifyIn(tx, manifest, rootKey);
    });
  } catch (error) {
    await sql.scripted((tx) => tx.script(`DROP SCHEMA IF EXISTS ${SCHEMAS.join(', ')} CASCADE`));
    throw error;
  }
  return manifest;
}
