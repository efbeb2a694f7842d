/**
 * What the numbers of the records show by themselves, without a checkpoint or a key: gaps, doubles, another order. An attacker
 * who renumbers and relinks everything gets past this room, and not past `history`.
 */
import { equalBytes } from '@keyguard/core/bytes';
import { finding, type Finding } from './attacks.ts';
import type { Scan } from './scan.ts';

export interface Structure {
  readonly findings: readonly Finding[];
  /** Up to this place, each record stands where it says that it stands. */
  readonly soundUpTo: number;
  /** One more than the highest number of an entry that is, or was, there. */
  readonly reach: number;
}

/** Joins numbers that follow each other to ranges. */
export function ranges(numbers: Iterable<number>): { from: number; to: number }[] {
  const joined: { from: number; to: number }[] = [];
  for (const n of [...numbers].toSorted((a, b) => a - b)) {
    const last = joined.at(-1);
    if (last?.to === n) last.to = n + 1;
    else joined.push({ from: n, to: n + 1 });
  }
  return joined;
}

interface Sorting {
  /** The place of each number. */
  readonly places: ReadonlyMap<number, number>;
  /** Places of records that bear no number of this log, an absurd one, or one that another record has. */
  readonly extras: readonly number[];
}

function sortOut({ inner, prevMacs, macs, forged }: Scan, expected: number): Sorting {
  const claims = new Map<number, number[]>();
  const extras: number[] = [];
  const limit = Math.max(inner.length, expected);
  let before = -1;
  for (const [place, seq] of inner.entries()) {
    // A number beyond all that is known of is believed only where the records count up to it.
    const isCredible = seq >= 0 && (seq < limit || seq === before + 1);
    before = isCredible ? seq : -1;
    if (!isCredible) extras.push(place);
    else claims.set(seq, [...(claims.get(seq) ?? []), place]);
  }
  // Of several records with one number, the one is right that the key acknowledges, or else the one that the next record follows.
  const isFollowed = (place: number, seq: number): boolean =>
    (claims.get(seq + 1) ?? []).some((next) => equalBytes(prevMacs[next]!, macs[place]!));
  const places = new Map<number, number>();
  for (const [seq, claimants] of claims) {
    const acknowledged = claimants.filter((place) => !forged.has(place));
    const right = acknowledged.find((place) => isFollowed(place, seq)) ?? acknowledged[0] ?? claimants[0]!;
    places.set(seq, right);
    extras.push(...claimants.filter((place) => place !== right));
  }
  return { places, extras };
}

/** @param expected how many entries there must be, by the checkpoints and by what the database says of itself */
export function readStructure(scanned: Scan, expected: number): Structure {
  const { outer, inner } = scanned;
  const { places, extras } = sortOut(scanned, expected);
  let reach = 0;
  for (const seq of places.keys()) reach = Math.max(reach, seq + 1);
  const missing = new Set<number>();
  for (let seq = 0; seq < reach; seq += 1) if (!places.has(seq)) missing.add(seq);

  const findings: Finding[] = [];
  for (const place of extras.toSorted((a, b) => a - b)) {
    const seq = outer[place]!;
    if (missing.delete(seq) || (seq === reach && seq < expected)) {
      reach = Math.max(reach, seq + 1);
      findings.push(finding('edit', seq, seq + 1, true, 'What stands there is no entry of this number and log.'));
    } else {
      findings.push(finding('insert', seq, seq + 1, true, 'A record stands there for which the numbers inside the entries leave no room.'));
    }
  }
  for (const { from, to } of ranges(missing)) {
    findings.push(finding('drop-middle', from, to, true, 'Entries after them are there, and these are not.'));
  }
  const kept = [...places].toSorted(([, a], [, b]) => a - b).map(([seq]) => seq);
  const sorted = kept.toSorted((a, b) => a - b);
  const moved = sorted.filter((seq, i) => kept[i] !== seq);
  if (moved.length > 0) {
    findings.push(finding('reorder', moved[0]!, moved.at(-1)! + 1, true, 'Each entry says which number it has, and they stand in another order.'));
  }
  if (findings.length === 0) {
    for (const { from, to } of ranges(inner.filter((seq, place) => outer[place] !== seq))) {
      findings.push(finding('edit', from, to, true, 'The number beside the entry is not the one inside it.'));
    }
  }
  const firstWrong = inner.findIndex((seq, place) => seq !== place || outer[place] !== place);
  return { findings, soundUpTo: firstWrong === -1 ? inner.length : firstWrong, reach };
}
