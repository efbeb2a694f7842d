/**
 * What nobody gives to themself, however it is done: the means to read values of somebody else's secrets. A role can be held in
 * person or by a service account whose token one has, it can be given or be changed by who holds it, and secrets can be shared with it;
 * all of these are the same.
 */
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { asJobs } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { Permission } from './permissions.ts';

/** Sharing counts: whoever may share a secret may share it with themself. */
export const REVEALING: readonly Permission[] = ['secrets:reveal', 'secrets:share'];

/** @throws HttpProblem `four_eyes_required` where `added` reveals and `isForOneself` */
export async function demandFourEyes(added: readonly string[], isForOneself: () => Promise<boolean>): Promise<void> {
  const revealing = REVEALING.filter((name) => added.includes(name));
  if (revealing.length > 0 && (await isForOneself())) {
    throw new HttpProblem('four_eyes_required', `Nobody gives ${revealing.join(' and ')} to themself: another administrator must do it.`);
  }
}

/** What is shared with whoever holds the role, at this moment: holding it grants that as well. */
export async function sharedWithRole(tx: SqlTransaction, roleId: string, nowMs: number): Promise<readonly string[]> {
  // As those who see all shares: who gives a role need not be let see what is shared with it.
  const { rows } = await asJobs(tx, (inner) =>
    inner.query<{ permission: string }>(
      `SELECT DISTINCT unnest(permissions) AS permission FROM keyguard.secret_shares
        WHERE grantee_type = 'role' AND grantee_id = $1 AND revoked_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > $2)`,
      [roleId, nowMs],
    ),
  );
  return rows.map(({ permission }) => permission);
}

/** Whether what is given to `subjectId` is given to the caller, or to a program of the caller's. */
export async function isOneself(tx: SqlTransaction, principal: Principal, subjectId: string): Promise<boolean> {
  if (subjectId === principal.userId) return true;
  const { rows } = await tx.query('SELECT 1 FROM keyguard.service_accounts WHERE id = $1 AND owner_id = $2', [subjectId, principal.userId]);
  return rows.length > 0;
}

/** Whether the caller, or a program of the caller's, holds the role. */
export async function holdsOneself(tx: SqlTransaction, principal: Principal, roleId: string): Promise<boolean> {
  const { rows } = await tx.query(
    `SELECT 1 FROM keyguard.secret_user_roles a WHERE a.role_id = $1 AND (a.user_id = $2
      OR a.user_id IN (SELECT s.id FROM keyguard.service_accounts s WHERE s.owner_id = $2)) LIMIT 1`,
    [roleId, principal.userId],
  );
  return rows.length > 0;
}
