-- The life of key encryption keys: pre-active, primary, decrypt-only, disabled, destroyed, and never back. Decision 0027.
--
-- What must hold whoever is late, killed or doubled: a row that is sealed under a key is there only while that key can be opened.
-- So whoever writes a sealed row locks its key against being disabled until the transaction ends, and whoever disables a key locks
-- it first and then looks for rows.

GRANT UPDATE (state, wrapped, root_id) ON keyguard.kek_keys TO kg_jobs;
CREATE POLICY kek_keys_jobs_move ON keyguard.kek_keys FOR UPDATE TO kg_jobs USING (true) WITH CHECK (true);
-- For the functions below, which run as the owner; it changes nothing.
CREATE POLICY kek_keys_owner_read ON keyguard.kek_keys FOR SELECT TO kg_owner USING (true);
CREATE POLICY kek_keys_owner_lock ON keyguard.kek_keys FOR UPDATE TO kg_owner USING (true) WITH CHECK (false);

CREATE FUNCTION keyguard.guard_key() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  life CONSTANT text[] := ARRAY['pre-active', 'primary', 'decrypt-only', 'disabled', 'destroyed'];
BEGIN
  IF NEW.id <> OLD.id OR NEW.purpose <> OLD.purpose OR NEW.created_at_ms <> OLD.created_at_ms THEN
    RAISE EXCEPTION 'a key stays what it is' USING ERRCODE = 'check_violation';
  END IF;
  IF array_position(life, NEW.state) < array_position(life, OLD.state) THEN
    RAISE EXCEPTION 'a key never goes back' USING ERRCODE = 'check_violation';
  END IF;
  -- Nothing of a destroyed key stays, and no other key loses its bytes.
  IF (octet_length(NEW.wrapped) = 0) <> (NEW.state = 'destroyed') THEN
    RAISE EXCEPTION 'the bytes of a key go with its destruction' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER kek_keys_guard BEFORE UPDATE ON keyguard.kek_keys FOR EACH ROW EXECUTE FUNCTION keyguard.guard_key();

-- The processes that serve. Each says twice a second which keys it holds and under which it seals.
CREATE TABLE keyguard.replicas (
  id text PRIMARY KEY CHECK (id <> ''),
  kek_ids text[] NOT NULL,
  primary_kek_id text NOT NULL,
  -- By the clock of the database.
  seen_at_ms bigint NOT NULL
);

-- How many keys of rows were wrapped under each.
CREATE TABLE keyguard.kek_uses (
  kek_id text PRIMARY KEY REFERENCES keyguard.kek_keys,
  wraps bigint NOT NULL CHECK (wraps >= 0)
);

CREATE TABLE keyguard.kek_rotations (
  id text PRIMARY KEY CHECK (id <> ''),
  -- "requested": the new key is to be made. "distributing": every replica is to hold it. "rewrapping": it is the primary key, and the
  -- rows of the old one are moved to it. "done": the old one is disabled.
  state text NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'distributing', 'rewrapping', 'done')),
  requested_by text NOT NULL CHECK (requested_by <> ''),
  from_kek_id text REFERENCES keyguard.kek_keys,
  to_kek_id text REFERENCES keyguard.kek_keys,
  rewrapped bigint NOT NULL DEFAULT 0 CHECK (rewrapped >= 0),
  -- How many are under the old key; not known before it is counted.
  remaining bigint CHECK (remaining >= 0),
  -- How many of those did not open, when they were tried last: the old key stays in use for them.
  damaged bigint NOT NULL DEFAULT 0 CHECK (damaged >= 0),
  created_at_ms bigint NOT NULL,
  promoted_at_ms bigint,
  finished_at_ms bigint,
  -- Who works on it, and until when nobody else does; by the clock of the database.
  claimed_by text,
  claimed_until_ms bigint,
  CHECK ((state = 'done') = (finished_at_ms IS NOT NULL)),
  CHECK (state = 'requested' OR (from_kek_id IS NOT NULL AND to_kek_id IS NOT NULL))
);
-- One at a time.
CREATE UNIQUE INDEX kek_rotations_one_running ON keyguard.kek_rotations ((true)) WHERE finished_at_ms IS NULL;
CREATE INDEX kek_rotations_by_creation ON keyguard.kek_rotations (created_at_ms, id);

-- That an administrator wanted a key to be destroyed.
CREATE TABLE keyguard.kek_destructions (
  kek_id text PRIMARY KEY REFERENCES keyguard.kek_keys,
  requested_by text NOT NULL CHECK (requested_by <> ''),
  created_at_ms bigint NOT NULL
);

DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['replicas', 'kek_uses', 'kek_rotations', 'kek_destructions'] LOOP
    EXECUTE format('ALTER TABLE keyguard.%I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE keyguard.%I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY %I ON keyguard.%I FOR ALL TO kg_jobs USING (true) WITH CHECK (true)', name || '_jobs', name);
  END LOOP;
END
$$;
GRANT SELECT, INSERT, UPDATE, DELETE ON keyguard.replicas TO kg_jobs;
GRANT SELECT, INSERT, UPDATE ON keyguard.kek_uses TO kg_jobs;
GRANT SELECT ON keyguard.kek_destructions TO kg_jobs;
GRANT SELECT, UPDATE (state, from_kek_id, to_kek_id, rewrapped, remaining, damaged, promoted_at_ms, finished_at_ms, claimed_by, claimed_until_ms)
  ON keyguard.kek_rotations TO kg_jobs;

-- Administrators ask; the work is done in the background.
CREATE POLICY kek_rotations_app_read ON keyguard.kek_rotations FOR SELECT TO kg_app USING ((SELECT keyguard.is_administrator()));
CREATE POLICY kek_rotations_app_request ON keyguard.kek_rotations FOR INSERT TO kg_app
  WITH CHECK (requested_by = keyguard.acting_user_id() AND (SELECT keyguard.is_administrator()));
GRANT SELECT ON keyguard.kek_rotations TO kg_app;
GRANT INSERT (id, requested_by, created_at_ms) ON keyguard.kek_rotations TO kg_app;
CREATE POLICY kek_destructions_app_request ON keyguard.kek_destructions FOR INSERT TO kg_app
  WITH CHECK (requested_by = keyguard.acting_user_id() AND (SELECT keyguard.is_administrator()));
GRANT INSERT (kek_id, requested_by, created_at_ms) ON keyguard.kek_destructions TO kg_app;

-- Refuses a row under a key that is not, or no more, in use. The lock is the one that an UPDATE of the key waits for.
CREATE FUNCTION keyguard.guard_sealed_row() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  -- What was destroyed is under no key.
  IF NEW.kek_id IS NULL THEN
    RETURN NEW;
  END IF;
  PERFORM FROM keyguard.kek_keys k
    WHERE k.id = NEW.kek_id AND k.purpose = 'kek' AND k.state IN ('primary', 'decrypt-only') FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'the key of a sealed row is not in use' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;

-- What every table of sealed values needs. Those that are there by now get it below; a later migration that adds one calls this
-- for it.
CREATE FUNCTION keyguard.watch_sealed_table(sealed regclass) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  name CONSTANT text := (SELECT relname FROM pg_class WHERE oid = sealed);
BEGIN
  EXECUTE format('CREATE TRIGGER %I BEFORE INSERT OR UPDATE OF kek_id ON %s FOR EACH ROW EXECUTE FUNCTION keyguard.guard_sealed_row()',
    name || '_sealed', sealed);
  -- For the job that rewraps, and for whoever asks whether anything is left under a key. A table may have brought its own.
  EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON %s (kek_id)', name || '_by_kek', sealed);
  IF NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = sealed AND p.polcmd IN ('r', '*') AND 'kg_jobs'::regrole = ANY (p.polroles)) THEN
    EXECUTE format('CREATE POLICY %I ON %s FOR SELECT TO kg_jobs USING (true)', name || '_rewrap_read', sealed);
  END IF;
  IF NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = sealed AND p.polcmd IN ('w', '*') AND 'kg_jobs'::regrole = ANY (p.polroles)) THEN
    EXECUTE format('CREATE POLICY %I ON %s FOR UPDATE TO kg_jobs USING (true) WITH CHECK (true)', name || '_rewrap', sealed);
  END IF;
  -- Of the other tables of that schema it may touch none.
  EXECUTE format('GRANT USAGE ON SCHEMA %s TO kg_jobs', (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = sealed));
  EXECUTE format('GRANT SELECT ON %s TO kg_jobs', sealed);
  EXECUTE format('GRANT UPDATE (wrapped_dek, kek_id) ON %s TO kg_jobs', sealed);
END
$$;

DO $$
DECLARE
  sealed regclass;
BEGIN
  FOR sealed IN
    SELECT a.attrelid::regclass FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname IN ('keyguard', 'keyguard_auth') AND c.relkind = 'r' AND a.attname = 'wrapped_dek' AND NOT a.attisdropped
  LOOP
    PERFORM keyguard.watch_sealed_table(sealed);
  END LOOP;
END
$$;
