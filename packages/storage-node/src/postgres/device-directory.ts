/**
 * The devices as people administer them, as `kg_app` for the user who asks: an owner sees its own, an administrator all.
 *
 * The policies decide what is seen, a trigger which moves are legal and whose they are; this room checks the same before, so
 * that the answer is an outcome and not a database error, and keeps the MAC of the row right. Who administers it decides by a row
 * that bears its MAC, which policy and trigger cannot check: both MUST agree.
 */
import { UsageError } from '@keyguard/core/errors';
import type { Clock, DeviceStatus } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { isActingAdministrator } from './administrators.ts';
import { asRole, guarded, integer, integerOrNull, type Sql, type SqlTransaction } from './client.ts';
import { DEVICE_REGISTRY, deviceGrant, deviceMac, isDeviceIntact, type DeviceGrant, type DeviceGrantRow } from './device-rows.ts';
import { pageLimit, pageOf, pageStart, type Page, type PageRequest } from './page.ts';
import { tampered, type RowMacKey } from './row-mac.ts';

/** What may become of a device. */
export type DeviceMove = 'approve' | 'suspend' | 'resume' | 'revoke';

const MOVES: Readonly<Record<DeviceMove, { readonly from: readonly DeviceStatus[]; readonly to: DeviceStatus }>> = {
  approve: { from: ['pending'], to: 'active' },
  suspend: { from: ['active'], to: 'suspended' },
  resume: { from: ['suspended'], to: 'active' },
  revoke: { from: ['pending', 'active', 'suspended'], to: 'revoked' },
};

/** A device as it may be shown. */
export interface DeviceRecord extends DeviceGrant {
  readonly label: string | null;
  /** The current key; the first twelve characters are what a person compares before approving. */
  readonly keyId: string | null;
  readonly createdAtMs: number;
  readonly approvedBy: string | null;
  readonly approvedAtMs: number | null;
  readonly statusChangedBy: string | null;
  /** By the clock of the database. */
  readonly changedAtMs: number;
  readonly lastSeenAtMs: number | null;
  readonly lastIp: string | null;
  /** `false` for a row that was changed behind this code's back: it lets nobody in, and can only be revoked. */
  readonly intact: boolean;
}

/**
 * Where somebody has a say on devices of others, without administering. The caller MUST have checked what grants it; the policies of
 * its database MUST grant it too.
 */
export interface DeviceReach {
  readonly everywhere: boolean;
  readonly projectIds: readonly string[];
}

/** Which devices to list, and as whom. */
export interface DevicePageRequest extends PageRequest {
  readonly asUserId: string;
  /** Left out: nowhere. */
  readonly reach?: DeviceReach;
  readonly status?: DeviceStatus;
  readonly ownerId?: string;
  readonly projectId?: string;
}

/** Who moves a device, and what goes with it. */
export interface DeviceMoveOptions {
  readonly byUserId: string;
  /** Where this user sees devices of others. Left out: nowhere. */
  readonly sees?: DeviceReach;
  /** Where this user may also suspend and revoke them, and resume what it suspended itself. Left out: nowhere. */
  readonly shuts?: DeviceReach;
  /** Approval only: who shall own a device that enrolled without a code. */
  readonly ownerId?: string;
  /** Approval only, with `ownerId`. */
  readonly projectId?: string;
}

/** What became of a move. */
export type DeviceMoveOutcome =
  | { readonly outcome: 'changed'; readonly from: DeviceStatus; readonly device: DeviceRecord }
  /** No device of that id that this user can see: the two are one answer. */
  | { readonly outcome: 'not_found' }
  /** The user sees the device, and the move is an administrator's. */
  | { readonly outcome: 'forbidden' }
  /** The device is in a state from which this move does not lead, or has waited too long to be approved. */
  | { readonly outcome: 'illegal'; readonly status: DeviceStatus }
  /** The device has no owner yet: approval must name one, and a project. */
  | { readonly outcome: 'owner_required' };

/** What may be changed of a device; what is left out stays. */
export interface DeviceSettings {
  readonly label?: string | null;
  readonly requestsPerMinute?: number | null;
  readonly ipAllowlist?: readonly string[] | null;
  readonly allowedModels?: readonly string[] | null;
}

/** When a device was seen. */
export interface DeviceSighting {
  readonly deviceId: string;
  readonly seenAtMs: number;
  readonly ip: string | null;
}

/**
 * What is done or shown for a user. Every verb that names one throws an `UnavailableError` where that user stands among the
 * administrators without the MAC of that row.
 */
export interface DeviceDirectory {
  /** What this user may see, newest first. */
  list(request: DevicePageRequest): Promise<Page<DeviceRecord>>;
  /** The device of that id, or `null` where this user can see none. */
  get(deviceId: string, options: { readonly asUserId: string; readonly reach?: DeviceReach }): Promise<DeviceRecord | null>;
  /**
   * Moves a device from one state to the next in one atomic step; revocation is final. In a transaction that is handed to the
   * factory, the move is there if and only if that commits: append its audit entry there.
   * @throws UnavailableError for a row without its MAC, but for `revoke`
   */
  transition(deviceId: string, move: DeviceMove, options: DeviceMoveOptions): Promise<DeviceMoveOutcome>;
  /**
   * Changes what is given and leaves the rest. Limits are an administrator's to set; an owner may change the label.
   * @throws UnavailableError for a row without its MAC
   */
  configure(
    deviceId: string,
    settings: DeviceSettings,
    options: { readonly byUserId: string },
  ): Promise<Exclude<DeviceMoveOutcome, { outcome: 'illegal' | 'owner_required' }>>;
  /**
   * Notes when devices were last seen, as `kg_verifier`, any number in one statement. Grants nothing and never waits: a device
   * that somebody is changing at this moment is left out.
   */
  touch(sightings: readonly DeviceSighting[]): Promise<void>;
}

/** What authenticates the rows. */
export interface PostgresDeviceDirectoryOptions {
  /** The one with which administrators are granted and devices enroll. */
  readonly rowMacKey: RowMacKey;
  readonly clock?: Clock;
}

interface DeviceRow extends DeviceGrantRow {
  label: string | null;
  key_id: string | null;
  created_at_ms: unknown;
  approved_by: string | null;
  approved_at_ms: unknown;
  status_changed_by: string | null;
  changed_at_ms: unknown;
  last_seen_at_ms: unknown;
  last_ip: string | null;
  mac_key_id: string;
  mac: unknown;
}

interface LockedDevice {
  readonly row: DeviceRow;
  readonly grant: DeviceGrant;
  readonly intact: boolean;
  /** Whether who acts is an administrator. */
  readonly administers: boolean;
}

const NOWHERE: DeviceReach = { everywhere: false, projectIds: [] };

/** Whether a device that is in a project is within reach: `everywhere` and `projectIds` are the names of parameters. */
const within = (everywhere: string, projectIds: string): string => `(d.project_id IS NOT NULL AND (${everywhere}::boolean OR d.project_id = ANY (${projectIds}::text[])))`;

const COLUMNS = `d.device_id, d.owner_id, d.project_id, d.status, d.label, d.rate_limit_per_min, d.ip_allowlist, d.allowed_models,
  d.created_at_ms, d.pending_until_ms, d.approved_by, d.approved_at_ms, d.status_changed_by, d.changed_at_ms, d.last_seen_at_ms,
  d.last_ip, d.mac_key_id, d.mac`;
const KEY_COLUMN = `(SELECT k.key_id FROM keyguard.device_keys k WHERE k.device_id = d.device_id AND k.state = 'current') AS key_id`;

/** {@link DeviceDirectory} in PostgreSQL. */
export function postgresDeviceDirectory(sql: Sql, options: PostgresDeviceDirectoryOptions): DeviceDirectory {
  const { rowMacKey, clock = systemClock } = options;

  async function deviceRecord(row: DeviceRow): Promise<DeviceRecord> {
    const grant = deviceGrant(row);
    return {
      ...grant,
      label: row.label,
      keyId: row.key_id,
      createdAtMs: integer(row.created_at_ms),
      approvedBy: row.approved_by,
      approvedAtMs: integerOrNull(row.approved_at_ms),
      statusChangedBy: row.status_changed_by,
      changedAtMs: integer(row.changed_at_ms),
      lastSeenAtMs: integerOrNull(row.last_seen_at_ms),
      lastIp: row.last_ip,
      intact: await isDeviceIntact(rowMacKey, grant, row.mac_key_id, row.mac),
    };
  }

  /** `fn` as `kg_app` for this user, told whether it administers. */
  function forUser<T>(userId: string, fn: (tx: SqlTransaction, administers: boolean) => Promise<T>): Promise<T> {
    return asRole(sql, 'kg_app', async (tx) => fn(tx, await isActingAdministrator(tx, rowMacKey, userId, DEVICE_REGISTRY)), { userId });
  }

  async function list(request: DevicePageRequest): Promise<Page<DeviceRecord>> {
    const limit = pageLimit(request);
    const start = pageStart(request);
    const { status = null, ownerId = null, projectId = null, reach = NOWHERE } = request;
    const { rows } = await forUser(request.asUserId, (tx, administers) =>
      tx.query<DeviceRow>(
        `SELECT ${COLUMNS}, ${KEY_COLUMN} FROM keyguard.devices d
          WHERE ($1::bigint IS NULL OR (d.created_at_ms, d.device_id) < ($1::bigint, $2::text))
            AND ($3::text IS NULL OR d.status = $3) AND ($4::text IS NULL OR d.owner_id = $4)
            AND ($5::text IS NULL OR d.project_id = $5) AND ($6::boolean OR d.owner_id = $7 OR ${within('$9', '$10')})
          ORDER BY d.created_at_ms DESC, d.device_id DESC LIMIT $8`,
        [start?.[0] ?? null, start?.[1] ?? null, status, ownerId, projectId, administers, request.asUserId, limit + 1, reach.everywhere, reach.projectIds],
      ),
    );
    const page = pageOf(rows, limit, (row) => [integer(row.created_at_ms), row.device_id], deviceRecord);
    return { items: await Promise.all(page.items), nextCursor: page.nextCursor };
  }

  async function seenIn(tx: SqlTransaction, deviceId: string, userId: string, administers: boolean, reach: DeviceReach): Promise<DeviceRow | undefined> {
    const { rows } = await tx.query<DeviceRow>(
      `SELECT ${COLUMNS}, ${KEY_COLUMN} FROM keyguard.devices d WHERE d.device_id = $1 AND ($2::boolean OR d.owner_id = $3 OR ${within('$4', '$5')})`,
      [deviceId, administers, userId, reach.everywhere, reach.projectIds],
    );
    return rows[0];
  }

  async function get(deviceId: string, asUserId: string, reach: DeviceReach): Promise<DeviceRecord | null> {
    const row = await forUser(asUserId, (tx, administers) => seenIn(tx, deviceId, asUserId, administers, reach));
    return row === undefined ? null : deviceRecord(row);
  }

  async function lock(tx: SqlTransaction, deviceId: string, userId: string, administers: boolean, shuts: DeviceReach): Promise<LockedDevice | null> {
    const { rows } = await tx.query<DeviceRow>(
      `SELECT ${COLUMNS}, ${KEY_COLUMN} FROM keyguard.devices d
        WHERE d.device_id = $1 AND ($2::boolean OR d.owner_id = $3 OR ${within('$4', '$5')}) FOR UPDATE OF d`,
      [deviceId, administers, userId, shuts.everywhere, shuts.projectIds],
    );
    const row = rows[0];
    if (row === undefined) return null;
    const grant = deviceGrant(row);
    return { row, grant, administers, intact: await isDeviceIntact(rowMacKey, grant, row.mac_key_id, row.mac) };
  }

  /** `fn` on the device, which nobody else changes meanwhile, where this user can see it. */
  function onLocked<T>(
    deviceId: string,
    userId: string,
    fn: (tx: SqlTransaction, locked: LockedDevice) => Promise<T>,
    { sees = NOWHERE, shuts = NOWHERE }: Pick<DeviceMoveOptions, 'sees' | 'shuts'> = {},
  ): Promise<T | { readonly outcome: 'not_found' | 'forbidden' }> {
    return forUser(userId, async (tx, administers) => {
      const locked = await lock(tx, deviceId, userId, administers, shuts);
      if (locked !== null) return fn(tx, locked);
      return { outcome: (await seenIn(tx, deviceId, userId, administers, sees)) === undefined ? 'not_found' : 'forbidden' };
    });
  }

  async function transitionIn(
    tx: SqlTransaction,
    locked: LockedDevice,
    move: DeviceMove,
    { byUserId, ownerId, projectId }: DeviceMoveOptions,
  ): Promise<DeviceMoveOutcome> {
    const { row, grant, administers, intact } = locked;
    const { from, to } = MOVES[move];
    if (!from.includes(grant.status)) return { outcome: 'illegal', status: grant.status };
    const isOwnSuspension = move === 'resume' && row.status_changed_by === byUserId;
    if (!administers && !isOwnSuspension && (move === 'approve' || move === 'resume')) return { outcome: 'forbidden' };
    // A row that nobody vouches for can still be shut: what it says is of no use to a device that is revoked.
    if (!intact && move !== 'revoke') throw tampered(DEVICE_REGISTRY, 'devices');
    const nowMs = clock.nowMs();
    let changed: DeviceGrant = { ...grant, status: to };
    if (move === 'approve') {
      if (grant.pendingUntilMs !== null && nowMs >= grant.pendingUntilMs) return { outcome: 'illegal', status: grant.status };
      changed = { ...changed, ownerId: grant.ownerId ?? ownerId ?? null, projectId: grant.projectId ?? projectId ?? null };
      if (changed.ownerId === null || changed.projectId === null) return { outcome: 'owner_required' };
      if ((ownerId ?? changed.ownerId) !== changed.ownerId || (projectId ?? changed.projectId) !== changed.projectId) {
        throw new UsageError('invalid_option', 'A device that has an owner and a project keeps them.');
      }
    } else if (ownerId !== undefined || projectId !== undefined) {
      throw new UsageError('invalid_option', 'Only an approval names an owner and a project.');
    }
    const { rows } = await tx.query<DeviceRow>(
      `UPDATE keyguard.devices AS d SET status = $2, owner_id = $3, project_id = $4, approved_by = $5, approved_at_ms = $6,
        mac_key_id = $7, mac = $8 WHERE d.device_id = $1 AND d.status = $9 RETURNING ${COLUMNS}, ${KEY_COLUMN}`,
      [grant.deviceId, to, changed.ownerId, changed.projectId, move === 'approve' ? byUserId : row.approved_by,
        move === 'approve' ? nowMs : integerOrNull(row.approved_at_ms), rowMacKey.keyId, await deviceMac(rowMacKey, changed),
        grant.status],
    );
    if (rows[0] === undefined) throw new Error('The locked device did not change.');
    return { outcome: 'changed', from: grant.status, device: await deviceRecord(rows[0]) };
  }

  async function configureIn(tx: SqlTransaction, locked: LockedDevice, settings: DeviceSettings): ReturnType<DeviceDirectory['configure']> {
    const { row, grant, administers, intact } = locked;
    const { label = row.label, ...limits } = settings;
    if (!administers && Object.values(limits).some((limit) => limit !== undefined)) return { outcome: 'forbidden' };
    if (!intact) throw tampered(DEVICE_REGISTRY, 'devices');
    const {
      requestsPerMinute = grant.requestsPerMinute,
      ipAllowlist = grant.ipAllowlist,
      allowedModels = grant.allowedModels,
    } = limits;
    if (requestsPerMinute !== null && !(Number.isInteger(requestsPerMinute) && requestsPerMinute > 0 && requestsPerMinute < 2 ** 31)) {
      throw new UsageError('invalid_option', 'requestsPerMinute must be a positive integer.');
    }
    const changed: DeviceGrant = { ...grant, requestsPerMinute, ipAllowlist, allowedModels };
    const { rows } = await tx.query<DeviceRow>(
      `UPDATE keyguard.devices AS d SET label = $2, rate_limit_per_min = $3, ip_allowlist = $4::text[], allowed_models = $5::text[],
        mac_key_id = $6, mac = $7 WHERE d.device_id = $1 RETURNING ${COLUMNS}, ${KEY_COLUMN}`,
      [grant.deviceId, label, requestsPerMinute, ipAllowlist, allowedModels, rowMacKey.keyId, await deviceMac(rowMacKey, changed)],
    );
    if (rows[0] === undefined) throw new Error('The locked device did not change.');
    return { outcome: 'changed', from: grant.status, device: await deviceRecord(rows[0]) };
  }

  async function touch(sightings: readonly DeviceSighting[]): Promise<void> {
    if (sightings.length === 0) return;
    const newest = new Map<string, DeviceSighting>();
    for (const sighting of sightings) {
      if (sighting.seenAtMs >= (newest.get(sighting.deviceId)?.seenAtMs ?? 0)) newest.set(sighting.deviceId, sighting);
    }
    const seen = [...newest.values()];
    await asRole(sql, 'kg_verifier', (tx) =>
      tx.query(
        `WITH seen AS (
          SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[]) AS s (device_id, seen_at_ms, ip)
        ), free AS (
          SELECT d.device_id FROM keyguard.devices d JOIN seen USING (device_id) FOR NO KEY UPDATE OF d SKIP LOCKED
        )
        UPDATE keyguard.devices AS d SET last_seen_at_ms = s.seen_at_ms, last_ip = s.ip
          FROM seen s JOIN free USING (device_id)
          WHERE d.device_id = s.device_id AND coalesce(d.last_seen_at_ms, 0) < s.seen_at_ms`,
        [seen.map((s) => s.deviceId), seen.map((s) => s.seenAtMs), seen.map((s) => s.ip)],
      ),
    );
  }

  return {
    list: (request): Promise<Page<DeviceRecord>> => guarded(DEVICE_REGISTRY, () => list(request)),
    get: (deviceId, { asUserId, reach = NOWHERE }): Promise<DeviceRecord | null> => guarded(DEVICE_REGISTRY, () => get(deviceId, asUserId, reach)),
    transition: (deviceId, move, by): Promise<DeviceMoveOutcome> =>
      guarded(DEVICE_REGISTRY, () => onLocked(deviceId, by.byUserId, (tx, locked) => transitionIn(tx, locked, move, by), by)),
    configure: (deviceId, settings, { byUserId }): ReturnType<DeviceDirectory['configure']> =>
      guarded(DEVICE_REGISTRY, () => onLocked(deviceId, byUserId, (tx, locked) => configureIn(tx, locked, settings))),
    touch: (sightings): Promise<void> => guarded(DEVICE_REGISTRY, () => touch(sightings)),
  };
}
