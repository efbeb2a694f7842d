/**
 * Reads an export once, from front to back, and keeps what is needed to name an attack: a few numbers and one MAC for each
 * record, never the entries. Judges nothing.
 */
import { verifyRecords } from '@keyguard/core/audit';
import { equalBytes, fromUtf8 } from '@keyguard/core/bytes';
import { readRestore, type AcknowledgedRestore } from '@keyguard/core/checkpoint';
import { isRejected } from '@keyguard/core/errors';
import { appendLeaves, emptyTree, treeRoot, type Sha256 } from '@keyguard/core/merkle';
import type { AuditMacKey, AuditRecord, Bytes } from '@keyguard/core/seams';

export interface Scan {
  /** By place in the export: the number beside the entry, where the database has it. */
  readonly outer: readonly number[];
  /** By place: the number inside the entry, which hash and MAC cover; -1 for what is not an entry of this chain. */
  readonly inner: readonly number[];
  /** By place: whether the record names the MAC of the one before it, and a key that it may have after it. */
  readonly linked: readonly boolean[];
  readonly prevMacs: readonly Bytes[];
  readonly macs: readonly Bytes[];
  /** Places of records whose own MAC is wrong; empty where no MAC keys were given. */
  readonly forged: ReadonlySet<number>;
  /** Key ids of records that could not be checked because the key was not given. */
  readonly missingKeys: ReadonlySet<string>;
  /** The root over the first records, by their number, for each size asked for. */
  readonly roots: ReadonlyMap<number, Bytes>;
  readonly restore: AcknowledgedRestore | null;
}

export interface ScanOptions {
  readonly primitives: Sha256;
  /** By key id; empty where the auditor has none. */
  readonly macKeys: ReadonlyMap<string, AuditMacKey>;
  /** At which sizes the root is wanted. */
  readonly sizes: ReadonlySet<number>;
}

function innerSeq(record: AuditRecord, origin: string): number {
  try {
    const entry = JSON.parse(fromUtf8(record.bytes)) as { origin?: unknown; seq?: unknown } | null;
    const { origin: named, seq } = entry ?? {};
    return named === origin && typeof seq === 'number' && Number.isSafeInteger(seq) && seq >= 0 ? seq : -1;
  } catch {
    return -1;
  }
}

/** Whether `record` is one that a holder of the MAC key made, wherever it stands now. */
async function isGenuine(record: AuditRecord, seq: number, keyBefore: string | null, origin: string, options: ScanOptions): Promise<boolean> {
  try {
    const from = { seq, prevMac: record.prevMac, macKeyId: keyBefore };
    await verifyRecords([{ ...record, seq }], { origin, keys: options.macKeys, from });
    return true;
  } catch (error) {
    if (isRejected(error)) return false;
    throw error;
  }
}

function readRestoreOf(record: AuditRecord): AcknowledgedRestore | null {
  try {
    return readRestore(record.bytes);
  } catch (error) {
    if (isRejected(error)) return null;
    throw error;
  }
}

/** @throws UnreadableExport as `records` do */
export async function scan(origin: string, records: AsyncIterable<AuditRecord>, options: ScanOptions): Promise<Scan> {
  const { primitives, macKeys, sizes } = options;
  const outer: number[] = [];
  const inner: number[] = [];
  const linked: boolean[] = [];
  const prevMacs: Bytes[] = [];
  const macs: Bytes[] = [];
  const forged = new Set<number>();
  const missingKeys = new Set<string>();
  const roots = new Map<number, Bytes>();
  let restore: AcknowledgedRestore | null = null;
  let frontier = emptyTree();
  let before: AuditRecord | null = null;

  if (sizes.has(0)) roots.set(0, await treeRoot(frontier, primitives));
  for await (const record of records) {
    const { handover, macKeyId } = record;
    const place = outer.length;
    const seq = innerSeq(record, origin);
    const expectedKeyBefore = before !== null && before.macKeyId !== macKeyId ? before.macKeyId : undefined;
    const follows = equalBytes(record.prevMac, before?.mac ?? new Uint8Array(32));
    outer.push(record.seq);
    inner.push(seq);
    linked.push(follows && handover?.macKeyId === expectedKeyBefore);
    prevMacs.push(record.prevMac);
    macs.push(record.mac);
    if (place === 0) restore = readRestoreOf(record);
    if (macKeys.size > 0) {
      const unknown = [macKeyId, ...(handover === undefined ? [] : [handover.macKeyId])].filter((id) => !macKeys.has(id));
      for (const id of unknown) missingKeys.add(id);
      // Only the right predecessor says which key came before; whether it may change at all is what `linked` says.
      const keyBefore = handover !== undefined && follows ? (before?.macKeyId ?? null) : null;
      if (unknown.length === 0 && !(await isGenuine(record, Math.max(seq, 0), keyBefore, origin, options))) forged.add(place);
    }
    ({ frontier } = await appendLeaves(frontier, [record.bytes], primitives));
    if (sizes.has(frontier.size)) roots.set(frontier.size, await treeRoot(frontier, primitives));
    before = record;
  }
  return { outer, inner, linked, prevMacs, macs, forged, missingKeys, roots, restore };
}
