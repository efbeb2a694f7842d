/**
 * The whole of a rotation for the tests: a real Express application on a real socket, devices that keep their keys wherever a test
 * says, and a network and a power supply that fail by plan.
 */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import express, { type Express } from 'express';
import { enrollmentRouter, keyguard } from '@keyguard/adapters-express';
import { KeyGuardClient } from '@keyguard/core';
import { UsageError } from '@keyguard/core/errors';
import { memoryDeviceRegistry, memoryReplayStore, type MemoryDeviceRegistry } from '@keyguard/core/memory';
import type { Device, KeyStore } from '@keyguard/core/seams';
import { webCryptoRandom } from '@keyguard/core/system';
import { createEnrollment, createRotation, createVerifier, generateEnrollmentCode, generateRotationCode, hashEnrollmentCode, hashRotationCode } from '@keyguard/server-verifier';

export const KEY_NAME = 'device';
const random = webCryptoRandom();

export interface World {
  readonly origin: string;
  readonly registry: MemoryDeviceRegistry;
  readonly time: { nowMs: number };
  newEnrollmentCode(): string;
  /** The one code with which this device may rotate now. */
  newRotationCode(deviceId: string): string;
  currentKeyIds(deviceId: string): string[];
  close(): Promise<void>;
}

export interface WorldOptions {
  /** Where its clock starts. The clock stands still but for what a test adds, unless it ticks. */
  readonly nowMs?: number;
  readonly ticks?: boolean;
  /** Runs before the routes are mounted. */
  readonly before?: (app: Express) => void;
}

export async function openWorld({ nowMs = 1_800_000_000_000, ticks = false, before }: WorldOptions = {}): Promise<World> {
  const time = { nowMs };
  const startedAtMs = Date.now();
  const clock = { nowMs: (): number => time.nowMs + (ticks ? Date.now() - startedAtMs : 0) };
  const registry = memoryDeviceRegistry();
  const app = express();
  const server = createServer(app);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const authority = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const options = {
    registry,
    clock,
    replayStore: memoryReplayStore({ clock, maxFutureSeconds: 60, startedAtMs: 0 }),
    policy: { authorities: [authority], requestsPerMinute: 1_000_000, requestsPerMinutePerIp: 1_000_000 },
    enrollmentsPerMinute: 100_000,
    rotationsPerMinute: 100_000,
  };
  const verifier = createVerifier(options);
  before?.(app);
  app.use('/api/keyguard', enrollmentRouter({ verifier, enrollment: createEnrollment(options), rotation: createRotation(options) }));
  app.use('/api', keyguard(verifier), (request, response) => void response.json({ signedBy: request.keyguard?.device.keyId }));
  const expiresAtMs = (): number => clock.nowMs() + 900_000;
  return {
    origin: `http://${authority}`,
    registry,
    time,
    newEnrollmentCode() {
      const code = generateEnrollmentCode(random);
      registry.addCode({ codeHash: hashEnrollmentCode(code)!, ownerId: 'owner', expiresAtMs: expiresAtMs() });
      return code;
    },
    newRotationCode(deviceId) {
      const code = generateRotationCode(random);
      registry.addRotationCode({ codeHash: hashRotationCode(code)!, deviceId, expiresAtMs: expiresAtMs() });
      return code;
    },
    currentKeyIds: (deviceId) => registry.list().filter((device: Device) => device.deviceId === deviceId).map(({ keyId }) => keyId),
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
}

/** What may befall one step of a client: a call of its store, or of the network. Where it cannot befall a step, it does not. */
export const FAULTS = ['dropRequest', 'dropAnswer', 'duplicate', 'delay', 'spoilRequest', 'spoilAnswer', 'failStore', 'killBefore', 'killAfter'] as const;
export type Fault = (typeof FAULTS)[number];

/** The program is gone: nothing that it still waits for will ever happen. */
export class Killed extends Error {}

export interface FaultyClient {
  readonly client: KeyGuardClient;
  /** How many steps it has taken. */
  steps(): number;
}

/** Requests that the network keeps, to deliver them when nobody waits for them any more. */
export type Held = (() => Promise<void>)[];

/** @param plan what befalls which step, counted from 0 */
export function faultyClient(world: World, store: KeyStore, plan: ReadonlyMap<number, Fault>, held: Held): FaultyClient {
  let step = 0;
  let dead = false;

  function begin(): Fault | undefined {
    if (dead) throw new Killed();
    const fault = plan.get(step);
    step += 1;
    if (fault === 'killBefore') die();
    return fault;
  }
  function die(): never {
    dead = true;
    throw new Killed();
  }
  const end = (fault: Fault | undefined): void => {
    if (dead || fault === 'killAfter') die();
  };

  const keyStore = new Proxy(store, {
    get(target, verb: keyof KeyStore) {
      return async (...parameters: [string, string]) => {
        const fault = begin();
        if (fault === 'failStore') throw new UsageError('key_store_unusable', 'There is no room left.');
        const answer = await target[verb](...parameters);
        end(fault);
        return answer;
      };
    },
  });

  const send: typeof globalThis.fetch = async (input, init) => {
    const fault = begin();
    const exchange = async (): Promise<Response> => {
      const response = await fetch(input, init);
      // Read at once: an answer that nobody takes must not keep the socket.
      const body = await response.arrayBuffer();
      return new Response(body, response);
    };
    switch (fault) {
      case 'dropRequest':
        throw new TypeError('fetch failed');
      case 'delay':
        held.push(async () => void (await exchange()));
        throw new TypeError('fetch failed');
      case 'dropAnswer':
        await exchange();
        throw new TypeError('fetch failed');
      case 'spoilRequest':
        return new Response('<html>Bad gateway</html>', { status: 502 });
      case 'spoilAnswer':
        await exchange();
        return new Response('<html>Gateway timeout</html>', { status: 504 });
      case 'duplicate':
        await exchange();
        return exchange();
      default: {
        const response = await exchange();
        end(fault);
        return response;
      }
    }
  };

  const client = new KeyGuardClient({ origin: world.origin, keyStore, keyName: KEY_NAME, fetch: send, clock: { nowMs: () => world.time.nowMs } });
  return { client, steps: () => step };
}
