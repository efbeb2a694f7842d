/** Rows of `devices` and `device_keys`: what of them grants, and what a verifier may make of them. */
import type { Device, DeviceStatus, KeyState, PublicJwk } from '@keyguard/core/seams';
import { bytesOf, integerOrNull } from './client.ts';
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

/** A device as this registry finds it: what the seam demands, and to which models it is held. */
export interface EnrolledDevice extends Device {
  readonly allowedModels: readonly string[] | null;
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
