/**
 * Rotation: the key of a device asks to be replaced, the new key proves that it is held, and a code says that the owner wants it.
 * Without the code, whatever can sign for a moment could make the device its own for good.
 *
 * @see docs/spec/request-signing.md
 */
import { fromBase64, utf8 } from '@keyguard/core/bytes';
import { MAX_KEY_OVERLAP_MS, rotationProofText } from '@keyguard/core/canonical';
import { RejectedError, UnavailableError, UsageError } from '@keyguard/core/errors';
import { thumbprint } from '@keyguard/core/keys';
import type { Bytes, Device, MaybePromise, PublicJwk, RateLimiter } from '@keyguard/core/seams';
import { verifyBody } from '@keyguard/core/verify';
import { isCodeText, keyBodyPolicy, malformed, optionalText, readJwk, readMembers } from './key-body.ts';
import { memoryRateLimiter } from './limits.ts';
import {
  accountOf,
  admit,
  ask,
  claimNonce,
  createContext,
  demandActive,
  demandAllowed,
  demandFresh,
  findDevice,
  findSigner,
  readClock,
  reporting,
  signatureInvalid,
  type IncomingRequest,
  type VerifierContext,
  type VerifierOptions,
} from './recipe.ts';
import { hashRotationCode } from './rotation-code.ts';

const WHAT = 'rotation';
const MEMBERS = ['jwk', 'proof', 'code'];
const SIGNATURE_CHARACTERS = 88;
const SIGNATURE_BYTES = 64;

/** A device asks for another key and no code vouches for it: whoever can sign with the key that it has could do so. */
export interface SelfRotationEvent {
  /** As found under the key that is to be replaced. */
  readonly device: Device;
  readonly newKeyId: string;
  readonly ip: string | null;
  /** That key was replaced before: either by this new one, and only the answer or its reader was lost, or it is refused. */
  readonly isRepeat: boolean;
}

/** What a rotation needs beside what every verification does. */
export interface RotationOptions extends VerifierOptions {
  /** For how long the key that was replaced still verifies, in milliseconds: 0 to 60,000, default 60,000. */
  readonly overlapMs?: number;
  /**
   * Lets a device replace its key without a code. Default `false`. Whoever can use a key for a moment, a script in a page for
   * instance, can then move the device to a key of its own: `onSelfRotation` must be there to hear of it.
   */
  readonly allowSelfRotation?: boolean;
  /**
   * Told of every rotation without a code, and awaited, before the key is replaced: if it fails, the answer is 503 and nothing is
   * replaced. A rotation that it was told of may still be refused, of which `onRejected` is told.
   */
  readonly onSelfRotation?: (event: SelfRotationEvent) => MaybePromise<void>;
  /** Counts tries by device. Default: in the memory of this process, `rotationsPerMinute`. */
  readonly rotationLimiter?: RateLimiter;
  /** Tries per minute and device. Default 10. */
  readonly rotationsPerMinute?: number;
}

/** The recipe by which a device replaces its key. Frozen. */
export interface Rotation {
  /** The time, as the verifier reads it. @throws UnavailableError */
  nowMs(): number;
  /**
   * Replaces the key that signed this request by the one that it brings, and resolves with the device as found under its new key;
   * likewise for a repeat, as long as the old key verifies.
   * @throws RejectedError `rotation_rejected`, `key_exists`, or any protocol code of verification
   * @throws UnavailableError when a seam failed: the key may have been replaced, or not
   */
  rotate(incoming: IncomingRequest): Promise<Device>;
}

interface RotationRules {
  readonly overlapMs: number;
  readonly limiter: RateLimiter;
  /** `null` where a code is demanded. */
  readonly onSelfRotation: RotationOptions['onSelfRotation'] | null;
}

/**
 * The recipe of rotation over these seams; fails closed. @see docs/spec/request-signing.md section 16
 * @throws UsageError `invalid_option`
 */
export function createRotation(options: RotationOptions): Rotation {
  const context = createContext(options);
  const { overlapMs = MAX_KEY_OVERLAP_MS, allowSelfRotation = false, onSelfRotation, registry } = options;
  if (typeof registry.rotate !== 'function') throw new UsageError('invalid_option', 'registry must be a DeviceRegistry that rotates.');
  if (!Number.isInteger(overlapMs) || overlapMs < 0 || overlapMs > MAX_KEY_OVERLAP_MS) {
    throw new UsageError('invalid_option', `overlapMs must be an integer from 0 to ${MAX_KEY_OVERLAP_MS}.`);
  }
  if (typeof allowSelfRotation !== 'boolean' || (allowSelfRotation && typeof onSelfRotation !== 'function')) {
    throw new UsageError('invalid_option', 'allowSelfRotation must be a boolean, and where it is true onSelfRotation must be told.');
  }
  const rules: RotationRules = {
    overlapMs,
    limiter: options.rotationLimiter ?? memoryRateLimiter({ perMinute: options.rotationsPerMinute ?? 10 }),
    onSelfRotation: allowSelfRotation ? onSelfRotation : null,
  };
  return Object.freeze({
    nowMs: () => readClock(context),
    rotate(incoming: IncomingRequest): Promise<Device> {
      const proven = { keyId: null, deviceId: null };
      return reporting(context, incoming, proven, () => rotateInOrder(context, rules, incoming, proven));
    },
  });
}

async function rotateInOrder(
  context: VerifierContext,
  { overlapMs, limiter, onSelfRotation }: RotationRules,
  incoming: IncomingRequest,
  proven: { keyId: string | null; deviceId: string | null },
): Promise<Device> {
  const { policy, primitives, registry } = context;

  // 1 and 2: syntax, single occurrence, version, target; time.
  const head = await admit(context, incoming);
  const { keyId: oldKeyId, timestamp, nonce } = head;
  proven.keyId = oldKeyId;

  // 3 and 4: the device whose old key signed for this purpose, then the body and its hash.
  const device = await findSigner(context, head, 'keyguard-rotate-v1');
  const { deviceId } = device;
  const body = await incoming.body(keyBodyPolicy(policy), accountOf(context, device).holder);
  await verifyBody(head, body, primitives);
  proven.deviceId = deviceId;

  // 5: what the device may do.
  demandActive(context, device, incoming.ip);

  // The new key, in its one canonical form, signed this very request's ids, time and nonce.
  const { publicKey, proof, code } = readRotation(body);
  const newKey = await primitives.importPublicKey(publicKey);
  const keyId = await thumbprint(publicKey, primitives);
  const text = utf8(rotationProofText({ oldKeyId, newKeyId: keyId, timestamp, nonce }));
  if ((await primitives.verify(newKey, text, proof)) !== true) throw signatureInvalid('proof of the new key');

  // 6 and 7: the tries of this device; this request is the first with its nonce.
  demandFresh(context, head);
  demandAllowed(context, await ask('rotation_limiter', policy.seamTimeoutMs, () => limiter.peek(deviceId)));
  await claimNonce(context, head);
  demandAllowed(context, await ask('rotation_limiter', policy.seamTimeoutMs, () => limiter.consume(deviceId, 1)));

  if (code === null && onSelfRotation) {
    // Not afterwards: whoever took the device over would not repeat what nobody was told of.
    const event: SelfRotationEvent = { device, newKeyId: keyId, ip: incoming.ip, isRepeat: device.keyState !== 'current' };
    await ask('audit', policy.seamTimeoutMs, () => onSelfRotation(event));
  }

  // 8: the awaits took time; what the device may do now. The registry judges status and key once more, in the step that replaces it.
  const present = await findDevice(context, oldKeyId);
  if (present === null) throw signatureInvalid('unknown key');
  demandActive(context, present, incoming.ip);
  demandFresh(context, head);

  const codeHash = code === null ? null : hashRotationCode(code);
  if (code !== null && codeHash === null) throw rotationRejected();
  const allowWithoutCode = onSelfRotation !== null;
  const nowMs = readClock(context);
  const result = await ask('device_registry', policy.seamTimeoutMs, () =>
    registry.rotate({ oldKeyId, keyId, publicKey, codeHash, allowWithoutCode, overlapMs, nowMs }),
  );
  switch (result?.outcome) {
    case 'rotated':
    case 'already_rotated':
      break;
    case 'key_exists':
      throw new RejectedError('key_exists', 'This key was known before: make a new one.');
    case 'rejected':
      throw rotationRejected();
    default:
      throw new UnavailableError('device_registry', 'The registry gave no outcome.');
  }
  const rotated = result.device;
  if (rotated?.keyId !== keyId) throw new UnavailableError('device_registry', 'The registry gave no device of that key.');
  return rotated;
}

function rotationRejected(): RejectedError {
  return new RejectedError('rotation_rejected', 'The rotation code is missing, unknown, used or expired: ask the owner of the device for a new one.');
}

interface RotationBody {
  readonly publicKey: PublicJwk;
  readonly proof: Bytes;
  readonly code: string | null;
}

function readRotation(body: Bytes): RotationBody {
  const { jwk, proof, code } = readMembers(WHAT, body, MEMBERS);
  // The strict decoder leaves one text for one signature.
  const bytes = typeof proof === 'string' && proof.length === SIGNATURE_CHARACTERS ? fromBase64(proof) : null;
  if (bytes?.length !== SIGNATURE_BYTES) throw malformed(WHAT, 'proof is not a signature in base64');
  return { publicKey: readJwk(WHAT, jwk), proof: bytes, code: optionalText(WHAT, 'code', code, isCodeText) };
}
