/**
 * Enrollment: a new key proves that it is held by signing its own enrollment, and a code says that it may come in.
 *
 * @see docs/spec/request-signing.md
 */
import { RejectedError, UnavailableError } from '@keyguard/core/errors';
import { thumbprint } from '@keyguard/core/keys';
import type { Bytes, Device, PublicJwk, RateLimiter } from '@keyguard/core/seams';
import { verifySignature } from '@keyguard/core/verify';
import { hashEnrollmentCode } from './enrollment-code.ts';
import { ipBucket } from './ip.ts';
import { isCodeText, keyBodyPolicy, optionalText, readJwk, readMembers } from './key-body.ts';
import { memoryRateLimiter } from './limits.ts';
import {
  admit,
  ask,
  claimNonce,
  createContext,
  demandAllowed,
  demandFresh,
  readClock,
  reporting,
  signatureInvalid,
  type IncomingRequest,
  type VerifierContext,
  type VerifierOptions,
} from './recipe.ts';

const FINGERPRINT = /^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$/;
// Control characters, bidirectional overrides, lone surrogates, and what else makes a label read as something it is not.
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/u;
const VISIBLE = /[^\s\p{Default_Ignorable_Code_Point}\u2800]/u;
const MEMBERS = ['jwk', 'code', 'label', 'fingerprint'];

/** What an enrollment needs beside what every verification does. */
export interface EnrollmentOptions extends VerifierOptions {
  /** Counts tries by address. Default: in the memory of this process, `enrollmentsPerMinute`. */
  readonly enrollmentLimiter?: RateLimiter;
  /** Tries per minute and address. Default 20. */
  readonly enrollmentsPerMinute?: number;
  /**
   * Keys the device's fingerprint again, so that the stored value means nothing outside this server. Without it the
   * fingerprint is dropped.
   */
  readonly keyFingerprint?: (fingerprint: string) => Promise<string> | string;
}

/** The recipe by which a new device comes in. Frozen. */
export interface Enrollment {
  /** The time, as the verifier reads it. @throws UnavailableError */
  nowMs(): number;
  /**
   * Enrolls the device that signed this request with its new key.
   * @throws RejectedError `enrollment_rejected`, `key_exists`, or any protocol code of verification
   * @throws UnavailableError
   */
  enroll(incoming: IncomingRequest): Promise<Device>;
}

/**
 * The recipe of enrollment over these seams; fails closed. @see docs/spec/request-signing.md section 11
 * @throws UsageError `invalid_option`
 */
export function createEnrollment(options: EnrollmentOptions): Enrollment {
  const context = createContext(options);
  const limiter = options.enrollmentLimiter ?? memoryRateLimiter({ perMinute: options.enrollmentsPerMinute ?? 20 });
  const { keyFingerprint } = options;
  return Object.freeze({
    nowMs: () => readClock(context),
    enroll(incoming: IncomingRequest): Promise<Device> {
      const proven = { keyId: null, deviceId: null };
      return reporting(context, incoming, proven, () => enrollInOrder(context, limiter, keyFingerprint, incoming, proven));
    },
  });
}

async function enrollInOrder(
  context: VerifierContext,
  limiter: RateLimiter,
  keyFingerprint: EnrollmentOptions['keyFingerprint'],
  incoming: IncomingRequest,
  proven: { keyId: string | null },
): Promise<Device> {
  const { policy, primitives, registry } = context;

  // 1 and 2, and the tries of this address.
  const head = await admit(context, incoming);
  const tries = await ask('enrollment_limiter', policy.seamTimeoutMs, () => limiter.consume(ipBucket(incoming.ip), 1));
  demandAllowed(context, tries);
  const body = await incoming.body(keyBodyPolicy(policy), `ip:${ipBucket(incoming.ip)}`);

  // 3: the key comes with the request, in its one canonical form, and is what the key id names.
  const { publicKey, code, label, fingerprint } = readEnrollment(body);
  const key = await primitives.importPublicKey(publicKey);
  if ((await thumbprint(publicKey, primitives)) !== head.keyId) {
    throw signatureInvalid('key id is not the thumbprint');
  }

  // 4: proof of possession.
  await verifySignature(head, body, key, 'keyguard-enroll-v1', primitives);
  proven.keyId = head.keyId;

  // 6: once only.
  demandFresh(context, head);
  await claimNonce(context, head);

  const codeHash = code === null ? null : hashEnrollmentCode(code);
  if (code !== null && codeHash === null) throw enrollmentRejected();
  const keyed =
    fingerprint === null || keyFingerprint === undefined
      ? null
      : await ask('fingerprint', policy.seamTimeoutMs, () => keyFingerprint(fingerprint));
  const { keyId } = head;
  const result = await ask('device_registry', policy.seamTimeoutMs, () =>
    registry.enroll({ keyId, publicKey, codeHash, label, fingerprint: keyed, nowMs: readClock(context) }),
  );
  switch (result?.outcome) {
    case 'enrolled':
      return result.device;
    case 'key_exists':
      throw new RejectedError('key_exists', 'This key was enrolled before: ask for its status.');
    case 'rejected':
      throw enrollmentRejected();
    default:
      throw new UnavailableError('device_registry', 'The registry gave no outcome.');
  }
}

function enrollmentRejected(): RejectedError {
  return new RejectedError('enrollment_rejected', 'The enrollment code is missing, unknown, used up or expired: ask for a new one.');
}

interface EnrollmentBody {
  readonly publicKey: PublicJwk;
  readonly code: string | null;
  readonly label: string | null;
  readonly fingerprint: string | null;
}

function readEnrollment(body: Bytes): EnrollmentBody {
  const what = 'enrollment';
  const { jwk, code, label, fingerprint } = readMembers(what, body, MEMBERS);
  return {
    publicKey: readJwk(what, jwk),
    code: optionalText(what, 'code', code, isCodeText),
    label: optionalText(what, 'label', label, isLabel),
    fingerprint: optionalText(what, 'fingerprint', fingerprint, (text) => FINGERPRINT.test(text)),
  };
}

/** 1 to 64 characters, in NFC, at least one of them to be seen, and none that prints as something it is not. */
function isLabel(text: string): boolean {
  const { length } = [...text];
  if (!VISIBLE.test(text)) return false;
  return length >= 1 && length <= 64 && text === text.normalize('NFC') && !UNPRINTABLE.test(text);
}
