/**
 * The devices of one process, for tests and first steps. Every verb runs to its end before another begins, which is what makes it
 * atomic. Reached as part of `memory`.
 */
import { UsageError } from './errors.ts';
import type {
  Device,
  DeviceRegistry,
  DeviceStatus,
  EnrollmentOutcome,
  EnrollmentRequest,
  KeyRotationOutcome,
  KeyRotationRequest,
} from './seams.ts';

/** What a code stands for when it is used. */
export interface MemoryEnrollmentCode {
  /** Base64url SHA-256 of the normalised code. */
  readonly codeHash: string;
  readonly ownerId: string;
  readonly projectId?: string;
  readonly expiresAtMs: number;
  /** How many devices may enroll with it. Default 1. */
  readonly maxUses?: number;
  /** `false` makes devices wait for `approve`. Default `true`. */
  readonly autoApprove?: boolean;
}

/** A code with which one device replaces its key, once. */
export interface MemoryRotationCode {
  /** Base64url SHA-256 of the normalised code. */
  readonly codeHash: string;
  readonly deviceId: string;
  readonly expiresAtMs: number;
}

/** What may become of a device. */
export type DeviceTransition = 'approve' | 'suspend' | 'resume' | 'revoke';

/** The legal moves between device states; revocation is final. */
export const DEVICE_TRANSITIONS: Readonly<Record<DeviceTransition, { from: readonly DeviceStatus[]; to: DeviceStatus }>> = {
  approve: { from: ['pending'], to: 'active' },
  suspend: { from: ['active'], to: 'suspended' },
  resume: { from: ['suspended'], to: 'active' },
  revoke: { from: ['pending', 'active', 'suspended'], to: 'revoked' },
};

/** A {@link DeviceRegistry} with what it takes to run one by hand. */
export interface MemoryDeviceRegistry extends DeviceRegistry {
  /** Lets devices enroll with this code, as often as it says. */
  addCode(code: MemoryEnrollmentCode): void;
  /** Takes the place of the code that the device had before. */
  addRotationCode(code: MemoryRotationCode): void;
  /** Every device once, under its current key. */
  list(): readonly Device[];
  /**
   * Moves the device to its next state, and answers with it as it is then.
   * @throws UsageError `invalid_option` for an unknown device or a move that its state does not allow
   */
  transition(deviceId: string, transition: DeviceTransition): Device;
}

/** By which WebCrypto device ids are drawn. */
export interface MemoryDeviceRegistryOptions {
  readonly crypto?: Crypto;
}

/** Devices of one process. Enrolls with a code only. */
export function memoryDeviceRegistry(options: MemoryDeviceRegistryOptions = {}): MemoryDeviceRegistry {
  const { crypto = globalThis.crypto } = options;
  // A device stands here once for each key that it ever had.
  const byKeyId = new Map<string, Device>();
  const codes = new Map<string, { readonly code: MemoryEnrollmentCode; usesLeft: number }>();
  const rotationCodes = new Map<string, MemoryRotationCode>();
  const successors = new Map<string, string>();

  return {
    findByKeyId(keyId: string): Device | null {
      return byKeyId.get(keyId) ?? null;
    },
    enroll({ keyId, publicKey, codeHash, label, nowMs }: EnrollmentRequest): EnrollmentOutcome {
      if (byKeyId.has(keyId)) return { outcome: 'key_exists' };
      const held = codeHash === null ? undefined : codes.get(codeHash);
      if (held === undefined || held.usesLeft < 1 || nowMs >= held.code.expiresAtMs) return { outcome: 'rejected' };
      held.usesLeft -= 1;
      const device: Device = Object.freeze({
        deviceId: crypto.randomUUID(),
        ownerId: held.code.ownerId,
        projectId: held.code.projectId ?? null,
        keyId,
        publicKey,
        keyState: 'current',
        keyRetiresAtMs: null,
        status: (held.code.autoApprove ?? true) ? 'active' : 'pending',
        label,
        requestsPerMinute: null,
        ipAllowlist: null,
        allowedModels: null,
      });
      byKeyId.set(keyId, device);
      return { outcome: 'enrolled', device };
    },
    rotate({ oldKeyId, keyId, publicKey, codeHash, allowWithoutCode, overlapMs, nowMs }: KeyRotationRequest): KeyRotationOutcome {
      const old = byKeyId.get(oldKeyId);
      const present = byKeyId.get(keyId);
      if (old?.status !== 'active') return { outcome: 'rejected' };
      if (old.keyState !== 'current') {
        const isRetiring = old.keyRetiresAtMs !== null && nowMs < old.keyRetiresAtMs;
        const isRepeat = successors.get(oldKeyId) === keyId && present?.keyState === 'current';
        return isRetiring && isRepeat ? { outcome: 'already_rotated', device: present } : { outcome: 'rejected' };
      }
      if (present !== undefined) return { outcome: 'key_exists' };
      if (codeHash !== null || !allowWithoutCode) {
        const held = rotationCodes.get(old.deviceId);
        if (held === undefined || held.codeHash !== codeHash || nowMs >= held.expiresAtMs) return { outcome: 'rejected' };
        rotationCodes.delete(old.deviceId);
      }
      const device: Device = Object.freeze({ ...old, keyId, publicKey });
      byKeyId.set(keyId, device);
      byKeyId.set(oldKeyId, Object.freeze({ ...old, keyState: 'retiring', keyRetiresAtMs: nowMs + overlapMs }));
      successors.set(oldKeyId, keyId);
      return { outcome: 'rotated', device };
    },
    addCode(code: MemoryEnrollmentCode): void {
      codes.set(code.codeHash, { code, usesLeft: code.maxUses ?? 1 });
    },
    addRotationCode(code: MemoryRotationCode): void {
      rotationCodes.set(code.deviceId, code);
    },
    list(): readonly Device[] {
      return [...byKeyId.values()].filter(({ keyState }) => keyState === 'current');
    },
    transition(deviceId: string, transition: DeviceTransition): Device {
      const { from, to } = DEVICE_TRANSITIONS[transition];
      const keys = [...byKeyId.values()].filter((candidate) => candidate.deviceId === deviceId && from.includes(candidate.status));
      const current = keys.find(({ keyState }) => keyState === 'current');
      if (current === undefined) {
        throw new UsageError('invalid_option', `There is no device of that id that could be changed by ${transition}.`);
      }
      for (const key of keys) byKeyId.set(key.keyId, Object.freeze({ ...key, status: to }));
      return byKeyId.get(current.keyId)!;
    },
  };
}
