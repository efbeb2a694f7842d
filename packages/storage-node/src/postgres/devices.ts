/**
 * The devices that a verifier trusts, in PostgreSQL, as `kg_verifier`.
 *
 * Every row that lets a device in is checked against its MAC each time it is read: a row that was changed behind this code's
 * back is an outage of the registry for that device, never a pass, and no other device notices. Whoever keeps what was read (a
 * cache) keeps what was checked, and sees a row that was changed around the triggers when it reads it the next time.
 */
import { UsageError } from '@keyguard/core/errors';
import type {
  Clock,
  Device,
  DeviceRegistry,
  EnrollmentOutcome,
  EnrollmentRequest,
  KeyRotationOutcome,
  KeyRotationRequest,
} from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { randomUUID } from 'node:crypto';
import { asRole, callAsRole, guarded, integer, integerOrNull, type Sql, type SqlTransaction } from './client.ts';
import {
  DEVICE_REGISTRY,
  deviceGrant,
  deviceMac,
  enrolledDevice,
  insertDeviceKey,
  isDeviceIntact,
  isDeviceKeyIntact,
  jwkText,
  unlessTaken,
  type DeviceGrant,
  type DeviceGrantRow,
  type DeviceKeyGrant,
} from './device-rows.ts';
import { rotateIn } from './device-rotation.ts';
import { isCodeIntact, type CodeGrantRow } from './enrollment-codes.ts';
import { tampered, type RowMacKey } from './row-mac.ts';

const DAY_MS = 86_400_000;
const KEY_ID = /^[A-Za-z0-9_-]{43}$/;

/** Under which limits a device without a code may wait for approval. */
export interface EnrollmentWithoutCode {
  /** How many devices may await approval at a time, in the whole deployment. */
  readonly maxPending: number;
  /** For how long one may await it, at most and by default 24 hours. */
  readonly pendingMs?: number;
}

/** What authenticates the rows, and whether devices may come without a code. */
export interface PostgresDeviceRegistryOptions {
  /** Authenticates what rows grant. */
  readonly rowMacKey: RowMacKey;
  /** Lets devices without a code ask for approval. Left out: a code is demanded. */
  readonly allowWithoutCode?: EnrollmentWithoutCode;
  /** Says when a device that awaits approval has waited too long. */
  readonly clock?: Clock;
}

/** The {@link DeviceRegistry} on PostgreSQL: each verb is one atomic step, and what rows grant bears a MAC. */
export interface PostgresDeviceRegistry extends DeviceRegistry {
  /**
   * One round trip. A device whose time to be approved has passed is `revoked`.
   * @throws UnavailableError seam `device_registry`, also for a row without its MAC
   */
  findByKeyId(keyId: string): Promise<Device | null>;
  /** @throws UnavailableError seam `device_registry`, also for a code without its MAC; then nothing has changed */
  enroll(request: EnrollmentRequest): Promise<EnrollmentOutcome>;
  /** @throws UnavailableError seam `device_registry`, also for a device, key or code without its MAC; then nothing has changed */
  rotate(request: KeyRotationRequest): Promise<KeyRotationOutcome>;
}

interface FoundRow extends DeviceGrantRow {
  label: string | null;
  device_mac_key_id: string;
  device_mac: unknown;
  key_id: string;
  public_jwk: string;
  state: DeviceKeyGrant['keyState'];
  retire_at_ms: unknown;
  key_mac_key_id: string;
  key_mac: unknown;
}

interface UsedCodeRow extends CodeGrantRow {
  label: string | null;
}

async function isKeyKnown(tx: SqlTransaction, keyId: string): Promise<boolean> {
  const { rows } = await tx.query('SELECT 1 FROM keyguard.device_keys WHERE key_id = $1', [keyId]);
  return rows.length > 0;
}

/**
 * A {@link DeviceRegistry} that any number of processes share.
 * @throws UsageError `invalid_option`
 */
export function postgresDeviceRegistry(sql: Sql, options: PostgresDeviceRegistryOptions): PostgresDeviceRegistry {
  const { rowMacKey, allowWithoutCode, clock = systemClock } = options;
  const pendingMs = allowWithoutCode?.pendingMs ?? DAY_MS;
  const maxPending = allowWithoutCode?.maxPending ?? 0;
  if (!Number.isInteger(pendingMs) || pendingMs < 1 || pendingMs > DAY_MS) {
    throw new UsageError('invalid_option', 'pendingMs must be an integer from 1 to 86,400,000.');
  }
  if (!Number.isSafeInteger(maxPending) || maxPending < 0) {
    throw new UsageError('invalid_option', 'maxPending must be a non-negative integer.');
  }

  async function findByKeyId(keyId: string): Promise<Device | null> {
    if (!KEY_ID.test(keyId)) return null;
    const rows = await callAsRole<FoundRow>(sql, 'kg_verifier', 'SELECT * FROM keyguard.find_device($1)', [keyId]);
    const row = rows[0];
    if (row === undefined) return null;
    const grant = deviceGrant(row);
    const key: DeviceKeyGrant = {
      keyId: row.key_id,
      deviceId: row.device_id,
      publicJwk: row.public_jwk,
      keyState: row.state,
      keyRetiresAtMs: integerOrNull(row.retire_at_ms),
    };
    if (key.keyId !== keyId || !(await isDeviceKeyIntact(rowMacKey, key, row.key_mac_key_id, row.key_mac))) {
      throw tampered(DEVICE_REGISTRY, 'device_keys');
    }
    if (!(await isDeviceIntact(rowMacKey, grant, row.device_mac_key_id, row.device_mac))) {
      throw tampered(DEVICE_REGISTRY, 'devices');
    }
    return enrolledDevice(grant, key, row.label, clock.nowMs());
  }

  /** The one conditional update: of racing callers each either finds a use left and takes it, or finds none. */
  async function useCode(tx: SqlTransaction, codeHash: string, nowMs: number): Promise<UsedCodeRow | null> {
    const { rows } = await tx.query<UsedCodeRow>(
      `UPDATE keyguard.enrollment_codes SET uses = uses + 1
        WHERE code_hash = $1 AND uses < max_uses AND revoked_at_ms IS NULL AND expires_at_ms > $2
        RETURNING id, code_hash, created_by, for_user_id, project_id, label, max_uses, auto_approve, expires_at_ms, mac_key_id, mac`,
      [codeHash, nowMs],
    );
    const row = rows[0];
    if (row === undefined) return null;
    if (!(await isCodeIntact(rowMacKey, row))) throw tampered(DEVICE_REGISTRY, 'enrollment_codes');
    return row;
  }

  async function isRoomWithoutCode(tx: SqlTransaction, nowMs: number): Promise<boolean> {
    // One at a time, or a burst would all count before any of them is there.
    await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.enroll_without_code', 0))`);
    const { rows } = await tx.query<{ awaiting: unknown }>(
      `SELECT count(*) AS awaiting FROM keyguard.devices
        WHERE status = 'pending' AND owner_id IS NULL AND pending_until_ms > $1`,
      [nowMs],
    );
    return integer(rows[0]!.awaiting) < maxPending;
  }

  async function enrollIn(tx: SqlTransaction, request: EnrollmentRequest): Promise<EnrollmentOutcome> {
    const { keyId, publicKey, codeHash, fingerprint, nowMs } = request;
    if (await isKeyKnown(tx, keyId)) return { outcome: 'key_exists' };
    let code: UsedCodeRow | null = null;
    if (codeHash !== null) {
      code = await useCode(tx, codeHash, nowMs);
      // The last use may just have gone to a racing copy of this very request.
      if (code === null) return { outcome: (await isKeyKnown(tx, keyId)) ? 'key_exists' : 'rejected' };
    } else if (maxPending === 0 || !(await isRoomWithoutCode(tx, nowMs))) {
      return { outcome: 'rejected' };
    }

    const grant: DeviceGrant = {
      deviceId: randomUUID(),
      ownerId: code?.for_user_id ?? null,
      projectId: code?.project_id ?? null,
      status: code?.auto_approve === true ? 'active' : 'pending',
      requestsPerMinute: null,
      ipAllowlist: null,
      allowedModels: null,
      pendingUntilMs: code === null ? nowMs + pendingMs : null,
    };
    const key: DeviceKeyGrant = {
      keyId,
      deviceId: grant.deviceId,
      publicJwk: jwkText(publicKey),
      keyState: 'current',
      keyRetiresAtMs: null,
    };
    const label = request.label ?? code?.label ?? null;
    await tx.query(
      `INSERT INTO keyguard.devices (device_id, owner_id, project_id, status, label, fingerprint, created_at_ms, pending_until_ms,
        enrollment_code_id, mac_key_id, mac) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
      [grant.deviceId, grant.ownerId, grant.projectId, grant.status, label, fingerprint, nowMs, grant.pendingUntilMs,
        code?.id ?? null, rowMacKey.keyId, await deviceMac(rowMacKey, grant)],
    );
    await insertDeviceKey(tx, rowMacKey, key, { nowMs, replaces: null });
    return { outcome: 'enrolled', device: enrolledDevice(grant, key, label, nowMs) };
  }

  return {
    findByKeyId: (keyId: string): Promise<Device | null> => guarded(DEVICE_REGISTRY, () => findByKeyId(keyId)),
    enroll: (request: EnrollmentRequest): Promise<EnrollmentOutcome> =>
      guarded(DEVICE_REGISTRY, () => unlessTaken(() => asRole(sql, 'kg_verifier', (tx) => enrollIn(tx, request)))),
    rotate: (request: KeyRotationRequest): Promise<KeyRotationOutcome> =>
      guarded(DEVICE_REGISTRY, () => unlessTaken(() => asRole(sql, 'kg_verifier', (tx) => rotateIn(tx, rowMacKey, request)))),
  };
}
