/**
 * A device that rotates through the real router over a real socket, while the network loses, doubles, spoils and keeps back what it
 * is given, and the program dies at any step. The device can always go on, and has one key in the end.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { memoryKeyStore } from '@keyguard/core/memory';
import type { KeyStore } from '@keyguard/core/seams';
import { fileKeyStore } from '@keyguard/storage-node/file';
import { FAULTS, faultyClient, KEY_NAME, openWorld, type Fault, type FaultyClient, type Held, type World } from './rotation-world.ts';

const OVERLAP_MS = 60_000;

let base: string;
let places = 0;
let world: World;

beforeAll(async () => {
  base = await mkdtemp(join(tmpdir(), 'keyguard-rotation-'));
});
afterAll(() => rm(base, { recursive: true, force: true }));
beforeEach(async () => {
  world = await openWorld();
});
afterEach(() => world.close());

/** Opens one place again and again, as each start of a program and each of several programs does. */
type Open = () => KeyStore;

const PLACES: Record<string, () => Open> = {
  'in memory': () => {
    const store = memoryKeyStore();
    return () => store;
  },
  'in files': () => {
    places += 1;
    const directory = join(base, `place-${places}`);
    return () => fileKeyStore({ directory });
  },
};

interface TestDevice {
  readonly open: Open;
  readonly deviceId: string;
  readonly held: Held;
  start(plan?: ReadonlyMap<number, Fault>): FaultyClient;
}

async function enroll(open: Open): Promise<TestDevice> {
  const held: Held = [];
  const start = (plan: ReadonlyMap<number, Fault> = new Map()): FaultyClient => faultyClient(world, open(), plan, held);
  const { deviceId } = await start().client.enroll({ code: world.newEnrollmentCode() });
  return { open, deviceId, held, start };
}

async function deliver(held: Held): Promise<void> {
  for (const exchange of held.splice(0)) await exchange();
}

/** A program that starts now, with a network that works, can call; and it calls with the key that the store has afterwards. */
async function expectToGoOn({ start, open }: TestDevice): Promise<void> {
  const response = await start().client.fetch(`${world.origin}/api/anything`, { method: 'POST', body: '{}' });
  expect({ status: response.status, body: (await response.json()) as unknown }).toEqual({ status: 200, body: { signedBy: (await open().get(KEY_NAME))!.keyId } });
}

/** Once everything has arrived and the former keys have ended, store and server know the same one key, and it can be replaced. */
async function expectOneKey(device: TestDevice): Promise<void> {
  await deliver(device.held);
  world.time.nowMs += OVERLAP_MS;
  await expectToGoOn(device);
  const { keyId } = (await device.open().get(KEY_NAME))!;
  expect(world.currentKeyIds(device.deviceId)).toEqual([keyId]);
  const rotated = await device.start().client.rotate({ code: world.newRotationCode(device.deviceId) });
  expect(rotated).toMatchObject({ deviceId: device.deviceId, status: 'active' });
  expect(rotated.keyId).not.toBe(keyId);
  expect(world.currentKeyIds(device.deviceId)).toEqual([rotated.keyId]);
  expect((await device.open().get(KEY_NAME))!.keyId).toBe(rotated.keyId);
  expect(await device.open().getPending(KEY_NAME)).toBeNull();
  world.time.nowMs += OVERLAP_MS;
  await expectToGoOn(device);
}

describe.each(Object.entries(PLACES))('a device whose keys are %s', (name, place) => {
  const isQuick = name === 'in memory';

  it('rotates again and again, and each former key ends after a minute', async () => {
    const device = await enroll(place());
    const keyIds = new Set([(await device.open().get(KEY_NAME))!.keyId]);
    for (let round = 0; round < 5; round += 1) {
      const old = (await device.open().get(KEY_NAME))!;
      keyIds.add((await device.start().client.rotate({ code: world.newRotationCode(device.deviceId) })).keyId);
      expect(world.registry.findByKeyId(old.keyId)).toMatchObject({ keyState: 'retiring', keyRetiresAtMs: world.time.nowMs + OVERLAP_MS });
      await expectToGoOn(device);
    }
    expect(keyIds.size).toBe(6);
    await expectOneKey(device);
  });

  it('does not rotate without a code, nor with one that was used, and goes on', async () => {
    const device = await enroll(place());
    await expect(device.start().client.rotate()).rejects.toMatchObject({ code: 'rotation_rejected' });
    const code = world.newRotationCode(device.deviceId);
    await device.start().client.rotate({ code });
    await expect(device.start().client.rotate({ code })).rejects.toMatchObject({ code: 'rotation_rejected' });
    await expectToGoOn(device);
    await expectOneKey(device);
  });

  // A rotation that is not disturbed takes: get, getOrCreatePending, fetch, promote. One whose answer is lost takes more.
  it.each<[string, Fault | undefined]>([
    ['an undisturbed rotation', undefined],
    ['a rotation whose answer is lost', 'dropAnswer'],
    ['a rotation that is kept back', 'delay'],
    // Files take their time, and the store can tell these from the others as little as the client can.
    ...(isQuick ? ([['a rotation whose request is lost', 'dropRequest'], ['a rotation that is answered by a gateway', 'spoilAnswer'], ['a rotation that is sent twice', 'duplicate']] as [string, Fault][]) : []),
  ])('goes on after every fault at every step of %s', { timeout: 120_000 }, async (_rotation, first) => {
    const FETCH = 2;
    const disturbed = (fault?: Fault, at?: number): Map<number, Fault> =>
      new Map([...(first === undefined ? [] : [[FETCH, first] as const]), ...(fault === undefined ? [] : [[at!, fault] as const])]);
    const trial = await enroll(place());
    const undisturbed = trial.start(disturbed());
    await undisturbed.client.rotate({ code: world.newRotationCode(trial.deviceId) }).catch(() => {});
    expect(undisturbed.steps()).toBeGreaterThanOrEqual(4);
    for (let at = 0; at < undisturbed.steps(); at += 1) {
      for (const fault of FAULTS) {
        for (const waitMs of isQuick ? [0, OVERLAP_MS] : [OVERLAP_MS]) {
          const device = await enroll(place());
          await device.start(disturbed(fault, at)).client.rotate({ code: world.newRotationCode(device.deviceId) }).catch(() => {});
          world.time.nowMs += waitMs;
          await expectToGoOn(device);
          await deliver(device.held);
          world.time.nowMs += waitMs;
          await expectToGoOn(device);
          await expectOneKey(device);
        }
      }
    }
  });

  it('rotates once when several programs rotate it at once', async () => {
    const device = await enroll(place());
    for (let round = 0; round < 5; round += 1) {
      const code = world.newRotationCode(device.deviceId);
      const before = (await device.open().get(KEY_NAME))!.keyId;
      const settled = await Promise.allSettled(Array.from({ length: 4 }, () => device.start().client.rotate({ code })));
      expect(settled.some(({ status }) => status === 'fulfilled')).toBe(true);
      const [current, ...others] = world.currentKeyIds(device.deviceId);
      expect(others).toEqual([]);
      expect(current).not.toBe(before);
      for (const one of settled) if (one.status === 'fulfilled') expect(one.value.keyId).toBe(current);
      await expectToGoOn(device);
      world.time.nowMs += OVERLAP_MS;
      await expectToGoOn(device);
    }
    await expectOneKey(device);
  });
});

interface Move {
  readonly kind: 'rotate' | 'call' | 'status' | 'deliver' | 'wait';
  /** What befalls which step, for each of the programs that do this at once. */
  readonly plans: readonly (readonly [number, Fault])[][];
  readonly code: 'new' | 'used' | 'none';
  readonly waitMs: number;
}

const move: fc.Arbitrary<Move> = fc.record({
  kind: fc.constantFrom('rotate', 'rotate', 'rotate', 'call', 'status', 'deliver', 'wait'),
  plans: fc.array(fc.array(fc.tuple(fc.nat(9), fc.constantFrom(...FAULTS)), { maxLength: 3 }), { minLength: 1, maxLength: 3 }),
  code: fc.constantFrom('new', 'new', 'new', 'used', 'none'),
  // Shorter than the overlap, its end, between that and the window of a request, and longer than the window.
  waitMs: fc.constantFrom(1000, OVERLAP_MS - 1, OVERLAP_MS, 200_000, 400_000),
});

describe.each([
  ['in memory', 100],
  ['in files', 20],
] as const)('a device whose keys are %s, whatever happens', (name, numRuns) => {
  it('can always go on, and has one key in the end', { timeout: 240_000 }, async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(move, { minLength: 1, maxLength: 8 }), async (moves) => {
        const device = await enroll(PLACES[name]!());
        let code = world.newRotationCode(device.deviceId);
        for (const { kind, plans, code: which, waitMs } of moves) {
          if (kind === 'wait') world.time.nowMs += waitMs;
          if (kind === 'deliver') await deliver(device.held);
          if (kind === 'rotate' && which === 'new') code = world.newRotationCode(device.deviceId);
          const programs = plans.map((plan) => device.start(new Map(plan)).client);
          if (kind === 'rotate') await Promise.allSettled(programs.map((client) => client.rotate(which === 'none' ? {} : { code })));
          if (kind === 'call') await Promise.allSettled(programs.map((client) => client.fetch(`${world.origin}/api/anything`)));
          if (kind === 'status') await Promise.allSettled(programs.map((client) => client.status()));
          expect(world.currentKeyIds(device.deviceId)).toHaveLength(1);
          await expectToGoOn(device);
        }
        await expectOneKey(device);
      }),
      { numRuns },
    );
  });
});
