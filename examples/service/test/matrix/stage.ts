/**
 * The service in this process, on a database of its own, so that a test can take away one of the two layers that keep
 * people apart: row-level security, or the application's own check.
 */
import { randomBytes, randomInt, randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { hashPassword } from 'better-auth/crypto';
import pg from 'pg';
import { pino } from 'pino';
import { pgClient, type SqlClient } from '@keyguard/storage-node/postgres';
import { readConfig } from '../../src/config.ts';
import { PERMISSION_NAMES, type Permission } from '../../src/roles/permissions.ts';
import { startService, type Service } from '../../src/service.ts';
import { insertPerson, vouchingOf } from '../people-rows.ts';
import { backends, caller, type CallAnswer, type CallOptions, type PostgresBackend } from '../stage.ts';

/** Which layer is taken away. */
export type Mode = 'as it is' | 'without row-level security' | 'without the application’s check';

/** Who calls. The first three have something to do with what the owner has; the administrator administers; the others are strangers. */
export const PRINCIPALS = ['anonymous', 'other', 'service_account', 'shared_read', 'shared_write', 'administrator', 'owner'] as const;
export type Who = (typeof PRINCIPALS)[number];

export interface Stage {
  readonly origin: string;
  /** Nothing binds it. */
  readonly sql: SqlClient;
  readonly call: (method: string, path: string, options?: CallOptions) => Promise<CallAnswer>;
  readonly setupCode: string;
  take(mode: Mode): Promise<void>;
  /** Makes a person without asking anybody, and signs in as them. */
  newPerson(name: string): Promise<Person>;
  stop(): Promise<void>;
}

export interface Person {
  readonly userId: string;
  readonly email: string;
  readonly password: string;
  readonly token: string;
}

const EVERYTHING: ReadonlySet<Permission> = new Set(PERMISSION_NAMES);
const PASSWORD = 'a long and quiet password';
// Where nobody listens: no test goes out to a provider.
const NOBODY = 'http://127.0.0.1:9/v1';

export async function startInProcess(): Promise<Stage> {
  const [, open] = backends()[0]!;
  const backend = await open();
  const deployment = await backend.deploy();
  const server = 'superuserUrl' in backend ? new pg.Pool({ connectionString: (backend as PostgresBackend).superuserUrl(deployment), max: 2 }) : null;
  server?.on('error', () => {});
  const said: string[] = [];
  let sql: SqlClient | undefined;
  let isChecked = true;
  const config = readConfig({ ...deployment.environment, PORT: '0', KEYGUARD_DATA_DIR: join(deployment.folder, 'data'), KEYGUARD_REQUESTS_PER_MINUTE: '100000', KEYGUARD_ENROLLMENTS_PER_MINUTE: '100000', TRUST_PROXY: '1', OPENAI_BASE_URL: NOBODY }, deployment.folder);
  const service: Service = await startService({
    config,
    log: pino({ level: 'silent' }),
    say: (text) => said.push(text),
    overrides: {
      database: (opened) => {
        // On the embedded database the login is a superuser until it takes a role.
        sql = server === null ? opened.sql : pgClient(server);
        return opened;
      },
      access: (decides) => ({
        permissionsOn: async (...asked) => (isChecked ? decides.permissionsOn(...asked) : EVERYTHING),
        reachOf: async (...asked) => (isChecked ? decides.reachOf(...asked) : { everywhere: true, projectIds: [] }),
      }),
    },
  });
  const origin = /KeyGuard is at (\S+),/.exec(said.join('\n'))![1]!;
  const call = caller(() => origin);
  const passwordHash = await hashPassword(PASSWORD);
  const vouching = await vouchingOf(sql!, config.rootKey);
  return {
    origin,
    sql: sql!,
    call,
    setupCode: /setup code:\s+(\S+)/.exec(said.join('\n'))![1]!,
    async take(mode) {
      isChecked = mode !== 'without the application’s check';
      await sql!.query(`ALTER ROLE kg_app ${mode === 'without row-level security' ? 'BYPASSRLS' : 'NOBYPASSRLS'}`);
    },
    async newPerson(name) {
      const userId = randomUUID();
      const email = `${name}-${randomBytes(6).toString('hex')}@example.com`;
      await insertPerson(sql!, vouching, { id: userId, name, email, passwordHash });
      return { userId, email, password: PASSWORD, token: await signIn(call, email) };
    },
    async stop() {
      await service.stop();
      await server?.end();
      await backend.stop();
    },
  };
}

export async function signIn(call: Stage['call'], email: string, password: string = PASSWORD): Promise<string> {
  // From an address of its own, so that nobody slows another down.
  const headers = { 'x-forwarded-for': `198.18.${randomInt(256)}.${randomInt(256)}` };
  const answer = await call('POST', '/api/auth/sign-in/email', { body: { email, password }, headers });
  const token = answer.headers.get('set-auth-token');
  if (token === null) throw new Error(`${email} could not sign in: ${answer.status} ${answer.text}`);
  return token;
}
