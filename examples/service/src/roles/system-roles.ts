/**
 * The roles that every deployment has. They are what is written here, in every release: what a database holds in their place is
 * written anew at each start.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { isIntact, rowMac, type RowMacKey, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import { roleFields, ROLES_TABLE } from './access.ts';
import type { Permission } from './permissions.ts';

interface SystemRole {
  readonly name: string;
  readonly description: string;
  readonly permissions: readonly Permission[];
}

export const SYSTEM_ROLES: readonly SystemRole[] = [
  { name: 'auditor', description: 'Reads the audit log and what was used.', permissions: ['audit:read', 'usage:read'] },
  {
    name: 'viewer',
    description: 'Sees what is there, and no value of it.',
    permissions: ['projects:read', 'secrets:read', 'api_keys:read', 'devices:read', 'usage:read'],
  },
  { name: 'secrets_reader', description: 'Reads secrets and their values.', permissions: ['secrets:read', 'secrets:reveal'] },
  {
    name: 'secrets_manager',
    description: 'Does with secrets whatever their owners may.',
    permissions: ['secrets:read', 'secrets:create', 'secrets:reveal', 'secrets:update', 'secrets:delete', 'secrets:share'],
  },
  {
    name: 'project_manager',
    description: 'Runs projects and their provider keys, and brings devices into them.',
    permissions: ['projects:read', 'projects:write', 'api_keys:read', 'api_keys:write', 'devices:read', 'devices:write', 'usage:read'],
  },
];

interface RoleRow {
  id: string;
  name: string;
  description: string;
  permissions: readonly string[];
  is_system: boolean;
  mac_key_id: string;
  mac: Uint8Array;
}

export interface SystemRolesOptions {
  readonly sql: SqlClient;
  readonly rowMacKey: RowMacKey;
  readonly clock: Clock;
}

/** What {@link prepareSystemRoles} found and mended, by the names of roles. */
export interface PreparedRoles {
  /** Rows that did not bear their MAC: somebody wrote them around this program. */
  readonly tampered: readonly string[];
  /** Names that a role of somebody's had before this release wanted them: that role stays. */
  readonly taken: readonly string[];
}

/** Brings the roles of {@link SYSTEM_ROLES} about, at every start. Processes that start together end up with one row each. */
export function prepareSystemRoles({ sql, rowMacKey, clock }: SystemRolesOptions): Promise<PreparedRoles> {
  return asJobs(sql, async (tx) => {
    await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.system_roles', 0))`);
    const { rows } = await tx.query<RoleRow>('SELECT id, name, description, permissions, is_system, mac_key_id, mac FROM keyguard.secret_roles');
    const kept = new Map(rows.map((row) => [row.name, row]));
    const found = { tampered: [] as string[], taken: [] as string[] };
    for (const role of SYSTEM_ROLES) {
      const row = kept.get(role.name);
      if (row === undefined) await insert(tx, role);
      else if (!row.is_system) found.taken.push(role.name);
      else {
        const fields = roleFields({ id: row.id, name: row.name, permissions: row.permissions, isSystem: row.is_system });
        const isWhole = await isIntact(rowMacKey, ROLES_TABLE, fields, { macKeyId: row.mac_key_id, mac: row.mac });
        if (!isWhole) found.tampered.push(role.name);
        if (!isWhole || row.description !== role.description || row.permissions.join() !== role.permissions.join()) await rewrite(tx, row.id, role);
      }
    }
    return found;
  });

  function macOf(id: string, { name, permissions }: SystemRole): Promise<Uint8Array> {
    return rowMac(rowMacKey, ROLES_TABLE, roleFields({ id, name, permissions, isSystem: true }));
  }

  async function insert(tx: SqlTransaction, role: SystemRole): Promise<void> {
    const id = randomUUID();
    await tx.query(
      `INSERT INTO keyguard.secret_roles (id, name, description, permissions, is_system, created_at_ms, updated_at_ms, mac_key_id, mac)
        VALUES ($1, $2, $3, $4, true, $5, $5, $6, $7) ON CONFLICT (name) DO NOTHING`,
      [id, role.name, role.description, role.permissions, clock.nowMs(), rowMacKey.keyId, await macOf(id, role)],
    );
  }

  async function rewrite(tx: SqlTransaction, id: string, role: SystemRole): Promise<void> {
    await tx.query(
      `UPDATE keyguard.secret_roles SET description = $2, permissions = $3, version = version + 1, updated_at_ms = $4, mac_key_id = $5, mac = $6
        WHERE id = $1`,
      [id, role.description, role.permissions, clock.nowMs(), rowMacKey.keyId, await macOf(id, role)],
    );
  }
}
