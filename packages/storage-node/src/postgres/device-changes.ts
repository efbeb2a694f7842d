/**
 * Which devices changed, as the database knows it: exactly what was committed between two polls, whatever the order. Each poll is one
 * statement, takes no lock and keeps nothing.
 *
 * @see ../../migrations/0009-device-changes.sql
 */
import { UsageError } from '@keyguard/core/errors';
import type { ChangedDevices, DeviceChanges } from '@keyguard/core/seams';
import { guarded, type SqlClient } from './client.ts';

const SEAM = 'device_changes';
const CHANNEL = 'keyguard_device_changes';
const CURSOR = /^([0-9]{1,20}) ([0-9]{1,20}:[0-9]{1,20}:[0-9,]*)$/;

/** The part of `pg.Client` that is used to be told of changes sooner. */
export interface PgListener {
  /** Runs LISTEN and UNLISTEN. */
  query(text: string): Promise<unknown>;
  /** Tells of notifications from then on. */
  on(event: 'notification', listener: (message: { readonly channel: string }) => void): unknown;
  /** The end of {@link on}. */
  removeListener(event: 'notification', listener: (message: { readonly channel: string }) => void): unknown;
}

/** How many changes are named one by one, and who hints at them. */
export interface PostgresDeviceChangesOptions {
  /** Of more changed devices than this the answer is `reset`: 1 to 100,000, default 1,000. */
  readonly maxDevices?: number;
  /**
   * A connection of its own, connected and yours to close, on which to LISTEN: changes are then known in milliseconds instead of at
   * the next poll. Some poolers pass no notifications on; nothing depends on it.
   */
  readonly listener?: PgListener;
}

interface ChangedRow {
  server: string;
  snapshot: string;
  device_ids: string[] | null;
}

/**
 * {@link DeviceChanges} of the devices in PostgreSQL, as `kg_verifier`. `client` MUST be one of the server that takes the writes
 * and from which devices are read; a connection of its own keeps polls from waiting behind other work. A poll throws on a standby.
 * Told are changes by whoever is bound by triggers, not of rows that somebody removes or changes around them.
 * @throws UsageError `invalid_option`
 */
export function postgresDeviceChanges(client: SqlClient, options: PostgresDeviceChangesOptions = {}): DeviceChanges {
  const { maxDevices = 1000, listener } = options;
  if (!Number.isInteger(maxDevices) || maxDevices < 1 || maxDevices > 100_000) {
    throw new UsageError('invalid_option', 'maxDevices must be an integer from 1 to 100,000.');
  }

  async function since(cursor: string | null): Promise<ChangedDevices> {
    const [, server = null, snapshot = null] = CURSOR.exec(cursor ?? '') ?? [];
    const { rows } = await client.query<ChangedRow>('SELECT * FROM keyguard.changed_devices($1, $2, $3)', [server, snapshot, maxDevices]);
    const row = rows[0]!;
    return { cursor: `${row.server} ${row.snapshot}`, deviceIds: row.device_ids ?? 'reset' };
  }

  return {
    since: (cursor): Promise<ChangedDevices> => guarded(SEAM, () => since(cursor)),
    ...(listener !== undefined && { onHint: (hint): (() => void) => listenOn(listener, hint) }),
  };
}

function listenOn(listener: PgListener, hint: () => void): () => void {
  const onNotification = ({ channel }: { readonly channel: string }): void => {
    if (channel === CHANNEL) hint();
  };
  // Without it polls alone tell of changes, as they do where nobody listens.
  const ignore = (): void => {};
  listener.on('notification', onNotification);
  listener.query(`LISTEN ${CHANNEL}`).catch(ignore);
  return () => {
    listener.removeListener('notification', onNotification);
    listener.query(`UNLISTEN ${CHANNEL}`).catch(ignore);
  };
}
