/**
 * The audit chain: entries in their final bytes, each with a MAC over its place, its predecessor's MAC and itself.
 *
 * Who does not hold the MAC key can neither change, insert, reorder nor drop a record in the middle without being noticed. A
 * chain still verifies after its tail is cut, and when it is empty: whoever verifies MUST know from elsewhere how far it goes.
 * This room keeps no record and no head; an `AuditSink` does.
 *
 * @see docs/spec/audit.md for the exact bytes
 */
import { concat, equalBytes, utf8 } from './bytes.ts';
import { canonicalJson, parseCanonicalJson } from './canonical-json.ts';
import { RejectedError, UnavailableError, UsageError } from './errors.ts';
import type { AuditEntry, AuditMacKey, AuditRecord, Bytes, JsonValue } from './seams.ts';

const LABEL: Bytes = /* @__PURE__ */ utf8('kg-audit-v1\0');
const MAC_BYTES = 32;
const KEY_BYTES = 32;
const RESERVED = ['origin', 'seq', 'ts'] as const;
const DAY_MS = 86_400_000;
const MAX_TIME_MS = 253_402_300_799_999;
const TIME_TEXT = /^\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z$/;
const DAYS_OF_MONTH = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] as const;

// What may name a key in a signed note, so that a chain's origin can name its checkpoints too.
const ORIGIN = /^[\x21-\x2a\x2c-\x7e]{1,255}$/;

const pad = (value: number, width: number): string => String(value).padStart(width, '0');

/**
 * RFC 3339 text of a time, in UTC with exactly three decimals: `2026-01-31T23:59:59.999Z`.
 * @param timeMs Unix milliseconds, an integer from 1970 to the end of the year 9999
 * @throws UsageError `invalid_option`
 */
export function rfc3339Utc(timeMs: number): string {
  if (!Number.isInteger(timeMs) || timeMs < 0 || timeMs > MAX_TIME_MS) {
    throw new UsageError('invalid_option', 'A time must be an integer of milliseconds from 1970 to 9999.');
  }
  const ofDay = timeMs % DAY_MS;
  // Years begin in March and eras of 400 years in year 0: so the leap day is the last of its year, era and century.
  const day = (timeMs - ofDay) / DAY_MS + 719_468;
  const era = Math.floor(day / 146_097);
  const ofEra = day - era * 146_097;
  const yearOfEra = Math.floor(
    (ofEra - Math.floor(ofEra / 1460) + Math.floor(ofEra / 36_524) - Math.floor(ofEra / 146_096)) / 365,
  );
  const ofYear = ofEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const fromMarch = Math.floor((5 * ofYear + 2) / 153);
  const month = fromMarch < 10 ? fromMarch + 3 : fromMarch - 9;
  const year = era * 400 + yearOfEra + (month <= 2 ? 1 : 0);
  const date = `${pad(year, 4)}-${pad(month, 2)}-${pad(ofYear - Math.floor((153 * fromMarch + 2) / 5) + 1, 2)}`;
  const minutes = Math.floor(ofDay / 60_000);
  const time = `${pad(Math.floor(minutes / 60), 2)}:${pad(minutes % 60, 2)}:${pad(Math.floor(ofDay / 1000) % 60, 2)}`;
  return `${date}T${time}.${pad(ofDay % 1000, 3)}Z`;
}

function isTimeText(value: JsonValue | undefined): boolean {
  if (typeof value !== 'string' || !TIME_TEXT.test(value)) return false;
  const year = Number(value.slice(0, 4));
  const month = Number(value.slice(5, 7));
  const day = Number(value.slice(8, 10));
  const isLeap = year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0);
  const days = month === 2 && isLeap ? 29 : DAYS_OF_MONTH[month - 1];
  return year >= 1970 && days !== undefined && day >= 1 && day <= days;
}

// What every MAC of one chain begins with.
function macPrefix(origin: string): Bytes {
  if (!ORIGIN.test(origin)) {
    throw new UsageError('invalid_option', 'An origin is 1 to 255 printable ASCII characters, without space and "+".');
  }
  return concat(LABEL, Uint8Array.of(0, origin.length), utf8(origin));
}

function macInput(prefix: Bytes, seq: number, prevMac: Uint8Array, bytes: Uint8Array): Bytes {
  const seqAt = prefix.length;
  const input = new Uint8Array(seqAt + 8 + MAC_BYTES + bytes.length);
  input.set(prefix);
  const view = new DataView(input.buffer);
  view.setUint32(seqAt, Math.floor(seq / 2 ** 32));
  view.setUint32(seqAt + 4, seq);
  input.set(prevMac, seqAt + 8);
  input.set(bytes, seqAt + 8 + MAC_BYTES);
  return input;
}

function checkedMac(mac: unknown): Bytes {
  if (!(mac instanceof Uint8Array) || mac.length !== MAC_BYTES) {
    throw new UnavailableError('audit_mac_key', 'The MAC key did not answer with 32 bytes.');
  }
  return mac as Bytes;
}

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

export interface SealEntryOptions extends SealCommon {
  readonly entry: AuditEntry;
}

export interface SealEntriesOptions extends SealCommon {
  readonly entries: readonly AuditEntry[];
}

function entryBytes(entry: AuditEntry, origin: string, seq: number, ts: string): Bytes {
  for (const name of RESERVED) {
    if (Object.hasOwn(entry, name)) {
      throw new UsageError('invalid_option', `${name} of an audit entry is added by the chain, and must not be given.`);
    }
  }
  return utf8(canonicalJson({ ...entry, origin, seq, ts }));
}

/**
 * The records for `entries`, numbered from `seq` on, each bound to the one before. All are there, or it throws: nothing is
 * skipped.
 *
 * The caller MUST hold the head of the chain while it seals and stores them, or two records get one number.
 * @throws UsageError `invalid_option` for a reserved name in an entry, and for an origin, number, time or MAC out of range
 * @throws RejectedError `json_not_canonical` for an entry that has no canonical form
 * @throws UnavailableError as the key throws it
 */
export async function sealEntries(options: SealEntriesOptions): Promise<AuditRecord[]> {
  const { origin, seq: firstSeq, entries, key } = options;
  let { prevMac } = options;
  if (!Number.isSafeInteger(firstSeq) || firstSeq < 0 || !Number.isSafeInteger(firstSeq + entries.length)) {
    throw new UsageError('invalid_option', 'seq must be an integer from 0 to 2^53 - 1.');
  }
  if (prevMac.length !== MAC_BYTES || (firstSeq === 0 && prevMac.some((byte) => byte !== 0))) {
    throw new UsageError('invalid_option', 'prevMac has 32 bytes, all of them zero before the first record.');
  }
  const prefix = macPrefix(origin);
  const ts = rfc3339Utc(options.nowMs);
  // All texts first: an entry that is refused must not cost a MAC, nor leave half a batch.
  const texts = entries.map((entry, i) => entryBytes(entry, origin, firstSeq + i, ts));
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

/** {@link sealEntries} for one entry. */
export async function sealEntry(options: SealEntryOptions): Promise<AuditRecord> {
  const { entry, ...common } = options;
  const [record] = await sealEntries({ ...common, entries: [entry] });
  return record!;
}

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

function checkContent(record: AuditRecord, origin: string): void {
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
}

/**
 * Whether `records` are an unbroken piece of the chain from `from` on: resolves with the position after the last of them, or
 * throws at the first that is not in its place or not as it was sealed.
 *
 * Reads one record at a time, and gives way to other work only where `records` or a key does: give a long chain as a stream.
 * Says nothing of what comes after: compare the answer with a head that is known from elsewhere. In this version the key id
 * MUST be the same in all records.
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
  const prefix = macPrefix(origin);
  let position = options.from ?? chainStart();

  async function step(record: AuditRecord): Promise<void> {
    const { seq, prevMac, macKeyId } = position;
    if (typeof record !== 'object' || record === null) throw invalid(seq, 'not a record');
    if (record.seq !== seq) throw invalid(seq, 'another record stands in its place');
    const parts: readonly unknown[] = [record.bytes, record.prevMac, record.mac];
    if (!parts.every((part) => part instanceof Uint8Array)) throw invalid(seq, 'not a record');
    if (!equalBytes(record.prevMac, prevMac)) throw invalid(seq, 'it does not follow the record before it');
    if (macKeyId !== null && record.macKeyId !== macKeyId) throw invalid(seq, 'the key id changes');
    const key = keys.get(record.macKeyId);
    if (key === undefined) throw invalid(seq, 'its MAC key is not known');
    const answer = key.mac(macInput(prefix, seq, prevMac, record.bytes));
    const mac = checkedMac(answer instanceof Promise ? await answer : answer);
    if (!equalBytes(mac, record.mac)) throw invalid(seq, 'the MAC is wrong');
    checkContent(record, origin);
    position = chainAfter(record);
  }

  if (Symbol.asyncIterator in records) for await (const record of records) await step(record);
  else for (const record of records) await step(record);
  return position;
}

export interface WebCryptoMacKeyOptions {
  /** Stored beside every record. Never reuse it for another key. */
  readonly keyId: string;
  /** 32 random bytes. Imported as non-extractable; the caller may wipe them once the key is there. */
  readonly key: Bytes;
  readonly crypto?: Crypto;
}

/**
 * An {@link AuditMacKey} on WebCrypto, out of which the key cannot be had back.
 * @throws UsageError `invalid_option`
 */
export async function webCryptoMacKey(options: WebCryptoMacKeyOptions): Promise<AuditMacKey> {
  const { keyId, key, crypto = globalThis.crypto } = options;
  if (keyId === '') throw new UsageError('invalid_option', 'keyId must not be empty.');
  if (key.length !== KEY_BYTES) throw new UsageError('invalid_option', 'An audit MAC key has 32 bytes.');
  const hmac = { name: 'HMAC', hash: 'SHA-256' };
  const imported = await crypto.subtle.importKey('raw', key, hmac, false, ['sign']);
  return {
    keyId,
    mac: async (data: Bytes): Promise<Bytes> => new Uint8Array(await crypto.subtle.sign('HMAC', imported, data)),
  };
}
