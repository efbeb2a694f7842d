/**
 * What protects the rows, held to the file beside the migrations: on an empty database it is that file to the letter, and each change of
 * it that somebody makes in the database is refused by its name. On PostgreSQL where KEYGUARD_TEST_BACKEND says so.
 */
import { randomBytes } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { grantRolesTo, type SqlClient, type SqlScriptTransaction } from '@keyguard/storage-node/postgres';
import type { Config } from '../src/config.ts';
import { openDatabase } from '../src/db/open.ts';
import { assertProtected, EXPECTED_PROTECTION, protectionText } from '../src/db/protection.ts';
import { openLogStage, type LogStage } from './audit/stage.ts';
import { backends, type Backend, type Deployment, type PostgresBackend } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const LOGIN = `kg_second_${randomBytes(4).toString('hex')}`;
let stage: LogStage;
beforeAll(async () => {
  stage = await openLogStage();
  await stage.superuser.query(`CREATE ROLE ${LOGIN} LOGIN NOINHERIT`);
  await grantRolesTo(stage.superuser, LOGIN);
});
afterAll(async () => {
  await stage.superuser.scripted((tx) => tx.script(`DROP OWNED BY ${LOGIN}; DROP ROLE ${LOGIN}`));
  await stage.close();
});

/** What is said of the database while `statements`, by whom nothing binds, are in force; `null` where nothing is. */
async function refusalAfter(...statements: readonly string[]): Promise<string | null> {
  let refusal: string | null = null;
  const undone = new Error('undone');
  const within = (tx: SqlScriptTransaction): SqlClient => ({ query: tx.query, transaction: (fn) => fn(tx) });
  await stage.superuser
    .scripted(async (tx) => {
      for (const statement of statements) await tx.script(statement);
      refusal = await assertProtected(within(tx)).then(
        () => null,
        (error: Error) => error.message,
      );
      throw undone;
    })
    .catch((error: unknown) => {
      if (error !== undone) throw error;
    });
  return refusal;
}

it('is what the file says, which this test writes where it is asked to', async () => {
  const text = await protectionText(stage.sql);
  if (process.env['KEYGUARD_WRITE_PROTECTION'] === '1') await writeFile(EXPECTED_PROTECTION, text);
  expect(text).toBe(await readFile(EXPECTED_PROTECTION, 'utf8'));
  await assertProtected(stage.sql);
});

const LOGS = 'keyguard.secret_audit_logs';
const changes: readonly [what: string, statements: readonly string[], refusal: string | RegExp][] = [
  ['a policy that lets everything through', ['ALTER POLICY devices_app_read ON keyguard.devices USING (true)'], /policy devices_app_read on keyguard\.devices is not what the migrations make: it is permissive for select to kg_app using true, and should be permissive for select to kg_app using \(/],
  ['a check that lets everything through', ['ALTER POLICY secret_roles_app_add ON keyguard.secret_roles WITH CHECK (true)'], 'policy secret_roles_app_add on keyguard.secret_roles is not what'],
  ['one more policy', ['CREATE POLICY more ON keyguard.enterprise_secrets FOR SELECT TO kg_app USING (true)'], 'policy more on keyguard.enterprise_secrets is there, and no migration makes it: permissive for select to kg_app using true'],
  ['a policy for one more role', ['ALTER POLICY kek_keys_jobs_read ON keyguard.kek_keys TO kg_jobs, kg_app'], 'it is permissive for select to kg_app, kg_jobs using true, and should be permissive for select to kg_jobs using true'],
  ['a policy for more than it was for', ['DROP POLICY kek_keys_jobs_read ON keyguard.kek_keys', 'CREATE POLICY kek_keys_jobs_read ON keyguard.kek_keys TO kg_jobs USING (true)'], 'it is permissive for all to kg_jobs'],
  ['a policy that restricted and does not', ['DROP POLICY kek_keys_jobs_read ON keyguard.kek_keys', 'CREATE POLICY kek_keys_jobs_read ON keyguard.kek_keys AS RESTRICTIVE FOR SELECT TO kg_jobs USING (true)'], 'it is restrictive for select'],
  ['a policy that is gone', ['DROP POLICY secret_audit_logs_app_add ON keyguard.secret_audit_logs'], 'policy secret_audit_logs_app_add on keyguard.secret_audit_logs is missing: it should be permissive for insert to kg_app'],
  ['row-level security that is off', ['ALTER TABLE keyguard_auth.sessions DISABLE ROW LEVEL SECURITY'], 'table keyguard_auth.sessions is not what the migrations make: it is owner kg_owner, row-level security disabled and forced'],
  ['row-level security that does not bind the owner', ['ALTER TABLE keyguard.devices NO FORCE ROW LEVEL SECURITY'], 'table keyguard.devices is not what'],
  ['a trigger that is off', [`ALTER TABLE ${LOGS} DISABLE TRIGGER secret_audit_logs_append_only`], 'trigger secret_audit_logs_append_only on keyguard.secret_audit_logs is not what the migrations make: it is disabled: CREATE TRIGGER'],
  ['a trigger that only replicas heed', [`ALTER TABLE ${LOGS} ENABLE REPLICA TRIGGER secret_audit_logs_continue`], 'it is for replicas only: CREATE TRIGGER'],
  ['a trigger that is gone', [`DROP TRIGGER secret_audit_logs_continue ON ${LOGS}`], 'trigger secret_audit_logs_continue on keyguard.secret_audit_logs is missing'],
  ['a trigger that heeds less', [`DROP TRIGGER secret_audit_logs_append_only ON ${LOGS}`, `CREATE TRIGGER secret_audit_logs_append_only BEFORE TRUNCATE ON ${LOGS} FOR EACH STATEMENT EXECUTE FUNCTION keyguard.refuse_change()`], 'trigger secret_audit_logs_append_only'],
  ['a session that heeds no trigger', ["SET LOCAL session_replication_role = 'replica'"], 'setting session_replication_role is not what the migrations make: it is replica, and should be origin'],
  ['foreign keys that are off', ['ALTER TABLE keyguard.secret_user_roles DISABLE TRIGGER ALL'], 'foreign keys on keyguard.secret_user_roles is there, and no migration makes it: not enforced'],
  ['the function of a trigger', [`CREATE OR REPLACE FUNCTION keyguard.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN NULL; END'`], 'function keyguard.refuse_change() is not what'],
  ['the function of a policy', [`CREATE OR REPLACE FUNCTION keyguard.is_administrator() RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN true; END'`], 'function keyguard.is_administrator() is not what'],
  ['where a function looks for names', ['ALTER FUNCTION keyguard.project_is_open(text) SET search_path = public'], 'set search_path=public'],
  ['as whom a function runs', ['ALTER FUNCTION keyguard.guard_secret() SECURITY DEFINER'], /it is owner kg_owner, \(\) returns trigger, plpgsql volatile security definer/],
  ['whose a function is', ['ALTER FUNCTION keyguard.is_administrator() OWNER TO kg_app'], 'function keyguard.is_administrator() is not what'],
  ['one more function', [`CREATE FUNCTION keyguard.door() RETURNS int LANGUAGE sql AS 'SELECT 1'`, 'REVOKE EXECUTE ON FUNCTION keyguard.door() FROM PUBLIC'], 'function keyguard.door() is there, and no migration makes it'],
  ['a right to change the log', [`GRANT UPDATE ON ${LOGS} TO kg_app`], 'grant on table keyguard.secret_audit_logs to kg_app is not what the migrations make: it is INSERT, SELECT, UPDATE, and should be INSERT, SELECT'],
  ['a right to empty the log', [`GRANT TRUNCATE ON ${LOGS} TO kg_jobs`], 'it is INSERT, SELECT, TRUNCATE'],
  ['a right to one more column', ['GRANT SELECT (value) ON keyguard_auth.verifications TO kg_app'], 'grant on table keyguard_auth.verifications to kg_app is there, and no migration makes it: SELECT (value)'],
  ['a right that may be handed on', ['GRANT SELECT ON keyguard.kek_keys TO kg_jobs WITH GRANT OPTION'], 'SELECT with grant option'],
  ['a right of a login', [`GRANT SELECT ON keyguard.kek_keys TO ${LOGIN}`], `grant on table keyguard.kek_keys to ${LOGIN} is there, and no migration makes it: SELECT`],
  ['a right of everyone', ['GRANT EXECUTE ON FUNCTION keyguard.audit_head(text) TO PUBLIC'], 'grant on function keyguard.audit_head(origin text) to everyone is there'],
  ['a right to make things in a schema', ['GRANT CREATE ON SCHEMA keyguard TO kg_app'], 'grant on schema keyguard to kg_app is not what the migrations make: it is CREATE, USAGE, and should be USAGE'],
  ['a right that is gone', ['REVOKE INSERT ON keyguard.secret_audit_logs FROM kg_verifier'], 'grant on table keyguard.secret_audit_logs to kg_verifier is missing'],
  ['a view that asks for nobody', ['CREATE VIEW keyguard.everything AS SELECT 1 AS one'], 'view keyguard.everything is there, and no migration makes it: owner'],
  ['a view as it should be, of nobody', ['CREATE VIEW keyguard.everything WITH (security_invoker = true) AS SELECT id FROM keyguard.kek_keys'], 'options security_invoker=true'],
  ['a rule that does nothing in place of what was asked', [`CREATE RULE quiet AS ON INSERT TO ${LOGS} DO INSTEAD NOTHING`], 'rule quiet on keyguard.secret_audit_logs is there'],
  ['a table that is read through another', ['CREATE TABLE public.everything (LIKE keyguard.settings)', 'ALTER TABLE keyguard.settings INHERIT public.everything'], 'parent of keyguard.settings is there'],
  ['a constraint that is gone', [`ALTER TABLE ${LOGS} DROP CONSTRAINT secret_audit_logs_handover_whole`], 'constraint secret_audit_logs_handover_whole on keyguard.secret_audit_logs is missing'],
  ['a constraint that was not held against what was there', [`ALTER TABLE ${LOGS} DROP CONSTRAINT secret_audit_logs_handover_whole`, `ALTER TABLE ${LOGS} ADD CONSTRAINT secret_audit_logs_handover_whole CHECK ((handover_mac IS NULL) = (handover_mac_key_id IS NULL)) NOT VALID`], 'NOT VALID'],
  ['an index that let nothing in twice', ['DROP INDEX keyguard.kek_keys_one_primary'], 'index kek_keys_one_primary on keyguard.kek_keys is missing'],
  ['a column that may be left out', ['ALTER TABLE keyguard.devices ALTER COLUMN mac DROP NOT NULL'], 'column keyguard.devices.mac is not what the migrations make: it is bytea, and should be bytea not null'],
  ['a column that takes other texts for equal', ['ALTER TABLE keyguard.audit_checkpoint_turns ALTER COLUMN origin TYPE text COLLATE "default"'], 'column keyguard.audit_checkpoint_turns.origin is not what the migrations make: it is text not null, and should be text not null collate "C"'],
  ['what a column holds of itself', [`ALTER TABLE keyguard.secret_shares ALTER COLUMN views SET DEFAULT 7`], 'it is integer not null default 7, and should be integer not null default 0'],
];

describe('is noticed:', () => {
  it.each(changes)('%s', async (_what, statements, refusal) => {
    const said = await refusalAfter(...statements);
    expect(said).toContain('What protects the rows was changed in the database:\n- ');
    expect(said).toMatch(typeof refusal === 'string' ? new RegExp(refusal.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&')) : refusal);
  });

  it('all of it at once, without a page of it', async () => {
    const said = (await refusalAfter(...Array.from({ length: 30 }, (_, i) => `CREATE POLICY more_${i} ON keyguard.devices TO kg_app USING (true)`)))!;
    expect(said.split('\n- ')).toHaveLength(22);
    expect(said).toMatch(/- and 10 more\nNothing is served meanwhile\. How to mend it, .* is in docs\/service\/operations\.md\.$/);
  });
});

describe('is nobody else’s:', () => {
  it.each<[what: string, statements: readonly string[]]>([
    ['an index for speed', ['CREATE INDEX quick ON keyguard.devices (label)']],
    ['another schema with tables, functions and policies of its own', ['CREATE SCHEMA elsewhere', 'CREATE TABLE elsewhere.devices (id int)', 'ALTER TABLE elsewhere.devices ENABLE ROW LEVEL SECURITY', 'CREATE POLICY devices_app_read ON elsewhere.devices USING (true)', `CREATE FUNCTION elsewhere.is_administrator() RETURNS boolean LANGUAGE sql AS 'SELECT true'`]],
    ['a path of the login on which our names would be found', ['SET LOCAL search_path = keyguard, keyguard_auth, public']],
    ['what the owner may do with its own', ['REVOKE ALL ON keyguard.devices FROM kg_owner']],
  ])('%s', async (_what, statements) => {
    expect(await refusalAfter(...statements)).toBeNull();
  });
});

describe('at the start', () => {
  let backend: Backend;
  let deployment: Deployment;
  beforeAll(async () => {
    backend = await backends()[0]![1]();
    deployment = await backend.deploy();
  });
  afterAll(() => backend.stop());

  function start(): Promise<void> {
    const { DATABASE_URL: url, DATABASE_OWNER_URL: ownerUrl } = deployment.environment;
    const database: Config['database'] = url === undefined ? { kind: 'embedded' } : { kind: 'postgres', url, ownerUrl: ownerUrl ?? null };
    return openDatabase({ database, dataDir: join(deployment.folder, 'data') }, pino({ level: 'silent' })).then((opened) => opened.close());
  }
  async function change(statement: string): Promise<void> {
    if ('asSuperuser' in backend) return (backend as PostgresBackend).asSuperuser(deployment, statement);
    await deployment.withDatabase((sql) => sql.query(statement));
  }

  it('nothing is served from a database whose policies were changed', async () => {
    await start();
    await change('ALTER POLICY devices_verifier_read ON keyguard.devices TO kg_verifier, kg_app');
    await expect(start()).rejects.toMatchObject({ name: 'UsageError', message: expect.stringContaining('policy devices_verifier_read on keyguard.devices is not what the migrations make') });
    await change('ALTER POLICY devices_verifier_read ON keyguard.devices TO kg_verifier');
    await start();
  });
});
