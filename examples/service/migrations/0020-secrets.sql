-- Secrets, their versions and their shares. What a secret is called, whose it is and which version counts is in one table under a
-- row MAC; the values are vault envelopes in another, one a version, each bound to its secret, version, owner and project; who else
-- may do what with it is in the third, one row a grant, under a MAC of its own.
--
-- The policies below go by rows, and hold no key: whoever acts MUST also ask the application, which checks the MACs. What policies
-- of one table need to know of another they ask through functions, because policies that name each other's tables go in a circle.

-- Whether the acting user holds this role, everywhere or in this project. As kg_owner, who sees the acting user's assignments alone.
CREATE FUNCTION keyguard.acting_holds_role(role_id text, project_id text) RETURNS boolean
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (
    SELECT FROM keyguard.secret_user_roles a
      WHERE a.user_id = keyguard.acting_user_id() AND a.role_id = acting_holds_role.role_id
        AND (a.expires_at_ms IS NULL OR a.expires_at_ms > (date_part('epoch', statement_timestamp()) * 1000)::bigint)
        AND (a.project_id IS NULL
          OR (a.project_id = acting_holds_role.project_id AND keyguard.project_is_open(a.project_id))));
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.acting_holds_role(text, text) TO kg_app;

CREATE TABLE keyguard.enterprise_secrets (
  id text PRIMARY KEY CHECK (id <> ''),
  -- NULL: the owner's own, in no project. Neither it nor the owner ever changes: every version is sealed for both.
  project_id text REFERENCES keyguard.api_key_projects,
  owner_id text NOT NULL CHECK (owner_id <> ''),
  name text NOT NULL CHECK (name <> '' AND pg_catalog.length(name) <= 200),
  type text NOT NULL CHECK (type <> ''),
  tags text[] NOT NULL DEFAULT '{}' CHECK (pg_catalog.cardinality(tags) <= 20),
  current_version integer NOT NULL CHECK (current_version > 0),
  -- Grows with every change of this row: what If-Match compares.
  revision integer NOT NULL CHECK (revision > 0),
  expires_at_ms bigint,
  created_at_ms bigint NOT NULL,
  updated_at_ms bigint NOT NULL,
  -- Set: a tombstone. Nothing of its versions opens any more.
  deleted_at_ms bigint,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32)
);
-- Among the owner's own: a name that is taken says nothing of anybody else's secrets.
CREATE UNIQUE INDEX enterprise_secrets_name ON keyguard.enterprise_secrets (owner_id, (coalesce(project_id, '')), name)
  WHERE deleted_at_ms IS NULL;
CREATE INDEX enterprise_secrets_by_creation ON keyguard.enterprise_secrets (created_at_ms, id);
CREATE INDEX enterprise_secrets_by_project ON keyguard.enterprise_secrets (project_id, name) WHERE deleted_at_ms IS NULL;
CREATE INDEX enterprise_secrets_by_expiry ON keyguard.enterprise_secrets (expires_at_ms)
  WHERE expires_at_ms IS NOT NULL AND deleted_at_ms IS NULL;

-- The values, for whatever has versions of one: secrets, and provider keys.
CREATE TABLE keyguard.secret_versions (
  subject_type text NOT NULL CHECK (subject_type IN ('secret', 'api_key')),
  subject_id text NOT NULL CHECK (subject_id <> ''),
  version integer NOT NULL CHECK (version > 0),
  -- The vault envelope; all three are gone from a version that was destroyed.
  ciphertext bytea,
  wrapped_dek bytea,
  kek_id text,
  state text NOT NULL CHECK (state IN ('active', 'overlap', 'retired', 'destroyed')),
  created_by text NOT NULL CHECK (created_by <> ''),
  reason text CHECK (pg_catalog.length(reason) <= 200),
  created_at_ms bigint NOT NULL,
  verified_at_ms bigint,
  overlap_until_ms bigint,
  destroyed_at_ms bigint,
  PRIMARY KEY (subject_type, subject_id, version),
  CHECK ((state = 'destroyed') = (ciphertext IS NULL) AND (state = 'destroyed') = (wrapped_dek IS NULL)
    AND (state = 'destroyed') = (kek_id IS NULL) AND (state = 'destroyed') = (destroyed_at_ms IS NOT NULL)),
  CHECK ((state = 'overlap') = (overlap_until_ms IS NOT NULL))
);
CREATE UNIQUE INDEX secret_versions_one_active ON keyguard.secret_versions (subject_type, subject_id) WHERE state = 'active';
CREATE INDEX secret_versions_by_kek ON keyguard.secret_versions (kek_id) WHERE kek_id IS NOT NULL;
-- What was destroyed stays in the file as a dead row until it is vacuumed: at once, not when a fifth of the table is dead.
ALTER TABLE keyguard.secret_versions SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1);

CREATE TABLE keyguard.secret_shares (
  id text PRIMARY KEY CHECK (id <> ''),
  subject_type text NOT NULL CHECK (subject_type IN ('secret', 'api_key')),
  subject_id text NOT NULL CHECK (subject_id <> ''),
  -- Of the subject, so that the policies here ask nothing of its table.
  owner_id text NOT NULL CHECK (owner_id <> ''),
  project_id text,
  grantee_type text NOT NULL CHECK (grantee_type IN ('user', 'role', 'link')),
  -- A person's or a service account's id; a role's; of a link nobody's.
  grantee_id text CHECK (grantee_id <> ''),
  permissions text[] NOT NULL CHECK (pg_catalog.cardinality(permissions) > 0 AND permissions
    <@ ARRAY['secrets:read', 'secrets:reveal', 'secrets:update', 'secrets:delete', 'secrets:share']),
  -- A keyed hash of a link's token.
  token_hash text COLLATE "C" UNIQUE CHECK (token_hash ~ '^[A-Za-z0-9_-]{43}$'),
  -- How often a link may be opened. Grants to somebody are not counted.
  max_views integer CHECK (max_views > 0),
  views integer NOT NULL DEFAULT 0 CHECK (views >= 0 AND (max_views IS NULL OR views <= max_views)),
  created_by text NOT NULL CHECK (created_by <> ''),
  created_at_ms bigint NOT NULL,
  expires_at_ms bigint,
  revoked_at_ms bigint,
  -- Over what is granted: views and revoked_at_ms only ever grant less, and are outside it.
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32),
  CHECK ((grantee_type = 'link') = (grantee_id IS NULL) AND (grantee_type = 'link') = (token_hash IS NOT NULL)),
  CHECK (grantee_type = 'link' OR max_views IS NULL)
);
CREATE INDEX secret_shares_by_subject ON keyguard.secret_shares (subject_type, subject_id, created_at_ms, id);
CREATE INDEX secret_shares_by_grantee ON keyguard.secret_shares (grantee_type, grantee_id) WHERE grantee_id IS NOT NULL;

ALTER TABLE keyguard.enterprise_secrets ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.enterprise_secrets FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.secret_versions ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.secret_versions FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.secret_shares ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.secret_shares FORCE ROW LEVEL SECURITY;

-- Whether this is shared with the acting user, now: with this permission, or with any where it is NULL.
CREATE FUNCTION keyguard.shared_with_acting(subject_type text, subject_id text, permission text) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (
    SELECT FROM keyguard.secret_shares h
      WHERE h.subject_type = shared_with_acting.subject_type AND h.subject_id = shared_with_acting.subject_id
        AND (shared_with_acting.permission IS NULL OR shared_with_acting.permission = ANY (h.permissions))
        AND h.revoked_at_ms IS NULL
        AND (h.expires_at_ms IS NULL OR h.expires_at_ms > (date_part('epoch', statement_timestamp()) * 1000)::bigint)
        AND CASE h.grantee_type
          WHEN 'user' THEN h.grantee_id = keyguard.acting_user_id()
          WHEN 'role' THEN keyguard.acting_holds_role(h.grantee_id, h.project_id)
          ELSE false END);
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.shared_with_acting(text, text, text) TO kg_app;

-- Whether the acting user may do this with a secret of which the caller holds the row.
CREATE FUNCTION keyguard.acting_may_secret(id text, owner_id text, project_id text, permission text) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN acting_may_secret.owner_id = keyguard.acting_user_id()
    OR keyguard.acting_has_permission(acting_may_secret.permission, acting_may_secret.project_id)
    OR keyguard.shared_with_acting('secret', acting_may_secret.id, acting_may_secret.permission);
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.acting_may_secret(text, text, text, text) TO kg_app;

-- Whether the acting user may give these permissions on this secret, which has this owner and project, to somebody: all of them to
-- whoever owns it; to others who may share it, those that they have themselves.
CREATE FUNCTION keyguard.acting_may_share(secret_id text, owner_id text, project_id text, permissions text[]) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  wanted text;
BEGIN
  IF NOT EXISTS (SELECT FROM keyguard.enterprise_secrets s WHERE s.id = acting_may_share.secret_id
      AND s.owner_id = acting_may_share.owner_id AND s.project_id IS NOT DISTINCT FROM acting_may_share.project_id
      AND s.deleted_at_ms IS NULL) THEN
    RETURN false;
  END IF;
  FOREACH wanted IN ARRAY acting_may_share.permissions || 'secrets:share'::text LOOP
    IF NOT keyguard.acting_may_secret(acting_may_share.secret_id, acting_may_share.owner_id, acting_may_share.project_id, wanted) THEN
      RETURN false;
    END IF;
  END LOOP;
  RETURN true;
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.acting_may_share(text, text, text, text[]) TO kg_app;

-- A share of any kind shows that the secret is there. Tombstones stay visible to who could see the secret: an UPDATE must be able to
-- see what it makes.
CREATE POLICY enterprise_secrets_app_read ON keyguard.enterprise_secrets FOR SELECT TO kg_app
  USING (owner_id = keyguard.acting_user_id()
    OR keyguard.acting_has_permission('secrets:read', project_id)
    OR keyguard.shared_with_acting('secret', id, NULL));
CREATE POLICY enterprise_secrets_app_add ON keyguard.enterprise_secrets FOR INSERT TO kg_app
  WITH CHECK (owner_id = keyguard.acting_user_id() AND deleted_at_ms IS NULL AND (project_id IS NULL
    OR (keyguard.project_is_open(project_id)
      AND (keyguard.acting_owns_project(project_id) OR keyguard.acting_has_permission('secrets:create', project_id)))));
CREATE POLICY enterprise_secrets_app_change ON keyguard.enterprise_secrets FOR UPDATE TO kg_app
  USING (deleted_at_ms IS NULL AND (keyguard.acting_may_secret(id, owner_id, project_id, 'secrets:update')
    OR keyguard.acting_may_secret(id, owner_id, project_id, 'secrets:delete')))
  WITH CHECK (keyguard.acting_may_secret(id, owner_id, project_id,
    CASE WHEN deleted_at_ms IS NULL THEN 'secrets:update' ELSE 'secrets:delete' END));
CREATE POLICY enterprise_secrets_jobs_read ON keyguard.enterprise_secrets FOR SELECT TO kg_jobs USING (true);
-- Whoever comes with a link is nobody: what the link is to is all that is seen.
CREATE POLICY enterprise_secrets_verifier_read ON keyguard.enterprise_secrets FOR SELECT TO kg_verifier
  USING (deleted_at_ms IS NULL AND EXISTS (SELECT FROM keyguard.secret_shares h
    WHERE h.subject_type = 'secret' AND h.subject_id = enterprise_secrets.id AND h.revoked_at_ms IS NULL));
GRANT SELECT ON keyguard.enterprise_secrets TO kg_app, kg_jobs, kg_verifier;
GRANT INSERT (id, project_id, owner_id, name, type, tags, current_version, revision, expires_at_ms, created_at_ms, updated_at_ms,
  mac_key_id, mac) ON keyguard.enterprise_secrets TO kg_app;
GRANT UPDATE (name, tags, current_version, revision, expires_at_ms, updated_at_ms, deleted_at_ms, mac_key_id, mac)
  ON keyguard.enterprise_secrets TO kg_app;

-- The inner queries are under the policies of the secrets.
CREATE POLICY secret_versions_app_read ON keyguard.secret_versions FOR SELECT TO kg_app
  USING (subject_type = 'secret' AND EXISTS (SELECT FROM keyguard.enterprise_secrets s WHERE s.id = secret_versions.subject_id));
CREATE POLICY secret_versions_app_add ON keyguard.secret_versions FOR INSERT TO kg_app
  WITH CHECK (subject_type = 'secret' AND created_by = keyguard.acting_user_id() AND state = 'active'
    AND EXISTS (SELECT FROM keyguard.enterprise_secrets s WHERE s.id = secret_versions.subject_id AND s.deleted_at_ms IS NULL
      AND keyguard.acting_may_secret(s.id, s.owner_id, s.project_id, 'secrets:update')));
CREATE POLICY secret_versions_app_change ON keyguard.secret_versions FOR UPDATE TO kg_app
  USING (subject_type = 'secret' AND state <> 'destroyed')
  WITH CHECK (EXISTS (SELECT FROM keyguard.enterprise_secrets s WHERE s.id = secret_versions.subject_id
    AND keyguard.acting_may_secret(s.id, s.owner_id, s.project_id,
      CASE secret_versions.state WHEN 'destroyed' THEN 'secrets:delete' ELSE 'secrets:update' END)));
CREATE POLICY secret_versions_jobs_read ON keyguard.secret_versions FOR SELECT TO kg_jobs USING (true);
CREATE POLICY secret_versions_jobs_rewrap ON keyguard.secret_versions FOR UPDATE TO kg_jobs
  USING (state <> 'destroyed') WITH CHECK (state <> 'destroyed');
CREATE POLICY secret_versions_verifier_read ON keyguard.secret_versions FOR SELECT TO kg_verifier
  USING (subject_type = 'secret' AND EXISTS (SELECT FROM keyguard.enterprise_secrets s WHERE s.id = secret_versions.subject_id));
GRANT SELECT ON keyguard.secret_versions TO kg_app, kg_jobs, kg_verifier;
GRANT INSERT (subject_type, subject_id, version, ciphertext, wrapped_dek, kek_id, state, created_by, reason, created_at_ms)
  ON keyguard.secret_versions TO kg_app;
GRANT UPDATE (state, ciphertext, wrapped_dek, kek_id, destroyed_at_ms, overlap_until_ms, verified_at_ms)
  ON keyguard.secret_versions TO kg_app;
GRANT UPDATE (wrapped_dek, kek_id) ON keyguard.secret_versions TO kg_jobs;

CREATE POLICY secret_shares_app_read ON keyguard.secret_shares FOR SELECT TO kg_app
  USING (owner_id = keyguard.acting_user_id() OR created_by = keyguard.acting_user_id()
    OR (grantee_type = 'user' AND grantee_id = keyguard.acting_user_id())
    OR (grantee_type = 'role' AND keyguard.acting_holds_role(grantee_id, project_id)));
CREATE POLICY secret_shares_app_add ON keyguard.secret_shares FOR INSERT TO kg_app
  WITH CHECK (created_by = keyguard.acting_user_id() AND views = 0 AND revoked_at_ms IS NULL AND subject_type = 'secret'
    AND keyguard.acting_may_share(subject_id, owner_id, project_id, permissions));
-- By the owner of the secret, by who made it, and by whom it was given to.
CREATE POLICY secret_shares_app_revoke ON keyguard.secret_shares FOR UPDATE TO kg_app
  USING (owner_id = keyguard.acting_user_id() OR created_by = keyguard.acting_user_id()
    OR (grantee_type = 'user' AND grantee_id = keyguard.acting_user_id()))
  WITH CHECK (revoked_at_ms IS NOT NULL);
CREATE POLICY secret_shares_jobs_read ON keyguard.secret_shares FOR SELECT TO kg_jobs USING (true);
CREATE POLICY secret_shares_verifier_read ON keyguard.secret_shares FOR SELECT TO kg_verifier USING (grantee_type = 'link');
CREATE POLICY secret_shares_verifier_view ON keyguard.secret_shares FOR UPDATE TO kg_verifier
  USING (grantee_type = 'link' AND revoked_at_ms IS NULL) WITH CHECK (grantee_type = 'link');
GRANT SELECT (id, subject_type, subject_id, owner_id, project_id, grantee_type, grantee_id, permissions, max_views, views, created_by,
  created_at_ms, expires_at_ms, revoked_at_ms, mac_key_id, mac) ON keyguard.secret_shares TO kg_app, kg_jobs;
GRANT SELECT ON keyguard.secret_shares TO kg_verifier;
GRANT INSERT (id, subject_type, subject_id, owner_id, project_id, grantee_type, grantee_id, permissions, token_hash, max_views,
  created_by, created_at_ms, expires_at_ms, mac_key_id, mac) ON keyguard.secret_shares TO kg_app;
GRANT UPDATE (revoked_at_ms) ON keyguard.secret_shares TO kg_app;
GRANT UPDATE (views) ON keyguard.secret_shares TO kg_verifier;

-- A tombstone stays one, versions only go up, and a name is the owner's to give: a name that is taken would tell others that it is.
CREATE FUNCTION keyguard.guard_secret() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF OLD.deleted_at_ms IS NOT NULL OR NEW.current_version < OLD.current_version OR NEW.revision <> OLD.revision + 1 THEN
    RAISE EXCEPTION 'a secret only goes forward' USING ERRCODE = 'check_violation';
  END IF;
  IF NEW.name <> OLD.name AND OLD.owner_id IS DISTINCT FROM keyguard.acting_user_id() THEN
    RAISE EXCEPTION 'only the owner names a secret' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER enterprise_secrets_guard BEFORE UPDATE ON keyguard.enterprise_secrets
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_secret();

-- A version is written once. Its key may be wrapped anew, by kg_jobs alone; and all of it may be destroyed, for ever.
CREATE FUNCTION keyguard.guard_secret_version() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF OLD.state = 'destroyed' THEN
    RAISE EXCEPTION 'what was destroyed stays destroyed' USING ERRCODE = 'check_violation';
  END IF;
  IF NEW.state <> 'destroyed' AND (NEW.ciphertext IS DISTINCT FROM OLD.ciphertext
      OR (current_user <> 'kg_jobs' AND (NEW.wrapped_dek IS DISTINCT FROM OLD.wrapped_dek OR NEW.kek_id IS DISTINCT FROM OLD.kek_id))) THEN
    RAISE EXCEPTION 'a version is written once' USING ERRCODE = 'check_violation';
  END IF;
  IF NEW.state = 'active' AND OLD.state <> 'active' THEN
    RAISE EXCEPTION 'an old value comes back as a new version' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER secret_versions_guard BEFORE UPDATE ON keyguard.secret_versions
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_secret_version();

-- A view is never given back, and a revocation never taken back.
CREATE FUNCTION keyguard.guard_secret_share() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NEW.views < OLD.views OR (OLD.revoked_at_ms IS NOT NULL AND NEW.revoked_at_ms IS DISTINCT FROM OLD.revoked_at_ms) THEN
    RAISE EXCEPTION 'a share only ever grants less' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER secret_shares_guard BEFORE UPDATE ON keyguard.secret_shares
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_secret_share();

-- Which entry was the last to say what the current version of a secret is: reveal asks every time.
CREATE INDEX secret_audit_logs_of_versions ON keyguard.secret_audit_logs (resource, seq)
  WHERE action IN ('secret.create', 'secret.add_version', 'secret.restore_version', 'secret.destroy_version', 'secret.delete');
