-- Whether the log says that people bear MACs: every start asks. By the bytes of the entry, which are chained.
CREATE INDEX secret_audit_logs_of_vouched_people ON keyguard.secret_audit_logs (seq)
  WHERE position('"people_bear_macs":true'::bytea IN entry) > 0;
