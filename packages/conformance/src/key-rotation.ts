/**
 * The part of a {@link DeviceRegistry} that replaces keys: exactly one current key at any time, a code that is one device's and good
 * once, and no way back for a key that was replaced.
 */
import type { KeyRotationRequest } from '@keyguard/core/seams';
import { describe, expect } from 'vitest';
import type { Cases } from './cases.ts';
import { OVERLAP_MS, rotationSteps, type KeyRotationSuite } from './key-rotation-steps.ts';

export function keyRotationCases(it: Cases, suite: KeyRotationSuite, racing: number): void {
  const { registry, nowMs, enrolled, code, rotation, rotated, race, counts, rotations, expectUntouched } = rotationSteps(suite);

  describe('the key of a device', () => {
    it.contract('is replaced in one step: the new one is current, the old one retiring until the end of the overlap', async () => {
      const device = await enrolled();
      const request = await rotation(device, await code(device), { overlapMs: 12_345 });
      // So that whoever keeps a device keeps this one.
      for (const one of [registry(), suite.subject().peer]) expect(await one.findByKeyId(device.keyId)).toEqual(device);
      const present = await rotated(request);
      expect(present).toEqual({ ...device, keyId: request.keyId, publicKey: request.publicKey });
      expect(await registry().findByKeyId(device.keyId)).toMatchObject({ keyState: 'retiring' });
      expect(await suite.subject().peer.findByKeyId(request.keyId)).toEqual(present);
      await suite.subject().afterBound?.();
      expect(await suite.subject().peer.findByKeyId(request.keyId)).toEqual(present);
      expect(await suite.subject().peer.findByKeyId(device.keyId)).toEqual({
        ...device,
        keyState: 'retiring',
        keyRetiresAtMs: request.nowMs + 12_345,
      });
    });

    it.expiry('may have no overlap at all', async () => {
      const device = await enrolled();
      const request = await rotation(device, await code(device), { overlapMs: 0 });
      await rotated(request);
      expect(await registry().findByKeyId(device.keyId)).toMatchObject({ keyState: 'retiring', keyRetiresAtMs: request.nowMs });
      expect(await registry().rotate(request)).toEqual({ outcome: 'rejected' });
    });

    it.contract('is replaced again while the one before is retiring still, which never comes back', async () => {
      const first = await enrolled();
      const second = await rotated(await rotation(first, await code(first)));
      const third = await rotated(await rotation(second, await code(second)));
      expect(await registry().findByKeyId(third.keyId)).toMatchObject({ deviceId: first.deviceId, keyState: 'current' });
      for (const { keyId } of [first, second]) {
        expect(await registry().findByKeyId(keyId)).toMatchObject({ deviceId: first.deviceId, keyState: 'retiring' });
      }
      const codeHash = await code(third);
      for (const { keyId, publicKey } of [first, second]) {
        expect(await registry().rotate({ ...(await rotation(third, codeHash)), keyId, publicKey })).toEqual({ outcome: 'key_exists' });
      }
      await rotated(await rotation(third, codeHash));
    });

    it.contract('N71: that was replaced never enrolls again, whatever the code', async () => {
      const enrollment = await suite.enrollment();
      const answer = await registry().enroll(enrollment);
      if (answer.outcome !== 'enrolled') throw new Error(`It was ${answer.outcome}.`);
      await rotated(await rotation(answer.device, await code(answer.device), { overlapMs: 0 }));
      const { codeHash } = await suite.enrollment();
      expect(await registry().enroll({ ...enrollment, codeHash })).toEqual({ outcome: 'key_exists' });
    });

    it.contract('is the device\u2019s also afterwards: what becomes of the device becomes of all its keys', async () => {
      const device = await enrolled();
      const present = await rotated(await rotation(device, await code(device)));
      for (const { keyId } of [device, present]) expect(await registry().findByKeyId(keyId)).toMatchObject({ status: 'active' });
      await suite.subject().revoke(device.deviceId);
      await suite.subject().afterBound?.();
      for (const { keyId } of [device, present]) {
        expect(await registry().findByKeyId(keyId)).toMatchObject({ deviceId: device.deviceId, status: 'revoked' });
      }
    });
  });

  describe('a repeated rotation', () => {
    it.expiry('is answered as done, whatever the code, as long as the old key is retiring and the new one current', async () => {
      const device = await enrolled();
      const request = await rotation(device, await code(device));
      const present = await rotated(request);
      for (const codeHash of [request.codeHash, null, 'A'.repeat(43)]) {
        expect(await suite.subject().peer.rotate({ ...request, codeHash })).toEqual({ outcome: 'already_rotated', device: present });
      }
      const last = { ...request, nowMs: request.nowMs + OVERLAP_MS - 1 };
      expect(await registry().rotate(last)).toMatchObject({ outcome: 'already_rotated' });
      expect(await registry().rotate({ ...last, nowMs: request.nowMs + OVERLAP_MS })).toEqual({ outcome: 'rejected' });
      expect(await registry().findByKeyId(device.keyId)).toMatchObject({ keyRetiresAtMs: request.nowMs + OVERLAP_MS });
    });

    it.contract('takes no code: one that was made since keeps its use', async () => {
      const device = await enrolled();
      const request = await rotation(device, await code(device));
      const present = await rotated(request);
      const codeHash = await code(device);
      expect(await registry().rotate({ ...request, codeHash })).toMatchObject({ outcome: 'already_rotated' });
      await rotated(await rotation(present, codeHash));
    });

    it.contract('to another key, or once the new key was replaced itself, is none', async () => {
      const device = await enrolled();
      const request = await rotation(device, await code(device));
      const present = await rotated(request);
      const codeHash = await code(device);
      const other = await rotation(device, codeHash, { allowWithoutCode: true });
      expect(await registry().rotate(other)).toEqual({ outcome: 'rejected' });
      expect(await registry().rotate({ ...other, codeHash: null })).toEqual({ outcome: 'rejected' });
      const third = await rotated(await rotation(present, codeHash));
      expect(await registry().rotate(request)).toEqual({ outcome: 'rejected' });
      // The third key took the second one's place, not the first one's.
      expect(await registry().rotate({ ...request, keyId: third.keyId, publicKey: third.publicKey })).toEqual({ outcome: 'rejected' });
    });
  });

  describe('a rotation code', () => {
    it.contract('is refused with one answer where it is unknown, used, expired or another device\u2019s, and where there is none', async () => {
      const [device, other] = [await enrolled(), await enrolled()];
      const used = await code(other);
      const present = await rotated(await rotation(other, used));
      const foreign = await code(present);
      const expired = await code(device, nowMs());
      for (const codeHash of [expired, used, foreign, 'A'.repeat(43), '', null]) {
        const request = await rotation(device, codeHash);
        expect(await registry().rotate(request)).toEqual({ outcome: 'rejected' });
        await expectUntouched(device, request);
      }
      // What was refused elsewhere kept its use.
      await rotated(await rotation(present, foreign));
    });

    it.expiry('is taken up to the last millisecond of its life, and not after', async () => {
      const device = await enrolled();
      const expiresAtMs = nowMs() + 1000;
      const codeHash = await code(device, expiresAtMs);
      const late = await rotation(device, codeHash, { nowMs: expiresAtMs });
      expect(await registry().rotate(late)).toEqual({ outcome: 'rejected' });
      await expectUntouched(device, late);
      await rotated(await rotation(device, codeHash, { nowMs: expiresAtMs - 1 }));
    });

    it.contract('that was used is used up for the new key too', async () => {
      const device = await enrolled();
      const codeHash = await code(device);
      const present = await rotated(await rotation(device, codeHash));
      const request = await rotation(present, codeHash);
      expect(await registry().rotate(request)).toEqual({ outcome: 'rejected' });
      await expectUntouched(present, request);
    });

    it.contract('never opens enrollment, nor an enrollment code rotation', async () => {
      const device = await enrolled();
      const codeHash = await code(device);
      const enrollment = await suite.enrollment();
      expect(await registry().enroll({ ...(await suite.enrollment()), codeHash })).toEqual({ outcome: 'rejected' });
      expect(await registry().rotate(await rotation(device, enrollment.codeHash))).toEqual({ outcome: 'rejected' });
      expect(await registry().enroll(enrollment)).toMatchObject({ outcome: 'enrolled' });
      await rotated(await rotation(device, codeHash));
    });

    it.contract('is not needed where the policy says so, and must be good all the same where it is sent', async () => {
      const device = await enrolled();
      const bad = await rotation(device, 'A'.repeat(43), { allowWithoutCode: true });
      expect(await registry().rotate(bad)).toEqual({ outcome: 'rejected' });
      await expectUntouched(device, bad);
      await rotated(await rotation(device, null, { allowWithoutCode: true }));
    });

    it.races(`makes one new key of ${racing} parallel uses by as many new keys`, async () => {
      const device = await enrolled();
      const codeHash = await code(device);
      const all = await rotations(racing, () => rotation(device, codeHash));
      expect(counts(await race(all))).toEqual({ rotated: 1, rejected: racing - 1 });
      const found = await Promise.all(all.map(async ({ keyId }) => registry().findByKeyId(keyId)));
      expect(found.filter((present) => present !== null)).toMatchObject([{ deviceId: device.deviceId, keyState: 'current' }]);
    });

    it.races(`makes one new key of ${racing} parallel copies of one request, and tells all of them so`, async () => {
      const device = await enrolled();
      const request = await rotation(device, await code(device));
      expect(counts(await race(Array.from({ length: racing }, () => request)))).toEqual({ rotated: 1, already_rotated: racing - 1 });
    });
  });

  it.races(`of ${racing} new keys that race for one old key without a code, one wins`, async () => {
    const device = await enrolled();
    const all = await rotations(racing, () => rotation(device, null, { allowWithoutCode: true }));
    expect(counts(await race(all))).toEqual({ rotated: 1, rejected: racing - 1 });
  });

  it.races('of devices that race for one new key, and an enrollment by it, one wins', async () => {
    const wanted = await suite.enrollment();
    const { keyId, publicKey } = wanted;
    const devices = [await enrolled(), await enrolled(), await enrolled(), await enrolled()];
    const requests: KeyRotationRequest[] = [];
    for (const device of devices) requests.push(await rotation(device, await code(device), { keyId, publicKey }));
    const [enrolling, outcomes] = await Promise.all([registry().enroll(wanted), race(requests)]);
    const winners = [enrolling, ...outcomes].filter(({ outcome }) => outcome === 'enrolled' || outcome === 'rotated');
    expect(winners).toHaveLength(1);
    expect([enrolling, ...outcomes].filter(({ outcome }) => outcome === 'key_exists')).toHaveLength(devices.length);
    // Whoever lost kept its key, and the use of its code.
    for (const [i, { outcome }] of outcomes.entries()) {
      if (outcome !== 'rotated') await rotated(await rotation(devices[i]!, requests[i]!.codeHash));
    }
  });

  describe('a new key that was known before', () => {
    it.contract('N75, N76: is refused before the code is looked at: the old one itself, another device\u2019s, a replaced or a revoked one', async () => {
      const device = await enrolled();
      const codeHash = await code(device);
      const other = await enrolled();
      const replaced = await enrolled();
      await rotated(await rotation(replaced, await code(replaced), { overlapMs: 0 }));
      const revoked = await enrolled();
      await suite.subject().revoke(revoked.deviceId);
      const pending = await enrolled({ autoApprove: false });
      for (const { keyId, publicKey } of [device, other, replaced, revoked, pending]) {
        for (const hash of [codeHash, 'A'.repeat(43), null]) {
          const request = { ...(await rotation(device, hash)), keyId, publicKey };
          expect(await registry().rotate(request)).toEqual({ outcome: 'key_exists' });
        }
      }
      expect(await registry().findByKeyId(other.keyId)).toEqual(other);
      await rotated(await rotation(device, codeHash));
    });
  });

  it.contract('replaces no key of a device that is pending, suspended, revoked or unknown, also for a repeat', async () => {
    const suspended = await enrolled();
    const suspendedCode = await code(suspended);
    await suite.subject().suspend(suspended.deviceId);
    const revoked = await enrolled();
    const repeat = await rotation(revoked, await code(revoked));
    await rotated(repeat);
    await suite.subject().revoke(revoked.deviceId);
    const stranger = { ...suspended, keyId: (await suite.enrollment()).keyId };
    const pending = await enrolled({ autoApprove: false });
    const requests = [
      await rotation(suspended, suspendedCode),
      await rotation(pending, null),
      await rotation(stranger, suspendedCode),
      repeat,
    ];
    for (const request of requests) {
      for (const allowWithoutCode of [false, true]) {
        expect(await registry().rotate({ ...request, allowWithoutCode })).toEqual({ outcome: 'rejected' });
      }
    }
    await expectUntouched(suspended, requests[0]!);
    await expectUntouched(pending, requests[1]!);
  });
}
