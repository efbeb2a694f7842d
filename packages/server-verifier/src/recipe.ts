/**
 * The steps that verification, enrollment and rotation share, each with its guarantee. They hold no state but imported keys; they
 * decide nothing that the recipe in `verifier.ts`, `enrollment.ts` and `rotation.ts` does not spell out.
 */
import type { SignatureTag } from '@keyguard/core/canonical';
import { isRejected, isUnavailable, RejectedError, UnavailableError, UsageError } from '@keyguard/core/errors';
import { thumbprint } from '@keyguard/core/keys';
import type {
  Bytes,
  Clock,
  Device,
  DeviceRegistry,
  DeviceStatus,
  KeyState,
  MaybePromise,
  Primitives,
  RateDecision,
  RateLimiter,
  ReplayStore,
  VerifyKey,
} from '@keyguard/core/seams';
import { assertFresh, readSignedHead, verifyHead, type ReceivedHead, type SignedHead, type TimeWindow } from '@keyguard/core/verify';
import { systemClock } from '@keyguard/core/system';
import { TIMED_OUT, within } from './deadline.ts';
import { ipBucket, ipMatcher, type IpMatcher } from './ip.ts';
import { memoryRateLimiter } from './limits.ts';
import { nodePrimitives } from './node-primitives.ts';
import { definePolicy, type Policy, type PolicyOptions } from './policy.ts';

const IMPORTED_KEYS = 10_000;
const NONCE_LIFE_SECONDS = 360;

// A point whose private key was thrown away: what an unknown key id is verified against, so that it costs the same.
const DUMMY_KEY = {
  crv: 'P-256',
  kty: 'EC',
  x: 'fjXSxXH6Q24j2ZKJnTggBNyp8QXousmRxWpxLE3L5EM',
  y: 'wjuM2mijrq17OJRnZN1ZYmNsdE8UA5jrBbHVWoHsrII',
} as const;

/** What an adapter hands over. Everything but `ip` is untrusted. */
export interface IncomingRequest extends ReceivedHead {
  /** The caller's address, from the socket or from proxies that the operator trusts; `null` where there is none. */
  readonly ip: string | null;
  /**
   * Reads the body: MUST resolve with all bytes as they were received, whatever the headers say of them, or throw RejectedError
   * `body_too_large` or `request_timeout`. Called at most once, and only for a head that is well-formed, fresh and signed (an
   * enrollment brings its key in the body, so there it is not proven yet). `holder` is to whom the memory is counted: a device
   * that has proven its key, a key that was replaced, or the caller's address.
   */
  readonly body: (policy: Policy, holder: string) => MaybePromise<Bytes>;
}

/** A refusal, for the audit log. `keyId` is claimed, not proven, unless `deviceId` is there. */
export interface RejectionEvent {
  readonly error: RejectedError | UnavailableError;
  readonly ip: string | null;
  readonly method: string;
  readonly path: string;
  readonly keyId: string | null;
  readonly deviceId: string | null;
}

/** The seams and the policy that every recipe stands on. */
export interface VerifierOptions {
  readonly policy: PolicyOptions;
  readonly registry: DeviceRegistry;
  readonly replayStore: ReplayStore;
  /** Counts proven devices, and keys that were replaced each by itself. Default: in the memory of this process, by the policy's figure. */
  readonly deviceLimiter?: RateLimiter;
  /**
   * Requests per minute of a device without a limit of its own, asked for each request: for a figure that changes while the verifier
   * runs. MUST answer at once; where it throws, nobody is let through. Default: the policy's figure.
   */
  readonly requestsPerMinute?: () => number;
  /**
   * Counts addresses before anything is proven. Default: in the memory of this process, by the policy's figure, for this
   * verifier or enrollment alone: hand the same limiter to all that shall count together.
   */
  readonly ipLimiter?: RateLimiter;
  /** Default: `nodePrimitives()`. */
  readonly primitives?: Primitives;
  readonly clock?: Clock;
  /** Told of every refusal, and awaited, before the answer leaves. If it fails, the answer is 503. */
  readonly onRejected?: (event: RejectionEvent) => MaybePromise<void>;
}

/** The options, checked once and frozen. */
export interface VerifierContext {
  readonly policy: Policy;
  readonly window: TimeWindow;
  readonly registry: DeviceRegistry;
  readonly replayStore: ReplayStore;
  readonly deviceLimiter: RateLimiter;
  readonly ipLimiter: RateLimiter;
  readonly requestsPerMinute: () => number;
  readonly primitives: Primitives;
  readonly clock: Clock;
  readonly onRejected: VerifierOptions['onRejected'];
  readonly keys: Map<string, VerifyKey>;
  readonly dummyKey: MaybePromise<VerifyKey>;
}

/** @throws UsageError `invalid_option` */
export function createContext(options: VerifierOptions): VerifierContext {
  const policy = definePolicy(options.policy);
  const { registry, replayStore, primitives = nodePrimitives(), clock = systemClock } = options;
  if (typeof registry?.findByKeyId !== 'function') throw new UsageError('invalid_option', 'registry must be a DeviceRegistry.');
  if (typeof replayStore?.claim !== 'function') throw new UsageError('invalid_option', 'replayStore must be a ReplayStore.');
  return Object.freeze({
    policy,
    window: Object.freeze({
      maxAgeSeconds: policy.maxAgeSeconds,
      maxFutureSeconds: Math.min(policy.maxFutureSeconds, replayStore.maxFutureSeconds ?? policy.maxFutureSeconds),
    }),
    registry,
    replayStore,
    deviceLimiter: options.deviceLimiter ?? memoryRateLimiter({ perMinute: policy.requestsPerMinute }),
    ipLimiter: options.ipLimiter ?? memoryRateLimiter({ perMinute: policy.requestsPerMinutePerIp }),
    requestsPerMinute: options.requestsPerMinute ?? ((): number => policy.requestsPerMinute),
    primitives,
    clock,
    onRejected: options.onRejected,
    keys: new Map<string, VerifyKey>(),
    dummyKey: primitives.importPublicKey(DUMMY_KEY),
  });
}

/** Asks a seam. Whatever goes wrong, an answer that does not come included, is an {@link UnavailableError}. */
export function ask<T>(seam: string, timeoutMs: number, call: () => MaybePromise<T>): MaybePromise<T> {
  try {
    const answer = call();
    // A seam that answers at once must not pay for a promise.
    if (!isPromise(answer)) return answer;
    return within(timeoutMs, answer, (error) =>
      error === TIMED_OUT ? new UnavailableError(seam, `The ${seam} did not answer within ${timeoutMs} ms.`) : failed(seam, error),
    );
  } catch (error) {
    throw failed(seam, error);
  }
}

// By its verb and not by its class: promises of other makers are promises too.
function isPromise<T>(answer: MaybePromise<T>): answer is Promise<T> {
  return answer instanceof Promise || typeof (answer as { then?: unknown } | null | undefined)?.then === 'function';
}

/** Goes on with an answer: at once where it came at once. */
function onceAnswered<T, U>(answer: MaybePromise<T>, goOn: (answer: T) => MaybePromise<U>): MaybePromise<U> {
  return isPromise(answer) ? answer.then(goOn) : goOn(answer);
}

function failed(seam: string, cause: unknown): UnavailableError {
  return isUnavailable(cause) ? cause : new UnavailableError(seam, `The ${seam} failed.`, { cause });
}

/** The time, as a trusted finite number. @throws UnavailableError */
export function readClock(context: VerifierContext): number {
  let time: number;
  try {
    time = context.clock.nowMs();
  } catch (cause) {
    throw new UnavailableError('clock', 'The clock failed.', { cause });
  }
  if (!Number.isFinite(time)) throw new UnavailableError('clock', 'The clock gave no time.');
  return time;
}

/** @throws RejectedError `timestamp_out_of_window` */
export function demandFresh(context: VerifierContext, head: SignedHead): void {
  assertFresh(head.createdSeconds, context.window, readClock(context));
}

/** Steps 1 and 2, after the rules that need no proof: the address may call, and has not called too often. */
export function admit(context: VerifierContext, incoming: IncomingRequest): MaybePromise<SignedHead> {
  const { policy } = context;
  if (!policy.allowsIp(incoming.ip)) throw ipNotAllowed();
  const answer = ask('ip_limiter', policy.seamTimeoutMs, () => context.ipLimiter.consume(ipBucket(incoming.ip), 1));
  return onceAnswered(answer, (decision) => {
    demandAllowed(context, decision);
    const head = readSignedHead(incoming, policy.authorities, policy.carriage);
    demandFresh(context, head);
    return head;
  });
}

function ipNotAllowed(): RejectedError {
  return new RejectedError('ip_not_allowed', 'This address may not call.');
}

/** @throws RejectedError `rate_limited`; UnavailableError when the decision is none */
export function demandAllowed(context: VerifierContext, decision: RateDecision): void {
  if (decision?.allowed === true) return;
  if (decision?.allowed !== false) throw new UnavailableError('rate_limiter', 'The limiter gave no decision.');
  throw new RejectedError('rate_limited', 'Too many requests: try again later.', {
    retryAfterMs: Math.max(0, decision.resetAtMs - readClock(context)),
  });
}

const STATUSES: ReadonlySet<string> = new Set(['pending', 'active', 'suspended', 'revoked'] satisfies DeviceStatus[]);
const KEY_STATES: ReadonlySet<string> = new Set(['current', 'retiring', 'retired'] satisfies KeyState[]);

/** Step 3: the device of that key, or `null`. */
export function findDevice(context: VerifierContext, keyId: string): MaybePromise<Device | null> {
  const answer = ask('device_registry', context.policy.seamTimeoutMs, () => context.registry.findByKeyId(keyId));
  return onceAnswered(answer, (device) => {
    if (device === null) return null;
    if (device?.keyId !== keyId || !STATUSES.has(device.status) || !KEY_STATES.has(device.keyState)) {
      throw new UnavailableError('device_registry', 'The registry gave no device of that key.');
    }
    return device;
  });
}

/** Step 3: the key of the device as imported, or a dummy key of no device. */
function keyOf(context: VerifierContext, device: Device | null): MaybePromise<VerifyKey> {
  if (device === null) return context.dummyKey;
  return context.keys.get(device.keyId) ?? importKey(context, device);
}

// A key id is the hash of its key, so what was imported for one stays right for ever; the map is bounded all the same.
async function importKey(context: VerifierContext, { keyId, publicKey }: Device): Promise<VerifyKey> {
  const { keys, primitives } = context;
  const key = await ask('device_registry', context.policy.seamTimeoutMs, async () => {
    if ((await thumbprint(publicKey, primitives)) !== keyId) throw new Error('thumbprint');
    return primitives.importPublicKey(publicKey);
  });
  if (keys.size >= IMPORTED_KEYS) keys.delete(keys.keys().next().value!);
  keys.set(keyId, key);
  return key;
}

/**
 * Steps 3 and 4, first half: the device whose key signed `head` for the purpose `tag`. An unknown key costs a signature check like
 * any other, so that time tells no more than the answer.
 * @throws RejectedError `signature_invalid`
 */
export async function findSigner(context: VerifierContext, head: SignedHead, tag: SignatureTag): Promise<Device> {
  const device = await findDevice(context, head.keyId);
  const key = await keyOf(context, device);
  const verifying = verifyHead(head, key, tag, context.primitives);
  if (device === null) {
    await verifying.catch(() => {});
    throw signatureInvalid('unknown key');
  }
  await verifying;
  return device;
}

/** One answer for everything that could tell an outsider about keys; `detail` is for the audit log. */
export function signatureInvalid(detail: string): RejectedError {
  return new RejectedError('signature_invalid', 'The signature does not verify, or its key is not enrolled here.', { detail });
}

/** Whether this key verifies: it was not replaced, or its overlap is not over. */
function isInUse(context: VerifierContext, { keyState, keyRetiresAtMs }: Device): boolean {
  return keyState === 'current' || (keyState === 'retiring' && keyRetiresAtMs !== null && readClock(context) < keyRetiresAtMs);
}

/** On whose account the limits and the memory of a proven request go. */
export interface Account {
  readonly limiterKey: string;
  readonly holder: string;
}

/**
 * The device's account; or one of its own for a key that was replaced. Whoever kept such a key may still ask for its state, and
 * must not use up by that what the device may call.
 */
export function accountOf(context: VerifierContext, device: Device): Account {
  const { deviceId, keyId } = device;
  if (isInUse(context, device)) return { limiterKey: deviceId, holder: `device:${deviceId}` };
  return { limiterKey: `key:${keyId}`, holder: `key:${keyId}` };
}

/** Step 5: the device may call, with this key, from this address. Only the holder of the key may be told. */
export function demandActive(context: VerifierContext, device: Device, ip: string | null): void {
  demandStatus(device);
  if (!isInUse(context, device)) throw signatureInvalid('retired key');
  demandAddress(device, ip);
}

/** Of {@link demandActive} what also holds for a request that was accepted before: a key that was replaced since was good then. */
export function demandStillActive(device: Device, ip: string | null): void {
  demandStatus(device);
  demandAddress(device, ip);
}

function demandStatus({ status }: Device): void {
  if (status === 'pending') throw new RejectedError('device_pending', 'This device awaits approval by an administrator.');
  if (status === 'suspended') throw new RejectedError('device_suspended', 'This device is suspended: ask an administrator.');
  if (status !== 'active') throw new RejectedError('device_revoked', 'This device is revoked for good: enroll a new key.');
}

function demandAddress({ ipAllowlist }: Device, ip: string | null): void {
  if (ipAllowlist !== null && !matcherOf(ipAllowlist)(ip)) throw ipNotAllowed();
}

const matchers = new WeakMap<readonly string[], IpMatcher>();

function matcherOf(allowlist: readonly string[]): IpMatcher {
  let matcher = matchers.get(allowlist);
  if (matcher === undefined) {
    try {
      matcher = ipMatcher(allowlist);
    } catch (cause) {
      throw new UnavailableError('device_registry', 'The allowlist of the device is not readable.', { cause });
    }
    matchers.set(allowlist, matcher);
  }
  return matcher;
}

/** Step 6: this request is the first with its nonce. @throws RejectedError `replay_detected` */
export function claimNonce(context: VerifierContext, { keyId, nonce, createdSeconds }: SignedHead): MaybePromise<void> {
  const expiresAtMs = (createdSeconds + NONCE_LIFE_SECONDS) * 1000;
  const answer = ask('replay_store', context.policy.seamTimeoutMs, () =>
    context.replayStore.claim(keyId, nonce, createdSeconds, expiresAtMs),
  );
  return onceAnswered(answer, (claimed) => {
    if (claimed === true) return;
    if (claimed !== false) throw new UnavailableError('replay_store', 'The replay store gave no answer.');
    throw new RejectedError('replay_detected', 'This request was used before: sign every request anew.');
  });
}

// A mistake in the program, for instance another parser before the door, is for its programmer.
function isUsage(error: unknown): boolean {
  return error instanceof Error && error.name === 'UsageError';
}

/** Runs a recipe and reports its refusal before it leaves. */
export async function reporting<T>(
  context: VerifierContext,
  incoming: IncomingRequest,
  proven: { keyId: string | null; deviceId: string | null },
  recipe: () => Promise<T>,
): Promise<T> {
  try {
    return await recipe();
  } catch (thrown) {
    const { onRejected, policy } = context;
    if (isUsage(thrown)) throw thrown;
    // Whatever else goes wrong, in the primitives for instance, is an outage: nothing is let through.
    const error = isRejected(thrown) ? thrown : failed('verifier', thrown);
    if (onRejected !== undefined) {
      const { ip, method, target } = incoming;
      const path = target.split('?', 1)[0]!.slice(0, 1024);
      await ask('audit', policy.seamTimeoutMs, () => onRejected({ error, ip, method: method.slice(0, 16), path, ...proven }));
    }
    throw error;
  }
}
