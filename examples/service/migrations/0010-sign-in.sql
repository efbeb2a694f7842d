-- What stands between a password and a session: tries that were counted, second factors, and which session has proven one; and the
-- one-time links with which people come in and set passwords anew. All of it is in the schema that kg_auth alone reaches.

-- Failed tries, by what was tried. Counted before a try is judged, and in a transaction of its own, so that neither a request
-- that is rolled back nor a restart forgives anybody. Accounts that do not exist are counted like those that do.
CREATE TABLE keyguard_auth.sign_in_attempts (
  counter_hash text COLLATE "C" PRIMARY KEY CHECK (counter_hash ~ '^[A-Za-z0-9_-]{43}$'),
  -- Whom an administrator lets in again: all counters of one account have the same.
  account_hash text COLLATE "C" NOT NULL CHECK (account_hash ~ '^[A-Za-z0-9_-]{43}$'),
  failures integer NOT NULL CHECK (failures > 0),
  last_try_at_ms bigint NOT NULL,
  locked_until_ms bigint NOT NULL
);
CREATE INDEX sign_in_attempts_by_account ON keyguard_auth.sign_in_attempts (account_hash);
CREATE INDEX sign_in_attempts_by_age ON keyguard_auth.sign_in_attempts (last_try_at_ms);

-- The secret of a person's authenticator, as a vault envelope that opens for that person alone.
CREATE TABLE keyguard_auth.second_factors (
  id text PRIMARY KEY CHECK (id <> ''),
  user_id text NOT NULL UNIQUE REFERENCES keyguard_auth.users ON DELETE CASCADE,
  ciphertext bytea NOT NULL,
  wrapped_dek bytea NOT NULL,
  kek_id text NOT NULL,
  -- The step of the last code that was accepted: no code of this step or of an earlier one is accepted again.
  last_step bigint NOT NULL DEFAULT 0,
  created_at_ms bigint NOT NULL,
  -- NULL until the first code has shown that the authenticator has the secret.
  activated_at_ms bigint
);

CREATE TABLE keyguard_auth.backup_codes (
  factor_id text NOT NULL REFERENCES keyguard_auth.second_factors ON DELETE CASCADE,
  code_hash text COLLATE "C" NOT NULL CHECK (code_hash ~ '^[A-Za-z0-9_-]{43}$'),
  used_at_ms bigint,
  PRIMARY KEY (factor_id, code_hash)
);

-- In which session the second factor was proven, and when last. A row bears a MAC over what it says: without one, whoever writes
-- to the database could turn a password into a whole sign-in.
CREATE TABLE keyguard_auth.session_proofs (
  session_id text PRIMARY KEY REFERENCES keyguard_auth.sessions ON DELETE CASCADE,
  user_id text NOT NULL REFERENCES keyguard_auth.users ON DELETE CASCADE,
  second_factor_at_ms bigint NOT NULL,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL
);

-- With the token of one of these a person comes in: once, under this address, with these roles. The MAC is over all of it.
CREATE TABLE keyguard_auth.invitations (
  id text PRIMARY KEY CHECK (id <> ''),
  token_hash text COLLATE "C" NOT NULL UNIQUE CHECK (token_hash ~ '^[A-Za-z0-9_-]{43}$'),
  email text NOT NULL CHECK (email = pg_catalog.lower(email)),
  role_ids text[] NOT NULL,
  is_administrator boolean NOT NULL,
  invited_by text NOT NULL CHECK (invited_by <> ''),
  created_at_ms bigint NOT NULL,
  expires_at_ms bigint NOT NULL,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL,
  accepted_at_ms bigint,
  accepted_user_id text,
  revoked_at_ms bigint,
  CHECK ((accepted_at_ms IS NULL) = (accepted_user_id IS NULL)),
  CHECK (accepted_at_ms IS NULL OR revoked_at_ms IS NULL)
);
CREATE INDEX invitations_by_creation ON keyguard_auth.invitations (created_at_ms, id);

CREATE TABLE keyguard_auth.password_resets (
  id text PRIMARY KEY CHECK (id <> ''),
  token_hash text COLLATE "C" NOT NULL UNIQUE CHECK (token_hash ~ '^[A-Za-z0-9_-]{43}$'),
  user_id text NOT NULL REFERENCES keyguard_auth.users ON DELETE CASCADE,
  created_by text NOT NULL CHECK (created_by <> ''),
  created_at_ms bigint NOT NULL,
  expires_at_ms bigint NOT NULL,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL,
  used_at_ms bigint
);
CREATE INDEX password_resets_by_user ON keyguard_auth.password_resets (user_id);

DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['sign_in_attempts', 'second_factors', 'backup_codes', 'session_proofs', 'invitations', 'password_resets'] LOOP
    EXECUTE format('ALTER TABLE keyguard_auth.%I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE keyguard_auth.%I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY %I ON keyguard_auth.%I FOR ALL TO kg_auth USING (true) WITH CHECK (true)', name || '_auth', name);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON keyguard_auth.%I TO kg_auth', name);
  END LOOP;
END
$$;
GRANT UPDATE (failures, last_try_at_ms, locked_until_ms) ON keyguard_auth.sign_in_attempts TO kg_auth;
GRANT UPDATE (id, ciphertext, wrapped_dek, kek_id, last_step, created_at_ms, activated_at_ms) ON keyguard_auth.second_factors TO kg_auth;
GRANT UPDATE (used_at_ms) ON keyguard_auth.backup_codes TO kg_auth;
GRANT UPDATE (second_factor_at_ms, mac_key_id, mac) ON keyguard_auth.session_proofs TO kg_auth;
GRANT UPDATE (accepted_at_ms, accepted_user_id, revoked_at_ms) ON keyguard_auth.invitations TO kg_auth;
GRANT UPDATE (used_at_ms) ON keyguard_auth.password_resets TO kg_auth;

-- What was used up once stays so, whoever asks.
CREATE FUNCTION keyguard_auth.guard_one_time() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF TG_TABLE_NAME = 'invitations' THEN
    IF OLD.accepted_at_ms IS NOT NULL OR OLD.revoked_at_ms IS NOT NULL THEN
      RAISE EXCEPTION 'an invitation is used once' USING ERRCODE = 'check_violation';
    END IF;
  ELSIF OLD.used_at_ms IS NOT NULL THEN
    RAISE EXCEPTION 'a one-time code is used once' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER invitations_guard BEFORE UPDATE ON keyguard_auth.invitations
  FOR EACH ROW EXECUTE FUNCTION keyguard_auth.guard_one_time();
CREATE TRIGGER password_resets_guard BEFORE UPDATE ON keyguard_auth.password_resets
  FOR EACH ROW EXECUTE FUNCTION keyguard_auth.guard_one_time();
CREATE TRIGGER backup_codes_guard BEFORE UPDATE ON keyguard_auth.backup_codes
  FOR EACH ROW EXECUTE FUNCTION keyguard_auth.guard_one_time();
