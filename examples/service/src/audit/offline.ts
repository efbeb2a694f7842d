/** The log of a database whose service does not run: for when its start was refused. */
import { postgresKeyRecords, type SqlClient } from '@keyguard/storage-node/postgres';
import type { Config } from '../config.ts';
import { asJobs } from '../db/as-user.ts';
import { openDeploymentKeys } from '../keys/hierarchy.ts';
import { listChains } from './chains.ts';
import { keptCheckpoints } from './kept.ts';
import { verifyLog, type Verification } from './verification.ts';

/** Verifies the present chain with the checkpoints that are kept outside. The caller MUST have the database to itself. */
export async function verifyDatabase(sql: SqlClient, config: Config): Promise<Verification> {
  const keys = await openDeploymentKeys(postgresKeyRecords(sql), config.rootKey);
  const [{ origin }] = await asJobs(sql, (tx) => listChains(tx, keys));
  return verifyLog({ sql, keys, kept: keptCheckpoints(config.checkpointDir), origin });
}
