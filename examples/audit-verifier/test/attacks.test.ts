/** Each of the ten attacks, on a real chain: told and named, with the public key alone and with the MAC keys. */
import { randomBytes } from 'node:crypto';
import { chainStart, continueChain } from '@keyguard/core/audit';
import { utf8 } from '@keyguard/core/bytes';
import { auditCheckpoint, restoreEntry, signCheckpoint, verifierKey } from '@keyguard/core/checkpoint';
import type { AuditRecord, Bytes } from '@keyguard/core/seams';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Attack } from '../src/attacks.ts';
import type { Report } from '../src/verify.ts';
import { entryOf, examine, exportOf, extend, headOf, macKeys, newLog, newSigner, noteOf, ORIGIN, primitives, publicKey, reseal, rootOf, signer, type Database } from './log.ts';

const log = await newLog();
const { notes } = log;
const genuine = log.database.records;

interface Case {
  readonly title: string;
  readonly attack: Attack;
  /** What the database holds afterwards; it begins as a copy of the genuine one. */
  readonly database?: (database: Database) => Promise<void> | void;
  /** What the auditor kept, where the attack is there. */
  readonly notes?: () => Promise<readonly string[]> | readonly string[];
  /** The range, with the public key alone. */
  readonly range: readonly [number, number] | null;
  /** The same with the MAC keys, where that is closer. */
  readonly entries?: readonly [number, number] | null;
  /** What the MAC keys make of it, where that is another. */
  readonly attackByKey?: Attack;
}

// One character for each byte, so that bytes that are no text any more come through as well.
const contentOf = (record: AuditRecord): string => Buffer.from(record.bytes).toString('latin1');
const withContent = (record: AuditRecord, change: (text: string) => string): AuditRecord => ({
  ...record,
  bytes: new Uint8Array(Buffer.from(change(contentOf(record)), 'latin1')),
});
/** Numbers the records anew, beside the entry and inside it, and links them: all that can be done without the key. */
function renumber(records: readonly AuditRecord[]): AuditRecord[] {
  return records.map((record, seq) => ({
    ...withContent(record, (text) => text.replace(/"seq":\d+/, `"seq":${seq}`)),
    seq,
    prevMac: records[seq - 1]?.mac ?? chainStart().prevMac,
  }));
}
const noise = (): Bytes => new Uint8Array(randomBytes(32));
function forge(seq: number, prevMac: Bytes): AuditRecord {
  const text = contentOf(genuine[seq]!).replace(/"actor":"[^"]*"/, '"actor":"user:mallory"');
  return { seq, bytes: utf8(text), prevMac, mac: noise(), macKeyId: genuine[seq]!.macKeyId };
}
/** The column `seq` follows the rows again. */
const recount = (records: readonly AuditRecord[]): AuditRecord[] => records.map((record, seq) => ({ ...record, seq }));

const cases: Case[] = [
  {
    title: 'the actor of entry 33 is another',
    attack: 'edit',
    database: (db) => void (db.records[33] = withContent(db.records[33]!, (text) => text.replace(/"actor":"[^"]*"/, '"actor":"user:mallory"'))),
    range: [30, 40],
    entries: [33, 34],
  },
  {
    title: 'entry 3 is no JSON any more',
    attack: 'edit',
    database: (db) => void (db.records[3] = { ...db.records[3]!, bytes: utf8('gone') }),
    range: [3, 4],
  },
  {
    title: 'an entry after the last checkpoint is another: only the key can tell',
    attack: 'edit',
    database: (db) => void (db.records[60] = withContent(db.records[60]!, (text) => text.replace('success', 'refused'))),
    range: null,
    entries: [60, 61],
  },
  {
    title: 'the MAC of entry 12 is another',
    attack: 'edit',
    database: (db) => void (db.records[12] = { ...db.records[12]!, mac: noise() }),
    range: [12, 14],
    entries: [12, 13],
  },
  {
    title: 'the key id of entry 12 is another',
    attack: 'edit',
    database: (db) => void (db.records[12] = { ...db.records[12]!, macKeyId: 'mac-2' }),
    range: [11, 14],
    entries: [12, 13],
  },
  {
    title: 'a forged record at 21, the others moved on by one',
    attack: 'insert',
    database: (db) => {
      db.records = recount(db.records.toSpliced(21, 0, forge(21, db.records[20]!.mac)));
      db.head = headOf(db.records);
    },
    range: [21, 22],
  },
  {
    title: 'a forged record at 21, the head as it was',
    attack: 'insert',
    database: (db) => void (db.records = recount(db.records.toSpliced(21, 0, forge(21, db.records[20]!.mac)))),
    range: [21, 22],
  },
  {
    title: 'a forged record at 21, all after it renumbered and linked anew',
    attack: 'insert',
    database: (db) => {
      db.records = renumber(db.records.toSpliced(21, 0, forge(21, db.records[20]!.mac)));
      db.head = headOf(db.records);
    },
    range: [20, 31],
    entries: [21, 22],
  },
  {
    title: 'a genuine record a second time, at another place',
    attack: 'insert',
    database: (db) => void (db.records = recount(db.records.toSpliced(40, 0, db.records[15]!))),
    range: [40, 41],
  },
  {
    title: 'records beyond the head',
    attack: 'insert',
    database: (db) => void db.records.push({ ...forge(60, db.records[60]!.mac), seq: 61, bytes: utf8(contentOf(db.records[60]!).replace('"seq":60', '"seq":61')) }),
    range: [61, 62],
  },
  {
    title: 'entries 14 and 17 have changed places',
    attack: 'reorder',
    database: (db) => void (db.records = recount(db.records.with(14, db.records[17]!).with(17, db.records[14]!))),
    range: [14, 18],
  },
  {
    title: 'entries 40 to 44 are turned round',
    attack: 'reorder',
    database: (db) => void (db.records = recount([...db.records.slice(0, 40), ...db.records.slice(40, 45).toReversed(), ...db.records.slice(45)])),
    range: [40, 45],
  },
  {
    title: 'entries 34 and 35 are gone',
    attack: 'drop-middle',
    database: (db) => void db.records.splice(34, 2),
    range: [34, 36],
  },
  {
    title: 'entries 34 and 35 are gone, the others counted anew',
    attack: 'drop-middle',
    database: (db) => {
      db.records = recount(db.records.toSpliced(34, 2));
      db.head = headOf(db.records);
    },
    range: [34, 36],
  },
  {
    title: 'entries 34 and 35 are gone, all after them renumbered and linked anew',
    attack: 'drop-middle',
    database: (db) => {
      db.records = renumber(db.records.toSpliced(34, 2));
      db.head = headOf(db.records);
    },
    range: [30, 40],
    entries: [34, 36],
  },
  {
    title: 'the first entry is gone',
    attack: 'drop-middle',
    database: (db) => void db.records.shift(),
    range: [0, 1],
  },
  {
    title: 'the last twelve are gone',
    attack: 'drop-tail',
    database: (db) => void db.records.splice(49),
    range: [49, 61],
  },
  {
    title: 'the last one, which no checkpoint knows of, is gone, and the head knows',
    attack: 'drop-tail',
    database: (db) => void db.records.pop(),
    range: [60, 61],
  },
  {
    title: 'the last twelve are gone, and the head follows; the stored checkpoint knows',
    attack: 'drop-tail',
    database: (db) => {
      db.records.splice(49);
      db.head = headOf(db.records);
    },
    range: [49, 60],
  },
  {
    title: 'all are gone',
    attack: 'drop-all',
    database: (db) => void (db.records = []),
    range: [0, 61],
  },
  {
    title: 'all are gone, from head and checkpoints too',
    attack: 'drop-all',
    database: (db) => {
      db.records = [];
      db.head = headOf([]);
      db.checkpoint = null;
    },
    range: [0, 60],
  },
  {
    title: 'two processes went on from entry 20 with the same keys, and both signed',
    attack: 'fork',
    database: async (db) => {
      db.records = await extend(genuine.slice(0, 20), 40, 100);
      db.head = headOf(db.records);
      db.checkpoint = await noteOf(db.records.slice(0, 50));
    },
    notes: () => [10, 20, 30].map((size) => notes.get(size)!),
    range: [20, 30],
  },
  {
    title: 'two signed checkpoints of 30 entries with different roots',
    attack: 'fork',
    notes: async () => [...notes.values(), await noteOf((await extend(genuine.slice(0, 20), 20, 100)).slice(0, 30))],
    range: [20, 30],
  },
  {
    title: 'an older state that was put back, and went on and signed',
    attack: 'fork',
    database: async (db) => {
      db.records = await extend(genuine.slice(0, 45), 30, 200);
      db.head = headOf(db.records);
      db.checkpoint = await noteOf(db.records.slice(0, 70));
    },
    range: [40, 50],
  },
  {
    title: 'the checkpoint in the database is signed by another key',
    attack: 'swapped-checkpoint',
    database: async (db) => void (db.checkpoint = await noteOf(genuine.slice(0, 60), ORIGIN, await newSigner())),
    range: null,
  },
  {
    title: 'the checkpoint in the database is one of another log',
    attack: 'swapped-checkpoint',
    database: async (db) => void (db.checkpoint = await noteOf(genuine.slice(0, 60), 'keyguard.test/else')),
    range: null,
  },
  {
    title: 'a checkpoint that was kept has another size',
    attack: 'swapped-checkpoint',
    notes: () => [...notes.values()].with(2, notes.get(30)!.replace('\n30\n', '\n29\n')),
    range: null,
  },
  {
    title: 'a checkpoint that was kept names two MACs, and is signed',
    attack: 'swapped-checkpoint',
    notes: async () => {
      const made = auditCheckpoint({ origin: ORIGIN, size: 60, root: await rootOf(genuine.slice(0, 60)), headMac: genuine[59]!.mac });
      return [await signCheckpoint({ ...made, extensions: [...made.extensions, ...made.extensions] }, signer)];
    },
    range: null,
  },
  {
    title: 'the state of yesterday, head and checkpoints with it',
    attack: 'restored-old-database',
    database: (db) => {
      db.records.splice(35);
      db.head = headOf(db.records);
      db.checkpoint = notes.get(30)!;
    },
    range: [35, 60],
  },
  {
    title: 'entries 22 and on sealed anew, with what was in 22 taken out of the story',
    attack: 'rewrite-by-key-holder',
    database: async (db) => {
      const entries = Array.from({ length: 4 }, (_, i) => ({ ...entryOf(22 + i), actor: 'user:nobody' }));
      const resealed = await reseal(db.records, 22, entries);
      let position = { seq: 26, prevMac: resealed[25]!.mac, macKeyId: 'mac-1' as string | null };
      for (let n = 26; n < 61; n += 1) {
        const more = await continueChain({ origin: ORIGIN, head: position, entries: [entryOf(n)], nowMs: 1_790_000_000_000, macKey: macKeys.get('mac-1')! });
        resealed.push(...more);
        position = { seq: n + 1, prevMac: more.at(-1)!.mac, macKeyId: 'mac-1' };
      }
      db.records = resealed;
      db.head = headOf(db.records);
    },
    range: [20, 30],
  },
  {
    title: 'one entry fewer than before, sealed anew',
    attack: 'rewrite-by-key-holder',
    database: async (db) => {
      db.records = await reseal(db.records, 52, Array.from({ length: 8 }, (_, i) => entryOf(53 + i)));
      db.head = headOf(db.records);
    },
    range: [50, 60],
  },
  {
    title: 'noise in place of the MACs looks like it without the key, and not with it',
    attack: 'rewrite-by-key-holder',
    attackByKey: 'edit',
    database: (db) => {
      db.records[15] = withContent(db.records[15]!, (text) => text.replace('success', 'refused'));
      for (let i = 15; i < db.records.length; i += 1) db.records[i] = { ...db.records[i]!, prevMac: db.records[i - 1]!.mac, mac: noise() };
      db.head = headOf(db.records);
    },
    range: [10, 20],
    entries: [15, 20],
  },
];

describe.each(['with the public key alone', 'with the MAC keys'] as const)('%s', (mode) => {
  const keys = mode === 'with the MAC keys' ? macKeys : new Map<string, never>();
  const run = (database: Database, kept: Iterable<string> = notes.values()): Promise<Report> => examine({ database, notes: kept }, { macKeys: keys });

  test('what was not touched is intact', async () => {
    const report = await run(structuredClone(log.database));
    expect(report).toEqual({ verdict: 'intact', origin: ORIGIN, records: 61, provenSize: 60, macs: keys.size > 0 ? 'right' : 'not checked', findings: [], restore: null });
  });

  test('so is every earlier state with the checkpoints of its time, and an empty log', async () => {
    for (let size = 0; size <= 60; size += 7) {
      const records = genuine.slice(0, size);
      const own = [...notes].filter(([at]) => at <= size).map(([, note]) => note);
      const database = { records, head: headOf(records), checkpoint: null };
      const { verdict, findings } = await run(database, [...own, await noteOf([])]);
      expect([size, verdict, findings]).toEqual([size, 'intact', []]);
    }
  });

  test.each(cases.filter(({ range, entries }) => (keys.size > 0 ? (entries ?? range) : range) !== null || entries === undefined))('$attack: $title', async (given) => {
    const database = structuredClone(log.database);
    await given.database?.(database);
    const report = await run(database, (await given.notes?.()) ?? notes.values());
    const expected = keys.size > 0 ? (given.entries ?? given.range) : given.range;
    const attack = keys.size > 0 ? (given.attackByKey ?? given.attack) : given.attack;
    const [first] = report.findings;
    expect(report.findings.map((f) => [f.attack, f.range === null ? null : [f.range.from, f.range.to]])[0]).toEqual([attack, expected === null ? null : [...expected]]);
    expect(report.findings.every((f) => f.attack === attack)).toBe(true);
    expect(report.verdict).toBe('attacked');
    // A range that is not exact still has what was touched inside it.
    if (given.entries && keys.size === 0) expect(first!.isExact).toBe(false);
  });
});

describe('whatever is done to the records', () => {
  type Change = (records: AuditRecord[], at: number, other: number) => AuditRecord[];
  const flip = (bytes: Bytes, bit: number): Bytes => bytes.map((byte, i) => (i === (bit >> 3) % bytes.length ? byte ^ (1 << (bit & 7)) : byte));
  const changes: Record<string, Change> = {
    'a bit of an entry': (records, at, other) => records.with(at, { ...records[at]!, bytes: flip(records[at]!.bytes, other * 7) }),
    'a bit of a MAC': (records, at, other) => records.with(at, { ...records[at]!, mac: flip(records[at]!.mac, other) }),
    'a bit of a link': (records, at, other) => records.with(at, { ...records[at]!, prevMac: flip(records[at]!.prevMac, other) }),
    'a number': (records, at, other) => records.with(at, { ...records[at]!, seq: other === at ? other + 1 : other }),
    'a key id': (records, at) => records.with(at, { ...records[at]!, macKeyId: 'mac-3' }),
    'a record less': (records, at) => records.toSpliced(at, 1),
    'a record twice': (records, at, other) => records.toSpliced(other, 0, records[at]!),
    'two records exchanged': (records, at, other) => (at === other ? records.slice(1) : records.with(at, records[other]!).with(other, records[at]!)),
    'a record in place of another': (records, at, other) => (at === other ? records.slice(1) : records.with(at, records[other]!)),
    'less at the end': (records, at) => records.slice(0, at),
  };

  test.each(Object.keys(changes))('%s changed, counted and linked anew or not: it is never intact', async (name) => {
    const property = fc.asyncProperty(fc.nat(60), fc.nat(60), fc.constantFrom('as it is', 'counted', 'relinked'), fc.boolean(), async (at, other, care, hasHead) => {
      const database = structuredClone(log.database);
      const changed = changes[name]!(database.records, at, other);
      database.records = care === 'as it is' ? changed : care === 'counted' ? recount(changed) : renumber(changed);
      // Without a MAC key nothing vouches for what is after the last checkpoint, nor for a link that was mended.
      const before = JSON.stringify(genuine.slice(0, 60).map((r) => [...r.bytes]));
      const isTouched = JSON.stringify(database.records.slice(0, 60).map((r) => [...r.bytes])) !== before;
      if (hasHead) database.head = headOf(database.records);
      const report = await examine({ database, notes: notes.values() });
      if (isTouched) expect(report.verdict).toBe('attacked');
      const isSame = JSON.stringify(database.records.map((r) => ({ ...r, bytes: [...r.bytes] }))) === JSON.stringify(genuine.map((r) => ({ ...r, bytes: [...r.bytes] })));
      const withKeys = await examine({ database, notes: notes.values() }, { macKeys: new Map([...macKeys, ['mac-3', macKeys.get('mac-1')!]]) });
      // Only the loss of the very last one, with the head, leaves a log as it once was.
      const isOnce = database.records.length === 60 && !isTouched && hasHead;
      if (!isSame && !isOnce) expect(withKeys.verdict).toBe('attacked');
    });
    await fc.assert(property, { numRuns: 60 });
  });
});

describe('what a verifier must not say', () => {
  test('that an entry is proven which no checkpoint covers', async () => {
    const database = structuredClone(log.database);
    database.records[60] = withContent(database.records[60]!, (text) => text.replace('success', 'refused'));
    const report = await examine({ database, notes: notes.values() });
    expect(report).toMatchObject({ verdict: 'intact', records: 61, provenSize: 60, macs: 'not checked' });
  });

  test('that a log is intact without a checkpoint that vouches for it', async () => {
    for (const kept of [[], [await noteOf(genuine)]]) {
      const database = { ...structuredClone(log.database), checkpoint: null };
      const { verdict } = await examine({ database, notes: kept }, { verifierKeys: [publicKey] });
      expect(verdict).toBe(kept.length === 0 ? 'unproven' : 'intact');
    }
  });

  test('that MACs are right when a key is missing', async () => {
    const { macs, verdict } = await examine({ database: log.database, notes: notes.values() }, { macKeys: new Map([['mac-1', macKeys.get('mac-1')!]]) });
    expect([macs, verdict]).toEqual(['not checked', 'intact']);
  });

  test('anything of an export that is not whole', async () => {
    const lines = await exportOf(log.database);
    const cuts = [[], lines.slice(0, 1), lines.slice(0, -1), lines.slice(1), [...lines, lines.at(-1)!], lines.toSpliced(5, 1), lines.with(5, '{}'), lines.with(5, 'x'), lines.with(5, lines[5]!.replace('"seq"', '"SEQ"')),
      lines.with(0, lines[0]!.replace('-v1', '-v2')), lines.with(5, lines[5]!.replace(/"mac":"..../, '"mac":"'))];
    for (const cut of cuts) {
      const verified = examine({ database: log.database, notes: [] }, { lines: cut });
      await expect(verified).rejects.toMatchObject({ name: 'UnreadableExport' });
    }
  });
});

describe('after an acknowledged restore', async () => {
  const NEW = 'keyguard.test/audit/2026-restored';
  const newKey = await verifierKey(NEW, signer.publicKey);
  const kept = genuine.slice(0, 45);
  async function restored(oldCheckpoint: string): Promise<{ database: Database; note: string }> {
    const entries = [restoreEntry({ actor: 'user:1', oldCheckpoint, keptSize: 45, keptRoot: await rootOf(kept) }), entryOf(1), entryOf(2)];
    const records = await continueChain({ origin: NEW, head: chainStart(), entries, nowMs: 1_790_000_000_000, macKey: macKeys.get('mac-2')! });
    const { size, mac } = headOf(records);
    const note = await signCheckpoint(auditCheckpoint({ origin: NEW, size, root: await rootOf(records), headMac: mac }), signer);
    return { database: { records, head: { size, mac }, checkpoint: note }, note };
  }
  const run = (database: Database, kept: string[], verifierKeys = [newKey, publicKey]): Promise<Report> =>
    examine({ database, notes: kept, origin: NEW }, { verifierKeys, macKeys, primitives });

  test('the new log is intact, and says what the old one lost', async () => {
    const { database, note } = await restored(notes.get(60)!);
    const report = await run(database, [note, notes.get(60)!, notes.get(30)!]);
    expect(report).toMatchObject({ verdict: 'intact', origin: NEW, provenSize: 3, restore: { oldOrigin: ORIGIN, lostFrom: 45, lostTo: 60 } });
  });

  test('citing an older checkpoint than is known, one that does not verify, or one whose key is not known, is told', async () => {
    const older = await restored(notes.get(50)!);
    expect((await run(older.database, [older.note, notes.get(60)!])).findings.map(({ attack }) => attack)).toEqual(['swapped-checkpoint']);
    const edited = await restored(notes.get(60)!.replace('\n60\n', '\n50\n'));
    expect((await run(edited.database, [edited.note])).findings.map(({ attack }) => attack)).toEqual(['swapped-checkpoint']);
    const right = await restored(notes.get(60)!);
    expect((await run(right.database, [right.note], [newKey])).findings.map(({ attack }) => attack)).toEqual(['swapped-checkpoint']);
  });
});
