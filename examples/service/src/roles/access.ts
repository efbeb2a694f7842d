/**
 * What somebody may do with a row that is there: the application's half of the answer. The other half are the policies, and each
 * must hold without the other. Roles count only where the assignment and the role both bear their MACs.
 */
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { isIntact, tampered, type RowField, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { PERMISSION_NAMES, type Permission } from './permissions.ts';

/** What decides about a row, beside who asks. */
export interface Governed {
  readonly ownerId: string;
  /** `null`: in no project, where only roles that hold everywhere count. */
  readonly projectId: string | null;
  /** What is shared with the caller. The caller of this room MUST have checked the MACs of those shares. */
  readonly shared: readonly Permission[];
}

/** For what belongs to nobody and is in no project: what the caller may do there, it may do everywhere. */
export const EVERYWHERE: Governed = { ownerId: '', projectId: null, shared: [] };

export interface Access {
  /**
   * What `principal`, for whom `tx` acts as kg_app, may do with `row` now: everything for its owner; for others what is shared, and
   * what their roles grant in its project or everywhere. Administrators may do, beside that, whatever is not done with secrets. A
   * service account never gets more than its scopes.
   * @throws UnavailableError seam `roles` for an assignment or a role without its MAC, which grants nothing
   */
  permissionsOn(tx: SqlTransaction, principal: Principal, row: Governed): Promise<ReadonlySet<Permission>>;
}

/** Where somebody holds a permission by roles, or by being an administrator. */
export interface Reach {
  readonly everywhere: boolean;
  /** Those that are not archived. */
  readonly projectIds: readonly string[];
}

/** For lists: which rows to ask the database for, without asking about each. */
export interface ReachAccess extends Access {
  /**
   * Where `principal`, for whom `tx` acts, has `permission` beside on what it owns and what is shared with it.
   * @throws UnavailableError seam `roles` for an assignment or a role without its MAC
   */
  reachOf(tx: SqlTransaction, principal: Principal, permission: Permission): Promise<Reach>;
}

export interface AccessOptions {
  readonly rowMacKey: RowMacKey;
  readonly clock?: Clock;
}

/** A role, as its MAC covers it. */
export interface RoleGrant {
  readonly id: string;
  readonly name: string;
  readonly permissions: readonly string[];
  readonly isSystem: boolean;
}

/** An assignment, as its MAC covers it. */
export interface AssignmentGrant {
  readonly id: string;
  readonly userId: string;
  readonly roleId: string;
  readonly projectId: string | null;
  readonly grantedBy: string;
  readonly grantedAtMs: number;
  readonly expiresAtMs: number | null;
}

export const ROLES_SEAM = 'roles';
export const ROLES_TABLE = 'secret_roles';
export const ASSIGNMENTS_TABLE = 'secret_user_roles';

export function roleFields({ id, name, permissions, isSystem }: RoleGrant): readonly RowField[] {
  return [id, name, permissions, isSystem];
}

export function assignmentFields(grant: AssignmentGrant): readonly RowField[] {
  return [grant.id, grant.userId, grant.roleId, grant.projectId, grant.grantedBy, grant.grantedAtMs, grant.expiresAtMs];
}

interface GrantRow {
  id: string;
  user_id: string;
  role_id: string;
  project_id: string | null;
  granted_by: string;
  granted_at_ms: unknown;
  expires_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
  name: string;
  permissions: readonly string[];
  is_system: boolean;
  role_mac_key_id: string;
  role_mac: Uint8Array;
}

interface Held {
  readonly projectId: string | null;
  readonly permissions: readonly Permission[];
}

const KNOWN: ReadonlySet<string> = new Set(PERMISSION_NAMES);
const OWNER: readonly Permission[] = PERMISSION_NAMES;
const ADMINISTRATOR: readonly Permission[] = PERMISSION_NAMES.filter((name) => !name.startsWith('secrets:'));

export function createAccess({ rowMacKey, clock = systemClock }: AccessOptions): ReachAccess {
  async function demandIntact(row: GrantRow): Promise<void> {
    const grant: AssignmentGrant = {
      id: row.id,
      userId: row.user_id,
      roleId: row.role_id,
      projectId: row.project_id,
      grantedBy: row.granted_by,
      grantedAtMs: Number(row.granted_at_ms),
      expiresAtMs: row.expires_at_ms === null ? null : Number(row.expires_at_ms),
    };
    if (!(await isIntact(rowMacKey, ASSIGNMENTS_TABLE, assignmentFields(grant), { macKeyId: row.mac_key_id, mac: row.mac }))) {
      throw tampered(ROLES_SEAM, ASSIGNMENTS_TABLE);
    }
    const role: RoleGrant = { id: row.role_id, name: row.name, permissions: row.permissions, isSystem: row.is_system };
    if (!(await isIntact(rowMacKey, ROLES_TABLE, roleFields(role), { macKeyId: row.role_mac_key_id, mac: row.role_mac }))) {
      throw tampered(ROLES_SEAM, ROLES_TABLE);
    }
  }

  /** What is held everywhere or in `projectId`; with `undefined`, what is held anywhere. */
  async function heldBy(tx: SqlTransaction, userId: string, projectId: string | null | undefined): Promise<readonly Held[]> {
    const { rows } = await tx.query<GrantRow>(
      `SELECT a.id, a.user_id, a.role_id, a.project_id, a.granted_by, a.granted_at_ms, a.expires_at_ms, a.mac_key_id, a.mac,
          r.name, r.permissions, r.is_system, r.mac_key_id AS role_mac_key_id, r.mac AS role_mac
        FROM keyguard.secret_user_roles a JOIN keyguard.secret_roles r ON r.id = a.role_id
        WHERE a.user_id = $1 AND (a.expires_at_ms IS NULL OR a.expires_at_ms > $4)
          AND (a.project_id IS NULL OR (($3 OR a.project_id = $2) AND keyguard.project_is_open(a.project_id)))`,
      [userId, projectId ?? null, projectId === undefined, clock.nowMs()],
    );
    const held: Held[] = [];
    for (const row of rows) {
      await demandIntact(row);
      held.push({ projectId: row.project_id, permissions: row.permissions.filter((name): name is Permission => KNOWN.has(name)) });
    }
    return held;
  }

  return {
    async permissionsOn(tx, principal, { ownerId, projectId, shared }) {
      const granted =
        ownerId === principal.userId
          ? new Set(OWNER)
          : new Set([...shared, ...(await heldBy(tx, principal.userId, projectId)).flatMap(({ permissions }) => permissions), ...(principal.isAdministrator ? ADMINISTRATOR : [])]);
      if (principal.kind === 'person') return granted;
      return new Set([...granted].filter((permission) => principal.scopes.has(permission)));
    },

    async reachOf(tx, principal, permission) {
      if (principal.kind === 'service_account' && !principal.scopes.has(permission)) return { everywhere: false, projectIds: [] };
      const held = (await heldBy(tx, principal.userId, undefined)).filter(({ permissions }) => permissions.includes(permission));
      return {
        everywhere: (principal.isAdministrator && ADMINISTRATOR.includes(permission)) || held.some(({ projectId }) => projectId === null),
        projectIds: [...new Set(held.flatMap(({ projectId }) => (projectId === null ? [] : [projectId])))],
      };
    },
  };
}
