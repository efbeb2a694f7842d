-- What was used, by the hour: summed up out of the audit log, entry by entry and each once, so that it says what the log says.

CREATE TABLE keyguard.key_usage_analytics (
  -- The beginning of the hour in which the call ended.
  bucket_ms bigint NOT NULL,
  project_id text NOT NULL,
  -- Of the device, when it called.
  owner_id text NOT NULL,
  device_id text NOT NULL,
  -- Empty for the built-in demonstration.
  api_key_id text NOT NULL,
  provider text NOT NULL,
  -- Empty where the provider named none.
  model text NOT NULL,
  requests bigint NOT NULL,
  errors bigint NOT NULL,
  -- As the providers reported them.
  input_tokens bigint NOT NULL,
  output_tokens bigint NOT NULL,
  -- Calls that were answered and of which no tokens were reported; and what they may have been, by their bytes.
  unreported_requests bigint NOT NULL,
  estimated_tokens bigint NOT NULL,
  -- Calls that ended before the answer did.
  partial_requests bigint NOT NULL,
  duration_ms bigint NOT NULL,
  -- Calls by how long they took: see src/usage/projection.ts.
  durations bigint[] NOT NULL,
  PRIMARY KEY (bucket_ms, project_id, device_id, owner_id, api_key_id, provider, model)
);

-- Up to which record of a chain the log was summed up.
CREATE TABLE keyguard.key_usage_progress (
  origin text COLLATE "C" PRIMARY KEY,
  seq bigint NOT NULL
);

ALTER TABLE keyguard.key_usage_analytics ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.key_usage_analytics FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.key_usage_progress ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.key_usage_progress FORCE ROW LEVEL SECURITY;

-- Their own calls; all of them for administrators; and those of a project for who may see its use.
CREATE POLICY key_usage_analytics_app_read ON keyguard.key_usage_analytics FOR SELECT TO kg_app
  USING (owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator())
    OR keyguard.acting_has_permission('usage:read', project_id));
CREATE POLICY key_usage_analytics_jobs ON keyguard.key_usage_analytics FOR ALL TO kg_jobs USING (true) WITH CHECK (true);
CREATE POLICY key_usage_progress_jobs ON keyguard.key_usage_progress FOR ALL TO kg_jobs USING (true) WITH CHECK (true);
GRANT SELECT ON keyguard.key_usage_analytics TO kg_app;
GRANT SELECT, INSERT, UPDATE ON keyguard.key_usage_analytics, keyguard.key_usage_progress TO kg_jobs;

CREATE INDEX secret_audit_logs_ended_calls ON keyguard.secret_audit_logs (origin, seq) WHERE action = 'llm.call_ended';
