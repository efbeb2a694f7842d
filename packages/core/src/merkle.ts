/**
 * The Merkle tree over a chain's entries, as RFC 6962 has it: a tree that grows, its root, and proofs. A leaf is the bytes of
 * an entry, and its index the entry's seq.
 *
 * To grow and to give its root, a tree needs its frontier only: at most 53 hashes. To give proofs it needs the hashes of all
 * complete subtrees, two for each entry, which never change once they are there; a proof reads about as many as the tree is high.
 * This room stores nothing and knows of no signature: a root is worth what vouches for it.
 *
 * @see RFC 6962 section 2.1, RFC 9162 section 2.1
 */
import { UnavailableError, UsageError } from './errors.ts';
import { emptyRoot, HASH_BYTES, leafHash, nodeHash, type Sha256 } from './merkle-proof.ts';
import type { Bytes, Subtree, SubtreePlace, SubtreeReader } from './seams.ts';

export { leafHash, nodeHash, verifyConsistency, verifyInclusion } from './merkle-proof.ts';
export type { ConsistencyClaim, InclusionClaim, Sha256 } from './merkle-proof.ts';

/** All that a tree needs in order to grow: the roots of the complete subtrees that it consists of, the largest first. */
export interface TreeFrontier {
  /** How many leaves the tree has, from 0 to 2⁵³ − 1. */
  readonly size: number;
  /** One hash for each bit that is set in `size`. */
  readonly roots: readonly Bytes[];
}

/** The frontier of a tree without leaves. */
export function emptyTree(): TreeFrontier {
  return { size: 0, roots: [] };
}

interface Range {
  readonly lo: number;
  readonly hi: number;
}

interface Power {
  readonly leaves: number;
  readonly level: number;
}

/** The largest power of two that is not above `limit`. */
function largestPower(limit: number): Power {
  let leaves = 1;
  let level = 0;
  for (; leaves * 2 <= limit; level += 1) leaves *= 2;
  return { leaves, level };
}

/** The complete subtrees of which the leaves from `lo` to before `hi` consist, from left to right. */
function completeSubtrees({ lo, hi }: Range): SubtreePlace[] {
  const places: SubtreePlace[] = [];
  for (let at = lo; at < hi; ) {
    const { leaves, level } = largestPower(hi - at);
    places.push({ level, index: at / leaves });
    at += leaves;
  }
  return places;
}

function checkSize(size: number, name: string): void {
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new UsageError('invalid_option', `${name} must be an integer from 0 to 2^53 - 1.`);
  }
}

/** The root over complete subtrees that stand side by side, the largest first. */
async function join(roots: readonly Bytes[], primitives: Sha256): Promise<Bytes> {
  let root = roots.at(-1)!;
  for (let i = roots.length - 2; i >= 0; i -= 1) root = await nodeHash(roots[i]!, root, primitives);
  return root;
}

/** The hash of the whole tree; of a tree without leaves, SHA-256 of nothing. */
export async function treeRoot(frontier: TreeFrontier, primitives: Sha256): Promise<Bytes> {
  return frontier.roots.length === 0 ? emptyRoot(primitives) : join(frontier.roots, primitives);
}

/** A tree after leaves were appended, and what to store of it. */
export interface GrownTree {
  readonly frontier: TreeFrontier;
  /** Every subtree that the new leaves completed, themselves included: what a {@link SubtreeReader} must be able to answer. */
  readonly completed: readonly Subtree[];
}

/**
 * The tree of `frontier` with `leaves` appended. The frontier that was given stays as it was.
 *
 * Takes two hashes for each leaf in the mean, and, where `primitives` answer at once, no turn of the queue for any of them.
 * @param frontier trusted
 * @param leaves the bytes of entries, in order
 * @throws UsageError `invalid_option` for a frontier whose hashes do not fit its size
 */
export async function appendLeaves(
  frontier: TreeFrontier,
  leaves: Iterable<Uint8Array>,
  primitives: Sha256,
): Promise<GrownTree> {
  let { size } = frontier;
  checkSize(size, 'size');
  if (frontier.roots.length !== completeSubtrees({ lo: 0, hi: size }).length) {
    throw new UsageError('invalid_option', 'A frontier has one hash for each bit that is set in its size.');
  }
  const roots = [...frontier.roots];
  const completed: Subtree[] = [];
  for (const bytes of leaves) {
    checkSize(size + 1, 'size');
    let answer = leafHash(bytes, primitives);
    let hash = answer instanceof Promise ? await answer : answer;
    let [level, index] = [0, size];
    completed.push({ level, index, hash });
    // A subtree with an odd number is the right half of one that is now complete.
    for (; index % 2 === 1; index = (index - 1) / 2) {
      answer = nodeHash(roots.pop()!, hash, primitives);
      hash = answer instanceof Promise ? await answer : answer;
      level += 1;
      completed.push({ level, index: (index - 1) / 2, hash });
    }
    roots.push(hash);
    size += 1;
  }
  return { frontier: { size, roots }, completed };
}

async function readAll(places: readonly SubtreePlace[], reader: SubtreeReader): Promise<readonly Bytes[]> {
  if (places.length === 0) return [];
  const hashes: unknown = await reader.read(places);
  const isHash = (hash: unknown): boolean => hash instanceof Uint8Array && hash.length === HASH_BYTES;
  if (!Array.isArray(hashes) || hashes.length !== places.length || !hashes.every(isHash)) {
    throw new UnavailableError('subtree_reader', 'The store of the tree did not answer with the hashes asked for.');
  }
  return hashes as Bytes[];
}

/**
 * The frontier of the tree over the first `size` leaves, out of stored hashes, in one read.
 * @throws UnavailableError where `reader` does not answer
 */
export async function readFrontier(size: number, reader: SubtreeReader): Promise<TreeFrontier> {
  checkSize(size, 'size');
  return { size, roots: await readAll(completeSubtrees({ lo: 0, hi: size }), reader) };
}

async function rootsOf(ranges: readonly Range[], reader: SubtreeReader, primitives: Sha256): Promise<Bytes[]> {
  const parts = ranges.map(completeSubtrees);
  const hashes = await readAll(parts.flat(), reader);
  const roots: Bytes[] = [];
  let at = 0;
  for (const { length } of parts) {
    roots.push(await join(hashes.slice(at, at + length), primitives));
    at += length;
  }
  return roots;
}

/**
 * The proof that the leaf `index` is in the tree over the first `size` leaves: a hash for each level, from the leaf upwards.
 * Reads once, and no more hashes than twice the height of the tree.
 * @param reader MUST know the tree of that size; it may know a larger one
 * @throws UsageError `invalid_option` for an index that is not in a tree of that size
 * @throws UnavailableError where `reader` does not answer
 */
export async function inclusionProof(
  index: number,
  size: number,
  reader: SubtreeReader,
  primitives: Sha256,
): Promise<Bytes[]> {
  checkSize(index, 'index');
  checkSize(size, 'size');
  if (index >= size) throw new UsageError('invalid_option', 'index must be less than size.');
  const ranges: Range[] = [];
  let [lo, hi] = [0, size];
  while (hi - lo > 1) {
    const middle = lo + largestPower(hi - lo - 1).leaves;
    if (index < middle) {
      ranges.push({ lo: middle, hi });
      hi = middle;
    } else {
      ranges.push({ lo, hi: middle });
      lo = middle;
    }
  }
  return rootsOf(ranges.reverse(), reader, primitives);
}

/**
 * The proof that the tree over the first `oldSize` leaves is the beginning of the tree over the first `newSize`. Empty where
 * the sizes are equal, and where the older tree has no leaves.
 * @param reader MUST know the tree of `newSize`
 * @throws UsageError `invalid_option` where `oldSize` is more than `newSize`
 * @throws UnavailableError where `reader` does not answer
 */
export async function consistencyProof(
  oldSize: number,
  newSize: number,
  reader: SubtreeReader,
  primitives: Sha256,
): Promise<Bytes[]> {
  checkSize(oldSize, 'oldSize');
  checkSize(newSize, 'newSize');
  if (oldSize > newSize) throw new UsageError('invalid_option', 'oldSize must not be more than newSize.');
  if (oldSize === 0) return [];
  const ranges: Range[] = [];
  let [lo, hi] = [0, newSize];
  while (oldSize < hi) {
    const middle = lo + largestPower(hi - lo - 1).leaves;
    if (oldSize <= middle) {
      ranges.push({ lo: middle, hi });
      hi = middle;
    } else {
      ranges.push({ lo, hi: middle });
      lo = middle;
    }
  }
  // Where it begins at 0, what is left is the older tree itself, whose root the verifier has.
  if (lo > 0) ranges.push({ lo, hi });
  return rootsOf(ranges.reverse(), reader, primitives);
}
