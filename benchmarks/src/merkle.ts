/** The Merkle tree over an audit chain and its checkpoints: growing it, making and verifying proofs, signing roots. */
import { createHash, generateKeyPairSync, sign as signBytes, verify as verifyBytes } from 'node:crypto';
import { auditCheckpoint, checkpointVerifier, signCheckpoint, verifierKey, verifyCheckpoint } from '@keyguard/core/checkpoint';
import { memorySubtrees, type MemorySubtrees } from '@keyguard/core/memory';
import {
  appendLeaves,
  consistencyProof,
  emptyTree,
  inclusionProof,
  readFrontier,
  treeRoot,
  verifyConsistency,
  verifyInclusion,
  type TreeFrontier,
} from '@keyguard/core/merkle';
import type { Bytes, CheckpointSigner } from '@keyguard/core/seams';
import { nodePrimitives } from '@keyguard/server-verifier';
import { rowOf, rowsOf, type Row, type Section, type Suite } from './results.ts';
import { pairedMedian, quantile, timeInTurn, type Contestant, type Timings } from './rounds.ts';

const SIZES = [1_000, 100_000, 1_000_000] as const;
const LEAF_BYTES = 320;
const BATCH = 100;
const PROOFS = 200;
const SINGLE_PROOFS = 2000;
const ORIGIN = 'keyguard.example/log';

const APPEND = 'append a leaf, in batches of 100';
const PROVE_INCLUSION = 'make an inclusion proof';
const VERIFY_INCLUSION = 'verify an inclusion proof';
const PROVE_CONSISTENCY = 'make a consistency proof';
const VERIFY_CONSISTENCY = 'verify a consistency proof';
const WHAT = [APPEND, PROVE_INCLUSION, VERIFY_INCLUSION, PROVE_CONSISTENCY, VERIFY_CONSISTENCY] as const;

const label = (what: string, size: number): string => `${what}, ${size.toLocaleString('en-US')}`;

const node = nodePrimitives();

/** The bytes of entry `index`: all different, all of one length. */
function leaf(index: number): Bytes {
  const bytes = new Uint8Array(LEAF_BYTES).fill(0x61);
  new DataView(bytes.buffer).setUint32(0, index);
  return bytes;
}

const leaves = (from: number, count: number): Bytes[] => Array.from({ length: count }, (_, i) => leaf(from + i));

/** A tree while it grows: its frontier at each of {@link SIZES}, and all its subtrees. */
interface Grown {
  readonly subtrees: MemorySubtrees;
  readonly frontiers: ReadonlyMap<number, TreeFrontier>;
}

async function grow(): Promise<Grown> {
  const subtrees = memorySubtrees();
  const frontiers = new Map<number, TreeFrontier>();
  let frontier = emptyTree();
  while (frontier.size < SIZES.at(-1)!) {
    const grown = await appendLeaves(frontier, leaves(frontier.size, 1000), node);
    subtrees.add(grown.completed);
    ({ frontier } = grown);
    if ((SIZES as readonly number[]).includes(frontier.size)) frontiers.set(frontier.size, frontier);
  }
  return { subtrees, frontiers };
}

export const merkle: Suite = async ({ quick }) => {
  const grown = await grow();
  return [await timeTree(grown, quick), await timeCheckpoints(grown, quick)];
};

async function timeTree(grown: Grown, quick: boolean): Promise<Section> {
  const contestants: Contestant[] = [];
  for (const size of SIZES) contestants.push(...(await contestantsFor(size, grown)));
  const timings = await timeInTurn({
    operations: PROOFS,
    rounds: quick ? 20 : 80,
    warmUpRounds: quick ? 10 : 30,
    budgetMs: quick ? 6_000 : 20_000,
    contestants,
  });
  const rows: Row[] = WHAT.flatMap((what) => SIZES.map((size) => rowOf(label(what, size), timings.get(label(what, size))!, 'ours')));
  return {
    title: 'A Merkle tree over an audit chain',
    about:
      `With synchronous hashes (node:crypto), leaves of ${LEAF_BYTES} bytes and all subtrees in memory; the number behind the name is the size of the tree, and leaves and older ` +
      'sizes are spread over all of it. A leaf takes two hashes in the mean. A proof reads stored hashes and joins the ragged right edge; a verification takes one or two hashes for each level.',
    unit: 'µs',
    rows,
    ratios: [...(await proofGoals(grown.subtrees)), growthOf(APPEND, timings, 1.25), ...WHAT.slice(1).map((what) => growthOf(what, timings, 3))],
  };
}

/** From the largest tree, each proof timed by itself, in milliseconds: what someone waits for who asks for one. */
async function proofGoals(subtrees: MemorySubtrees): Promise<Section['ratios']> {
  const size = SIZES.at(-1)!;
  const makers = [
    [PROVE_INCLUSION, (index: number) => inclusionProof(index, size, subtrees, node)],
    [PROVE_CONSISTENCY, (index: number) => consistencyProof(index + 1, size, subtrees, node)],
  ] as const;
  const ratios: Section['ratios'][number][] = [];
  for (const [what, make] of makers) {
    const milliseconds: number[] = [];
    for (let i = 0; i < SINGLE_PROOFS; i += 1) {
      const index = Math.floor(((i + 0.5) * size) / SINGLE_PROOFS);
      const startedAtMs = performance.now();
      await make(index);
      milliseconds.push(performance.now() - startedAtMs);
    }
    ratios.push({ name: `${label(what, size)}: milliseconds, 99th percentile`, value: quantile(milliseconds, 0.99), goal: { atMost: 5 } });
  }
  return ratios;
}

/** The logarithms of the sizes are as 1 to 2: what takes three times as long grows faster than they do. */
function growthOf(what: string, timings: Timings, atMost: number): Section['ratios'][number] {
  const [smallest] = SIZES;
  const largest = SIZES.at(-1)!;
  return {
    name: `${what}, ${largest.toLocaleString('en-US')} / ${smallest.toLocaleString('en-US')}`,
    value: pairedMedian([timings.get(label(what, largest))!, timings.get(label(what, smallest))!], (many, few) => many / few),
    goal: { atMost },
  };
}

async function contestantsFor(size: number, { subtrees, frontiers }: Grown): Promise<Contestant[]> {
  const frontier = frontiers.get(size)!;
  const root = await treeRoot(frontier, node);
  const indexes = Array.from({ length: PROOFS }, (_, i) => Math.floor(((i + 0.5) * size) / PROOFS));
  const inclusions = await Promise.all(
    indexes.map(async (index) => ({ bytes: leaf(index), index, size, root, proof: await inclusionProof(index, size, subtrees, node) })),
  );
  const consistencies = await Promise.all(
    indexes.map(async (index) => ({
      oldSize: index + 1,
      oldRoot: await treeRoot(await readFrontier(index + 1, subtrees), node),
      newSize: size,
      newRoot: root,
      proof: await consistencyProof(index + 1, size, subtrees, node),
    })),
  );
  const fresh = leaves(size, PROOFS);
  const each = (what: string, body: (i: number) => Promise<unknown>): Contestant => ({
    name: label(what, size),
    async run(operations) {
      for (let i = 0; i < operations; i += 1) await body(i);
    },
  });
  return [
    {
      name: label(APPEND, size),
      async run(operations) {
        let grown = { frontier };
        for (let i = 0; i < operations; i += BATCH) grown = await appendLeaves(grown.frontier, fresh.slice(i, i + BATCH), node);
      },
    },
    each(PROVE_INCLUSION, (i) => inclusionProof(indexes[i]!, size, subtrees, node)),
    each(VERIFY_INCLUSION, (i) => verifyInclusion(inclusions[i]!, node)),
    each(PROVE_CONSISTENCY, (i) => consistencyProof(indexes[i]! + 1, size, subtrees, node)),
    each(VERIFY_CONSISTENCY, (i) => verifyConsistency(consistencies[i]!, node)),
  ];
}

const SIGN_LIMIT = 'bare crypto.sign, Ed25519';
const VERIFY_LIMIT = 'bare crypto.verify, Ed25519';
const SUBTLE_VERIFY_LIMIT = 'bare subtle.verify, Ed25519';
const SIGN = 'sign a checkpoint, and check the answer';
const VERIFY = 'verify a checkpoint';

async function timeCheckpoints({ frontiers }: Grown, quick: boolean): Promise<Section> {
  const frontier = frontiers.get(SIZES.at(-1)!)!;
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  const raw: Bytes = Uint8Array.from(Buffer.from((publicKey.export({ format: 'jwk' }) as { x: string }).x, 'base64url'));
  const signer: CheckpointSigner = { publicKey: raw, sign: (data) => new Uint8Array(signBytes(null, data, privateKey)) };
  const verifier = await checkpointVerifier(await verifierKey(ORIGIN, raw));
  const checkpoint = auditCheckpoint({
    origin: ORIGIN,
    size: frontier.size,
    root: await treeRoot(frontier, node),
    headMac: new Uint8Array(createHash('sha256').digest()),
  });
  const note = await signCheckpoint(checkpoint, signer);
  const text = Buffer.from(note.slice(0, note.lastIndexOf('\n\n') + 1));
  const signature = signBytes(null, text, privateKey);
  const { subtle } = globalThis.crypto;
  const imported = await subtle.importKey('raw', raw, 'Ed25519', false, ['verify']);
  const timings = await timeInTurn({
    operations: 20,
    rounds: quick ? 30 : 150,
    warmUpRounds: quick ? 20 : 60,
    budgetMs: quick ? 4_000 : 10_000,
    contestants: [
      {
        name: SIGN_LIMIT,
        run(operations) {
          for (let i = 0; i < operations; i += 1) signBytes(null, text, privateKey);
        },
      },
      {
        name: VERIFY_LIMIT,
        run(operations) {
          for (let i = 0; i < operations; i += 1) if (!verifyBytes(null, text, publicKey, signature)) throw new Error('A signature does not verify.');
        },
      },
      {
        name: SUBTLE_VERIFY_LIMIT,
        async run(operations) {
          for (let i = 0; i < operations; i += 1) if (!(await subtle.verify('Ed25519', imported, signature, text))) throw new Error('A signature does not verify.');
        },
      },
      {
        name: SIGN,
        async run(operations) {
          for (let i = 0; i < operations; i += 1) await signCheckpoint(checkpoint, signer);
        },
      },
      {
        name: VERIFY,
        async run(operations) {
          for (let i = 0; i < operations; i += 1) await verifyCheckpoint(note, [verifier]);
        },
      },
    ],
  });
  const over = (a: string, b: string): number => pairedMedian([timings.get(a)!, timings.get(b)!], (x, y) => x / y);
  return {
    title: 'A checkpoint of a tree',
    about: 'One signed note about a million entries; its size is that of the numbers in it, not of the tree. Signing is rare: once for as many entries as one likes.',
    unit: 'µs',
    rows: rowsOf(timings, { [SIGN_LIMIT]: 'limit', [VERIFY_LIMIT]: 'limit', [SUBTLE_VERIFY_LIMIT]: 'limit', [SIGN]: 'ours', [VERIFY]: 'ours' }),
    ratios: [{ name: 'bare subtle.verify / verify a checkpoint', value: over(SUBTLE_VERIFY_LIMIT, VERIFY), goal: null }],
  };
}
