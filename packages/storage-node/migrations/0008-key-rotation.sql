-- A device replaces its key, with a code that its owner or an administrator made.

-- Which key a key replaced, of the same device; no key has two successors. It grants nothing, so it is outside the MAC: it only tells
-- a repeat of a rotation from another one. (That a device has at most one current key is device_keys_one_current, since 0002.)
ALTER TABLE keyguard.device_keys
  ADD COLUMN replaces text COLLATE "C" UNIQUE,
  ADD CONSTRAINT device_keys_whole UNIQUE (key_id, device_id),
  ADD CONSTRAINT device_keys_replaces_own FOREIGN KEY (replaces, device_id) REFERENCES keyguard.device_keys (key_id, device_id),
  ADD CONSTRAINT device_keys_replaces_another CHECK (replaces <> key_id);

CREATE POLICY device_keys_verifier_rotate ON keyguard.device_keys FOR UPDATE TO kg_verifier
  USING (state = 'current') WITH CHECK (state = 'retiring');
GRANT UPDATE (state, retire_at_ms, mac_key_id, mac) ON keyguard.device_keys TO kg_verifier;

-- Holds for every role: what a key is never changes, and it only ever comes nearer to its end.
CREATE FUNCTION keyguard.guard_device_key() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF (NEW.key_id, NEW.device_id, NEW.public_jwk, NEW.created_at_ms, NEW.replaces)
    IS DISTINCT FROM (OLD.key_id, OLD.device_id, OLD.public_jwk, OLD.created_at_ms, OLD.replaces) THEN
    RAISE EXCEPTION 'a key stays what it is' USING ERRCODE = 'check_violation';
  END IF;
  IF (OLD.state, NEW.state) NOT IN (('current', 'current'), ('current', 'retiring'), ('current', 'retired'),
      ('retiring', 'retiring'), ('retiring', 'retired'), ('retired', 'retired'))
    OR (OLD.state = 'retiring' AND NEW.retire_at_ms > OLD.retire_at_ms) THEN
    RAISE EXCEPTION 'a key that was replaced does not come back' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER device_keys_guard BEFORE UPDATE ON keyguard.device_keys
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_device_key();

-- Only the SHA-256 of a code is kept. The MAC covers what the code grants; used_at_ms and revoked_at_ms change and are outside it.
CREATE TABLE keyguard.rotation_codes (
  id text PRIMARY KEY CHECK (id <> ''),
  code_hash text COLLATE "C" NOT NULL UNIQUE CHECK (code_hash ~ '^[A-Za-z0-9_-]{43}$'),
  device_id text NOT NULL REFERENCES keyguard.devices,
  created_by text NOT NULL CHECK (created_by <> ''),
  created_at_ms bigint NOT NULL,
  expires_at_ms bigint NOT NULL,
  used_at_ms bigint,
  -- When another code of the device took its place.
  revoked_at_ms bigint,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32)
);
CREATE UNIQUE INDEX rotation_codes_one_open ON keyguard.rotation_codes (device_id)
  WHERE used_at_ms IS NULL AND revoked_at_ms IS NULL;
ALTER TABLE keyguard.rotation_codes ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.rotation_codes FORCE ROW LEVEL SECURITY;

-- A code is visible to whom its device is: the inner query is under the policies of devices, which ask nothing of this table.
CREATE POLICY rotation_codes_app_read ON keyguard.rotation_codes FOR SELECT TO kg_app
  USING (EXISTS (SELECT FROM keyguard.devices d WHERE d.device_id = rotation_codes.device_id));
CREATE POLICY rotation_codes_app_create ON keyguard.rotation_codes FOR INSERT TO kg_app
  WITH CHECK (created_by = keyguard.acting_user_id()
    AND EXISTS (SELECT FROM keyguard.devices d WHERE d.device_id = rotation_codes.device_id));
CREATE POLICY rotation_codes_app_revoke ON keyguard.rotation_codes FOR UPDATE TO kg_app
  USING (EXISTS (SELECT FROM keyguard.devices d WHERE d.device_id = rotation_codes.device_id))
  WITH CHECK (revoked_at_ms IS NOT NULL);
CREATE POLICY rotation_codes_verifier_read ON keyguard.rotation_codes FOR SELECT TO kg_verifier USING (true);
CREATE POLICY rotation_codes_verifier_use ON keyguard.rotation_codes FOR UPDATE TO kg_verifier
  USING (used_at_ms IS NULL AND revoked_at_ms IS NULL) WITH CHECK (used_at_ms IS NOT NULL);

GRANT SELECT (id, device_id, created_by, created_at_ms, expires_at_ms, used_at_ms, revoked_at_ms) ON keyguard.rotation_codes TO kg_app;
GRANT INSERT (id, code_hash, device_id, created_by, created_at_ms, expires_at_ms, mac_key_id, mac) ON keyguard.rotation_codes TO kg_app;
GRANT UPDATE (revoked_at_ms) ON keyguard.rotation_codes TO kg_app;
GRANT SELECT ON keyguard.rotation_codes TO kg_verifier;
GRANT UPDATE (used_at_ms) ON keyguard.rotation_codes TO kg_verifier;

-- A use is never given back, and a revocation never taken back.
CREATE FUNCTION keyguard.guard_rotation_code() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF (OLD.used_at_ms IS NOT NULL AND NEW.used_at_ms IS DISTINCT FROM OLD.used_at_ms)
    OR (OLD.revoked_at_ms IS NOT NULL AND NEW.revoked_at_ms IS DISTINCT FROM OLD.revoked_at_ms) THEN
    RAISE EXCEPTION 'a rotation code only ever grants less' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER rotation_codes_guard BEFORE UPDATE ON keyguard.rotation_codes
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_rotation_code();
