/** The audit chain: what an entry costs to write, to seal and to verify, and whether that grows with the chain. */
import { createHmac, createSecretKey, randomBytes } from 'node:crypto';
import { chainAfter, chainStart, sealEntries, verifyRecords, webCryptoMacKey, type ChainPosition } from '@keyguard/core/audit';
import { canonicalJson, parseCanonicalJson } from '@keyguard/core/canonical-json';
import { memoryAuditSink } from '@keyguard/core/memory';
import type { AuditEntry, AuditMacKey, AuditRecord, Bytes, JsonValue } from '@keyguard/core/seams';
import { nodeMacKey } from '@keyguard/storage-node/postgres';
import { proxyCall } from './material.ts';
import { rowOf, rowsOf, type Row, type Section, type Suite } from './results.ts';
import { median, pairedMedian, timeInTurn } from './rounds.ts';

const ORIGIN = 'keyguard.example/log';
const KEY_ID = 'audit-mac-6f1d2c84-3f0b-4a57-9d68-1f4e2f7c9b10';
const NOW_MS = 1_767_225_600_000;
/** As many as a busy process writes in one transaction. */
const BATCH = 100;

const SEAL = 'seal, in batches of 100';
const APPEND = 'append to a memory sink, in batches of 100';
const VERIFY = 'verify';
const VERIFY_STREAM = 'verify, as a stream';
const VERIFY_WEBCRYPTO = 'verify on WebCrypto';
const BARE_MAC = 'bare HMAC of the same bytes (kept KeyObject)';

const label = (what: string, size: number): string => `${what}, ${size.toLocaleString('en-US')}`;

const entries = (from: number, count: number): AuditEntry[] => Array.from({ length: count }, (_, i) => proxyCall(from + i));

async function sealChain(size: number, key: AuditMacKey): Promise<AuditRecord[]> {
  const records: AuditRecord[] = [];
  let { seq, prevMac }: ChainPosition = chainStart();
  while (records.length < size) {
    const sealed = await sealEntries({ origin: ORIGIN, seq, prevMac, nowMs: NOW_MS, key, entries: entries(seq, Math.min(BATCH, size - seq)) });
    for (const record of sealed) records.push(record);
    ({ seq, prevMac } = chainAfter(sealed.at(-1)!));
  }
  return records;
}

async function* streamed(records: readonly AuditRecord[], from: number, to: number): AsyncGenerator<AuditRecord> {
  for (let i = from; i < to; i += 1) yield records[i]!;
}

export const audit: Suite = async ({ quick, million }) => {
  const secret: Bytes = new Uint8Array(randomBytes(32));
  const key = nodeMacKey({ keyId: KEY_ID, key: secret });
  const sizes = [1_000, 100_000, ...(!quick || million ? [1_000_000] : [])];
  const chain = await sealChain(sizes.at(-1)!, key);
  return [await timeParts(chain, secret, quick), await timeGrowth(chain, sizes, key, quick)];
};

/** The parts of the work on one entry, each alone. */
async function timeParts(chain: readonly AuditRecord[], secret: Bytes, quick: boolean): Promise<Section> {
  const key = nodeMacKey({ keyId: KEY_ID, key: secret });
  const onWebCrypto = await webCryptoMacKey({ keyId: KEY_ID, key: secret });
  const held = createSecretKey(secret);
  const keys = new Map([[KEY_ID, key]]);
  const keysOnWebCrypto = new Map([[KEY_ID, onWebCrypto]]);
  const records = chain.slice(0, 500);
  const [{ bytes }] = records as [AuditRecord];
  const value = parseCanonicalJson(bytes);
  // What the MAC of a record is made over has 8 + 32 bytes and the prefix of the chain before the entry.
  const input = new Uint8Array(12 + 2 + ORIGIN.length + 8 + 32 + bytes.length);
  let sink: unknown = null;
  const each = (name: string, body: () => unknown): { name: string; run: (operations: number) => void } => ({
    name,
    run(operations) {
      for (let i = 0; i < operations; i += 1) sink = body();
    },
  });
  const timings = await timeInTurn({
    operations: records.length,
    rounds: quick ? 30 : 150,
    warmUpRounds: quick ? 20 : 60,
    budgetMs: quick ? 5_000 : 12_000,
    contestants: [
      each(BARE_MAC, () => createHmac('sha256', held).update(input).digest()),
      { name: VERIFY, run: () => verified(records, keys) },
      { name: SEAL, run: () => sealed(records.length, key) },
      { name: VERIFY_WEBCRYPTO, run: () => verified(records, keysOnWebCrypto) },
      each('canonical JSON: write', () => canonicalJson(value as JsonValue)),
      each('canonical JSON: read, and check that it is', () => parseCanonicalJson(bytes)),
      each('JSON.stringify of the same', () => JSON.stringify(value)),
      each('JSON.parse of the same text', () => JSON.parse(TEXT.decode(bytes))),
    ],
  });
  if (sink === null) throw new Error('Nothing was timed.');
  const over = (a: string, b: string): number => pairedMedian([timings.get(a)!, timings.get(b)!], (x, y) => x / y);
  return {
    title: `One entry of an audit chain, ${bytes.length} bytes`,
    about:
      `Sealed and verified in runs of ${records.length} with a key on node:crypto. The limit is the MAC alone: what makes the chain is that there is one for each entry. ` +
      'Verifying also reads every entry and writes it again, to know that it is in its canonical form.',
    unit: 'µs',
    rows: rowsOf(timings, {
      [BARE_MAC]: 'limit',
      [VERIFY]: 'ours',
      [SEAL]: 'ours',
      [VERIFY_WEBCRYPTO]: 'ours',
      'canonical JSON: write': 'ours',
      'canonical JSON: read, and check that it is': 'ours',
    }),
    ratios: [
      { name: 'bare HMAC / verify an entry', value: over(BARE_MAC, VERIFY), goal: null },
      { name: 'bare HMAC / seal an entry', value: over(BARE_MAC, SEAL), goal: null },
      { name: 'verify an entry: WebCrypto / node:crypto', value: over(VERIFY_WEBCRYPTO, VERIFY), goal: null },
    ],
  };
}

const TEXT = new TextDecoder();

async function verified(records: readonly AuditRecord[], keys: ReadonlyMap<string, AuditMacKey>): Promise<void> {
  const { seq } = await verifyRecords(records, { origin: ORIGIN, keys });
  if (seq !== records.length) throw new Error('The chain ended early.');
}

async function sealed(count: number, key: AuditMacKey): Promise<void> {
  await sealChain(count, key);
}

/** Whole chains, and appends to chains that are that long already. */
async function timeGrowth(chain: readonly AuditRecord[], sizes: readonly number[], key: AuditMacKey, quick: boolean): Promise<Section> {
  const keys = new Map([[KEY_ID, key]]);
  const perSecond = (microseconds: readonly number[]): number[] => microseconds.map((value) => 1_000_000 / value);
  const whole = await timeInTurn({
    operations: 1,
    rounds: quick ? 5 : 7,
    warmUpRounds: 1,
    budgetMs: quick ? 10_000 : 40_000,
    contestants: sizes.flatMap((size) => {
      // A short chain again and again, so that each figure is of as many entries as can be seen.
      const times = Math.max(1, 50_000 / size);
      const operations = size * times;
      const repeat = (run: () => Promise<ChainPosition>) => async (): Promise<void> => {
        for (let i = 0; i < times; i += 1) if ((await run()).seq !== size) throw new Error('The chain ended early.');
      };
      const records = chain.length === size ? chain : chain.slice(0, size);
      return [
        { name: label(VERIFY, size), operations, run: repeat(() => verifyRecords(records, { origin: ORIGIN, keys })) },
        { name: label(VERIFY_STREAM, size), operations, run: repeat(() => verifyRecords(streamed(records, 0, size), { origin: ORIGIN, keys })) },
      ];
    }),
  });
  const appends = await timeInTurn({
    operations: 2 * BATCH,
    rounds: quick ? 30 : 100,
    warmUpRounds: quick ? 10 : 30,
    budgetMs: quick ? 4_000 : 10_000,
    contestants: sizes.map((size) => {
      const sink = memoryAuditSink({ origin: ORIGIN, macKey: key, records: chain.slice(0, size) });
      return {
        name: label(APPEND, size),
        async run(operations) {
          for (let i = 0; i < operations; i += BATCH) await sink.append(entries(i, BATCH));
        },
      };
    }),
  });
  const rows: Row[] = [VERIFY, VERIFY_STREAM].flatMap((what) => sizes.map((size) => rowOf(label(what, size), perSecond(whole.get(label(what, size))!), 'ours')));
  rows.push(...sizes.map((size) => rowOf(label(APPEND, size), perSecond(appends.get(label(APPEND, size))!), 'ours')));
  const [smallest = 0] = sizes;
  const largest = sizes.at(-1)!;
  const growth = (timings: ReadonlyMap<string, readonly number[]>, what: string): number =>
    pairedMedian([timings.get(label(what, largest))!, timings.get(label(what, smallest))!], (many, few) => many / few);
  const times = `${largest.toLocaleString('en-US')} / ${smallest.toLocaleString('en-US')}`;
  return {
    title: 'The same with long chains',
    about: 'Entries per second on one core: whole chains of as many entries as stands behind the name, verified from the first to the last; and appends to a sink that holds as many already.',
    unit: 'entries/s',
    rows,
    ratios: [
      { name: `verified entries/s, chain of ${largest.toLocaleString('en-US')}`, value: median(perSecond(whole.get(label(VERIFY, largest))!)), goal: { atLeast: 100_000 } },
      { name: `time to verify an entry, ${times}`, value: growth(whole, VERIFY), goal: { atMost: 1.25 } },
      { name: `time to append an entry, ${times}`, value: growth(appends, APPEND), goal: { atMost: 1.25 } },
    ],
  };
}
