/**
 * The second administrator behind an invitation that gives power: that somebody administers, or reads other people's secrets. Where two
 * administer, one of them lets in nobody of that kind alone, whenever the invitation was made.
 *
 * @see docs/decisions/0035-what-nobody-does-alone.md
 */
import type { Clock } from '@keyguard/core/seams';
import { isIntact, postgresAdministrators, rowMac, tampered, type RowField, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { asUser } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import { areTwo, REVEALING, sharedWithRole } from '../roles/four-eyes.ts';
import { lockRole } from '../roles/store.ts';

const SEAM = 'one_time_links';
const APPROVALS = 'invitations.approval';

/** Of the row of an invitation, whose own MAC the caller MUST have checked. */
export interface ApprovableRow {
  readonly id: string;
  readonly role_ids: readonly string[];
  readonly is_administrator: boolean;
  readonly invited_by: string;
  readonly mac: Uint8Array;
  readonly approved_by: string | null;
  readonly approved_at_ms: unknown;
  readonly approval_mac_key_id: string | null;
  readonly approval_mac: Uint8Array | null;
}

export interface InvitationApprovals {
  /** Whether a second administrator stands for it, and is one still. @throws UnavailableError for an approval without its MAC */
  isApprovedIn(tx: SqlTransaction, row: ApprovableRow): Promise<boolean>;
  /** The MAC of an approval. */
  seal(row: ApprovableRow, by: string, atMs: number): Promise<{ readonly macKeyId: string; readonly mac: Uint8Array }>;
  /**
   * That it may be accepted now; what its roles give stays as it is until the transaction has ended. The caller MUST hold `lockAdministrators`.
   * @throws HttpProblem `four_eyes_required`
   */
  demandIn(tx: SqlTransaction, row: ApprovableRow): Promise<void>;
}

/** Over the MAC of the invitation, which is over all that it gives. */
function fieldsOf({ id, mac }: ApprovableRow, by: string, atMs: number): readonly RowField[] {
  return [id, Buffer.from(mac).toString('base64url'), by, atMs];
}

export function invitationApprovals({ rowMacKey, clock }: { readonly rowMacKey: RowMacKey; readonly clock: Clock }): InvitationApprovals {
  async function isApprovedIn(tx: SqlTransaction, row: ApprovableRow): Promise<boolean> {
    const { approved_by: by, approval_mac: mac, approval_mac_key_id: macKeyId } = row;
    if (by === null || mac === null || macKeyId === null) return false;
    const isOurs = await isIntact(rowMacKey, APPROVALS, fieldsOf(row, by, Number(row.approved_at_ms)), { macKeyId, mac: Uint8Array.from(mac) });
    if (!isOurs) throw tampered(SEAM, APPROVALS);
    return by !== row.invited_by && (await postgresAdministrators(tx, { rowMacKey, clock }).has(by));
  }

  async function givesPowerIn(tx: SqlTransaction, row: ApprovableRow): Promise<boolean> {
    if (row.is_administrator) return true;
    return asUser(tx, row.invited_by, async (as) => {
      const { rows } = await as.query('SELECT 1 FROM keyguard.secret_roles WHERE id = ANY ($1) AND permissions && $2::text[] LIMIT 1', [row.role_ids, [...REVEALING]]);
      if (rows.length > 0) return true;
      for (const roleId of row.role_ids) {
        const shared = await sharedWithRole(as, roleId, clock.nowMs());
        if (REVEALING.some((name) => shared.includes(name))) return true;
      }
      return false;
    });
  }

  return {
    isApprovedIn,
    async seal(row, by, atMs) {
      return { macKeyId: rowMacKey.keyId, mac: await rowMac(rowMacKey, APPROVALS, fieldsOf(row, by, atMs)) };
    },
    async demandIn(tx, row) {
      // In the one order in which they are stored, so that nobody waits for who waits.
      for (const roleId of row.role_ids) await lockRole(tx, roleId);
      if (!(await areTwo(tx)) || (await isApprovedIn(tx, row)) || !(await givesPowerIn(tx, row))) return;
      throw new HttpProblem('four_eyes_required', 'A second administrator must approve this invitation first: it gives more than one of them gives alone. Then try again.');
    },
  };
}
