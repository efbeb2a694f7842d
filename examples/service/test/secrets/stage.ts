/**
 * Secrets in this process, over the database that a suite runs on: what acts for somebody takes the roles of the service, and what
 * `superuser` does nothing binds.
 */
import { join } from 'node:path';
import { PGlite } from '@electric-sql/pglite';
import pg from 'pg';
import type { AuditEntry } from '@keyguard/core/seams';
import { grantRolesTo, pgClient, pgliteClient, postgresKeyRecords, type SqlClient, type SqlScriptClient } from '@keyguard/storage-node/postgres';
import { auditLog, type AuditLog } from '../../src/audit/log.ts';
import { loginOf } from '../../src/db/connect.ts';
import { migrateAll } from '../../src/db/migrate.ts';
import { openDeploymentKeys, type DeploymentKeys } from '../../src/keys/hierarchy.ts';
import { createAccess, type Access } from '../../src/roles/access.ts';
import { createSecretStore, type SecretStore, type SecretStoreOptions } from '../../src/secrets/store.ts';
import { folder, postgresBackend, remove, type PostgresBackend } from '../stage.ts';
import { migratedAt } from '../migrated.ts';
import type { Stage as RoleStage } from '../roles/stage.ts';

/** Good until 2126, and of nobody: its key was thrown away. */
export const CERTIFICATE = `-----BEGIN CERTIFICATE-----
MIIBfjCCASWgAwIBAgIURWcR4Prp5eoDs6RwQWz0LTiShgswCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzA0MjMwOVoYDzIxMjYxMDMw
MDQyMzA5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQyMCltm9x2SAMLTUBwHYnQFnMyAg0FtgzJOYPpB/EvQ6LAg+sMq6my
fxAqhZfhlMuCIoJw54uCRu6omy02LV8bo1MwUTAdBgNVHQ4EFgQUIjMbwUzRuvXq
0MDJh6DnAb4+/AAwHwYDVR0jBBgwFoAUIjMbwUzRuvXq0MDJh6DnAb4+/AAwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNHADBEAiAzniCvt8es3JLpafyqEouZ
Px0GuEKHa5Z2snaoETBRoAIgbttEhQhd7fqRoykwr4zkdLVXwV8WinkrwB1Bc669
JMc=
-----END CERTIFICATE-----
`;

export interface SecretStage {
  readonly sql: SqlClient;
  /** Nothing binds it, triggers included. */
  superuser<Row>(text: string, params?: readonly unknown[]): Promise<Row[]>;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly access: Access;
  readonly clock: { now: number; nowMs(): number };
  /** With these in place of its own parts. */
  store(overrides?: Partial<SecretStoreOptions>): SecretStore;
  /** The entries about this secret, as they were chained. */
  entriesOf(secretId: string): Promise<AuditEntry[]>;
  /** Of the database, where it is in the file system. */
  readonly directory: string;
  close(): Promise<void>;
}

export interface SecretStageOptions {
  /** How many connections PostgreSQL is used with. */
  readonly connections?: number;
}

interface Opened {
  readonly sql: SqlScriptClient;
  readonly directory: string;
  query(text: string, params: readonly unknown[]): Promise<unknown[]>;
  close(): Promise<void>;
}

async function openEmbedded(): Promise<Opened> {
  const directory = await folder();
  await migratedAt(join(directory, 'database'));
  const database = await PGlite.create(join(directory, 'database'));
  const sql = pgliteClient(database);
  return {
    sql,
    directory: join(directory, 'database'),
    async query(text, params) {
      await database.query("SET session_replication_role = 'replica'");
      try {
        return (await database.query(text, [...params])).rows;
      } finally {
        await database.query("SET session_replication_role = 'origin'");
      }
    },
    async close() {
      await database.close();
      await remove(directory);
    },
  };
}

async function openPostgres(connections: number): Promise<Opened> {
  const backend: PostgresBackend = await postgresBackend();
  const deployment = await backend.deploy();
  const { DATABASE_URL: url, DATABASE_OWNER_URL: ownerUrl } = deployment.environment as { DATABASE_URL: string; DATABASE_OWNER_URL: string };
  const owner = new pg.Pool({ connectionString: ownerUrl, max: 1 });
  await migrateAll(pgClient(owner));
  await grantRolesTo(pgClient(owner), loginOf(url));
  await owner.end();
  const pool = new pg.Pool({ connectionString: url, max: connections });
  const superuser = new pg.Pool({ connectionString: backend.superuserUrl(deployment), max: 1 });
  for (const one of [pool, superuser]) one.on('error', () => {}).on('connect', (client) => client.on('error', () => {}));
  await superuser.query("SET session_replication_role = 'replica'");
  return {
    sql: pgClient(pool),
    directory: deployment.folder,
    query: async (text, params) => (await superuser.query(text, [...params])).rows as unknown[],
    async close() {
      await Promise.all([pool.end(), superuser.end()]);
      await backend.stop();
    },
  };
}

export async function openSecretStage({ connections = 10 }: SecretStageOptions = {}): Promise<SecretStage> {
  const opened = process.env['KEYGUARD_TEST_BACKEND'] === 'postgres' ? await openPostgres(connections) : await openEmbedded();
  const { sql } = opened;
  const keyDirectory = await folder();
  const keys = await openDeploymentKeys(postgresKeyRecords(sql), { kind: 'file', path: join(keyDirectory, 'root.key') });
  const audit = auditLog(sql, keys);
  const clock = { now: Date.now(), nowMs: (): number => clock.now };
  const access = createAccess({ rowMacKey: keys.rowMacKey, clock });
  return {
    sql,
    keys,
    audit,
    access,
    clock,
    directory: opened.directory,
    superuser: async <Row>(text: string, params: readonly unknown[] = []) => (await opened.query(text, params)) as Row[],
    store: (overrides = {}) =>
      createSecretStore({
        sql, keys, audit, access, clock,
        ...overrides,
      }),
    async entriesOf(secretId) {
      const rows = await opened.query('SELECT entry FROM keyguard.secret_audit_logs WHERE resource = $1 ORDER BY seq', [`secret:${secretId}`]);
      return (rows as { entry: Uint8Array }[]).map(({ entry }) => JSON.parse(Buffer.from(entry).toString()) as AuditEntry);
    },
    async close() {
      await opened.close();
      await remove(keyDirectory);
    },
  };
}

/** For rows of roles and projects, which nobody of those who act here may write. */
export function roleStage({ superuser, keys, clock }: SecretStage): RoleStage {
  return { sql: { query: async <Row>(text: string, params?: readonly unknown[]) => ({ rows: await superuser<Row>(text, params) }) }, rowMacKey: keys.rowMacKey, clock } as unknown as RoleStage;
}
