/**
 * What every {@link DeviceRegistry} must keep: a key id belongs to one device for ever, a code is used as often as it says and no
 * more, a key is replaced in one step, and what was acknowledged is seen at once; by one that keeps what it read, within the bound
 * that it names. Also while what it is built on fails, hangs or is full.
 */
import { toBase64Url, utf8 } from '@keyguard/core/bytes';
import { isUnavailable } from '@keyguard/core/errors';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import type { Bytes, DeviceRegistry, EnrollmentOutcome, EnrollmentRequest, MaybePromise } from '@keyguard/core/seams';
import { afterAll, beforeAll, describe, expect } from 'vitest';
import { casesOf } from './cases.ts';
import { deviceRegistryFaultCases } from './device-registry-faults.ts';
import { faultsOf, type Faults, type Substrate } from './faults.ts';
import type { KeyRotationSubject } from './key-rotation-steps.ts';
import { keyRotationCases } from './key-rotation.ts';

/** A code as the suite wants it to be known to the registry. */
export interface CodeWanted {
  /** Base64url SHA-256 of the code. */
  readonly codeHash: string;
  readonly ownerId: string;
  readonly projectId: string;
  /** How many devices may enroll with it. */
  readonly maxUses: number;
  readonly autoApprove: boolean;
  readonly expiresAtMs: number;
}

/** A registry to be judged, with what the suite needs beside it. */
export interface DeviceRegistrySubject extends KeyRotationSubject {
  readonly registry: DeviceRegistry;
  /** The same devices as another process sees them. */
  readonly peer: DeviceRegistry;
  /** Makes the code known to the registry, and to its peer. */
  addCode(code: CodeWanted): MaybePromise<void>;
  /** Makes a device revoked, by whatever way an administrator has. */
  revoke(deviceId: string): MaybePromise<void>;
  /** Holds a device to these models, by whatever way an administrator has. Left out where there is none. */
  allowModels?(deviceId: string, models: readonly string[]): MaybePromise<void>;
  /** Left out in memory. */
  readonly faults?: Faults;
  /** Within how many milliseconds every verb answers or throws, where the registry promises that. */
  readonly boundMs?: number;
  /** Takes away what the registry is built on. The last thing that is done to a subject. */
  break?(): MaybePromise<void>;
  /** Gives everything back. */
  close?(): MaybePromise<void>;
}

/** On what the registry stands. */
export interface DeviceRegistryConformanceOptions {
  /** Default `external`. */
  readonly substrate?: Exclude<Substrate, 'bounded'>;
}

const RACING = 100;

/** `open` makes a subject without devices. */
export function deviceRegistryConformance(
  title: string,
  open: () => MaybePromise<DeviceRegistrySubject>,
  { substrate = 'external' }: DeviceRegistryConformanceOptions = {},
): void {
  describe(`${title} keeps the contract of DeviceRegistry`, { timeout: 60_000 }, () => {
    const it = casesOf('DeviceRegistry', title);
    let subject: DeviceRegistrySubject;
    let serial = 0;

    beforeAll(async () => {
      subject = await open();
    }, 120_000);
    afterAll(() => subject?.close?.());

    async function newHash(): Promise<string> {
      const text = utf8(`conformance ${(serial += 1)}`);
      return toBase64Url(new Uint8Array(await crypto.subtle.digest('SHA-256', text)) as Bytes);
    }

    async function code(wanted: Partial<CodeWanted> = {}): Promise<string> {
      const codeHash = await newHash();
      await subject.addCode({
        codeHash,
        ownerId: 'user-1',
        projectId: 'project-1',
        maxUses: 1,
        autoApprove: true,
        expiresAtMs: subject.nowMs() + 900_000,
        ...wanted,
      });
      return codeHash;
    }

    async function request(codeHash: string | null, more: Partial<EnrollmentRequest> = {}): Promise<EnrollmentRequest> {
      const { keyId, publicKey } = await signingKey(await generateKeyPair());
      return { keyId, publicKey, codeHash, label: null, fingerprint: null, nowMs: subject.nowMs(), ...more };
    }

    const requests = (codeHash: string | null, count: number): Promise<EnrollmentRequest[]> =>
      Promise.all(Array.from({ length: count }, () => request(codeHash)));
    const race = (all: readonly EnrollmentRequest[]): Promise<EnrollmentOutcome[]> =>
      Promise.all(all.map(async (one, i) => (i % 2 === 0 ? subject.registry : subject.peer).enroll(one)));
    const count = (outcomes: readonly EnrollmentOutcome[], wanted: EnrollmentOutcome['outcome']): number =>
      outcomes.filter(({ outcome }) => outcome === wanted).length;

    it.contract('knows nobody of whom it was not told', async () => {
      const { keyId } = await request(null);
      expect(await subject.registry.findByKeyId(keyId)).toBeNull();
      expect(await subject.registry.findByKeyId('')).toBeNull();
      expect(await subject.registry.findByKeyId('__proto__')).toBeNull();
      expect(await subject.registry.findByKeyId(`${keyId}\0`)).toBeNull();
    });

    it.contract('enrolls for the owner and project of the code, and every process sees the device at once', async () => {
      const one = await request(await code({ ownerId: 'user-7', projectId: 'project-7' }), { label: 'Büro 🔑' });
      const answer = await subject.registry.enroll(one);
      if (answer.outcome !== 'enrolled') throw new Error(`It was ${answer.outcome}.`);
      expect(answer.device).toMatchObject({
        ownerId: 'user-7',
        projectId: 'project-7',
        keyId: one.keyId,
        publicKey: one.publicKey,
        keyState: 'current',
        keyRetiresAtMs: null,
        status: 'active',
        label: 'Büro 🔑',
        requestsPerMinute: null,
        ipAllowlist: null,
        allowedModels: null,
      });
      expect(answer.device.deviceId).not.toBe('');
      expect(await subject.peer.findByKeyId(one.keyId)).toEqual(answer.device);
      expect(await subject.registry.findByKeyId(one.keyId)).toEqual(answer.device);
    });

    it.contract('makes a device wait where the code says so', async () => {
      const one = await request(await code({ autoApprove: false }));
      expect(await subject.registry.enroll(one)).toMatchObject({ outcome: 'enrolled', device: { status: 'pending' } });
      expect(await subject.peer.findByKeyId(one.keyId)).toMatchObject({ status: 'pending' });
    });

    it.contract('N69: gives one answer to codes that are unknown, used or expired, and to none', async () => {
      const used = await code();
      await subject.registry.enroll(await request(used));
      const expired = await code({ expiresAtMs: subject.nowMs() });
      for (const hash of [used, expired, 'A'.repeat(43), '', null]) {
        const one = await request(hash);
        expect(await subject.registry.enroll(one)).toEqual({ outcome: 'rejected' });
        expect(await subject.registry.findByKeyId(one.keyId)).toBeNull();
      }
    });

    it.expiry('takes a code up to the last millisecond of its life, and not after', async () => {
      const expiresAtMs = subject.nowMs() + 1000;
      const codeHash = await code({ expiresAtMs });
      expect(await subject.registry.enroll({ ...(await request(codeHash)), nowMs: expiresAtMs })).toEqual({ outcome: 'rejected' });
      expect(await subject.peer.enroll({ ...(await request(codeHash)), nowMs: expiresAtMs - 1 })).toMatchObject({ outcome: 'enrolled' });
    });

    it.races(`N69: makes one device of ${RACING} parallel uses of one code`, async () => {
      const all = await requests(await code(), RACING);
      const outcomes = await race(all);
      expect(count(outcomes, 'enrolled')).toBe(1);
      expect(count(outcomes, 'rejected')).toBe(RACING - 1);
      const found = await Promise.all(all.map(async ({ keyId }) => subject.registry.findByKeyId(keyId)));
      expect(found.filter((device) => device !== null)).toHaveLength(1);
    });

    it.races(`makes as many devices as a code has uses of ${RACING} parallel ones`, async () => {
      const outcomes = await race(await requests(await code({ maxUses: 7 }), RACING));
      expect(count(outcomes, 'enrolled')).toBe(7);
      expect(count(outcomes, 'rejected')).toBe(RACING - 7);
    });

    it.races(`makes one device of ${RACING} parallel copies of one request, and takes one use for it`, async () => {
      const hash = await code({ maxUses: 3 });
      const one = await request(hash);
      const outcomes = await race(Array.from({ length: RACING }, () => one));
      expect(count(outcomes, 'enrolled')).toBe(1);
      expect(count(outcomes, 'key_exists')).toBe(RACING - 1);
      const rest = await race(await requests(hash, 5));
      expect(count(rest, 'enrolled')).toBe(2);
    });

    it.races('answers key_exists to the racing copies of a request that had the last use', async () => {
      const one = await request(await code());
      const outcomes = await race(Array.from({ length: RACING }, () => one));
      expect(count(outcomes, 'enrolled')).toBe(1);
      expect(count(outcomes, 'key_exists')).toBe(RACING - 1);
    });

    it.contract('answers key_exists before it looks at the code, which keeps its use', async () => {
      const one = await request(await code());
      await subject.registry.enroll(one);
      for (const codeHash of [one.codeHash, null, 'A'.repeat(43)]) {
        expect(await subject.registry.enroll({ ...one, codeHash })).toEqual({ outcome: 'key_exists' });
      }
      const unused = await code();
      expect(await subject.peer.enroll({ ...one, codeHash: unused })).toEqual({ outcome: 'key_exists' });
      expect(await subject.registry.enroll(await request(unused))).toMatchObject({ outcome: 'enrolled' });
    });

    it.contract('N71: never enrolls a revoked key again, and finds it as revoked', async () => {
      const one = await request(await code());
      const answer = await subject.registry.enroll(one);
      if (answer.outcome !== 'enrolled') throw new Error(`It was ${answer.outcome}.`);
      // So that whoever keeps a device keeps this one.
      expect(await subject.peer.findByKeyId(one.keyId)).toMatchObject({ status: 'active' });
      expect(await subject.registry.findByKeyId(one.keyId)).toMatchObject({ status: 'active' });
      await subject.revoke(answer.device.deviceId);
      await subject.afterBound?.();
      expect(await subject.registry.findByKeyId(one.keyId)).toMatchObject({ status: 'revoked' });
      expect(await subject.peer.findByKeyId(one.keyId)).toMatchObject({ status: 'revoked' });
      expect(await subject.registry.enroll({ ...one, codeHash: await code() })).toEqual({ outcome: 'key_exists' });
      expect(await subject.registry.findByKeyId(one.keyId)).toMatchObject({ status: 'revoked' });
    });

    it.contract('tells to which models a device is held, of every one of its keys', async () => {
      const one = await request(await code());
      const answer = await subject.registry.enroll(one);
      if (answer.outcome !== 'enrolled') throw new Error(`It was ${answer.outcome}.`);
      expect(await subject.peer.findByKeyId(one.keyId)).toMatchObject({ allowedModels: null });
      if (subject.allowModels === undefined) return;
      await subject.allowModels(answer.device.deviceId, ['m-1', 'm-2*']);
      await subject.afterBound?.();
      expect(await subject.registry.findByKeyId(one.keyId)).toMatchObject({ allowedModels: ['m-1', 'm-2*'] });
      expect(await subject.peer.findByKeyId(one.keyId)).toMatchObject({ allowedModels: ['m-1', 'm-2*'] });
    });

    it.contract('N72: never takes a fingerprint for a device', async () => {
      const hash = await code({ maxUses: 2 });
      const fingerprint = 'F'.repeat(43);
      const first = await subject.registry.enroll(await request(hash, { fingerprint }));
      const second = await subject.registry.enroll(await request(hash, { fingerprint }));
      if (first.outcome !== 'enrolled' || second.outcome !== 'enrolled') throw new Error('Both must be enrolled.');
      expect(second.device.deviceId).not.toBe(first.device.deviceId);
    });

    keyRotationCases(it, { subject: () => subject, newHash, enrollment: async (more) => request(await code(more)) }, RACING);

    if (substrate === 'memory') return;
    deviceRegistryFaultCases(it, { subject: () => subject, code, request });

    it.failing('throws when what it is built on is gone', async () => {
      const one = await request(await code());
      if (subject.break === undefined) await faultsOf(subject).fail(1, () => 0);
      else await subject.break();
      const find = async (): Promise<unknown> => subject.registry.findByKeyId(one.keyId);
      const enroll = async (): Promise<unknown> => subject.registry.enroll(one);
      const { keyId, publicKey } = await request(null);
      const rotate = async (): Promise<unknown> =>
        subject.registry.rotate({ oldKeyId: one.keyId, keyId, publicKey, codeHash: null, allowWithoutCode: true, overlapMs: 0, nowMs: one.nowMs });
      for (const work of [find, enroll, rotate]) {
        expect(isUnavailable(await work().catch((thrown: unknown) => thrown))).toBe(true);
      }
    });
  });
}
