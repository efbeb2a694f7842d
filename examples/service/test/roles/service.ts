/** The service in this process, on the database that the suite runs on, with a way around everything that binds the service. */
import { randomBytes, randomUUID } from 'node:crypto';
import { hashPassword } from 'better-auth/crypto';
import pg from 'pg';
import { join } from 'node:path';
import { pino } from 'pino';
import type { Clock } from '@keyguard/core/seams';
import type { SqlClient, SqlResult } from '@keyguard/storage-node/postgres';
import { readConfig } from '../../src/config.ts';
import { startService, type Service } from '../../src/service.ts';
import { insertPerson, vouchingOf } from '../people-rows.ts';
import { caller, type Backend, type CallAnswer, type CallOptions, type PostgresBackend } from '../stage.ts';

export interface Person {
  readonly userId: string;
  readonly email: string;
  readonly token: string;
}

export interface RunningService {
  readonly origin: string;
  /** As the service uses it. */
  readonly sql: SqlClient;
  readonly call: (method: string, path: string, options?: CallOptions) => Promise<CallAnswer>;
  readonly admin: Person;
  /** What nothing binds: neither a policy nor a grant. */
  asSuperuser<Row>(text: string, params?: readonly unknown[]): Promise<SqlResult<Row>>;
  newPerson(name: string): Promise<Person>;
  signIn(email: string): Promise<CallAnswer>;
  /** The newest entries of the audit log. */
  audit(action: string): Promise<Record<string, unknown>[]>;
  stop(): Promise<void>;
}

const PASSWORD = 'a long and quiet password';

export async function startOn(backend: Backend, environment: Record<string, string> = {}, { clock }: { readonly clock?: Clock } = {}): Promise<RunningService> {
  const deployment = await backend.deploy();
  const said: string[] = [];
  let opened: SqlClient | undefined;
  const config = readConfig(
    {
      PORT: '0',
      KEYGUARD_DATA_DIR: join(deployment.folder, 'data'),
      KEYGUARD_REQUESTS_PER_MINUTE: '100000',
      KEYGUARD_ENROLLMENTS_PER_MINUTE: '100000',
      KEYGUARD_ADMIN_EMAIL: 'admin@example.com',
      KEYGUARD_ADMIN_PASSWORD: PASSWORD,
      ...deployment.environment,
      ...environment,
    },
    deployment.folder,
  );
  const service: Service = await startService({
    config,
    log: pino({ level: 'silent' }),
    say: (text) => said.push(text),
    overrides: {
      ...(clock !== undefined && { clock }),
      database: (database) => {
        opened = database.sql;
        return database;
      },
    },
  });
  const sql = opened!;
  const origin = /KeyGuard is at (\S+),/.exec(said.join('\n'))![1]!;
  const call = caller(() => origin);
  const isPostgres = deployment.environment['DATABASE_URL'] !== undefined;
  const pool = isPostgres ? new pg.Pool({ connectionString: (backend as PostgresBackend).superuserUrl(deployment), max: 2 }) : null;
  // A server that stops says so to connections that are being closed; nobody else would listen.
  pool?.on('error', () => {}).on('connect', (client) => client.on('error', () => {}));
  const asSuperuser = async <Row>(text: string, params: readonly unknown[] = []): Promise<SqlResult<Row>> =>
    pool === null ? sql.query<Row>(text, params) : ((await pool.query(text, [...params])) as unknown as SqlResult<Row>);
  const signIn = (email: string): Promise<CallAnswer> => call('POST', '/api/auth/sign-in/email', { body: { email, password: PASSWORD } });
  const tokenOf = async (email: string): Promise<string> => (await signIn(email)).headers.get('set-auth-token')!;
  const passwordHash = await hashPassword(PASSWORD);
  const vouching = await vouchingOf(sql, config.rootKey);
  const { rows } = await asSuperuser<{ id: string }>('SELECT id FROM keyguard_auth.users WHERE email = $1', ['admin@example.com']);
  const admin: Person = { userId: rows[0]!.id, email: 'admin@example.com', token: await tokenOf('admin@example.com') };
  return {
    origin,
    sql,
    call,
    admin,
    asSuperuser,
    signIn,
    async newPerson(name) {
      const userId = randomUUID();
      const email = `${name}-${randomBytes(6).toString('hex')}@example.com`;
      await insertPerson(sql, vouching, { id: userId, name, email, passwordHash });
      await asSuperuser('DELETE FROM keyguard_auth.rate_limits');
      return { userId, email, token: await tokenOf(email) };
    },
    async audit(action) {
      const { json } = await call('GET', '/api/audit?limit=200', { token: admin.token });
      return (json.data as Record<string, unknown>[]).filter((entry) => entry['action'] === action);
    },
    async stop() {
      await service.stop();
      await pool?.end();
    },
  };
}
