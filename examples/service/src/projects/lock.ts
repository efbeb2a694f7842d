/** Between what is put into a project and its archiving: whoever comes second sees what the first one did. */
import type { SqlTransaction } from '@keyguard/storage-node/postgres';

const NAME = `hashtextextended('keyguard.project ' || $1, 0)`;

/** To be held by whoever puts something into the project, before it asks whether the project is open. */
export async function shareProject(tx: SqlTransaction, projectId: string): Promise<void> {
  await tx.query(`SELECT pg_advisory_xact_lock_shared(${NAME})`, [projectId]);
}

/** To be held by whoever archives the project, before it asks what is in it. */
export async function lockProject(tx: SqlTransaction, projectId: string): Promise<void> {
  await tx.query(`SELECT pg_advisory_xact_lock(${NAME})`, [projectId]);
}
