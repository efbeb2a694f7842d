/**
 * Keeps what a registry told of devices, so that a verification asks no store for one, and forgets it when it changes. It gives no
 * answer that leaves out a change which was acknowledged longer ago than the watch says; where it cannot know that, it gives none.
 *
 * Why that holds: a poll names what was acknowledged before it began. So what was read of a device leaves out no change but those
 * acknowledged after the last answered poll began, unless a change was named while it was being read; and then it is not kept.
 *
 * @see docs/decisions/0018-revocation-everywhere.md
 */
import { UnavailableError, UsageError } from '@keyguard/core/errors';
import type { Device, DeviceRegistry, EnrollmentOutcome, EnrollmentRequest, KeyRotationOutcome, KeyRotationRequest, MaybePromise } from '@keyguard/core/seams';
import type { DeviceWatch } from './device-watch.ts';
import { elapsedMs, present, type Moment } from './elapsed.ts';

const SEAM = 'device_registry';
// A device that changes each time while it is being read is not read for ever.
const MAX_READINGS = 5;

/** How much is kept, and for how long at most. */
export interface CachedDeviceRegistryOptions {
  /** How many devices, by their keys, are kept at most: 1 to 1,000,000, default 10,000. The one that was read first makes room. */
  readonly maxDevices?: number;
  /**
   * For how many milliseconds a device is kept at most although nobody said that it changed: 2,000 to 60,000, the default. For what
   * no feed can tell, such as a row that was changed or removed behind everyone's back.
   */
  readonly maxAgeMs?: number;
}

/** A {@link DeviceRegistry} that answers from memory, and its bound. */
export interface CachedDeviceRegistry extends DeviceRegistry {
  /**
   * What `registry` tells, with every change that was acknowledged `watch.maxStaleMs` before the answer, or that `rotate` made here
   * or `watch.note` was told of. Answers at once, without a promise, of a device that is kept. A key that is not known is asked for
   * each time: it may be enrolled anywhere at any moment, and is then known here at once.
   * @throws UnavailableError seam `device_changes` where the watch has heard nothing for too long, of kept devices and of others
   */
  findByKeyId(keyId: string): MaybePromise<Device | null>;
  /** How many are kept. For metrics. */
  kept(): number;
}

interface Kept {
  readonly device: Device;
  readonly since: Moment;
}

interface Reading {
  readonly began: Moment;
  /** Resolves when its device is kept, with whether there is one. */
  readonly known: Promise<boolean>;
  /** What was said to have changed since it began. */
  changed: Set<string> | 'reset';
}

/**
 * A {@link DeviceRegistry} that keeps what `registry` tells. What makes rows trusted (their MACs) was checked by it when it read them,
 * and is not checked again. Verbs that change something are handed on.
 * @throws UsageError `invalid_option`
 */
export function cachedDeviceRegistry(
  registry: DeviceRegistry,
  watch: DeviceWatch,
  options: CachedDeviceRegistryOptions = {},
): CachedDeviceRegistry {
  const { maxDevices = 10_000, maxAgeMs = 60_000 } = options;
  if (!Number.isInteger(maxDevices) || maxDevices < 1 || maxDevices > 1_000_000) {
    throw new UsageError('invalid_option', 'maxDevices must be an integer from 1 to 1,000,000.');
  }
  if (!Number.isInteger(maxAgeMs) || maxAgeMs < 2000 || maxAgeMs > 60_000) {
    throw new UsageError('invalid_option', 'maxAgeMs must be an integer from 2,000 to 60,000.');
  }
  // In the order in which they came, so that the first is the oldest. A hit moves nothing, and looks at no clock but the watch's.
  const kept = new Map<string, Kept>();
  const keyIdsOf = new Map<string, Set<string>>();
  const readings = new Map<string, Reading>();

  function forget(keyId: string): void {
    const held = kept.get(keyId);
    if (held === undefined) return;
    kept.delete(keyId);
    const { deviceId } = held.device;
    const keyIds = keyIdsOf.get(deviceId);
    keyIds?.delete(keyId);
    if (keyIds?.size === 0) keyIdsOf.delete(deviceId);
  }

  function keep(keyId: string, device: Device): void {
    forget(keyId);
    if (kept.size >= maxDevices) forget(kept.keys().next().value!);
    kept.set(keyId, { device: frozen(device), since: present() });
    const keyIds = keyIdsOf.get(device.deviceId);
    if (keyIds === undefined) keyIdsOf.set(device.deviceId, new Set([keyId]));
    else keyIds.add(keyId);
  }

  function onChanged(deviceIds: readonly string[] | 'reset'): void {
    if (deviceIds === 'reset') {
      kept.clear();
      keyIdsOf.clear();
      for (const reading of readings.values()) reading.changed = 'reset';
      return;
    }
    for (const deviceId of deviceIds) {
      for (const keyId of keyIdsOf.get(deviceId) ?? []) forget(keyId);
      // Whose key is being read is not known yet.
      for (const { changed } of readings.values()) if (changed !== 'reset') changed.add(deviceId);
    }
  }

  /** At every poll: until the next one, or until the watch is silent, nothing may pass its age. */
  function forgetOld(): void {
    for (const [keyId, { since }] of kept) {
      if (elapsedMs(since) + watch.maxStaleMs <= maxAgeMs) break;
      forget(keyId);
    }
  }

  const find = (keyId: string): Device | null => kept.get(keyId)?.device ?? null;

  function read(keyId: string): Reading {
    const began = present();
    const readAndKeep = async (): Promise<boolean> => {
      try {
        const device = await registry.findByKeyId(keyId);
        if (device === null) return false;
        if (device?.keyId !== keyId || typeof device.deviceId !== 'string') {
          throw new UnavailableError(SEAM, 'The registry gave no device of that key.');
        }
        const { changed } = reading;
        // What changed meanwhile may have been read before or after it did: whoever asked reads it again.
        if (changed !== 'reset' && !changed.has(device.deviceId)) keep(keyId, device);
        return true;
      } finally {
        if (readings.get(keyId) === reading) readings.delete(keyId);
      }
    };
    const reading: Reading = { began, changed: new Set(), known: Promise.resolve().then(readAndKeep) };
    const late = readings.get(keyId);
    // One that nobody joins any more is told of no change either.
    if (late !== undefined) late.changed = 'reset';
    readings.set(keyId, reading);
    return reading;
  }

  /** The reading of that key which is under way, unless it is so slow that a new one will be sooner. */
  function underWay(keyId: string): Reading | undefined {
    const reading = readings.get(keyId);
    return reading !== undefined && elapsedMs(reading.began) <= watch.maxStaleMs ? reading : undefined;
  }

  async function findByReading(keyId: string): Promise<Device | null> {
    let mayJoin = true;
    for (let readingsLeft = MAX_READINGS; readingsLeft > 0; readingsLeft -= 1) {
      await watch.caughtUp();
      // Every answer is given from here, right after the watch was asked: so there is one place that must be right.
      const device = find(keyId);
      if (device !== null) return device;
      const joined: Reading | undefined = mayJoin ? underWay(keyId) : undefined;
      const isKnown: boolean = await (joined ?? read(keyId)).known;
      if (!isKnown && joined === undefined) return null;
      // The key may have been enrolled between the beginning of a reading and this call: then only one's own counts.
      mayJoin = isKnown;
    }
    const device = isFresh() ? find(keyId) : null;
    if (device !== null) return device;
    throw new UnavailableError(SEAM, 'The device changed each time while it was being read.');
  }

  const isFresh = (): boolean => watch.silentForMs() <= watch.maxStaleMs;

  watch.listen({ onChanged, onCaughtUp: forgetOld });

  return {
    findByKeyId: (keyId: string): MaybePromise<Device | null> => (isFresh() ? find(keyId) : null) ?? findByReading(keyId),
    enroll: (request: EnrollmentRequest): MaybePromise<EnrollmentOutcome> => registry.enroll(request),
    async rotate(request: KeyRotationRequest): Promise<KeyRotationOutcome> {
      const answer = await registry.rotate(request);
      if ('device' in answer) watch.note(answer.device.deviceId);
      return answer;
    },
    kept: (): number => kept.size,
  };
}

/** Frozen with its key and its lists: all callers get the same one. */
function frozen(device: Device): Device {
  Object.freeze(device.publicKey);
  for (const part of Object.values(device) as unknown[]) if (Array.isArray(part)) Object.freeze(part);
  return Object.freeze(device);
}
