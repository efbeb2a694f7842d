-- Projects and the provider keys in them. The value of a key is a vault envelope: kg_app, which acts for people, may write one
-- and can never read it back; kg_verifier, which acts for a device that was just verified, reads those that are in use.

CREATE TABLE keyguard.api_key_projects (
  id text PRIMARY KEY CHECK (id <> ''),
  -- "system" for the project that every deployment begins with: no person has that id.
  owner_id text NOT NULL CHECK (owner_id <> ''),
  name text NOT NULL,
  environment text NOT NULL DEFAULT 'production',
  created_at_ms bigint NOT NULL,
  archived_at_ms bigint
);

CREATE TABLE keyguard.stored_api_keys (
  id text PRIMARY KEY CHECK (id <> ''),
  project_id text NOT NULL REFERENCES keyguard.api_key_projects,
  owner_id text NOT NULL CHECK (owner_id <> ''),
  provider text NOT NULL CHECK (provider <> ''),
  name text NOT NULL,
  last4 text NOT NULL CHECK (pg_catalog.length(last4) <= 4),
  -- "environment" for what the operator set as an environment variable.
  source text NOT NULL CHECK (source IN ('api', 'environment')),
  ciphertext bytea NOT NULL,
  wrapped_dek bytea NOT NULL,
  kek_id text NOT NULL,
  current_version integer NOT NULL DEFAULT 1 CHECK (current_version > 0),
  -- Which key of its provider the devices of the project use.
  is_default boolean NOT NULL,
  is_active boolean NOT NULL DEFAULT true,
  created_at_ms bigint NOT NULL,
  revoked_at_ms bigint,
  CHECK (is_active = (revoked_at_ms IS NULL)),
  CHECK (is_active OR NOT is_default)
);
CREATE UNIQUE INDEX stored_api_keys_one_default ON keyguard.stored_api_keys (project_id, provider) WHERE is_default;
CREATE INDEX stored_api_keys_by_creation ON keyguard.stored_api_keys (created_at_ms, id);

ALTER TABLE keyguard.api_key_projects ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.api_key_projects FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.stored_api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.stored_api_keys FORCE ROW LEVEL SECURITY;

CREATE POLICY api_key_projects_app_read ON keyguard.api_key_projects FOR SELECT TO kg_app
  USING (owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()));
CREATE POLICY api_key_projects_jobs_read ON keyguard.api_key_projects FOR SELECT TO kg_jobs USING (true);
CREATE POLICY api_key_projects_jobs_add ON keyguard.api_key_projects FOR INSERT TO kg_jobs WITH CHECK (owner_id = 'system');
GRANT SELECT ON keyguard.api_key_projects TO kg_app, kg_jobs;
GRANT INSERT (id, owner_id, name, environment, created_at_ms) ON keyguard.api_key_projects TO kg_jobs;

-- The inner query is under the policies of the projects, which ask nothing of this table: whose project it is decides.
CREATE POLICY stored_api_keys_app_read ON keyguard.stored_api_keys FOR SELECT TO kg_app
  USING (EXISTS (SELECT FROM keyguard.api_key_projects p WHERE p.id = stored_api_keys.project_id));
CREATE POLICY stored_api_keys_app_add ON keyguard.stored_api_keys FOR INSERT TO kg_app
  WITH CHECK (owner_id = keyguard.acting_user_id() AND source = 'api'
    AND EXISTS (SELECT FROM keyguard.api_key_projects p WHERE p.id = stored_api_keys.project_id AND p.archived_at_ms IS NULL));
CREATE POLICY stored_api_keys_app_change ON keyguard.stored_api_keys FOR UPDATE TO kg_app
  USING (EXISTS (SELECT FROM keyguard.api_key_projects p WHERE p.id = stored_api_keys.project_id))
  WITH CHECK (true);
CREATE POLICY stored_api_keys_verifier_read ON keyguard.stored_api_keys FOR SELECT TO kg_verifier USING (is_active AND is_default);
CREATE POLICY stored_api_keys_jobs_read ON keyguard.stored_api_keys FOR SELECT TO kg_jobs USING (true);
CREATE POLICY stored_api_keys_jobs_add ON keyguard.stored_api_keys FOR INSERT TO kg_jobs
  WITH CHECK (owner_id = 'system' AND source = 'environment');
CREATE POLICY stored_api_keys_jobs_change ON keyguard.stored_api_keys FOR UPDATE TO kg_jobs USING (true) WITH CHECK (true);

GRANT SELECT (id, project_id, owner_id, provider, name, last4, source, current_version, is_default, is_active, created_at_ms,
  revoked_at_ms) ON keyguard.stored_api_keys TO kg_app;
GRANT SELECT ON keyguard.stored_api_keys TO kg_verifier, kg_jobs;
GRANT INSERT (id, project_id, owner_id, provider, name, last4, source, ciphertext, wrapped_dek, kek_id, current_version,
  is_default, created_at_ms) ON keyguard.stored_api_keys TO kg_app, kg_jobs;
GRANT UPDATE (is_default, is_active, revoked_at_ms) ON keyguard.stored_api_keys TO kg_app, kg_jobs;

-- A revoked key stays revoked, whoever asks.
CREATE FUNCTION keyguard.guard_api_key() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT OLD.is_active AND NEW.is_active THEN
    RAISE EXCEPTION 'a revoked key stays revoked' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER stored_api_keys_guard BEFORE UPDATE ON keyguard.stored_api_keys
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_api_key();
