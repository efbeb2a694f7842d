/**
 * The export of an audit log: JSON lines, which anybody can read with the tools at hand, and which hold every byte that a
 * verifier needs. What is read here is untrusted: it has the right form, and may still be a lie.
 *
 * @see ../README.md for the format
 */
import { fromBase64, toBase64 } from '@keyguard/core/bytes';
import type { AuditRecord, Bytes } from '@keyguard/core/seams';

const FORMAT = 'keyguard-audit-export-v1';
const MAC_BYTES = 32;

/** What the database says of itself, before its records. */
export interface ExportHeader {
  readonly origin: string;
  /** How many records its head says that there are. */
  readonly size: number;
  /** The MAC of the last of them, as the head has it; 32 zero bytes where there is none. */
  readonly mac: Bytes;
  /** The newest checkpoint that is stored in it. */
  readonly checkpoint: string | null;
}

export interface Export {
  readonly header: ExportHeader;
  readonly records: AsyncIterable<AuditRecord>;
}

/** The input is not an export, or not all of one. Nothing can be said of the log then, and nothing was verified. */
export class UnreadableExport extends Error {
  override readonly name = 'UnreadableExport';
}

type Members = Readonly<Record<string, unknown>>;

function membersOf(value: unknown, names: readonly string[]): Members | null {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return null;
  const found = Object.keys(value);
  return found.length === names.length && names.every((name) => Object.hasOwn(value, name)) ? (value as Members) : null;
}

function bytes(value: unknown, lengthBytes?: number): Bytes | null {
  const decoded = typeof value === 'string' ? fromBase64(value) : null;
  return decoded !== null && (lengthBytes === undefined || decoded.length === lengthBytes) ? decoded : null;
}

const isNumber = (value: unknown): value is number => typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;

const RECORD = ['seq', 'entry', 'prev_mac', 'mac', 'mac_key_id'];
const HANDOVER = ['handover_mac_key_id', 'handover_mac'];

function readRecord(value: unknown): AuditRecord | null {
  const changes = membersOf(value, [...RECORD, ...HANDOVER]);
  const members = changes ?? membersOf(value, RECORD);
  if (members === null) return null;
  const { seq, mac_key_id: macKeyId } = members;
  const entry = bytes(members['entry']);
  const prevMac = bytes(members['prev_mac'], MAC_BYTES);
  const mac = bytes(members['mac'], MAC_BYTES);
  if (!isNumber(seq) || typeof macKeyId !== 'string' || entry === null || prevMac === null || mac === null) return null;
  const record = { seq, bytes: entry, prevMac, mac, macKeyId };
  if (changes === null) return record;
  const handoverKeyId = changes['handover_mac_key_id'];
  const handoverMac = bytes(changes['handover_mac'], MAC_BYTES);
  if (typeof handoverKeyId !== 'string' || handoverMac === null) return null;
  return { ...record, handover: { macKeyId: handoverKeyId, mac: handoverMac } };
}

function readHeader(value: unknown): ExportHeader | null {
  const members = membersOf(value, ['format', 'origin', 'head', 'checkpoint']);
  const head = membersOf(members?.['head'], ['size', 'mac']);
  if (members === null || head === null || members['format'] !== FORMAT) return null;
  const { origin, checkpoint } = members;
  const mac = bytes(head['mac'], MAC_BYTES);
  if (typeof origin !== 'string' || !isNumber(head['size']) || mac === null) return null;
  return typeof checkpoint === 'string' || checkpoint === null ? { origin, size: head['size'], mac, checkpoint } : null;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * Reads an export, each line of it checked for its form: a header, records, and an end after which nothing may follow.
 * @throws UnreadableExport which names the line; `records` throw it too
 */
export async function readExport(lines: Iterable<string> | AsyncIterable<string>): Promise<Export> {
  const iterator = (async function* () {
    yield* lines;
  })();
  const unreadable = (number: number): UnreadableExport => new UnreadableExport(`Line ${number} is not what an export has there.`);
  const first = await iterator.next();
  const header = first.done === true ? null : readHeader(parse(first.value));
  if (header === null) throw unreadable(1);
  async function* records(): AsyncGenerator<AuditRecord> {
    let count = 0;
    let isEnded = false;
    for await (const text of iterator) {
      const value = isEnded ? null : parse(text);
      const record = readRecord(value);
      if (record !== null) {
        count += 1;
        yield record;
      } else if (membersOf(value, ['records'])?.['records'] === count) {
        isEnded = true;
      } else {
        throw unreadable(count + (isEnded ? 3 : 2));
      }
    }
    if (!isEnded) throw new UnreadableExport(`The export ends after line ${count + 1}, in the middle.`);
  }
  return { header, records: records() };
}

/** Splits a stream of UTF-8 into lines, without holding more than one of them. */
export async function* linesOf(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  // Joined once, when its end is there: a line that came in many pieces would otherwise be searched anew with each of them.
  let pieces: string[] = [];
  const push = function* (text: string): Generator<string> {
    const [first = '', ...more] = text.split('\n');
    pieces.push(first);
    for (const next of more) {
      yield pieces.join('');
      pieces = [next];
    }
  };
  try {
    for await (const chunk of chunks) yield* push(decoder.decode(chunk, { stream: true }));
    yield* push(decoder.decode());
  } catch (cause) {
    if (cause instanceof TypeError) throw new UnreadableExport('The export is not UTF-8.', { cause });
    throw cause;
  }
  const rest = pieces.join('');
  if (rest !== '') yield rest;
}

function recordLine({ seq, bytes: entry, prevMac, mac, macKeyId, handover }: AuditRecord): string {
  const line = { seq, entry: toBase64(entry), prev_mac: toBase64(prevMac), mac: toBase64(mac), mac_key_id: macKeyId };
  if (handover === undefined) return JSON.stringify(line);
  return JSON.stringify({ ...line, handover_mac_key_id: handover.macKeyId, handover_mac: toBase64(handover.mac) });
}

/**
 * Writes an export: what a service answers with, one line at a time, without line feeds.
 * @param header read before the records, so that appends in the meantime do not look like a contradiction
 */
export async function* writeExport(
  header: ExportHeader,
  records: Iterable<AuditRecord> | AsyncIterable<AuditRecord>,
): AsyncGenerator<string> {
  const { origin, size, mac, checkpoint } = header;
  yield JSON.stringify({ format: FORMAT, origin, head: { size, mac: toBase64(mac) }, checkpoint });
  let count = 0;
  for await (const record of records) {
    count += 1;
    yield recordLine(record);
  }
  yield JSON.stringify({ records: count });
}
