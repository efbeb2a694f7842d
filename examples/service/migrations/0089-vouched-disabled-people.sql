-- Sign-in still sees nothing by which a disabled person signs in. Whoever gives a person the MAC over it says so, and sees it for that one statement
-- (src/auth/vouched-people.ts): a person who is disabled is vouched for as well, and is who they were once they are enabled again.
ALTER POLICY accounts_auth ON keyguard_auth.accounts
  USING (NOT EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = accounts.user_id)
    OR pg_catalog.current_setting('keyguard.vouching', true) IS NOT DISTINCT FROM 'on')
  WITH CHECK (NOT EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = accounts.user_id));
