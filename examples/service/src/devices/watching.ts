/**
 * The feed by which this replica hears what others changed of devices; the log tells when it falls silent, and when it is back.
 */
import type { Logger } from 'pino';
import { watchDeviceChanges, type DeviceWatch } from '@keyguard/server-verifier';
import { postgresDeviceChanges, type SqlClient } from '@keyguard/storage-node/postgres';
import { describeError } from '../log.ts';

/** `sql` MUST NOT wait behind other work: a feed that is late for a second is an outage. */
export function watchDevices(sql: SqlClient, log: Logger): DeviceWatch {
  let hasFailed = false;
  const watch = watchDeviceChanges(postgresDeviceChanges(sql), {
    onFailure(error) {
      if (!hasFailed) log.warn({ error: describeError(error) }, 'changed devices cannot be asked for');
      hasFailed = true;
    },
  });
  watch.listen({
    onChanged() {},
    onCaughtUp() {
      if (hasFailed) log.info('changed devices can be asked for again');
      hasFailed = false;
    },
  });
  return watch;
}
