/** Reads all of a database, as it was at one moment, also while others write to it. */
import type { SqlScriptClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { BackupError, FORMAT, type Line, type Manifest } from './file.ts';

const ROWS_AT_ONCE = 500;
const WARNING = 'Values are sealed. Everything else can be read by whoever has this file.';
export const SCHEMAS = ['keyguard', 'keyguard_auth'] as const;

/** A table, and what of it is kept: not what is computed, and not the numbers of a server's own transactions. */
export interface DumpTable {
  readonly name: string;
  readonly columns: readonly string[];
}

export async function tablesIn(tx: SqlTransaction): Promise<readonly DumpTable[]> {
  const { rows } = await tx.query<{ name: string; columns: string[] }>(
    `SELECT format('%I.%I', n.nspname, c.relname) AS name, array_agg(quote_ident(a.attname) ORDER BY a.attnum) AS columns
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
      WHERE n.nspname = ANY($1::text[]) AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.atttypid <> 'xid8'::regtype
      GROUP BY 1 ORDER BY 1`,
    [SCHEMAS],
  );
  return rows;
}

/** Whoever is bound by policies would leave out what it does not see, and say nothing of it. */
export async function demandAllRows(tx: SqlTransaction): Promise<void> {
  const { rows } = await tx.query<{ all: boolean }>(`SELECT rolsuper OR rolbypassrls AS all FROM pg_catalog.pg_roles WHERE rolname = current_user`);
  if (rows[0]?.all !== true) throw new BackupError('This login does not see all rows: set BACKUP_DATABASE_URL to one that is a superuser. Nothing was done.');
}

async function manifestIn(tx: SqlTransaction): Promise<Manifest> {
  const migrations = await tx.query<{ component: string; name: string; checksum: string }>('SELECT component, name, checksum FROM keyguard.schema_migrations ORDER BY component, name');
  const root = await tx.query<{ root_id: string }>(`SELECT root_id FROM keyguard.kek_keys WHERE purpose = 'deployment'`);
  if (root.rows[0] === undefined) throw new BackupError('There is nothing in this database yet.');
  const heads = await tx.query<{ origin: string; seq: unknown; mac: string }>(
    `SELECT DISTINCT ON (origin) origin, seq, encode(mac, 'hex') AS mac FROM keyguard.secret_audit_logs ORDER BY origin, seq DESC`,
  );
  const there = await tx.query<{ is: boolean }>(`SELECT pg_catalog.to_regclass('keyguard.audit_checkpoints') IS NOT NULL AS is`);
  const notes = there.rows[0]!.is
    ? await tx.query<{ origin: string; note: string }>(`SELECT DISTINCT ON (origin) origin, signed_note AS note FROM keyguard.audit_checkpoints ORDER BY origin, tree_size DESC`)
    : { rows: [] };
  return {
    format: FORMAT,
    made_at: new Date().toISOString(),
    migrations: migrations.rows.map(({ component, name, checksum }) => [component, name, checksum]),
    root_id: root.rows[0].root_id,
    audit: heads.rows.map(({ origin, seq, mac }) => ({ origin, seq: Number(seq), mac })),
    checkpoints: notes.rows,
    warning: WARNING,
  };
}

/**
 * All lines of a backup of `sql`, whose login MUST see all rows. They are of one moment.
 * @throws BackupError
 */
export async function dump(sql: SqlScriptClient, take: (lines: AsyncIterable<Line>) => Promise<void>): Promise<Manifest> {
  return sql.scripted(async (tx) => {
    await tx.script('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY');
    await demandAllRows(tx);
    const manifest = await manifestIn(tx);
    async function* lines(): AsyncGenerator<Line> {
      yield { manifest };
      for (const { name, columns } of await tablesIn(tx)) {
        yield { table: name, columns };
        await tx.script(`DECLARE kept CURSOR FOR SELECT ARRAY[${columns.map((column) => `${column}::text`).join(', ')}] AS row FROM ${name}`);
        for (;;) {
          const { rows } = await tx.query<{ row: (string | null)[] }>(`FETCH ${ROWS_AT_ONCE} FROM kept`);
          for (const { row } of rows) yield row;
          if (rows.length < ROWS_AT_ONCE) break;
        }
        await tx.script('CLOSE kept');
      }
    }
    await take(lines());
    return manifest;
  });
}
