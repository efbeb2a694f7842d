/** The steps of which the cases of rotation are made, and what they need of a subject. */
import type { Device, DeviceRegistry, EnrollmentRequest, KeyRotationOutcome, KeyRotationRequest, MaybePromise } from '@keyguard/core/seams';
import { expect } from 'vitest';

/** A rotation code as the suite wants it to be known to the registry. */
export interface RotationCodeWanted {
  /** Base64url SHA-256 of the code. */
  readonly codeHash: string;
  readonly deviceId: string;
  readonly expiresAtMs: number;
}

/** A registry whose rotation is to be judged. */
export interface KeyRotationSubject {
  readonly registry: DeviceRegistry;
  readonly peer: DeviceRegistry;
  /** The clock of the registry, Unix milliseconds. */
  nowMs(): number;
  /** Gives a device a code, which may take the place of the one that it had. */
  addRotationCode(code: RotationCodeWanted): MaybePromise<void>;
  /** Suspends a device, by whatever way an administrator has. */
  suspend(deviceId: string): MaybePromise<void>;
  /** Revokes a device, by whatever way an administrator has. */
  revoke(deviceId: string): MaybePromise<void>;
  /**
   * Only for registries that answer from what they keep: resolves when the bound that they name has passed since the call. Left
   * out: both see every acknowledged change at once.
   */
  afterBound?(): Promise<void>;
}

/** What the suite around this one has already. */
export interface KeyRotationSuite {
  subject(): KeyRotationSubject;
  /** A code hash that was not there before. */
  newHash(): Promise<string>;
  /** An enrollment by a new key, with a code of one use. */
  enrollment(more?: { readonly autoApprove?: boolean }): Promise<EnrollmentRequest>;
}

export const OVERLAP_MS = 60_000;

export interface RotationSteps {
  registry(): DeviceRegistry;
  nowMs(): number;
  enrolled(more?: { readonly autoApprove?: boolean }): Promise<Device>;
  /** The hash of a new code for this device. */
  code(device: Device, expiresAtMs?: number): Promise<string>;
  /** A rotation from the key of `device` to a new one. */
  rotation(device: Device, codeHash: string | null, more?: Partial<KeyRotationRequest>): Promise<KeyRotationRequest>;
  /** Makes it, and fails where it is not made. */
  rotated(request: KeyRotationRequest): Promise<Device>;
  race(all: readonly KeyRotationRequest[]): Promise<KeyRotationOutcome[]>;
  counts(outcomes: readonly KeyRotationOutcome[]): Record<string, number>;
  rotations(count: number, make: () => Promise<KeyRotationRequest>): Promise<KeyRotationRequest[]>;
  /** That this refusal changed nothing: the device still has its key, and the new one is nobody's. */
  expectUntouched(device: Device, request: KeyRotationRequest): Promise<void>;
}

export function rotationSteps(suite: KeyRotationSuite): RotationSteps {
  const registry = (): DeviceRegistry => suite.subject().registry;
  const nowMs = (): number => suite.subject().nowMs();

  async function enrolled(more?: { readonly autoApprove?: boolean }): Promise<Device> {
    const answer = await registry().enroll(await suite.enrollment(more));
    if (answer.outcome !== 'enrolled') throw new Error(`It was ${answer.outcome}.`);
    return answer.device;
  }

  async function code({ deviceId }: Device, expiresAtMs = nowMs() + 900_000): Promise<string> {
    const codeHash = await suite.newHash();
    await suite.subject().addRotationCode({ codeHash, deviceId, expiresAtMs });
    return codeHash;
  }

  async function rotation(device: Device, codeHash: string | null, more: Partial<KeyRotationRequest> = {}): Promise<KeyRotationRequest> {
    const { keyId, publicKey } = await suite.enrollment();
    return { oldKeyId: device.keyId, keyId, publicKey, codeHash, allowWithoutCode: false, overlapMs: OVERLAP_MS, nowMs: nowMs(), ...more };
  }

  async function rotated(request: KeyRotationRequest): Promise<Device> {
    const answer = await registry().rotate(request);
    if (answer.outcome !== 'rotated') throw new Error(`It was ${answer.outcome}.`);
    return answer.device;
  }

  const race = (all: readonly KeyRotationRequest[]): Promise<KeyRotationOutcome[]> =>
    Promise.all(all.map(async (one, i) => (i % 2 === 0 ? registry() : suite.subject().peer).rotate(one)));
  const counts = (outcomes: readonly KeyRotationOutcome[]): Record<string, number> => {
    const sums: Record<string, number> = {};
    for (const { outcome } of outcomes) sums[outcome] = (sums[outcome] ?? 0) + 1;
    return sums;
  };
  const rotations = (count: number, make: () => Promise<KeyRotationRequest>): Promise<KeyRotationRequest[]> =>
    Promise.all(Array.from({ length: count }, make));

  async function expectUntouched(device: Device, request: KeyRotationRequest): Promise<void> {
    expect(await registry().findByKeyId(device.keyId)).toMatchObject({ keyId: device.keyId, keyState: 'current' });
    if (request.keyId !== device.keyId) expect(await registry().findByKeyId(request.keyId)).toBeNull();
  }

  return { registry, nowMs, enrolled, code, rotation, rotated, race, counts, rotations, expectUntouched };
}
