/**
 * What signed checkpoints show of the records: where they stop being those that were signed for, and by which hand.
 */
import { equalBytes } from '@keyguard/core/bytes';
import { headMacOf, type Checkpoint } from '@keyguard/core/checkpoint';
import { finding, type Finding } from './attacks.ts';
import type { Scan } from './scan.ts';
import { ranges } from './structure.ts';

export interface History {
  readonly findings: readonly Finding[];
  /** How many entries are, in this order, those that a checkpoint was signed for. */
  readonly provenSize: number;
  /** Whether any checkpoint agrees with the records, be it that of an empty log. */
  readonly isProven: boolean;
  /** From where on each record stands at another place than it stood; `null` where that is not so. */
  readonly shiftedFrom: number | null;
  /** Nothing can be said of the end of a log that is another one from some place on. */
  readonly isAnother: boolean;
}

function contradiction(checkpoints: readonly Checkpoint[]): Finding | null {
  for (const [i, later] of checkpoints.entries()) {
    const earlier = checkpoints[i - 1];
    if (earlier?.size === later.size && !equalBytes(earlier.root, later.root)) {
      const from = checkpoints.findLast(({ size }) => size < later.size)?.size ?? 0;
      return finding('fork', from, later.size, false, `Two checkpoints of ${later.size} entries are signed, with different roots.`);
    }
  }
  return null;
}

/** Why the first `size` entries are not those of `checkpoint`, though those before `from` are. */
function explain(scanned: Scan, checkpoint: Checkpoint, from: number, hasKeys: boolean): Finding[] {
  const { macs, forged } = scanned;
  const { size } = checkpoint;
  const wrong = ranges([...forged].filter((place) => place >= from && place < size));
  const first = wrong[0]?.from ?? null;
  const headMac = headMacOf(checkpoint);
  const at = headMac === null || size === 0 ? -1 : macs.findIndex((mac) => equalBytes(mac, headMac));
  const shift = at === -1 ? 0 : at - (size - 1);
  if (shift > 0) {
    const because = `What was the last of ${size} records stands ${shift} later now.`;
    return [first === null ? finding('insert', from, size + shift, false, because) : finding('insert', first, first + shift, true, because)];
  }
  if (shift < 0) {
    const because = `What was the last of ${size} records stands ${-shift} earlier now.`;
    return [first === null ? finding('drop-middle', from, size, false, because) : finding('drop-middle', first, first - shift, true, because)];
  }
  if (wrong.length > 0) {
    return wrong.map((range) => finding('edit', range.from, range.to, true, 'The root is not the signed one, and the MAC is wrong.'));
  }
  if (hasKeys && scanned.missingKeys.size === 0) {
    return [finding('rewrite-by-key-holder', from, size, false, 'The root is not the signed one, and yet every MAC is right.')];
  }
  if (at === -1 && headMac !== null) {
    const because = 'Neither the entries nor the MACs are those that were signed for. (Without the MAC key: or someone put noise in place of the MACs.)';
    return [finding('rewrite-by-key-holder', from, size, false, because)];
  }
  return [finding('edit', from, size, false, 'The root is not the signed one, and the MAC of the last record is.')];
}

/**
 * @param checkpoints verified, of this origin
 * @param soundUpTo up to which place the numbers are as they must be: only so far can roots be compared
 */
export function readHistory(scanned: Scan, checkpoints: readonly Checkpoint[], soundUpTo: number, hasKeys: boolean): History {
  const sorted = checkpoints.toSorted((a, b) => a.size - b.size);
  const matches = (checkpoint: Checkpoint): boolean => {
    const root = scanned.roots.get(checkpoint.size);
    return root !== undefined && equalBytes(root, checkpoint.root);
  };
  const comparable = sorted.filter(({ size }) => size <= soundUpTo);
  const firstWrong = comparable.find((checkpoint) => !matches(checkpoint));
  const proven = comparable.filter((checkpoint) => matches(checkpoint) && checkpoint.size <= (firstWrong?.size ?? Infinity));
  const provenSize = proven.at(-1)?.size ?? 0;
  const common = { provenSize, isProven: proven.length > 0 };
  const two = contradiction(sorted);
  if (two !== null) return { findings: [two], ...common, shiftedFrom: null, isAnother: true };
  if (firstWrong === undefined) return { findings: [], ...common, shiftedFrom: null, isAnother: false };
  const later = comparable.findLast((checkpoint) => checkpoint.size > firstWrong.size && matches(checkpoint));
  if (later !== undefined) {
    const because = `The checkpoint of ${firstWrong.size} entries and that of ${later.size} are both signed, and the second does not continue the first.`;
    return { findings: [finding('fork', provenSize, firstWrong.size, false, because)], ...common, shiftedFrom: null, isAnother: true };
  }
  const findings = explain(scanned, firstWrong, provenSize, hasKeys);
  const shift = findings.find(({ attack }) => attack === 'insert' || attack === 'drop-middle');
  return { findings, ...common, shiftedFrom: shift?.range?.from ?? null, isAnother: findings.some(({ attack }) => attack === 'rewrite-by-key-holder') };
}
