/**
 * Who administers, as `kg_auth`: the one fact about a person that policies need. The service writes it in the transaction in
 * which it changes a person's role, and asks here, where the MAC is checked, whenever it lets an administrator act.
 */
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { asRole, bytesOf, guarded, integer, type Sql } from './client.ts';
import { isIntact, rowMac, tampered, type RowField, type RowMacKey } from './row-mac.ts';

const SEAM = 'administrators';

export interface Administrators {
  /** Makes a person an administrator; resolves also where it is one. */
  grant(userId: string, options: { readonly grantedBy: string }): Promise<void>;
  /** Whether the person was one. Takes effect with the next statement of any transaction. */
  revoke(userId: string): Promise<boolean>;
  /** @throws UnavailableError seam `administrators`, also for a row without its MAC */
  has(userId: string): Promise<boolean>;
}

export interface PostgresAdministratorsOptions {
  readonly rowMacKey: RowMacKey;
  readonly clock?: Clock;
}

interface AdministratorRow {
  user_id: string;
  granted_by: string;
  granted_at_ms: unknown;
  mac_key_id: string;
  mac: unknown;
}

/** {@link Administrators} in PostgreSQL. */
export function postgresAdministrators(sql: Sql, options: PostgresAdministratorsOptions): Administrators {
  const { rowMacKey, clock = systemClock } = options;

  async function grant(userId: string, grantedBy: string): Promise<void> {
    const grantedAtMs = clock.nowMs();
    const fields: readonly RowField[] = [userId, grantedBy, grantedAtMs];
    const mac = await rowMac(rowMacKey, 'administrators', fields);
    await asRole(sql, 'kg_auth', (tx) =>
      tx.query(
        `INSERT INTO keyguard.administrators (user_id, granted_by, granted_at_ms, mac_key_id, mac) VALUES ($1, $2, $3, $4, $5)
          ON CONFLICT (user_id) DO NOTHING`,
        [userId, grantedBy, grantedAtMs, rowMacKey.keyId, mac],
      ),
    );
  }

  async function revoke(userId: string): Promise<boolean> {
    const { rows } = await asRole(sql, 'kg_auth', (tx) =>
      tx.query('DELETE FROM keyguard.administrators WHERE user_id = $1 RETURNING user_id', [userId]),
    );
    return rows.length > 0;
  }

  async function has(userId: string): Promise<boolean> {
    const { rows } = await asRole(sql, 'kg_auth', (tx) =>
      tx.query<AdministratorRow>('SELECT * FROM keyguard.administrators WHERE user_id = $1', [userId]),
    );
    const row = rows[0];
    if (row === undefined) return false;
    const fields: readonly RowField[] = [row.user_id, row.granted_by, integer(row.granted_at_ms)];
    const stored = { macKeyId: row.mac_key_id, mac: bytesOf(row.mac) };
    if (!(await isIntact(rowMacKey, 'administrators', fields, stored))) throw tampered(SEAM, 'administrators');
    return true;
  }

  return {
    grant: (userId, { grantedBy }): Promise<void> => guarded(SEAM, () => grant(userId, grantedBy)),
    revoke: (userId): Promise<boolean> => guarded(SEAM, () => revoke(userId)),
    has: (userId): Promise<boolean> => guarded(SEAM, () => has(userId)),
  };
}
