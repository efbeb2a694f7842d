/**
 * Rotation codes, as `kg_app` for a user: with one a device replaces its key, once. Only the SHA-256 of a code is ever kept, and it
 * is not read back. What a code grants (to which device, until when) is under a MAC, which rotation checks.
 */
import { UsageError } from '@keyguard/core/errors';
import type { Clock, DeviceStatus } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { randomUUID } from 'node:crypto';
import { isActingAdministrator } from './administrators.ts';
import { asRole, bytesOf, guarded, integer, type Sql, type SqlTransaction } from './client.ts';
import { deviceGrant, isDeviceIntact, type DeviceGrant, type DeviceGrantRow } from './device-rows.ts';
import { isIntact, rowMac, tampered, type RowField, type RowMacKey } from './row-mac.ts';

const SEAM = 'rotation_codes';

/** The columns of a code that are under its MAC, and the MAC. */
export interface RotationCodeGrantRow {
  id: string;
  code_hash: string;
  device_id: string;
  created_by: string;
  expires_at_ms: unknown;
  mac_key_id: string;
  mac: unknown;
}

function codeFields(row: Omit<RotationCodeGrantRow, 'mac' | 'mac_key_id'>): readonly RowField[] {
  return [row.id, row.code_hash, row.device_id, row.created_by, integer(row.expires_at_ms)];
}

export function isRotationCodeIntact(key: RowMacKey, row: RotationCodeGrantRow): Promise<boolean> {
  return isIntact(key, 'rotation_codes', codeFields(row), { macKeyId: row.mac_key_id, mac: bytesOf(row.mac) });
}

/** A rotation code as it is kept: its hash, and for which device. */
export interface NewRotationCode {
  /** Base64url SHA-256 of the normalised code. */
  readonly codeHash: string;
  readonly deviceId: string;
  /** The owner of the device, or an administrator. */
  readonly createdBy: string;
  readonly expiresAtMs: number;
}

/** A code as it may be shown: without its hash. */
export interface RotationCode extends Omit<NewRotationCode, 'codeHash'> {
  readonly id: string;
  readonly createdAtMs: number;
}

/** What became of a new code. */
export type RotationCodeOutcome =
  | { readonly outcome: 'created'; readonly code: RotationCode }
  /** No device of that id that this user can see: the two are one answer. */
  | { readonly outcome: 'not_found' }
  /** Only an active device replaces its key. */
  | { readonly outcome: 'illegal'; readonly status: DeviceStatus };

/** The codes with which devices replace their keys, one for each device at most. */
export interface RotationCodes {
  /**
   * Keeps a new code, which takes the place of the one that the device had. In a transaction that is handed to the factory, it is
   * there if and only if that commits: append its audit entry there.
   * @throws UnavailableError seam `rotation_codes`, also for a device or an administrator without the MAC of that row
   */
  create(code: NewRotationCode): Promise<RotationCodeOutcome>;
}

/** What authenticates the rows. */
export interface PostgresRotationCodesOptions {
  /** The one with which administrators are granted and devices enroll. */
  readonly rowMacKey: RowMacKey;
  readonly clock?: Clock;
}

interface LockedDeviceRow extends DeviceGrantRow {
  mac_key_id: string;
  mac: unknown;
}

/** {@link RotationCodes} in PostgreSQL. */
export function postgresRotationCodes(sql: Sql, options: PostgresRotationCodesOptions): RotationCodes {
  const { rowMacKey, clock = systemClock } = options;

  /** The device, which nobody else changes meanwhile, where this user may administer it. */
  async function lockDevice(tx: SqlTransaction, deviceId: string, userId: string): Promise<DeviceGrant | null> {
    const { rows } = await tx.query<LockedDeviceRow>(
      `SELECT d.device_id, d.owner_id, d.project_id, d.status, d.rate_limit_per_min, d.ip_allowlist, d.allowed_models,
          d.pending_until_ms, d.mac_key_id, d.mac
        FROM keyguard.devices d WHERE d.device_id = $1 AND ($2::boolean OR d.owner_id = $3) FOR UPDATE OF d`,
      [deviceId, await isActingAdministrator(tx, rowMacKey, userId, SEAM), userId],
    );
    const row = rows[0];
    if (row === undefined) return null;
    const grant = deviceGrant(row);
    if (!(await isDeviceIntact(rowMacKey, grant, row.mac_key_id, row.mac))) throw tampered(SEAM, 'devices');
    return grant;
  }

  async function createIn(tx: SqlTransaction, code: NewRotationCode): Promise<RotationCodeOutcome> {
    const { codeHash, deviceId, createdBy, expiresAtMs } = code;
    const device = await lockDevice(tx, deviceId, createdBy);
    if (device === null) return { outcome: 'not_found' };
    if (device.status !== 'active') return { outcome: 'illegal', status: device.status };
    const createdAtMs = clock.nowMs();
    await tx.query(
      `UPDATE keyguard.rotation_codes SET revoked_at_ms = $2 WHERE device_id = $1 AND used_at_ms IS NULL AND revoked_at_ms IS NULL`,
      [deviceId, createdAtMs],
    );
    const row = { id: randomUUID(), code_hash: codeHash, device_id: deviceId, created_by: createdBy, expires_at_ms: expiresAtMs };
    await tx.query(
      `INSERT INTO keyguard.rotation_codes (id, code_hash, device_id, created_by, created_at_ms, expires_at_ms, mac_key_id, mac)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
      [row.id, codeHash, deviceId, createdBy, createdAtMs, expiresAtMs, rowMacKey.keyId,
        await rowMac(rowMacKey, 'rotation_codes', codeFields(row))],
    );
    return { outcome: 'created', code: { id: row.id, deviceId, createdBy, createdAtMs, expiresAtMs } };
  }

  return {
    create: (code): Promise<RotationCodeOutcome> =>
      guarded(SEAM, async () => {
        if (!Number.isSafeInteger(code.expiresAtMs)) throw new UsageError('invalid_option', 'expiresAtMs must be Unix milliseconds.');
        return asRole(sql, 'kg_app', (tx) => createIn(tx, code), { userId: code.createdBy });
      }),
  };
}
