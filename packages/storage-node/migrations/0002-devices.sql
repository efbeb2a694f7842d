-- Devices and their keys. No role may delete either: a key id belongs to one device for ever, also after revocation.

CREATE TABLE keyguard.devices (
  device_id text PRIMARY KEY CHECK (device_id <> ''),
  owner_id text CHECK (owner_id <> ''),
  project_id text CHECK (project_id <> ''),
  status text NOT NULL CHECK (status IN ('pending', 'active', 'suspended', 'revoked')),
  label text,
  fingerprint text,
  rate_limit_per_min integer CHECK (rate_limit_per_min > 0),
  ip_allowlist text[],
  allowed_models text[],
  created_at_ms bigint NOT NULL,
  -- Until when a device that enrolled without a code may be approved.
  pending_until_ms bigint,
  enrollment_code_id text,
  approved_by text,
  approved_at_ms bigint,
  status_changed_by text,
  -- By the clock of the database, so that all replicas can ask what changed since.
  changed_at_ms bigint NOT NULL DEFAULT (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::bigint,
  last_seen_at_ms bigint,
  last_ip text,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32),
  CHECK (status IN ('pending', 'revoked') OR (owner_id IS NOT NULL AND project_id IS NOT NULL))
);
CREATE INDEX devices_by_creation ON keyguard.devices (created_at_ms, device_id);
CREATE INDEX devices_by_owner ON keyguard.devices (owner_id, created_at_ms, device_id);
CREATE INDEX devices_by_change ON keyguard.devices (changed_at_ms);
CREATE INDEX devices_awaiting ON keyguard.devices (pending_until_ms) WHERE status = 'pending' AND owner_id IS NULL;

CREATE TABLE keyguard.device_keys (
  key_id text COLLATE "C" PRIMARY KEY,
  device_id text NOT NULL REFERENCES keyguard.devices,
  -- The text of RFC 7638: its SHA-256 is the key id, so a key cannot stand under another's id.
  public_jwk text NOT NULL,
  state text NOT NULL CHECK (state IN ('current', 'retiring', 'retired')),
  retire_at_ms bigint,
  created_at_ms bigint NOT NULL,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32),
  CHECK ((state = 'retiring') = (retire_at_ms IS NOT NULL)),
  CONSTRAINT device_keys_thumbprint CHECK (
    key_id = pg_catalog.rtrim(pg_catalog.translate(pg_catalog.encode(
      pg_catalog.sha256(pg_catalog.convert_to(public_jwk, 'UTF8')), 'base64'), '+/', '-_'), '='))
);
CREATE INDEX device_keys_by_device ON keyguard.device_keys (device_id);
CREATE UNIQUE INDEX device_keys_one_current ON keyguard.device_keys (device_id) WHERE state = 'current';

ALTER TABLE keyguard.devices ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.devices FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.device_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.device_keys FORCE ROW LEVEL SECURITY;

CREATE POLICY devices_app_read ON keyguard.devices FOR SELECT TO kg_app
  USING (owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()));
CREATE POLICY devices_app_change ON keyguard.devices FOR UPDATE TO kg_app
  USING (owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()))
  WITH CHECK (owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()));
CREATE POLICY devices_verifier_read ON keyguard.devices FOR SELECT TO kg_verifier USING (true);
CREATE POLICY devices_verifier_enroll ON keyguard.devices FOR INSERT TO kg_verifier
  WITH CHECK (status IN ('pending', 'active') AND approved_by IS NULL);
CREATE POLICY devices_verifier_touch ON keyguard.devices FOR UPDATE TO kg_verifier USING (true) WITH CHECK (true);

GRANT SELECT ON keyguard.devices TO kg_app, kg_verifier;
GRANT UPDATE (owner_id, project_id, status, label, rate_limit_per_min, ip_allowlist, allowed_models, pending_until_ms,
  approved_by, approved_at_ms, mac_key_id, mac) ON keyguard.devices TO kg_app;
GRANT INSERT (device_id, owner_id, project_id, status, label, fingerprint, created_at_ms, pending_until_ms,
  enrollment_code_id, mac_key_id, mac) ON keyguard.devices TO kg_verifier;
GRANT UPDATE (last_seen_at_ms, last_ip) ON keyguard.devices TO kg_verifier;

-- A key is visible to whom its device is: the inner query is under the policies of devices, which ask nothing of this table.
CREATE POLICY device_keys_app_read ON keyguard.device_keys FOR SELECT TO kg_app
  USING (EXISTS (SELECT FROM keyguard.devices d WHERE d.device_id = device_keys.device_id));
CREATE POLICY device_keys_verifier_read ON keyguard.device_keys FOR SELECT TO kg_verifier USING (true);
CREATE POLICY device_keys_verifier_enroll ON keyguard.device_keys FOR INSERT TO kg_verifier WITH CHECK (state = 'current');
GRANT SELECT ON keyguard.device_keys TO kg_app;
GRANT SELECT, INSERT ON keyguard.device_keys TO kg_verifier;

-- What a policy cannot say, because it sees one state of a row only: which moves are legal, and whose they are. Holds for every
-- role, so that no fault of a program brings a revoked device back or gives one to somebody else.
CREATE FUNCTION keyguard.guard_device() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  administers boolean := true;
BEGIN
  IF (OLD.owner_id IS NOT NULL AND NEW.owner_id IS DISTINCT FROM OLD.owner_id)
    OR (OLD.project_id IS NOT NULL AND NEW.project_id IS DISTINCT FROM OLD.project_id) THEN
    RAISE EXCEPTION 'a device never changes its owner or project' USING ERRCODE = 'check_violation';
  END IF;
  IF current_user = 'kg_app' THEN
    administers := keyguard.is_administrator();
    -- Limits bind the owner, so the owner does not set them.
    IF NOT administers AND (NEW.rate_limit_per_min, NEW.ip_allowlist, NEW.allowed_models)
      IS DISTINCT FROM (OLD.rate_limit_per_min, OLD.ip_allowlist, OLD.allowed_models) THEN
      RAISE EXCEPTION 'only an administrator sets the limits of a device' USING ERRCODE = 'insufficient_privilege';
    END IF;
  END IF;
  IF NEW.status <> OLD.status THEN
    IF (OLD.status, NEW.status) NOT IN (('pending', 'active'), ('active', 'suspended'), ('suspended', 'active'),
      ('pending', 'revoked'), ('active', 'revoked'), ('suspended', 'revoked')) THEN
      RAISE EXCEPTION 'a device does not move that way' USING ERRCODE = 'check_violation';
    END IF;
    IF NOT administers AND (OLD.status = 'pending' AND NEW.status = 'active'
      OR OLD.status = 'suspended' AND OLD.status_changed_by IS DISTINCT FROM keyguard.acting_user_id()
        AND NEW.status = 'active') THEN
      RAISE EXCEPTION 'only an administrator approves, or resumes what another suspended' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF current_user = 'kg_app' THEN
      NEW.status_changed_by := keyguard.acting_user_id();
    END IF;
  END IF;
  NEW.changed_at_ms := date_part('epoch', clock_timestamp()) * 1000;
  RETURN NEW;
END
$$;
-- Not for last_seen_at_ms and last_ip: they grant nothing, and are written often.
CREATE TRIGGER devices_guard BEFORE UPDATE OF device_id, owner_id, project_id, status, label, rate_limit_per_min, ip_allowlist,
  allowed_models, pending_until_ms, approved_by, approved_at_ms, mac_key_id, mac ON keyguard.devices
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_device();

-- The verifier's look-up in one statement, hence in one round trip and without a transaction around it. The function is not a
-- way around anything: it takes the role kg_verifier for its own length, which fails for a login that may not take it. (The role
-- is set afterwards, because PostgreSQL checks a new function's body as the role that it takes.)
CREATE FUNCTION keyguard.find_device(wanted_key_id text)
  RETURNS TABLE (
    device_id text, owner_id text, project_id text, status text, label text, rate_limit_per_min integer, ip_allowlist text[],
    allowed_models text[], pending_until_ms bigint, device_mac_key_id text, device_mac bytea,
    key_id text, public_jwk text, state text, retire_at_ms bigint, key_mac_key_id text, key_mac bytea)
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
    SELECT d.device_id, d.owner_id, d.project_id, d.status, d.label, d.rate_limit_per_min, d.ip_allowlist,
      d.allowed_models, d.pending_until_ms, d.mac_key_id, d.mac,
      k.key_id::text, k.public_jwk, k.state, k.retire_at_ms, k.mac_key_id, k.mac
    FROM keyguard.device_keys k JOIN keyguard.devices d ON d.device_id = k.device_id
    WHERE k.key_id = wanted_key_id;
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.find_device(text) TO kg_verifier;
ALTER FUNCTION keyguard.find_device(text) SET role = kg_verifier;
