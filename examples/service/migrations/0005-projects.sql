-- Projects that people make. Who owns one decides who may put provider keys and devices into it: so a row bears a MAC over what it
-- grants. The project that every deployment begins with has none until an administrator changes it, and needs none: it belongs to
-- nobody.

ALTER TABLE keyguard.api_key_projects
  ADD COLUMN version integer NOT NULL DEFAULT 1 CHECK (version > 0),
  ADD COLUMN mac_key_id text,
  ADD COLUMN mac bytea CHECK (pg_catalog.octet_length(mac) = 32);
CREATE INDEX api_key_projects_by_creation ON keyguard.api_key_projects (created_at_ms, id);

CREATE POLICY api_key_projects_app_read_by_role ON keyguard.api_key_projects FOR SELECT TO kg_app
  USING (keyguard.acting_has_permission('projects:read', id));
CREATE POLICY api_key_projects_app_add ON keyguard.api_key_projects FOR INSERT TO kg_app
  WITH CHECK (owner_id = keyguard.acting_user_id() AND archived_at_ms IS NULL);
CREATE POLICY api_key_projects_app_change ON keyguard.api_key_projects FOR UPDATE TO kg_app
  USING (owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()) OR keyguard.acting_has_permission('projects:write', id))
  WITH CHECK (true);
GRANT INSERT (id, owner_id, name, environment, created_at_ms, mac_key_id, mac) ON keyguard.api_key_projects TO kg_app;
GRANT UPDATE (name, environment, archived_at_ms, version, mac_key_id, mac) ON keyguard.api_key_projects TO kg_app;

CREATE FUNCTION keyguard.guard_project() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NEW.id <> OLD.id OR NEW.owner_id <> OLD.owner_id THEN
    RAISE EXCEPTION 'a project never changes its owner' USING ERRCODE = 'check_violation';
  END IF;
  IF OLD.archived_at_ms IS NOT NULL AND (NEW.archived_at_ms, NEW.name, NEW.environment) IS DISTINCT FROM (OLD.archived_at_ms, OLD.name, OLD.environment) THEN
    RAISE EXCEPTION 'a project that is archived stays as it is' USING ERRCODE = 'check_violation';
  END IF;
  IF OLD.id = 'default' AND NEW.archived_at_ms IS NOT NULL THEN
    RAISE EXCEPTION 'the first project is never archived' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER api_key_projects_guard BEFORE UPDATE ON keyguard.api_key_projects
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_project();

-- A device enrolls into a project that is not archived.
GRANT EXECUTE ON FUNCTION keyguard.project_is_open(text) TO kg_verifier;

-- To see a project is less than to change the keys in it.
ALTER POLICY stored_api_keys_app_read ON keyguard.stored_api_keys
  USING ((SELECT keyguard.is_administrator()) OR keyguard.acting_owns_project(project_id)
    OR keyguard.acting_has_permission('api_keys:read', project_id));
ALTER POLICY stored_api_keys_app_add ON keyguard.stored_api_keys
  WITH CHECK (owner_id = keyguard.acting_user_id() AND source = 'api' AND keyguard.project_is_open(project_id)
    AND ((SELECT keyguard.is_administrator()) OR keyguard.acting_owns_project(project_id)
      OR keyguard.acting_has_permission('api_keys:write', project_id)));
ALTER POLICY stored_api_keys_app_change ON keyguard.stored_api_keys
  USING ((SELECT keyguard.is_administrator()) OR keyguard.acting_owns_project(project_id)
    OR keyguard.acting_has_permission('api_keys:write', project_id));

-- Whoever may change a project sees who is in it.
CREATE POLICY secret_user_roles_app_read_of_project ON keyguard.secret_user_roles FOR SELECT TO kg_app
  USING (project_id IS NOT NULL AND keyguard.acting_has_permission('projects:write', project_id));
