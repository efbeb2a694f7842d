-- What a request waits for takes one statement, and so one round trip and one commit: many claims together, and an append to the log
-- by a process that knows where the head is.

-- As claim_nonce, for each of the pairs, in this order. Callers MUST sort them: two batches that insert the same pairs in different
-- orders would wait for each other. The floor is read once, after all inserts, by a statement with a snapshot of its own.
CREATE FUNCTION keyguard.claim_nonces(key_ids text[], nonces text[], created_seconds bigint[], expires_at_ms bigint[]) RETURNS boolean[]
  LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  claimed boolean[] := '{}';
  floor_seconds bigint;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'a nonce is claimed under READ COMMITTED only' USING ERRCODE = 'invalid_transaction_state';
  END IF;
  FOR i IN 1 .. cardinality(key_ids) LOOP
    INSERT INTO keyguard.used_nonces VALUES (claim_nonces.key_ids[i], claim_nonces.nonces[i], claim_nonces.created_seconds[i],
      claim_nonces.expires_at_ms[i]) ON CONFLICT DO NOTHING;
    claimed[i] := FOUND;
  END LOOP;
  SELECT f.floor_seconds INTO floor_seconds FROM keyguard.nonce_floor f;
  FOR i IN 1 .. cardinality(key_ids) LOOP
    claimed[i] := claimed[i] AND claim_nonces.created_seconds[i] > floor_seconds;
  END LOOP;
  RETURN claimed;
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.claim_nonces(text[], text[], bigint[], bigint[]) TO kg_verifier;
ALTER FUNCTION keyguard.claim_nonces(text[], text[], bigint[], bigint[]) SET role = kg_verifier;

-- The records that follow the head of their chain, by whatever role calls; the trigger demands that they do. Bytes come as base64,
-- because an array of them has no other form that every driver writes alike.
CREATE FUNCTION keyguard.add_audit_records(origin text, ts_ms bigint, mac_key_id text, handover_seq bigint, handover_mac text,
    handover_mac_key_id text, seqs bigint[], actors text[], device_ids text[], actions text[], resources text[], outcomes text[],
    ips text[], request_ids text[], entries text[], prev_macs text[], macs text[]) RETURNS void
  LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  INSERT INTO keyguard.secret_audit_logs (origin, seq, ts_ms, actor, device_id, action, resource, outcome, ip, request_id,
      entry, prev_mac, mac, mac_key_id, handover_mac, handover_mac_key_id)
    SELECT add_audit_records.origin, r.seq, add_audit_records.ts_ms, r.actor, r.device_id, r.action, r.resource, r.outcome, r.ip, r.request_id,
      decode(r.entry, 'base64'), decode(r.prev_mac, 'base64'), decode(r.mac, 'base64'), add_audit_records.mac_key_id,
      CASE r.seq WHEN add_audit_records.handover_seq THEN decode(add_audit_records.handover_mac, 'base64') END,
      CASE r.seq WHEN add_audit_records.handover_seq THEN add_audit_records.handover_mac_key_id END
    FROM unnest(seqs, actors, device_ids, actions, resources, outcomes, ips, request_ids, entries, prev_macs, macs)
      AS r (seq, actor, device_id, action, resource, outcome, ip, request_id, entry, prev_mac, mac);
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.add_audit_records(text, bigint, text, bigint, text, text, bigint[], text[], text[], text[], text[],
  text[], text[], text[], text[], text[], text[]) TO kg_app, kg_verifier, kg_auth, kg_jobs;

-- Adds the records where the head is the one that they follow, and answers true; where it is not, or where somebody else has the turn
-- or waits for it, answers false, and has added nothing. lock_timeout_ms bounds the wait for whoever holds the row without a turn.
CREATE FUNCTION keyguard.add_audit_records_after(head_seq bigint, head_mac text, lock_timeout_ms bigint, origin text, ts_ms bigint, mac_key_id text,
    handover_seq bigint, handover_mac text, handover_mac_key_id text, seqs bigint[], actors text[], device_ids text[], actions text[],
    resources text[], outcomes text[], ips text[], request_ids text[], entries text[], prev_macs text[], macs text[]) RETURNS boolean
  LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  head record;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtextextended('keyguard.audit_head ' || origin, 0)) THEN
    RETURN false;
  END IF;
  PERFORM set_config('lock_timeout', lock_timeout_ms::text, true);
  SELECT h.seq, h.mac INTO head FROM keyguard.lock_audit_head(origin) h;
  IF head.seq <> head_seq OR head.mac <> decode(head_mac, 'base64') THEN
    RETURN false;
  END IF;
  PERFORM keyguard.add_audit_records(origin, ts_ms, mac_key_id, handover_seq, handover_mac, handover_mac_key_id, seqs, actors, device_ids,
    actions, resources, outcomes, ips, request_ids, entries, prev_macs, macs);
  RETURN true;
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.add_audit_records_after(bigint, text, bigint, text, bigint, text, bigint, text, text, bigint[], text[],
  text[], text[], text[], text[], text[], text[], text[], text[], text[]) TO kg_verifier;
ALTER FUNCTION keyguard.add_audit_records_after(bigint, text, bigint, text, bigint, text, bigint, text, text, bigint[], text[], text[],
  text[], text[], text[], text[], text[], text[], text[], text[]) SET role = kg_verifier;
