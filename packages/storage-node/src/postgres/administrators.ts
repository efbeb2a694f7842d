/**
 * Who administers, as `kg_auth`: the one fact about a person that policies need. The service writes it in the transaction in
 * which it changes a person's role, and asks here, where the MAC is checked, whenever it lets an administrator act. The stores of
 * this package ask for themselves, in the transaction in which they act.
 */
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { asRole, bytesOf, guarded, integer, type Sql, type SqlTransaction } from './client.ts';
import { isIntact, rowMac, tampered, type RowField, type RowMacKey } from './row-mac.ts';

const SEAM = 'administrators';

/** Who may administer. Every row bears a MAC, so a writer of the database cannot add to them. */
export interface Administrators {
  /** Makes a person an administrator; resolves also where it is one. */
  grant(userId: string, options: { readonly grantedBy: string }): Promise<void>;
  /** Whether the person was one. Takes effect with the next statement of any transaction. */
  revoke(userId: string): Promise<boolean>;
  /**
   * Whether this person is an administrator now.
   * @throws UnavailableError seam `administrators`, also for a row without its MAC
   */
  has(userId: string): Promise<boolean>;
}

/** What authenticates the rows. */
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

async function isVouchedFor(rowMacKey: RowMacKey, row: AdministratorRow, seam: string): Promise<true> {
  const fields: readonly RowField[] = [row.user_id, row.granted_by, integer(row.granted_at_ms)];
  const stored = { macKeyId: row.mac_key_id, mac: bytesOf(row.mac) };
  if (!(await isIntact(rowMacKey, 'administrators', fields, stored))) throw tampered(seam, 'administrators');
  return true;
}

const ROW = 'SELECT user_id, granted_by, granted_at_ms, mac_key_id, mac FROM keyguard.administrators WHERE user_id = $1';

/**
 * Whether `userId`, for whom `tx` acts as `kg_app`, administers by a row that bears its MAC. The policies ask for the row alone, so
 * a caller MUST decide by this answer too: it MUST NOT do for anyone else than an administrator what only the policies would stop,
 * because the row may be forged between this statement and the next.
 * @throws UnavailableError of `seam` for a row without its MAC
 */
export async function isActingAdministrator(tx: SqlTransaction, rowMacKey: RowMacKey, userId: string, seam: string): Promise<boolean> {
  const { rows } = await tx.query<AdministratorRow>(ROW, [userId]);
  return rows[0] !== undefined && isVouchedFor(rowMacKey, rows[0], seam);
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
    const { rows } = await asRole(sql, 'kg_auth', (tx) => tx.query<AdministratorRow>(ROW, [userId]));
    return rows[0] !== undefined && isVouchedFor(rowMacKey, rows[0], SEAM);
  }

  return {
    grant: (userId, { grantedBy }): Promise<void> => guarded(SEAM, () => grant(userId, grantedBy)),
    revoke: (userId): Promise<boolean> => guarded(SEAM, () => revoke(userId)),
    has: (userId): Promise<boolean> => guarded(SEAM, () => has(userId)),
  };
}
