-- Codes with which a device enrolls. Only the SHA-256 of a code is kept. The MAC covers what the code grants; uses and
-- revoked_at_ms change and are outside it.

CREATE TABLE keyguard.enrollment_codes (
  id text PRIMARY KEY CHECK (id <> ''),
  code_hash text COLLATE "C" NOT NULL UNIQUE CHECK (code_hash ~ '^[A-Za-z0-9_-]{43}$'),
  created_by text NOT NULL CHECK (created_by <> ''),
  for_user_id text NOT NULL CHECK (for_user_id <> ''),
  project_id text NOT NULL CHECK (project_id <> ''),
  label text,
  max_uses integer NOT NULL CHECK (max_uses > 0),
  uses integer NOT NULL DEFAULT 0 CHECK (uses >= 0 AND uses <= max_uses),
  auto_approve boolean NOT NULL,
  created_at_ms bigint NOT NULL,
  expires_at_ms bigint NOT NULL,
  revoked_at_ms bigint,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32)
);
CREATE INDEX enrollment_codes_by_creation ON keyguard.enrollment_codes (created_at_ms, id);
ALTER TABLE keyguard.enrollment_codes ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.enrollment_codes FORCE ROW LEVEL SECURITY;

CREATE POLICY enrollment_codes_app_read ON keyguard.enrollment_codes FOR SELECT TO kg_app
  USING (created_by = keyguard.acting_user_id() OR for_user_id = keyguard.acting_user_id()
    OR (SELECT keyguard.is_administrator()));
CREATE POLICY enrollment_codes_app_create ON keyguard.enrollment_codes FOR INSERT TO kg_app
  WITH CHECK (created_by = keyguard.acting_user_id()
    AND (for_user_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator())));
CREATE POLICY enrollment_codes_app_revoke ON keyguard.enrollment_codes FOR UPDATE TO kg_app
  USING (created_by = keyguard.acting_user_id() OR for_user_id = keyguard.acting_user_id()
    OR (SELECT keyguard.is_administrator()))
  WITH CHECK (revoked_at_ms IS NOT NULL);
CREATE POLICY enrollment_codes_verifier_read ON keyguard.enrollment_codes FOR SELECT TO kg_verifier USING (true);
CREATE POLICY enrollment_codes_verifier_use ON keyguard.enrollment_codes FOR UPDATE TO kg_verifier
  USING (revoked_at_ms IS NULL) WITH CHECK (true);

GRANT SELECT (id, created_by, for_user_id, project_id, label, max_uses, uses, auto_approve, created_at_ms, expires_at_ms,
  revoked_at_ms) ON keyguard.enrollment_codes TO kg_app;
GRANT INSERT (id, code_hash, created_by, for_user_id, project_id, label, max_uses, auto_approve, created_at_ms, expires_at_ms,
  mac_key_id, mac) ON keyguard.enrollment_codes TO kg_app;
GRANT UPDATE (revoked_at_ms) ON keyguard.enrollment_codes TO kg_app;
GRANT SELECT ON keyguard.enrollment_codes TO kg_verifier;
GRANT UPDATE (uses) ON keyguard.enrollment_codes TO kg_verifier;

-- A use is never given back, and a revocation never taken back.
CREATE FUNCTION keyguard.guard_enrollment_code() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NEW.uses < OLD.uses OR (OLD.revoked_at_ms IS NOT NULL AND NEW.revoked_at_ms IS NULL) THEN
    RAISE EXCEPTION 'an enrollment code only ever grants less' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER enrollment_codes_guard BEFORE UPDATE ON keyguard.enrollment_codes
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_enrollment_code();
