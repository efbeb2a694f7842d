-- What each append waits for: the trigger looked at the added rows three times and at the head three times. Now once at each.

-- Whatever is inserted must continue its chain, as before: no gap, no fork, each record naming the MAC of the one before, and the key
-- id changing only where the record says which key hands over. The head is compared and moved by one statement, which waits for
-- whoever else moves it, and then finds it elsewhere.
CREATE OR REPLACE FUNCTION keyguard.continue_audit_chain() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  batch record;
BEGIN
  -- Within the batch each row follows the one before it; of the first row and the last, what the head needs.
  SELECT count(*) AS added_rows, min(links.seq) AS first_seq, max(links.seq) AS last_seq, min(links.origin) AS origin, max(links.origin) AS last_origin,
      (array_agg(links.prev_mac) FILTER (WHERE links.mac_before IS NULL))[1] AS first_prev_mac,
      (array_agg(links.mac_key_id) FILTER (WHERE links.mac_before IS NULL))[1] AS first_key,
      (array_agg(links.handover_mac_key_id) FILTER (WHERE links.mac_before IS NULL))[1] AS first_handover,
      (array_agg(links.mac) FILTER (WHERE links.is_last))[1] AS last_mac,
      (array_agg(links.mac_key_id) FILTER (WHERE links.is_last))[1] AS last_key,
      count(*) FILTER (WHERE links.mac_before IS NOT NULL AND (links.prev_mac <> links.mac_before
        OR links.handover_mac_key_id IS DISTINCT FROM CASE WHEN links.key_before <> links.mac_key_id THEN links.key_before END)) AS unlinked
    INTO batch
    FROM (SELECT a.origin, a.seq, a.prev_mac, a.mac, a.mac_key_id, a.handover_mac_key_id, lag(a.mac) OVER by_seq AS mac_before,
        lag(a.mac_key_id) OVER by_seq AS key_before, lead(a.seq) OVER by_seq IS NULL AS is_last
      FROM added a WINDOW by_seq AS (ORDER BY a.seq)) links;
  IF batch.added_rows = 0 THEN
    RETURN NULL;
  END IF;
  IF batch.origin <> batch.last_origin OR batch.unlinked > 0 OR batch.last_seq - batch.first_seq <> batch.added_rows - 1 THEN
    RAISE EXCEPTION 'records do not continue the audit chain' USING ERRCODE = 'check_violation';
  END IF;
  UPDATE keyguard.audit_heads h SET seq = batch.last_seq, mac = batch.last_mac, mac_key_id = batch.last_key
    WHERE h.origin = batch.origin AND h.seq = batch.first_seq - 1 AND h.mac = batch.first_prev_mac
      AND batch.first_handover IS NOT DISTINCT FROM CASE WHEN h.mac_key_id <> batch.first_key THEN h.mac_key_id END;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'records do not continue the audit chain' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NULL;
END
$$;
