/**
 * A deployment's audit log without the rest of the service: on an embedded database in memory, or on PostgreSQL where
 * KEYGUARD_TEST_BACKEND says so; with what nobody else may have, the superuser's hand on the rows.
 */
import { join } from 'node:path';
import pg from 'pg';
import { grantRolesTo, pgClient, pgliteClient, postgresKeyRecords, type SqlScriptClient } from '@keyguard/storage-node/postgres';
import { checkpointStore, type CheckpointStore } from '../../src/audit/checkpoint-store.ts';
import { createCheckpoints, type Checkpoints, type CheckpointsOptions } from '../../src/audit/checkpoints.ts';
import { keptCheckpoints, type KeptCheckpoints } from '../../src/audit/kept.ts';
import { auditLog, type AuditLog } from '../../src/audit/log.ts';
import { loginOf } from '../../src/db/connect.ts';
import { migrateAll } from '../../src/db/migrate.ts';
import { openDeploymentKeys, type DeploymentKeys } from '../../src/keys/hierarchy.ts';
import { folder, postgresBackend, remove } from '../stage.ts';
import { migratedDatabase } from '../migrated.ts';

export interface Replica {
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly store: CheckpointStore;
  readonly kept: KeptCheckpoints;
  readonly checkpoints: Checkpoints;
}

export interface LogStage {
  /** As the service has it. */
  readonly sql: SqlScriptClient;
  /** Whom nothing binds. */
  readonly superuser: SqlScriptClient;
  /** A process of its own as far as keys, memory and folder go. */
  replica(options?: { readonly folder?: string; readonly origin?: string } & Partial<CheckpointsOptions>): Promise<Replica>;
  /** Does what triggers would stop. */
  tamper(...statements: readonly string[]): Promise<void>;
  newFolder(): Promise<string>;
  close(): Promise<void>;
}

export async function openLogStage(): Promise<LogStage> {
  const folders: string[] = [];
  const newFolder = async (): Promise<string> => {
    const made = await folder();
    folders.push(made);
    return made;
  };
  const root = join(await newFolder(), 'root.key');
  const { sql, superuser, close } = await (process.env['KEYGUARD_TEST_BACKEND'] === 'postgres' ? onPostgres() : embedded());
  return {
    sql,
    superuser,
    newFolder,
    async replica({ folder: given, origin, ...more } = {}) {
      const keys = await openDeploymentKeys(postgresKeyRecords(sql), { kind: 'file', path: root });
      const audit = auditLog(sql, keys, origin === undefined ? {} : { origin });
      const store = await checkpointStore(sql, audit.origin, keys.checkpointSigner);
      const kept = keptCheckpoints(given ?? join(await newFolder(), 'checkpoints'));
      return { keys, audit, store, kept, checkpoints: createCheckpoints({ sql, keys, store, kept, audit, ...more }) };
    },
    async tamper(...statements) {
      await superuser.scripted(async (tx) => {
        await tx.script("SET LOCAL session_replication_role = 'replica'");
        for (const statement of statements) await tx.script(statement);
      });
    },
    async close() {
      await close();
      for (const path of folders) await remove(path);
    },
  };
}

interface Opened {
  readonly sql: SqlScriptClient;
  readonly superuser: SqlScriptClient;
  close(): Promise<void>;
}

async function embedded(): Promise<Opened> {
  const database = await migratedDatabase();
  const sql = pgliteClient(database);
  return { sql, superuser: sql, close: () => database.close() };
}

async function onPostgres(): Promise<Opened> {
  const backend = await postgresBackend();
  const deployment = await backend.deploy();
  const { DATABASE_URL: url, DATABASE_OWNER_URL: ownerUrl } = deployment.environment;
  const pools = [url!, ownerUrl!, backend.superuserUrl(deployment)].map((connectionString) => new pg.Pool({ connectionString, max: 8 }));
  for (const pool of pools) pool.on('error', () => {});
  const [sql, owner, superuser] = pools.map((pool) => pgClient(pool)) as [SqlScriptClient, SqlScriptClient, SqlScriptClient];
  await migrateAll(owner);
  await grantRolesTo(owner, loginOf(url!));
  return {
    sql,
    superuser,
    async close() {
      for (const pool of pools) await pool.end();
      await backend.stop();
    },
  };
}

export async function fill(audit: AuditLog, count: number, from = 0): Promise<void> {
  const entries = Array.from({ length: count }, (_, i) => ({
    action: i % 3 === 0 ? 'secret.reveal' : 'llm.call', outcome: 'success' as const, actor: `user:${i % 5}`, resource: `secret:${i % 7}`, n: from + i,
  }));
  for (let at = 0; at < count; at += 500) await audit.sink.append(entries.slice(at, at + 500));
}

export async function gathered<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}
