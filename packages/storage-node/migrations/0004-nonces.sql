-- Which nonces were used. Logged tables on purpose: an unlogged one is emptied by a crash, and every request of the last
-- minutes could then be replayed.

CREATE TABLE keyguard.used_nonces (
  key_id text COLLATE "C" NOT NULL,
  nonce text COLLATE "C" NOT NULL,
  created_seconds bigint NOT NULL,
  expires_at_ms bigint NOT NULL,
  PRIMARY KEY (key_id, nonce)
);
CREATE INDEX used_nonces_by_expiry ON keyguard.used_nonces (expires_at_ms);

-- One row: nothing created at or before this second is accepted, because its pair may have been purged.
CREATE TABLE keyguard.nonce_floor (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  floor_seconds bigint NOT NULL
);
INSERT INTO keyguard.nonce_floor (floor_seconds) VALUES (0);

ALTER TABLE keyguard.used_nonces ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.used_nonces FORCE ROW LEVEL SECURITY;
ALTER TABLE keyguard.nonce_floor ENABLE ROW LEVEL SECURITY;
ALTER TABLE keyguard.nonce_floor FORCE ROW LEVEL SECURITY;

-- The clock of the database, at the beginning of the statement.
CREATE FUNCTION keyguard.database_now_ms() RETURNS bigint
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN pg_catalog.floor(pg_catalog.date_part('epoch', pg_catalog.statement_timestamp()) * 1000)::bigint;
GRANT EXECUTE ON FUNCTION keyguard.database_now_ms() TO kg_jobs;

CREATE POLICY used_nonces_verifier_claim ON keyguard.used_nonces FOR INSERT TO kg_verifier WITH CHECK (true);
CREATE POLICY used_nonces_jobs_read ON keyguard.used_nonces FOR SELECT TO kg_jobs USING (true);
-- A live pair cannot be removed, by whatever statement and whatever clock its author claims to have.
CREATE POLICY used_nonces_jobs_purge ON keyguard.used_nonces FOR DELETE TO kg_jobs
  USING (expires_at_ms < keyguard.database_now_ms());
CREATE POLICY nonce_floor_verifier_read ON keyguard.nonce_floor FOR SELECT TO kg_verifier USING (true);
CREATE POLICY nonce_floor_jobs_read ON keyguard.nonce_floor FOR SELECT TO kg_jobs USING (true);
CREATE POLICY nonce_floor_jobs_raise ON keyguard.nonce_floor FOR UPDATE TO kg_jobs USING (true) WITH CHECK (true);
GRANT INSERT ON keyguard.used_nonces TO kg_verifier;
GRANT SELECT, DELETE ON keyguard.used_nonces TO kg_jobs;
GRANT SELECT ON keyguard.nonce_floor TO kg_verifier, kg_jobs;
GRANT UPDATE (floor_seconds) ON keyguard.nonce_floor TO kg_jobs;

CREATE FUNCTION keyguard.guard_nonce_floor() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NEW.floor_seconds < OLD.floor_seconds THEN
    RAISE EXCEPTION 'the floor never sinks' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER nonce_floor_guard BEFORE UPDATE ON keyguard.nonce_floor
  FOR EACH ROW EXECUTE FUNCTION keyguard.guard_nonce_floor();

-- Whatever is removed is under the floor in the same statement, whoever removes it: a removal without it would let a copy pass.
CREATE FUNCTION keyguard.raise_nonce_floor() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE keyguard.nonce_floor f SET floor_seconds = newest.created_seconds
    FROM (SELECT max(g.created_seconds) AS created_seconds FROM gone g) newest
    WHERE f.floor_seconds < newest.created_seconds;
  RETURN NULL;
END
$$;
CREATE TRIGGER used_nonces_raise_floor AFTER DELETE ON keyguard.used_nonces
  REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION keyguard.raise_nonce_floor();

-- True for exactly one caller per pair. The floor is read AFTER the insert, by a statement with a snapshot of its own: when the
-- insert succeeded because a purge had just removed the same pair, that purge is committed, so its floor is seen here. Under a
-- snapshot that is older than the insert this would not hold, hence the demand on the isolation level.
CREATE FUNCTION keyguard.claim_nonce(key_id text, nonce text, created_seconds bigint, expires_at_ms bigint) RETURNS boolean
  LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'a nonce is claimed under READ COMMITTED only' USING ERRCODE = 'invalid_transaction_state';
  END IF;
  INSERT INTO keyguard.used_nonces VALUES (claim_nonce.key_id, claim_nonce.nonce, claim_nonce.created_seconds,
    claim_nonce.expires_at_ms) ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  RETURN claim_nonce.created_seconds > (SELECT f.floor_seconds FROM keyguard.nonce_floor f);
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.claim_nonce(text, text, bigint, bigint) TO kg_verifier;
ALTER FUNCTION keyguard.claim_nonce(text, text, bigint, bigint) SET role = kg_verifier;

-- Removes at most max_rows pairs that have expired both before now_ms and by the clock of the database; the trigger raises the floor
-- over them. Answers how many; one purge at a time, and a second one answers 0.
CREATE FUNCTION keyguard.purge_nonces(now_ms bigint, max_rows integer) RETURNS integer
  LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  removed integer;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtextextended('keyguard.purge_nonces', 0)) THEN
    RETURN 0;
  END IF;
  DELETE FROM keyguard.used_nonces n
    USING (SELECT e.key_id, e.nonce FROM keyguard.used_nonces e
      WHERE e.expires_at_ms < least(purge_nonces.now_ms, keyguard.database_now_ms())
      ORDER BY e.expires_at_ms LIMIT purge_nonces.max_rows) expired
    WHERE n.key_id = expired.key_id AND n.nonce = expired.nonce;
  GET DIAGNOSTICS removed = ROW_COUNT;
  RETURN removed;
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.purge_nonces(bigint, integer) TO kg_jobs;
ALTER FUNCTION keyguard.purge_nonces(bigint, integer) SET role = kg_jobs;

-- How many pairs are held, counted no further than to max_rows.
CREATE FUNCTION keyguard.count_nonces(max_rows integer) RETURNS integer
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT count(*) FROM (SELECT FROM keyguard.used_nonces LIMIT count_nonces.max_rows) held);
END
$$;
GRANT EXECUTE ON FUNCTION keyguard.count_nonces(integer) TO kg_jobs;
ALTER FUNCTION keyguard.count_nonces(integer) SET role = kg_jobs;
