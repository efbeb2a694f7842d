-- The people of this deployment and their sessions: better-auth's tables under names of ours, in a schema that kg_auth alone
-- reaches. A query that is made for a user or for a device can touch nothing here.

GRANT USAGE ON SCHEMA keyguard_auth TO kg_auth;

CREATE TABLE keyguard_auth.users (
  id text PRIMARY KEY CHECK (id <> ''),
  name text NOT NULL,
  email text NOT NULL UNIQUE CHECK (email = pg_catalog.lower(email)),
  email_verified boolean NOT NULL DEFAULT false,
  image text,
  created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- The token stands here in clear, and is worth nothing alone: only its signed form is accepted, and the key is not in here.
CREATE TABLE keyguard_auth.sessions (
  id text PRIMARY KEY CHECK (id <> ''),
  user_id text NOT NULL REFERENCES keyguard_auth.users ON DELETE CASCADE,
  token text NOT NULL UNIQUE,
  expires_at timestamptz NOT NULL,
  ip_address text,
  user_agent text,
  created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX sessions_by_user ON keyguard_auth.sessions (user_id);

CREATE TABLE keyguard_auth.accounts (
  id text PRIMARY KEY CHECK (id <> ''),
  user_id text NOT NULL REFERENCES keyguard_auth.users ON DELETE CASCADE,
  account_id text NOT NULL,
  provider_id text NOT NULL,
  access_token text,
  refresh_token text,
  id_token text,
  access_token_expires_at timestamptz,
  refresh_token_expires_at timestamptz,
  scope text,
  -- The scrypt hash, of provider "credential".
  password text,
  created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
  UNIQUE (provider_id, account_id)
);
CREATE INDEX accounts_by_user ON keyguard_auth.accounts (user_id);

CREATE TABLE keyguard_auth.verifications (
  id text PRIMARY KEY CHECK (id <> ''),
  identifier text NOT NULL,
  value text NOT NULL,
  expires_at timestamptz NOT NULL,
  created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
  updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX verifications_by_identifier ON keyguard_auth.verifications (identifier);

-- Tries by address and route. In the database, so that a restart forgives nobody.
CREATE TABLE keyguard_auth.rate_limits (
  id text PRIMARY KEY CHECK (id <> ''),
  key text NOT NULL UNIQUE,
  count integer NOT NULL,
  last_request bigint NOT NULL
);

-- The one-time code with which the first administrator signs up. At most one row; only a keyed hash of the code is kept.
CREATE TABLE keyguard_auth.setup_codes (
  code_hash text COLLATE "C" PRIMARY KEY CHECK (code_hash ~ '^[A-Za-z0-9_-]{43}$'),
  created_at_ms bigint NOT NULL
);

DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['users', 'sessions', 'accounts', 'verifications', 'rate_limits', 'setup_codes'] LOOP
    EXECUTE format('ALTER TABLE keyguard_auth.%I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE keyguard_auth.%I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY %I ON keyguard_auth.%I FOR ALL TO kg_auth USING (true) WITH CHECK (true)', name || '_auth', name);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON keyguard_auth.%I TO kg_auth', name);
  END LOOP;
END
$$;
