-- To which models a project holds its devices, beside the lists of their own. Under the MAC of the row wherever there is a list.

ALTER TABLE keyguard.api_key_projects ADD COLUMN allowed_models text[];
GRANT UPDATE (allowed_models) ON keyguard.api_key_projects TO kg_app;

-- What binds a device is read for each device that was just verified. The name of a project is nothing that a call needs.
CREATE POLICY api_key_projects_verifier_read ON keyguard.api_key_projects FOR SELECT TO kg_verifier USING (true);
GRANT SELECT (id, owner_id, environment, archived_at_ms, allowed_models, mac_key_id, mac) ON keyguard.api_key_projects TO kg_verifier;

CREATE OR REPLACE FUNCTION keyguard.guard_project() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NEW.id <> OLD.id OR NEW.owner_id <> OLD.owner_id THEN
    RAISE EXCEPTION 'a project never changes its owner' USING ERRCODE = 'check_violation';
  END IF;
  IF OLD.archived_at_ms IS NOT NULL AND (NEW.archived_at_ms, NEW.name, NEW.environment, NEW.allowed_models)
    IS DISTINCT FROM (OLD.archived_at_ms, OLD.name, OLD.environment, OLD.allowed_models) THEN
    RAISE EXCEPTION 'a project that is archived stays as it is' USING ERRCODE = 'check_violation';
  END IF;
  IF OLD.id = 'default' AND NEW.archived_at_ms IS NOT NULL THEN
    RAISE EXCEPTION 'the first project is never archived' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
