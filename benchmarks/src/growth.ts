/** Whether a request costs more when the memory stores hold more devices and nonces. */
import { randomBytes } from 'node:crypto';
import { memoryReplayStore, type MemoryDeviceRegistry } from '@keyguard/core/memory';
import { thumbprint } from '@keyguard/core/keys';
import type { RateLimiter, ReplayStore } from '@keyguard/core/seams';
import { createVerifier, memoryRateLimiter, nodePrimitives, type Verifier } from '@keyguard/server-verifier';
import { AUTHORITY, enroll, makeKey, makeRequest, nonces, quickSigner, registryOf, type Key, type SignedRequest } from './material.ts';
import { rowOf, type Row, type Section, type Suite } from './results.ts';
import { pairedMedian, timeInTurn, type Contestant, type Timings } from './rounds.ts';

const SIGNERS = 64;
const UNLIMITED_PER_MINUTE = 1_000_000_000;
const EXTRA_CAPACITY = 1_000_000;

const WHOLE = 'whole verification';
const DEVICE = 'find the device';
const NONCE = 'claim the nonce';
const LIMITS = 'device limiter: look and debit';

const label = (what: string, size: number): string => `${what}, ${size.toLocaleString('en-US')}`;

/** Stores that hold `size` devices, nonces and counted devices each. */
interface Deployment {
  readonly size: number;
  readonly registry: MemoryDeviceRegistry;
  readonly replayStore: ReplayStore;
  readonly deviceLimiter: RateLimiter;
  readonly verifier: Verifier;
  /** Key ids of devices picked evenly, so that caches see all of the stores and not their last entries. */
  readonly sample: readonly string[];
}

function deploy(size: number, signers: readonly Key[]): Deployment {
  const registry = registryOf(...signers);
  const replayStore = memoryReplayStore({ startedAtMs: 0, capacity: size + EXTRA_CAPACITY });
  const deviceLimiter = memoryRateLimiter({ perMinute: UNLIMITED_PER_MINUTE });
  const createdSeconds = Math.floor(Date.now() / 1000);
  const sample: string[] = [];
  const [{ publicJwk }] = signers as [Key];
  for (let i = 0; i < size; i += 1) {
    // Only the signers call: all other devices need a key id, and no key of their own.
    const keyId = randomBytes(32).toString('base64url');
    enroll(registry, keyId, publicJwk);
    deviceLimiter.consume(keyId, 1);
    replayStore.claim(keyId, randomBytes(16).toString('base64url'), createdSeconds, (createdSeconds + 360) * 1000);
    if (i % Math.ceil(size / 1000) === 0) sample.push(keyId);
  }
  const verifier = createVerifier({
    policy: { authorities: [AUTHORITY], requestsPerMinute: UNLIMITED_PER_MINUTE, requestsPerMinutePerIp: UNLIMITED_PER_MINUTE },
    registry,
    replayStore,
    deviceLimiter,
  });
  return { size, registry, replayStore, deviceLimiter, verifier, sample };
}

export const growth: Suite = async ({ quick, million }) => {
  const signers: Key[] = [];
  for (let i = 0; i < SIGNERS; i += 1) signers.push(await makeKey());
  const sizes = [1_000, 100_000, ...(million ? [1_000_000] : [])];
  const deployments = sizes.map((size) => deploy(size, signers));

  const wholes = await timeWhole(deployments, signers, quick);
  const stores = await timeStores(deployments, quick);
  const firstRequest = await timeFirstRequest(signers, quick);

  const rows: Row[] = [];
  for (const [what, timings] of [[WHOLE, wholes], [DEVICE, stores], [NONCE, stores], [LIMITS, stores]] as const) {
    for (const size of sizes) rows.push(rowOf(label(what, size), timings.get(label(what, size))!, what === WHOLE ? 'ours' : 'part'));
  }
  const [smallest = 0] = sizes;
  const sections: Section[] = [
    {
      title: 'The same with many devices and nonces',
      about:
        `One process with memory stores that hold as many devices, live nonces and counted devices as stands behind the name; ${SIGNERS} of the devices call. ` +
        'A device that has not called for long pays once for its key: thumbprint, import and the check of its canonical form.',
      unit: 'µs',
      rows: [...rows, rowOf('import of a key that is not kept', firstRequest, 'part')],
      ratios: sizes.slice(1).map((size) => ({
        name: `whole verification, ${size.toLocaleString('en-US')} / 1,000`,
        value: pairedMedian([wholes.get(label(WHOLE, size))!, wholes.get(label(WHOLE, smallest))!], (many, few) => many / few),
        goal: { atMost: 1.1 },
      })),
    },
  ];
  return sections;
};

function timeWhole(deployments: readonly Deployment[], signers: readonly Key[], quick: boolean): Promise<Timings> {
  const signs = signers.map((key) => quickSigner(key));
  let batch: SignedRequest[] = [];
  return timeInTurn({
    operations: SIGNERS,
    rounds: quick ? 30 : 100,
    warmUpRounds: quick ? 10 : 60,
    budgetMs: quick ? 4_000 : 20_000,
    async prepare() {
      const next: SignedRequest[] = [];
      for (const sign of signs) next.push(await makeRequest(sign));
      batch = next;
    },
    contestants: deployments.map(({ size, verifier }) => ({
      name: label(WHOLE, size),
      async run(operations) {
        for (let i = 0; i < operations; i += 1) await verifier.verify(batch[i]!.incoming);
      },
    })),
  });
}

function timeStores(deployments: readonly Deployment[], quick: boolean): Promise<Timings> {
  const operations = 500;
  const createdSeconds = Math.floor(Date.now() / 1000);
  const expiresAtMs = (createdSeconds + 360) * 1000;
  let fresh: string[] = [];
  let made = 0;
  let found = 0;
  const each = (name: string, body: (i: number) => unknown): Contestant => ({
    name,
    run(operations) {
      for (let i = 0; i < operations; i += 1) if (body(i) !== null) found += 1;
    },
  });
  return timeInTurn({
    operations,
    rounds: quick ? 30 : 100,
    warmUpRounds: quick ? 10 : 20,
    budgetMs: quick ? 2_000 : 10_000,
    prepare() {
      fresh = nonces(made, operations);
      made += operations;
    },
    contestants: deployments.flatMap(({ size, registry, replayStore, deviceLimiter, sample }) => {
      const keyId = (i: number): string => sample[(i * 37) % sample.length]!;
      return [
        each(label(DEVICE, size), (i) => registry.findByKeyId(keyId(i))),
        each(label(NONCE, size), (i) => replayStore.claim(keyId(i), fresh[i]!, createdSeconds, expiresAtMs)),
        each(label(LIMITS, size), (i) => {
          deviceLimiter.peek(keyId(i));
          return deviceLimiter.consume(keyId(i), 1);
        }),
      ];
    }),
  });
}

async function timeFirstRequest(signers: readonly Key[], quick: boolean): Promise<readonly number[]> {
  const primitives = nodePrimitives();
  const name = 'import';
  const timings = await timeInTurn({
    operations: SIGNERS,
    rounds: quick ? 20 : 60,
    warmUpRounds: 10,
    budgetMs: 3_000,
    contestants: [
      {
        name,
        async run(operations) {
          for (let i = 0; i < operations; i += 1) {
            const { publicJwk } = signers[i]!;
            await thumbprint(publicJwk, primitives);
            await primitives.importPublicKey(publicJwk);
          }
        },
      },
    ],
  });
  return timings.get(name)!;
}
