-- Which devices changed, for processes that keep what they know of them: decision 0018.
--
-- Each device bears the transaction that changed it last. Whoever asked before remembers the snapshot in which it did: what that
-- snapshot did not show, and the present one does, was committed in between, in whatever order. A number drawn from a sequence
-- would not do (a transaction that drew a lower one may commit after the reader has passed it), nor a time. Nothing is locked for
-- this, and there are no rows to purge: one per device, however often it changes.

ALTER TABLE keyguard.devices ADD COLUMN changed_xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id();

-- changed_at_ms is for people: it is read before the commit, so it says nothing about order.
DROP INDEX keyguard.devices_by_change;
CREATE INDEX devices_by_change ON keyguard.devices (changed_xid);

CREATE FUNCTION keyguard.note_device_change() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  NEW.changed_xid := pg_current_xact_id();
  -- Carries nothing: it makes those who listen ask sooner.
  PERFORM pg_notify('keyguard_device_changes', '');
  RETURN NEW;
END
$$;
-- Of everything but last_seen_at_ms and last_ip, which tell a verifier nothing and are written often.
CREATE TRIGGER devices_note_change BEFORE UPDATE OF device_id, owner_id, project_id, status, label, fingerprint,
  rate_limit_per_min, ip_allowlist, allowed_models, created_at_ms, pending_until_ms, enrollment_code_id, approved_by,
  approved_at_ms, status_changed_by, changed_at_ms, mac_key_id, mac, changed_xid ON keyguard.devices
  FOR EACH ROW EXECUTE FUNCTION keyguard.note_device_change();

-- A device changes with its keys. Whoever may write a key and not mark its device cannot write the key either.
CREATE FUNCTION keyguard.note_device_key_change() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE keyguard.devices d SET changed_xid = pg_current_xact_id()
    WHERE d.device_id IN (OLD.device_id, NEW.device_id) AND d.changed_xid <> pg_current_xact_id();
  RETURN NULL;
END
$$;
CREATE TRIGGER device_keys_note_change AFTER INSERT OR UPDATE OR DELETE ON keyguard.device_keys
  FOR EACH ROW EXECUTE FUNCTION keyguard.note_device_key_change();
-- What is written there does not matter: the trigger above puts the transaction's own number in its place.
GRANT UPDATE (changed_xid) ON keyguard.devices TO kg_verifier;

-- One poll: the devices that changed since the one that answered with this cursor, and the next cursor. device_ids is NULL where
-- that cannot be told: any device may have changed. Both snapshots are exact, so nothing is told twice and nothing left out.
CREATE FUNCTION keyguard.changed_devices(since_server text, since_snapshot pg_snapshot, max_devices integer)
  RETURNS TABLE (server text, snapshot text, device_ids text[])
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  -- A stable function sees the snapshot of the statement that calls it, in each of its own statements.
  present CONSTANT pg_snapshot := pg_current_snapshot();
  -- Another server, or the same one put back to an earlier state, counts its transactions anew.
  this_server CONSTANT text := (date_part('epoch', pg_postmaster_start_time()) * 1000000)::bigint::text;
  changed text[];
BEGIN
  IF pg_is_in_recovery() THEN
    RAISE EXCEPTION 'a standby does not see every acknowledged change' USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  IF since_server = this_server AND pg_snapshot_xmax(since_snapshot) <= pg_snapshot_xmax(present) THEN
    SELECT coalesce(array_agg(c.device_id), '{}') INTO changed FROM (
      SELECT d.device_id FROM keyguard.devices d
        WHERE d.changed_xid >= pg_snapshot_xmin(since_snapshot) AND NOT pg_visible_in_snapshot(d.changed_xid, since_snapshot)
        LIMIT max_devices + 1) c;
    IF cardinality(changed) > max_devices THEN
      changed := NULL;
    END IF;
  END IF;
  RETURN QUERY SELECT this_server, present::text, changed;
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.changed_devices(text, pg_snapshot, integer) TO kg_verifier;
ALTER FUNCTION keyguard.changed_devices(text, pg_snapshot, integer) SET role = kg_verifier;
