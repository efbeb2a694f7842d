import { createHash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { memorySubtrees, type MemorySubtrees } from '../src/memory.ts';
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
} from '../src/merkle.ts';
import { webCryptoPrimitives } from '../src/primitives.ts';
import type { Bytes, SubtreePlace, SubtreeReader } from '../src/seams.ts';
import { sumdbJudge } from './sumdb-judge.ts';

interface RootVector {
  tcId: number;
  comment: string;
  size: number;
  root: string;
}
interface InclusionVector {
  tcId: number;
  comment: string;
  flags: string[];
  leaf: string;
  index: number;
  size: number;
  root: string;
  proof: string[];
  result: 'valid' | 'invalid';
}
interface ConsistencyVector {
  tcId: number;
  comment: string;
  flags: string[];
  oldSize: number;
  oldRoot: string;
  newSize: number;
  newRoot: string;
  proof: string[];
  result: 'valid' | 'invalid';
}
type Group =
  | { type: 'MerkleRoot'; leaves: string[]; tests: RootVector[] }
  | { type: 'MerkleInclusion'; tests: InclusionVector[] }
  | { type: 'MerkleConsistency'; tests: ConsistencyVector[] };
const vectors = JSON.parse(readFileSync(new URL('../../../vectors/merkle.json', import.meta.url), 'utf8')) as {
  numberOfTests: number;
  testGroups: Group[];
};
const rootGroups = vectors.testGroups.filter((group) => group.type === 'MerkleRoot');
const inclusions = vectors.testGroups.filter((group) => group.type === 'MerkleInclusion').flatMap(({ tests }) => tests);
const consistencies = vectors.testGroups.filter((group) => group.type === 'MerkleConsistency').flatMap(({ tests }) => tests);

const fromHex = (hex: string): Bytes => new Uint8Array(Buffer.from(hex, 'hex'));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const sha256 = (data: Uint8Array): Bytes => new Uint8Array(createHash('sha256').update(data).digest());
const sync = { sha256 };

// The definitions of RFC 6962 section 2.1, word for word and without a thought of cost.
const splitOf = (n: number): number => 2 ** Math.floor(Math.log2(n - 1));
function naiveRoot(d: readonly Uint8Array[]): Bytes {
  if (d.length === 0) return sha256(new Uint8Array());
  if (d.length === 1) return sha256(Buffer.concat([Buffer.of(0), d[0]!]));
  const k = splitOf(d.length);
  return sha256(Buffer.concat([Buffer.of(1), naiveRoot(d.slice(0, k)), naiveRoot(d.slice(k))]));
}
function naivePath(m: number, d: readonly Uint8Array[]): Bytes[] {
  if (d.length === 1) return [];
  const k = splitOf(d.length);
  return m < k ? [...naivePath(m, d.slice(0, k)), naiveRoot(d.slice(k))] : [...naivePath(m - k, d.slice(k)), naiveRoot(d.slice(0, k))];
}
function naiveSubproof(m: number, d: readonly Uint8Array[], b: boolean): Bytes[] {
  if (m === d.length) return b ? [] : [naiveRoot(d)];
  const k = splitOf(d.length);
  return m <= k
    ? [...naiveSubproof(m, d.slice(0, k), b), naiveRoot(d.slice(k))]
    : [...naiveSubproof(m - k, d.slice(k), false), naiveRoot(d.slice(0, k))];
}

async function grow(leaves: readonly Uint8Array[]): Promise<{ store: MemorySubtrees; frontier: TreeFrontier }> {
  const store = memorySubtrees();
  const { frontier, completed } = await appendLeaves(emptyTree(), leaves, sync);
  store.add(completed);
  return { store, frontier };
}

const someLeaves = fc.array(fc.uint8Array({ maxLength: 40 }), { minLength: 1, maxLength: 70 });
const invalid = { name: 'RejectedError', code: 'merkle_proof_invalid' };

describe('vectors', () => {
  test('are all there', () => {
    expect(vectors.testGroups.reduce((sum, { tests }) => sum + tests.length, 0)).toBe(vectors.numberOfTests);
  });

  describe.each([
    ['WebCrypto', webCryptoPrimitives()],
    ['synchronous', sync],
  ])('with %s primitives', (_, primitives) => {
    for (const { leaves, tests } of rootGroups) {
      test.each(tests)('$tcId root of $comment', async ({ size, root }) => {
        const { frontier } = await appendLeaves(emptyTree(), leaves.slice(0, size).map(fromHex), primitives);
        expect(toHex(await treeRoot(frontier, primitives))).toBe(root);
      });
    }

    test.each(inclusions)('$tcId $result: $comment', async (v) => {
      const claim = { ...v, bytes: fromHex(v.leaf), root: fromHex(v.root), proof: v.proof.map(fromHex) };
      if (v.result === 'valid') await verifyInclusion(claim, primitives);
      else await expect(verifyInclusion(claim, primitives)).rejects.toMatchObject(invalid);
    });

    test.each(consistencies)('$tcId $result: $comment', async (v) => {
      const claim = { ...v, oldRoot: fromHex(v.oldRoot), newRoot: fromHex(v.newRoot), proof: v.proof.map(fromHex) };
      if (v.result === 'valid') await verifyConsistency(claim, primitives);
      else await expect(verifyConsistency(claim, primitives)).rejects.toMatchObject(invalid);
    });
  });

  test('the valid proofs are those that are made here', async () => {
    for (const { leaves } of rootGroups) {
      const { store } = await grow(leaves.map(fromHex));
      const roots = new Map<string, number>();
      for (let size = 1; size <= leaves.length; size += 1) {
        roots.set(toHex(await treeRoot(await readFrontier(size, store), sync)), size);
      }
      for (const v of inclusions) {
        if (v.result !== 'valid' || roots.get(v.root) !== v.size) continue;
        expect((await inclusionProof(v.index, v.size, store, sync)).map(toHex)).toEqual(v.proof);
      }
      for (const v of consistencies) {
        if (v.result !== 'valid' || roots.get(v.newRoot) !== v.newSize) continue;
        expect((await consistencyProof(v.oldSize, v.newSize, store, sync)).map(toHex)).toEqual(v.proof);
      }
    }
  });
});

describe('a tree', () => {
  test('has the root and the proofs that the definitions give, at every size and for every leaf', async () => {
    const leaves = Array.from({ length: 66 }, (_, i) => new Uint8Array(randomBytes(i % 5)));
    const { store } = await grow(leaves);
    for (let size = 0; size <= leaves.length; size += 1) {
      const own = leaves.slice(0, size);
      const root = naiveRoot(own);
      expect(await treeRoot(await readFrontier(size, store), sync)).toEqual(root);
      for (let index = 0; index < size; index += 1) {
        const proof = await inclusionProof(index, size, store, sync);
        expect(proof).toEqual(naivePath(index, own));
        await verifyInclusion({ bytes: leaves[index]!, index, size, root, proof }, sync);
      }
      for (let oldSize = 1; oldSize <= size; oldSize += 1) {
        const proof = await consistencyProof(oldSize, size, store, sync);
        expect(proof).toEqual(naiveSubproof(oldSize, own, true));
        await verifyConsistency({ oldSize, oldRoot: naiveRoot(leaves.slice(0, oldSize)), newSize: size, newRoot: root, proof }, sync);
      }
    }
  });

  test('is the same however its leaves arrive, and goes on from a frontier that was read back', async () => {
    const property = fc.asyncProperty(someLeaves, fc.array(fc.nat(20), { maxLength: 8 }), async (leaves, cuts) => {
      const whole = await grow(leaves);
      const store = memorySubtrees();
      let frontier = emptyTree();
      for (const cut of [...cuts, leaves.length]) {
        const before = structuredClone(frontier);
        const grown = await appendLeaves(frontier, leaves.slice(frontier.size, frontier.size + cut), webCryptoPrimitives());
        expect(frontier).toEqual(before);
        store.add(grown.completed);
        frontier = await readFrontier(grown.frontier.size, store);
        expect(frontier).toEqual(grown.frontier);
      }
      expect(frontier).toEqual(whole.frontier);
      expect(await treeRoot(frontier, sync)).toEqual(naiveRoot(leaves));
    });
    await fc.assert(property, { numRuns: 50 });
  });

  test('proves nothing of another leaf, index or tree', async () => {
    const property = fc.asyncProperty(someLeaves, fc.nat(), fc.nat(), fc.uint8Array({ maxLength: 80 }), async (leaves, a, b, other) => {
      const { store } = await grow(leaves);
      const size = leaves.length;
      const [index, otherIndex] = [a % size, b % size];
      const proof = await inclusionProof(index, size, store, sync);
      const claim = { bytes: leaves[index]!, index, size, root: naiveRoot(leaves), proof };
      for (const wrong of [{ bytes: other }, { index: otherIndex }, { root: naiveRoot([...leaves, other]) }]) {
        const forged = { ...claim, ...wrong };
        const isTrue = toHex(forged.root) === toHex(claim.root) && toHex(leaves[forged.index]!) === toHex(forged.bytes);
        // What is true may be shown, by whichever proof: equal leaves beside each other have equal ones.
        if (isTrue) continue;
        await expect(verifyInclusion(forged, sync)).rejects.toMatchObject(invalid);
      }
    });
    await fc.assert(property, { numRuns: 200 });
  });

  test('is not shown to continue one that it changed', async () => {
    const property = fc.asyncProperty(someLeaves, fc.nat(), fc.nat(), async (leaves, a, b) => {
      const size = leaves.length;
      const oldSize = 1 + (a % size);
      const changedAt = b % oldSize;
      const changed = leaves.with(changedAt, Uint8Array.of(...leaves[changedAt]!, 1));
      const claim = { oldSize, oldRoot: naiveRoot(leaves.slice(0, oldSize)), newSize: size, newRoot: naiveRoot(changed) };
      for (const tree of [leaves, changed]) {
        const proof = await consistencyProof(oldSize, size, (await grow(tree)).store, sync);
        await expect(verifyConsistency({ ...claim, proof }, sync)).rejects.toMatchObject(invalid);
      }
    });
    await fc.assert(property, { numRuns: 200 });
  });

  test('an answer at once is not awaited for each leaf', async () => {
    const progress = { done: false };
    let turns = 0;
    const leaves = Array.from({ length: 1000 }, (_, i) => Uint8Array.of(i & 255));
    void appendLeaves(emptyTree(), leaves, sync).then(() => (progress.done = true));
    for (; !progress.done && turns < 100; turns += 1) await Promise.resolve();
    expect(turns).toBeLessThan(20);
  });

  test('rubbish in place of a proof is refused', async () => {
    const root = naiveRoot([Uint8Array.of(1)]);
    const claim = { bytes: Uint8Array.of(1), index: 0, size: 1, root };
    const trees = { oldSize: 1, oldRoot: root, newSize: 1, newRoot: root };
    await verifyInclusion({ ...claim, proof: [] }, sync);
    for (const proof of [null, 'x', {}, [null], ['x'.repeat(32)], [new Uint8Array(31)], new Array(55).fill(root)]) {
      await expect(verifyInclusion({ ...claim, proof: proof as Bytes[] }, sync)).rejects.toMatchObject(invalid);
      await expect(verifyConsistency({ ...trees, proof: proof as Bytes[] }, sync)).rejects.toMatchObject(invalid);
    }
    for (const wrong of [{ index: -1 }, { index: 0.5 }, { index: 2 ** 53, size: 2 ** 53 + 2 }, { size: Number.NaN }]) {
      await expect(verifyInclusion({ ...claim, ...wrong, proof: [] }, sync)).rejects.toMatchObject(invalid);
    }
    for (const wrong of [{ oldSize: -1 }, { oldSize: 0.5 }, { newSize: Number.NaN }, { newSize: 2 ** 53 }]) {
      await expect(verifyConsistency({ ...trees, ...wrong, proof: [] }, sync)).rejects.toMatchObject(invalid);
    }
  });

  test('refuses sizes and frontiers that no tree has', async () => {
    const { store, frontier } = await grow([Uint8Array.of(1), Uint8Array.of(2), Uint8Array.of(3)]);
    const usage = { name: 'UsageError', code: 'invalid_option' };
    for (const size of [-1, 0.5, 2 ** 53, Number.NaN]) {
      await expect(readFrontier(size, store)).rejects.toMatchObject(usage);
      await expect(inclusionProof(0, size, store, sync)).rejects.toMatchObject(usage);
      await expect(consistencyProof(0, size, store, sync)).rejects.toMatchObject(usage);
      await expect(appendLeaves({ ...frontier, size }, [], sync)).rejects.toMatchObject(usage);
    }
    await expect(inclusionProof(3, 3, store, sync)).rejects.toMatchObject(usage);
    await expect(inclusionProof(0, 0, store, sync)).rejects.toMatchObject(usage);
    await expect(consistencyProof(3, 2, store, sync)).rejects.toMatchObject(usage);
    await expect(appendLeaves({ ...frontier, size: 4 }, [], sync)).rejects.toMatchObject(usage);
  });

  test('a store that lacks a hash, or answers with something else, is an outage', async () => {
    const { store } = await grow(Array.from({ length: 5 }, () => Uint8Array.of(1)));
    const outage = { name: 'UnavailableError', seam: 'subtree_reader' };
    await expect(inclusionProof(0, 6, store, sync)).rejects.toMatchObject(outage);
    for (const answer of [[], [null], [new Uint8Array(31)], null]) {
      const broken: SubtreeReader = { read: () => answer as Bytes[] };
      await expect(inclusionProof(0, 2, broken, sync)).rejects.toMatchObject(outage);
      await expect(consistencyProof(1, 2, broken, sync)).rejects.toMatchObject(outage);
      await expect(readFrontier(2, broken)).rejects.toMatchObject(outage);
    }
  });
});

describe('a tree of a million entries, and one of 2^53 - 1', () => {
  // All leaves alike, so that a subtree's hash depends on its level only: the tree need not be built.
  const leaf = Uint8Array.of(7);
  const levels: Bytes[] = [sha256(Buffer.concat([Buffer.of(0), leaf]))];
  for (let level = 1; level <= 53; level += 1) levels.push(sha256(Buffer.concat([Buffer.of(1), levels[level - 1]!, levels[level - 1]!])));

  test.each([10 ** 3, 10 ** 5, 10 ** 6, 2 ** 53 - 1])('of %i: one read of at most twice the height for a proof, which verifies', async (size) => {
    const height = Math.ceil(Math.log2(size));
    let reads: SubtreePlace[][] = [];
    const reader: SubtreeReader = {
      read: (places) => {
        reads.push([...places]);
        for (const { level, index } of places) expect((index + 1) * 2 ** level).toBeLessThanOrEqual(size);
        return places.map(({ level }) => levels[level]!);
      },
    };
    const root = await treeRoot(await readFrontier(size, reader), sync);
    for (const index of [0, 1, Math.floor(size / 3), size - 2, size - 1]) {
      reads = [];
      const proof = await inclusionProof(index, size, reader, sync);
      expect(reads.length).toBe(1);
      expect(reads[0]!.length).toBeLessThanOrEqual(2 * height);
      expect(proof.length).toBeLessThanOrEqual(height);
      await verifyInclusion({ bytes: leaf, index, size, root, proof }, sync);

      reads = [];
      const oldSize = index + 1;
      const oldRoot = await treeRoot(await readFrontier(oldSize, reader), sync);
      reads = [];
      const consistency = await consistencyProof(oldSize, size, reader, sync);
      expect(reads.length).toBeLessThanOrEqual(1);
      expect(reads.flat().length).toBeLessThanOrEqual(2 * height);
      await verifyConsistency({ oldSize, oldRoot, newSize: size, newRoot: root, proof: consistency }, sync);
    }
  });

  test('a proof from a million takes less than five milliseconds', async () => {
    const reader: SubtreeReader = { read: (places) => places.map(({ level }) => levels[level]!) };
    const times: number[] = [];
    for (let i = 0; i < 50; i += 1) {
      const start = performance.now();
      await inclusionProof(i * 19_999, 10 ** 6, reader, sync);
      await consistencyProof(i * 19_999 + 1, 10 ** 6, reader, sync);
      times.push(performance.now() - start);
    }
    expect(times.toSorted((a, b) => a - b)[25]).toBeLessThan(5);
  });
});

const judge = sumdbJudge();
if (judge !== null) {
  describe('golang.org/x/mod/sumdb/tlog', () => {
    test('says of every vector what is recorded', () => {
      const asked = [
        ...inclusions.map((v) => ({ ...v, ask: 'inclusion' })),
        ...consistencies.filter(({ flags }) => !flags.includes('Empty')).map((v) => ({ ...v, ask: 'consistency' })),
      ];
      const answers = judge(asked);
      for (const [i, v] of asked.entries()) expect([v.tcId, answers[i]!.ok ? 'valid' : 'invalid']).toEqual([v.tcId, v.result]);
      const roots = rootGroups.flatMap(({ leaves, tests }) => tests.filter(({ size }) => size > 0).map((v) => ({ ...v, leaves, ask: 'root' })));
      for (const [i, { root }] of judge(roots).entries()) expect(root).toBe(roots[i]!.root);
    });

    test('gives the same proofs, and accepts ours, for random trees', async () => {
      const questions: object[] = [];
      const expected: string[][] = [];
      for (let round = 0; round < 40; round += 1) {
        const leaves = Array.from({ length: 1 + (randomBytes(1)[0]! % 130) }, () => new Uint8Array(randomBytes(20)));
        const { store, frontier } = await grow(leaves);
        const { size } = frontier;
        const root = toHex(await treeRoot(frontier, sync));
        const index = randomBytes(1)[0]! % size;
        const oldSize = 1 + (randomBytes(1)[0]! % size);
        const oldRoot = toHex(await treeRoot(await readFrontier(oldSize, store), sync));
        const proof = (await inclusionProof(index, size, store, sync)).map(toHex);
        const consistency = (await consistencyProof(oldSize, size, store, sync)).map(toHex);
        const hexLeaves = leaves.map(toHex);
        questions.push(
          { ask: 'inclusion', leaf: hexLeaves[index], index, size, root, proof },
          { ask: 'prove-inclusion', leaves: hexLeaves, index, size },
          { ask: 'consistency', oldSize, oldRoot, newSize: size, newRoot: root, proof: consistency },
          { ask: 'prove-consistency', leaves: hexLeaves, oldSize, newSize: size },
        );
        expected.push(proof, proof, consistency, consistency);
      }
      for (const [i, answer] of judge(questions).entries()) {
        expect(answer.ok).toBe(true);
        if (i % 2 === 1) expect(answer.proof ?? []).toEqual(expected[i]);
      }
    });
  });
}
