import { createHmac, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  chainAfter,
  chainStart,
  checkEntry,
  continueChain,
  rfc3339Utc,
  sealEntries,
  sealEntry,
  sealKeyChange,
  verifyRecords,
  webCryptoMacKey,
} from '../src/audit.ts';
import type { ChainPosition } from '../src/audit.ts';
import { UnavailableError } from '../src/errors.ts';
import { memoryAuditSink } from '../src/memory.ts';
import type { AuditEntry, AuditMacKey, AuditRecord, Bytes } from '../src/seams.ts';

interface HexRecord {
  seq: number;
  bytes: string;
  prevMac: string;
  mac: string;
  macKeyId: string;
  handover?: { macKeyId: string; mac: string };
}
interface Vector {
  tcId: number;
  comment: string;
  result: 'valid' | 'invalid';
  from?: { seq: number; prevMac: string; macKeyId: string | null };
  entries?: { nowMs: number; entry?: AuditEntry; keyChange?: { from: string; to: string } }[];
  records: HexRecord[];
  invalidSeq?: number;
}
const vectors = JSON.parse(readFileSync(new URL('../../../vectors/audit.json', import.meta.url), 'utf8')) as {
  numberOfTests: number;
  testGroups: [{ origin: string; keys: { keyId: string; key: string }[]; tests: Vector[] }];
};
const [group] = vectors.testGroups;

const fromHex = (hex: string): Bytes => new Uint8Array(Buffer.from(hex, 'hex'));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

function nodeMacKey(keyId: string, key: Uint8Array): AuditMacKey {
  return { keyId, mac: (data) => new Uint8Array(createHmac('sha256', key).update(data).digest()) };
}

const secret = new Uint8Array(randomBytes(32));
const key = nodeMacKey('k1', secret);
const origin = 'keyguard.test/audit';
const keys = new Map([['k1', key]]);
const nowMs = 1_767_225_600_000;
const entry: AuditEntry = { action: 'secret.reveal', outcome: 'success', actor: 'user:1' };

function chain(length: number, withKey: AuditMacKey = key): Promise<AuditRecord[]> {
  const entries = Array.from({ length }, (_, i) => ({ ...entry, n: i }));
  return sealEntries({ origin, seq: 0, prevMac: chainStart().prevMac, entries, nowMs, key: withKey });
}

async function detailOf(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(
    () => expect.fail('it verified'),
    (caught: unknown) => caught,
  );
  expect(error).toMatchObject({ name: 'RejectedError', code: 'audit_record_invalid' });
  return (error as { detail: string }).detail;
}

async function* streamed(records: readonly AuditRecord[]): AsyncGenerator<AuditRecord> {
  for (const record of records) yield record;
}

describe('vectors', async () => {
  const webCryptoKeys = new Map<string, AuditMacKey>();
  const nodeKeys = new Map<string, AuditMacKey>();
  for (const { keyId, key: hex } of group.keys) {
    webCryptoKeys.set(keyId, await webCryptoMacKey({ keyId, key: fromHex(hex) }));
    nodeKeys.set(keyId, nodeMacKey(keyId, fromHex(hex)));
  }
  const positionOf = ({ from }: Vector): ChainPosition =>
    from === undefined ? chainStart() : { ...from, prevMac: fromHex(from.prevMac) };
  const recordsOf = (v: Vector): AuditRecord[] =>
    v.records.map(({ handover, ...r }) => ({
      ...r,
      bytes: fromHex(r.bytes),
      prevMac: fromHex(r.prevMac),
      mac: fromHex(r.mac),
      ...(handover === undefined ? {} : { handover: { ...handover, mac: fromHex(handover.mac) } }),
    }));

  test('are all there', () => {
    expect(group.tests.length).toBe(vectors.numberOfTests);
  });

  describe.each([
    ['WebCrypto', webCryptoKeys],
    ['synchronous', nodeKeys],
  ])('with %s keys', (_, macKeys) => {
    test.each(group.tests)('$tcId $result: $comment', async (v) => {
      const records = recordsOf(v);
      for (const given of [records, streamed(records)]) {
        const verified = verifyRecords(given, { origin: group.origin, keys: macKeys, from: positionOf(v) });
        if (v.result === 'invalid') {
          expect(await detailOf(verified)).toMatch(new RegExp(`^seq ${v.invalidSeq}: `));
        } else {
          const last = records.at(-1);
          expect(await verified).toEqual(last === undefined ? positionOf(v) : chainAfter(last));
        }
      }
    });

    test.each(group.tests.filter((v) => v.entries !== undefined))('$tcId is sealed to the very same bytes', async (v) => {
      let position = positionOf(v);
      for (const [i, { nowMs: at, entry: given, keyChange }] of v.entries!.entries()) {
        const common = { origin: group.origin, ...position, nowMs: at, key: macKeys.get(v.records[i]!.macKeyId)! };
        const record =
          keyChange === undefined
            ? await sealEntry({ ...common, entry: given! })
            : await sealKeyChange({ ...common, from: macKeys.get(keyChange.from)! });
        expect(record).toEqual(recordsOf(v)[i]);
        position = chainAfter(record);
      }
    });
  });
});

describe('sealEntries', () => {
  test('writes bytes and MACs that a few lines on node:crypto confirm', async () => {
    const records = await chain(3);
    let prev = Buffer.alloc(32);
    for (const [seq, record] of records.entries()) {
      expect(Buffer.from(record.bytes).toString()).toBe(
        `{"action":"secret.reveal","actor":"user:1","n":${seq},"origin":"${origin}","outcome":"success","seq":${seq},"ts":"2026-01-01T00:00:00.000Z"}`,
      );
      const seqBytes = Buffer.alloc(8);
      seqBytes.writeBigUInt64BE(BigInt(seq));
      const head = Buffer.from(`kg-audit-v1\0\0${String.fromCharCode(origin.length)}${origin}`, 'latin1');
      const mac = createHmac('sha256', secret).update(head).update(seqBytes).update(prev).update(record.bytes).digest();
      expect(toHex(record.mac)).toBe(toHex(mac));
      prev = mac;
    }
  });

  test('a batch is the same as one by one, with a key that answers at once and one that does not', async () => {
    const slow = { keyId: 'k1', mac: (data: Bytes) => Promise.resolve(key.mac(data)) };
    const batch = await chain(20);
    expect(await chain(20, slow)).toEqual(batch);
    let position = chainStart();
    for (const [i, expected] of batch.entries()) {
      const record = await sealEntry({ origin, ...position, entry: { ...entry, n: i }, nowMs, key });
      expect(record).toEqual(expected);
      position = chainAfter(record);
    }
  });

  test('a key that answers at once is not awaited for each entry', async () => {
    const progress = { done: false };
    let turns = 0;
    void chain(1000).then(() => (progress.done = true));
    for (; !progress.done && turns < 100; turns += 1) await Promise.resolve();
    expect(turns).toBeLessThan(20);
  });

  test.each(['origin', 'seq', 'ts'])('refuses an entry that brings its own %s', async (name) => {
    for (const value of ['x', null]) {
      const sealed = sealEntry({ origin, ...chainStart(), entry: { ...entry, [name]: value }, nowMs, key });
      await expect(sealed).rejects.toMatchObject({ name: 'UsageError', code: 'invalid_option' });
    }
  });

  test('one bad entry fails the batch before any MAC is made', async () => {
    let macs = 0;
    const counted = { keyId: 'k1', mac: (data: Bytes) => ((macs += 1), key.mac(data)) };
    const bad = { ...entry, note: 'a\ud800' };
    const sealed = sealEntries({ origin, ...chainStart(), entries: [entry, bad], nowMs, key: counted });
    await expect(sealed).rejects.toMatchObject({ code: 'json_not_canonical' });
    expect(macs).toBe(0);
  });

  test.each([
    ['a negative seq', { seq: -1 }],
    ['a seq that is no integer', { seq: 0.5 }],
    ['a seq beyond 2^53 - 1', { seq: 2 ** 53 }],
    ['a prevMac of 31 bytes', { seq: 1, prevMac: new Uint8Array(31) }],
    ['a first record that follows something', { prevMac: new Uint8Array(32).fill(1) }],
    ['no origin', { origin: '' }],
    ['an origin with a line feed', { origin: 'a\nb' }],
    ['an origin with a space', { origin: 'a b' }],
    ['an origin with a plus sign', { origin: 'a+b' }],
    ['an origin of 256 characters', { origin: 'a'.repeat(256) }],
    ['a time that is NaN', { nowMs: Number.NaN }],
    ['a time that is no integer', { nowMs: 1.5 }],
    ['a time before 1970', { nowMs: -1 }],
    ['a time after 9999', { nowMs: 253_402_300_800_000 }],
  ])('refuses %s', async (_, part) => {
    const sealed = sealEntry({ origin, ...chainStart(), entry, nowMs, key, ...part });
    await expect(sealed).rejects.toMatchObject({ name: 'UsageError', code: 'invalid_option' });
  });

  test.each([
    ['throws', () => { throw new UnavailableError('audit_mac_key', 'down'); }],
    ['rejects', () => Promise.reject(new UnavailableError('audit_mac_key', 'down'))],
    ['answers with too few bytes', () => new Uint8Array(31)],
    ['answers with nothing', () => undefined as unknown as Bytes],
  ])('a key that %s is an outage, in sealing and in verifying', async (_, mac) => {
    const broken = { keyId: 'k1', mac };
    await expect(chain(1, broken)).rejects.toMatchObject({ name: 'UnavailableError', seam: 'audit_mac_key' });
    const verified = verifyRecords(await chain(1), { origin, keys: new Map([['k1', broken]]) });
    await expect(verified).rejects.toMatchObject({ name: 'UnavailableError', seam: 'audit_mac_key' });
  });
});

describe('verifyRecords', () => {
  const value = fc.jsonValue({ stringUnit: 'binary', maxDepth: 2 });
  const anEntry = fc.dictionary(fc.string({ unit: 'binary', minLength: 1 }), value).map((fields) => {
    const { origin: _origin, seq: _seq, ts: _ts, ...rest } = fields;
    return { ...rest, ...entry } as AuditEntry;
  });

  test('accepts whatever was sealed, in pieces of any size', async () => {
    const property = fc.asyncProperty(
      fc.array(anEntry, { maxLength: 8 }),
      fc.nat(8),
      fc.integer({ min: 0, max: 253_402_300_799_999 }),
      async (entries, cut, at) => {
        const records = await sealEntries({ origin, ...chainStart(), entries, nowMs: at, key });
        const middle = await verifyRecords(records.slice(0, cut), { origin, keys });
        const end = await verifyRecords(streamed(records.slice(cut)), { origin, keys, from: middle });
        expect(end.seq).toBe(entries.length);
        expect(end.prevMac).toEqual(records.at(-1)?.mac ?? new Uint8Array(32));
      },
    );
    await fc.assert(property, { numRuns: 100 });
  });

  test('notices every single bit of every record', async () => {
    const records = await chain(2);
    for (const [i, record] of records.entries()) {
      for (const part of ['bytes', 'prevMac', 'mac'] as const) {
        for (let bit = 0; bit < record[part].length * 8; bit += 1) {
          const changed = record[part].slice();
          changed[bit >> 3]! ^= 1 << (bit & 7);
          const edited = records.with(i, { ...record, [part]: changed });
          expect(await detailOf(verifyRecords(edited, { origin, keys }))).toMatch(new RegExp(`^seq ${i}: `));
        }
      }
    }
  });

  test('notices every drop, repetition and exchange of records, but not a missing tail', async () => {
    const records = await chain(5);
    for (let i = 0; i < 5; i += 1) {
      for (let j = 0; j < 5; j += 1) {
        if (i !== j) {
          const exchanged = records.with(i, records[j]!).with(j, records[i]!);
          expect(await detailOf(verifyRecords(exchanged, { origin, keys }))).toMatch(`seq ${Math.min(i, j)}: `);
        }
      }
      const dropped = records.toSpliced(i, 1);
      if (i < 4) expect(await detailOf(verifyRecords(dropped, { origin, keys }))).toMatch(`seq ${i}: `);
      else expect((await verifyRecords(dropped, { origin, keys })).seq).toBe(4);
      const repeated = records.toSpliced(i, 0, records[i]!);
      expect(await detailOf(verifyRecords(repeated, { origin, keys }))).toMatch(`seq ${i + 1}: `);
    }
  });

  test('takes from the caller where the piece begins, and under which key', async () => {
    const records = await chain(3);
    const from = chainAfter(records[0]!);
    expect((await verifyRecords(records.slice(1), { origin, keys, from })).seq).toBe(3);
    for (const wrong of [
      { ...from, seq: 0 },
      { ...from, prevMac: new Uint8Array(32) },
      { ...from, macKeyId: 'k0' },
    ]) {
      await detailOf(verifyRecords(records.slice(1), { origin, keys, from: wrong }));
    }
  });

  test('rubbish in place of a record is refused and named', async () => {
    const [record] = await chain(1);
    for (const rubbish of [null, undefined, 'x', {}, { ...record, bytes: 'x' }, { ...record, mac: null }, { ...record, prevMac: [] }]) {
      const verified = verifyRecords([rubbish as unknown as AuditRecord], { origin, keys });
      expect(await detailOf(verified)).toMatch(/^seq 0: /);
    }
  });

  test('an error of the store that is read passes through', async () => {
    const outage = new UnavailableError('audit_sink', 'down');
    async function* failing(): AsyncGenerator<AuditRecord> {
      yield* await chain(1);
      throw outage;
    }
    await expect(verifyRecords(failing(), { origin, keys })).rejects.toBe(outage);
  });
});

describe('a change of the MAC key', () => {
  const next = nodeMacKey('k2', new Uint8Array(randomBytes(32)));
  const third = nodeMacKey('k3', new Uint8Array(randomBytes(32)));
  const all = new Map([['k1', key], ['k2', next], ['k3', third]]);
  const usage = { name: 'UsageError', code: 'invalid_option' };

  async function changed(): Promise<AuditRecord[]> {
    const records = await chain(2);
    const change = await sealKeyChange({ origin, ...chainAfter(records[1]!), nowMs, from: key, key: next });
    return [...records, change, await sealEntry({ origin, ...chainAfter(change), entry, nowMs, key: next })];
  }

  test('verifies whole and in pieces, with both keys', async () => {
    const records = await changed();
    expect(await verifyRecords(records, { origin, keys: all })).toEqual(chainAfter(records[3]!));
    for (let cut = 0; cut <= 4; cut += 1) {
      const middle = await verifyRecords(records.slice(0, cut), { origin, keys: all });
      expect(middle.macKeyId).toBe([null, 'k1', 'k1', 'k2', 'k2'][cut]);
      await verifyRecords(streamed(records.slice(cut)), { origin, keys: all, from: middle });
    }
    for (const missing of ['k1', 'k2']) {
      const some = new Map([...all].filter(([id]) => id !== missing));
      expect(await detailOf(verifyRecords(records.slice(2), { origin, keys: some, from: chainAfter(records[1]!) }))).toMatch('is not known');
    }
  });

  test('notices every single bit of the handover', async () => {
    const records = await changed();
    const { mac } = records[2]!.handover!;
    for (let bit = 0; bit < 256; bit += 1) {
      const flipped = mac.slice();
      flipped[bit >> 3]! ^= 1 << (bit & 7);
      const edited = records.with(2, { ...records[2]!, handover: { macKeyId: 'k1', mac: flipped } });
      expect(await detailOf(verifyRecords(edited, { origin, keys: all }))).toBe('seq 2: the MAC of the key before it is wrong');
    }
  });

  test('rubbish in place of a handover is refused and named', async () => {
    const records = await changed();
    for (const handover of [null, 'x', {}, { macKeyId: 'k1' }, { macKeyId: 1, mac: records[2]!.mac }, { macKeyId: 'k1', mac: 'x' }]) {
      const edited = records.with(2, { ...records[2]!, handover: handover as never });
      expect(await detailOf(verifyRecords(edited, { origin, keys: all }))).toBe('seq 2: not a record');
      const added = records.with(1, { ...records[1]!, handover: handover as never });
      expect(await detailOf(verifyRecords(added, { origin, keys: all }))).toMatch(/^seq 1: /);
    }
  });

  test('is not for callers to write, nor possible before the first record or to the same key', async () => {
    const forged = { ...entry, action: 'audit.mac_key_change' };
    expect(() => checkEntry(forged)).toThrow(expect.objectContaining(usage));
    await expect(sealEntry({ origin, ...chainStart(), entry: forged, nowMs, key })).rejects.toMatchObject(usage);
    await expect(sealKeyChange({ origin, ...chainStart(), nowMs, from: key, key: next })).rejects.toMatchObject(usage);
    const after = chainAfter((await chain(1))[0]!);
    await expect(sealKeyChange({ origin, ...after, nowMs, from: key, key })).rejects.toMatchObject(usage);
    const endless = { ...next, keyId: 'k'.repeat(65_536) };
    await expect(sealKeyChange({ origin, ...after, nowMs, from: key, key: endless })).rejects.toMatchObject(usage);
  });

  test('an old key that does not answer is an outage', async () => {
    const after = chainAfter((await chain(1))[0]!);
    const broken = { keyId: 'k1', mac: () => new Uint8Array(31) };
    await expect(sealKeyChange({ origin, ...after, nowMs, from: broken, key: next })).rejects.toMatchObject({ seam: 'audit_mac_key' });
  });

  test('continueChain goes over once, follows those who went before, and never goes back', async () => {
    const base = { origin, entries: [entry], nowMs };
    const old = chainAfter((await chain(1))[0]!);
    const ids = async (options: Parameters<typeof continueChain>[0]): Promise<string[]> =>
      (await continueChain(options)).map((r) => `${r.handover?.macKeyId ?? ''}>${r.macKeyId}`);
    expect(await ids({ ...base, head: chainStart(), macKey: next, previousMacKeys: [key] })).toEqual(['>k2']);
    expect(await ids({ ...base, head: old, macKey: key, nextMacKey: next })).toEqual(['>k1']);
    expect(await ids({ ...base, head: old, macKey: next, previousMacKeys: [third, key] })).toEqual(['k1>k2', '>k2']);
    expect(await ids({ ...base, head: old, macKey: next, previousMacKeys: [key], entries: [] })).toEqual([]);
    const now = { ...old, macKeyId: 'k2' };
    expect(await ids({ ...base, head: now, macKey: key, nextMacKey: next })).toEqual(['>k2']);
    expect(await ids({ ...base, head: now, macKey: next, previousMacKeys: [key] })).toEqual(['>k2']);
    await expect(ids({ ...base, head: now, macKey: key })).rejects.toMatchObject({ name: 'UnavailableError', seam: 'audit_mac_key' });
    await expect(ids({ ...base, head: now, macKey: key, previousMacKeys: [third] })).rejects.toMatchObject({ name: 'UnavailableError' });
  });

  test('a sink that is opened with a new key goes over with its next append, and answers with its caller’s records only', async () => {
    const records = await chain(3);
    const sink = memoryAuditSink({ origin, macKey: next, previousMacKeys: [key], records });
    const answers = await Promise.all([sink.append([entry, entry]), sink.append([entry])]);
    expect(answers.map((answer) => answer.map(({ seq }) => seq))).toEqual([[4, 5], [6]]);
    const kept: AuditRecord[] = [];
    for await (const record of sink.read(0)) kept.push(record);
    expect((await verifyRecords(kept, { origin, keys: all })).seq).toBe(7);
    expect(kept.flatMap((r) => (r.handover === undefined ? [] : [r.seq]))).toEqual([3]);
    const stranger = memoryAuditSink({ origin, macKey: third, previousMacKeys: [key], records: kept });
    await expect(stranger.append([entry])).rejects.toMatchObject({ name: 'UnavailableError' });
  });
});

describe('rfc3339Utc', () => {
  test('writes what Date writes, for every time that it takes', () => {
    const same = (ms: number): boolean => rfc3339Utc(ms) === new Date(ms).toISOString();
    fc.assert(fc.property(fc.integer({ min: 0, max: 253_402_300_799_999 }), same), { numRuns: 5000 });
  });

  test('writes what Date writes, for the first and last millisecond of every day from 1970 to 2400 and of the last years', () => {
    const dayMs = 86_400_000;
    const wrong: number[] = [];
    const check = (day: number): void => {
      for (const ms of [day * dayMs, day * dayMs + dayMs - 1]) {
        if (rfc3339Utc(ms) !== new Date(ms).toISOString()) wrong.push(ms);
      }
    };
    for (let day = 0; day < 157_060; day += 1) check(day);
    for (let day = 2_931_000; day < 2_932_897; day += 1) check(day);
    expect(wrong).toEqual([]);
    expect(rfc3339Utc(253_402_300_799_999)).toBe('9999-12-31T23:59:59.999Z');
  });
});

describe('webCryptoMacKey', () => {
  test('gives HMAC-SHA-256, keeps the key non-extractable and does without the bytes afterwards', async () => {
    const imports: unknown[][] = [];
    const { subtle } = globalThis.crypto;
    const crypto = {
      subtle: {
        importKey: (...args: Parameters<SubtleCrypto['importKey']>) => {
          imports.push(args);
          return subtle.importKey(...args);
        },
        sign: subtle.sign.bind(subtle),
      },
    } as unknown as Crypto;
    const given = secret.slice();
    const made = await webCryptoMacKey({ keyId: 'k1', key: given, crypto });
    given.fill(0);
    expect(imports.map((args) => [args[3], args[4]])).toEqual([[false, ['sign']]]);
    const data = new Uint8Array(randomBytes(99));
    expect(await made.mac(data)).toEqual(await key.mac(data));
  });

  test('refuses keys of another size, and no name', async () => {
    for (const options of [
      { keyId: 'k', key: new Uint8Array(31) },
      { keyId: 'k', key: new Uint8Array(64) },
      { keyId: '', key: new Uint8Array(32) },
    ]) {
      await expect(webCryptoMacKey(options)).rejects.toMatchObject({ code: 'invalid_option' });
    }
  });
});
