/**
 * Verifies the export of an audit log against checkpoints that were kept elsewhere, and names what was done to it.
 *
 * With the public key alone it proves that the entries are those that were signed for, or names the attack and the range that it
 * lies in; with the MAC keys it names the entry. It cannot see what was appended after the newest checkpoint and taken away
 * again, nor that a newer checkpoint was withheld from it.
 */
import { equalBytes } from '@keyguard/core/bytes';
import { checkpointVerifier, headMacOf, verifyCheckpoint, type Checkpoint, type CheckpointVerifier } from '@keyguard/core/checkpoint';
import { isRejected } from '@keyguard/core/errors';
import type { Sha256 } from '@keyguard/core/merkle';
import type { AuditMacKey } from '@keyguard/core/seams';
import { finding, type Finding } from './attacks.ts';
import { readExport, type ExportHeader } from './export.ts';
import { readHistory } from './history.ts';
import { scan, type Scan } from './scan.ts';
import { ranges, readStructure } from './structure.ts';

export interface NamedNote {
  /** Where it comes from, for the report. */
  readonly name: string;
  /** Untrusted. */
  readonly note: string;
}

export interface VerifyExportOptions {
  /** The lines of the export. Untrusted. Read once. */
  readonly lines: Iterable<string> | AsyncIterable<string>;
  readonly checkpoints: readonly NamedNote[];
  /** Trusted: known from elsewhere. After a restore, also that of the log before. */
  readonly verifierKeys: readonly string[];
  /** By key id; empty where the auditor has none. Trusted. */
  readonly macKeys: ReadonlyMap<string, AuditMacKey>;
  readonly primitives: Sha256;
}

export interface RestoreReport {
  readonly oldOrigin: string;
  /** Entries of the old log that are lost, and known to be. */
  readonly lostFrom: number;
  readonly lostTo: number;
}

export interface Report {
  /** `unproven`: nothing is wrong, and no checkpoint vouches for anything either. */
  readonly verdict: 'intact' | 'attacked' | 'unproven';
  readonly origin: string;
  readonly records: number;
  /** How many entries, from the first on, are those that a checkpoint was signed for. */
  readonly provenSize: number;
  readonly macs: 'right' | 'wrong' | 'not checked';
  readonly findings: readonly Finding[];
  readonly restore: RestoreReport | null;
}

interface Notes {
  readonly own: readonly Checkpoint[];
  readonly others: readonly Checkpoint[];
  readonly findings: readonly Finding[];
}

async function readNotes(notes: readonly NamedNote[], verifiers: readonly CheckpointVerifier[], origin: string): Promise<Notes> {
  const own: Checkpoint[] = [];
  const others: Checkpoint[] = [];
  const findings: Finding[] = [];
  for (const { name, note } of notes) {
    try {
      const checkpoint = await verifyCheckpoint(note, verifiers);
      // Read here, so that one that makes no sense is told as what it is.
      headMacOf(checkpoint);
      (checkpoint.origin === origin ? own : others).push(checkpoint);
    } catch (error) {
      if (!isRejected(error)) throw error;
      findings.push({ attack: 'swapped-checkpoint', range: null, isExact: true, because: `${name}: ${error.detail ?? 'it does not verify'}.` });
    }
  }
  return { own, others, findings };
}

interface RestoreReading {
  readonly restore: RestoreReport | null;
  readonly findings: readonly Finding[];
}

async function readRestore({ restore }: Scan, verifiers: readonly CheckpointVerifier[], others: readonly Checkpoint[]): Promise<RestoreReading> {
  const swapped = (because: string): Finding => ({ attack: 'swapped-checkpoint', range: { from: 0, to: 1 }, isExact: true, because });
  const stray = (oldOrigin: string | null): Finding[] =>
    others.filter(({ origin }) => origin !== oldOrigin).map(({ origin }) => ({ ...swapped(`A checkpoint is one of another log: ${origin}.`), range: null }));
  if (restore === null) return { restore: null, findings: stray(null) };
  let cited: Checkpoint;
  try {
    cited = await verifyCheckpoint(restore.oldCheckpoint, verifiers);
  } catch (error) {
    if (!isRejected(error)) throw error;
    return { restore: null, findings: [...stray(null), swapped(`The restore cites a checkpoint that does not verify: ${error.detail}. (Was the key of the old log given?)`)] };
  }
  const findings = stray(cited.origin);
  for (const known of others.filter(({ origin }) => origin === cited.origin)) {
    if (known.size > cited.size) findings.push(swapped(`The restore cites a checkpoint of ${cited.size} entries, and one of ${known.size} is known.`));
  }
  return { restore: { oldOrigin: cited.origin, lostFrom: Math.min(restore.keptSize, cited.size), lostTo: cited.size }, findings };
}

interface TailEvidence {
  readonly header: ExportHeader;
  readonly scanned: Scan;
  /** One more than the highest number of an entry. */
  readonly reach: number;
  readonly own: readonly Checkpoint[];
  /** The checkpoint in the database, where it verifies. */
  readonly stored: Checkpoint | null;
}

function readTail({ header, scanned, reach, own, stored }: TailEvidence): Finding[] {
  const signed = Math.max(0, ...own.map(({ size }) => size));
  const expected = Math.max(signed, header.size);
  if (scanned.outer.length === 0) {
    return expected > 0 ? [finding('drop-all', 0, expected, true, `There were ${expected} entries, and there is none.`)] : [];
  }
  if (reach < expected) {
    const because = 'More was signed for, of which nothing in the database knows: not its head, and not its own checkpoints.';
    return header.size > reach || (stored?.size ?? 0) > reach
      ? [finding('drop-tail', reach, expected, true, 'The database itself still says that there were more.')]
      : [finding('restored-old-database', reach, expected, true, because)];
  }
  if (header.size < reach) return [finding('insert', header.size, reach, true, 'They are beyond what the database says is its last entry.')];
  const isHead = equalBytes(scanned.macs.at(-1)!, header.mac);
  return isHead ? [] : [finding('edit', reach - 1, reach, true, 'The database’s head names another MAC than that of the last record.')];
}

/** The same where the database's own count says nothing any more, or where not even the numbers do. */
function readSignedTail(reach: number, own: readonly Checkpoint[], isRenumbered: boolean): Finding[] {
  const signed = Math.max(0, ...own.map(({ size }) => size));
  if (isRenumbered || reach >= signed) return [];
  return [finding('drop-tail', reach, signed, true, 'More was signed for.')];
}

/** What is still wrong with single records before the place `to`, where no finding covers it. */
function readLeftovers({ linked, forged, inner, outer }: Scan, findings: readonly Finding[], to: number): Finding[] {
  // What follows a record that was touched does not link to it any more, and is not to blame.
  const isNear = (seq: number): boolean => findings.some(({ range }) => range !== null && seq >= range.from - 1 && seq <= range.to);
  const isOpen = (place: number): boolean => place < to && !isNear(inner[place]!) && !isNear(outer[place]!);
  const numberOf = (place: number): number => (inner[place]! < 0 ? outer[place]! : inner[place]!);
  const edits = ranges([...forged].filter(isOpen).map(numberOf)).map(({ from, to: end }) => finding('edit', from, end, true, 'The MAC is wrong.'));
  const broken = linked.flatMap((isLinked, place) => (isLinked || !isOpen(place) || forged.has(place) || forged.has(place - 1) ? [] : [place]));
  const links = ranges(new Set(broken.flatMap((place) => [numberOf(Math.max(0, place - 1)), numberOf(place)])));
  const because = 'A record does not name the MAC and the key of the one before it.';
  return [...edits, ...links.map(({ from, to: end }) => finding('edit', from, end, false, because))];
}

/**
 * @throws UnreadableExport where `lines` are not an export, or not all of one: nothing was verified then
 * @throws UsageError `invalid_option` for a verifier key that is none
 */
export async function verifyExport(options: VerifyExportOptions): Promise<Report> {
  const { lines, macKeys, primitives } = options;
  const verifiers = await Promise.all(options.verifierKeys.map((key) => checkpointVerifier(key)));
  const { header, records } = await readExport(lines);
  const { origin } = header;
  const given = await readNotes(options.checkpoints, verifiers, origin);
  const storedNotes = header.checkpoint === null ? [] : [{ name: 'the checkpoint in the database', note: header.checkpoint }];
  const inside = await readNotes(storedNotes, verifiers, origin);
  const own = [...given.own, ...inside.own];
  const scanned = await scan(origin, records, { primitives, macKeys, sizes: new Set(own.map(({ size }) => size)) });

  const structure = readStructure(scanned, Math.max(header.size, ...own.map(({ size }) => size)));
  const history = readHistory(scanned, own, structure.soundUpTo, macKeys.size > 0);
  const found = [...structure.findings, ...history.findings];
  // Where entries came in or went out in the middle, the end is elsewhere, and whoever did it has moved the head or has not.
  const isCounted = !found.some(({ attack }) => attack === 'insert' || attack === 'drop-middle');
  const isOver = history.isAnother || !isCounted;
  const tail = isOver ? readSignedTail(structure.reach, own, history.findings.length > 0) : readTail({ header, scanned, reach: structure.reach, own, stored: inside.own[0] ?? null });
  const { restore, findings: restored } = await readRestore(scanned, verifiers, [...given.others, ...inside.others]);
  const named = [...given.findings, ...inside.findings, ...restored, ...found, ...tail];
  const findings = [...named, ...(history.isAnother ? [] : readLeftovers(scanned, named, history.shiftedFrom ?? Infinity))];
  const isChecked = macKeys.size > 0 && scanned.missingKeys.size === 0;
  return {
    verdict: findings.length > 0 ? 'attacked' : history.isProven ? 'intact' : 'unproven',
    origin,
    records: scanned.outer.length,
    provenSize: history.provenSize,
    macs: scanned.forged.size > 0 ? 'wrong' : isChecked ? 'right' : 'not checked',
    findings,
    restore,
  };
}
