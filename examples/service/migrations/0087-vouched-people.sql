-- What people sign in by bears a MAC: one for each person, over address, password, links to a provider and second factor (src/auth/vouched-people.ts).
-- People of before have none; the service gives it to them once, at its next start, and says so in the audit log (src/auth/adopted-people.ts).
ALTER TABLE keyguard_auth.users
  ADD COLUMN mac_key_id text,
  ADD COLUMN mac bytea CHECK (pg_catalog.octet_length(mac) = 32),
  ADD CHECK ((mac IS NULL) = (mac_key_id IS NULL));
