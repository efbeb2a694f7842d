/**
 * The second administrator behind an invitation that gives power: that somebody administers, or reads other people's secrets. Where two
 * administer, one of them lets in nobody of that kind alone, whenever the invitation was made. Whoever made it has its token, and could be
 * the one who comes: so an approval makes a second token, of which the first administrator never learns, and binds who comes in by it.
 *
 * @see docs/decisions/0035-what-nobody-does-alone.md
 */
import type { Clock } from '@keyguard/core/seams';
import { postgresAdministrators, type RowField, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { asUser } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { KeyedHash } from '../keys/hierarchy.ts';
import { areTwo, REVEALING, sharedWithRole } from '../roles/four-eyes.ts';
import { lockRole } from '../roles/store.ts';
import { oneTimeLinks } from './one-time-links.ts';

/** Of the row of an invitation, whose own MAC the caller MUST have checked. */
export interface ApprovableRow {
  readonly id: string;
  readonly role_ids: readonly string[];
  readonly is_administrator: boolean;
  readonly invited_by: string;
  readonly mac: Uint8Array;
  readonly approved_by: string | null;
  readonly approved_at_ms: unknown;
  readonly approval_token_hash: string | null;
  readonly approval_mac_key_id: string | null;
  readonly approval_mac: Uint8Array | null;
}

/** Somebody else has proven that the invited address is theirs, which binds them as a second token does. */
export const PROVEN_ADDRESS = Symbol('proven address');

/** What somebody comes with, beside the invitation: the hash of a second token, an address that is theirs, or nothing. */
export type Beside = string | typeof PROVEN_ADDRESS | null;

export interface InvitationApprovals {
  /** The hash of a second token (untrusted); `null` for what cannot be one. */
  hashOf(secondToken: string): string | null;
  /** Whether a second administrator stands for it, and is one still. @throws UnavailableError for an approval without its MAC */
  isApprovedIn(tx: SqlTransaction, row: ApprovableRow): Promise<boolean>;
  /**
   * `by` stands for it from now on. The second token is shown this once, and one of before is worth nothing. The caller MUST hold the row,
   * and MUST have refused who made the invitation.
   */
  approveIn<Row extends ApprovableRow>(tx: SqlTransaction, row: Row, by: string): Promise<{ readonly secondToken: string; readonly approved: Row }>;
  /**
   * That it may be accepted now, by who comes with `beside`; what its roles give stays as it is until the transaction has ended. `true`
   * where both administrators let them in, `false` where one does and that is enough. The caller MUST hold `lockAdministrators`.
   * @throws HttpProblem `four_eyes_required`, and `link_invalid` for a second token that is not the one of the approval
   */
  demandIn(tx: SqlTransaction, row: ApprovableRow, beside: Beside): Promise<boolean>;
}

/** Over the MAC of the invitation, which is over all that it gives. */
function fieldsOf({ id, mac }: ApprovableRow, tokenHash: string, by: string, atMs: number): readonly RowField[] {
  return [id, Buffer.from(mac).toString('base64url'), tokenHash, by, atMs];
}

export interface InvitationApprovalsOptions {
  readonly hash: KeyedHash;
  readonly rowMacKey: RowMacKey;
  readonly clock: Clock;
}

export function invitationApprovals({ hash, rowMacKey, clock }: InvitationApprovalsOptions): InvitationApprovals {
  const links = oneTimeLinks({ table: 'invitations.approval', prefix: 'kga_' }, { hash, rowMacKey });

  async function isApprovedIn(tx: SqlTransaction, row: ApprovableRow): Promise<boolean> {
    const { approved_by: by, approval_token_hash: tokenHash, approval_mac: mac, approval_mac_key_id: macKeyId } = row;
    if (by === null || tokenHash === null || mac === null || macKeyId === null) return false;
    await links.demandIntact(fieldsOf(row, tokenHash, by, Number(row.approved_at_ms)), { macKeyId, mac });
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
    hashOf: (secondToken) => links.hashOf(secondToken),
    isApprovedIn,

    async approveIn(tx, row, by) {
      const { token: secondToken, tokenHash } = links.newToken();
      const nowMs = clock.nowMs();
      const { macKeyId, mac } = await links.seal(fieldsOf(row, tokenHash, by, nowMs));
      await tx.query(
        `UPDATE keyguard_auth.invitations
          SET approved_by = $2, approved_at_ms = $3, approval_token_hash = $4, approval_mac_key_id = $5, approval_mac = $6 WHERE id = $1`,
        [row.id, by, nowMs, tokenHash, macKeyId, mac],
      );
      const approved = { ...row, approved_by: by, approved_at_ms: nowMs, approval_token_hash: tokenHash, approval_mac_key_id: macKeyId, approval_mac: mac };
      return { secondToken, approved };
    },

    async demandIn(tx, row, beside) {
      // In the one order in which they are stored, so that nobody waits for who waits.
      for (const roleId of row.role_ids) await lockRole(tx, roleId);
      const isApproved = await isApprovedIn(tx, row);
      if (isApproved && (beside === PROVEN_ADDRESS || beside === row.approval_token_hash)) return true;
      if (!(await areTwo(tx)) || !(await givesPowerIn(tx, row))) return false;
      if (!isApproved) {
        const then = beside === PROVEN_ADDRESS ? 'Then sign in again.' : 'Then come with the second token that they hand you as well.';
        throw new HttpProblem('four_eyes_required', `A second administrator must approve this invitation first: it gives more than one of them gives alone. ${then}`);
      }
      if (beside === null) {
        throw new HttpProblem(
          'four_eyes_required',
          'This takes a second token as well, of the administrator who approved the invitation: ask them for it, and send it as second_token.',
        );
      }
      throw new HttpProblem('link_invalid', 'The second token is not the one of the approval that counts: ask the administrator who approved the invitation for a new one.');
    },
  };
}
