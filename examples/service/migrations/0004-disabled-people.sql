-- People who may not come in for now. The row takes away, so it bears no MAC: whoever could forge it could delete it as well.
CREATE TABLE keyguard.disabled_people (
  user_id text PRIMARY KEY CHECK (user_id <> ''),
  disabled_by text NOT NULL,
  disabled_at_ms bigint NOT NULL
);
ALTER TABLE keyguard.disabled_people ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.disabled_people FORCE ROW LEVEL SECURITY;
CREATE POLICY disabled_people_auth_read ON keyguard.disabled_people FOR SELECT TO kg_auth USING (true);
CREATE POLICY disabled_people_auth_add ON keyguard.disabled_people FOR INSERT TO kg_auth WITH CHECK (true);
CREATE POLICY disabled_people_auth_remove ON keyguard.disabled_people FOR DELETE TO kg_auth USING (true);
CREATE POLICY disabled_people_app_read ON keyguard.disabled_people FOR SELECT TO kg_app
  USING (user_id = keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()));
-- A device of theirs must not enroll.
CREATE POLICY disabled_people_verifier_read ON keyguard.disabled_people FOR SELECT TO kg_verifier USING (true);
GRANT SELECT, INSERT, DELETE ON keyguard.disabled_people TO kg_auth;
GRANT SELECT ON keyguard.disabled_people TO kg_app, kg_verifier;

-- Sign-in sees neither the password nor the sessions of a disabled person, by whatever way it looks, and can give them no new ones:
-- the answer is the one for a wrong password, and a session that was being made at that moment is worth nothing.
ALTER POLICY sessions_auth ON keyguard_auth.sessions
  USING (NOT EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = sessions.user_id))
  WITH CHECK (NOT EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = sessions.user_id));
ALTER POLICY accounts_auth ON keyguard_auth.accounts
  USING (NOT EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = accounts.user_id))
  WITH CHECK (NOT EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = accounts.user_id));
