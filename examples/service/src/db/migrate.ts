/**
 * Brings the schema up to date, or refuses the start where it is not and nobody here may change it.
 */
import { isUnavailable, UnavailableError } from '@keyguard/core/errors';
import { migrate, pendingMigrations, type MigrationSet, type PendingMigration, type SqlClient, type SqlScriptClient } from '@keyguard/storage-node/postgres';

export const SCHEMAS: readonly string[] = ['keyguard', 'keyguard_auth'];

const OWN: MigrationSet = { component: 'service', directory: new URL('../../migrations/', import.meta.url), schema: 'keyguard_auth' };

/** The stores' migrations, then the service's own. Answers with what was applied. */
export function migrateAll(sql: SqlScriptClient): Promise<readonly string[]> {
  return migrate(sql, { migrations: [OWN] });
}

export class NotMigratedError extends Error {
  override readonly name = 'NotMigratedError';
}

// Undefined or forbidden objects (class 42) and schemas (3F): the database answered, and nobody prepared it for this login.
const UNPREPARED = /^(?:42|3F)/;

/**
 * @throws NotMigratedError when the files of the stores or of the service, and what the database has on record, are not the same
 * @throws UnavailableError when the database does not answer, or refuses the login
 */
export async function assertMigrated(sql: SqlClient): Promise<void> {
  let pending: readonly PendingMigration[];
  try {
    pending = await pendingMigrations(sql, { migrations: [OWN] });
  } catch (error) {
    const cause = isUnavailable(error) ? error.cause : error;
    const { code } = (cause ?? {}) as { code?: unknown };
    if (typeof code !== 'string' || !UNPREPARED.test(code)) {
      throw new UnavailableError('database', 'The database of DATABASE_URL cannot be reached, or refuses this login: start it, or correct the URL.', { cause });
    }
    throw new NotMigratedError(advice('has not been prepared for KeyGuard, or this login may not use it'), { cause });
  }
  const places = (isUnknown: boolean): string =>
    pending.filter(({ state }) => (state === 'unknown') === isUnknown).map(({ component, name }) => `${component}/${name}`).join(', ');
  const lacking = places(false);
  if (lacking !== '') throw new NotMigratedError(advice(`lacks, or has another form of, the migrations ${lacking}`));
  const unknown = places(true);
  if (unknown !== '') throw new NotMigratedError(`The database is newer than this program: it has ${unknown}. Start the newer version.`);
}

function advice(what: string): string {
  return (
    `The database of DATABASE_URL ${what}. Start once with DATABASE_OWNER_URL set to a login that may create roles and schemas: ` +
    'it is used for the migrations, then closed.'
  );
}
