/**
 * Brings the schema up to date, or refuses the start where it is not and nobody here may change it.
 */
import { isUnavailable, UnavailableError } from '@keyguard/core/errors';
import { migrate, pendingMigrations, type MigrationSet, type PendingMigration, type SqlClient, type SqlScriptClient } from '@keyguard/storage-node/postgres';

export const SCHEMAS: readonly string[] = ['keyguard', 'keyguard_auth'];

const OWN: MigrationSet = { component: 'service', directory: new URL('../../migrations/', import.meta.url), schema: 'keyguard_auth' };

const SQLSTATE = /^[0-9A-Z]{5}$/;
// Connections (class 08), logins (28), databases that are not there (3D), servers that are full (53300) or stop (57P).
const UNREACHED = /^(?:08|28|3D|53300|57P)/;
const MEND = 'Mend what the database says here, then start again, which goes on where this start ended; or restore a backup and start the version that ran before.';

/** The stores' migrations, then the service's own. Answers with what was applied. */
export function migrateAll(sql: SqlScriptClient): Promise<readonly string[]> {
  return migrate(sql, { migrations: [OWN] });
}

/**
 * {@link migrateAll}, for a start: what fails says what to do. `place` is how the operator knows the database.
 * @throws NotMigratedError when a file fails, or the database is not an earlier state of these files
 * @throws UnavailableError when the database does not answer, or refuses the login
 */
export async function prepareSchema(sql: SqlScriptClient, place: string): Promise<readonly string[]> {
  try {
    return await migrateAll(sql);
  } catch (error) {
    if (!isUnavailable(error)) throw error;
    const { cause } = error;
    const { code } = (cause ?? {}) as { code?: unknown };
    if (typeof code !== 'string' || !SQLSTATE.test(code) || UNREACHED.test(code)) {
      throw new UnavailableError('database', `${error.message} ${place} cannot be reached, or refuses this login.`, { cause });
    }
    throw new NotMigratedError(`${error.message} ${MEND}`, { cause });
  }
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
