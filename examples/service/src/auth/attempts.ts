/**
 * How often a password or a second factor was tried in vain, and who has to wait for it. A try is counted before it is judged, in
 * a transaction of its own: what goes on beside it, fails later or is rolled back forgives nothing, and of a hundred guesses at
 * once no more are judged than of a hundred in a row.
 *
 * What is counted is the address that was typed, whether there is such an account or not, so that being locked out tells nothing.
 */
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import type { Sql, SqlClient } from '@keyguard/storage-node/postgres';
import { asAuth } from '../db/as-user.ts';
import type { KeyedHash } from '../keys/hierarchy.ts';

/** So many tries are free; the last of them locks. */
export const FREE_TRIES = 5;
const FIRST_LOCK_MS = 60_000;
// Also the most that somebody who does not know the password can do to whoever does.
const LONGEST_LOCK_MS = 60 * 60_000;
const FORGOTTEN_AFTER_MS = 24 * 60 * 60_000;
const PURGE_ROWS = 1000;

export interface Counter {
  /** Whose: what an administrator unlocks. */
  readonly account: string;
  /** Of what, within the account: counters that differ here do not lock each other. */
  readonly of: string;
}

export interface Claim {
  readonly isAllowed: boolean;
  /** Whether this try is the last before the account has to wait. */
  readonly hasLocked: boolean;
  /** Until when there is no other try; 0 for at once. */
  readonly lockedUntilMs: number;
}

export interface Attempts {
  /** Counts a try as one in vain; durable when it resolves, and before anything is judged. */
  claim(counter: Counter): Promise<Claim>;
  /** The try that was claimed was never judged, so it does not count. */
  giveBack(counter: Counter, claim: Claim): Promise<void>;
  /** The try that was claimed was not in vain. */
  succeeded(counter: Counter, sql?: Sql): Promise<void>;
  /** Forgets all that was counted for an account; whether there was anything. */
  unlock(account: string, sql?: Sql): Promise<boolean>;
  /** Deletes what no longer counts, so that addresses which somebody makes up do not fill the database. */
  purge(): Promise<number>;
}

export interface AttemptsOptions {
  readonly sql: SqlClient;
  readonly hash: KeyedHash;
  readonly clock?: Clock;
}

/** The account of an address, as it was typed. */
export function accountOf(email: string): string {
  return `account\0${email.toLowerCase()}`;
}

export function createAttempts({ sql, hash, clock = systemClock }: AttemptsOptions): Attempts {
  const counterHash = ({ account, of }: Counter): string => hash(`attempts\0${of}\0${account}`);
  const accountHash = (account: string): string => hash(`attempts-of\0${account}`);

  return {
    async claim(counter) {
      const nowMs = clock.nowMs();
      return asAuth(sql, async (tx) => {
        const key = counterHash(counter);
        // One statement: callers at the same time wait for each other's row, and each counts on what the one before has left.
        const { rows } = await tx.query<{ locked_until_ms: unknown }>(
          `INSERT INTO keyguard_auth.sign_in_attempts AS a (counter_hash, account_hash, failures, last_try_at_ms, locked_until_ms)
            VALUES ($1, $2, 1, $3::bigint, 0)
            ON CONFLICT (counter_hash) DO UPDATE SET
              failures = CASE WHEN a.last_try_at_ms < $3::bigint - $4::bigint THEN 1 ELSE a.failures + 1 END,
              last_try_at_ms = $3::bigint,
              locked_until_ms = CASE
                WHEN a.last_try_at_ms < $3::bigint - $4::bigint OR a.failures + 1 < $5::integer THEN 0
                ELSE $3::bigint + least($6::bigint, ($7::bigint * 2 ^ least(a.failures + 1 - $5::integer, 16))::bigint) END
            WHERE a.locked_until_ms <= $3::bigint
            RETURNING locked_until_ms`,
          [key, accountHash(counter.account), nowMs, FORGOTTEN_AFTER_MS, FREE_TRIES, LONGEST_LOCK_MS, FIRST_LOCK_MS],
        );
        if (rows[0] !== undefined) {
          const lockedUntilMs = Number(rows[0].locked_until_ms);
          return { isAllowed: true, hasLocked: lockedUntilMs > 0, lockedUntilMs };
        }
        const held = await tx.query<{ locked_until_ms: unknown }>('SELECT locked_until_ms FROM keyguard_auth.sign_in_attempts WHERE counter_hash = $1', [key]);
        return { isAllowed: false, hasLocked: false, lockedUntilMs: Number(held.rows[0]?.locked_until_ms ?? nowMs) };
      });
    },

    async giveBack(counter, { lockedUntilMs }) {
      await asAuth(sql, async (tx) => {
        const params = [counterHash(counter), lockedUntilMs];
        await tx.query('DELETE FROM keyguard_auth.sign_in_attempts WHERE counter_hash = $1 AND failures = 1 AND locked_until_ms = $2', params);
        await tx.query(
          `UPDATE keyguard_auth.sign_in_attempts SET failures = failures - 1, locked_until_ms = CASE WHEN locked_until_ms = $2 THEN 0 ELSE locked_until_ms END
            WHERE counter_hash = $1 AND failures > 1`,
          params,
        );
      });
    },

    async succeeded(counter, on = sql) {
      await asAuth(on, (tx) => tx.query('DELETE FROM keyguard_auth.sign_in_attempts WHERE counter_hash = $1', [counterHash(counter)]));
    },

    async unlock(account, on = sql) {
      const { rows } = await asAuth(on, (tx) =>
        tx.query('DELETE FROM keyguard_auth.sign_in_attempts WHERE account_hash = $1 RETURNING counter_hash', [accountHash(account)]),
      );
      return rows.length > 0;
    },

    async purge() {
      const { rows } = await asAuth(sql, (tx) =>
        tx.query(
          `DELETE FROM keyguard_auth.sign_in_attempts WHERE counter_hash IN (SELECT counter_hash FROM keyguard_auth.sign_in_attempts
            WHERE last_try_at_ms < $1::bigint - $2::bigint AND locked_until_ms <= $1::bigint LIMIT $3) RETURNING counter_hash`,
          [clock.nowMs(), FORGOTTEN_AFTER_MS, PURGE_ROWS],
        ),
      );
      return rows.length;
    },
  };
}
