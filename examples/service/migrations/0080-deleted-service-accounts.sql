-- Whose a service account was, once it is deleted: what it had made stays, and counts with that person (src/settings/quotas.ts).
CREATE TABLE keyguard.deleted_service_accounts (
  id text PRIMARY KEY CHECK (id <> ''),
  owner_id text NOT NULL CHECK (owner_id <> '')
);
CREATE INDEX deleted_service_accounts_by_owner ON keyguard.deleted_service_accounts (owner_id);
ALTER TABLE keyguard.deleted_service_accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.deleted_service_accounts FORCE ROW LEVEL SECURITY;
CREATE POLICY deleted_service_accounts_auth ON keyguard.deleted_service_accounts FOR ALL TO kg_auth USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON keyguard.deleted_service_accounts TO kg_auth;
