/**
 * The tables whose rows are sealed: what a rotation of the key encryption key must know of each. A slice that seals says so here,
 * in the composition; until it does, no key under which it has rows is ever disabled.
 */
import { rewrap, type VaultPlace } from '@keyguard/core/vault';
import type { KeyProvider } from '@keyguard/core/seams';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';

/** What it is of one table. All of it is text of a program and goes into statements as it stands: MUST NOT come from outside. */
export interface SealedTable {
  /** With its schema. Has the columns `ciphertext`, `wrapped_dek` and `kek_id`. */
  readonly name: `${'keyguard' | 'keyguard_auth'}.${string}`;
  /** The columns of its primary key, with their types. */
  readonly key: readonly (readonly [column: string, type: 'text' | 'integer' | 'bigint'])[];
  /** Beside those of the key, what `place` reads. The table itself is called `t`. */
  readonly columns: readonly string[];
  /** What else they are read from: a LEFT JOIN, so that no row is passed over. */
  readonly join?: `LEFT JOIN ${string}`;
  /** Where the value of this row was sealed; `null` where that cannot be told. */
  place(row: Readonly<Record<string, unknown>>): VaultPlace | null;
}

export interface RewrappedRow {
  /** In the order of the table's key. */
  readonly key: readonly unknown[];
  readonly oldWrapped: Uint8Array;
  /** `null` for a row that does not open. */
  readonly newWrapped: Uint8Array | null;
}

// Header, commitment and tag of an envelope: what a rewrap reads of it is at its beginning.
const ENVELOPE_BYTES = 81;

/** Up to `limit` rows of `table` under the key `kekId` which come after `after`, in the order of its key. */
export async function readSealed(tx: SqlTransaction, { name, key, columns, join }: SealedTable, kekId: string, after: readonly unknown[] | null, limit: number): Promise<readonly Readonly<Record<string, unknown>>[]> {
  const names = key.map(([column]) => `t.${column}`);
  const later = after === null ? '' : `AND (${names.join(', ')}) > (${key.map(([, type], i) => `$${i + 3}::${type}`).join(', ')})`;
  const { rows } = await tx.query<Record<string, unknown>>(
    `SELECT ${[...names, ...columns].join(', ')}, substr(t.ciphertext, 1, ${ENVELOPE_BYTES}) AS ciphertext, t.wrapped_dek, t.kek_id FROM ${name} t ${join ?? ''}
      WHERE t.kek_id = $1 ${later} ORDER BY ${names.join(', ')} LIMIT $2`,
    [kekId, limit, ...(after ?? [])],
  );
  return rows;
}

/** What `rows` have in place of their wrapped keys under `to`. Asks no database. */
export async function rewrapRows(table: SealedTable, rows: readonly Readonly<Record<string, unknown>>[], from: KeyProvider, to: KeyProvider): Promise<readonly RewrappedRow[]> {
  const done: RewrappedRow[] = [];
  for (const row of rows) {
    const oldWrapped = Uint8Array.from(row['wrapped_dek'] as Uint8Array);
    const sealed = { ciphertext: Uint8Array.from(row['ciphertext'] as Uint8Array), wrappedDek: oldWrapped, kekId: row['kek_id'] as string };
    let newWrapped: Uint8Array | null = null;
    const place = table.place(row);
    try {
      if (place !== null) newWrapped = (await rewrap(sealed, place, { from, to })).wrappedDek;
    } catch (error) {
      if ((error as { code?: unknown }).code !== 'vault_open_failed') throw error;
    }
    done.push({ key: table.key.map(([column]) => row[column]), oldWrapped, newWrapped });
  }
  return done;
}

/** Puts the new wrapped keys in place, where nobody else has changed the row meanwhile. Answers with how many. */
export async function writeRewrapped(tx: SqlTransaction, { name, key }: SealedTable, rows: readonly RewrappedRow[], fromId: string, toId: string): Promise<number> {
  const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');
  const columns = key.map(([column]) => column);
  const { rows: changed } = await tx.query(
    `UPDATE ${name} t SET wrapped_dek = decode(r.new_wrapped, 'base64'), kek_id = $2
      FROM unnest($3::text[], $4::text[], ${key.map(([, type], i) => `$${i + 5}::${type}[]`).join(', ')}) AS r (new_wrapped, old_wrapped, ${columns.join(', ')})
      WHERE ${columns.map((column) => `t.${column} = r.${column}`).join(' AND ')} AND t.kek_id = $1 AND t.wrapped_dek = decode(r.old_wrapped, 'base64')
      RETURNING 1`,
    [
      fromId,
      toId,
      rows.map(({ newWrapped }) => base64(newWrapped!)),
      rows.map(({ oldWrapped }) => base64(oldWrapped)),
      ...columns.map((_, i) => rows.map((row) => row.key[i])),
    ],
  );
  return changed.length;
}

const IDENTIFIER = /^[a-z_][a-z0-9_]{0,62}$/;

/** Every table of sealed values that the database has, whether somebody told of it or not. */
export async function sealedTableNames(tx: SqlTransaction): Promise<readonly string[]> {
  const { rows } = await tx.query<{ schema: string; name: string }>(
    `SELECT n.nspname AS schema, c.relname AS name FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname IN ('keyguard', 'keyguard_auth') AND c.relkind IN ('r', 'p') AND a.attname = 'wrapped_dek' AND NOT a.attisdropped
      ORDER BY 1, 2`,
  );
  for (const { name } of rows) if (!IDENTIFIER.test(name)) throw new Error('A table of sealed values has a name that is not one of ours.');
  return rows.map(({ schema, name }) => `${schema}.${name}`);
}

/** How many rows of all sealed tables are under the key `kekId`. */
export async function countUnder(tx: SqlTransaction, kekId: string): Promise<number> {
  let count = 0;
  for (const name of await sealedTableNames(tx)) {
    const { rows } = await tx.query<{ count: unknown }>(`SELECT count(*) AS count FROM ${name} WHERE kek_id = $1`, [kekId]);
    count += Number(rows[0]!.count);
  }
  return count;
}
