-- What must be there before a numbered migration can run: the five roles, the schema and the list of what was applied.
--
-- Runs at every migration, as the login that migrates, and does nothing where everything is there: a login without the right to
-- create roles can migrate once someone who has it has run this. Never recorded, so it only ever creates what is missing.
--
--   kg_owner     owns every table. Nobody acts as it but migrations; FORCE ROW LEVEL SECURITY binds it too.
--   kg_app       acts for a user, named by app.user_id, and sees nothing without one.
--   kg_verifier  runs before any user is known: reads device keys, enrolls, claims nonces, appends to the audit log.
--   kg_auth      holds the people: sign-in, sessions, administrators.
--   kg_jobs      works in the background and at start: purges, reads the audit log, holds the wrapped keys, sees what is migrated.
--
-- None of them can log in. A login is a member of the last four, without inheriting, and takes one role per transaction.

DO $$
DECLARE
  wanted text;
  -- Since version 16 a membership may come without the right to SET ROLE.
  membership CONSTANT text := CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END;
BEGIN
  FOREACH wanted IN ARRAY ARRAY['kg_owner', 'kg_app', 'kg_verifier', 'kg_auth', 'kg_jobs'] LOOP
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted) THEN
      -- Roles belong to the whole cluster: a migration of another database may create the same one at this moment.
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION NOINHERIT', wanted);
      EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
      END;
    END IF;
    -- Who migrates must be able to become kg_owner, and to name the others in a function's SET clause.
    IF NOT pg_catalog.pg_has_role(current_user, wanted, membership) THEN
      BEGIN
        EXECUTE format('GRANT %I TO %I', wanted, current_user);
      EXCEPTION WHEN unique_violation THEN NULL;
      END;
    END IF;
  END LOOP;

  IF pg_catalog.to_regnamespace('keyguard') IS NULL THEN
    CREATE SCHEMA keyguard AUTHORIZATION kg_owner;
  END IF;
END
$$;

SET LOCAL ROLE kg_owner;

DO $$
BEGIN
  IF pg_catalog.to_regclass('keyguard.schema_migrations') IS NULL THEN
    -- Every function is born executable by everyone unless this is said once, for the whole database.
    ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

    GRANT USAGE ON SCHEMA keyguard TO kg_app, kg_verifier, kg_auth, kg_jobs;

    CREATE TABLE keyguard.schema_migrations (
      component text NOT NULL,
      name text NOT NULL,
      checksum text NOT NULL,
      applied_at_ms bigint NOT NULL,
      PRIMARY KEY (component, name)
    );
    ALTER TABLE keyguard.schema_migrations ENABLE ROW LEVEL SECURITY;
    ALTER TABLE keyguard.schema_migrations FORCE ROW LEVEL SECURITY;
    CREATE POLICY schema_migrations_owner_read ON keyguard.schema_migrations FOR SELECT TO kg_owner USING (true);
    CREATE POLICY schema_migrations_owner_add ON keyguard.schema_migrations FOR INSERT TO kg_owner WITH CHECK (true);
    -- Whoever serves without the right to migrate must still be able to tell whether somebody has.
    CREATE POLICY schema_migrations_jobs_read ON keyguard.schema_migrations FOR SELECT TO kg_jobs USING (true);
    GRANT SELECT ON keyguard.schema_migrations TO kg_jobs;
  END IF;
END
$$;
