-- Processes that append to one chain take turns. A row lock keeps no order: whoever has just committed can have it again before the
-- one that waits has woken, and with each new version of the row all who wait for it start over. So a process could wait for many
-- turns of others, up to its timeout. An advisory lock is handed to who has waited longest, and wakes nobody else.

-- As before, and: in the order in which it was asked for. The row is still locked: it is what the trigger looks at, and what holds
-- against whoever inserts without asking here.
CREATE OR REPLACE FUNCTION keyguard.lock_audit_head(origin text) RETURNS TABLE (seq bigint, mac bytea, mac_key_id text)
  LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('keyguard.audit_head ' || lock_audit_head.origin, 0));
  -- A statement of its own, so that it sees what the one before has committed.
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
