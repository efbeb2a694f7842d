-- Provider keys with versions. Their values move to where those of secrets are, keyguard.secret_versions; the row of a key says where
-- it is used, which version counts, and until when, under a row MAC. Decision 0028.
--
-- The place that a value is sealed for is "the value of version n of this key", whichever table the bytes lie in: so they move as they
-- are, and each opens as before. A row that was there before bears no MAC; the service gives it one at its next start, as long as
-- the audit log says that nothing was done to the key since it was stored (src/api-keys/importing.ts).

ALTER TABLE keyguard.secret_versions
  -- Of provider keys: the last four characters of the value, which stay when it is destroyed.
  ADD COLUMN last4 text CHECK (pg_catalog.length(last4) <= 4),
  ADD COLUMN retired_at_ms bigint;

-- What is moved belongs to everybody: for a moment no policy stands between the owner of the tables and the rows.
ALTER TABLE keyguard.stored_api_keys NO FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.secret_versions NO FORCE ROW LEVEL SECURITY;
INSERT INTO keyguard.secret_versions (subject_type, subject_id, version, ciphertext, wrapped_dek, kek_id, state, created_by, created_at_ms, last4)
  SELECT 'api_key', id, current_version, ciphertext, wrapped_dek, kek_id, 'active', owner_id, created_at_ms, last4 FROM keyguard.stored_api_keys;

ALTER TABLE keyguard.secret_versions
  ADD CHECK ((subject_type = 'api_key') = (last4 IS NOT NULL)),
  ADD CHECK (subject_type <> 'api_key' OR state = 'destroyed' OR (state = 'retired') = (retired_at_ms IS NOT NULL));

DROP TRIGGER stored_api_keys_sealed ON keyguard.stored_api_keys;
ALTER TABLE keyguard.stored_api_keys
  DROP COLUMN ciphertext,
  DROP COLUMN wrapped_dek,
  DROP COLUMN kek_id,
  -- NULL: where the operator's configuration sends keys of this provider.
  ADD COLUMN base_url text CHECK (base_url <> ''),
  ADD COLUMN deployment text CHECK (deployment <> ''),
  ADD COLUMN api_version text CHECK (api_version <> ''),
  -- NULL: as the settings say. 0: never.
  ADD COLUMN rotate_every_days integer CHECK (rotate_every_days >= 0),
  ADD COLUMN overlap_s integer CHECK (overlap_s >= 0),
  -- When the current version took over.
  ADD COLUMN rotated_at_ms bigint,
  ADD COLUMN expires_at_ms bigint,
  -- Outside the MAC, because nothing depends on it.
  ADD COLUMN last_used_at_ms bigint,
  -- A keyed hash of what the environment said, by which a value that is set again is known when it was rotated or destroyed here.
  ADD COLUMN import_tag text,
  -- Grows with every change of this row: what If-Match compares, and what the audit log says of it.
  ADD COLUMN revision integer NOT NULL DEFAULT 1 CHECK (revision > 0),
  ADD COLUMN mac_key_id text,
  ADD COLUMN mac bytea CHECK (pg_catalog.octet_length(mac) = 32);
UPDATE keyguard.stored_api_keys SET rotated_at_ms = created_at_ms;
ALTER TABLE keyguard.stored_api_keys ALTER COLUMN rotated_at_ms SET NOT NULL;
ALTER TABLE keyguard.stored_api_keys FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.secret_versions FORCE ROW LEVEL SECURITY;

GRANT SELECT (base_url, deployment, api_version, rotate_every_days, overlap_s, rotated_at_ms, expires_at_ms, last_used_at_ms, import_tag,
  revision, mac_key_id, mac) ON keyguard.stored_api_keys TO kg_app;
GRANT INSERT (base_url, deployment, api_version, rotate_every_days, overlap_s, rotated_at_ms, expires_at_ms, import_tag, revision,
  mac_key_id, mac) ON keyguard.stored_api_keys TO kg_app, kg_jobs;
GRANT UPDATE (name, last4, current_version, rotate_every_days, overlap_s, rotated_at_ms, expires_at_ms, revision, mac_key_id, mac)
  ON keyguard.stored_api_keys TO kg_app, kg_jobs;
GRANT UPDATE (last_used_at_ms, import_tag) ON keyguard.stored_api_keys TO kg_jobs;

CREATE OR REPLACE FUNCTION keyguard.guard_api_key() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT OLD.is_active AND NEW.is_active THEN
    RAISE EXCEPTION 'a revoked key stays revoked' USING ERRCODE = 'check_violation';
  END IF;
  -- Its values are sealed for this place, and whoever may rotate a key must not be able to have its value sent elsewhere.
  IF (NEW.id, NEW.project_id, NEW.owner_id, NEW.provider, NEW.source, NEW.base_url, NEW.deployment, NEW.api_version, NEW.created_at_ms)
      IS DISTINCT FROM (OLD.id, OLD.project_id, OLD.owner_id, OLD.provider, OLD.source, OLD.base_url, OLD.deployment, OLD.api_version, OLD.created_at_ms)
      OR (OLD.import_tag IS NOT NULL AND NEW.import_tag IS DISTINCT FROM OLD.import_tag) THEN
    RAISE EXCEPTION 'a key stays what it is' USING ERRCODE = 'check_violation';
  END IF;
  IF NEW.current_version < OLD.current_version THEN
    RAISE EXCEPTION 'versions only go up' USING ERRCODE = 'check_violation';
  END IF;
  IF NEW.revision <> OLD.revision + 1 AND to_jsonb(NEW) - 'last_used_at_ms' IS DISTINCT FROM to_jsonb(OLD) - 'last_used_at_ms' THEN
    RAISE EXCEPTION 'every change has a revision of its own' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;

-- kg_app writes values and reads none of them back: it sees no version of a key at all. Those who serve devices see the version that
-- counts of the keys that are in use; jobs see all, for the rotation of the key encryption key, and move versions on.
CREATE POLICY secret_versions_app_add_of_key ON keyguard.secret_versions FOR INSERT TO kg_app
  WITH CHECK (subject_type = 'api_key' AND created_by = keyguard.acting_user_id() AND state = 'active'
    AND EXISTS (SELECT FROM keyguard.stored_api_keys k WHERE k.id = secret_versions.subject_id AND k.is_active
      AND ((SELECT keyguard.is_administrator()) OR keyguard.acting_owns_project(k.project_id)
        OR keyguard.acting_has_permission('api_keys:write', k.project_id))));
CREATE POLICY secret_versions_jobs_add_of_key ON keyguard.secret_versions FOR INSERT TO kg_jobs
  WITH CHECK (subject_type = 'api_key' AND created_by = 'system' AND state = 'active');
CREATE POLICY secret_versions_jobs_destroy_of_key ON keyguard.secret_versions FOR UPDATE TO kg_jobs
  USING (subject_type = 'api_key' AND state <> 'destroyed') WITH CHECK (subject_type = 'api_key');
CREATE POLICY secret_versions_verifier_read_of_key ON keyguard.secret_versions FOR SELECT TO kg_verifier
  USING (subject_type = 'api_key' AND state = 'active'
    AND EXISTS (SELECT FROM keyguard.stored_api_keys k WHERE k.id = secret_versions.subject_id AND k.current_version = secret_versions.version));
GRANT INSERT (last4, verified_at_ms) ON keyguard.secret_versions TO kg_app;
GRANT INSERT (subject_type, subject_id, version, ciphertext, wrapped_dek, kek_id, state, created_by, reason, created_at_ms, last4, verified_at_ms)
  ON keyguard.secret_versions TO kg_jobs;
GRANT UPDATE (state, ciphertext, overlap_until_ms, retired_at_ms, destroyed_at_ms) ON keyguard.secret_versions TO kg_jobs;

-- A version is written once. Its key may be wrapped anew, by kg_jobs alone; it goes through its states, and never back; and all of it
-- may be destroyed, for ever.
CREATE OR REPLACE FUNCTION keyguard.guard_secret_version() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  life CONSTANT text[] := ARRAY['active', 'overlap', 'retired', 'destroyed'];
BEGIN
  IF OLD.state = 'destroyed' THEN
    RAISE EXCEPTION 'what was destroyed stays destroyed' USING ERRCODE = 'check_violation';
  END IF;
  IF NEW.state <> 'destroyed' AND (NEW.ciphertext IS DISTINCT FROM OLD.ciphertext
      OR (current_user <> 'kg_jobs' AND (NEW.wrapped_dek IS DISTINCT FROM OLD.wrapped_dek OR NEW.kek_id IS DISTINCT FROM OLD.kek_id))) THEN
    RAISE EXCEPTION 'a version is written once' USING ERRCODE = 'check_violation';
  END IF;
  IF array_position(life, NEW.state) < array_position(life, OLD.state) THEN
    RAISE EXCEPTION 'an old value comes back as a new version' USING ERRCODE = 'check_violation';
  END IF;
  IF current_user = 'kg_jobs' AND OLD.subject_type <> 'api_key' AND (NEW.state, NEW.overlap_until_ms, NEW.retired_at_ms, NEW.destroyed_at_ms)
      IS DISTINCT FROM (OLD.state, OLD.overlap_until_ms, OLD.retired_at_ms, OLD.destroyed_at_ms) THEN
    RAISE EXCEPTION 'what becomes of a secret is for those who may change it' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;

-- For the job that retires and destroys.
CREATE INDEX secret_versions_of_keys_to_end ON keyguard.secret_versions (subject_id) WHERE subject_type = 'api_key' AND state IN ('overlap', 'retired');
-- Which entry was the last to say in which state a key is: every opening asks.
CREATE INDEX secret_audit_logs_of_api_keys ON keyguard.secret_audit_logs (resource, seq)
  WHERE action IN ('api_key.create', 'api_key.import', 'api_key.adopt', 'api_key.rotate', 'api_key.restore_version', 'api_key.update',
    'api_key.set_default', 'api_key.displace', 'api_key.revoke', 'api_key.destroy_version');
