-- Roles, and who holds them, everywhere or in one project. A role grants permissions by name; an assignment gives a role to a person
-- or to a service account. Both rows bear a MAC, because both are part of what is granted.
--
-- A policy holds no key and sees the rows only: acting_has_permission() below is what row-level security goes by, and whoever acts
-- MUST also ask the application (src/roles/access.ts), which checks both MACs.

CREATE TABLE keyguard.secret_roles (
  id text PRIMARY KEY CHECK (id <> ''),
  name text NOT NULL UNIQUE CHECK (name <> ''),
  description text NOT NULL DEFAULT '',
  permissions text[] NOT NULL CHECK (pg_catalog.cardinality(permissions) <= 100),
  -- Made by the program at its start. Nobody changes or deletes it.
  is_system boolean NOT NULL,
  version integer NOT NULL DEFAULT 1 CHECK (version > 0),
  created_at_ms bigint NOT NULL,
  updated_at_ms bigint NOT NULL,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32)
);

CREATE TABLE keyguard.secret_user_roles (
  id text PRIMARY KEY CHECK (id <> ''),
  -- A person's id, or a service account's.
  user_id text NOT NULL CHECK (user_id <> ''),
  role_id text NOT NULL REFERENCES keyguard.secret_roles,
  -- NULL: everywhere.
  project_id text REFERENCES keyguard.api_key_projects,
  granted_by text NOT NULL CHECK (granted_by <> ''),
  granted_at_ms bigint NOT NULL,
  expires_at_ms bigint,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32)
);
-- An empty text is the id of no project.
CREATE UNIQUE INDEX secret_user_roles_once ON keyguard.secret_user_roles (user_id, role_id, (coalesce(project_id, '')));
CREATE INDEX secret_user_roles_by_role ON keyguard.secret_user_roles (role_id);
CREATE INDEX secret_user_roles_by_project ON keyguard.secret_user_roles (project_id) WHERE project_id IS NOT NULL;

ALTER TABLE keyguard.secret_roles ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.secret_roles FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.secret_user_roles ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.secret_user_roles FORCE ROW LEVEL SECURITY;

-- What the functions below read as kg_owner: of assignments the acting user's own, so that they say nothing of anybody else.
CREATE POLICY secret_roles_owner_read ON keyguard.secret_roles FOR SELECT TO kg_owner USING (true);
CREATE POLICY secret_user_roles_owner_read_acting ON keyguard.secret_user_roles FOR SELECT TO kg_owner
  USING (user_id = keyguard.acting_user_id());
CREATE POLICY api_key_projects_owner_read ON keyguard.api_key_projects FOR SELECT TO kg_owner USING (true);

-- Whether there is a project of that id that is not archived. As kg_owner, so that policies of projects and of assignments may ask
-- about each other without going round in a circle.
CREATE FUNCTION keyguard.project_is_open(project_id text) RETURNS boolean
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (SELECT FROM keyguard.api_key_projects p WHERE p.id = project_is_open.project_id AND p.archived_at_ms IS NULL);
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.project_is_open(text) TO kg_app;

-- Whether the project of that id belongs to the acting user.
CREATE FUNCTION keyguard.acting_owns_project(project_id text) RETURNS boolean
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (SELECT FROM keyguard.api_key_projects p
    WHERE p.id = acting_owns_project.project_id AND p.owner_id = keyguard.acting_user_id());
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.acting_owns_project(text) TO kg_app;

-- Whether the acting user holds, now, a role with this permission: everywhere, or in this project while it is not archived. Without
-- a project: everywhere. Being an administrator or an owner does not count here.
CREATE FUNCTION keyguard.acting_has_permission(permission text, project_id text) RETURNS boolean
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (
    SELECT FROM keyguard.secret_user_roles a JOIN keyguard.secret_roles r ON r.id = a.role_id
      WHERE a.user_id = keyguard.acting_user_id()
        AND acting_has_permission.permission = ANY (r.permissions)
        AND (a.expires_at_ms IS NULL OR a.expires_at_ms > (date_part('epoch', statement_timestamp()) * 1000)::bigint)
        AND (a.project_id IS NULL
          OR (a.project_id = acting_has_permission.project_id AND keyguard.project_is_open(a.project_id))));
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.acting_has_permission(text, text) TO kg_app;

CREATE POLICY secret_roles_app_read ON keyguard.secret_roles FOR SELECT TO kg_app USING (keyguard.acting_user_id() IS NOT NULL);
CREATE POLICY secret_roles_app_add ON keyguard.secret_roles FOR INSERT TO kg_app
  WITH CHECK (NOT is_system AND (SELECT keyguard.is_administrator()));
CREATE POLICY secret_roles_app_change ON keyguard.secret_roles FOR UPDATE TO kg_app
  USING (NOT is_system AND (SELECT keyguard.is_administrator())) WITH CHECK (NOT is_system AND (SELECT keyguard.is_administrator()));
CREATE POLICY secret_roles_app_remove ON keyguard.secret_roles FOR DELETE TO kg_app
  USING (NOT is_system AND (SELECT keyguard.is_administrator()));
CREATE POLICY secret_roles_jobs_read ON keyguard.secret_roles FOR SELECT TO kg_jobs USING (true);
CREATE POLICY secret_roles_jobs_add ON keyguard.secret_roles FOR INSERT TO kg_jobs WITH CHECK (is_system);
CREATE POLICY secret_roles_jobs_change ON keyguard.secret_roles FOR UPDATE TO kg_jobs USING (is_system) WITH CHECK (is_system);
GRANT SELECT ON keyguard.secret_roles TO kg_app, kg_jobs;
GRANT INSERT (id, name, description, permissions, is_system, created_at_ms, updated_at_ms, mac_key_id, mac)
  ON keyguard.secret_roles TO kg_app, kg_jobs;
GRANT UPDATE (name, description, permissions, version, updated_at_ms, mac_key_id, mac) ON keyguard.secret_roles TO kg_app;
GRANT UPDATE (description, permissions, version, updated_at_ms, mac_key_id, mac) ON keyguard.secret_roles TO kg_jobs;
GRANT DELETE ON keyguard.secret_roles TO kg_app;

CREATE POLICY secret_user_roles_app_read ON keyguard.secret_user_roles FOR SELECT TO kg_app
  USING (user_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator())
    OR (project_id IS NOT NULL AND keyguard.acting_owns_project(project_id)));
-- Who writes that somebody holds a role says so in their own name.
CREATE POLICY secret_user_roles_app_grant ON keyguard.secret_user_roles FOR INSERT TO kg_app
  WITH CHECK (granted_by = keyguard.acting_user_id() AND (SELECT keyguard.is_administrator()));
CREATE POLICY secret_user_roles_app_revoke ON keyguard.secret_user_roles FOR DELETE TO kg_app
  USING ((SELECT keyguard.is_administrator()));
GRANT SELECT, DELETE ON keyguard.secret_user_roles TO kg_app;
GRANT INSERT (id, user_id, role_id, project_id, granted_by, granted_at_ms, expires_at_ms, mac_key_id, mac)
  ON keyguard.secret_user_roles TO kg_app;

-- Whoever may read the audit log by a role may read all of it, as an administrator may. A program that acts reads what it did itself.
CREATE POLICY secret_audit_logs_app_read_by_role ON keyguard.secret_audit_logs FOR SELECT TO kg_app
  USING ((SELECT keyguard.acting_has_permission('audit:read', NULL)) OR actor = 'service_account:' || keyguard.acting_user_id());
