/**
 * How people come in: an administrator invites an address, and whoever has the token of the invitation sets a password for it, once.
 * What the invitation gives is under a MAC, and counts only while whoever invited still administers.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import {
  pageOf, pageStart, postgresAdministrators, rowMac, type Page, type PageRequest, type RowField, type SqlClient, type SqlTransaction,
} from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asAuth, asUser } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { assignmentFields, ASSIGNMENTS_TABLE } from '../roles/access.ts';
import { lockAdministrators } from '../roles/four-eyes.ts';
import { NO_QUOTAS, type Quotas } from '../settings/quotas.ts';
import { invitationApprovals, PROVEN_ADDRESS, type Beside } from './invitation-approvals.ts';
import { linkInvalid, oneTimeLinks } from './one-time-links.ts';
import * as passwords from './passwords.ts';
import type { Person } from './principal.ts';
import { addPersonIn, setPasswordIn } from './vouched-people.ts';

export interface Invitation {
  readonly id: string;
  readonly email: string;
  readonly roleIds: readonly string[];
  readonly isAdministrator: boolean;
  readonly invitedBy: string;
  readonly createdAtMs: number;
  readonly expiresAtMs: number;
  readonly acceptedAtMs: number | null;
  readonly acceptedUserId: string | null;
  readonly revokedAtMs: number | null;
  /** The second administrator, who stands for it as well. */
  readonly approvedBy: string | null;
  readonly approvedAtMs: number | null;
}

export interface NewInvitation {
  /** Lower-case. */
  readonly email: string;
  readonly roleIds: readonly string[];
  readonly isAdministrator: boolean;
  readonly expiresInSeconds: number;
}

export interface Invitations {
  /** The token is shown this once. @throws HttpProblem `account_exists`, `quota_exceeded`, `invalid_request` for a role that is not there */
  create(invitation: NewInvitation, by: Person): Promise<{ readonly invitation: Invitation; readonly token: string }>;
  list(request: PageRequest): Promise<Page<Invitation>>;
  /**
   * A second administrator stands for it, and lets in whom they give the second token, which is shown this once; one of before is worth
   * nothing from now on. `null` where there is none that is still open.
   * @throws HttpProblem `four_eyes_required` for who made it
   */
  approve(id: string, by: Person): Promise<{ readonly invitation: Invitation; readonly secondToken: string } | null>;
  /** `null` where there is none that is still open. */
  revoke(id: string, by: Person): Promise<Invitation | null>;
  /**
   * Makes the person; one winner, whatever races. `secondToken` is the one of the approval.
   * @throws HttpProblem `link_invalid`, `account_exists`, and `four_eyes_required` where it gives power, two administer, and the approval or
   * its token is missing
   */
  accept(token: string, secondToken: string | null, person: { readonly password: string; readonly name: string }): Promise<{ readonly userId: string; readonly email: string }>;
  /**
   * In the caller's transaction: uses up an open invitation of an address that somebody else has proven, and gives what it gives to
   * `userId`. `false` where there is none.
   * @throws HttpProblem `four_eyes_required` where it gives power, two administer, and one has made it
   */
  claimForIn(tx: SqlTransaction, email: string, userId: string): Promise<boolean>;
  /** Whether `token` is still one with which, alone or beside another, somebody comes in. */
  isOpen(token: string): Promise<boolean>;
  /** Whether `secondToken` is still the one of the approval that counts. */
  isSecondOpen(id: string, secondToken: string): Promise<boolean>;
  /** Whether there is an open invitation of this address. */
  isInvited(email: string): Promise<boolean>;
}

interface Row {
  id: string;
  token_hash: string;
  email: string;
  role_ids: readonly string[];
  is_administrator: boolean;
  invited_by: string;
  created_at_ms: unknown;
  expires_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
  accepted_at_ms: unknown;
  accepted_user_id: string | null;
  revoked_at_ms: unknown;
  approved_by: string | null;
  approved_at_ms: unknown;
  approval_token_hash: string | null;
  approval_mac_key_id: string | null;
  approval_mac: Uint8Array | null;
}

const COLUMNS = `id, token_hash, email, role_ids, is_administrator, invited_by, created_at_ms, expires_at_ms, mac_key_id, mac, accepted_at_ms,
  accepted_user_id, revoked_at_ms, approved_by, approved_at_ms, approval_token_hash, approval_mac_key_id, approval_mac`;
const OPEN = 'accepted_at_ms IS NULL AND revoked_at_ms IS NULL AND expires_at_ms > $2';

const msOrNull = (value: unknown): number | null => (value === null ? null : Number(value));

function invitationOf(row: Row): Invitation {
  return {
    id: row.id,
    email: row.email,
    roleIds: row.role_ids,
    isAdministrator: row.is_administrator,
    invitedBy: row.invited_by,
    createdAtMs: Number(row.created_at_ms),
    expiresAtMs: Number(row.expires_at_ms),
    acceptedAtMs: msOrNull(row.accepted_at_ms),
    acceptedUserId: row.accepted_user_id,
    revokedAtMs: msOrNull(row.revoked_at_ms),
    approvedBy: row.approved_by,
    approvedAtMs: msOrNull(row.approved_at_ms),
  };
}

function fieldsOf(row: Row): readonly RowField[] {
  return [row.id, row.token_hash, row.email, row.role_ids, row.is_administrator, row.invited_by, Number(row.created_at_ms), Number(row.expires_at_ms)];
}

export interface InvitationsOptions {
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly quotas?: Quotas;
  readonly clock?: Clock;
}

export function createInvitations({ sql, keys, audit, quotas = NO_QUOTAS, clock = systemClock }: InvitationsOptions): Invitations {
  const { rowMacKey } = keys;
  const links = oneTimeLinks({ table: 'invitations', prefix: 'kgi_' }, { hash: keys.hashToken, rowMacKey });
  const approvals = invitationApprovals({ hash: keys.hashToken, rowMacKey, clock });

  /** An open invitation that gives what it says, or `null`. */
  async function openIn(tx: SqlTransaction, column: 'id' | 'token_hash' | 'email', value: string): Promise<Row | null> {
    const { rows } = await tx.query<Row>(
      `SELECT ${COLUMNS} FROM keyguard_auth.invitations WHERE ${column} = $1 AND ${OPEN} ORDER BY created_at_ms DESC, id DESC LIMIT 1`,
      [value, clock.nowMs()],
    );
    const row = rows[0];
    if (row === undefined) return null;
    await links.demandIntact(fieldsOf(row), { macKeyId: row.mac_key_id, mac: row.mac });
    // Who may not invite any more has invited nobody.
    return (await postgresAdministrators(tx, { rowMacKey, clock }).has(row.invited_by)) ? row : null;
  }

  /**
   * Uses it up and gives what it gives. `false` where somebody else was first, it was approved anew meanwhile, or who invited administers no longer.
   * @throws HttpProblem `four_eyes_required`, `link_invalid`
   */
  async function claimIn(tx: SqlTransaction, row: Row, userId: string, beside: Beside): Promise<boolean> {
    await lockAdministrators(tx);
    const administrators = postgresAdministrators(tx, { rowMacKey, clock });
    // Whoever invited may have given it up while this waited.
    if (!(await administrators.has(row.invited_by))) return false;
    const isByBoth = await approvals.demandIn(tx, row, beside);
    // An approval by which nobody came in vouches for nobody: its token is forgotten.
    const { rows } = await tx.query(
      `UPDATE keyguard_auth.invitations SET accepted_at_ms = $2, accepted_user_id = $3, approval_token_hash = CASE WHEN $4::boolean THEN approval_token_hash END
        WHERE id = $1 AND ${OPEN} AND approval_token_hash IS NOT DISTINCT FROM $5 RETURNING id`,
      [row.id, clock.nowMs(), userId, isByBoth, row.approval_token_hash],
    );
    if (rows.length === 0) return false;
    if (row.is_administrator) await administrators.grant(userId, { grantedBy: row.invited_by });
    // As who invited: the policies have their say.
    await asUser(tx, row.invited_by, async (as) => {
      for (const roleId of row.role_ids) {
        const grant = { id: randomUUID(), userId, roleId, projectId: null, grantedBy: row.invited_by, grantedAtMs: clock.nowMs(), expiresAtMs: null };
        await as.query(
          `INSERT INTO keyguard.secret_user_roles (id, user_id, role_id, project_id, granted_by, granted_at_ms, expires_at_ms, mac_key_id, mac)
            SELECT $1, $2, r.id, NULL, $4, $5, NULL, $6, $7 FROM keyguard.secret_roles r WHERE r.id = $3`,
          [grant.id, userId, roleId, grant.grantedBy, grant.grantedAtMs, rowMacKey.keyId, await rowMac(rowMacKey, ASSIGNMENTS_TABLE, assignmentFields(grant))],
        );
      }
    });
    await audit.recordIn(tx, {
      action: 'invitation.accept', outcome: 'success', actor: `user:${userId}`, resource: `invitation:${row.id}`,
      account: keys.pseudonym(`account\0${row.email}`), invited_by: row.invited_by, ...(isByBoth && { approved_by: row.approved_by }),
      role_ids: [...row.role_ids], is_administrator: row.is_administrator,
    });
    return true;
  }

  return {
    async create({ email, roleIds, isAdministrator, expiresInSeconds }, by) {
      const { token, tokenHash } = links.newToken();
      const nowMs = clock.nowMs();
      const draft = {
        id: randomUUID(), token_hash: tokenHash, email, role_ids: [...new Set(roleIds)].toSorted(), is_administrator: isAdministrator, invited_by: by.userId,
        created_at_ms: nowMs, expires_at_ms: nowMs + expiresInSeconds * 1000, accepted_at_ms: null, accepted_user_id: null, revoked_at_ms: null,
        approved_by: null, approved_at_ms: null, approval_token_hash: null, approval_mac_key_id: null, approval_mac: null,
      };
      const { macKeyId, mac } = await links.seal(fieldsOf({ ...draft, mac_key_id: '', mac: new Uint8Array() }));
      return asAuth(sql, async (tx) => {
        await quotas.demandRoom(tx, by, 'invitations');
        const known = await tx.query('SELECT 1 FROM keyguard_auth.users WHERE email = $1', [email]);
        if (known.rows.length > 0) throw new HttpProblem('account_exists', 'There is somebody of this address already.');
        const roles = await asUser(tx, by.userId, (as) => as.query('SELECT 1 FROM keyguard.secret_roles WHERE id = ANY($1)', [draft.role_ids]));
        if (roles.rows.length !== draft.role_ids.length) throw new HttpProblem('invalid_request', 'role_ids: there is no role of one of these ids.');
        const { rows } = await tx.query<Row>(
          `INSERT INTO keyguard_auth.invitations (id, token_hash, email, role_ids, is_administrator, invited_by, created_at_ms, expires_at_ms, mac_key_id, mac)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING ${COLUMNS}`,
          [draft.id, tokenHash, email, draft.role_ids, isAdministrator, by.userId, nowMs, draft.expires_at_ms, macKeyId, mac],
        );
        await audit.recordIn(tx, {
          action: 'invitation.create', outcome: 'success', actor: by.actor, resource: `invitation:${draft.id}`,
          account: keys.pseudonym(`account\0${email}`), role_ids: draft.role_ids, is_administrator: isAdministrator,
        });
        return { invitation: invitationOf(rows[0]!), token };
      });
    },

    async list(request) {
      const start = pageStart(request);
      const { limit = 50 } = request;
      const { rows } = await asAuth(sql, (tx) =>
        tx.query<Row>(
          `SELECT ${COLUMNS} FROM keyguard_auth.invitations WHERE $1::bigint IS NULL OR (created_at_ms, id) < ($1::bigint, $2::text)
            ORDER BY created_at_ms DESC, id DESC LIMIT $3`,
          [start?.[0] ?? null, start?.[1] ?? null, limit + 1],
        ),
      );
      return pageOf(rows, limit, (row) => [Number(row.created_at_ms), row.id], invitationOf);
    },

    approve(id, by) {
      return asAuth(sql, async (tx) => {
        const { rows } = await tx.query<Row>(`SELECT ${COLUMNS} FROM keyguard_auth.invitations WHERE id = $1 AND ${OPEN} FOR UPDATE`, [id, clock.nowMs()]);
        const row = rows[0];
        if (row === undefined) return null;
        if (row.invited_by === by.userId) throw new HttpProblem('four_eyes_required', 'Another administrator than the one who made it approves an invitation.');
        await links.demandIntact(fieldsOf(row), { macKeyId: row.mac_key_id, mac: row.mac });
        const { secondToken, approved } = await approvals.approveIn(tx, row, by.userId);
        await audit.recordIn(tx, {
          action: 'invitation.approve', outcome: 'success', actor: by.actor, resource: `invitation:${id}`, invited_by: row.invited_by,
          role_ids: [...row.role_ids], is_administrator: row.is_administrator, ...(row.approved_by !== null && { in_place_of: row.approved_by }),
        });
        return { invitation: invitationOf(approved), secondToken };
      });
    },

    revoke(id, by) {
      return asAuth(sql, async (tx) => {
        const { rows } = await tx.query<Row>(
          `UPDATE keyguard_auth.invitations SET revoked_at_ms = $2 WHERE id = $1 AND accepted_at_ms IS NULL AND revoked_at_ms IS NULL RETURNING ${COLUMNS}`,
          [id, clock.nowMs()],
        );
        if (rows[0] === undefined) return null;
        await audit.recordIn(tx, { action: 'invitation.revoke', outcome: 'success', actor: by.actor, resource: `invitation:${id}` });
        return invitationOf(rows[0]);
      });
    },

    async accept(token, secondToken, { password, name }) {
      const tokenHash = links.hashOf(token);
      const secondHash = secondToken === null ? null : approvals.hashOf(secondToken);
      if (tokenHash === null || (secondToken !== null && secondHash === null)) throw linkInvalid();
      // Looked at before the password is hashed, so that guessing costs us nothing; and again when it counts.
      if ((await asAuth(sql, (tx) => openIn(tx, 'token_hash', tokenHash))) === null) throw linkInvalid();
      const passwordHash = await passwords.hash(password);
      const userId = randomUUID();
      const email = await asAuth(sql, async (tx) => {
        const row = await openIn(tx, 'token_hash', tokenHash);
        if (row === null) return null;
        const isNew = await addPersonIn(tx, keys, { id: userId, name, email: row.email });
        if (isNew) await setPasswordIn(tx, keys, userId, passwordHash);
        // Last: its entry takes the lock of the log.
        if (!(await claimIn(tx, row, userId, secondHash))) {
          await tx.query('DELETE FROM keyguard_auth.users WHERE id = $1', [userId]);
          return null;
        }
        if (!isNew) throw new HttpProblem('account_exists', 'There is somebody of this address already: sign in.');
        return row.email;
      });
      if (email === null) throw linkInvalid();
      return { userId, email };
    },

    async claimForIn(tx, email, userId) {
      const row = await openIn(tx, 'email', email);
      return row !== null && claimIn(tx, row, userId, PROVEN_ADDRESS);
    },

    async isOpen(token) {
      const tokenHash = links.hashOf(token);
      return tokenHash !== null && (await asAuth(sql, (tx) => openIn(tx, 'token_hash', tokenHash))) !== null;
    },

    isSecondOpen: (id, secondToken) =>
      asAuth(sql, async (tx) => {
        const row = await openIn(tx, 'id', id);
        return row !== null && row.approval_token_hash === approvals.hashOf(secondToken) && approvals.isApprovedIn(tx, row);
      }),

    isInvited: (email) => asAuth(sql, async (tx) => (await openIn(tx, 'email', email)) !== null),
  };
}
