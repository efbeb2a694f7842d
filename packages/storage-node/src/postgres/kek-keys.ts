/**
 * The wrapped keys of a deployment, as `kg_jobs`: what they wrap stays with the root, and this room sees ciphertext only.
 */
import type { KeyRecord, KeyRecords, KeyRecordState } from '@keyguard/core/seams';
import { toBase64 } from '@keyguard/core/bytes';
import { asRole, bytesOf, guarded, integer, type Sql, type SqlTransaction } from './client.ts';

const SEAM = 'key_records';

/** What a key is used for now: to wrap (`primary`), to unwrap only, not yet, or not any more. `destroyed` is final. */
interface KeyRow {
  id: string;
  purpose: string;
  state: KeyRecordState;
  wrapped: unknown;
  root_id: string;
  created_at_ms: unknown;
}

async function listIn(tx: SqlTransaction): Promise<readonly KeyRecord[]> {
  const { rows } = await tx.query<KeyRow>(
    'SELECT id, purpose, state, wrapped, root_id, created_at_ms FROM keyguard.kek_keys ORDER BY created_at_ms, id',
  );
  return rows.map((row) => ({
    id: row.id,
    purpose: row.purpose,
    state: row.state,
    wrapped: bytesOf(row.wrapped),
    rootId: row.root_id,
    createdAtMs: integer(row.created_at_ms),
  }));
}

/** {@link KeyRecords} in PostgreSQL. */
export function postgresKeyRecords(sql: Sql): KeyRecords {
  async function insertIfAbsent(records: readonly KeyRecord[]): Promise<readonly KeyRecord[]> {
    // In one order, so that two starts wait for each other at most once and never in a circle.
    const sorted = records.toSorted((a, b) => (a.purpose < b.purpose ? -1 : a.purpose > b.purpose ? 1 : a.id < b.id ? -1 : 1));
    return asRole(sql, 'kg_jobs', async (tx) => {
      await tx.query(
        `INSERT INTO keyguard.kek_keys (id, purpose, state, wrapped, root_id, created_at_ms)
          SELECT r.id, r.purpose, r.state, decode(r.wrapped, 'base64'), r.root_id, r.created_at_ms
          FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[])
            WITH ORDINALITY AS r (id, purpose, state, wrapped, root_id, created_at_ms, place) ORDER BY r.place
          ON CONFLICT DO NOTHING`,
        [
          sorted.map((r) => r.id),
          sorted.map((r) => r.purpose),
          sorted.map((r) => r.state),
          sorted.map((r) => toBase64(r.wrapped)),
          sorted.map((r) => r.rootId),
          sorted.map((r) => r.createdAtMs),
        ],
      );
      // A statement of its own sees what the other start committed while the insert waited for it.
      return listIn(tx);
    });
  }
  return {
    list: (): Promise<readonly KeyRecord[]> => guarded(SEAM, () => asRole(sql, 'kg_jobs', listIn)),
    insertIfAbsent: (records): Promise<readonly KeyRecord[]> => guarded(SEAM, () => insertIfAbsent(records)),
  };
}
