/** Whether a service account may come in, whoever asks: for the token that it shows, or for what it has left behind for others. */
import type { Clock } from '@keyguard/core/seams';
import type { RowMacKey, SqlClient } from '@keyguard/storage-node/postgres';
import { asAuth } from '../db/as-user.ts';
import { PERMISSION_NAMES, type Permission } from '../roles/permissions.ts';
import { COLUMNS, grantOf, isAccountIntact, type AccountRow, type ServiceAccountGrant } from './rows.ts';

const KNOWN: ReadonlySet<string> = new Set(PERMISSION_NAMES);

/** {@link COLUMNS}, and whether whoever owns the account is disabled. */
export const STANDING_COLUMNS = `${COLUMNS}, EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = owner_id) AS owner_is_disabled`;

export interface StandingRow extends AccountRow {
  owner_is_disabled: boolean;
}

/** Why the account may not come in; `null` where it may. */
export function objectionTo(grant: ServiceAccountGrant, { owner_is_disabled: ownerIsDisabled }: StandingRow, nowMs: number): 'disabled' | 'owner_disabled' | 'expired' | null {
  if (grant.disabled !== null) return 'disabled';
  if (ownerIsDisabled) return 'owner_disabled';
  return grant.expiresAtMs !== null && nowMs >= grant.expiresAtMs ? 'expired' : null;
}

export function scopesIn(grant: ServiceAccountGrant): ReadonlySet<Permission> {
  return new Set(grant.scopes.filter((name): name is Permission => KNOWN.has(name)));
}

/**
 * The most that `id` may do as a program, now: nothing for an account that may not come in, was deleted, or whose row nobody vouches
 * for, and nothing for who never was anybody. `null` for a person, whom no scopes bind.
 */
export async function scopesOf(sql: SqlClient, rowMacKey: RowMacKey, clock: Clock, id: string): Promise<ReadonlySet<Permission> | null> {
  const nothing = new Set<Permission>();
  const { isPerson, account } = await asAuth(sql, async (tx) => ({
    isPerson: (await tx.query('SELECT 1 FROM keyguard_auth.users WHERE id = $1', [id])).rows.length > 0,
    account: (await tx.query<StandingRow>(`SELECT ${STANDING_COLUMNS} FROM keyguard.service_accounts WHERE id = $1`, [id])).rows[0],
  }));
  if (account === undefined) return isPerson ? null : nothing;
  if (!(await isAccountIntact(rowMacKey, account))) return nothing;
  const grant = grantOf(account);
  return objectionTo(grant, account, clock.nowMs()) === null ? scopesIn(grant) : nothing;
}
