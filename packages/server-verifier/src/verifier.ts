/**
 * The verifier: reads as the recipe of the protocol, in its order. Any exception, missing store, answer of another type or
 * unknown state is a refusal; nothing here fails open.
 *
 * @see docs/spec/request-signing.md
 */
import { UsageError } from '@keyguard/core/errors';
import type { Bytes, Device, RateDecision } from '@keyguard/core/seams';
import { verifyBody, type SignedHead } from '@keyguard/core/verify';
import type { CoveredHeader } from '@keyguard/core/canonical';
import type { Policy } from './policy.ts';
import {
  accountOf,
  admit,
  ask,
  claimNonce,
  createContext,
  demandActive,
  demandAllowed,
  demandFresh,
  demandStillActive,
  findDevice,
  findSigner,
  readClock,
  reporting,
  signatureInvalid,
  type IncomingRequest,
  type VerifierContext,
  type VerifierOptions,
} from './recipe.ts';

export type { IncomingRequest, RejectionEvent, VerifierOptions } from './recipe.ts';

/** A request that a known, active device signed and that is used here for the first time. Frozen, but for the bytes of the body. */
export interface VerifiedRequest {
  readonly device: Device;
  readonly keyId: string;
  readonly method: string;
  readonly authority: string;
  /** The signed path. Route and forward by this, never by a URL that a router rewrote. */
  readonly path: string;
  /** Without the question mark; empty when there is none. */
  readonly query: string;
  readonly contentType: string | null;
  /** The signed headers besides Content-Type: the only ones of the caller's that may be forwarded. */
  readonly coveredHeaders: readonly CoveredHeader[];
  /** The signed bytes. */
  readonly body: Bytes;
  readonly createdSeconds: number;
  readonly nonce: string;
  readonly verifiedAtMs: number;
  readonly rate: RateDecision;
}

/** What one call of {@link Verifier.verify} may be let off, or held to. */
export interface VerifyOptions {
  /** Lets a device that is not active, or a retired key, ask for its own state. For the status route only. */
  readonly insecureAnyStatus?: boolean;
  /**
   * The largest body of a request with that head, in bytes, where it is less than the policy's: for routes that take different
   * bodies. Never raises the policy's limit. Asked once per request, for a head whose signature is proven, before the body is read.
   * MUST answer at once; where it throws, or answers with what is no non-negative integer, nothing is let through.
   */
  readonly maxBodyBytes?: (head: SignedHead) => number;
}

/** The recipe by which requests are let through. Frozen. */
export interface Verifier {
  readonly policy: Policy;
  /** The time, as the verifier reads it. @throws UnavailableError */
  nowMs(): number;
  /**
   * Resolves for a request that is to be let through, and for no other.
   * @throws RejectedError with a protocol code
   * @throws UnavailableError when a seam failed: nothing is let through
   */
  verify(incoming: IncomingRequest, options?: VerifyOptions): Promise<VerifiedRequest>;
  /**
   * Resolves while the device of a verified request may call from its address: for answers that last, such as streams. Ask every
   * half second or so, and end what is refused. A key that was replaced since ends nothing that it began; shut a device for that.
   * Both arguments MUST be what `verify` was given and answered. `onRejected` is not told.
   * @throws RejectedError `device_pending`, `device_suspended`, `device_revoked`, `ip_not_allowed`; `signature_invalid` for a key
   *   that is not there any more
   * @throws UnavailableError when a seam failed: nobody knows
   */
  recheck(keyId: string, ip: string | null): Promise<Device>;
}

/**
 * The recipe of the protocol over these seams, in its order; fails closed.
 * @throws UsageError `invalid_option`
 */
export function createVerifier(options: VerifierOptions): Verifier {
  const context = createContext(options);
  return Object.freeze({
    policy: context.policy,
    nowMs: () => readClock(context),
    verify(incoming: IncomingRequest, verifyOptions: VerifyOptions = {}): Promise<VerifiedRequest> {
      const proven = { keyId: null, deviceId: null };
      return reporting(context, incoming, proven, () => verifyInOrder(context, incoming, verifyOptions, proven));
    },
    async recheck(keyId: string, ip: string | null): Promise<Device> {
      const device = await findDevice(context, keyId);
      if (device === null) throw signatureInvalid('unknown key');
      demandStillActive(device, ip);
      return device;
    },
  });
}

async function verifyInOrder(
  context: VerifierContext,
  incoming: IncomingRequest,
  { insecureAnyStatus: anyStatus = false, maxBodyBytes }: VerifyOptions,
  proven: { keyId: string | null; deviceId: string | null },
): Promise<VerifiedRequest> {
  const { policy, deviceLimiter } = context;

  // 1 and 2: syntax, single occurrence, version, target, size; time.
  const head = await admit(context, incoming);
  proven.keyId = head.keyId;

  // 3 and 4: the device whose key made the signature (an unknown key costs a check like any other), then the body and its hash.
  // Not a byte of a body is held for callers who have not proven a key.
  const device = await findSigner(context, head, 'keyguard-v1');
  const { limiterKey, holder } = accountOf(context, device);
  const body = await incoming.body(maxBodyBytes === undefined ? policy : bodyPolicy(policy, maxBodyBytes(head)), holder);
  await verifyBody(head, body, context.primitives);
  proven.deviceId = device.deviceId;

  // 5: what the device may do. From here on the caller has proven to hold the key.
  if (!anyStatus) demandActive(context, device, incoming.ip);

  // 6: look at the limit, so that one device cannot fill the store for all; then claim the nonce.
  demandFresh(context, head);
  const limit = device.requestsPerMinute ?? context.requestsPerMinute();
  demandAllowed(context, await ask('device_limiter', policy.seamTimeoutMs, () => deviceLimiter.peek(limiterKey, limit)));
  await claimNonce(context, head);

  // 7: debit the limit.
  const rate = await ask('device_limiter', policy.seamTimeoutMs, () => deviceLimiter.consume(limiterKey, 1, limit));
  demandAllowed(context, rate);

  // 8: the awaits took time; the answer is only given for what the device may do now, and within the window.
  const present = await findDevice(context, head.keyId);
  if (present === null) throw signatureInvalid('unknown key');
  if (!anyStatus) demandActive(context, present, incoming.ip);
  demandFresh(context, head);
  return Object.freeze({
    device: present,
    keyId: head.keyId,
    method: head.method,
    authority: head.authority,
    path: head.path,
    query: head.query,
    contentType: head.contentType,
    coveredHeaders: head.coveredHeaders,
    body,
    createdSeconds: head.createdSeconds,
    nonce: head.nonce,
    verifiedAtMs: readClock(context),
    rate,
  });
}

/** The policy under which a body of at most `bytes` is read. @throws UsageError `invalid_option` */
function bodyPolicy(policy: Policy, bytes: number): Policy {
  if (!Number.isSafeInteger(bytes) || bytes < 0) throw new UsageError('invalid_option', 'maxBodyBytes must answer with a non-negative integer.');
  return bytes >= policy.maxBodyBytes ? policy : { ...policy, maxBodyBytes: bytes };
}
