/**
 * Whether a share still stands: what somebody gave on holds only while they could still give it. The owner always can; others only
 * while a role lets them share the secret, and have what they shared. It is asked at every use, so a role that ends takes along
 * whatever was passed on by it.
 */
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Person } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import type { Access } from '../roles/access.ts';
import type { Permission } from '../roles/permissions.ts';

export interface GivenShare {
  readonly createdBy: string;
  readonly permissions: readonly string[];
  /** Of the secret, as the secret itself says. */
  readonly ownerId: string;
  readonly projectId: string | null;
}

export type StillStands = (tx: SqlTransaction, share: GivenShare) => Promise<boolean>;

/** Somebody who is asked about while they are not here: nothing that a session or a role as administrator would add counts. */
export function absent(userId: string): Person {
  return { kind: 'person', userId, actor: `user:${userId}`, sessionId: '', isAdministrator: false, secondFactor: { isSetUp: false, provenAtMs: null } };
}

/** Whether this person, for whom `tx` acts, may not come in for now. */
export async function isDisabled(tx: SqlTransaction, userId: string): Promise<boolean> {
  const { rows } = await tx.query('SELECT 1 FROM keyguard.disabled_people WHERE user_id = $1', [userId]);
  return rows.length > 0;
}

/** Asks in `tx`, for a moment as whoever made the share. What is shared with them does not count: it is theirs to use, not to give. */
export function stillStands(access: Access): StillStands {
  return async (tx, { createdBy, permissions, ownerId, projectId }) => {
    if (createdBy === ownerId) return true;
    const theirs = await asUser(tx, createdBy, async (as) =>
      (await isDisabled(as, createdBy)) ? new Set<Permission>() : access.permissionsOn(as, absent(createdBy), { ownerId, projectId, shared: [] }),
    );
    return theirs.has('secrets:share') && permissions.every((permission) => theirs.has(permission as Permission));
  };
}
