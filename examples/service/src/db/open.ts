/** The database as the service serves from it: opened, brought up to date, and found to keep users apart as the migrations say. */
import type { Logger } from 'pino';
import { assertSafeRoles, grantRolesTo, type SqlScriptClient } from '@keyguard/storage-node/postgres';
import type { Config } from '../config.ts';
import { describeError } from '../log.ts';
import { loginOf, openEmbedded, openPostgres, openPostgresOwner, type Database } from './connect.ts';
import { assertMigrated, prepareSchema, SCHEMAS } from './migrate.ts';
import { assertProtected } from './protection.ts';

/** Migrates by the owner's login where there is one, which is closed again. @throws where the database is not safe to serve from */
export async function openDatabase(config: Pick<Config, 'database' | 'dataDir'>, log: Logger): Promise<Database> {
  const onError = (error: Error): void => log.warn({ error: describeError(error) }, 'a database connection broke');
  const migrated = async (sql: SqlScriptClient, place: string): Promise<void> => {
    const applied = await prepareSchema(sql, place);
    if (applied.length > 0) log.info({ migrations: applied.length }, 'the schema was brought up to date');
  };
  if (config.database.kind === 'embedded') {
    const database = await openEmbedded(config.dataDir);
    try {
      await migrated(database.sql, 'The database of the data folder');
      await assertSafeRoles(database.sql, { schemas: SCHEMAS, embedded: true });
      await assertProtected(database.sql);
      return database;
    } catch (error) {
      await database.close();
      throw error;
    }
  }
  const { url, ownerUrl } = config.database;
  if (ownerUrl !== null) {
    const owner = openPostgresOwner(ownerUrl, onError);
    try {
      await migrated(owner.sql, 'The database of DATABASE_OWNER_URL');
      await grantRolesTo(owner.sql, loginOf(url));
    } finally {
      await owner.close();
    }
  }
  const database = openPostgres(url, onError);
  try {
    await assertMigrated(database.sql);
    await assertSafeRoles(database.sql, { schemas: SCHEMAS });
    await assertProtected(database.sql);
    return database;
  } catch (error) {
    await database.close();
    throw error;
  }
}
