/** A cached registry keeps the contract of a registry, with the bound that it names. Two caches over one registry are two processes. */
import { setTimeout as sleep } from 'node:timers/promises';
import { deviceRegistryConformance, injectFaults } from '@keyguard/conformance';
import { UnavailableError } from '@keyguard/core/errors';
import { memoryDeviceRegistry } from '@keyguard/core/memory';
import type { DeviceChanges, DeviceRegistry } from '@keyguard/core/seams';
import { cachedDeviceRegistry, watchDeviceChanges, type CachedDeviceRegistry } from '@keyguard/server-verifier';

deviceRegistryConformance(
  'cachedDeviceRegistry over memoryDeviceRegistry',
  () => {
    const devices = memoryDeviceRegistry();
    const log: string[] = [];
    const faults = injectFaults({
      failure: () => new UnavailableError('device_registry', 'The connection is closed.'),
      full: () => new UnavailableError('device_registry', 'There is no room.'),
    });
    const changes: DeviceChanges = {
      since: (cursor) =>
        faults.through(() => ({ cursor: String(log.length), deviceIds: cursor === null ? 'reset' : log.slice(Number(cursor)) }), false),
    };
    // What a store of its own would do by itself.
    const logged: DeviceRegistry = {
      findByKeyId: (keyId) => faults.through(() => devices.findByKeyId(keyId), false),
      enroll: (request) => faults.through(() => devices.enroll(request)),
      rotate: (request) =>
        faults.through(async () => {
          const answer = await devices.rotate(request);
          if (answer.outcome === 'rotated') log.push(answer.device.deviceId);
          return answer;
        }),
    };
    const watches = [0, 1].map(() => watchDeviceChanges(changes, { pollEveryMs: 100, maxStaleMs: 500 }));
    const [registry, peer] = watches.map((watch) => cachedDeviceRegistry(logged, watch)) as [CachedDeviceRegistry, CachedDeviceRegistry];
    const move = (deviceId: string, transition: 'suspend' | 'revoke'): void => {
      devices.transition(deviceId, transition);
      log.push(deviceId);
    };
    return {
      registry,
      peer,
      nowMs: () => Date.now(),
      addCode: (code) => devices.addCode(code),
      addRotationCode: (code) => devices.addRotationCode(code),
      suspend: (deviceId) => move(deviceId, 'suspend'),
      revoke: (deviceId) => move(deviceId, 'revoke'),
      afterBound: () => sleep(watches[0]!.maxStaleMs),
      faults,
      close: () => {
        for (const watch of watches) watch.stop();
      },
    };
  },
);
