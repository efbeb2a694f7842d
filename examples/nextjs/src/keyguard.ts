/** KeyGuard in Next.js: a door for route handlers, and the routes by which devices enroll. */
import { memoryDeviceRegistry, memoryReplayStore } from '@keyguard/core/memory';
import { createEnrollment, createVerifier } from '@keyguard/server-verifier';
import { fetchDevices, fetchDoor } from '@keyguard/server-verifier/fetch';

function open() {
  const registry = memoryDeviceRegistry(); // or your own DeviceRegistry
  const policy = { authorities: [`localhost:${process.env['PORT'] ?? 3000}`], requestsPerMinutePerIp: 60_000 };
  const options = { registry, replayStore: memoryReplayStore(), policy };
  const verifier = createVerifier(options);
  // Next.js hands no address to a route handler, and a header is what the caller says: so all callers are counted as one. Behind a
  // proxy of yours that sets a header and lets nobody else set it, read that.
  const ip = (): null => null;
  return { registry, door: fetchDoor(verifier, { ip }), devices: fetchDevices({ verifier, enrollment: createEnrollment(options), ip }) };
}

declare global {
  var keyguard: ReturnType<typeof open> | undefined;
}

// Next.js may load a module once for each route; what is kept in memory has to be one.
export const { registry, door, devices } = (globalThis.keyguard ??= open());
