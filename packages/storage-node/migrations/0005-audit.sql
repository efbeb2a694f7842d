-- The audit log: one chain of records per origin, append-only, and the head from which the next record follows. The columns
-- beside entry are copies to filter by, cut to length; what counts, and what the MAC covers, are the bytes of entry.

CREATE TABLE keyguard.secret_audit_logs (
  origin text COLLATE "C" NOT NULL,
  seq bigint NOT NULL CHECK (seq >= 0),
  ts_ms bigint NOT NULL,
  actor text NOT NULL,
  device_id text,
  action text NOT NULL,
  resource text,
  outcome text NOT NULL,
  ip text,
  request_id text,
  entry bytea NOT NULL,
  prev_mac bytea NOT NULL CHECK (pg_catalog.octet_length(prev_mac) = 32),
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32),
  mac_key_id text NOT NULL,
  PRIMARY KEY (origin, seq)
);
CREATE INDEX secret_audit_logs_by_actor ON keyguard.secret_audit_logs (actor, seq);
CREATE INDEX secret_audit_logs_by_device ON keyguard.secret_audit_logs (device_id, seq) WHERE device_id IS NOT NULL;
CREATE INDEX secret_audit_logs_by_time ON keyguard.secret_audit_logs USING brin (ts_ms);

-- No role but kg_owner has any right on it: a role reads it through lock_audit_head and moves it by inserting records.
CREATE TABLE keyguard.audit_heads (
  origin text COLLATE "C" PRIMARY KEY,
  -- The number of the last record; -1 before the first.
  seq bigint NOT NULL,
  mac bytea NOT NULL CHECK (pg_catalog.octet_length(mac) = 32),
  mac_key_id text
);

ALTER TABLE keyguard.secret_audit_logs ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.secret_audit_logs FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.audit_heads ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.audit_heads FORCE ROW LEVEL SECURITY;

CREATE POLICY secret_audit_logs_app_add ON keyguard.secret_audit_logs FOR INSERT TO kg_app
  WITH CHECK (keyguard.acting_user_id() IS NOT NULL);
CREATE POLICY secret_audit_logs_service_add ON keyguard.secret_audit_logs FOR INSERT TO kg_verifier, kg_auth, kg_jobs
  WITH CHECK (true);
CREATE POLICY secret_audit_logs_app_read ON keyguard.secret_audit_logs FOR SELECT TO kg_app
  USING (actor = 'user:' || keyguard.acting_user_id() OR (SELECT keyguard.is_administrator()));
CREATE POLICY secret_audit_logs_jobs_read ON keyguard.secret_audit_logs FOR SELECT TO kg_jobs USING (true);
GRANT INSERT ON keyguard.secret_audit_logs TO kg_app, kg_verifier, kg_auth, kg_jobs;
GRANT SELECT ON keyguard.secret_audit_logs TO kg_app, kg_jobs;

-- For the two functions below, which run as kg_owner.
CREATE POLICY audit_heads_owner_read ON keyguard.audit_heads FOR SELECT TO kg_owner USING (true);
CREATE POLICY audit_heads_owner_begin ON keyguard.audit_heads FOR INSERT TO kg_owner WITH CHECK (seq = -1);
CREATE POLICY audit_heads_owner_move ON keyguard.audit_heads FOR UPDATE TO kg_owner USING (true) WITH CHECK (true);

-- Append-only also for those to whom no grant applies. A superuser can switch a trigger off; the MAC chain and the checkpoints
-- are there for that.
CREATE FUNCTION keyguard.refuse_change() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER secret_audit_logs_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON keyguard.secret_audit_logs
  FOR EACH STATEMENT EXECUTE FUNCTION keyguard.refuse_change();
CREATE TRIGGER audit_heads_kept BEFORE DELETE OR TRUNCATE ON keyguard.audit_heads
  FOR EACH STATEMENT EXECUTE FUNCTION keyguard.refuse_change();

-- The head of a chain, locked until the transaction ends: whoever holds it is the only one who can append. To be taken as the
-- last lock of a transaction, or two of them can wait for each other.
CREATE FUNCTION keyguard.lock_audit_head(origin text) RETURNS TABLE (seq bigint, mac bytea, mac_key_id text)
  LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY SELECT h.seq, h.mac, h.mac_key_id FROM keyguard.audit_heads h
    WHERE h.origin = lock_audit_head.origin FOR UPDATE;
  IF NOT FOUND THEN
    INSERT INTO keyguard.audit_heads VALUES (lock_audit_head.origin, -1, decode(repeat('00', 32), 'hex'), NULL)
      ON CONFLICT DO NOTHING;
    RETURN QUERY SELECT h.seq, h.mac, h.mac_key_id FROM keyguard.audit_heads h
      WHERE h.origin = lock_audit_head.origin FOR UPDATE;
  END IF;
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.lock_audit_head(text) TO kg_app, kg_verifier, kg_auth, kg_jobs;

-- Whatever is inserted must continue its chain: no gap, no fork, each record naming the MAC of the one before. The MACs
-- themselves are for who holds the key. Once per statement, so that a batch costs one look at the head.
CREATE FUNCTION keyguard.continue_audit_chain() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  head keyguard.audit_heads%ROWTYPE;
  last_record record;
  added_rows bigint;
  first_seq bigint;
  origins bigint;
  unlinked bigint;
BEGIN
  SELECT count(*), min(a.seq), count(DISTINCT a.origin) INTO added_rows, first_seq, origins FROM added a;
  IF added_rows = 0 THEN
    RETURN NULL;
  END IF;
  SELECT a.origin, a.seq, a.mac, a.mac_key_id INTO last_record FROM added a ORDER BY a.seq DESC LIMIT 1;
  SELECT * INTO head FROM keyguard.audit_heads h WHERE h.origin = last_record.origin FOR UPDATE;
  IF NOT FOUND OR origins <> 1 OR first_seq <> head.seq + 1 OR last_record.seq - head.seq <> added_rows THEN
    RAISE EXCEPTION 'records do not continue the audit chain' USING ERRCODE = 'check_violation';
  END IF;
  SELECT count(*) INTO unlinked
    FROM (SELECT a.prev_mac, lag(a.mac, 1, head.mac) OVER (ORDER BY a.seq) AS expected FROM added a) links
    WHERE links.prev_mac <> links.expected;
  IF unlinked > 0 THEN
    RAISE EXCEPTION 'records do not continue the audit chain' USING ERRCODE = 'check_violation';
  END IF;
  UPDATE keyguard.audit_heads h SET seq = last_record.seq, mac = last_record.mac, mac_key_id = last_record.mac_key_id
    WHERE h.origin = last_record.origin;
  RETURN NULL;
END
$$;
CREATE TRIGGER secret_audit_logs_continue AFTER INSERT ON keyguard.secret_audit_logs
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION keyguard.continue_audit_chain();
