/**
 * The only place of the service where a transaction says for whom it acts. Row-level security does the rest: without a user
 * every policy hides everything, and what is set here ends with the transaction.
 */
import { UnavailableError } from '@keyguard/core/errors';
import { asRole, type KeyguardRole, type Sql, type SqlTransaction } from '@keyguard/storage-node/postgres';

const SQLSTATE = /^[0-9A-Z]{5}$/;
const BROKEN = /^(?:Connection terminated|timeout exceeded when trying to connect|Query read timeout|Client has encountered a connection error)/;

/** What a driver threw, as the outage it is, and without what it quotes: its messages carry values of rows. */
function outage(error: unknown): UnavailableError | null {
  if (!(error instanceof Error)) return null;
  const { code, constraint } = error as { code?: unknown; constraint?: unknown };
  if (typeof code === 'string' && SQLSTATE.test(code)) {
    const cause = new Error(`SQLSTATE ${code}${typeof constraint === 'string' ? ` (${constraint})` : ''}`);
    return new UnavailableError('database', 'The database did not do what was asked of it.', { cause });
  }
  const isNetwork = (typeof code === 'string' && 'syscall' in error) || BROKEN.test(error.message);
  return isNetwork ? new UnavailableError('database', 'The database cannot be reached.', { cause: new Error(String(code ?? 'connection')) }) : null;
}

async function take<T>(sql: Sql, role: KeyguardRole, fn: (tx: SqlTransaction) => Promise<T>, userId: string | null): Promise<T> {
  try {
    return await asRole(sql, role, fn, { userId });
  } catch (error) {
    throw outage(error) ?? error;
  }
}

/** `fn` in one transaction, or in a savepoint of the one handed, that sees and changes what this user may, and nothing else. */
export function asUser<T>(sql: Sql, userId: string, fn: (tx: SqlTransaction) => Promise<T>): Promise<T> {
  return take(sql, 'kg_app', fn, userId);
}

/** For the tables of sign-in. */
export function asAuth<T>(sql: Sql, fn: (tx: SqlTransaction) => Promise<T>): Promise<T> {
  return take(sql, 'kg_auth', fn, null);
}

/** For a device that was just verified. */
export function asVerifier<T>(sql: Sql, fn: (tx: SqlTransaction) => Promise<T>): Promise<T> {
  return take(sql, 'kg_verifier', fn, null);
}

/** For work in the background, and at start. */
export function asJobs<T>(sql: Sql, fn: (tx: SqlTransaction) => Promise<T>): Promise<T> {
  return take(sql, 'kg_jobs', fn, null);
}
