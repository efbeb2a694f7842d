/**
 * Projects: what devices, provider keys and secrets are grouped by, and where roles can be held. Whoever makes one owns it; an owner
 * does everything with it, others what their roles in it say.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { pageOf, pageStart, type Page, type PageRequest, type RowMacKey, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { DEFAULT_PROJECT_ID } from '../api-keys/rows.ts';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asJobs, asUser, asVerifier } from '../db/as-user.ts';
import { demandMatch } from '../http/preconditions.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { Reach, ReachAccess } from '../roles/access.ts';
import type { Permission } from '../roles/permissions.ts';
import { NO_QUOTAS, type Quotas } from '../settings/quotas.ts';
import { lockProject } from './lock.ts';
import { COLUMNS, projectMac, vouchedProject, type Project, type ProjectRow } from './rows.ts';

export type { Project } from './rows.ts';

export interface ProjectChange {
  readonly name?: string;
  readonly environment?: string;
  readonly allowedModels?: readonly string[] | null;
}

export interface Projects {
  /** The caller's own, and those that the caller's roles let it see; newest first. */
  list(principal: Principal, request: PageRequest): Promise<Page<Project>>;
  /** @throws HttpProblem `not_found` */
  get(principal: Principal, id: string): Promise<Project>;
  /** @throws HttpProblem `quota_exceeded` */
  create(principal: Principal, project: { readonly name: string; readonly environment: string }): Promise<Project>;
  /** @throws HttpProblem `not_found`, `forbidden`, `project_archived`, `precondition_failed` */
  update(principal: Principal, id: string, change: ProjectChange, ifMatch: readonly string[] | null): Promise<Project>;
  /**
   * Ends a project for good: nothing comes into it any more, and no role that is held in it grants anything.
   * @throws HttpProblem `not_found`, `forbidden`, `project_in_use` while a device that is not revoked or a key in use is in it
   */
  archive(principal: Principal, id: string, ifMatch: readonly string[] | null): Promise<Project>;
  /**
   * The project, where the caller, for whom `tx` acts, has `permission` on it.
   * @throws HttpProblem `not_found` where the caller may not even see it, else `forbidden`
   * @throws UnavailableError for a row without its MAC
   */
  demandIn(tx: SqlTransaction, principal: Principal, id: string, permission: Permission): Promise<Project>;
  /** In which projects the caller, for whom `tx` acts, has `permission`: its own, and by roles. */
  reachIn(tx: SqlTransaction, principal: Principal, permission: Permission): Promise<Reach>;
}

export interface ProjectsOptions {
  readonly sql: SqlClient;
  readonly rowMacKey: RowMacKey;
  readonly access: ReachAccess;
  readonly audit: AuditLog;
  readonly quotas?: Quotas;
  readonly clock: Clock;
  /** Told of every project to which something was done that binds its devices, once that is durable and before it is acknowledged. */
  readonly onChanged: (projectId: string) => void;
}

export function createProjects({ sql, rowMacKey, access, audit, quotas = NO_QUOTAS, clock, onChanged }: ProjectsOptions): Projects {
  const projectOf = (row: ProjectRow): Promise<Project> => vouchedProject(rowMacKey, row);

  async function demandIn(tx: SqlTransaction, principal: Principal, id: string, permission: Permission): Promise<Project> {
    const { rows } = await tx.query<ProjectRow>(`SELECT ${COLUMNS} FROM keyguard.api_key_projects WHERE id = $1`, [id]);
    if (rows[0] === undefined) throw unseen(id, permission);
    const project = await projectOf(rows[0]);
    const allowed = await access.permissionsOn(tx, principal, { ownerId: project.ownerId, projectId: id, shared: [] });
    if (allowed.has(permission)) return project;
    throw allowed.has('projects:read') ? lacking(permission) : unseen(id, permission);
  }

  /** The project, changed as said; whoever changes it at the same time waits. */
  async function changeIn(tx: SqlTransaction, principal: Principal, before: Project, change: Partial<Project>, action: string): Promise<Project> {
    const after = { ...before, ...change };
    const { rows } = await tx.query<ProjectRow>(
      `UPDATE keyguard.api_key_projects SET name = $2, environment = $3, archived_at_ms = $4, allowed_models = $5::text[], version = version + 1,
        mac_key_id = $6, mac = $7
        WHERE id = $1 RETURNING ${COLUMNS}`,
      [before.id, after.name, after.environment, after.archivedAtMs, after.allowedModels, rowMacKey.keyId, await projectMac(rowMacKey, after)],
    );
    if (rows[0] === undefined) throw notFound();
    await audit.recordIn(tx, {
      action, outcome: 'success', actor: principal.actor, resource: `project:${before.id}`, project_id: before.id, name: after.name,
      environment: after.environment, allowed_models: after.allowedModels === null ? null : [...after.allowedModels],
    });
    return projectOf(rows[0]);
  }

  async function lockedIn(tx: SqlTransaction, principal: Principal, id: string, ifMatch: readonly string[] | null): Promise<Project> {
    await lockProject(tx, id);
    const project = await demandIn(tx, principal, id, 'projects:write');
    demandMatch(ifMatch, String(project.version));
    return project;
  }

  /** Asked as those who see all: the caller need not see a device for it to be there. */
  async function demandEmpty(tx: SqlTransaction, id: string): Promise<void> {
    const devices = await asVerifier(tx, (inner) => inner.query(`SELECT 1 FROM keyguard.devices WHERE project_id = $1 AND status <> 'revoked' LIMIT 1`, [id]));
    const keys = await asJobs(tx, (inner) => inner.query('SELECT 1 FROM keyguard.stored_api_keys WHERE project_id = $1 AND is_active LIMIT 1', [id]));
    const inside = [...(devices.rows.length > 0 ? ['devices'] : []), ...(keys.rows.length > 0 ? ['provider keys'] : [])];
    if (inside.length > 0) throw new HttpProblem('project_in_use', `There are ${inside.join(' and ')} in it: revoke them first.`);
  }

  return {
    list: (principal, request) =>
      asUser(sql, principal.userId, async (tx) => {
        const start = pageStart(request);
        const { limit = 50 } = request;
        const { everywhere, projectIds } = await access.reachOf(tx, principal, 'projects:read');
        const { rows } = await tx.query<ProjectRow>(
          `SELECT ${COLUMNS} FROM keyguard.api_key_projects
            WHERE ($1 OR owner_id = $2 OR id = ANY ($3::text[])) AND ($4::bigint IS NULL OR (created_at_ms, id) < ($4::bigint, $5::text))
            ORDER BY created_at_ms DESC, id DESC LIMIT $6`,
          [everywhere, principal.userId, projectIds, start?.[0] ?? null, start?.[1] ?? null, limit + 1],
        );
        const page = pageOf(rows, limit, (row) => [Number(row.created_at_ms), row.id], projectOf);
        return { items: await Promise.all(page.items), nextCursor: page.nextCursor };
      }),

    get: (principal, id) => asUser(sql, principal.userId, (tx) => demandIn(tx, principal, id, 'projects:read')),

    create: (principal, { name, environment }) =>
      asUser(sql, principal.userId, async (tx) => {
        await quotas.demandRoom(tx, principal, 'projects');
        const made = { id: randomUUID(), ownerId: principal.userId, environment, archivedAtMs: null, allowedModels: null };
        const { rows } = await tx.query<ProjectRow>(
          `INSERT INTO keyguard.api_key_projects (id, owner_id, name, environment, created_at_ms, mac_key_id, mac)
            VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING ${COLUMNS}`,
          [made.id, made.ownerId, name, environment, clock.nowMs(), rowMacKey.keyId, await projectMac(rowMacKey, made)],
        );
        await audit.recordIn(tx, {
          action: 'project.create', outcome: 'success', actor: principal.actor, resource: `project:${made.id}`, project_id: made.id, name, environment,
        });
        return projectOf(rows[0]!);
      }),

    update: (principal, id, change, ifMatch) =>
      asUser(sql, principal.userId, async (tx) => {
        const before = await lockedIn(tx, principal, id, ifMatch);
        if (before.archivedAtMs !== null) throw new HttpProblem('project_archived', 'This project is archived, and stays as it is.');
        return changeIn(tx, principal, before, change, 'project.update');
      }).then((after) => {
        onChanged(id);
        return after;
      }),

    archive: (principal, id, ifMatch) =>
      asUser(sql, principal.userId, async (tx) => {
        const before = await lockedIn(tx, principal, id, ifMatch);
        if (before.archivedAtMs !== null) return before;
        if (id === DEFAULT_PROJECT_ID) throw new HttpProblem('project_in_use', 'The first project is never archived.');
        await demandEmpty(tx, id);
        return changeIn(tx, principal, before, { archivedAtMs: clock.nowMs() }, 'project.archive');
      }),

    demandIn,

    async reachIn(tx, principal, permission) {
      const { everywhere, projectIds } = await access.reachOf(tx, principal, permission);
      const { rows } = await tx.query<ProjectRow>(`SELECT ${COLUMNS} FROM keyguard.api_key_projects WHERE owner_id = $1`, [principal.userId]);
      const own = await Promise.all(rows.map(projectOf));
      const isInScope = principal.kind === 'person' || principal.scopes.has(permission);
      return { everywhere, projectIds: [...projectIds, ...(isInScope ? own.map(({ id }) => id) : [])] };
    },
  };
}

function lacking(permission: Permission): HttpProblem {
  return new HttpProblem('forbidden', `In this project you lack the permission ${permission}.`);
}

/** That there is the first project, everybody knows. */
function unseen(id: string, permission: Permission): HttpProblem {
  return id === DEFAULT_PROJECT_ID ? lacking(permission) : notFound();
}
