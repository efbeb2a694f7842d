/**
 * How a device replaces its key, in the transaction of `kg_verifier` that is handed in: device, both keys and code are judged and
 * changed under one lock, or not at all.
 */
import { UsageError } from '@keyguard/core/errors';
import { MAX_KEY_OVERLAP_MS } from '@keyguard/core/canonical';
import type { KeyRotationOutcome, KeyRotationRequest, KeyState } from '@keyguard/core/seams';
import { integerOrNull, type SqlTransaction } from './client.ts';
import {
  DEVICE_REGISTRY,
  deviceGrant,
  deviceKeyMac,
  enrolledDevice,
  insertDeviceKey,
  isDeviceIntact,
  isDeviceKeyIntact,
  jwkText,
  type DeviceGrant,
  type DeviceGrantRow,
  type DeviceKeyGrant,
} from './device-rows.ts';
import { isRotationCodeIntact, type RotationCodeGrantRow } from './rotation-codes.ts';
import { tampered, type RowMacKey } from './row-mac.ts';

interface LockedDeviceRow extends DeviceGrantRow {
  label: string | null;
  mac_key_id: string;
  mac: unknown;
}

interface KeyRow {
  key_id: string;
  device_id: string;
  public_jwk: string;
  state: KeyState;
  retire_at_ms: unknown;
  replaces: string | null;
  mac_key_id: string;
  mac: unknown;
}

interface StoredKey extends DeviceKeyGrant {
  readonly replaces: string | null;
}

/** The device that has or had this key, which nobody else changes until the transaction ends. */
async function lockDevice(tx: SqlTransaction, rowMacKey: RowMacKey, keyId: string): Promise<{ grant: DeviceGrant; label: string | null } | null> {
  const { rows } = await tx.query<LockedDeviceRow>(
    `SELECT d.device_id, d.owner_id, d.project_id, d.status, d.label, d.rate_limit_per_min, d.ip_allowlist, d.allowed_models,
        d.pending_until_ms, d.mac_key_id, d.mac
      FROM keyguard.devices d WHERE d.device_id = (SELECT k.device_id FROM keyguard.device_keys k WHERE k.key_id = $1)
      FOR NO KEY UPDATE OF d`,
    [keyId],
  );
  const row = rows[0];
  if (row === undefined) return null;
  const grant = deviceGrant(row);
  if (!(await isDeviceIntact(rowMacKey, grant, row.mac_key_id, row.mac))) throw tampered(DEVICE_REGISTRY, 'devices');
  return { grant, label: row.label };
}

async function readKey(tx: SqlTransaction, rowMacKey: RowMacKey, keyId: string): Promise<StoredKey | null> {
  const { rows } = await tx.query<KeyRow>(
    'SELECT key_id, device_id, public_jwk, state, retire_at_ms, replaces, mac_key_id, mac FROM keyguard.device_keys WHERE key_id = $1',
    [keyId],
  );
  const row = rows[0];
  if (row === undefined) return null;
  const key: StoredKey = {
    keyId: row.key_id,
    deviceId: row.device_id,
    publicJwk: row.public_jwk,
    keyState: row.state,
    keyRetiresAtMs: integerOrNull(row.retire_at_ms),
    replaces: row.replaces,
  };
  if (!(await isDeviceKeyIntact(rowMacKey, key, row.mac_key_id, row.mac))) throw tampered(DEVICE_REGISTRY, 'device_keys');
  return key;
}

/** The one conditional update: of racing callers one finds the code open and takes it, and the others find none. */
async function useCode(tx: SqlTransaction, rowMacKey: RowMacKey, deviceId: string, codeHash: string, nowMs: number): Promise<boolean> {
  const { rows } = await tx.query<RotationCodeGrantRow>(
    `UPDATE keyguard.rotation_codes SET used_at_ms = $3
      WHERE code_hash = $1 AND device_id = $2 AND used_at_ms IS NULL AND revoked_at_ms IS NULL AND expires_at_ms > $3
      RETURNING id, code_hash, device_id, created_by, expires_at_ms, mac_key_id, mac`,
    [codeHash, deviceId, nowMs],
  );
  if (rows[0] === undefined) return false;
  if (!(await isRotationCodeIntact(rowMacKey, rows[0]))) throw tampered(DEVICE_REGISTRY, 'rotation_codes');
  return true;
}

/** As the seam has it; to be called within `unlessTaken`. */
export async function rotateIn(tx: SqlTransaction, rowMacKey: RowMacKey, request: KeyRotationRequest): Promise<KeyRotationOutcome> {
  const { oldKeyId, keyId, publicKey, codeHash, allowWithoutCode, overlapMs, nowMs } = request;
  if (!Number.isInteger(overlapMs) || overlapMs < 0 || overlapMs > MAX_KEY_OVERLAP_MS) {
    throw new UsageError('invalid_option', `overlapMs must be an integer from 0 to ${MAX_KEY_OVERLAP_MS}.`);
  }
  const locked = await lockDevice(tx, rowMacKey, oldKeyId);
  if (locked?.grant.status !== 'active') return { outcome: 'rejected' };
  const { grant, label } = locked;
  // Read only now: a statement sees what was committed before it began, and whoever held the lock has committed.
  const old = await readKey(tx, rowMacKey, oldKeyId);
  const present = await readKey(tx, rowMacKey, keyId);
  if (old?.keyState !== 'current') {
    const isRetiring = old?.keyState === 'retiring' && old.keyRetiresAtMs !== null && nowMs < old.keyRetiresAtMs;
    if (!isRetiring || present?.keyState !== 'current' || present.replaces !== oldKeyId) return { outcome: 'rejected' };
    return { outcome: 'already_rotated', device: enrolledDevice(grant, present, label, nowMs) };
  }
  if (present !== null) return { outcome: 'key_exists' };
  if (codeHash === null ? !allowWithoutCode : !(await useCode(tx, rowMacKey, grant.deviceId, codeHash, nowMs))) {
    return { outcome: 'rejected' };
  }

  const retiring: DeviceKeyGrant = { ...old, keyState: 'retiring', keyRetiresAtMs: nowMs + overlapMs };
  const { rows } = await tx.query(
    `UPDATE keyguard.device_keys SET state = $2, retire_at_ms = $3, mac_key_id = $4, mac = $5
      WHERE key_id = $1 AND state = 'current' RETURNING key_id`,
    [oldKeyId, retiring.keyState, retiring.keyRetiresAtMs, rowMacKey.keyId, await deviceKeyMac(rowMacKey, retiring)],
  );
  if (rows.length === 0) throw new Error('The key of the locked device did not change.');
  const key: DeviceKeyGrant = {
    keyId,
    deviceId: grant.deviceId,
    publicJwk: jwkText(publicKey),
    keyState: 'current',
    keyRetiresAtMs: null,
  };
  await insertDeviceKey(tx, rowMacKey, key, { nowMs, replaces: oldKeyId });
  return { outcome: 'rotated', device: enrolledDevice(grant, key, label, nowMs) };
}
