-- Which creations were asked for under an Idempotency-Key, and what was answered. Of a key only a keyed hash is kept, of a request
-- only a keyed fingerprint, and the answer, which may show a one-time code, is a vault envelope bound to its claim.
--
-- A claim is held by one request at a time: whoever carries it out says so in the transaction of the creation itself, under the
-- row's lock, and only as long as the claim is still theirs.

CREATE TABLE keyguard.idempotency_keys (
  id text PRIMARY KEY CHECK (id <> ''),
  -- For whom the database acts: a person, or a service account.
  user_id text NOT NULL CHECK (user_id <> ''),
  operation text NOT NULL CHECK (operation <> ''),
  key_hash text COLLATE "C" NOT NULL CHECK (key_hash ~ '^[A-Za-z0-9_-]{43}$'),
  fingerprint text COLLATE "C" NOT NULL CHECK (fingerprint ~ '^[A-Za-z0-9_-]{43}$'),
  -- Of the request that holds it: another one that takes over has another.
  claim_id text NOT NULL UNIQUE CHECK (claim_id <> ''),
  state text NOT NULL CHECK (state IN ('in_flight', 'carried_out', 'answered')),
  lease_expires_at_ms bigint NOT NULL,
  expires_at_ms bigint NOT NULL,
  ciphertext bytea,
  wrapped_dek bytea,
  kek_id text,
  UNIQUE (user_id, operation, key_hash),
  CHECK ((state = 'answered') = (ciphertext IS NOT NULL)),
  CHECK ((ciphertext IS NULL) = (wrapped_dek IS NULL) AND (ciphertext IS NULL) = (kek_id IS NULL))
);
CREATE INDEX idempotency_keys_by_end ON keyguard.idempotency_keys (expires_at_ms);

ALTER TABLE keyguard.idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.idempotency_keys FORCE ROW LEVEL SECURITY;

CREATE POLICY idempotency_keys_app_read ON keyguard.idempotency_keys FOR SELECT TO kg_app
  USING (user_id = keyguard.acting_user_id());
CREATE POLICY idempotency_keys_app_claim ON keyguard.idempotency_keys FOR INSERT TO kg_app
  WITH CHECK (user_id = keyguard.acting_user_id() AND state = 'in_flight');
CREATE POLICY idempotency_keys_app_change ON keyguard.idempotency_keys FOR UPDATE TO kg_app
  USING (user_id = keyguard.acting_user_id()) WITH CHECK (user_id = keyguard.acting_user_id());
-- What was carried out is forgotten by its age alone.
CREATE POLICY idempotency_keys_app_release ON keyguard.idempotency_keys FOR DELETE TO kg_app
  USING (user_id = keyguard.acting_user_id() AND state = 'in_flight');
CREATE POLICY idempotency_keys_jobs_read ON keyguard.idempotency_keys FOR SELECT TO kg_jobs USING (true);
CREATE POLICY idempotency_keys_jobs_change ON keyguard.idempotency_keys FOR UPDATE TO kg_jobs USING (true) WITH CHECK (true);
CREATE POLICY idempotency_keys_jobs_purge ON keyguard.idempotency_keys FOR DELETE TO kg_jobs USING (true);

GRANT SELECT ON keyguard.idempotency_keys TO kg_app, kg_jobs;
GRANT INSERT (id, user_id, operation, key_hash, fingerprint, claim_id, state, lease_expires_at_ms, expires_at_ms)
  ON keyguard.idempotency_keys TO kg_app;
GRANT UPDATE (fingerprint, claim_id, state, lease_expires_at_ms, expires_at_ms, ciphertext, wrapped_dek, kek_id)
  ON keyguard.idempotency_keys TO kg_app;
GRANT DELETE ON keyguard.idempotency_keys TO kg_app, kg_jobs;
-- Leases of a process that is no more, and data keys that are wrapped anew.
GRANT UPDATE (lease_expires_at_ms, wrapped_dek, kek_id) ON keyguard.idempotency_keys TO kg_jobs;
