-- A chain may go over to another MAC key, at a record that the key before it vouches for: see docs/spec/audit.md, section 5.

ALTER TABLE keyguard.secret_audit_logs
  ADD COLUMN handover_mac bytea CHECK (pg_catalog.octet_length(handover_mac) = 32),
  ADD COLUMN handover_mac_key_id text,
  ADD CONSTRAINT secret_audit_logs_handover_whole CHECK ((handover_mac IS NULL) = (handover_mac_key_id IS NULL));

-- As before, and: the key id changes only where the record says which key hands over, and that is the key of the one before.
CREATE OR REPLACE FUNCTION keyguard.continue_audit_chain() RETURNS trigger
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
    FROM (SELECT a.prev_mac, lag(a.mac, 1, head.mac) OVER (ORDER BY a.seq) AS expected, a.mac_key_id, a.handover_mac_key_id,
        lag(a.mac_key_id, 1, head.mac_key_id) OVER (ORDER BY a.seq) AS key_before FROM added a) links
    WHERE links.prev_mac <> links.expected
      OR links.handover_mac_key_id IS DISTINCT FROM CASE WHEN links.key_before <> links.mac_key_id THEN links.key_before END;
  IF unlinked > 0 THEN
    RAISE EXCEPTION 'records do not continue the audit chain' USING ERRCODE = 'check_violation';
  END IF;
  UPDATE keyguard.audit_heads h SET seq = last_record.seq, mac = last_record.mac, mac_key_id = last_record.mac_key_id
    WHERE h.origin = last_record.origin;
  RETURN NULL;
END
$$;
