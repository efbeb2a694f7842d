/**
 * Opens the database: PGlite in the data folder, or PostgreSQL by URL. Nothing here migrates, and nothing here takes a role.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import { pgClient, pgliteLanes, pgliteParsers, type SqlClient, type SqlScriptClient } from '@keyguard/storage-node/postgres';

export interface Database {
  readonly sql: SqlScriptClient;
  /** The same database for what each call of a device waits for: where there is one queue, it goes before everything else. */
  readonly calls: SqlClient;
  /** The same database for short statements that must not wait behind other work: they fail after a second. */
  readonly prompt: SqlClient;
  /** PGlite: one process, one queue, and a login whom no policy binds until it takes a role. */
  readonly embedded: boolean;
  close(): Promise<void>;
}

const CONNECT_TIMEOUT_MS = 5000;
const STATEMENT_TIMEOUT_MS = 10_000;
const POOL_SIZE = 20;
// Two: one may hang on a connection that is dead.
const PROMPT_POOL_SIZE = 2;
const PROMPT_TIMEOUT_MS = 1000;

/** The embedded database of `dataDir`, whose lock the caller MUST hold. */
export async function openEmbedded(dataDir: string): Promise<Database> {
  const folder = join(dataDir, 'database');
  // Before PGlite makes it: its own files can be read by everyone.
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const { PGlite } = await import('@electric-sql/pglite');
  const database = await PGlite.create(folder, { parsers: pgliteParsers });
  const { first, rest } = pgliteLanes(database);
  return { sql: rest, calls: first, prompt: first, embedded: true, close: () => database.close() };
}

/** `onError` hears of connections that break while nobody uses them; the pool replaces them by itself. */
export function openPostgres(url: string, onError: (error: Error) => void, max: number = POOL_SIZE): Database {
  const pool = new pg.Pool({
    connectionString: url,
    max,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    statement_timeout: STATEMENT_TIMEOUT_MS,
    query_timeout: STATEMENT_TIMEOUT_MS + 1000,
    idleTimeoutMillis: 30_000,
    application_name: 'keyguard',
  });
  const prompt = new pg.Pool({
    connectionString: url,
    max: PROMPT_POOL_SIZE,
    connectionTimeoutMillis: PROMPT_TIMEOUT_MS,
    query_timeout: PROMPT_TIMEOUT_MS,
    statement_timeout: PROMPT_TIMEOUT_MS,
    application_name: 'keyguard-prompt',
  });
  for (const one of [pool, prompt]) one.on('error', onError);
  const sql = pgClient(pool);
  return {
    sql,
    calls: sql,
    prompt: pgClient(prompt),
    embedded: false,
    async close() {
      await Promise.all([pool.end(), prompt.end()]);
    },
  };
}

/** For migrations: one connection, no limit on the length of a statement. */
export function openPostgresOwner(url: string, onError: (error: Error) => void): Pick<Database, 'sql' | 'close'> {
  const pool = new pg.Pool({ connectionString: url, max: 1, connectionTimeoutMillis: CONNECT_TIMEOUT_MS, application_name: 'keyguard-migrate' });
  pool.on('error', onError);
  return { sql: pgClient(pool), close: () => pool.end() };
}

/** The name under which `url` logs in. */
export function loginOf(url: string): string {
  return decodeURIComponent(new URL(url).username);
}
