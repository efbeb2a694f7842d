-- Programs with a token of their own. A service account is somebody: it owns what it makes and can hold roles; its scopes are the
-- most that it may ever do. Only a keyed hash of a token is kept, and looked up by the prefix, which is no secret. The MAC covers all
-- that decides whether a token is let in and as whom; last_used_at_ms is outside it.

CREATE TABLE keyguard.service_accounts (
  id text PRIMARY KEY CHECK (id <> ''),
  name text NOT NULL CHECK (name <> ''),
  -- Whoever made it, for ever: the owner alone ever gets a token.
  owner_id text NOT NULL CHECK (owner_id <> ''),
  token_prefix text COLLATE "C" NOT NULL UNIQUE CHECK (token_prefix ~ '^[a-z0-9]{12}$'),
  token_hash text COLLATE "C" NOT NULL CHECK (token_hash ~ '^[A-Za-z0-9_-]{43}$'),
  -- The token before this one, while the two overlap.
  previous_prefix text COLLATE "C" UNIQUE CHECK (previous_prefix ~ '^[a-z0-9]{12}$'),
  previous_hash text COLLATE "C" CHECK (previous_hash ~ '^[A-Za-z0-9_-]{43}$'),
  previous_expires_at_ms bigint,
  scopes text[] NOT NULL CHECK (pg_catalog.cardinality(scopes) BETWEEN 1 AND 100),
  -- NULL: from anywhere.
  ip_allowlist text[] CHECK (pg_catalog.cardinality(ip_allowlist) BETWEEN 1 AND 100),
  expires_at_ms bigint,
  disabled_at_ms bigint,
  disabled_by text,
  last_used_at_ms bigint,
  version integer NOT NULL DEFAULT 1 CHECK (version > 0),
  created_at_ms bigint NOT NULL,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32),
  CHECK ((previous_prefix IS NULL) = (previous_hash IS NULL) AND (previous_prefix IS NULL) = (previous_expires_at_ms IS NULL)),
  CHECK ((disabled_at_ms IS NULL) = (disabled_by IS NULL))
);
CREATE INDEX service_accounts_by_creation ON keyguard.service_accounts (created_at_ms, id);
CREATE INDEX service_accounts_by_owner ON keyguard.service_accounts (owner_id, created_at_ms, id);

ALTER TABLE keyguard.service_accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.service_accounts FORCE ROW LEVEL SECURITY;

CREATE POLICY service_accounts_app_read ON keyguard.service_accounts FOR SELECT TO kg_app
  USING (owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()));
CREATE POLICY service_accounts_app_add ON keyguard.service_accounts FOR INSERT TO kg_app
  WITH CHECK (owner_id = keyguard.acting_user_id() AND disabled_at_ms IS NULL);
CREATE POLICY service_accounts_app_change ON keyguard.service_accounts FOR UPDATE TO kg_app
  USING (owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator())) WITH CHECK (true);
CREATE POLICY service_accounts_app_remove ON keyguard.service_accounts FOR DELETE TO kg_app
  USING (owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()));
-- Whoever lets callers in looks up tokens, before any caller is known.
CREATE POLICY service_accounts_auth_read ON keyguard.service_accounts FOR SELECT TO kg_auth USING (true);
CREATE POLICY service_accounts_auth_touch ON keyguard.service_accounts FOR UPDATE TO kg_auth USING (true) WITH CHECK (true);
-- For the function below, which runs as kg_owner.
CREATE POLICY service_accounts_owner_read_acting ON keyguard.service_accounts FOR SELECT TO kg_owner
  USING (id = keyguard.acting_user_id());
GRANT SELECT, DELETE ON keyguard.service_accounts TO kg_app;
GRANT INSERT (id, name, owner_id, token_prefix, token_hash, scopes, ip_allowlist, expires_at_ms, created_at_ms, mac_key_id, mac)
  ON keyguard.service_accounts TO kg_app;
GRANT UPDATE (name, token_prefix, token_hash, previous_prefix, previous_hash, previous_expires_at_ms, scopes, ip_allowlist,
  expires_at_ms, disabled_at_ms, disabled_by, version, mac_key_id, mac) ON keyguard.service_accounts TO kg_app;
GRANT SELECT ON keyguard.service_accounts TO kg_auth;
GRANT UPDATE (last_used_at_ms) ON keyguard.service_accounts TO kg_auth;

-- What policies cannot say of a change. An administrator who is not the owner shuts an account and opens it again, and gets no token
-- of it; what somebody else than the owner has shut, the owner does not open.
CREATE FUNCTION keyguard.guard_service_account() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NEW.id <> OLD.id OR NEW.owner_id <> OLD.owner_id THEN
    RAISE EXCEPTION 'a service account never changes its owner' USING ERRCODE = 'check_violation';
  END IF;
  IF current_user = 'kg_app' THEN
    IF OLD.owner_id IS DISTINCT FROM keyguard.acting_user_id()
      AND (NEW.name, NEW.token_prefix, NEW.token_hash, NEW.previous_prefix, NEW.previous_hash, NEW.previous_expires_at_ms, NEW.scopes,
        NEW.ip_allowlist, NEW.expires_at_ms)
      IS DISTINCT FROM (OLD.name, OLD.token_prefix, OLD.token_hash, OLD.previous_prefix, OLD.previous_hash, OLD.previous_expires_at_ms,
        OLD.scopes, OLD.ip_allowlist, OLD.expires_at_ms) THEN
      RAISE EXCEPTION 'only its owner changes a service account' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF OLD.disabled_at_ms IS NOT NULL AND NEW.disabled_at_ms IS NULL AND NOT keyguard.is_administrator()
      AND OLD.disabled_by IS DISTINCT FROM keyguard.acting_user_id() THEN
      RAISE EXCEPTION 'only an administrator opens what another has shut' USING ERRCODE = 'insufficient_privilege';
    END IF;
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER service_accounts_guard BEFORE UPDATE OF id, name, owner_id, token_prefix, token_hash, previous_prefix, previous_hash,
  previous_expires_at_ms, scopes, ip_allowlist, expires_at_ms, disabled_at_ms, disabled_by, mac_key_id, mac ON keyguard.service_accounts
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_service_account();

-- As before, and for a service account never beyond its scopes.
CREATE OR REPLACE FUNCTION keyguard.acting_has_permission(permission text, project_id text) RETURNS boolean
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (
    SELECT FROM keyguard.secret_user_roles a JOIN keyguard.secret_roles r ON r.id = a.role_id
      WHERE a.user_id = keyguard.acting_user_id()
        AND acting_has_permission.permission = ANY (r.permissions)
        AND (a.expires_at_ms IS NULL OR a.expires_at_ms > (date_part('epoch', statement_timestamp()) * 1000)::bigint)
        AND (a.project_id IS NULL
          OR (a.project_id = acting_has_permission.project_id AND keyguard.project_is_open(a.project_id))))
    AND NOT EXISTS (SELECT FROM keyguard.service_accounts s
      WHERE s.id = keyguard.acting_user_id() AND NOT (acting_has_permission.permission = ANY (s.scopes)));
END
$$;

-- Owners see what their programs may do, and take it away with the program.
CREATE POLICY secret_user_roles_app_read_of_account ON keyguard.secret_user_roles FOR SELECT TO kg_app
  USING (EXISTS (SELECT FROM keyguard.service_accounts s WHERE s.id = secret_user_roles.user_id AND s.owner_id = keyguard.acting_user_id()));
CREATE POLICY secret_user_roles_app_revoke_of_account ON keyguard.secret_user_roles FOR DELETE TO kg_app
  USING (EXISTS (SELECT FROM keyguard.service_accounts s WHERE s.id = secret_user_roles.user_id AND s.owner_id = keyguard.acting_user_id()));
