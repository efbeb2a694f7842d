-- The few keys that the root wraps: key encryption keys, audit MAC keys, the checkpoint signing key and their like. Only kg_jobs
-- reads them: no query made for a user, and none made for a device, can reach even the wrapped bytes.

CREATE TABLE keyguard.kek_keys (
  id text PRIMARY KEY CHECK (id <> ''),
  purpose text NOT NULL CHECK (purpose <> ''),
  state text NOT NULL CHECK (state IN ('pre-active', 'primary', 'decrypt-only', 'disabled', 'destroyed')),
  wrapped bytea NOT NULL,
  -- Which root wrapped it.
  root_id text NOT NULL,
  created_at_ms bigint NOT NULL
);
-- One primary key per purpose: what makes two racing first starts end with the same keys.
CREATE UNIQUE INDEX kek_keys_one_primary ON keyguard.kek_keys (purpose) WHERE state = 'primary';
ALTER TABLE keyguard.kek_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.kek_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY kek_keys_jobs_read ON keyguard.kek_keys FOR SELECT TO kg_jobs USING (true);
CREATE POLICY kek_keys_jobs_add ON keyguard.kek_keys FOR INSERT TO kg_jobs WITH CHECK (true);
GRANT SELECT, INSERT ON keyguard.kek_keys TO kg_jobs;
