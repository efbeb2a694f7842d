-- What a one-time link has beside other shares: which version of the value it opens, and, where a passphrase is asked for, its scrypt
-- hash and how many tries are under way or were wrong.

ALTER TABLE keyguard.secret_shares
  ADD COLUMN version integer CHECK (version > 0),
  ADD COLUMN passphrase_hash text CHECK (pg_catalog.length(passphrase_hash) BETWEEN 1 AND 512),
  ADD COLUMN tries integer NOT NULL DEFAULT 0 CHECK (tries >= 0),
  ADD CONSTRAINT secret_shares_of_links CHECK (CASE WHEN grantee_type = 'link'
    THEN version IS NOT NULL AND max_views BETWEEN 1 AND 100 AND expires_at_ms IS NOT NULL
    ELSE version IS NULL AND passphrase_hash IS NULL AND tries = 0 AND views = 0 END);

-- Neither hash is ever read back by whoever acts for a person.
GRANT SELECT (version) ON keyguard.secret_shares TO kg_app;
GRANT INSERT (version, passphrase_hash) ON keyguard.secret_shares TO kg_app;
GRANT UPDATE (tries) ON keyguard.secret_shares TO kg_verifier;
