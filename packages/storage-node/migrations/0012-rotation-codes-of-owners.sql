-- Whoever sees a device by some other right than owning it, or administering, may still not replace its key.
ALTER POLICY rotation_codes_app_read ON keyguard.rotation_codes
  USING (EXISTS (SELECT FROM keyguard.devices d WHERE d.device_id = rotation_codes.device_id
    AND (d.owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()))));
ALTER POLICY rotation_codes_app_create ON keyguard.rotation_codes
  WITH CHECK (created_by = keyguard.acting_user_id() AND EXISTS (SELECT FROM keyguard.devices d WHERE d.device_id = rotation_codes.device_id
    AND (d.owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()))));
ALTER POLICY rotation_codes_app_revoke ON keyguard.rotation_codes
  USING (EXISTS (SELECT FROM keyguard.devices d WHERE d.device_id = rotation_codes.device_id
    AND (d.owner_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()))));
