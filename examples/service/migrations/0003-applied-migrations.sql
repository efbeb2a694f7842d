-- A service that serves without the right to migrate must still be able to tell that somebody has migrated.
CREATE POLICY schema_migrations_jobs_read ON keyguard.schema_migrations FOR SELECT TO kg_jobs USING (true);
GRANT SELECT ON keyguard.schema_migrations TO kg_jobs;
