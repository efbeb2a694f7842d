/**
 * Roles and who holds them, as kg_app for the caller: everybody who is signed in sees the roles, only administrators change them and
 * give them to somebody. Every change and its audit entry are one transaction.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { isIntact, pageOf, pageStart, rowMac, type Page, type PageRequest, type RowMacKey, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import { demandMatch } from '../http/preconditions.ts';
import { roleFields, ROLES_TABLE } from './access.ts';
import { demandFourEyes, holdsOneself } from './four-eyes.ts';
import { PERMISSION_NAMES, type Permission } from './permissions.ts';

export interface Role {
  readonly id: string;
  readonly name: string;
  readonly description: string;
  readonly permissions: readonly string[];
  readonly isSystem: boolean;
  readonly version: number;
  readonly createdAtMs: number;
  readonly updatedAtMs: number;
  /** `false` for a row that was changed behind our back: it grants nothing. */
  readonly intact: boolean;
}

export interface NewRole {
  readonly name: string;
  readonly description: string;
  readonly permissions: readonly Permission[];
}

export interface Roles {
  list(principal: Principal, request: PageRequest): Promise<Page<Role>>;
  /** @throws HttpProblem `not_found` */
  get(principal: Principal, id: string): Promise<Role>;
  /** @throws HttpProblem `name_taken` */
  create(principal: Principal, role: NewRole): Promise<Role>;
  /**
   * What is left out stays. Who holds the role holds, from then on, what it grants now.
   * @throws HttpProblem `not_found`, `system_role`, `name_taken`, `precondition_failed`, `four_eyes_required`
   */
  update(principal: Principal, id: string, change: Partial<NewRole>, ifMatch: readonly string[] | null): Promise<Role>;
  /** @throws HttpProblem `not_found`, `system_role`, `role_assigned`, `precondition_failed` */
  remove(principal: Principal, id: string, ifMatch: readonly string[] | null): Promise<void>;
}

export interface RolesOptions {
  readonly sql: SqlClient;
  readonly rowMacKey: RowMacKey;
  readonly audit: AuditLog;
  readonly clock: Clock;
}

interface RoleRow {
  id: string;
  name: string;
  description: string;
  permissions: readonly string[];
  is_system: boolean;
  version: number;
  created_at_ms: unknown;
  updated_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
}

const COLUMNS = 'id, name, description, permissions, is_system, version, created_at_ms, updated_at_ms, mac_key_id, mac';

/** Held while a role is changed or given to somebody, so that neither goes by what the other has just changed. */
export async function lockRole(tx: SqlTransaction, roleId: string): Promise<void> {
  await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.role ' || $1, 0))`, [roleId]);
}

/** In one order, so that two lists of the same permissions are the same. */
function inOrder(permissions: readonly Permission[]): readonly Permission[] {
  return PERMISSION_NAMES.filter((name) => permissions.includes(name));
}

export function createRoles({ sql, rowMacKey, audit, clock }: RolesOptions): Roles {
  async function roleOf(row: RoleRow): Promise<Role> {
    const role = { id: row.id, name: row.name, permissions: row.permissions, isSystem: row.is_system };
    return {
      ...role,
      description: row.description,
      version: Number(row.version),
      createdAtMs: Number(row.created_at_ms),
      updatedAtMs: Number(row.updated_at_ms),
      intact: await isIntact(rowMacKey, ROLES_TABLE, roleFields(role), { macKeyId: row.mac_key_id, mac: row.mac }),
    };
  }

  async function readIn(tx: SqlTransaction, id: string): Promise<Role> {
    const { rows } = await tx.query<RoleRow>(`SELECT ${COLUMNS} FROM keyguard.secret_roles WHERE id = $1`, [id]);
    if (rows[0] === undefined) throw notFound();
    return roleOf(rows[0]);
  }

  /** The role, which nobody else changes meanwhile, where it may be changed at all. */
  async function lockedIn(tx: SqlTransaction, id: string, ifMatch: readonly string[] | null): Promise<Role> {
    await lockRole(tx, id);
    const role = await readIn(tx, id);
    if (role.isSystem) throw new HttpProblem('system_role', 'The roles of the system are neither changed nor deleted: make one of your own.');
    demandMatch(ifMatch, String(role.version));
    return role;
  }

  return {
    async list({ userId }, request) {
      const start = pageStart(request);
      const { limit = 50 } = request;
      const { rows } = await asUser(sql, userId, (tx) =>
        tx.query<RoleRow>(
          `SELECT ${COLUMNS} FROM keyguard.secret_roles WHERE $1::bigint IS NULL OR (created_at_ms, id) < ($1::bigint, $2::text)
            ORDER BY created_at_ms DESC, id DESC LIMIT $3`,
          [start?.[0] ?? null, start?.[1] ?? null, limit + 1],
        ),
      );
      const page = pageOf(rows, limit, (row) => [Number(row.created_at_ms), row.id], roleOf);
      return { items: await Promise.all(page.items), nextCursor: page.nextCursor };
    },

    get: ({ userId }, id) => asUser(sql, userId, (tx) => readIn(tx, id)),

    create: (principal, { name, description, permissions: wanted }) =>
      asUser(sql, principal.userId, async (tx) => {
        const role = { id: randomUUID(), name, permissions: inOrder(wanted), isSystem: false };
        const nowMs = clock.nowMs();
        await demandFree(tx, name);
        const { rows } = await tx.query<RoleRow>(
          `INSERT INTO keyguard.secret_roles (id, name, description, permissions, is_system, created_at_ms, updated_at_ms, mac_key_id, mac)
            VALUES ($1, $2, $3, $4, false, $5, $5, $6, $7) ON CONFLICT (name) DO NOTHING RETURNING ${COLUMNS}`,
          [role.id, name, description, role.permissions, nowMs, rowMacKey.keyId, await rowMac(rowMacKey, ROLES_TABLE, roleFields(role))],
        );
        if (rows[0] === undefined) throw nameTaken();
        await audit.recordIn(tx, {
          action: 'role.create', outcome: 'success', actor: principal.actor, resource: `role:${role.id}`, name, permissions: [...role.permissions],
        });
        return roleOf(rows[0]);
      }),

    update: (principal, id, change, ifMatch) =>
      asUser(sql, principal.userId, async (tx) => {
        const before = await lockedIn(tx, id, ifMatch);
        // Whoever writes over what nobody vouches for vouches for all of it.
        if (!before.intact && change.permissions === undefined) {
          throw new HttpProblem('not_intact', 'This role was changed in the database: name all of its permissions anew, or delete it.');
        }
        const { name = before.name, description = before.description } = change;
        const permissions = change.permissions === undefined ? (before.permissions as readonly Permission[]) : inOrder(change.permissions);
        const held = before.intact ? before.permissions : [];
        await demandFourEyes(permissions.filter((one) => !held.includes(one)), () => holdsOneself(tx, principal, id));
        if (name !== before.name) await demandFree(tx, name);
        const { rows } = await tx.query<RoleRow>(
          `UPDATE keyguard.secret_roles SET name = $2, description = $3, permissions = $4, version = version + 1, updated_at_ms = $5,
            mac_key_id = $6, mac = $7 WHERE id = $1 RETURNING ${COLUMNS}`,
          [id, name, description, permissions, clock.nowMs(), rowMacKey.keyId,
            await rowMac(rowMacKey, ROLES_TABLE, roleFields({ id, name, permissions, isSystem: false }))],
        );
        if (rows[0] === undefined) throw notFound();
        await audit.recordIn(tx, {
          action: 'role.update', outcome: 'success', actor: principal.actor, resource: `role:${id}`, name,
          permissions: [...permissions], permissions_before: [...before.permissions],
        });
        return roleOf(rows[0]);
      }),

    remove: (principal, id, ifMatch) =>
      asUser(sql, principal.userId, async (tx) => {
        const { name } = await lockedIn(tx, id, ifMatch);
        const { rows: held } = await tx.query('SELECT 1 FROM keyguard.secret_user_roles WHERE role_id = $1 LIMIT 1', [id]);
        if (held.length > 0) throw new HttpProblem('role_assigned', 'Somebody holds this role: revoke it from everybody first.');
        const { rows } = await tx.query('DELETE FROM keyguard.secret_roles WHERE id = $1 RETURNING id', [id]);
        if (rows.length === 0) throw notFound();
        await audit.recordIn(tx, { action: 'role.delete', outcome: 'success', actor: principal.actor, resource: `role:${id}`, name });
      }),
  };

  /** One renaming at a time. */
  async function demandFree(tx: SqlTransaction, name: string): Promise<void> {
    await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.role_name ' || $1, 0))`, [name]);
    const { rows } = await tx.query('SELECT 1 FROM keyguard.secret_roles WHERE name = $1', [name]);
    if (rows.length > 0) throw nameTaken();
  }
}

function nameTaken(): HttpProblem {
  return new HttpProblem('name_taken', 'There is a role of that name.');
}
