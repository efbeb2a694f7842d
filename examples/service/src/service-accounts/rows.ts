/** A service account as the database has it, and what its MAC covers: everything that decides whether a token is let in, and as whom. */
import { isIntact, rowMac, type RowField, type RowMacKey } from '@keyguard/storage-node/postgres';

export const SEAM = 'service_accounts';
export const TABLE = 'service_accounts';

export interface ServiceAccountGrant {
  readonly id: string;
  readonly name: string;
  readonly ownerId: string;
  readonly tokenPrefix: string;
  readonly tokenHash: string;
  readonly previous: { readonly prefix: string; readonly hash: string; readonly expiresAtMs: number } | null;
  readonly scopes: readonly string[];
  readonly ipAllowlist: readonly string[] | null;
  readonly expiresAtMs: number | null;
  readonly disabled: { readonly atMs: number; readonly by: string } | null;
}

export interface AccountRow {
  id: string;
  name: string;
  owner_id: string;
  token_prefix: string;
  token_hash: string;
  previous_prefix: string | null;
  previous_hash: string | null;
  previous_expires_at_ms: unknown;
  scopes: readonly string[];
  ip_allowlist: readonly string[] | null;
  expires_at_ms: unknown;
  disabled_at_ms: unknown;
  disabled_by: string | null;
  last_used_at_ms: unknown;
  version: number;
  created_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
}

export const COLUMNS = `id, name, owner_id, token_prefix, token_hash, previous_prefix, previous_hash, previous_expires_at_ms, scopes, ip_allowlist,
  expires_at_ms, disabled_at_ms, disabled_by, last_used_at_ms, version, created_at_ms, mac_key_id, mac`;

export function timeOf(value: unknown): number | null {
  return value === null ? null : Number(value);
}

export function grantOf(row: AccountRow): ServiceAccountGrant {
  const disabledAtMs = timeOf(row.disabled_at_ms);
  return {
    id: row.id,
    name: row.name,
    ownerId: row.owner_id,
    tokenPrefix: row.token_prefix,
    tokenHash: row.token_hash,
    previous:
      row.previous_prefix === null || row.previous_hash === null
        ? null
        : { prefix: row.previous_prefix, hash: row.previous_hash, expiresAtMs: Number(row.previous_expires_at_ms) },
    scopes: row.scopes,
    ipAllowlist: row.ip_allowlist,
    expiresAtMs: timeOf(row.expires_at_ms),
    disabled: disabledAtMs === null ? null : { atMs: disabledAtMs, by: row.disabled_by ?? '' },
  };
}

function fieldsOf(grant: ServiceAccountGrant): readonly RowField[] {
  const { previous, disabled } = grant;
  return [grant.id, grant.name, grant.ownerId, grant.tokenPrefix, grant.tokenHash, previous?.prefix ?? null, previous?.hash ?? null,
    previous?.expiresAtMs ?? null, grant.scopes, grant.ipAllowlist, grant.expiresAtMs, disabled?.atMs ?? null, disabled?.by ?? null];
}

export function accountMac(key: RowMacKey, grant: ServiceAccountGrant): Promise<Uint8Array> {
  return rowMac(key, TABLE, fieldsOf(grant));
}

export function isAccountIntact(key: RowMacKey, row: AccountRow): Promise<boolean> {
  return isIntact(key, TABLE, fieldsOf(grantOf(row)), { macKeyId: row.mac_key_id, mac: row.mac });
}
