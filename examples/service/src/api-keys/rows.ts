/** The row of a provider key as this slice reads and writes it: where the key is used, which version counts, until when, and its MAC. */
import { isIntact, rowMac, type RowField, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { integer } from '../db/values.ts';
import { HttpProblem } from '../http/problems.ts';
import type { KeyOptions } from '../llm/provider.ts';

/** The project that every deployment begins with. */
export const DEFAULT_PROJECT_ID = 'default';
/** Owns what belongs to no person. */
export const SYSTEM = 'system';
export const KEYS_TABLE = 'stored_api_keys';
export const KEYS_SEAM = 'api_keys';

/** A key as it may be shown. */
export interface StoredApiKey {
  readonly id: string;
  readonly projectId: string;
  readonly ownerId: string;
  readonly provider: string;
  readonly name: string;
  /** Of its current version. */
  readonly last4: string;
  readonly source: 'api' | 'environment';
  /** `null`: where the operator's configuration sends keys of this provider. */
  readonly baseUrl: string | null;
  readonly options: KeyOptions;
  readonly currentVersion: number;
  readonly isDefault: boolean;
  readonly isActive: boolean;
  /** `null`: as the settings say; 0: never. */
  readonly rotateEveryDays: number | null;
  /** `null`: as the settings say. */
  readonly overlapSeconds: number | null;
  /** When the current version took over. */
  readonly rotatedAtMs: number;
  readonly expiresAtMs: number | null;
  readonly lastUsedAtMs: number | null;
  readonly importTag: string | null;
  /** Another one after every change. */
  readonly revision: number;
  readonly createdAtMs: number;
  readonly revokedAtMs: number | null;
  /** Whether the row is as this service wrote it. What is not, is shown and revoked, and nothing else. */
  readonly intact: boolean;
}

export interface KeyRow {
  id: string;
  project_id: string;
  owner_id: string;
  provider: string;
  name: string;
  last4: string;
  source: 'api' | 'environment';
  base_url: string | null;
  deployment: string | null;
  api_version: string | null;
  current_version: number;
  is_default: boolean;
  is_active: boolean;
  rotate_every_days: number | null;
  overlap_s: number | null;
  rotated_at_ms: unknown;
  expires_at_ms: unknown;
  last_used_at_ms: unknown;
  import_tag: string | null;
  revision: number;
  created_at_ms: unknown;
  revoked_at_ms: unknown;
  mac_key_id: string | null;
  mac: Uint8Array | null;
}

const COLUMN_NAMES = ['id', 'project_id', 'owner_id', 'provider', 'name', 'last4', 'source', 'base_url', 'deployment', 'api_version', 'current_version',
  'is_default', 'is_active', 'rotate_every_days', 'overlap_s', 'rotated_at_ms', 'expires_at_ms', 'last_used_at_ms', 'import_tag', 'revision',
  'created_at_ms', 'revoked_at_ms', 'mac_key_id', 'mac'];
export const KEY_COLUMNS = COLUMN_NAMES.join(', ');
/** The same of a table that is called `k`. */
export const KEY_COLUMNS_OF_K = COLUMN_NAMES.map((name) => `k.${name}`).join(', ');

const timeOrNull = (value: unknown): number | null => (value === null ? null : integer(value));

type Unchecked = Omit<StoredApiKey, 'intact'>;

// All but when it was last used, of which nothing depends.
function fieldsOf(key: Unchecked): readonly RowField[] {
  return [key.id, key.projectId, key.ownerId, key.provider, key.name, key.last4, key.source, key.baseUrl, key.options.deployment,
    key.options.apiVersion, key.currentVersion, key.isDefault, key.isActive, key.rotateEveryDays, key.overlapSeconds, key.rotatedAtMs,
    key.expiresAtMs, key.importTag, key.revision, key.createdAtMs, key.revokedAtMs];
}

/** The MAC that the row of `key` must bear. */
export function keyMac(rowMacKey: RowMacKey, key: Unchecked): Promise<Uint8Array> {
  return rowMac(rowMacKey, KEYS_TABLE, fieldsOf(key));
}

export async function keyIn(rowMacKey: RowMacKey, row: KeyRow): Promise<StoredApiKey> {
  const key: Unchecked = {
    id: row.id,
    projectId: row.project_id,
    ownerId: row.owner_id,
    provider: row.provider,
    name: row.name,
    last4: row.last4,
    source: row.source,
    baseUrl: row.base_url,
    options: { deployment: row.deployment, apiVersion: row.api_version },
    currentVersion: integer(row.current_version),
    isDefault: row.is_default,
    isActive: row.is_active,
    rotateEveryDays: row.rotate_every_days,
    overlapSeconds: row.overlap_s,
    rotatedAtMs: integer(row.rotated_at_ms),
    expiresAtMs: timeOrNull(row.expires_at_ms),
    lastUsedAtMs: timeOrNull(row.last_used_at_ms),
    importTag: row.import_tag,
    revision: integer(row.revision),
    createdAtMs: integer(row.created_at_ms),
    revokedAtMs: timeOrNull(row.revoked_at_ms),
  };
  const { mac, mac_key_id: macKeyId } = row;
  return { ...key, intact: mac !== null && macKeyId !== null && (await isIntact(rowMacKey, KEYS_TABLE, fieldsOf(key), { macKeyId, mac })) };
}

/** What is answered about a key that somebody changed in the database. */
export function notIntact(): HttpProblem {
  return new HttpProblem('integrity_failed', 'What is stored of this key is not what was written: it was changed, moved or put back in the database. It is not used; revoke it, and store the key anew.');
}

/** Adds the row of a key, for a version that the same transaction adds. */
export async function insertKey(tx: SqlTransaction, rowMacKey: RowMacKey, key: Unchecked): Promise<StoredApiKey> {
  await tx.query(
    `INSERT INTO keyguard.stored_api_keys (id, project_id, owner_id, provider, name, last4, source, base_url, deployment, api_version, current_version,
      is_default, rotate_every_days, overlap_s, rotated_at_ms, expires_at_ms, import_tag, revision, created_at_ms, mac_key_id, mac)
      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)`,
    [key.id, key.projectId, key.ownerId, key.provider, key.name, key.last4, key.source, key.baseUrl, key.options.deployment, key.options.apiVersion,
      key.currentVersion, key.isDefault, key.rotateEveryDays, key.overlapSeconds, key.rotatedAtMs, key.expiresAtMs, key.importTag, key.revision,
      key.createdAtMs, rowMacKey.keyId, await keyMac(rowMacKey, key)],
  );
  return { ...key, intact: true };
}

/** What of a key may change. */
export type KeyChange = Partial<
  Pick<StoredApiKey, 'name' | 'last4' | 'currentVersion' | 'isDefault' | 'isActive' | 'rotateEveryDays' | 'overlapSeconds' | 'rotatedAtMs' | 'expiresAtMs' | 'revokedAtMs'>
>;

/**
 * `before`, whose row the transaction has locked, changed as said.
 * @throws HttpProblem `not_found` where whoever acts may not change it
 */
export async function changeKey(tx: SqlTransaction, rowMacKey: RowMacKey, before: StoredApiKey, change: KeyChange): Promise<StoredApiKey> {
  const after = { ...before, ...change, revision: before.revision + 1 };
  const { rows } = await tx.query(
    `UPDATE keyguard.stored_api_keys SET name = $2, last4 = $3, current_version = $4, is_default = $5, is_active = $6, rotate_every_days = $7, overlap_s = $8,
      rotated_at_ms = $9, expires_at_ms = $10, revoked_at_ms = $11, revision = $12, mac_key_id = $13, mac = $14
      WHERE id = $1 AND revision = $15 RETURNING 1`,
    [after.id, after.name, after.last4, after.currentVersion, after.isDefault, after.isActive, after.rotateEveryDays, after.overlapSeconds,
      after.rotatedAtMs, after.expiresAtMs, after.revokedAtMs, after.revision, rowMacKey.keyId, await keyMac(rowMacKey, after),
      before.revision],
  );
  if (rows.length === 0) throw new HttpProblem('not_found', 'There is nothing of that id.');
  return { ...after, intact: true };
}

/** Gives a row that was there before rows bore MACs the one that it must bear. */
export async function vouchFor(tx: SqlTransaction, rowMacKey: RowMacKey, before: StoredApiKey, importTag: string | null): Promise<StoredApiKey> {
  const after = { ...before, importTag, revision: before.revision + 1, intact: true };
  await tx.query('UPDATE keyguard.stored_api_keys SET import_tag = $2, revision = $3, mac_key_id = $4, mac = $5 WHERE id = $1 AND revision = $6', [
    after.id, importTag, after.revision, rowMacKey.keyId, await keyMac(rowMacKey, after), before.revision,
  ]);
  return after;
}
