/**
 * What is shared with somebody, as the rest of the service asks for it. A share counts only where its row bears its MAC, and one that
 * is given to a role only for those whose assignment to that role bears its own: a writer of the database shares nothing.
 */
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { isIntact, rowMac, tampered, type RowField, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { ASSIGNMENTS_TABLE, assignmentFields, type Access } from '../roles/access.ts';
import { PERMISSION_NAMES, type Permission } from '../roles/permissions.ts';
import { stillStands } from './shares-standing.ts';

export const SHARES_TABLE = 'secret_shares';
const SEAM = 'secret_shares';

export type ShareSubject = 'secret' | 'api_key';
export type GranteeType = 'user' | 'role' | 'link';

/** What can be shared. */
export const SHAREABLE = ['secrets:read', 'secrets:reveal', 'secrets:update', 'secrets:delete', 'secrets:share'] as const satisfies readonly Permission[];

/** A share, as its MAC covers it: all that it grants, to whom, on what. How often it was used and that it was revoked is outside. */
export interface ShareGrant {
  readonly id: string;
  readonly subjectType: ShareSubject;
  readonly subjectId: string;
  /** Of the subject. */
  readonly ownerId: string;
  /** Of the subject. */
  readonly projectId: string | null;
  readonly granteeType: GranteeType;
  /** `null` for a link. */
  readonly granteeId: string | null;
  readonly permissions: readonly string[];
  /** Of a link; `null` else. */
  readonly tokenHash: string | null;
  readonly maxViews: number | null;
  readonly createdBy: string;
  readonly createdAtMs: number;
  readonly expiresAtMs: number | null;
}

export function shareFields(grant: ShareGrant): readonly RowField[] {
  return [grant.id, grant.subjectType, grant.subjectId, grant.ownerId, grant.projectId, grant.granteeType, grant.granteeId,
    grant.permissions, grant.tokenHash, grant.maxViews, grant.createdBy, grant.createdAtMs, grant.expiresAtMs];
}

/** The MAC that the row of `grant` must bear. */
export function shareMac(rowMacKey: RowMacKey, grant: ShareGrant): Promise<Uint8Array> {
  return rowMac(rowMacKey, SHARES_TABLE, shareFields(grant));
}

/** What a kg_app may select of a share: everything but the hash of a link's token. */
export const SHARE_COLUMNS = `id, subject_type, subject_id, owner_id, project_id, grantee_type, grantee_id, permissions, max_views, views,
  created_by, created_at_ms, expires_at_ms, revoked_at_ms, mac_key_id, mac`;

export interface ShareRow {
  id: string;
  subject_type: ShareSubject;
  subject_id: string;
  owner_id: string;
  project_id: string | null;
  grantee_type: GranteeType;
  grantee_id: string | null;
  permissions: readonly string[];
  max_views: number | null;
  views: number;
  created_by: string;
  created_at_ms: unknown;
  expires_at_ms: unknown;
  revoked_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
}

const timeOrNull = (value: unknown): number | null => (value === null ? null : Number(value));

/** The grant in a row; of a link's only with the hash of its token, which kg_app cannot read. */
export function shareGrant(row: ShareRow, tokenHash: string | null = null): ShareGrant {
  return {
    id: row.id,
    subjectType: row.subject_type,
    subjectId: row.subject_id,
    ownerId: row.owner_id,
    projectId: row.project_id,
    granteeType: row.grantee_type,
    granteeId: row.grantee_id,
    permissions: row.permissions,
    tokenHash,
    maxViews: row.max_views,
    createdBy: row.created_by,
    createdAtMs: Number(row.created_at_ms),
    expiresAtMs: timeOrNull(row.expires_at_ms),
  };
}

/** Whose share it is on. */
export interface Subject {
  readonly id: string;
  readonly ownerId: string;
  readonly projectId: string | null;
}

/** By id of the subject: what is shared with the user for whom `tx` acts as kg_app. Subjects that are not shared are not in it. */
export type SharedWith = (tx: SqlTransaction, userId: string, subjectType: ShareSubject, subjects: readonly Subject[]) => Promise<ReadonlyMap<string, readonly Permission[]>>;

/** The shares of these subjects that count for the user for whom `tx` acts as kg_app. */
export type CountingShares = (tx: SqlTransaction, userId: string, subjectType: ShareSubject, subjects: readonly Subject[]) => Promise<readonly ShareRow[]>;

export type OnTamperedShare = (share: Pick<ShareGrant, 'id' | 'subjectType' | 'subjectId'>) => void;

export interface SharesOptions {
  readonly rowMacKey: RowMacKey;
  readonly access: Access;
  /** Told of a share that somebody changed or made up in the database, each time that it is met. MUST NOT wait for the database. */
  readonly onTampered?: OnTamperedShare;
  readonly clock?: Clock;
}

interface AssignmentRow {
  id: string;
  user_id: string;
  role_id: string;
  project_id: string | null;
  granted_by: string;
  granted_at_ms: unknown;
  expires_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
}

const KNOWN: ReadonlySet<string> = new Set(PERMISSION_NAMES);

/**
 * A share without its MAC grants nothing, and takes nothing else away: it is left out, and reported.
 * @throws UnavailableError seam `secret_shares`, when it is used, for an assignment without its MAC
 */
export function countingShares({ rowMacKey, access, onTampered = (): void => {}, clock = systemClock }: SharesOptions): CountingShares {
  const stands = stillStands(access);

  async function assignments(tx: SqlTransaction, userId: string, roleIds: readonly string[]): Promise<readonly AssignmentRow[]> {
    if (roleIds.length === 0) return [];
    const { rows } = await tx.query<AssignmentRow>(
      `SELECT id, user_id, role_id, project_id, granted_by, granted_at_ms, expires_at_ms, mac_key_id, mac
        FROM keyguard.secret_user_roles
        WHERE user_id = $1 AND role_id = ANY ($2::text[]) AND (expires_at_ms IS NULL OR expires_at_ms > $3)
          AND (project_id IS NULL OR keyguard.project_is_open(project_id))`,
      [userId, roleIds, clock.nowMs()],
    );
    for (const row of rows) {
      const grant = { id: row.id, userId: row.user_id, roleId: row.role_id, projectId: row.project_id, grantedBy: row.granted_by,
        grantedAtMs: Number(row.granted_at_ms), expiresAtMs: timeOrNull(row.expires_at_ms) };
      if (!(await isIntact(rowMacKey, ASSIGNMENTS_TABLE, assignmentFields(grant), { macKeyId: row.mac_key_id, mac: row.mac }))) {
        throw tampered(SEAM, ASSIGNMENTS_TABLE);
      }
    }
    return rows;
  }

  return async (tx, userId, subjectType, subjects) => {
    const others = new Map(subjects.filter(({ ownerId }) => ownerId !== userId).map((subject) => [subject.id, subject]));
    if (others.size === 0) return [];
    const { rows } = await tx.query<ShareRow>(
      `SELECT ${SHARE_COLUMNS} FROM keyguard.secret_shares
        WHERE subject_type = $1 AND subject_id = ANY ($2::text[]) AND revoked_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > $3)
          AND ((grantee_type = 'user' AND grantee_id = $4)
            OR (grantee_type = 'role' AND grantee_id IN (SELECT role_id FROM keyguard.secret_user_roles WHERE user_id = $4)))`,
      [subjectType, [...others.keys()], clock.nowMs(), userId],
    );
    const held = await assignments(tx, userId, [...new Set(rows.filter((row) => row.grantee_type === 'role').map((row) => row.grantee_id!))]);
    const counting: ShareRow[] = [];
    for (const row of rows) {
      const grant = shareGrant(row);
      if (!(await isIntact(rowMacKey, SHARES_TABLE, shareFields(grant), { macKeyId: row.mac_key_id, mac: row.mac }))) {
        onTampered(grant);
        continue;
      }
      const subject = others.get(row.subject_id)!;
      // A share says whose secret it was made for: one that was moved to another's says nothing.
      if (row.owner_id !== subject.ownerId || row.project_id !== subject.projectId) continue;
      const isGrantee = row.grantee_type === 'user'
        || held.some((one) => one.role_id === row.grantee_id && (one.project_id === null || one.project_id === row.project_id));
      if (!isGrantee) continue;
      if (await stands(tx, { createdBy: row.created_by, permissions: row.permissions, ...subject })) counting.push(row);
    }
    return counting;
  };
}

/** {@link countingShares}, as the permissions that they amount to. @throws UnavailableError likewise */
export function sharedWith(options: SharesOptions): SharedWith {
  const counting = countingShares(options);
  return async (tx, userId, subjectType, subjects) => {
    const found = new Map<string, readonly Permission[]>();
    for (const { subject_id: id, permissions } of await counting(tx, userId, subjectType, subjects)) {
      const granted = permissions.filter((name): name is Permission => KNOWN.has(name));
      // Whoever may do something with a secret may know of it.
      found.set(id, [...new Set<Permission>([...(found.get(id) ?? []), 'secrets:read', ...granted])]);
    }
    return found;
  };
}
