/** Rows of `devices` and `device_keys`: what of them grants, and what a verifier may make of them. */
import type { Device, DeviceStatus, KeyState, PublicJwk } from '@keyguard/core/seams';
import { bytesOf, integerOrNull, type SqlTransaction } from './client.ts';
import { isIntact, rowMac, type RowField, type RowMacKey } from './row-mac.ts';

export const DEVICE_REGISTRY = 'device_registry';

/** What of a device grants something: exactly this is under its MAC. */
export interface DeviceGrant {
  readonly deviceId: string;
  readonly ownerId: string | null;
  readonly projectId: string | null;
  readonly status: DeviceStatus;
  readonly requestsPerMinute: number | null;
  readonly ipAllowlist: readonly string[] | null;
  readonly allowedModels: readonly string[] | null;
  /** Until when a device that enrolled without a code may be approved; Unix milliseconds. */
  readonly pendingUntilMs: number | null;
}

/** What of a key grants something. */
export interface DeviceKeyGrant {
  readonly keyId: string;
  readonly deviceId: string;
  /** The text of RFC 7638, whose SHA-256 is the key id. */
  readonly publicJwk: string;
  readonly keyState: KeyState;
  readonly keyRetiresAtMs: number | null;
}

/** The columns of a device that are under its MAC, as the database hands them over. */
export interface DeviceGrantRow {
  device_id: string;
  owner_id: string | null;
  project_id: string | null;
  status: DeviceStatus;
  rate_limit_per_min: number | null;
  ip_allowlist: string[] | null;
  allowed_models: string[] | null;
  pending_until_ms: unknown;
}

export function deviceGrant(row: DeviceGrantRow): DeviceGrant {
  return {
    deviceId: row.device_id,
    ownerId: row.owner_id,
    projectId: row.project_id,
    status: row.status,
    requestsPerMinute: integerOrNull(row.rate_limit_per_min),
    ipAllowlist: row.ip_allowlist,
    allowedModels: row.allowed_models,
    pendingUntilMs: integerOrNull(row.pending_until_ms),
  };
}

function deviceFields(grant: DeviceGrant): readonly RowField[] {
  const { deviceId, ownerId, projectId, status, requestsPerMinute, ipAllowlist, allowedModels, pendingUntilMs } = grant;
  return [deviceId, ownerId, projectId, status, requestsPerMinute, ipAllowlist, allowedModels, pendingUntilMs];
}

function keyFields({ keyId, deviceId, publicJwk, keyState, keyRetiresAtMs }: DeviceKeyGrant): readonly RowField[] {
  return [keyId, deviceId, publicJwk, keyState, keyRetiresAtMs];
}

export function deviceMac(key: RowMacKey, grant: DeviceGrant): Promise<Uint8Array> {
  return rowMac(key, 'devices', deviceFields(grant));
}

export function deviceKeyMac(key: RowMacKey, grant: DeviceKeyGrant): Promise<Uint8Array> {
  return rowMac(key, 'device_keys', keyFields(grant));
}

export function isDeviceIntact(key: RowMacKey, grant: DeviceGrant, macKeyId: string, mac: unknown): Promise<boolean> {
  return isIntact(key, 'devices', deviceFields(grant), { macKeyId, mac: bytesOf(mac) });
}

export function isDeviceKeyIntact(key: RowMacKey, grant: DeviceKeyGrant, macKeyId: string, mac: unknown): Promise<boolean> {
  return isIntact(key, 'device_keys', keyFields(grant), { macKeyId, mac: bytesOf(mac) });
}

/** The text of RFC 7638: the members in this order, without white space. */
export function jwkText({ crv, kty, x, y }: PublicJwk): string {
  return JSON.stringify({ crv, kty, x, y });
}

/** The inverse of {@link jwkText}, for text that a MAC vouches for. */
export function jwkOf(text: string): PublicJwk {
  return Object.freeze(JSON.parse(text) as PublicJwk);
}

export function enrolledDevice(grant: DeviceGrant, key: DeviceKeyGrant, label: string | null, nowMs: number): Device {
  const waitedTooLong = grant.status === 'pending' && grant.pendingUntilMs !== null && nowMs >= grant.pendingUntilMs;
  return Object.freeze({
    deviceId: grant.deviceId,
    ownerId: grant.ownerId,
    projectId: grant.projectId,
    keyId: key.keyId,
    publicKey: jwkOf(key.publicJwk),
    keyState: key.keyState,
    keyRetiresAtMs: key.keyRetiresAtMs,
    status: waitedTooLong ? 'revoked' : grant.status,
    label,
    requestsPerMinute: grant.requestsPerMinute,
    ipAllowlist: grant.ipAllowlist,
    allowedModels: grant.allowedModels,
  });
}

/** Thrown to roll back what was done before the key id turned out to be taken. */
class KeyTaken extends Error {}

/** What `work`, a transaction of its own, resolves with; `key_exists`, and nothing done, where {@link insertDeviceKey} found the key id taken. */
export async function unlessTaken<T>(work: () => Promise<T>): Promise<T | { readonly outcome: 'key_exists' }> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof KeyTaken) return { outcome: 'key_exists' };
    throw error;
  }
}

export interface InsertedKey {
  readonly nowMs: number;
  /** The key of the same device whose place it takes. */
  readonly replaces: string | null;
}

/** Writes a key that is new, with its MAC. To be called within {@link unlessTaken}. */
export async function insertDeviceKey(tx: SqlTransaction, macKey: RowMacKey, key: DeviceKeyGrant, inserted: InsertedKey): Promise<void> {
  const { rows } = await tx.query(
    `INSERT INTO keyguard.device_keys (key_id, device_id, public_jwk, state, retire_at_ms, created_at_ms, replaces, mac_key_id, mac)
      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (key_id) DO NOTHING RETURNING key_id`,
    [key.keyId, key.deviceId, key.publicJwk, key.keyState, key.keyRetiresAtMs, inserted.nowMs, inserted.replaces, macKey.keyId,
      await deviceKeyMac(macKey, key)],
  );
  if (rows.length === 0) throw new KeyTaken();
}
