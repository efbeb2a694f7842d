-- Who acts, and who administers. Every numbered file runs as kg_owner with an empty search path: all names are written in full.

-- The user for whom kg_app acts, or NULL, which no policy matches. An empty text is what a reset setting leaves behind.
CREATE FUNCTION keyguard.acting_user_id() RETURNS text
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN nullif(pg_catalog.current_setting('app.user_id', true), '');
GRANT EXECUTE ON FUNCTION keyguard.acting_user_id() TO kg_app;

-- People live in the schema of whoever runs sign-in; policies here must not read it, and it must not matter which it is. So the
-- one fact that policies need of a person has a table of its own, which kg_auth fills in the transaction that changes a role.
--
-- A policy holds no key and sees the row only, so a row that somebody wrote into this table opens every policy that asks below. What
-- stops its author is the application: it reads the acting user's row here, in the transaction in which that user acts, and checks
-- the MAC. Policies and application MUST both agree before anybody acts as an administrator.
CREATE TABLE keyguard.administrators (
  user_id text PRIMARY KEY CHECK (user_id <> ''),
  granted_by text NOT NULL,
  granted_at_ms bigint NOT NULL,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32)
);
ALTER TABLE keyguard.administrators ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.administrators FORCE ROW LEVEL SECURITY;
-- About the acting user, and about nobody else.
CREATE POLICY administrators_app_read_acting ON keyguard.administrators FOR SELECT TO kg_app
  USING (user_id = keyguard.acting_user_id());
CREATE POLICY administrators_auth_read ON keyguard.administrators FOR SELECT TO kg_auth USING (true);
CREATE POLICY administrators_auth_add ON keyguard.administrators FOR INSERT TO kg_auth WITH CHECK (true);
CREATE POLICY administrators_auth_remove ON keyguard.administrators FOR DELETE TO kg_auth USING (true);
GRANT SELECT ON keyguard.administrators TO kg_app;
GRANT SELECT, INSERT, DELETE ON keyguard.administrators TO kg_auth;

-- Whether the acting user has a row. Policies of any table may ask it, for kg_app: it reads one table, as kg_app, whose policy asks
-- nothing back.
CREATE FUNCTION keyguard.is_administrator() RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN EXISTS (SELECT FROM keyguard.administrators WHERE user_id = keyguard.acting_user_id());
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.is_administrator() TO kg_app;
