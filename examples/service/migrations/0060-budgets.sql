-- Budgets: what a device, or a project, may use in a day or a month. What has been used of one is counted in a window, into which each
-- call is charged before it is sent, with the most that it is expected to use; what it did use replaces that once it is in the audit log.

CREATE TABLE keyguard.usage_budgets (
  subject_type text NOT NULL CHECK (subject_type IN ('device', 'project')),
  subject_id text NOT NULL CHECK (subject_id <> ''),
  -- By the calendar of UTC. NULL: there is no budget any more, and this row says so.
  period text CHECK (period IN ('day', 'month')),
  max_requests bigint CHECK (max_requests > 0),
  max_tokens bigint CHECK (max_tokens > 0),
  -- Millionths of a US dollar.
  max_cost_micros bigint CHECK (max_cost_micros > 0),
  updated_by text NOT NULL CHECK (updated_by <> ''),
  updated_at_ms bigint NOT NULL,
  -- Grows with every change: what If-Match compares.
  revision integer NOT NULL CHECK (revision > 0),
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32),
  PRIMARY KEY (subject_type, subject_id),
  CHECK ((period IS NULL) = (coalesce(max_requests, max_tokens, max_cost_micros) IS NULL))
);

CREATE TABLE keyguard.usage_windows (
  subject_type text NOT NULL,
  subject_id text NOT NULL,
  period text NOT NULL CHECK (period IN ('day', 'month')),
  began_ms bigint NOT NULL,
  -- What was used, running calls included with what they are expected to use.
  requests bigint NOT NULL CHECK (requests >= 0),
  tokens bigint NOT NULL CHECK (tokens >= 0),
  cost_micros bigint NOT NULL CHECK (cost_micros >= 0),
  -- Of these, the expectations.
  expected_tokens bigint NOT NULL CHECK (expected_tokens >= 0),
  expected_cost_micros bigint NOT NULL CHECK (expected_cost_micros >= 0),
  PRIMARY KEY (subject_type, subject_id, period, began_ms)
);

-- One for each call and window that is not settled yet.
CREATE TABLE keyguard.usage_charges (
  call_id text NOT NULL CHECK (call_id <> ''),
  subject_type text NOT NULL,
  subject_id text NOT NULL,
  period text NOT NULL,
  began_ms bigint NOT NULL,
  tokens bigint NOT NULL CHECK (tokens >= 0),
  cost_micros bigint NOT NULL CHECK (cost_micros >= 0),
  charged_at_ms bigint NOT NULL,
  PRIMARY KEY (call_id, subject_type)
);
CREATE INDEX usage_charges_by_time ON keyguard.usage_charges (charged_at_ms);

ALTER TABLE keyguard.usage_budgets ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.usage_budgets FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.usage_windows ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.usage_windows FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.usage_charges ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.usage_charges FORCE ROW LEVEL SECURITY;

-- Whoever sees the device or the project sees its budget; the inner queries are under the policies of those tables, which ask nothing
-- of these. A budget binds owners, so administrators alone set one.
CREATE FUNCTION keyguard.acting_sees_subject(subject_type text, subject_id text) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE acting_sees_subject.subject_type
    WHEN 'device' THEN EXISTS (SELECT FROM keyguard.devices d WHERE d.device_id = acting_sees_subject.subject_id)
    WHEN 'project' THEN EXISTS (SELECT FROM keyguard.api_key_projects p WHERE p.id = acting_sees_subject.subject_id)
    ELSE false
  END;
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.acting_sees_subject(text, text) TO kg_app;

CREATE POLICY usage_budgets_app_read ON keyguard.usage_budgets FOR SELECT TO kg_app USING (keyguard.acting_sees_subject(subject_type, subject_id));
CREATE POLICY usage_budgets_app_add ON keyguard.usage_budgets FOR INSERT TO kg_app
  WITH CHECK ((SELECT keyguard.is_administrator()) AND updated_by = keyguard.acting_user_id() AND keyguard.acting_sees_subject(subject_type, subject_id));
CREATE POLICY usage_budgets_app_change ON keyguard.usage_budgets FOR UPDATE TO kg_app
  USING ((SELECT keyguard.is_administrator())) WITH CHECK (updated_by = keyguard.acting_user_id());
CREATE POLICY usage_budgets_verifier_read ON keyguard.usage_budgets FOR SELECT TO kg_verifier USING (true);
GRANT SELECT ON keyguard.usage_budgets TO kg_app, kg_verifier;
GRANT INSERT ON keyguard.usage_budgets TO kg_app;
GRANT UPDATE (period, max_requests, max_tokens, max_cost_micros, updated_by, updated_at_ms, revision, mac_key_id, mac) ON keyguard.usage_budgets TO kg_app;

CREATE POLICY usage_windows_app_read ON keyguard.usage_windows FOR SELECT TO kg_app USING (keyguard.acting_sees_subject(subject_type, subject_id));
CREATE POLICY usage_windows_verifier ON keyguard.usage_windows FOR ALL TO kg_verifier USING (true) WITH CHECK (true);
CREATE POLICY usage_windows_jobs ON keyguard.usage_windows FOR ALL TO kg_jobs USING (true) WITH CHECK (true);
GRANT SELECT ON keyguard.usage_windows TO kg_app, kg_verifier, kg_jobs;
GRANT INSERT ON keyguard.usage_windows TO kg_verifier;
GRANT UPDATE (requests, tokens, cost_micros, expected_tokens, expected_cost_micros) ON keyguard.usage_windows TO kg_verifier, kg_jobs;
GRANT DELETE ON keyguard.usage_windows TO kg_jobs;

CREATE POLICY usage_charges_verifier ON keyguard.usage_charges FOR ALL TO kg_verifier USING (true) WITH CHECK (true);
CREATE POLICY usage_charges_jobs ON keyguard.usage_charges FOR ALL TO kg_jobs USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE ON keyguard.usage_charges TO kg_verifier;
GRANT SELECT, DELETE ON keyguard.usage_charges TO kg_jobs;

-- Each change is the next one, and a budget stays that of its subject.
CREATE FUNCTION keyguard.guard_usage_budget() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF (NEW.subject_type, NEW.subject_id) IS DISTINCT FROM (OLD.subject_type, OLD.subject_id) OR NEW.revision <> OLD.revision + 1 THEN
    RAISE EXCEPTION 'every change of a budget has a revision of its own' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER usage_budgets_guard BEFORE UPDATE ON keyguard.usage_budgets FOR EACH ROW EXECUTE FUNCTION keyguard.guard_usage_budget();

-- What calls cost, summed up beside what they used.
ALTER TABLE keyguard.key_usage_analytics
  ADD COLUMN cost_micros bigint NOT NULL DEFAULT 0,
  -- Calls of which tokens were reported, for a model that no list of prices had.
  ADD COLUMN unpriced_requests bigint NOT NULL DEFAULT 0;
