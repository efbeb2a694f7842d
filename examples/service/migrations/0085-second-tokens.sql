-- The approval of an invitation makes a second token, so that whoever made the invitation does not come in by it themself. Its hash is
-- under the MAC of the approval. It is null where nobody came in by the approval; an approval of before this has none, and is
-- worth nothing: it is given again.
ALTER TABLE keyguard_auth.invitations
  ADD COLUMN approval_token_hash text COLLATE "C" CHECK (approval_token_hash ~ '^[A-Za-z0-9_-]{43}$'),
  ADD CHECK (approval_token_hash IS NULL OR approved_by IS NOT NULL);
GRANT UPDATE (approval_token_hash) ON keyguard_auth.invitations TO kg_auth;
