/** `merkle`: proofs, against the definitions of RFC 6962 section 2.1, computed over all leaves each time. */
import { createHash } from 'node:crypto';
import { verifyConsistency, verifyInclusion, type Sha256 } from '@keyguard/core/merkle';
import type { Bytes } from '@keyguard/core/seams';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateList } from '../mutate.ts';
import { agree, outcomeOfLater, type Parser } from '../parser.ts';

const REFUSED = 'RejectedError merkle_proof_invalid';
const LEAVES: readonly Bytes[] = Array.from({ length: 40 }, (_, i) => new Uint8Array(Buffer.from(i === 3 ? '' : `entry ${i}`)));

const sha256 = (...parts: readonly Uint8Array[]): Bytes => {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return new Uint8Array(hash.digest());
};
const primitives: Sha256 = { sha256: (data) => sha256(data) };

/** Where the leaves of a tree are divided: the largest power of two below their number. */
function middleOf(n: number): number {
  let k = 1;
  while (k * 2 < n) k *= 2;
  return k;
}

/** MTH of RFC 6962 section 2.1. */
function rootOf(leaves: readonly Bytes[]): Bytes {
  if (leaves.length === 0) return sha256();
  if (leaves.length === 1) return sha256(Uint8Array.of(0), leaves[0]!);
  const k = middleOf(leaves.length);
  return sha256(Uint8Array.of(1), rootOf(leaves.slice(0, k)), rootOf(leaves.slice(k)));
}

/** PATH of section 2.1.1. */
function pathOf(m: number, leaves: readonly Bytes[]): Bytes[] {
  if (leaves.length <= 1) return [];
  const k = middleOf(leaves.length);
  return m < k ? [...pathOf(m, leaves.slice(0, k)), rootOf(leaves.slice(k))] : [...pathOf(m - k, leaves.slice(k)), rootOf(leaves.slice(0, k))];
}

/** SUBPROOF of section 2.1.2. */
function subproof(m: number, leaves: readonly Bytes[], isWhole: boolean): Bytes[] {
  if (m === leaves.length) return isWhole ? [] : [rootOf(leaves)];
  const k = middleOf(leaves.length);
  return m <= k ? [...subproof(m, leaves.slice(0, k), isWhole), rootOf(leaves.slice(k))] : [...subproof(m - k, leaves.slice(k), false), rootOf(leaves.slice(0, k))];
}

const ROOTS = Array.from({ length: LEAVES.length + 1 }, (_, size) => rootOf(LEAVES.slice(0, size)));

function memoised(make: (a: number, b: number) => Bytes[]): (a: number, b: number) => Bytes[] {
  const known = new Map<number, Bytes[]>();
  return (a, b) => {
    const place = a * 1000 + b;
    const proof = known.get(place) ?? make(a, b);
    known.set(place, proof);
    return proof;
  };
}
const inclusion = memoised((index, size) => pathOf(index, LEAVES.slice(0, size)));
const consistency = memoised((oldSize, newSize) => (oldSize === 0 ? [] : subproof(oldSize, LEAVES.slice(0, newSize), true)));

const isEqual = (a: readonly Uint8Array[], b: readonly Uint8Array[]): boolean =>
  a.length === b.length && a.every((hash, i) => hash instanceof Uint8Array && Buffer.compare(hash, b[i]!) === 0);

function mutateProof(random: Generator, proof: readonly Bytes[]): Bytes[] {
  let made = [...proof];
  for (let left = random.pick([0, 1, 1, 2]); left > 0; left -= 1) made = mutateList(random, made, (hash) => (hash instanceof Uint8Array ? mutateBytes(random, hash, ROOTS) : hash), () => random.pick([...ROOTS, new Uint8Array(31), null as unknown as Bytes, 'x' as unknown as Bytes]));
  if (random.oneIn(200)) made.push(...Array.from({ length: 60 }, () => ROOTS[1]!));
  return random.oneIn(500) ? (random.pick<unknown>([null, {}, 'proof', 5]) as Bytes[]) : made;
}

const near = (random: Generator, n: number): number => (random.oneIn(3) ? random.pick([n + 1, n - 1, 0, 1, -1, 0.5, 2 ** 53, Number.NaN, random.below(45)]) : n);

export const MERKLE: readonly Parser[] = [
  {
    name: 'merkle.verifyInclusion',
    async try(random) {
      const size = 1 + random.below(LEAVES.length);
      const own = random.below(size);
      const index = near(random, own);
      const bytes = random.oneIn(3) ? mutateBytes(random, LEAVES[own]!, LEAVES) : LEAVES[own]!;
      const proof = random.oneIn(3) ? inclusion(own, size) : mutateProof(random, inclusion(own, size));
      const outcome = await outcomeOfLater(() => verifyInclusion({ bytes, index, size, root: ROOTS[size]!, proof }, primitives), REFUSED);
      const isLeaf = Number.isInteger(index) && index >= 0 && index < size && Buffer.compare(bytes, LEAVES[index]!) === 0;
      return agree(outcome.accepted, isLeaf && Array.isArray(proof) && isEqual(proof, inclusion(index, size)));
    },
  },
  {
    name: 'merkle.verifyConsistency',
    async try(random) {
      const newSize = random.below(LEAVES.length + 1);
      const oldSize = random.below(newSize + 1);
      // A history that forked: the older tree of another log.
      const isForked = random.oneIn(4);
      const oldRoot = isForked ? sha256(ROOTS[oldSize]!) : ROOTS[oldSize]!;
      const proof = random.oneIn(3) ? consistency(oldSize, newSize) : mutateProof(random, consistency(oldSize, newSize));
      const outcome = await outcomeOfLater(() => verifyConsistency({ oldSize, oldRoot, newSize, newRoot: ROOTS[newSize]!, proof }, primitives), REFUSED);
      return agree(outcome.accepted, !isForked && Array.isArray(proof) && isEqual(proof, consistency(oldSize, newSize)));
    },
  },
];
