/**
 * The one door to PostgreSQL: what a store needs of a client, the adapter that makes one of `pg`, and the only place where a
 * transaction takes a role. The adapter for PGlite is beside it, in `pglite.ts`.
 *
 * This package depends on neither driver: the adapters take whatever has their shape. Nothing here retries, and nothing here
 * puts a value into the text of a statement.
 */
import { UnavailableError, UsageError } from '@keyguard/core/errors';

/** What a statement answered. */
export interface SqlResult<Row> {
  readonly rows: Row[];
  /** How many rows the statement changed, as `pg` names it, which counts those that it selected too. */
  readonly rowCount?: number | null;
  /** How many rows the statement changed, as PGlite names it. */
  readonly affectedRows?: number;
}

/** One transaction. MUST refuse to work once it has ended. */
export interface SqlTransaction {
  /** Runs one statement with its parameters, and resolves with its rows. MUST throw what the database said otherwise. */
  query<Row>(text: string, params?: readonly unknown[]): Promise<SqlResult<Row>>;
}

/** A database, in which every statement outside {@link transaction} is its own transaction. */
export interface SqlClient extends SqlTransaction {
  /**
   * Runs `fn` in one READ COMMITTED transaction: resolves once it is committed, or rolls all of it back and throws. MUST throw
   * where a statement failed and `fn` kept silent about it, because PostgreSQL then rolls back what looks like a commit.
   */
  transaction<T>(fn: (tx: SqlTransaction) => Promise<T>): Promise<T>;
}

/** A transaction that also runs a whole file of statements. The text MUST be trusted: it has no parameters. */
export interface SqlScriptTransaction extends SqlTransaction {
  /** Runs statements without parameters, separated by semicolons. */
  script(text: string): Promise<void>;
}

/** A client that can migrate. */
export interface SqlScriptClient extends SqlClient {
  /** Runs `fn` in one transaction: commits where it resolves, rolls back where it rejects. */
  scripted<T>(fn: (tx: SqlScriptTransaction) => Promise<T>): Promise<T>;
}

/** What every store takes: a database, or a transaction of the caller's inside which it then works. */
export type Sql = SqlClient | SqlTransaction;

/** The roles that a login may take; `kg_owner` is for migrations alone. */
export type KeyguardRole = 'kg_app' | 'kg_verifier' | 'kg_auth' | 'kg_jobs';

/** The part of `pg.PoolClient` that is used. */
export interface PgConnection {
  /** As `Client.query` of `pg`. */
  query(text: string, values?: unknown[]): Promise<{ rows: unknown[]; command?: string }>;
  /** As `Client.on` of `pg`. */
  on(event: 'error', listener: (error: Error) => void): unknown;
  /** As `Client.removeListener` of `pg`. */
  removeListener(event: 'error', listener: (error: Error) => void): unknown;
  /** As `PoolClient.release` of `pg`: `true` takes the connection out of the pool. */
  release(destroy?: boolean): void;
}

/** The part of `pg.Pool` that is used. */
export interface PgPool {
  /** As `Pool.query` of `pg`. */
  query(text: string, values?: unknown[]): Promise<{ rows: unknown[] }>;
  /** As `Pool.connect` of `pg`. */
  connect(): Promise<PgConnection>;
}

const ignore = (): void => {};

/** A transaction as it is handed out, with what only its adapter does. */
export interface Handle extends SqlScriptTransaction {
  end(): void;
  /** Whether a statement failed after which nothing was rolled back to. */
  hasFailed(): boolean;
}

/** The handle of a transaction in which `run` and `runScript` work. */
export function handle(run: (text: string, params?: unknown[]) => Promise<unknown>, runScript: (text: string) => Promise<unknown>): Handle {
  let ended = false;
  let failed = false;
  async function watched<T>(work: () => Promise<T>): Promise<T> {
    // A handle that outlives its transaction would write into whichever one the connection serves next.
    if (ended) throw new UsageError('invalid_option', 'This transaction has ended.');
    try {
      return await work();
    } catch (error) {
      failed = true;
      throw error;
    }
  }
  return {
    async query<Row>(text: string, params: readonly unknown[] = []): Promise<SqlResult<Row>> {
      const result = await watched(() => run(text, [...params]));
      if (text.startsWith('ROLLBACK TO')) failed = false;
      return result as SqlResult<Row>;
    },
    async script(text: string): Promise<void> {
      await watched(() => runScript(text));
    },
    end: (): void => {
      ended = true;
    },
    hasFailed: (): boolean => failed,
  };
}

/** What a commit is answered with that was none. */
export function rolledBack(): Error {
  return new Error('A statement of this transaction failed, so nothing of it was kept.');
}

/**
 * A client on a `pg.Pool`. Set `connectionTimeoutMillis`, `query_timeout` and `statement_timeout` on the pool: nothing here
 * waits for less than the driver does. Listen to the pool's `error` event, as `pg` demands.
 */
export function pgClient(pool: PgPool): SqlScriptClient {
  async function scripted<T>(fn: (tx: SqlScriptTransaction) => Promise<T>): Promise<T> {
    const connection = await pool.connect();
    // A connection that breaks between two statements says so by an event, which would end the process if nobody listened; the
    // next statement fails all the same.
    connection.on('error', ignore);
    const tx = handle(
      (text, params) => connection.query(text, params),
      (text) => connection.query(text),
    );
    let usable = false;
    try {
      await connection.query('BEGIN ISOLATION LEVEL READ COMMITTED');
      const result = await fn(tx);
      tx.end();
      if (tx.hasFailed()) throw rolledBack();
      const { command } = await connection.query('COMMIT');
      usable = true;
      if (command === 'ROLLBACK') throw rolledBack();
      return result;
    } catch (error) {
      tx.end();
      if (!usable) {
        usable = await connection.query('ROLLBACK').then(
          () => true,
          () => false,
        );
      }
      throw error;
    } finally {
      connection.removeListener('error', ignore);
      // A connection whose state is not known is closed, so that no later user works in this one's transaction.
      connection.release(!usable);
    }
  }
  return {
    query: async <Row>(text: string, params: readonly unknown[] = []): Promise<SqlResult<Row>> =>
      (await pool.query(text, [...params])) as SqlResult<Row>,
    transaction: scripted,
    scripted,
  };
}

export function isClient(sql: Sql): sql is SqlClient {
  return 'transaction' in sql;
}

/** `fn` in a transaction of its own, or in a savepoint of the one handed: in both cases all of it happens or nothing. */
export async function inTransaction<T>(sql: Sql, fn: (tx: SqlTransaction) => Promise<T>): Promise<T> {
  if (isClient(sql)) return sql.transaction(fn);
  await sql.query('SAVEPOINT keyguard');
  let result: T;
  try {
    result = await fn(sql);
  } catch (error) {
    await sql.query('ROLLBACK TO SAVEPOINT keyguard');
    await sql.query('RELEASE SAVEPOINT keyguard');
    throw error;
  }
  await sql.query('RELEASE SAVEPOINT keyguard');
  return result;
}

/** For whom a transaction acts. */
export interface AsRoleOptions {
  /** For whom `kg_app` acts. Left out or empty: for nobody, and every policy of `kg_app` then hides everything. */
  readonly userId?: string | null;
}

const SET_CONTEXT = `SELECT set_config('role', $1, true), set_config('app.user_id', $2, true)`;

/**
 * Runs `fn` as `role`, acting for `userId`; both hold for this transaction only, and for no statement outside `fn`. In a
 * transaction that is handed in, what held before holds again afterwards, also after an error.
 */
export async function asRole<T>(
  sql: Sql,
  role: KeyguardRole,
  fn: (tx: SqlTransaction) => Promise<T>,
  options: AsRoleOptions = {},
): Promise<T> {
  const context = [role, options.userId ?? ''];
  return inTransaction(sql, async (tx) => {
    if (isClient(sql)) {
      await tx.query(SET_CONTEXT, context);
      return fn(tx);
    }
    const { rows } = await tx.query<{ role: string; user_id: string | null }>(
      `SELECT current_setting('role') AS role, current_setting('app.user_id', true) AS user_id`,
    );
    const before = [rows[0]!.role, rows[0]!.user_id ?? ''];
    if (before[0] === context[0] && before[1] === context[1]) return fn(tx);
    await tx.query(SET_CONTEXT, context);
    const result = await fn(tx);
    await tx.query(SET_CONTEXT, before);
    return result;
  });
}

/**
 * One statement that calls a function which takes `role` by itself: alone it is one round trip, and in a transaction that is
 * handed in it runs as `role` too, because not every role may call it.
 */
export async function callAsRole<Row>(sql: Sql, role: KeyguardRole, text: string, params: readonly unknown[]): Promise<Row[]> {
  const { rows } = isClient(sql)
    ? await sql.query<Row>(text, params)
    : await asRole(sql, role, (tx) => tx.query<Row>(text, params));
  return rows;
}

const SQLSTATE = /^[0-9A-Z]{5}$/;
// Classes whose messages name tables, constraints, roles and connections, but no value: others quote what they could not read.
const VALUELESS_CLASSES: ReadonlySet<string> = new Set(['08', '23', '25', '28', '40', '42', '53', '55', '57']);

/**
 * What a database said, without what it quotes: the detail and the parameters of a driver's error carry values of rows, and so
 * do some messages.
 */
function quiet(error: unknown): Error {
  const { code } = (error ?? {}) as { code?: unknown };
  if (typeof code === 'string' && SQLSTATE.test(code)) {
    const said = error instanceof Error && VALUELESS_CLASSES.has(code.slice(0, 2)) ? `: ${error.message}` : '';
    return Object.assign(new Error(`SQLSTATE ${code}${said}`), { code });
  }
  const plain = new Error(error instanceof Error ? error.message : 'The driver threw something that is not an Error.');
  return typeof code === 'string' ? Object.assign(plain, { code }) : plain;
}

const OURS: ReadonlySet<string> = new Set(['UsageError', 'RejectedError', 'UnavailableError']);

/** `work`, with every failure of the database turned into an `UnavailableError` of `seam`. */
export async function guarded<T>(seam: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof Error && OURS.has(error.name)) throw error;
    throw new UnavailableError(seam, 'The database did not do what was asked of it.', { cause: quiet(error) });
  }
}

/** An integer as any driver hands it over: `pg` gives bigint columns as text, PGlite as numbers, a type parser as it likes. */
export function integer(value: unknown): number {
  const read = typeof value === 'string' && value !== '' ? Number(value) : typeof value === 'bigint' ? Number(value) : value;
  if (typeof read !== 'number' || !Number.isSafeInteger(read)) throw new TypeError('The database answered with no integer.');
  return read;
}

/** {@link integer}, or `null`. */
export function integerOrNull(value: unknown): number | null {
  return value === null ? null : integer(value);
}

/** Bytes of their own buffer, whatever view the driver hands over. */
export function bytesOf(value: unknown): Uint8Array<ArrayBuffer> {
  if (!(value instanceof Uint8Array)) throw new TypeError('The database answered with no bytes.');
  return new Uint8Array(value);
}
