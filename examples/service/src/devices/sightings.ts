/**
 * When devices were last seen: gathered in memory and written a few seconds later, many at a time. Nothing depends on it, so what
 * is lost with the process is lost.
 */
import type { DeviceDirectory, DeviceSighting } from '@keyguard/storage-node/postgres';

const MAX_HELD = 10_000;

export interface Sightings {
  note(deviceId: string, ip: string | null): void;
  flush(): Promise<void>;
}

export function sightings(directory: Pick<DeviceDirectory, 'touch'>): Sightings {
  let held = new Map<string, DeviceSighting>();
  return {
    note(deviceId, ip) {
      if (held.size < MAX_HELD || held.has(deviceId)) held.set(deviceId, { deviceId, seenAtMs: Date.now(), ip });
    },
    async flush() {
      if (held.size === 0) return;
      const taken = [...held.values()];
      held = new Map();
      await directory.touch(taken);
    },
  };
}
