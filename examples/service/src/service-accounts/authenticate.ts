/**
 * Who calls with the token of a service account. Whatever is wrong with it, the answer is the same: nobody. Why is in the audit log,
 * for a token that was a right one.
 */
import type { AuditEntry, Clock } from '@keyguard/core/seams';
import { ipMatcher } from '@keyguard/server-verifier/ip';
import type { RowMacKey, SqlClient } from '@keyguard/storage-node/postgres';
import type { ServiceAccount } from '../auth/principal.ts';
import { asAuth } from '../db/as-user.ts';
import type { KeyedHash } from '../keys/hierarchy.ts';
import { grantOf, isAccountIntact, timeOf, type ServiceAccountGrant } from './rows.ts';
import { objectionTo, scopesIn, STANDING_COLUMNS, type StandingRow } from './standing.ts';
import { hashOf, isSameHash, prefixOf } from './tokens.ts';

const TOUCH_EVERY_MS = 60_000;
// Compared with where there is no row, so that this takes as long.
const NO_HASH = 'A'.repeat(43);

export interface ServiceAccountAuthentication {
  /**
   * The account whose token `bearer` (untrusted) is, calling from `ip`; `null` for every token that does not count: unknown, wrong,
   * expired, replaced, of a disabled account or of a disabled person's, from elsewhere, or of a row that nobody vouches for.
   */
  find(bearer: string, ip: string | null): Promise<ServiceAccount | null>;
}

export interface ServiceAccountAuthenticationOptions {
  readonly sql: SqlClient;
  readonly rowMacKey: RowMacKey;
  readonly hashToken: KeyedHash;
  readonly clock: Clock;
  /** Told of a right token that was refused all the same. */
  readonly record: (entry: AuditEntry) => Promise<void>;
  /** Told of a row that was changed in the database: the operator must look. */
  readonly onTampered: (accountId: string) => void;
}

export function serviceAccountAuthentication(options: ServiceAccountAuthenticationOptions): ServiceAccountAuthentication {
  const { sql, rowMacKey, hashToken, clock, record, onTampered } = options;

  /** Why a right token does not count; `null` where it does. */
  function objection(grant: ServiceAccountGrant, row: StandingRow, isPrevious: boolean, ip: string | null, nowMs: number): string | null {
    const reason = objectionTo(grant, row, nowMs);
    if (reason !== null) return reason;
    if (isPrevious && nowMs >= grant.previous!.expiresAtMs) return 'replaced';
    return grant.ipAllowlist === null || ipMatcher(grant.ipAllowlist)(ip) ? null : 'address_not_allowed';
  }

  return {
    async find(bearer, ip) {
      const prefix = prefixOf(bearer);
      const hash = hashOf(hashToken, bearer);
      const nowMs = clock.nowMs();
      const row = prefix === null ? undefined : await look(prefix);
      const isPrevious = row !== undefined && row.token_prefix !== prefix;
      const isRight = isSameHash(hash, (isPrevious ? row.previous_hash : row?.token_hash) ?? NO_HASH);
      if (row === undefined || !isRight) return null;
      if (!(await isAccountIntact(rowMacKey, row))) {
        onTampered(row.id);
        return null;
      }
      const grant = grantOf(row);
      const reason = objection(grant, row, isPrevious, ip, nowMs);
      if (reason !== null) {
        await record({ action: 'service_account.refused', outcome: 'refused', actor: `service_account:${row.id}`, resource: `service_account:${row.id}`, reason });
        return null;
      }
      await touch(row, nowMs);
      return {
        kind: 'service_account',
        userId: row.id,
        actor: `service_account:${row.id}`,
        isAdministrator: false,
        tokenPrefix: prefix!,
        scopes: scopesIn(grant),
      };
    },
  };

  async function look(prefix: string): Promise<StandingRow | undefined> {
    const { rows } = await asAuth(sql, (tx) =>
      tx.query<StandingRow>(
        `SELECT ${STANDING_COLUMNS} FROM keyguard.service_accounts WHERE token_prefix = $1 OR previous_prefix = $1`,
        [prefix],
      ),
    );
    return rows[0];
  }

  /** At most once a minute: a program that calls a thousand times a second writes no thousand rows. */
  async function touch(row: StandingRow, nowMs: number): Promise<void> {
    const last = timeOf(row.last_used_at_ms);
    if (last !== null && nowMs < last + TOUCH_EVERY_MS) return;
    await asAuth(sql, (tx) =>
      tx.query('UPDATE keyguard.service_accounts SET last_used_at_ms = $2 WHERE id = $1 AND (last_used_at_ms IS NULL OR last_used_at_ms <= $3)', [
        row.id, nowMs, nowMs - TOUCH_EVERY_MS,
      ]),
    );
  }
}
