/**
 * What nobody gives to themself, however it is done: the means to read values of somebody else's secrets. A role can be held in
 * person or by a service account whose token one has, it can be given or be changed by who holds it, and secrets can be shared with it;
 * all of these are the same. Where two administer, whomever one of them has let in alone is that one as well: nobody else has seen
 * that there is such a person.
 *
 * @see docs/decisions/0035-what-nobody-does-alone.md
 */
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { asAuth, asJobs } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { Permission } from './permissions.ts';

/** Sharing counts: whoever may share a secret may share it with themself. */
export const REVEALING: readonly Permission[] = ['secrets:reveal', 'secrets:share'];

/** Held while it is decided who administers, so that nobody goes by what somebody else has just changed. */
export async function lockAdministrators(tx: SqlTransaction): Promise<void> {
  await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.administrators', 0))`);
}

/**
 * Whether there is a second administrator who can be asked. Rows without their MAC count too: they make nobody an administrator, and whoever
 * can take a MAC away could delete the row.
 */
export async function areTwo(tx: SqlTransaction): Promise<boolean> {
  const { rows } = await asAuth(tx, (inner) =>
    inner.query(
      'SELECT 1 FROM keyguard.administrators a WHERE NOT EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = a.user_id) LIMIT 2',
    ),
  );
  return rows.length === 2;
}

/** @throws HttpProblem `four_eyes_required` where `added` reveals and `isForOneself` */
export async function demandFourEyes(added: readonly string[], isForOneself: () => Promise<boolean>): Promise<void> {
  const revealing = REVEALING.filter((name) => added.includes(name));
  if (revealing.length > 0 && (await isForOneself())) {
    throw new HttpProblem('four_eyes_required', `Nobody gives ${revealing.join(' and ')} to themself, nor to whom they alone have let in: another administrator must do it.`);
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

/** Whether one of these people is the caller, or came in by an invitation of the caller's and by no approval of another one's. */
async function areOneself(tx: SqlTransaction, { userId }: Principal, people: readonly string[]): Promise<boolean> {
  if (people.includes(userId)) return true;
  if (people.length === 0 || !(await areTwo(tx))) return false;
  const { rows } = await asAuth(tx, (inner) =>
    inner.query('SELECT 1 FROM keyguard_auth.invitations WHERE accepted_user_id = ANY ($1) AND invited_by = $2 AND approval_token_hash IS NULL LIMIT 1', [people, userId]),
  );
  return rows.length > 0;
}

/** Whether what is given to `subjectId` is given to the caller, to whom the caller alone has let in, or to a program of either. */
export async function isOneself(tx: SqlTransaction, principal: Principal, subjectId: string): Promise<boolean> {
  const { rows } = await tx.query<{ owner_id: string }>('SELECT owner_id FROM keyguard.service_accounts WHERE id = $1', [subjectId]);
  return areOneself(tx, principal, [rows[0]?.owner_id ?? subjectId]);
}

/** Whether any of those, or a program of theirs, holds the role. */
export async function holdsOneself(tx: SqlTransaction, principal: Principal, roleId: string): Promise<boolean> {
  const { rows } = await tx.query<{ person_id: string }>(
    `SELECT DISTINCT coalesce(s.owner_id, a.user_id) AS person_id
      FROM keyguard.secret_user_roles a LEFT JOIN keyguard.service_accounts s ON s.id = a.user_id WHERE a.role_id = $1`,
    [roleId],
  );
  return areOneself(tx, principal, rows.map(({ person_id: personId }) => personId));
}
