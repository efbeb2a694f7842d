-- What an entry of the audit log announces is read from its bytes, which are chained, and not from the columns beside it, which are
-- copies: whoever opens a value finds the newest announcement about it by this, and no change of a copy hides one or makes one up.

-- The kind of an announcement and what it is about, as in "version secret:…"; NULL for an entry that announces nothing. Bytes of any
-- kind are looked at without an error. A quotation mark inside of a text has a backslash before it, so no text that somebody wrote can
-- pass for a member.
CREATE FUNCTION keyguard.announcement(entry bytea) RETURNS text
  LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  words CONSTANT text := encode(entry, 'escape');
  kind text;
BEGIN
  kind := CASE substring(words FROM '[{,]"action":"([^"\\]*)"')
    WHEN 'secret.create' THEN 'version'
    WHEN 'secret.add_version' THEN 'version'
    WHEN 'secret.restore_version' THEN 'version'
    WHEN 'secret.delete' THEN 'version'
    WHEN 'secret.destroy_version' THEN 'destruction'
    WHEN 'api_key.create' THEN 'row'
    WHEN 'api_key.import' THEN 'row'
    WHEN 'api_key.adopt' THEN 'row'
    WHEN 'api_key.rotate' THEN 'row'
    WHEN 'api_key.restore_version' THEN 'row'
    WHEN 'api_key.update' THEN 'row'
    WHEN 'api_key.set_default' THEN 'row'
    WHEN 'api_key.displace' THEN 'row'
    WHEN 'api_key.revoke' THEN 'row'
    WHEN 'api_key.destroy_version' THEN 'destruction'
  END;
  IF kind IS NULL THEN
    RETURN NULL;
  END IF;
  RETURN kind || ' ' || substring(words FROM '[{,]"resource":"([^"\\]*)"');
END
$$;
-- Whoever appends keeps the index.
GRANT EXECUTE ON FUNCTION keyguard.announcement(bytea) TO kg_app, kg_verifier, kg_auth, kg_jobs;

-- Most entries are of calls, which wait for this: of them only the bytes are searched, and the function is not asked.
CREATE INDEX secret_audit_logs_by_announcement ON keyguard.secret_audit_logs (keyguard.announcement(entry), seq)
  WHERE position('"action":"secret.'::bytea IN entry) > 0 OR position('"action":"api_key.'::bytea IN entry) > 0;
-- Went by the columns.
DROP INDEX keyguard.secret_audit_logs_of_versions;
DROP INDEX keyguard.secret_audit_logs_of_api_keys;
