-- What one administrator has asked for and a second one must ask for as well: that somebody administers, or does so no longer. A row
-- bears a MAC: without one, whoever writes to the database could be the second administrator.
CREATE TABLE keyguard_auth.administrator_requests (
  id text PRIMARY KEY CHECK (id <> ''),
  kind text NOT NULL CHECK (kind IN ('make', 'unmake')),
  subject_id text NOT NULL REFERENCES keyguard_auth.users ON DELETE CASCADE,
  requested_by text NOT NULL REFERENCES keyguard_auth.users ON DELETE CASCADE,
  requested_at_ms bigint NOT NULL,
  expires_at_ms bigint NOT NULL,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32),
  UNIQUE (kind, subject_id, requested_by)
);
ALTER TABLE keyguard_auth.administrator_requests ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard_auth.administrator_requests FORCE ROW LEVEL SECURITY;
CREATE POLICY administrator_requests_auth ON keyguard_auth.administrator_requests FOR ALL TO kg_auth USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE ON keyguard_auth.administrator_requests TO kg_auth;

-- An invitation that gives power is approved by a second administrator. The approval bears a MAC of its own, over the invitation and
-- over who approved it.
ALTER TABLE keyguard_auth.invitations
  ADD COLUMN approved_by text,
  ADD COLUMN approved_at_ms bigint,
  ADD COLUMN approval_mac_key_id text,
  ADD COLUMN approval_mac bytea,
  ADD CHECK ((approved_by IS NULL) = (approved_at_ms IS NULL) AND (approved_by IS NULL) = (approval_mac IS NULL)
    AND (approved_by IS NULL) = (approval_mac_key_id IS NULL)),
  ADD CHECK (approved_by <> invited_by);
GRANT UPDATE (approved_by, approved_at_ms, approval_mac_key_id, approval_mac) ON keyguard_auth.invitations TO kg_auth;
-- By whom somebody was let in.
CREATE INDEX invitations_by_accepted ON keyguard_auth.invitations (accepted_user_id) WHERE accepted_user_id IS NOT NULL;
