/**
 * The one question about everything in our schemas that protects rows, a row for each object: what it is called, and what it is. The
 * words are those in which PostgreSQL writes its own objects, with all names in full. Values of rows are in none of it.
 *
 * Indexes for speed alone are left out, and how a table is stored: these are the operator's. So are the owner's rights to what it owns.
 */
export const PROTECTION = `
WITH schemas AS (
  SELECT n.oid, n.nspname, n.nspowner, n.nspacl FROM pg_namespace n WHERE n.nspname = ANY($1)
), relations AS (
  SELECT c.*, format('%I.%I', n.nspname, c.relname) AS name,
      CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
        WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' WHEN 'c' THEN 'composite type' ELSE c.relkind::text END AS kind
    FROM pg_class c JOIN schemas n ON n.oid = c.relnamespace WHERE c.relkind NOT IN ('i', 'I', 't')
), functions AS (
  SELECT f.*, format('%I.%I(%s)', n.nspname, f.proname, pg_get_function_identity_arguments(f.oid)) AS name
    FROM pg_proc f JOIN schemas n ON n.oid = f.pronamespace
), rights AS (
  SELECT 'schema ' || quote_ident(n.nspname) AS name, n.nspowner AS owner, a.grantee, a.privilege_type, a.is_grantable, NULL::text AS of_column
    FROM schemas n CROSS JOIN LATERAL aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
  UNION ALL
  SELECT r.kind || ' ' || r.name, r.relowner, a.grantee, a.privilege_type, a.is_grantable, NULL
    FROM relations r CROSS JOIN LATERAL aclexplode(coalesce(r.relacl, acldefault(CASE r.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", r.relowner))) a
    WHERE r.relkind <> 'c'
  UNION ALL
  SELECT r.kind || ' ' || r.name, r.relowner, a.grantee, a.privilege_type, a.is_grantable, quote_ident(c.attname)
    FROM relations r JOIN pg_attribute c ON c.attrelid = r.oid CROSS JOIN LATERAL aclexplode(c.attacl) a WHERE NOT c.attisdropped
  UNION ALL
  SELECT 'function ' || f.name, f.proowner, a.grantee, a.privilege_type, a.is_grantable, NULL
    FROM functions f CROSS JOIN LATERAL aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a
), grants AS (
  SELECT g.name, g.grantee, string_agg(g.granted, ', ' ORDER BY g.granted) AS value FROM (
    SELECT r.name, r.grantee, r.privilege_type || coalesce(' (' || string_agg(r.of_column, ', ' ORDER BY r.of_column) || ')', '')
        || CASE WHEN r.is_grantable THEN ' with grant option' ELSE '' END AS granted
      FROM rights r WHERE r.grantee <> r.owner GROUP BY r.name, r.grantee, r.privilege_type, r.is_grantable, r.of_column IS NULL) g
    GROUP BY g.name, g.grantee
), roles AS (
  SELECT r.oid, r.rolname, r.rolname = ANY(ARRAY['kg_owner', 'kg_app', 'kg_verifier', 'kg_auth', 'kg_jobs']) AS is_ours FROM pg_roles r
)
SELECT 'setting ' || s.name AS name, s.setting AS value, NULL::text AS login
  FROM pg_settings s WHERE s.name IN ('session_replication_role', 'row_security')
UNION ALL
SELECT 'schema ' || quote_ident(n.nspname), format('owner %I', pg_get_userbyid(n.nspowner)), NULL FROM schemas n
UNION ALL
SELECT r.kind || ' ' || r.name, format('owner %I', pg_get_userbyid(r.relowner))
    || CASE WHEN r.relkind IN ('r', 'p') THEN ', row-level security ' || CASE WHEN r.relrowsecurity THEN 'enabled' ELSE 'disabled' END
      || CASE WHEN r.relforcerowsecurity THEN ' and forced' ELSE '' END ELSE '' END
    || CASE WHEN r.relkind IN ('v', 'm') THEN coalesce(', options ' || array_to_string(r.reloptions, ' '), '') || ', ' || pg_get_viewdef(r.oid) ELSE '' END, NULL
  FROM relations r
UNION ALL
SELECT format('column %s.%I', r.name, c.attname), format_type(c.atttypid, c.atttypmod) || CASE WHEN c.attnotnull THEN ' not null' ELSE '' END
    || coalesce((SELECT format(' collate %I', o.collname) FROM pg_collation o JOIN pg_type t ON t.oid = c.atttypid WHERE o.oid = c.attcollation AND o.oid <> t.typcollation), '')
    || CASE WHEN c.attidentity <> '' THEN ' identity ' || c.attidentity::text ELSE '' END
    || CASE WHEN c.attgenerated <> '' THEN ' generated' ELSE '' END || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), ''), NULL
  FROM relations r JOIN pg_attribute c ON c.attrelid = r.oid LEFT JOIN pg_attrdef d ON d.adrelid = c.attrelid AND d.adnum = c.attnum
  WHERE c.attnum > 0 AND NOT c.attisdropped
UNION ALL
SELECT format('policy %I on %s', p.polname, r.name), CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END || ' for '
    || CASE p.polcmd WHEN 'r' THEN 'select' WHEN 'a' THEN 'insert' WHEN 'w' THEN 'update' WHEN 'd' THEN 'delete' ELSE 'all' END || ' to '
    || (SELECT string_agg(CASE WHEN o.role = 0 THEN 'everyone' ELSE pg_get_userbyid(o.role)::text END, ', ' ORDER BY pg_get_userbyid(o.role)) FROM unnest(p.polroles) AS o (role))
    || coalesce(' using ' || pg_get_expr(p.polqual, p.polrelid), '')
    || coalesce(' with check ' || pg_get_expr(p.polwithcheck, p.polrelid), ''), NULL
  FROM relations r JOIN pg_policy p ON p.polrelid = r.oid
UNION ALL
SELECT format('trigger %I on %s', t.tgname, r.name),
    CASE t.tgenabled WHEN 'O' THEN 'enabled: ' WHEN 'D' THEN 'disabled: ' WHEN 'R' THEN 'for replicas only: ' ELSE 'always: ' END || pg_get_triggerdef(t.oid), NULL
  FROM relations r JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
UNION ALL
SELECT format('foreign keys on %s', r.name), 'not enforced', NULL
  FROM relations r WHERE EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = r.oid AND t.tgisinternal AND t.tgenabled <> 'O')
UNION ALL
SELECT format('rule %I on %s', w.rulename, r.name), pg_get_ruledef(w.oid), NULL
  FROM relations r JOIN pg_rewrite w ON w.ev_class = r.oid WHERE r.relkind NOT IN ('v', 'm')
UNION ALL
SELECT format('parent of %s', r.name), i.inhparent::regclass::text, NULL FROM relations r JOIN pg_inherits i ON i.inhrelid = r.oid
UNION ALL
SELECT format('constraint %I on %s', k.conname, r.name), pg_get_constraintdef(k.oid), NULL
  FROM relations r JOIN pg_constraint k ON k.conrelid = r.oid
  -- Version 18 has a row here for each NOT NULL, which is said of the column.
  WHERE k.contype <> 'n'
UNION ALL
SELECT format('index %I on %s', c.relname, r.name), pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid AND i.indisready THEN '' ELSE ' not valid' END, NULL
  FROM relations r JOIN pg_index i ON i.indrelid = r.oid JOIN pg_class c ON c.oid = i.indexrelid
  WHERE i.indisunique OR i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
UNION ALL
SELECT 'function ' || f.name, format('owner %I, (%s)', pg_get_userbyid(f.proowner), pg_get_function_arguments(f.oid)) || coalesce(' returns ' || pg_get_function_result(f.oid), '')
    || ', ' || l.lanname || CASE f.provolatile WHEN 'i' THEN ' immutable' WHEN 's' THEN ' stable' ELSE ' volatile' END
    || CASE WHEN f.prosecdef THEN ' security definer' ELSE '' END || CASE WHEN f.proisstrict THEN ' strict' ELSE '' END
    || CASE WHEN f.proleakproof THEN ' leakproof' ELSE '' END || CASE f.prokind WHEN 'f' THEN '' ELSE ' kind ' || f.prokind::text END || ' parallel ' || f.proparallel::text
    || coalesce(' set ' || array_to_string(f.proconfig, '; '), '')
    || ', sha256 ' || encode(sha256(convert_to(f.prosrc || coalesce(pg_get_function_sqlbody(f.oid), ''), 'UTF8')), 'hex'), NULL
  FROM functions f JOIN pg_language l ON l.oid = f.prolang
UNION ALL
SELECT format('type %I.%I', n.nspname, t.typname), 'kind ' || t.typtype::text, NULL
  FROM pg_type t JOIN schemas n ON n.oid = t.typnamespace WHERE t.typtype NOT IN ('c', 'b')
UNION ALL
SELECT format('grant on %s to ', g.name) || CASE WHEN g.grantee = 0 THEN 'everyone' WHEN o.is_ours THEN o.rolname ELSE '' END, g.value,
    CASE WHEN g.grantee = 0 OR o.is_ours THEN NULL ELSE coalesce(o.rolname, g.grantee::text) END
  FROM grants g LEFT JOIN roles o ON o.oid = g.grantee`;
