/**
 * Who holds which role, where and until when: given and taken away by administrators, to people and to service accounts, one audit
 * entry each. An assignment never changes: a new one takes its place.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { isIntact, pageOf, pageStart, rowMac, tampered, type Page, type PageRequest, type RowMacKey, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asAuth, asUser } from '../db/as-user.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import { assignmentFields, ASSIGNMENTS_TABLE, roleFields, ROLES_SEAM, ROLES_TABLE, type AssignmentGrant } from './access.ts';
import { demandFourEyes, isOneself, sharedWithRole } from './four-eyes.ts';
import { lockRole } from './store.ts';

export interface Assignment extends AssignmentGrant {
  readonly roleName: string;
  /** `false` for a row that was changed behind our back: it grants nothing. */
  readonly intact: boolean;
}

export interface NewAssignment {
  readonly roleId: string;
  readonly projectId: string | null;
  readonly expiresAtMs: number | null;
}

export interface Assignments {
  /** Of a person or a service account. @throws HttpProblem `not_found` where there is nobody of that id for the caller to know of */
  list(principal: Principal, subjectId: string, request: PageRequest): Promise<Page<Assignment>>;
  /** Who holds roles in a project that the caller owns or administers. */
  listOfProject(principal: Principal, projectId: string, request: PageRequest): Promise<Page<Assignment>>;
  /** @throws HttpProblem `not_found`, `unknown_role`, `unknown_project`, `role_held`, `four_eyes_required` */
  grant(principal: Principal, subjectId: string, assignment: NewAssignment): Promise<Assignment>;
  /** @throws HttpProblem `not_found` */
  revoke(principal: Principal, subjectId: string, assignmentId: string): Promise<void>;
}

export interface AssignmentsOptions {
  readonly sql: SqlClient;
  readonly rowMacKey: RowMacKey;
  readonly audit: AuditLog;
  readonly clock: Clock;
}

interface AssignmentRow {
  id: string;
  user_id: string;
  role_id: string;
  role_name: string;
  project_id: string | null;
  granted_by: string;
  granted_at_ms: unknown;
  expires_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
}

interface RoleRow {
  id: string;
  name: string;
  permissions: readonly string[];
  is_system: boolean;
  mac_key_id: string;
  mac: Uint8Array;
}

const COLUMNS = `a.id, a.user_id, a.role_id, r.name AS role_name, a.project_id, a.granted_by, a.granted_at_ms, a.expires_at_ms,
  a.mac_key_id, a.mac`;
const FROM = 'FROM keyguard.secret_user_roles a JOIN keyguard.secret_roles r ON r.id = a.role_id';

export function createAssignments({ sql, rowMacKey, audit, clock }: AssignmentsOptions): Assignments {
  async function assignmentOf(row: AssignmentRow): Promise<Assignment> {
    const grant: AssignmentGrant = {
      id: row.id,
      userId: row.user_id,
      roleId: row.role_id,
      projectId: row.project_id,
      grantedBy: row.granted_by,
      grantedAtMs: Number(row.granted_at_ms),
      expiresAtMs: row.expires_at_ms === null ? null : Number(row.expires_at_ms),
    };
    const intact = await isIntact(rowMacKey, ASSIGNMENTS_TABLE, assignmentFields(grant), { macKeyId: row.mac_key_id, mac: row.mac });
    return { ...grant, roleName: row.role_name, intact };
  }

  async function pageIn(tx: SqlTransaction, column: 'user_id' | 'project_id', value: string, request: PageRequest): Promise<Page<Assignment>> {
    const start = pageStart(request);
    const { limit = 50 } = request;
    const { rows } = await tx.query<AssignmentRow>(
      `SELECT ${COLUMNS} ${FROM} WHERE a.${column} = $1 AND ($2::bigint IS NULL OR (a.granted_at_ms, a.id) < ($2::bigint, $3::text))
        ORDER BY a.granted_at_ms DESC, a.id DESC LIMIT $4`,
      [value, start?.[0] ?? null, start?.[1] ?? null, limit + 1],
    );
    const page = pageOf(rows, limit, (row) => [Number(row.granted_at_ms), row.id], assignmentOf);
    return { items: await Promise.all(page.items), nextCursor: page.nextCursor };
  }

  /** Whether there is such a person, or such a service account that the caller may know of. */
  async function existsIn(tx: SqlTransaction, subjectId: string): Promise<boolean> {
    const { rows: accounts } = await tx.query('SELECT 1 FROM keyguard.service_accounts WHERE id = $1', [subjectId]);
    if (accounts.length > 0) return true;
    const { rows: people } = await asAuth(tx, (inner) => inner.query('SELECT 1 FROM keyguard_auth.users WHERE id = $1', [subjectId]));
    return people.length > 0;
  }

  async function ownsAccount(tx: SqlTransaction, { userId }: Principal, subjectId: string): Promise<boolean> {
    const { rows } = await tx.query('SELECT 1 FROM keyguard.service_accounts WHERE id = $1 AND owner_id = $2', [subjectId, userId]);
    return rows.length > 0;
  }

  return {
    list: (principal, subjectId, request) =>
      asUser(sql, principal.userId, async (tx) => {
        const isOwn = subjectId === principal.userId;
        if (!isOwn && !(principal.isAdministrator && (await existsIn(tx, subjectId))) && !(await ownsAccount(tx, principal, subjectId))) throw notFound();
        return pageIn(tx, 'user_id', subjectId, request);
      }),

    listOfProject: (principal, projectId, request) => asUser(sql, principal.userId, (tx) => pageIn(tx, 'project_id', projectId, request)),

    grant: (principal, subjectId, { roleId, projectId, expiresAtMs }) =>
      asUser(sql, principal.userId, async (tx) => {
        if (!(await existsIn(tx, subjectId))) throw notFound();
        await lockRole(tx, roleId);
        const { rows: roles } = await tx.query<RoleRow>(
          'SELECT id, name, permissions, is_system, mac_key_id, mac FROM keyguard.secret_roles WHERE id = $1',
          [roleId],
        );
        const role = roles[0];
        if (role === undefined) throw new HttpProblem('unknown_role', 'There is no role of that id.');
        const fields = roleFields({ id: role.id, name: role.name, permissions: role.permissions, isSystem: role.is_system });
        if (!(await isIntact(rowMacKey, ROLES_TABLE, fields, { macKeyId: role.mac_key_id, mac: role.mac }))) {
          throw tampered(ROLES_SEAM, ROLES_TABLE);
        }
        if (projectId !== null) {
          const { rows: projects } = await tx.query<{ is_open: boolean }>('SELECT keyguard.project_is_open($1) AS is_open', [projectId]);
          if (!projects[0]!.is_open) throw new HttpProblem('unknown_project', 'There is no project of that id, or it is archived.');
        }
        const granted = [...role.permissions, ...(await sharedWithRole(tx, roleId, clock.nowMs()))];
        await demandFourEyes(granted, () => isOneself(tx, principal, subjectId));
        const grant: AssignmentGrant = { id: randomUUID(), userId: subjectId, roleId, projectId, grantedBy: principal.userId, grantedAtMs: clock.nowMs(), expiresAtMs };
        // One that has expired stands in nobody's way.
        await tx.query(
          `DELETE FROM keyguard.secret_user_roles WHERE user_id = $1 AND role_id = $2 AND project_id IS NOT DISTINCT FROM $3 AND expires_at_ms <= $4`,
          [subjectId, roleId, projectId, clock.nowMs()],
        );
        const { rows } = await tx.query(
          `INSERT INTO keyguard.secret_user_roles (id, user_id, role_id, project_id, granted_by, granted_at_ms, expires_at_ms, mac_key_id, mac)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (user_id, role_id, (coalesce(project_id, ''))) DO NOTHING RETURNING id`,
          [grant.id, subjectId, roleId, projectId, grant.grantedBy, grant.grantedAtMs, expiresAtMs, rowMacKey.keyId,
            await rowMac(rowMacKey, ASSIGNMENTS_TABLE, assignmentFields(grant))],
        );
        if (rows.length === 0) throw new HttpProblem('role_held', 'This role is held there already: revoke that assignment first to change its end.');
        await audit.recordIn(tx, {
          action: 'role.grant', outcome: 'success', actor: principal.actor, resource: `role:${roleId}`, role: role.name,
          assignment_id: grant.id, subject_id: subjectId, project_id: projectId, permissions: [...role.permissions],
          expires_at_ms: expiresAtMs,
        });
        return { ...grant, roleName: role.name, intact: true };
      }),

    revoke: (principal, subjectId, assignmentId) =>
      asUser(sql, principal.userId, async (tx) => {
        const { rows } = await tx.query<{ role_id: string; project_id: string | null }>(
          'DELETE FROM keyguard.secret_user_roles WHERE id = $1 AND user_id = $2 RETURNING role_id, project_id',
          [assignmentId, subjectId],
        );
        const revoked = rows[0];
        if (revoked === undefined) throw notFound();
        await audit.recordIn(tx, {
          action: 'role.revoke', outcome: 'success', actor: principal.actor, resource: `role:${revoked.role_id}`,
          assignment_id: assignmentId, subject_id: subjectId, project_id: revoked.project_id,
        });
      }),
  };
}
