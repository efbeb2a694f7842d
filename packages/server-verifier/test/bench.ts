/**
 * The recipes' workbench: a verifier, an enrollment and a rotation over seams that write down how they were asked, and any of which a test
 * may replace. Requests are signed by real keys; `incoming` is what an adapter would hand over.
 */
import { utf8 } from '@keyguard/core/bytes';
import type { SignatureTag } from '@keyguard/core/canonical';
import { memoryDeviceRegistry, memoryKeyStore, memoryReplayStore, type MemoryDeviceRegistry } from '@keyguard/core/memory';
import type { Bytes, DeviceRegistry, Random, RateDecision, RateLimiter, ReplayStore, SigningKey } from '@keyguard/core/seams';
import { createSigner } from '@keyguard/core/sign';
import {
  createEnrollment,
  createRotation,
  createVerifier,
  memoryRateLimiter,
  type Enrollment,
  type EnrollmentOptions,
  type IncomingRequest,
  type RejectionEvent,
  type Rotation,
  type RotationOptions,
  type Verifier,
} from '@keyguard/server-verifier';

export const AUTHORITY = 'api.example.com';
export const NOW_MS = 1_800_000_000_000;
export const ALLOWED: RateDecision = { allowed: true, limit: 9, remaining: 8, resetAtMs: NOW_MS + 60_000 };
export const REFUSED: RateDecision = { allowed: false, limit: 9, remaining: 0, resetAtMs: NOW_MS + 60_000 };

export interface Bench {
  readonly verifier: Verifier;
  readonly enrollment: Enrollment;
  readonly rotation: Rotation;
  readonly registry: MemoryDeviceRegistry;
  readonly time: { nowMs: number };
  /** What the registry and the replay store were asked, in order: `device_registry`, `replay_store`, `enroll`, `rotate`. */
  readonly asked: string[];
  readonly rejections: RejectionEvent[];
  enrolledKey(): Promise<SigningKey>;
}

/** A limiter that answers what it is told to, at the look and at the debit. */
export function limiter(peeked: unknown, consumed: unknown): RateLimiter {
  return { peek: () => peeked as RateDecision, consume: () => consumed as RateDecision };
}

export function openBench(options: Partial<EnrollmentOptions & RotationOptions> = {}): Bench {
  const time = { nowMs: NOW_MS };
  const clock = options.clock ?? { nowMs: (): number => time.nowMs };
  const registry = memoryDeviceRegistry();
  const asked: string[] = [];
  const rejections: RejectionEvent[] = [];
  const note = <Arguments extends unknown[], Answer>(name: string, verb: (...given: Arguments) => Answer): ((...given: Arguments) => Answer) => {
    return (...given) => {
      asked.push(name);
      return verb(...given);
    };
  };
  const devices: DeviceRegistry = options.registry ?? registry;
  const store: ReplayStore = options.replayStore ?? memoryReplayStore({ clock, maxFutureSeconds: 60, startedAtMs: 0 });
  const noted: EnrollmentOptions & RotationOptions = {
    clock,
    onRejected: (event) => void rejections.push(event),
    enrollmentsPerMinute: 1000,
    rotationsPerMinute: 1000,
    ...options,
    registry: { findByKeyId: note('device_registry', devices.findByKeyId), enroll: note('enroll', devices.enroll), rotate: note('rotate', devices.rotate) },
    replayStore: { ...store, claim: note('replay_store', store.claim) },
    ipLimiter: options.ipLimiter ?? memoryRateLimiter({ perMinute: 1_000_000 }),
    policy: { authorities: [AUTHORITY], ...options.policy },
  };
  const keyStore = memoryKeyStore();
  let keys = 0;
  return {
    verifier: createVerifier(noted),
    enrollment: createEnrollment(noted),
    rotation: createRotation(noted),
    registry,
    time,
    asked,
    rejections,
    async enrolledKey() {
      keys += 1;
      const key = await keyStore.getOrCreate(String(keys));
      enrollIn(registry, key);
      return key;
    },
  };
}

export function enrollIn(registry: MemoryDeviceRegistry, { keyId, publicKey }: SigningKey): void {
  registry.addCode({ codeHash: keyId, ownerId: 'owner', expiresAtMs: NOW_MS + 900_000 });
  registry.enroll({ keyId, publicKey, codeHash: keyId, label: null, fingerprint: null, nowMs: NOW_MS });
}

export interface IncomingOptions {
  readonly target?: string;
  readonly body?: string;
  readonly nowMs?: number;
  readonly tag?: SignatureTag;
  readonly ip?: string | null;
  readonly random?: Random;
  /** What arrives instead of the body that was signed, or what happens when it is read. */
  readonly read?: IncomingRequest['body'];
}

/** An incoming request, with the number of times its body was asked for. */
export interface Incoming extends IncomingRequest {
  readonly reads: { count: number };
}

export async function incoming(key: SigningKey, options: IncomingOptions = {}): Promise<Incoming> {
  const { target = '/a?b=c', nowMs = NOW_MS, tag = 'keyguard-v1', ip = '192.0.2.1' } = options;
  const body = utf8(options.body ?? '{}');
  const sign = createSigner({ key, clock: { nowMs: () => nowMs }, ...(options.random && { random: options.random }) });
  const headers: [string, string][] = [['content-type', 'application/json']];
  const signature = await sign({ method: 'POST', authority: AUTHORITY, target, headers, body }, tag);
  const reads = { count: 0 };
  return {
    method: 'POST',
    target,
    rawHeaders: ['Host', AUTHORITY, ...headers.flat(), ...Object.entries(signature).flat()],
    ip,
    reads,
    body: (policy, holder) => {
      reads.count += 1;
      return options.read === undefined ? (body as Bytes) : options.read(policy, holder);
    },
  };
}

/** A copy in which the header `name` has another value; `null` takes it away. */
export function withHeader(request: Incoming, name: string, value: string | null): Incoming {
  const rawHeaders: string[] = [];
  for (let i = 0; i < request.rawHeaders.length; i += 2) {
    const [other, old] = [request.rawHeaders[i]!, request.rawHeaders[i + 1]!];
    if (other !== name) rawHeaders.push(other, old);
    else if (value !== null) rawHeaders.push(other, value);
  }
  return { ...request, rawHeaders };
}

/** A signature of the right form that nobody made. */
export function forged(request: Incoming): Incoming {
  return withHeader(request, 'x-keyguard-signature', Buffer.alloc(64, 7).toString('base64'));
}
