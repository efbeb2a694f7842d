/**
 * How far a session has come: whether it still lives, whether its owner has a second factor, and when that was last proven in it.
 * Read from the database at every request, so that an ended session and a new factor count at once, on all replicas.
 */
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { UnavailableError } from '@keyguard/core/errors';
import { isIntact, rowMac, type RowField, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { asAuth } from '../db/as-user.ts';
import type { CurrentSignInPolicy } from './policy.ts';
import { PERSON, vouched, type Vouching } from './vouched-people.ts';

const TABLE = 'session_proofs';
// How exactly it is known when a session was last used: not every request must write.
const MAX_UNSEEN_SECONDS = 60;

export interface SecondFactorStanding {
  /** Whether this person has one that works. */
  readonly isSetUp: boolean;
  /** When it was last proven in this session; `null` for never. */
  readonly provenAtMs: number | null;
}

export interface Standing {
  readonly startedAtMs: number;
  readonly secondFactor: SecondFactorStanding;
}

export interface Standings {
  /**
   * `null` for a session that has ended, or is another person's.
   * @throws UnavailableError for a proof without its MAC, and for a person who is not as they were written: a factor may have been taken away
   */
  of(sessionId: string, userId: string): Promise<Standing | null>;
  /** Writes down, in the caller's transaction, that the second factor was proven in this session just now. */
  proveIn(tx: SqlTransaction, sessionId: string, userId: string): Promise<number>;
}

interface Row {
  started_at_ms: unknown;
  person: string;
  is_stale: boolean;
  second_factor_at_ms: unknown;
  mac_key_id: string | null;
  mac: Uint8Array | null;
}

export interface StandingsOptions {
  readonly sql: SqlClient;
  readonly vouching: Vouching;
  readonly policy: CurrentSignInPolicy;
  readonly clock?: Clock;
}

export function createStandings({ sql, vouching, policy, clock = systemClock }: StandingsOptions): Standings {
  const { rowMacKey } = vouching;
  return {
    async of(sessionId, userId) {
      const { sessionLengthSeconds, sessionIdleSeconds } = policy();
      const { rows } = await asAuth(sql, (tx) =>
        tx.query<Row>(
          `SELECT floor(extract(epoch FROM s.created_at) * 1000)::bigint AS started_at_ms, ${PERSON},
              p.second_factor_at_ms, p.mac_key_id, p.mac, s.updated_at < CURRENT_TIMESTAMP - make_interval(secs => $5) AS is_stale
            FROM keyguard_auth.sessions s
            JOIN keyguard_auth.users u ON u.id = s.user_id
            LEFT JOIN keyguard_auth.session_proofs p ON p.session_id = s.id AND p.user_id = s.user_id
            WHERE s.id = $1 AND s.user_id = $2 AND s.expires_at > CURRENT_TIMESTAMP
              AND s.created_at > CURRENT_TIMESTAMP - make_interval(secs => $3) AND s.updated_at > CURRENT_TIMESTAMP - make_interval(secs => $4)`,
          // Sessions that began when they were longer, too.
          [sessionId, userId, sessionLengthSeconds, sessionIdleSeconds, Math.min(MAX_UNSEEN_SECONDS, sessionIdleSeconds / 10)],
        ),
      );
      const row = rows[0];
      if (row === undefined) return null;
      const { factorId } = await vouched(vouching, row.person);
      if (row.is_stale) await asAuth(sql, (tx) => tx.query('UPDATE keyguard_auth.sessions SET updated_at = CURRENT_TIMESTAMP WHERE id = $1', [sessionId]));
      let provenAtMs: number | null = null;
      if (row.mac !== null && row.mac_key_id !== null) {
        provenAtMs = Number(row.second_factor_at_ms);
        const stored = { macKeyId: row.mac_key_id, mac: Uint8Array.from(row.mac) };
        if (!(await isIntact(rowMacKey, TABLE, [sessionId, userId, provenAtMs], stored))) {
          throw new UnavailableError('sessions', `A row of ${TABLE} does not bear the MAC that it must.`);
        }
      }
      return { startedAtMs: Number(row.started_at_ms), secondFactor: { isSetUp: factorId !== null, provenAtMs } };
    },

    async proveIn(tx, sessionId, userId) {
      const nowMs = clock.nowMs();
      const fields: readonly RowField[] = [sessionId, userId, nowMs];
      await tx.query(
        `INSERT INTO keyguard_auth.session_proofs (session_id, user_id, second_factor_at_ms, mac_key_id, mac) VALUES ($1, $2, $3, $4, $5)
          ON CONFLICT (session_id) DO UPDATE SET second_factor_at_ms = excluded.second_factor_at_ms, mac_key_id = excluded.mac_key_id, mac = excluded.mac`,
        [sessionId, userId, nowMs, rowMacKey.keyId, await rowMac(rowMacKey, TABLE, fields)],
      );
      return nowMs;
    },
  };
}
