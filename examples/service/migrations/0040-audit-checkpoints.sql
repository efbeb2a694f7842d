-- What makes the audit log provable: its Merkle tree in tiles that never change, the checkpoints that were signed over it, and which
-- chain of records is the present one. All of it is for kg_jobs: it holds hashes and signatures, and no entry.

-- The tree in tiles of 256: the tile (level, place) holds the hashes of the complete subtrees of height 8 * level from 256 * place on,
-- one after the other, and the root over them, which is the hash of the same place one level up. Only complete tiles are kept; what
-- stands to the right of the last one is made anew of at most 255 entries, and of at most 255 roots for each level.
CREATE TABLE keyguard.audit_tree_tiles (
  origin text COLLATE "C" NOT NULL,
  level smallint NOT NULL CHECK (level BETWEEN 0 AND 6),
  place bigint NOT NULL CHECK (place >= 0),
  hashes bytea NOT NULL CHECK (pg_catalog.octet_length(hashes) = 8192),
  root bytea NOT NULL CHECK (pg_catalog.octet_length(root) = 32),
  PRIMARY KEY (origin, level, place)
);
-- Hashes do not get smaller by trying.
ALTER TABLE keyguard.audit_tree_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- What was signed. The same notes are kept outside of the database too, where its writers cannot reach them.
CREATE TABLE keyguard.audit_checkpoints (
  origin text COLLATE "C" NOT NULL,
  tree_size bigint NOT NULL CHECK (tree_size >= 0),
  root_hash bytea NOT NULL CHECK (pg_catalog.octet_length(root_hash) = 32),
  signed_note text NOT NULL,
  created_at_ms bigint NOT NULL,
  PRIMARY KEY (origin, tree_size)
);

-- Whose turn it is to sign: replicas share the work, and one that dies in its turn holds up the others for half a minute.
CREATE TABLE keyguard.audit_checkpoint_turns (
  origin text COLLATE "C" PRIMARY KEY,
  holder text NOT NULL,
  until_ms bigint NOT NULL
);

-- The chains that began after an acknowledged restore; the last one is the present one. Without a row it is the first chain of the
-- deployment. Bears a MAC: a writer of the database must not be able to begin a new log.
CREATE TABLE keyguard.audit_chains (
  number integer PRIMARY KEY CHECK (number > 0),
  origin text COLLATE "C" NOT NULL UNIQUE,
  begun_at_ms bigint NOT NULL,
  mac_key_id text NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32)
);

DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['audit_tree_tiles', 'audit_checkpoints', 'audit_chains', 'audit_checkpoint_turns'] LOOP
    EXECUTE format('ALTER TABLE keyguard.%I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE keyguard.%I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY %I ON keyguard.%I FOR SELECT TO kg_jobs USING (true)', name || '_jobs_read', name);
    EXECUTE format('CREATE POLICY %I ON keyguard.%I FOR INSERT TO kg_jobs WITH CHECK (true)', name || '_jobs_add', name);
    EXECUTE format('GRANT SELECT, INSERT ON keyguard.%I TO kg_jobs', name);
  END LOOP;
  -- Append-only also for those to whom no grant applies.
  FOREACH name IN ARRAY ARRAY['audit_tree_tiles', 'audit_checkpoints', 'audit_chains'] LOOP
    EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE OR DELETE OR TRUNCATE ON keyguard.%I
      FOR EACH STATEMENT EXECUTE FUNCTION keyguard.refuse_change()', name || '_append_only', name);
  END LOOP;
END
$$;
CREATE POLICY audit_checkpoint_turns_jobs_move ON keyguard.audit_checkpoint_turns FOR UPDATE TO kg_jobs USING (true) WITH CHECK (true);
GRANT UPDATE (holder, until_ms) ON keyguard.audit_checkpoint_turns TO kg_jobs;

-- What the database itself says of the end of a chain, without holding up who appends.
CREATE FUNCTION keyguard.audit_head(origin text) RETURNS TABLE (size bigint, mac bytea, mac_key_id text)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS $$ SELECT h.seq + 1, h.mac, h.mac_key_id FROM keyguard.audit_heads h WHERE h.origin = audit_head.origin $$;
GRANT EXECUTE ON FUNCTION keyguard.audit_head(text) TO kg_jobs;

-- Everything about one thing, by its number: the questions that are asked after something has happened.
CREATE INDEX secret_audit_logs_by_resource ON keyguard.secret_audit_logs (resource, seq) WHERE resource IS NOT NULL;
CREATE INDEX secret_audit_logs_by_ip ON keyguard.secret_audit_logs (ip, seq) WHERE ip IS NOT NULL;
CREATE INDEX secret_audit_logs_by_request ON keyguard.secret_audit_logs (request_id, seq) WHERE request_id IS NOT NULL;
CREATE INDEX secret_audit_logs_by_action ON keyguard.secret_audit_logs (action text_pattern_ops, seq);
CREATE INDEX secret_audit_logs_by_failure ON keyguard.secret_audit_logs (outcome, seq) WHERE outcome <> 'success';
