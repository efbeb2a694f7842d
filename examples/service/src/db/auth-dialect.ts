/**
 * Kysely over the one client of the service, for better-auth: every statement is a transaction of its own, as `kg_auth`. So no
 * transaction of better-auth's ever waits for a password to be hashed, and nothing of it stays on a connection.
 */
import {
  Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  type CompiledQuery,
  type DatabaseConnection,
  type Driver,
  type QueryResult,
} from 'kysely';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { asAuth } from './as-user.ts';

function connection(sql: SqlClient): DatabaseConnection {
  return {
    async executeQuery<Row>({ sql: text, parameters }: CompiledQuery): Promise<QueryResult<Row>> {
      const { rows, rowCount, affectedRows } = await asAuth(sql, (tx) => tx.query<Row>(text, parameters));
      return { rows, numAffectedRows: BigInt(rowCount ?? affectedRows ?? 0) };
    },
    // oxlint-disable-next-line require-yield -- nothing here streams
    async *streamQuery(): AsyncGenerator<never> {
      throw new Error('Statements of better-auth are not streamed.');
    },
  };
}

function driver(sql: SqlClient): Driver {
  const refuse = async (): Promise<never> => {
    throw new Error('better-auth is configured to work without transactions.');
  };
  return {
    init: async () => {},
    acquireConnection: async () => connection(sql),
    beginTransaction: refuse,
    commitTransaction: refuse,
    rollbackTransaction: refuse,
    releaseConnection: async () => {},
    destroy: async () => {},
  };
}

/** The tables are named by whoever uses it. */
export function authKysely(sql: SqlClient): Kysely<Record<string, Record<string, unknown>>> {
  return new Kysely({
    dialect: {
      createAdapter: () => new PostgresAdapter(),
      createDriver: () => driver(sql),
      createIntrospector: (db) => new PostgresIntrospector(db),
      createQueryCompiler: () => new PostgresQueryCompiler(),
    },
  });
}
