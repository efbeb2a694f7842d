/**
 * Who may be what: gives an application's login the roles that it may take, and refuses to work where row-level security would
 * not hold.
 */
import { UsageError } from '@keyguard/core/errors';
import { guarded, integer, type SqlClient, type SqlScriptClient } from './client.ts';

const SEAM = 'roles';
const TAKEN = ['kg_app', 'kg_verifier', 'kg_auth', 'kg_jobs'];
const ALL = ['kg_owner', ...TAKEN];

/**
 * Lets the login `loginName` (which MUST exist) take the four roles, one per transaction, without ever holding their rights by
 * itself. Also lets it call the functions that take a role for their own length. To be run by whoever migrates.
 * @throws UsageError `invalid_option` for a login that is not there
 */
export async function grantRolesTo(client: SqlScriptClient, loginName: string): Promise<void> {
  await guarded(SEAM, () =>
    client.scripted(async (tx) => {
      const { rows } = await tx.query<{ name: string; version: unknown }>(
        `SELECT quote_ident(rolname) AS name, current_setting('server_version_num') AS version FROM pg_catalog.pg_roles
          WHERE rolname = $1 AND rolcanlogin`,
        [loginName],
      );
      const login = rows[0];
      if (login === undefined) throw new UsageError('invalid_option', 'There is no login of that name to which to grant roles.');
      // Before version 16 this belongs to the login, which must then be NOINHERIT: assertSafeRoles sees to it.
      const how = integer(login.version) >= 160_000 ? ' WITH INHERIT FALSE, SET TRUE' : '';
      await tx.script(`GRANT ${TAKEN.join(', ')} TO ${login.name}${how}`);
      await tx.script('SET LOCAL ROLE kg_owner');
      await tx.script(`GRANT USAGE ON SCHEMA keyguard TO ${login.name}`);
      await tx.script(
        `GRANT EXECUTE ON FUNCTION keyguard.find_device(text), keyguard.claim_nonces(text[], text[], bigint[], bigint[]),
          keyguard.purge_nonces(bigint, integer), keyguard.count_nonces(integer), keyguard.add_audit_records_after,
          keyguard.changed_devices(text, pg_snapshot, integer) TO ${login.name}`,
      );
    }),
  );
}

/** Which tables to look at. */
export interface AssertSafeRolesOptions {
  /** Which schemas hold tables that people's rows are in. Default: `keyguard` alone. */
  readonly schemas?: readonly string[];
  /**
   * PGlite: its only login is a superuser, and what keeps users apart is that every transaction takes a role. Leaves out what is
   * asked of the login and of durability, and nothing that is asked of tables and roles.
   */
  readonly embedded?: boolean;
}

// Each query answers with one fault a row, as text. Names in them are of tables, roles and functions, never values.
const LOGIN_FAULTS = `
  SELECT format('the login is, or can become, %I, which %s', r.rolname,
      CASE WHEN r.rolsuper THEN 'is a superuser' ELSE 'bypasses row-level security' END) AS fault
    FROM pg_catalog.pg_roles r
    WHERE (r.rolsuper OR r.rolbypassrls) AND pg_catalog.pg_has_role(session_user, r.oid, 'MEMBER')
  UNION ALL
  SELECT 'the login may create roles' FROM pg_catalog.pg_roles r WHERE r.rolname = session_user AND r.rolcreaterole
  UNION ALL
  SELECT 'the login can become kg_owner' FROM pg_catalog.pg_roles r
    WHERE r.rolname = 'kg_owner' AND pg_catalog.pg_has_role(session_user, r.oid, 'MEMBER')
  UNION ALL
  SELECT format('the login owns %I.%I', n.nspname, c.relname)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
    WHERE n.nspname = ANY($1) AND r.rolname = session_user
  UNION ALL
  SELECT format('the login cannot take the role %I', r.rolname) FROM pg_catalog.pg_roles r
    WHERE r.rolname = ANY($2) AND NOT pg_catalog.pg_has_role(session_user, r.oid,
      CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)
  UNION ALL
  SELECT format('the login has the rights of %I without taking the role', r.rolname) FROM pg_catalog.pg_roles r
    WHERE r.rolname = ANY($2) AND pg_catalog.pg_has_role(session_user, r.oid, 'USAGE')
  UNION ALL
  SELECT format('%s is off, so what is acknowledged may be lost', s.name) FROM pg_catalog.pg_settings s
    WHERE s.name IN ('fsync', 'synchronous_commit') AND s.setting = 'off'`;

const ROLE_FAULTS = `
  SELECT format('the role %I is missing', wanted.name) AS fault FROM unnest($1::text[]) AS wanted (name)
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = wanted.name)
  UNION ALL
  SELECT format('the role %I can log in, is a superuser or bypasses row-level security', r.rolname) FROM pg_catalog.pg_roles r
    WHERE r.rolname = ANY($1) AND (r.rolcanlogin OR r.rolsuper OR r.rolbypassrls)
  UNION ALL
  SELECT format('the role %I is a member of %I', m.rolname, g.rolname)
    FROM pg_catalog.pg_auth_members a JOIN pg_catalog.pg_roles m ON m.oid = a.member JOIN pg_catalog.pg_roles g ON g.oid = a.roleid
    WHERE m.rolname = ANY($1)`;

const TABLE_FAULTS = `
  WITH tables AS (
    SELECT c.*, n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = ANY($1) AND c.relkind IN ('r', 'p')
  )
  SELECT format('there is no schema %I', wanted.name) AS fault FROM unnest($1::text[]) AS wanted (name)
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = wanted.name)
  UNION ALL
  SELECT format('%I.%I does not ENABLE and FORCE row-level security', t.nspname, t.relname) FROM tables t
    WHERE NOT (t.relrowsecurity AND t.relforcerowsecurity)
  UNION ALL
  SELECT format('%I.%I has no policy', t.nspname, t.relname) FROM tables t
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = t.oid)
  UNION ALL
  SELECT format('a policy of %I.%I is for everyone', t.nspname, t.relname) FROM tables t
    JOIN pg_catalog.pg_policy p ON p.polrelid = t.oid WHERE 0 = ANY(p.polroles)
  UNION ALL
  SELECT format('%I.%I does not belong to kg_owner', t.nspname, t.relname) FROM tables t
    WHERE pg_catalog.pg_get_userbyid(t.relowner) <> 'kg_owner'
  UNION ALL
  SELECT format('%I.%I is not logged, so a crash empties it', t.nspname, t.relname) FROM tables t WHERE t.relpersistence <> 'p'
  UNION ALL
  SELECT format('%s may %s on %I.%I', CASE WHEN a.grantee = 0 THEN 'everyone' ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END,
      a.privilege_type, t.nspname, t.relname)
    FROM tables t CROSS JOIN LATERAL pg_catalog.aclexplode(t.relacl) a
    WHERE a.grantee <> t.relowner AND (a.grantee = 0 OR a.privilege_type IN ('TRUNCATE', 'TRIGGER', 'REFERENCES'))
  UNION ALL
  SELECT format('the view %I.%I is not security_invoker', n.nspname, c.relname)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY($1) AND c.relkind IN ('v', 'm')
      AND NOT coalesce(c.reloptions && ARRAY['security_invoker=true', 'security_invoker=on', 'security_invoker=1'], false)
  UNION ALL
  SELECT format('the function %I.%I runs as its owner without a fixed search_path', n.nspname, f.proname)
    FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
    WHERE n.nspname = ANY($1) AND f.prosecdef
      AND NOT EXISTS (SELECT FROM unnest(f.proconfig) AS c (setting) WHERE c.setting LIKE 'search\\_path=%')
  UNION ALL
  SELECT format('everyone may execute %I.%I', n.nspname, f.proname)
    FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
    WHERE n.nspname = ANY($1) AND (f.proacl IS NULL OR EXISTS (SELECT FROM pg_catalog.aclexplode(f.proacl) a WHERE a.grantee = 0))`;

/**
 * Refuses a database in which row-level security would not hold for this login. To be called at every start, before anything
 * is served, on the connection that will serve.
 * @throws UsageError `invalid_option` that lists every fault
 */
export async function assertSafeRoles(client: SqlClient, options: AssertSafeRolesOptions = {}): Promise<void> {
  const { schemas = ['keyguard'], embedded = false } = options;
  const faults = await guarded(SEAM, async () => {
    const found: string[] = [];
    const ask = async (text: string, params: readonly unknown[]): Promise<void> => {
      const { rows } = await client.query<{ fault: string }>(text, params);
      found.push(...rows.map(({ fault }) => fault));
    };
    await ask(ROLE_FAULTS, [ALL]);
    if (!embedded) await ask(LOGIN_FAULTS, [schemas, TAKEN]);
    await ask(TABLE_FAULTS, [schemas]);
    return found;
  });
  if (faults.length > 0) {
    throw new UsageError('invalid_option', `The database does not keep users apart:\n- ${faults.join('\n- ')}`);
  }
}
