/**
 * KeyGuard's stores in PostgreSQL: over `pg` for any number of processes, or over PGlite inside one.
 *
 * Row-level security keeps users apart also where the program above makes a mistake: no store works as the owner of a table, each
 * transaction takes the one role that it needs, and rows that grant something bear a MAC which is checked when they are used.
 *
 * @see ../migrations for tables, policies and grants, in plain SQL
 */
import type { Clock } from '@keyguard/core/seams';
import type { SqlClient, SqlScriptClient } from './postgres/client.ts';
import { compareMigrations, runMigrations, type MigrationSet, type PendingMigration } from './postgres/migrate.ts';

export { asRole, pgClient } from './postgres/client.ts';
export { pgliteClient, pgliteLanes, pgliteParsers, type PgliteDatabase, type PgliteLanes, type PgliteTransaction } from './postgres/pglite.ts';
export type {
  AsRoleOptions,
  KeyguardRole,
  PgConnection,
  PgPool,
  Sql,
  SqlClient,
  SqlResult,
  SqlScriptClient,
  SqlScriptTransaction,
  SqlTransaction,
} from './postgres/client.ts';
export type { MigrationSet, PendingMigration } from './postgres/migrate.ts';
export { assertSafeRoles, grantRolesTo, type AssertSafeRolesOptions } from './postgres/roles.ts';
export { isIntact, nodeMacKey, rowMac, tampered, type NodeMacKeyOptions, type RowField, type RowMacKey } from './postgres/row-mac.ts';
export { pageOf, pageStart, type Page, type PageKey, type PageRequest } from './postgres/page.ts';
export { postgresAdministrators, type Administrators, type PostgresAdministratorsOptions } from './postgres/administrators.ts';
export type { DeviceGrant } from './postgres/device-rows.ts';
export { postgresDeviceChanges, type PgListener, type PostgresDeviceChangesOptions } from './postgres/device-changes.ts';
export * from './postgres/device-directory.ts';
export {
  postgresDeviceRegistry,
  type EnrollmentWithoutCode,
  type PostgresDeviceRegistry,
  type PostgresDeviceRegistryOptions,
} from './postgres/devices.ts';
export {
  postgresEnrollmentCodes,
  type EnrollmentCode,
  type EnrollmentCodePageRequest,
  type EnrollmentCodes,
  type NewEnrollmentCode,
  type PostgresEnrollmentCodesOptions,
} from './postgres/enrollment-codes.ts';
export {
  postgresRotationCodes,
  type NewRotationCode,
  type PostgresRotationCodesOptions,
  type RotationCode,
  type RotationCodeOutcome,
  type RotationCodes,
} from './postgres/rotation-codes.ts';
export { postgresReplayStore, type PostgresReplayStore, type PostgresReplayStoreOptions } from './postgres/nonces.ts';
export { postgresAuditSink, type PostgresAuditSinkOptions } from './postgres/audit.ts';
export type { KeyRecord, KeyRecords, KeyRecordState } from '@keyguard/core/seams';
export { postgresKeyRecords } from './postgres/kek-keys.ts';

// The same path from the source and from the bundle, which both lie one folder below the package.
const OWN: MigrationSet = { component: 'keyguard', directory: new URL('../migrations/', import.meta.url) };

/** What to run beside the package's own migrations, and how. */
export interface MigrateOptions {
  /** The application's own files, run after the package's. */
  readonly migrations?: readonly MigrationSet[];
  readonly clock?: Clock;
}

/**
 * Creates or brings up to date the schema `keyguard`, its roles, and then the application's own schemas.
 *
 * Each file runs once, as `kg_owner` with an empty search path, in one transaction under a lock that lets one process migrate at
 * a time. The login of `client` must be able to create roles the first time; close it afterwards, and serve with another one.
 * @returns the files that this call applied, as `component/name`
 * @throws UsageError `invalid_option` for a file that was changed after it was applied, or that comes too late, and for a database
 *   that is newer than the files
 * @throws UnavailableError seam `migrations` when a file fails; nothing of it stays
 */
export async function migrate(client: SqlScriptClient, options: MigrateOptions = {}): Promise<readonly string[]> {
  return runMigrations(client, [OWN, ...(options.migrations ?? [])], options.clock);
}

/** What would be run. */
export interface PendingMigrationsOptions {
  /** The same as {@link migrate} was called with. */
  readonly migrations?: readonly MigrationSet[];
}

/**
 * Which files the database has not, or has in another form: empty where {@link migrate} was run with just these files. Changes
 * nothing, and asks as `kg_jobs`, so the login that serves may call it at every start, and refuse to serve what it does not know.
 * @throws UnavailableError seam `migrations`, also for a login that may not take that role
 */
export async function pendingMigrations(
  client: SqlClient,
  options: PendingMigrationsOptions = {},
): Promise<readonly PendingMigration[]> {
  return compareMigrations(client, [OWN, ...(options.migrations ?? [])]);
}
