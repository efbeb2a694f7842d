/** A migrated database in memory, and the rows that give somebody a role. Statements outside `asRole` run as its superuser. */
import { randomBytes, randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { nodeMacKey, pgliteClient, rowMac, type RowMacKey, type SqlScriptClient } from '@keyguard/storage-node/postgres';
import type { Person, ServiceAccount } from '../../src/auth/principal.ts';
import { assignmentFields, ASSIGNMENTS_TABLE, roleFields, ROLES_TABLE } from '../../src/roles/access.ts';
import type { Permission } from '../../src/roles/permissions.ts';
import { migratedDatabase } from '../migrated.ts';

export interface Stage {
  readonly sql: SqlScriptClient;
  readonly rowMacKey: RowMacKey;
  readonly clock: Clock & { now: number };
  close(): Promise<void>;
}

export async function openStage(): Promise<Stage> {
  const database = await migratedDatabase();
  const sql = pgliteClient(database);
  const clock = { now: Date.now(), nowMs: (): number => clock.now };
  return { sql, rowMacKey: nodeMacKey({ keyId: 'row-mac-1', key: randomBytes(32) }), clock, close: () => database.close() };
}

export async function addRole({ sql, rowMacKey, clock }: Stage, name: string, permissions: readonly Permission[]): Promise<string> {
  const id = randomUUID();
  await sql.query(
    `INSERT INTO keyguard.secret_roles (id, name, permissions, is_system, created_at_ms, updated_at_ms, mac_key_id, mac)
      VALUES ($1, $2, $3, false, $4, $4, $5, $6)`,
    [id, name, permissions, clock.nowMs(), rowMacKey.keyId, await rowMac(rowMacKey, ROLES_TABLE, roleFields({ id, name, permissions, isSystem: false }))],
  );
  return id;
}

export async function assign(
  { sql, rowMacKey, clock }: Stage,
  { userId, roleId, projectId = null, expiresAtMs = null }: { readonly userId: string; readonly roleId: string; readonly projectId?: string | null; readonly expiresAtMs?: number | null },
): Promise<string> {
  const grant = { id: randomUUID(), userId, roleId, projectId, grantedBy: 'admin', grantedAtMs: clock.nowMs(), expiresAtMs };
  await sql.query(
    `INSERT INTO keyguard.secret_user_roles (id, user_id, role_id, project_id, granted_by, granted_at_ms, expires_at_ms, mac_key_id, mac)
      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
    [grant.id, userId, roleId, projectId, grant.grantedBy, grant.grantedAtMs, expiresAtMs, rowMacKey.keyId, await rowMac(rowMacKey, ASSIGNMENTS_TABLE, assignmentFields(grant))],
  );
  return grant.id;
}

export async function addProject({ sql, clock }: Stage, ownerId: string): Promise<string> {
  const id = randomUUID();
  await sql.query('INSERT INTO keyguard.api_key_projects (id, owner_id, name, created_at_ms) VALUES ($1, $2, $1, $3)', [id, ownerId, clock.nowMs()]);
  return id;
}

export function person(userId: string, isAdministrator = false): Person {
  return { kind: 'person', userId, actor: `user:${userId}`, sessionId: 'session', isAdministrator, secondFactor: { isSetUp: false, provenAtMs: null } };
}

export function program(userId: string, scopes: readonly Permission[]): ServiceAccount {
  return { kind: 'service_account', userId, actor: `service_account:${userId}`, isAdministrator: false, tokenPrefix: 'prefix', scopes: new Set(scopes) };
}
