-- The security policies that administrators change while the service runs. Append-only: each change is a row of its own with all
-- that was set until then, and the row of the highest version is in force. What no row sets is as the environment says.

CREATE TABLE keyguard.settings (
  version bigint PRIMARY KEY CHECK (version > 0),
  -- RFC 8785 JSON, as text: its MAC is over these bytes.
  document text NOT NULL,
  changed_by text NOT NULL CHECK (changed_by <> ''),
  changed_at_ms bigint NOT NULL,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32)
);
ALTER TABLE keyguard.settings ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.settings FORCE ROW LEVEL SECURITY;

CREATE POLICY settings_app_read ON keyguard.settings FOR SELECT TO kg_app USING ((SELECT keyguard.is_administrator()));
CREATE POLICY settings_app_add ON keyguard.settings FOR INSERT TO kg_app
  WITH CHECK ((SELECT keyguard.is_administrator()) AND changed_by = keyguard.acting_user_id());
-- Every process follows what is in force, for nobody in particular.
CREATE POLICY settings_jobs_read ON keyguard.settings FOR SELECT TO kg_jobs USING (true);
GRANT SELECT, INSERT ON keyguard.settings TO kg_app;
GRANT SELECT ON keyguard.settings TO kg_jobs;

-- Versions have no gaps, so that a row that is missing is noticed, and nobody can take the last one there is.
CREATE FUNCTION keyguard.guard_settings_version() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NEW.version > (SELECT coalesce(max(s.version), 0) + 1 FROM keyguard.settings s) THEN
    RAISE EXCEPTION 'versions of the settings follow each other' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER settings_guard BEFORE INSERT ON keyguard.settings
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_settings_version();
