/**
 * The rows of the settings. One that does not bear its MAC, or is missing among the others, is never taken for what is in force:
 * whoever can write to the database cannot loosen a policy by it.
 */
import { canonicalJson, parseCanonicalJson } from '@keyguard/core/canonical-json';
import { utf8 } from '@keyguard/core/bytes';
import { UnavailableError } from '@keyguard/core/errors';
import type { JsonValue } from '@keyguard/core/seams';
import { isIntact, rowMac, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { readOverrides, type SettingsOverrides } from './schema.ts';

const SEAM = 'settings';
const TABLE = 'settings';
const COLUMNS = 'version, document, changed_by, changed_at_ms, mac_key_id, mac';

/** What was set at one time, and by whom. Version 0 is what holds where nobody has set anything. */
export interface SettingsVersion {
  readonly version: number;
  readonly overrides: SettingsOverrides;
  /** `false` where a later version of this program has set what this one does not know. */
  readonly isWhole: boolean;
  readonly changedBy: string | null;
  readonly changedAtMs: number | null;
}

interface Row {
  version: unknown;
  document: string;
  changed_by: string;
  changed_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
}

const NOTHING_SET: SettingsVersion = { version: 0, overrides: {}, isWhole: true, changedBy: null, changedAtMs: null };

async function versionOf(row: Row, rowMacKey: RowMacKey): Promise<SettingsVersion> {
  const [version, changedAtMs] = [Number(row.version), Number(row.changed_at_ms)];
  const fields = [version, row.document, row.changed_by, changedAtMs];
  if (!(await isIntact(rowMacKey, TABLE, fields, { macKeyId: row.mac_key_id, mac: row.mac }))) {
    throw new UnavailableError(SEAM, `Version ${version} of the settings does not bear the MAC that it must: the database was changed by somebody else.`);
  }
  try {
    return { version, ...readOverrides(parseCanonicalJson(utf8(row.document))), changedBy: row.changed_by, changedAtMs };
  } catch {
    throw new UnavailableError(SEAM, `Version ${version} of the settings cannot be read by this version of the program.`);
  }
}

/** What is set now, for whomever `tx` acts. @throws UnavailableError seam `settings` */
export async function newestSettings(tx: SqlTransaction, rowMacKey: RowMacKey): Promise<SettingsVersion> {
  const { rows } = await tx.query<Row>(`SELECT ${COLUMNS} FROM keyguard.settings ORDER BY version DESC LIMIT 1`);
  return rows[0] === undefined ? NOTHING_SET : versionOf(rows[0], rowMacKey);
}

/** Adds a version. `null` where another one of that number came first: nothing was done. */
export async function appendSettings(tx: SqlTransaction, rowMacKey: RowMacKey, next: SettingsVersion & { readonly changedBy: string; readonly changedAtMs: number }): Promise<SettingsVersion | null> {
  const { version, overrides, changedBy, changedAtMs } = next;
  const document = canonicalJson(overrides as JsonValue);
  const mac = await rowMac(rowMacKey, TABLE, [version, document, changedBy, changedAtMs]);
  const { rows } = await tx.query(
    `INSERT INTO keyguard.settings (${COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (version) DO NOTHING RETURNING version`,
    [version, document, changedBy, changedAtMs, rowMacKey.keyId, mac],
  );
  return rows.length === 1 ? next : null;
}

/** Versions below `beforeVersion` (`null` for all), newest first, at most `limit` of them. @throws UnavailableError seam `settings` */
export async function listSettings(tx: SqlTransaction, rowMacKey: RowMacKey, beforeVersion: number | null, limit: number): Promise<readonly SettingsVersion[]> {
  const { rows } = await tx.query<Row>(
    `SELECT ${COLUMNS} FROM keyguard.settings WHERE $1::bigint IS NULL OR version < $1::bigint ORDER BY version DESC LIMIT $2`,
    [beforeVersion, limit],
  );
  const versions = await Promise.all(rows.map((row) => versionOf(row, rowMacKey)));
  const gap = versions.find(({ version }, i) => i > 0 && version !== versions[i - 1]!.version - 1);
  if (gap !== undefined) throw new UnavailableError(SEAM, `Version ${gap.version + 1} of the settings is missing: it was deleted.`);
  return versions;
}
