/** The keys of a deployment and sealed rows in its database, without a service: for what is done to them. */
import { createHash, randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { pino } from 'pino';
import { fromUtf8, utf8 } from '@keyguard/core/bytes';
import { open, seal, type VaultPlace } from '@keyguard/core/vault';
import { grantRolesTo, postgresKeyRecords, type SqlClient } from '@keyguard/storage-node/postgres';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import { placeOf, versionsOfKeys } from '../../src/api-keys/sealing.ts';
import { auditLog, type AuditLog } from '../../src/audit/log.ts';
import type { RootKeyConfig } from '../../src/config.ts';
import { asJobs } from '../../src/db/as-user.ts';
import { loginOf, openEmbedded, openPostgres, openPostgresOwner, type Database } from '../../src/db/connect.ts';
import { migrateAll } from '../../src/db/migrate.ts';
import { openDeploymentKeys, type DeploymentKeys } from '../../src/keys/hierarchy.ts';
import type { SealedTable } from '../../src/keys/sealed-tables.ts';
import { sealedVersions } from '../../src/secrets/rows.ts';
import type { Deployment } from '../stage.ts';

export const silent = pino({ level: 'silent' });
const primitives = nodeVaultPrimitives();
const BULK_ROWS = 1000;

export interface KeyStage {
  readonly database: Database;
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  /** The same database as another process has it: with a keyring of its own. */
  again(): Promise<DeploymentKeys>;
  close(): Promise<void>;
}

export const rootKeyOf = ({ folder }: Deployment): RootKeyConfig => ({ kind: 'file', path: join(folder, 'data', 'root.key') });

/** Migrates where that is to be done, and opens the keys. */
export async function openKeys(deployment: Deployment, rootKey: RootKeyConfig = rootKeyOf(deployment)): Promise<KeyStage> {
  const { DATABASE_URL: url, DATABASE_OWNER_URL: ownerUrl } = deployment.environment;
  let database: Database;
  if (url === undefined) {
    database = await openEmbedded(join(deployment.folder, 'data'));
    await migrateAll(database.sql);
  } else {
    const owner = openPostgresOwner(ownerUrl!, () => {});
    await migrateAll(owner.sql);
    await grantRolesTo(owner.sql, loginOf(url));
    await owner.close();
    database = openPostgres(url, () => {});
  }
  const { sql } = database;
  const keys = await openDeploymentKeys(postgresKeyRecords(sql), rootKey);
  return {
    database,
    sql,
    keys,
    audit: auditLog(sql, keys),
    again: () => openDeploymentKeys(postgresKeyRecords(sql), rootKey),
    async close() {
      await database.close();
      // The sockets of a pool close after it says that it has ended, and the server is told to end what is left.
      if (!database.embedded) await pause(200);
    },
  };
}

const valueOf = (id: string): string => `sk-${createHash('sha256').update(id).digest('hex')}`;

/** The table of sealed rows that these suites are about. */
export const sealedKeys = (keys: DeploymentKeys): SealedTable => sealedVersions([versionsOfKeys(keys.deploymentId)]);

const placeOfKey = (keys: DeploymentKeys, id: string): VaultPlace =>
  placeOf(keys.deploymentId, { id, projectId: 'default', provider: 'openai', baseUrl: null, options: { deployment: null, apiVersion: null } }, 1);

/** Adds `count` sealed rows. */
export async function sealRows(sql: SqlClient, keys: DeploymentKeys, count: number): Promise<void> {
  await asJobs(sql, (tx) =>
    tx.query(`INSERT INTO keyguard.api_key_projects (id, owner_id, name, environment, created_at_ms) VALUES ('default', 'system', 'default', 'production', 1) ON CONFLICT DO NOTHING`),
  );
  for (let done = 0; done < count; done += BULK_ROWS) {
    const rows = await Promise.all(
      Array.from({ length: Math.min(BULK_ROWS, count - done) }, async () => {
        const id = randomUUID();
        return { id, ...(await seal(utf8(valueOf(id)), placeOfKey(keys, id), { keyProvider: keys.kek, primitives })) };
      }),
    );
    const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');
    await asJobs(sql, async (tx) => {
      await tx.query(
        `INSERT INTO keyguard.stored_api_keys (id, project_id, owner_id, provider, name, last4, source, current_version, is_default, rotated_at_ms, created_at_ms)
          SELECT id, 'default', 'system', 'openai', 'one of many', 'last', 'environment', 1, false, 1, 1 FROM unnest($1::text[]) AS r (id)`,
        [rows.map(({ id }) => id)],
      );
      await tx.query(
        `INSERT INTO keyguard.secret_versions (subject_type, subject_id, version, ciphertext, wrapped_dek, kek_id, state, created_by, created_at_ms, last4)
          SELECT 'api_key', r.id, 1, decode(r.ciphertext, 'base64'), decode(r.wrapped, 'base64'), r.kek_id, 'active', 'system', 1, 'last'
          FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS r (id, ciphertext, wrapped, kek_id)`,
        [rows.map(({ id }) => id), rows.map(({ ciphertext }) => base64(ciphertext)), rows.map(({ wrappedDek }) => base64(wrappedDek)), rows.map(({ kekId }) => kekId)],
      );
    });
  }
}

interface Row {
  readonly id: string;
  readonly ciphertext: Uint8Array;
  readonly wrapped_dek: Uint8Array;
  readonly kek_id: string;
}

export interface Opened {
  readonly rows: number;
  readonly unreadable: number;
  readonly kekIds: ReadonlySet<string>;
  /** Of all that was sealed, in the order of the ids: changes when any byte of it does. */
  readonly digest: string;
}

const SELECT = `SELECT k.id, v.ciphertext, v.wrapped_dek, v.kek_id FROM keyguard.stored_api_keys k JOIN keyguard.secret_versions v ON v.subject_type = 'api_key' AND v.subject_id = k.id`;

async function isReadable(row: Row, keys: DeploymentKeys): Promise<boolean> {
  const sealed = { ciphertext: Uint8Array.from(row.ciphertext), wrappedDek: Uint8Array.from(row.wrapped_dek), kekId: row.kek_id };
  try {
    return fromUtf8(await open(sealed, placeOfKey(keys, row.id), { keyProvider: keys.kek, primitives })) === valueOf(row.id);
  } catch {
    return false;
  }
}

/** Opens every row. */
export async function openRows(sql: SqlClient, keys: DeploymentKeys): Promise<Opened> {
  const kekIds = new Set<string>();
  const digest = createHash('sha256');
  let [rows, unreadable, after] = [0, 0, ''];
  for (;;) {
    const page = await asJobs(sql, (tx) => tx.query<Row>(`${SELECT} WHERE k.name = 'one of many' AND k.id > $1 ORDER BY k.id LIMIT ${BULK_ROWS}`, [after]));
    for (const row of page.rows) {
      if (!(await isReadable(row, keys))) unreadable += 1;
      kekIds.add(row.kek_id);
      digest.update(row.id).update(row.ciphertext);
    }
    rows += page.rows.length;
    if (page.rows.length < BULK_ROWS) return { rows, unreadable, kekIds, digest: digest.digest('hex') };
    after = page.rows.at(-1)!.id;
  }
}

/** Opens rows from all over the table until it is told to end. */
export async function keepReading(sql: SqlClient, keys: DeploymentKeys, isOver: () => boolean): Promise<{ read: number; unreadable: number }> {
  const done = { read: 0, unreadable: 0 };
  while (!isOver()) {
    // The embedded database answers before any timer is looked at.
    await pause(1);
    const { rows } = await asJobs(sql, (tx) => tx.query<Row>(`${SELECT} WHERE k.id >= $1 AND k.name = 'one of many' ORDER BY k.id LIMIT 20`, [randomUUID()]));
    for (const row of rows) {
      done.read += 1;
      if (!(await isReadable(row, keys))) done.unreadable += 1;
    }
  }
  return done;
}
