/** `audit`: records of a chain and what restores say, against the chain that was sealed and Node's own clockwork. */
import { createHmac, randomBytes } from 'node:crypto';
import { chainAfter, chainStart, sealEntries, sealKeyChange, verifyRecords } from '@keyguard/core/audit';
import { readRestore, restoreEntry } from '@keyguard/core/checkpoint';
import type { AuditMacKey, AuditRecord, Bytes, JsonValue } from '@keyguard/core/seams';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateJson, mutateList, mutateText } from '../mutate.ts';
import { agree, canonicalised, demand, demandEqual, outcomeOf, outcomeOfLater, type Parser, type Verdict } from '../parser.ts';

const REFUSED = 'RejectedError audit_record_invalid';
const ORIGIN = 'keyguard.test/audit/2026';
const NOW_MS = 1_780_000_000_000;

function macKey(keyId: string): AuditMacKey {
  const secret = randomBytes(32);
  return { keyId, mac: (data) => new Uint8Array(createHmac('sha256', secret).update(data).digest()) };
}
const [first, second] = [macKey('mac-1'), macKey('mac-2')];
const keys = new Map([first, second].map((key) => [key.keyId, key]));

/** Six records, of which the fourth changes the key. */
export const CHAIN: readonly AuditRecord[] = await (async () => {
  const entry = (n: number) => ({ action: 'llm.call', outcome: 'success' as const, actor: `user:${n}`, model: 'm\u00fcller', n });
  const before = await sealEntries({ origin: ORIGIN, ...chainStart(), entries: [entry(0), entry(1), entry(2)], nowMs: NOW_MS, key: first });
  const change = await sealKeyChange({ origin: ORIGIN, ...chainAfter(before.at(-1)!), nowMs: NOW_MS, from: first, key: second });
  const after = await sealEntries({ origin: ORIGIN, ...chainAfter(change), entries: [entry(4), entry(5)], nowMs: NOW_MS, key: second });
  return [...before, change, ...after];
})();

const BYTES = CHAIN.flatMap(({ bytes, mac, prevMac }) => [bytes, mac, prevMac]);

function mutateRecord(random: Generator, record: AuditRecord): AuditRecord {
  // Made of something else by a mutation before.
  if (!(record?.bytes instanceof Uint8Array) || !(record.mac instanceof Uint8Array) || record.handover === null) return record;
  const other = random.pick(CHAIN);
  const { handover, ...plain } = record;
  switch (random.below(9)) {
    case 0:
      return { ...record, seq: random.pick([other.seq, record.seq + 1, -1, 0.5, 2 ** 53, Number.NaN]) };
    case 1:
      return { ...record, bytes: random.oneIn(4) ? other.bytes : mutateBytes(random, record.bytes, BYTES) };
    case 2:
      return { ...record, prevMac: random.oneIn(4) ? other.prevMac : mutateBytes(random, record.prevMac, BYTES) };
    case 3:
      return { ...record, mac: random.oneIn(4) ? other.mac : mutateBytes(random, record.mac, BYTES) };
    case 4:
      return { ...record, macKeyId: random.pick(['mac-1', 'mac-2', '', 'mac-3', '__proto__']) };
    case 5:
      return handover === undefined ? { ...record, handover: CHAIN[3]!.handover! } : plain;
    case 6:
      return handover === undefined ? record : { ...record, handover: { macKeyId: random.pick(['mac-1', 'mac-2', '']), mac: mutateBytes(random, handover.mac, BYTES) } };
    case 7:
      return random.pick<unknown>([null, 1, {}, { ...record, bytes: [...record.bytes] }, { ...record, mac: null }, { ...record, handover: null }, []]) as AuditRecord;
    default:
      return { ...other, seq: record.seq };
  }
}

/** Whether `records` are the beginning of the chain, byte for byte. */
function isBeginning(records: readonly AuditRecord[]): boolean {
  const form = (record: AuditRecord | null | undefined): string => JSON.stringify(record, (_, value: unknown) => (value instanceof Uint8Array ? Buffer.from(value).toString('hex') : value));
  return records.length <= CHAIN.length && records.every((record, i) => record === CHAIN[i] || form(record) === form(CHAIN[i]));
}

/** RFC 3339 as ECMAScript writes it. */
function isTime(value: JsonValue | undefined): boolean {
  if (typeof value !== 'string' || value.length !== 24) return false;
  const time = new Date(value);
  return time.getTime() >= 0 && time.toISOString() === value;
}

const TIMES = ['2026-02-29T00:00:00.000Z', '2024-02-29T23:59:59.999Z', '1969-12-31T23:59:59.999Z', '2026-13-01T00:00:00.000Z', '2026-01-31T24:00:00.000Z', '2026-01-31T23:59:60.000Z', '2100-02-29T00:00:00.000Z', '9999-12-31T23:59:59.999Z', '2026-04-31T00:00:00.000Z'];

/** A record whose MAC is right whatever its bytes say: what is left is how they are read. */
async function tryContent(random: Generator): Promise<Verdict> {
  let entry: JsonValue = { action: 'a', actor: 'b', origin: ORIGIN, outcome: 'success', seq: 0, ts: '2026-01-31T23:59:59.999Z' };
  if (random.oneIn(3)) entry = { ...entry, ts: random.oneIn(2) ? random.pick(TIMES) : mutateText(random, random.pick(TIMES)) };
  else if (random.oneIn(2)) entry = mutateJson(random, entry);
  const text = canonicalised(entry) ?? '';
  const bytes: Bytes = random.oneIn(3) ? mutateBytes(random, Buffer.from(text)) : new Uint8Array(Buffer.from(text));
  const prefix = Buffer.concat([Buffer.from('kg-audit-v1\0'), Buffer.of(0, ORIGIN.length), Buffer.from(ORIGIN)]);
  const mac = (await first.mac(new Uint8Array(Buffer.concat([prefix, Buffer.alloc(8), Buffer.alloc(32), bytes])))) as Bytes;
  const record = { seq: 0, bytes, prevMac: new Uint8Array(32), mac, macKeyId: 'mac-1' };
  const outcome = await outcomeOfLater(() => verifyRecords([record], { origin: ORIGIN, keys }), REFUSED);
  let expected = false;
  try {
    const written = Buffer.from(bytes).toString('utf8');
    const value = JSON.parse(written) as Record<string, JsonValue> | null;
    const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
    const isCanonical = Buffer.compare(Buffer.from(canonicalised(value) ?? ''), bytes) === 0;
    expected = isObject && isCanonical && value['origin'] === ORIGIN && value['seq'] === 0 && !Object.is(value['seq'], -0) && isTime(value['ts']);
  } catch {
    expected = false;
  }
  return agree(outcome.accepted, expected);
}

const restored = restoreEntry({ actor: 'user:1', oldCheckpoint: 'note\n\n\u2014 x y\n', keptSize: 7, keptRoot: new Uint8Array(randomBytes(32)) });

export const AUDIT: readonly Parser[] = [
  {
    name: 'audit.verifyRecords',
    async try(random) {
      let records: AuditRecord[] = [...CHAIN];
      if (random.oneIn(6)) records = records.slice(0, random.below(7));
      for (let left = random.pick([0, 1, 1, 1, 2]); left > 0; left -= 1) records = mutateList(random, records, (record) => mutateRecord(random, record), () => random.pick(CHAIN));
      const outcome = await outcomeOfLater(() => verifyRecords(records, { origin: ORIGIN, keys }), REFUSED);
      if (outcome.accepted) demand(outcome.value.seq === records.length, 'another position');
      return agree(outcome.accepted, isBeginning(records));
    },
  },
  { name: 'audit.verifyRecords, its MACs right', try: tryContent },
  {
    name: 'checkpoint.readRestore',
    try(random) {
      const entry = mutateJson(random, { ...restored, origin: ORIGIN, seq: 0, ts: '2026-01-31T23:59:59.999Z' });
      const valid = Buffer.from(canonicalised(entry) ?? '');
      const bytes = random.oneIn(3) ? mutateBytes(random, valid) : new Uint8Array(valid);
      const outcome = outcomeOf(() => readRestore(bytes), REFUSED, 'RejectedError json_not_canonical');
      if (!outcome.accepted) return 'refused';
      const value = JSON.parse(Buffer.from(bytes).toString('utf8')) as Record<string, JsonValue> | null;
      if (outcome.value === null) {
        demand(value?.['action'] !== 'audit.restore_acknowledged', 'did not see the restore');
        return 'refused';
      }
      const { outcome: written, ...again } = restoreEntry(outcome.value);
      demand(written === 'success', 'wrote another outcome');
      for (const [name, member] of Object.entries(again)) demandEqual(value?.[name], member, name);
      return 'accepted';
    },
  },
];
