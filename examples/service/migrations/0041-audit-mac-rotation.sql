-- One change of the audit log's MAC key at a time: of several who ask at once, one gets its key in.
CREATE UNIQUE INDEX kek_keys_one_audit_mac_to_come ON keyguard.kek_keys (purpose) WHERE purpose = 'audit-mac' AND state = 'pre-active';
