/**
 * The hashes of a Merkle tree, and the verification of proofs from it: all that an auditor needs who holds no tree.
 *
 * @see RFC 6962 section 2.1, RFC 9162 section 2.1
 */
import { concat, equalBytes } from './bytes.ts';
import { RejectedError } from './errors.ts';
import type { Bytes, MaybePromise, Primitives } from './seams.ts';

/** The hash function; it may answer at once or later. */
export type Sha256 = Pick<Primitives, 'sha256'>;

export const HASH_BYTES = 32;
// No tree of 2^53 leaves is higher, and no proof of either kind longer than the height and one.
const MAX_PROOF_HASHES = 54;
const LEAF: Bytes = /* @__PURE__ */ Uint8Array.of(0);
const NODE: Bytes = /* @__PURE__ */ Uint8Array.of(1);

/** The hash of a leaf: SHA-256(0x00 ‖ bytes). */
export function leafHash(bytes: Uint8Array, primitives: Sha256): MaybePromise<Bytes> {
  return primitives.sha256(concat(LEAF, bytes));
}

/** The hash of a node: SHA-256(0x01 ‖ left ‖ right). */
export function nodeHash(left: Bytes, right: Bytes, primitives: Sha256): MaybePromise<Bytes> {
  return primitives.sha256(concat(NODE, left, right));
}

/** The hash of a tree without leaves: SHA-256 of nothing. */
export function emptyRoot(primitives: Sha256): MaybePromise<Bytes> {
  return primitives.sha256(new Uint8Array());
}

function invalid(detail: string): RejectedError {
  return new RejectedError('merkle_proof_invalid', 'A proof does not verify.', { detail });
}

function checkProof(proof: readonly Bytes[]): void {
  if (!Array.isArray(proof) || proof.length > MAX_PROOF_HASHES) throw invalid('not a proof');
  for (const hash of proof as readonly unknown[]) {
    if (!(hash instanceof Uint8Array) || hash.length !== HASH_BYTES) throw invalid('not a proof');
  }
}

const isSize = (size: number): boolean => Number.isSafeInteger(size) && size >= 0;
const half = (n: number): number => Math.floor(n / 2);

/** That an entry stands at a place in a tree. */
export interface InclusionClaim {
  /** The bytes of the entry. Untrusted. */
  readonly bytes: Uint8Array;
  /** Untrusted. */
  readonly index: number;
  /** Of the tree that `root` is of. Trusted: from a verified checkpoint. */
  readonly size: number;
  /** Trusted: from a verified checkpoint. */
  readonly root: Uint8Array;
  /** Untrusted. */
  readonly proof: readonly Bytes[];
}

/**
 * Resolves if and only if the tree with that size and root has `bytes` as its leaf `index`.
 * @throws RejectedError `merkle_proof_invalid`
 * @see RFC 9162 section 2.1.3.2
 */
export async function verifyInclusion(claim: InclusionClaim, primitives: Sha256): Promise<void> {
  const { bytes, index, size, root, proof } = claim;
  checkProof(proof);
  if (!isSize(index) || !isSize(size) || index >= size) throw invalid('the tree has no such leaf');
  let [fn, sn] = [index, size - 1];
  let hash = await leafHash(bytes, primitives);
  for (const sibling of proof) {
    if (sn === 0) throw invalid('the proof is too long');
    if (fn % 2 === 1 || fn === sn) {
      hash = await nodeHash(sibling, hash, primitives);
      // On the right edge of the tree a node without a sibling moves up as it is.
      for (; fn % 2 === 0 && fn !== 0; sn = half(sn)) fn = half(fn);
    } else {
      hash = await nodeHash(hash, sibling, primitives);
    }
    [fn, sn] = [half(fn), half(sn)];
  }
  if (sn !== 0) throw invalid('the proof is too short');
  if (!equalBytes(hash, root)) throw invalid('the root is another');
}

/** That one tree is the beginning of another. */
export interface ConsistencyClaim {
  /** Of the older tree. Trusted: from a verified checkpoint. */
  readonly oldSize: number;
  readonly oldRoot: Uint8Array;
  /** Of the newer tree. Trusted: from a verified checkpoint. */
  readonly newSize: number;
  readonly newRoot: Uint8Array;
  /** Untrusted. */
  readonly proof: readonly Bytes[];
}

/**
 * Resolves if and only if the newer tree begins with all leaves of the older one, in their order.
 * @throws RejectedError `merkle_proof_invalid`
 * @see RFC 9162 section 2.1.4.2
 */
export async function verifyConsistency(claim: ConsistencyClaim, primitives: Sha256): Promise<void> {
  const { oldSize, oldRoot, newSize, newRoot, proof } = claim;
  checkProof(proof);
  if (!isSize(oldSize) || !isSize(newSize) || oldSize > newSize) throw invalid('the newer tree is the smaller one');
  if (oldSize === 0 || oldSize === newSize) {
    if (proof.length > 0) throw invalid('the proof is too long');
    // Everything begins with nothing: then the older root must be that of nothing.
    const expected = oldSize === 0 ? await emptyRoot(primitives) : newRoot;
    if (!equalBytes(oldRoot, expected)) throw invalid('the older root is another');
    if (newSize === 0 && !equalBytes(newRoot, expected)) throw invalid('the newer root is another');
    return;
  }
  let [fn, sn] = [oldSize - 1, newSize - 1];
  for (; fn % 2 === 1; sn = half(sn)) fn = half(fn);
  // Where the older tree is complete, its own root is where the proof begins.
  const path = fn === 0 ? [Uint8Array.from(oldRoot), ...proof] : proof;
  const [first, ...rest] = path;
  if (first === undefined) throw invalid('the proof is too short');
  let [oldHash, newHash] = [first, first];
  for (const sibling of rest) {
    if (sn === 0) throw invalid('the proof is too long');
    if (fn % 2 === 1 || fn === sn) {
      oldHash = await nodeHash(sibling, oldHash, primitives);
      newHash = await nodeHash(sibling, newHash, primitives);
      for (; fn % 2 === 0 && fn !== 0; sn = half(sn)) fn = half(fn);
    } else {
      newHash = await nodeHash(newHash, sibling, primitives);
    }
    [fn, sn] = [half(fn), half(sn)];
  }
  if (sn !== 0) throw invalid('the proof is too short');
  if (!equalBytes(oldHash, oldRoot)) throw invalid('the older root is another');
  if (!equalBytes(newHash, newRoot)) throw invalid('the newer root is another');
}
