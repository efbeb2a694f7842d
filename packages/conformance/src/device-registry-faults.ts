/**
 * A {@link DeviceRegistry} on a substrate that goes wrong. A code with n uses never makes more than n devices, and loses no use to a
 * failure; a key id never belongs to two devices; a device has exactly one current key; an outage is never told as an unknown device.
 */
import { isUnavailable } from '@keyguard/core/errors';
import type { Device, DeviceRegistry, EnrollmentOutcome, EnrollmentRequest, KeyRotationOutcome, KeyRotationRequest } from '@keyguard/core/seams';
import { expect } from 'vitest';
import type { Cases } from './cases.ts';
import type { CodeWanted, DeviceRegistrySubject } from './device-registry.ts';
import { endings, endingsOverHang, errorsOf, FAILING_SHARE, failureDraw, faultsOf, seeded, valuesOf, type Ending } from './faults.ts';

export interface DeviceRegistrySuite {
  subject(): DeviceRegistrySubject;
  code(wanted?: Partial<CodeWanted>): Promise<string>;
  /** An enrollment by a new key. */
  request(codeHash: string | null): Promise<EnrollmentRequest>;
}

const ROUNDS = 6;
const CALLERS = 10;
const USES = 7;

export function deviceRegistryFaultCases(it: Cases, { subject, code, request }: DeviceRegistrySuite): void {
  const registry = (i = 0): DeviceRegistry => (i % 2 === 0 ? subject().registry : subject().peer);
  const requests = (codeHash: string, count: number): Promise<EnrollmentRequest[]> => Promise.all(Array.from({ length: count }, () => request(codeHash)));
  const enrolls = (all: readonly EnrollmentRequest[]): (() => Promise<EnrollmentOutcome>)[] => all.map((one, i) => async () => registry(i).enroll(one));

  async function enrolled(): Promise<Device> {
    const answer = await registry().enroll(await request(await code()));
    if (answer.outcome !== 'enrolled') throw new Error(`It was ${answer.outcome}.`);
    return answer.device;
  }

  /** By so many new keys, without a code. */
  const rotations = ({ keyId: oldKeyId }: Device, count: number): Promise<KeyRotationRequest[]> =>
    Promise.all(
      Array.from({ length: count }, async () => {
        const { keyId, publicKey, nowMs } = await request(null);
        return { oldKeyId, keyId, publicKey, codeHash: null, allowWithoutCode: true, overlapMs: 60_000, nowMs };
      }),
    );
  const rotates = (all: readonly KeyRotationRequest[]): (() => Promise<KeyRotationOutcome>)[] => all.map((one, i) => async () => registry(i).rotate(one));

  function expectOutages(all: readonly Ending<unknown>[]): void {
    for (const error of errorsOf(all)) expect(isUnavailable(error), String(error)).toBe(true);
  }

  async function find(keyIds: readonly string[]): Promise<(Device | null)[]> {
    await subject().afterBound?.();
    return Promise.all(keyIds.map(async (keyId, i) => registry(i).findByKeyId(keyId)));
  }

  /** That the code made as many devices as it has uses, once whatever it has left was asked for. */
  async function expectUses(codeHash: string, uses: number, all: readonly EnrollmentRequest[], ends: readonly Ending<EnrollmentOutcome>[]): Promise<void> {
    const before = (await find(all.map(({ keyId }) => keyId))).filter((device) => device !== null);
    expect(before.length).toBeLessThanOrEqual(uses);
    for (const answer of valuesOf(ends)) if (answer.outcome === 'enrolled') expect(before).toContainEqual(answer.device);
    const more = await requests(codeHash, uses + 2);
    await endings(enrolls(more));
    const after = (await find([...all, ...more].map(({ keyId }) => keyId))).filter((device) => device !== null);
    expect(after).toHaveLength(uses);
    expect(new Set(after.map(({ deviceId }) => deviceId)).size).toBe(uses);
  }

  /** That the device has one current key: its own, or the one new key that there is. */
  async function expectOneCurrent(device: Device, all: readonly KeyRotationRequest[], ends: readonly Ending<KeyRotationOutcome>[]): Promise<void> {
    const [old, ...others] = await find([device, ...all].map(({ keyId }) => keyId));
    const found = others.filter((present) => present !== null);
    expect(found.length).toBeLessThanOrEqual(1);
    expect(old).toMatchObject({ deviceId: device.deviceId, keyState: found.length === 0 ? 'current' : 'retiring' });
    for (const present of found) expect(present).toMatchObject({ deviceId: device.deviceId, keyState: 'current' });
    const told = valuesOf(ends).filter(({ outcome }) => outcome === 'rotated' || outcome === 'already_rotated');
    for (const answer of told) expect(found).toEqual([(answer as { device: Device }).device]);
    expect(valuesOf(ends).filter(({ outcome }) => outcome === 'rotated').length).toBeLessThanOrEqual(1);
  }

  it.failing('makes as many devices as a code has uses, while every fifth call of the substrate fails, before or after it has acted', async () => {
    const faults = faultsOf(subject());
    const codeHash = await code({ maxUses: USES });
    const all = await requests(codeHash, ROUNDS * CALLERS);
    const ends: Ending<EnrollmentOutcome>[] = [];
    const draw = failureDraw(5);
    await faults.fail(FAILING_SHARE, draw.random);
    for (let round = 0; round < ROUNDS; round += 1) ends.push(...(await endings(enrolls(all.slice(round * CALLERS, (round + 1) * CALLERS)))));
    // Whoever had no answer asks again.
    ends.push(...(await endings(enrolls(all.filter((_, i) => 'error' in ends[i]!)))));
    await faults.calm();
    expectOutages(ends);
    // Neither all nor nothing failed, or this shows nothing.
    expect(draw.hits()).toBeGreaterThan(ROUNDS);
    expect(valuesOf(ends).length).toBeGreaterThan(ROUNDS);
    await expectUses(codeHash, USES, all, ends);
  });

  it.failing('makes one device of the copies of one request, and takes one use for it, while calls fail', async () => {
    const faults = faultsOf(subject());
    const codeHash = await code({ maxUses: 3 });
    const one = await request(codeHash);
    await faults.fail(FAILING_SHARE, seeded(6));
    const ends = await endings(enrolls(Array.from({ length: 3 * CALLERS }, () => one)));
    await faults.calm();
    expectOutages(ends);
    const told = valuesOf(ends).flatMap((answer) => (answer.outcome === 'enrolled' ? [answer.device] : []));
    expect(told.length).toBeLessThanOrEqual(1);
    expect(valuesOf(ends).map(({ outcome }) => outcome)).not.toContain('rejected');
    const [found] = await find([one.keyId]);
    for (const device of told) expect(found).toEqual(device);
    await expectUses(codeHash, 3, [one], ends);
  });

  it.failing('has one current key after rotations that race while calls fail, and no answer says otherwise', async () => {
    const faults = faultsOf(subject());
    for (let round = 0; round < ROUNDS / 2; round += 1) {
      const device = await enrolled();
      const all = await rotations(device, CALLERS);
      await faults.fail(FAILING_SHARE, seeded(70 + round));
      const ends = await endings(rotates([...all, ...all]));
      await faults.calm();
      expectOutages(ends);
      await expectOneCurrent(device, all, ends);
    }
  });

  it.failing('never tells an outage as a device that it does not know', async () => {
    const faults = faultsOf(subject());
    const device = await enrolled();
    await faults.fail(FAILING_SHARE, seeded(8));
    const ends = await endings(Array.from({ length: ROUNDS * CALLERS }, (_, i) => async () => registry(i).findByKeyId(device.keyId)));
    await faults.calm();
    expectOutages(ends);
    for (const found of valuesOf(ends)) expect(found).toEqual(device);
    expect(valuesOf(ends).length).toBeGreaterThan(0);
  });

  it.hanging('enrolls, rotates and finds nobody while the substrate hangs, and nobody twice once it goes on', async () => {
    const codeHash = await code({ maxUses: USES });
    const all = await requests(codeHash, CALLERS);
    const device = await enrolled();
    const rotating = await rotations(device, CALLERS);
    const ends = await endingsOverHang<EnrollmentOutcome | KeyRotationOutcome | Device | null>(faultsOf(subject()), seeded(9), subject().boundMs, [
      ...enrolls(all),
      ...rotates(rotating),
      async () => registry().findByKeyId(all[0]!.keyId),
    ]);
    expectOutages(ends);
    await expectUses(codeHash, USES, all, ends.slice(0, CALLERS) as Ending<EnrollmentOutcome>[]);
    await expectOneCurrent(device, rotating, ends.slice(CALLERS, 2 * CALLERS) as Ending<KeyRotationOutcome>[]);
  });

  it.full('throws and changes nothing while there is no room, is read, and goes on with all uses when there is', async () => {
    const faults = faultsOf(subject());
    const codeHash = await code({ maxUses: USES });
    const all = await requests(codeHash, CALLERS);
    const device = await enrolled();
    const rotating = await rotations(device, CALLERS);
    await faults.fill();
    const ends = await endings<unknown>([...enrolls(all), ...rotates(rotating)]);
    expect(valuesOf(ends)).toEqual([]);
    expectOutages(ends);
    expect(await find([device.keyId, ...all.map(({ keyId }) => keyId), ...rotating.map(({ keyId }) => keyId)])).toEqual([
      device,
      ...[...all, ...rotating].map(() => null),
    ]);
    await faults.calm();
    await expectUses(codeHash, USES, all, []);
    await expectOneCurrent(device, rotating, await endings(rotates(rotating)));
    expect((await find(rotating.map(({ keyId }) => keyId))).filter((present) => present !== null)).toHaveLength(1);
  });
}
