/**
 * A start on a database that is not of this version: one migration behind, with one that fails, newer, or changed. And a start that
 * is stopped. What is behind is made of the files without the newest, and holds what a service that ran has written.
 */
import { cp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { hashPassword } from 'better-auth/crypto';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { migrate, pgClient, type SqlClient, type SqlScriptClient } from '@keyguard/storage-node/postgres';
import { prepareSchema } from '../src/db/migrate.ts';
import { backends, caller, folder, freePort, remove, runMain, startService, type Backend, type Deployment, type Environment, type PostgresBackend, type Process, type Running } from './stage.ts';

// Each start of a process is a second or more.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const MIGRATIONS = fileURLToPath(new URL('../migrations', import.meta.url));
// The first migration since which what people sign in by bears a MAC.
const VOUCHED = '0087-vouched-people.sql';
const EMAIL = 'admin@example.com';
const PASSWORD = 'a long and quiet password';
const VALUE = 'what was stored before the upgrade';

/** The rows of each table as JSON, which JavaScript never reads: its numbers are too small. */
type Rows = ReadonlyMap<string, string>;

const TABLES = `SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname IN ('keyguard', 'keyguard_auth') AND c.relkind = 'r' ORDER BY 1`;

async function tablesOf(sql: SqlClient): Promise<string[]> {
  return (await sql.query<{ name: string }>(TABLES)).rows.map(({ name }) => name);
}

async function rowsOf(sql: SqlClient): Promise<Rows> {
  const rows = new Map<string, string>();
  for (const table of await tablesOf(sql)) {
    rows.set(table, (await sql.query<{ rows: string }>(`SELECT coalesce(json_agg(t ORDER BY t::text), '[]')::text AS rows FROM ${table} t`)).rows[0]!.rows);
  }
  return rows;
}

// By name and by text, never by oid.
const CATALOG = {
  schemas: `SELECT nspname, nspowner::regrole::text AS owner, nspacl::text FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1`,
  relations: `SELECT c.oid::regclass::text AS name, c.relkind, c.relowner::regrole::text AS owner, c.relrowsecurity, c.relforcerowsecurity, c.relacl::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1`,
  columns: `SELECT a.attrelid::regclass::text AS name, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull, a.attacl::text,
      pg_get_expr(d.adbin, d.adrelid) AS value
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE n.nspname IN ('keyguard', 'keyguard_auth') AND a.attnum > 0 ORDER BY 1, 2`,
  functions: `SELECT p.oid::regprocedure::text AS name, p.proowner::regrole::text AS owner, p.proacl::text, pg_get_functiondef(p.oid) AS text
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname IN ('keyguard', 'keyguard_auth') ORDER BY 1`,
  constraints: `SELECT conrelid::regclass::text AS name, conname, pg_get_constraintdef(c.oid) AS text
    FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace WHERE n.nspname IN ('keyguard', 'keyguard_auth') ORDER BY 1, 2`,
  indexes: `SELECT schemaname, indexname, indexdef FROM pg_indexes WHERE schemaname IN ('keyguard', 'keyguard_auth') ORDER BY 1, 2`,
  triggers: `SELECT tgrelid::regclass::text AS name, tgname, tgenabled, pg_get_triggerdef(oid) AS text FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2`,
  policies: `SELECT schemaname, tablename, policyname, permissive, roles::text, cmd, qual, with_check FROM pg_policies ORDER BY 1, 2, 3`,
  defaults: `SELECT defaclrole::regrole::text AS owner, defaclobjtype, defaclacl::text FROM pg_default_acl ORDER BY 1, 2`,
  roles: `SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolbypassrls FROM pg_roles
    WHERE rolname IN ('kg_owner', 'kg_app', 'kg_verifier', 'kg_auth', 'kg_jobs') ORDER BY 1`,
};

/** Everything that a migration could have changed, with every row. */
async function stateOf(sql: SqlClient): Promise<Record<string, unknown>> {
  const state: Record<string, unknown> = { rows: Object.fromEntries(await rowsOf(sql)) };
  for (const [part, query] of Object.entries(CATALOG)) state[part] = (await sql.query(query)).rows;
  return state;
}

async function namesIn(directory: string): Promise<string[]> {
  return (await readdir(directory)).filter((name) => name.endsWith('.sql')).toSorted();
}

describe.each(backends())('a start on a database of another version, on %s', (_title, open) => {
  let backend: Backend;
  let deployment: Deployment;
  let client: KeyGuardClient;
  let newest: string;
  // What a test has started and not stopped yet.
  let service: Running | undefined;
  let port: string;
  // The service's files without the newest.
  let previous: string;

  interface Logins {
    /** Nothing binds it. */
    readonly unbound: SqlScriptClient;
    readonly owner: SqlScriptClient;
  }
  /** `work` with the database, while no service runs. Opening the embedded one is most of what these tests take. */
  async function offline<T>(work: (logins: Logins) => Promise<T>, of: Deployment = deployment): Promise<T> {
    if (!('superuserUrl' in backend)) return of.withDatabase((sql) => work({ unbound: sql, owner: sql }));
    const pools = [(backend as PostgresBackend).superuserUrl(of), of.environment['DATABASE_OWNER_URL']!].map((url) => new pg.Pool({ connectionString: url, max: 1 }));
    try {
      return await work({ unbound: pgClient(pools[0]!), owner: pgClient(pools[1]!) });
    } finally {
      for (const pool of pools) await pool.end();
    }
  }

  const run = (): Process => runMain(deployment.folder, { ...deployment.environment, PORT: port });
  async function start(more: Environment = {}): Promise<Running> {
    service = await startService(deployment.folder, { ...deployment.environment, PORT: port, ...more });
    return service;
  }
  async function refused(): Promise<string> {
    const started = run();
    expect([await started.exit, started.output()]).toEqual([1, expect.not.stringContaining('"msg":"ready"')]);
    return started.output();
  }

  /** Starts, sends the signal as soon as `isThere`, and answers with what was said until the end. */
  async function stopped(isThere: (started: Process) => Promise<boolean>): Promise<string> {
    const started = run();
    // Whatever happens, this loop ends: a start that nobody stops becomes ready.
    while (!(await isThere(started)) && started.child.exitCode === null && !started.output().includes('"msg":"ready"')) await pause(2);
    started.child.kill('SIGTERM');
    expect([await started.exit, started.output()]).toEqual([0, expect.stringContaining('Stopping: ')]);
    expect(started.output()).not.toMatch(/the stop failed|"level":(?:50|60)|\n\s+at /);
    return started.output();
  }

  /** Makes the database anew as the version before would have it, with the rows that are in it now. */
  async function goBack({ unbound, owner }: Logins): Promise<void> {
    const rows = await rowsOf(unbound);
    await unbound.scripted((tx) => tx.script('DROP SCHEMA keyguard, keyguard_auth CASCADE'));
    await migrate(owner, { migrations: [{ component: 'service', directory: previous, schema: 'keyguard_auth' }] });
    const tables = (await tablesOf(unbound)).filter((name) => name !== 'keyguard.schema_migrations');
    await unbound.transaction(async (tx) => {
      // The rows are as triggers have left them, and there are all of those that they refer to.
      await tx.query(`SET LOCAL session_replication_role = 'replica'`);
      for (const table of tables) {
        const columns = await tx.query<{ name: string }>(`SELECT quote_ident(attname) AS name FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped`, [table]);
        const list = columns.rows.map(({ name }) => name).join(', ');
        // What a migration has put there is there as it was changed since.
        await tx.query(`DELETE FROM ${table}`);
        await tx.query(`INSERT INTO ${table} (${list}) SELECT ${list} FROM json_populate_recordset(NULL::${table}, $1::json)`, [rows.get(table) ?? '[]']);
      }
    });
  }

  beforeAll(async () => {
    backend = await open();
    deployment = await backend.deploy();
    port = String(await freePort());
    previous = await folder();
    await cp(MIGRATIONS, previous, { recursive: true });
    newest = (await namesIn(MIGRATIONS)).at(-1)!;
    await rm(join(previous, newest));

    const { origin, stop } = await start({ KEYGUARD_ADMIN_EMAIL: EMAIL, KEYGUARD_ADMIN_PASSWORD: PASSWORD });
    const call = caller(() => origin);
    const token = (await call('POST', '/api/auth/sign-in/email', { body: { email: EMAIL, password: PASSWORD } })).headers.get('set-auth-token')!;
    const { code } = (await call('POST', '/api/enrollment-codes', { token, body: {} })).json;
    client = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
    await client.enroll({ code });
    await call('POST', '/api/secrets', { token, body: { name: 'KEPT', value: VALUE } });
    await stop();
    await offline(goBack);
  });
  afterEach(async () => {
    await service?.stop('SIGKILL');
    service = undefined;
  });
  afterAll(async () => {
    await remove(previous);
    await backend.stop();
  });

  it('ends where a migration fails, says which and what to do, and leaves the database as it was', async () => {
    const before = await offline(async ({ unbound }) => {
      // The newest file runs to its end before this.
      await unbound.scripted((tx) =>
        tx.script(`CREATE FUNCTION public.refuse_newest() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no room here' USING ERRCODE = 'object_not_in_prerequisite_state'; END $$;
          CREATE TRIGGER refuse_newest BEFORE INSERT ON keyguard.schema_migrations FOR EACH ROW EXECUTE FUNCTION public.refuse_newest()`),
      );
      return stateOf(unbound);
    });
    const said = await refused();
    expect(said).toContain(`The migration service/${newest} failed and left nothing behind. Mend what the database says here, then start again`);
    expect(said).toContain('(SQLSTATE 55000: no room here)');
    expect(said).not.toMatch(/\n\s+at /);
    await offline(async ({ unbound }) => {
      expect(await stateOf(unbound)).toEqual(before);
      await unbound.scripted((tx) => tx.script('DROP TRIGGER refuse_newest ON keyguard.schema_migrations; DROP FUNCTION public.refuse_newest()'));
    });
  });

  it('leaves nothing of a file that makes a table, fills it, and then fails', async () => {
    const broken = await folder();
    await cp(previous, broken, { recursive: true });
    await writeFile(
      join(broken, '9999-broken.sql'),
      `CREATE TABLE keyguard.half (id text PRIMARY KEY); INSERT INTO keyguard.half VALUES ('a'); GRANT SELECT ON keyguard.half TO kg_app;
       ALTER TABLE keyguard.devices ADD COLUMN half text; UPDATE keyguard.schema_migrations SET applied_at_ms = 0;
       DO $$ BEGIN RAISE EXCEPTION 'the end'; END $$;`,
    );
    const set = { component: 'service', directory: broken, schema: 'keyguard_auth' };
    await offline(async ({ unbound, owner }) => {
      const before = await stateOf(unbound);
      const failed = await migrate(owner, { migrations: [set] }).catch((error: unknown) => error);
      expect(failed).toMatchObject({ message: 'The migration service/9999-broken.sql failed and left nothing behind.', cause: { code: 'P0001' } });
      expect(await stateOf(unbound)).toEqual(before);

      // A file before it that went well stays, and is named: whoever goes back needs to know.
      await writeFile(join(broken, '9998-fine.sql'), 'SELECT 1');
      await expect(migrate(owner, { migrations: [set] })).rejects.toThrow('Before it were applied, and stay: service/9998-fine.sql.');
      await unbound.query(`DELETE FROM keyguard.schema_migrations WHERE name = '9998-fine.sql'`);
      expect(await stateOf(unbound)).toEqual(before);
    });
    await remove(broken);
  });

  it('ends in order when it is stopped before it has begun', async () => {
    const owner = join(deployment.folder, 'data/keyguard.pid');
    const said = await stopped(async ({ child }) => (await readFile(owner, 'utf8').catch(() => '')).startsWith(`${child.pid} `));
    // As a rule it has not even loaded what migrates; on a busy machine the signal may come later.
    if (said.includes('the schema was brought up to date')) await offline(goBack);
  });

  it('migrates a database of the version before, and all that was in it is there', async () => {
    const { origin, output, setupCode, stop } = await start();
    expect(output()).toMatch(/"migrations":1,.*the schema was brought up to date/);
    expect(setupCode).toBeNull();
    const call = caller(() => origin);
    await expect.poll(async () => (await call('GET', '/readyz')).status, { timeout: 10_000 }).toBe(200);
    const token = (await call('POST', '/api/auth/sign-in/email', { body: { email: EMAIL, password: PASSWORD } })).headers.get('set-auth-token')!;
    const { data } = (await call('GET', '/api/secrets', { token })).json;
    expect(data).toEqual([expect.objectContaining({ name: 'KEPT' })]);
    expect((await call('POST', `/api/secrets/${data[0].id}/reveal`, { token, body: {} })).json.value).toBe(VALUE);
    expect((await call('GET', '/api/devices', { token })).json.data).toEqual([expect.objectContaining({ status: 'active' })]);
    const chat = await client.fetch(`${origin}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model: 'keyguard-demo', messages: [{ role: 'user', content: 'Hello' }] }),
    });
    expect([chat.status, await chat.text()]).toEqual([200, expect.any(String)]);
    expect(await stop()).toBe(0);
  });

  it('lets people sign in from whom what they sign in by bore no MAC before, and gives nobody one again', async () => {
    const old = await backend.deploy();
    const earlier = await folder();
    await cp(MIGRATIONS, earlier, { recursive: true });
    for (const name of (await namesIn(earlier)).filter((each) => each >= VOUCHED)) await rm(join(earlier, name));
    const hash = await hashPassword(PASSWORD);
    await offline(async ({ unbound, owner }) => {
      await unbound.scripted((tx) => tx.script('DROP SCHEMA IF EXISTS keyguard, keyguard_auth CASCADE'));
      await migrate(owner, { migrations: [{ component: 'service', directory: earlier, schema: 'keyguard_auth' }] });
      await unbound.query(`INSERT INTO keyguard_auth.users (id, name, email, email_verified) VALUES ('old', 'Old', $1, true)`, [EMAIL]);
      await unbound.query(`INSERT INTO keyguard_auth.accounts (id, user_id, account_id, provider_id, password) VALUES ('old', 'old', 'old', 'credential', $1)`, [hash]);
    }, old);
    const signsIn = async (): Promise<number> => {
      service = await startService(old.folder, { ...old.environment, PORT: port });
      const { origin, stop } = service;
      const { status } = await caller(() => origin)('POST', '/api/auth/sign-in/email', { body: { email: EMAIL, password: PASSWORD } });
      await stop();
      return status;
    };
    expect([await signsIn(), await signsIn()]).toEqual([200, 200]);
    await offline(async ({ unbound }) => {
      const { rows } = await unbound.query<{ n: unknown }>(`SELECT count(*) AS n FROM keyguard.secret_audit_logs WHERE action = 'auth.accounts_adopted'`);
      expect(Number(rows[0]!.n)).toBe(1);
      await unbound.query('UPDATE keyguard_auth.users SET mac = NULL, mac_key_id = NULL');
    }, old);
    expect(await signsIn()).toBe(503);
    await remove(earlier);
  });

  it('refuses a database that is newer, and one whose migrations are others, and says what to do', async () => {
    const turnChecksum = 'UPDATE keyguard.schema_migrations SET checksum = reverse(checksum) WHERE name = $1';
    const newer = await offline(async ({ unbound }) => {
      await unbound.query(`INSERT INTO keyguard.schema_migrations VALUES ('service', '9999-later.sql', 'x', 1)`);
      return stateOf(unbound);
    });
    expect(await refused()).toBe('The database has the migration service/9999-later.sql, which this program does not know: it is too old. Start the newer version.\n');
    await offline(async ({ unbound, owner }) => {
      expect(await stateOf(unbound)).toEqual(newer);
      await unbound.query(`DELETE FROM keyguard.schema_migrations WHERE name = '9999-later.sql'`);
      await unbound.query(turnChecksum, [newest]);
      const other = await stateOf(unbound);
      await expect(prepareSchema(owner, 'The database')).rejects.toThrow(
        `The migration service/${newest} was changed after it had been applied. Put back the file as it was, or start the version of the program that applied it.`,
      );
      expect(await stateOf(unbound)).toEqual(other);
      await unbound.query(turnChecksum, [newest]);
    });
  });

  it('ends in order when it is stopped while it migrates, which it does to the end', async () => {
    await offline(goBack);
    await stopped(async ({ output }) => output().includes('the schema was brought up to date'));
    expect(await offline(({ owner }) => prepareSchema(owner, 'The database'))).toEqual([]);
  });
});
