-- So that what a person has made is counted before more is made, however much others have: see src/settings/quotas.ts.
CREATE INDEX secret_shares_open_by_creator ON keyguard.secret_shares (created_by) WHERE revoked_at_ms IS NULL;
CREATE INDEX api_key_projects_open_by_owner ON keyguard.api_key_projects (owner_id) WHERE archived_at_ms IS NULL;
CREATE INDEX enrollment_codes_open_by_creator ON keyguard.enrollment_codes (created_by) WHERE revoked_at_ms IS NULL;
CREATE INDEX invitations_open_by_inviter ON keyguard_auth.invitations (invited_by) WHERE accepted_at_ms IS NULL AND revoked_at_ms IS NULL;
