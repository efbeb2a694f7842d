-- Who holds a role with devices:read or devices:write in a project, or everywhere, sees the devices there; with devices:write also
-- shuts them, and lets in again what they shut themselves. Approving, resuming what somebody else suspended, and limits stay with
-- administrators: the trigger on devices says so for everybody. A device that waits without an owner is in no project, and theirs alone.
CREATE POLICY devices_app_read_by_role ON keyguard.devices FOR SELECT TO kg_app
  USING (project_id IS NOT NULL
    AND (keyguard.acting_has_permission('devices:read', project_id) OR keyguard.acting_has_permission('devices:write', project_id)));
CREATE POLICY devices_app_change_by_role ON keyguard.devices FOR UPDATE TO kg_app
  USING (project_id IS NOT NULL AND keyguard.acting_has_permission('devices:write', project_id))
  WITH CHECK (project_id IS NOT NULL AND keyguard.acting_has_permission('devices:write', project_id));

-- Before a device is let in again, whether its owner may come in.
CREATE POLICY disabled_people_app_read_of_devices ON keyguard.disabled_people FOR SELECT TO kg_app
  USING (EXISTS (SELECT FROM keyguard.devices d WHERE d.owner_id = disabled_people.user_id
    AND d.project_id IS NOT NULL AND keyguard.acting_has_permission('devices:write', d.project_id)));
