/**
 * The audit chain: entries in their final bytes, each with a MAC over its place, its predecessor's MAC and itself.
 *
 * Who does not hold the MAC key can neither change, insert, reorder nor drop a record in the middle without being noticed. A
 * chain still verifies after its tail is cut, and when it is empty: whoever verifies MUST know from elsewhere how far it goes.
 * This room keeps no record and no head; an `AuditSink` does.
 *
 * @see docs/spec/audit.md for the exact bytes
 */
import { checkedMac, handoverInput, MAC_BYTES, macInput, macPrefixes } from './audit-mac.ts';
import { isTimeText, rfc3339Utc } from './audit-time.ts';
import { equalBytes, utf8 } from './bytes.ts';
import { canonicalJson, parseCanonicalJson } from './canonical-json.ts';
import { RejectedError, UnavailableError, UsageError } from './errors.ts';
import type { AuditEntry, AuditHandover, AuditMacKey, AuditRecord, Bytes, JsonValue } from './seams.ts';

export { isOrigin, webCryptoMacKey, type WebCryptoMacKeyOptions } from './audit-mac.ts';
export { rfc3339Utc } from './audit-time.ts';

const RESERVED = ['origin', 'seq', 'ts'] as const;
const KEY_CHANGE = 'audit.mac_key_change';
/** Where a record goes: its number, and what it follows. */
export interface ChainPosition {
  /** The number of the next record; the first one is 0. */
  readonly seq: number;
  /** The MAC of the record before it; 32 zero bytes before the first. */
  readonly prevMac: Bytes;
  /** The key under which the record before it was authenticated; `null` before the first, or where it is not known. */
  readonly macKeyId: string | null;
}

/** The position of a chain's first record, in new arrays. */
export function chainStart(): ChainPosition {
  return { seq: 0, prevMac: new Uint8Array(MAC_BYTES), macKeyId: null };
}

/** The position after `record`, which MUST be verified or the caller's own. */
export function chainAfter(record: AuditRecord): ChainPosition {
  return { seq: record.seq + 1, prevMac: record.mac, macKeyId: record.macKeyId };
}

interface SealCommon {
  /** Names the chain, in every record: 1 to 255 printable ASCII characters, without space and `+`. */
  readonly origin: string;
  /** The number of the (first) record; 0 begins a chain. */
  readonly seq: number;
  /** MAC of the record before; 32 zero bytes for number 0. */
  readonly prevMac: Bytes;
  /** When the records are sealed, Unix milliseconds. */
  readonly nowMs: number;
  readonly key: AuditMacKey;
}

/** One entry, and its place in the chain. */
export interface SealEntryOptions extends SealCommon {
  readonly entry: AuditEntry;
}

/** Entries in their order, and the place of the first. */
export interface SealEntriesOptions extends SealCommon {
  readonly entries: readonly AuditEntry[];
}

function refuseReserved(entry: AuditEntry): void {
  for (const name of RESERVED) {
    if (Object.hasOwn(entry, name)) {
      throw new UsageError('invalid_option', `${name} of an audit entry is added by the chain, and must not be given.`);
    }
  }
  if (entry.action === KEY_CHANGE) throw new UsageError('invalid_option', `${KEY_CHANGE} is written by the chain alone.`);
}

/**
 * Throws what {@link sealEntries} would throw because of `entry`: for a sink that seals the entries of several callers together.
 * @throws UsageError `invalid_option` for what only the chain may write
 * @throws RejectedError `json_not_canonical`
 */
export function checkEntry(entry: AuditEntry): void {
  refuseReserved(entry);
  canonicalJson(entry);
}

async function sealAll(options: SealEntriesOptions): Promise<AuditRecord[]> {
  const { origin, seq: firstSeq, entries, key } = options;
  let { prevMac } = options;
  if (!Number.isSafeInteger(firstSeq) || firstSeq < 0 || !Number.isSafeInteger(firstSeq + entries.length)) {
    throw new UsageError('invalid_option', 'seq must be an integer from 0 to 2^53 - 1.');
  }
  if (prevMac.length !== MAC_BYTES || (firstSeq === 0 && prevMac.some((byte) => byte !== 0))) {
    throw new UsageError('invalid_option', 'prevMac has 32 bytes, all of them zero before the first record.');
  }
  const prefix = macPrefixes(origin).record;
  const ts = rfc3339Utc(options.nowMs);
  // All texts first: an entry that is refused must not cost a MAC, nor leave half a batch.
  const texts = entries.map((entry, i) => utf8(canonicalJson({ ...entry, origin, seq: firstSeq + i, ts })));
  const records: AuditRecord[] = [];
  for (const bytes of texts) {
    const seq = firstSeq + records.length;
    const answer = key.mac(macInput(prefix, seq, prevMac, bytes));
    // A key that answers at once is not awaited: a turn of the queue per entry is what a batch saves.
    const mac = checkedMac(answer instanceof Promise ? await answer : answer);
    records.push({ seq, bytes, prevMac, mac, macKeyId: key.keyId });
    prevMac = mac;
  }
  return records;
}

/**
 * The records for `entries`, numbered from `seq` on, each bound to the one before. All are there, or it throws: nothing is
 * skipped.
 *
 * The caller MUST hold the head of the chain while it seals and stores them, or two records get one number. `key` MUST be that
 * of the record before: {@link continueChain} sees to it.
 * @throws UsageError `invalid_option` for a reserved name or action in an entry, and for an origin, number, time or MAC out of
 *   range
 * @throws RejectedError `json_not_canonical` for an entry that has no canonical form
 * @throws UnavailableError as the key throws it
 */
export async function sealEntries(options: SealEntriesOptions): Promise<AuditRecord[]> {
  for (const entry of options.entries) refuseReserved(entry);
  return sealAll(options);
}

/**
 * {@link sealEntries} for one entry.
 * @throws as {@link sealEntries}
 */
export async function sealEntry(options: SealEntryOptions): Promise<AuditRecord> {
  const { entry, ...common } = options;
  const [record] = await sealEntries({ ...common, entries: [entry] });
  return record!;
}

function keyChangeEntry(fromKeyId: string, toKeyId: string): AuditEntry {
  return { action: KEY_CHANGE, outcome: 'success', actor: 'system', from_mac_key_id: fromKeyId, to_mac_key_id: toKeyId };
}

/** The record to seal, and the two keys that vouch for it. */
export interface SealKeyChangeOptions extends SealCommon {
  /** The key of the record before. */
  readonly from: AuditMacKey;
}

/**
 * The record by which a chain goes over from one MAC key to `key`: authenticated under both. It cannot be the first of a chain.
 * @throws UsageError `invalid_option` as {@link sealEntries}, and where the two keys have one id
 * @throws UnavailableError as a key throws it
 */
export async function sealKeyChange(options: SealKeyChangeOptions): Promise<AuditRecord> {
  const { from, ...common } = options;
  const { origin, key, seq } = common;
  if (seq === 0 || from.keyId === key.keyId) throw new UsageError('invalid_option', 'A key changes to another, after a record.');
  const [record] = await sealAll({ ...common, entries: [keyChangeEntry(from.keyId, key.keyId)] });
  const mac = checkedMac(await from.mac(handoverInput(macPrefixes(origin).handover, record!)));
  return { ...record!, handover: { macKeyId: from.keyId, mac } };
}

/** The MAC keys of whoever appends to a chain. */
export interface ChainKeys {
  /** Under which records are sealed. */
  readonly macKey: AuditMacKey;
  /** Keys that the chain may still be under: it goes over to `macKey` with the next append. */
  readonly previousMacKeys?: readonly AuditMacKey[];
  /** The key that other processes may already have gone over to: where the chain is under it, it stays there. */
  readonly nextMacKey?: AuditMacKey;
}

/** Where a chain stands, what follows, and under which keys. */
export interface ContinueChainOptions extends ChainKeys {
  readonly origin: string;
  /** The head. The caller MUST hold it until the records are stored. */
  readonly head: ChainPosition;
  readonly entries: readonly AuditEntry[];
  readonly nowMs: number;
}

/**
 * The records that follow `head`: those of `entries`, the last ones, and before them a change of the key where one is due.
 * @throws UnavailableError `audit_mac_key` where the chain is under a key that is not given; and as {@link sealEntries}
 */
export async function continueChain(options: ContinueChainOptions): Promise<AuditRecord[]> {
  const { origin, head, entries, nowMs, macKey, previousMacKeys = [], nextMacKey } = options;
  for (const entry of entries) refuseReserved(entry);
  if (entries.length === 0) return [];
  const { seq, prevMac, macKeyId } = head;
  const known = macKeyId === null ? macKey : [macKey, nextMacKey, ...previousMacKeys].find((key) => key?.keyId === macKeyId);
  if (known === undefined) throw new UnavailableError('audit_mac_key', 'The chain was written under another MAC key.');
  if (known === macKey || known === nextMacKey) return sealAll({ origin, seq, prevMac, entries, nowMs, key: known });
  const change = await sealKeyChange({ origin, seq, prevMac, nowMs, from: known, key: macKey });
  return [change, ...(await sealAll({ origin, seq: seq + 1, prevMac: change.mac, entries, nowMs, key: macKey }))];
}

/** What whoever verifies knows from elsewhere. All of it is trusted. */
export interface VerifyRecordsOptions {
  /** The chain that is expected. Trusted. */
  readonly origin: string;
  /** The MAC keys that may have been used, by key id. Trusted. */
  readonly keys: ReadonlyMap<string, AuditMacKey>;
  /** Where the first record is expected to stand; by default at the start of the chain. Trusted: from an earlier verification. */
  readonly from?: ChainPosition;
}

function invalid(seq: number, what: string): RejectedError {
  return new RejectedError('audit_record_invalid', 'An audit record does not verify.', { detail: `seq ${seq}: ${what}` });
}

function readContent(record: AuditRecord, origin: string): Readonly<Record<string, JsonValue>> {
  const { seq } = record;
  let entry: JsonValue;
  try {
    entry = parseCanonicalJson(record.bytes);
  } catch {
    throw invalid(seq, 'the entry is not canonical JSON');
  }
  if (typeof entry !== 'object' || entry === null || Array.isArray(entry)) throw invalid(seq, 'the entry is not an object');
  const members = entry as Readonly<Record<string, JsonValue>>;
  if (members['origin'] !== origin) throw invalid(seq, 'the entry names another origin');
  if (members['seq'] !== seq) throw invalid(seq, 'the entry names another seq');
  if (!isTimeText(members['ts'])) throw invalid(seq, 'the entry bears no valid time');
  return members;
}

/** What must hold of a record with a handover, beside all that must hold of every record. */
async function checkHandover(record: AuditRecord, ts: JsonValue | undefined, position: ChainPosition, options: VerifyRecordsOptions): Promise<void> {
  const { seq, macKeyId } = record;
  const handover = record.handover as Partial<AuditHandover> | null;
  if (!(handover?.mac instanceof Uint8Array) || typeof handover.macKeyId !== 'string') throw invalid(seq, 'not a record');
  if (seq === 0) throw invalid(seq, 'the key cannot change before the first record');
  if (handover.macKeyId === macKeyId) throw invalid(seq, 'the key changes to itself');
  if (position.macKeyId !== null && handover.macKeyId !== position.macKeyId) throw invalid(seq, 'another key hands over');
  const { origin, keys } = options;
  const from = keys.get(handover.macKeyId);
  if (from === undefined) throw invalid(seq, 'the MAC key before it is not known');
  const expected = { ...keyChangeEntry(handover.macKeyId, macKeyId), origin, seq, ts: ts! };
  if (!equalBytes(utf8(canonicalJson(expected)), record.bytes)) throw invalid(seq, 'the entry does not say which key hands over to which');
  const mac = checkedMac(await from.mac(handoverInput(macPrefixes(origin).handover, record)));
  if (!equalBytes(mac, handover.mac)) throw invalid(seq, 'the MAC of the key before it is wrong');
}

/**
 * Whether `records` are an unbroken piece of the chain from `from` on: resolves with the position after the last of them, or
 * throws at the first that is not in its place or not as it was sealed.
 *
 * Reads one record at a time, and gives way to other work only where `records` or a key does: give a long chain as a stream.
 * Says nothing of what comes after: compare the answer with a head that is known from elsewhere. The key id may change only at
 * a record as {@link sealKeyChange} makes it.
 *
 * @param records untrusted
 * @throws RejectedError `audit_record_invalid`; `detail` names the seq and what is wrong
 * @throws UnavailableError as a key throws it
 */
export async function verifyRecords(
  records: Iterable<AuditRecord> | AsyncIterable<AuditRecord>,
  options: VerifyRecordsOptions,
): Promise<ChainPosition> {
  const { origin, keys } = options;
  const prefix = macPrefixes(origin).record;
  let position = options.from ?? chainStart();

  async function step(record: AuditRecord): Promise<void> {
    const { seq, prevMac, macKeyId } = position;
    if (typeof record !== 'object' || record === null) throw invalid(seq, 'not a record');
    if (record.seq !== seq) throw invalid(seq, 'another record stands in its place');
    const parts: readonly unknown[] = [record.bytes, record.prevMac, record.mac];
    if (!parts.every((part) => part instanceof Uint8Array)) throw invalid(seq, 'not a record');
    if (!equalBytes(record.prevMac, prevMac)) throw invalid(seq, 'it does not follow the record before it');
    const changes = record.handover !== undefined;
    if (!changes && macKeyId !== null && record.macKeyId !== macKeyId) throw invalid(seq, 'the key id changes');
    const key = keys.get(record.macKeyId);
    if (key === undefined) throw invalid(seq, 'its MAC key is not known');
    const answer = key.mac(macInput(prefix, seq, prevMac, record.bytes));
    const mac = checkedMac(answer instanceof Promise ? await answer : answer);
    if (!equalBytes(mac, record.mac)) throw invalid(seq, 'the MAC is wrong');
    const { ts } = readContent(record, origin);
    if (changes) await checkHandover(record, ts, position, options);
    position = chainAfter(record);
  }

  if (Symbol.asyncIterator in records) for await (const record of records) await step(record);
  else for (const record of records) await step(record);
  return position;
}
