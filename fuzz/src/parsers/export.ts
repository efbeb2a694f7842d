/** The export reader of `examples/audit-verifier`: its lines, and the verdict on a log that was tampered with. */
import { createHash } from 'node:crypto';
import { isUtf8 } from 'node:buffer';
import { auditCheckpoint, signCheckpoint, verifierKey } from '@keyguard/core/checkpoint';
import { appendLeaves, emptyTree, treeRoot, type Sha256 } from '@keyguard/core/merkle';
import type { AuditRecord, Bytes, JsonValue } from '@keyguard/core/seams';
import { linesOf, readExport, writeExport } from '@keyguard/example-audit-verifier/export';
import { verifyExport } from '@keyguard/example-audit-verifier/verify';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateJson, mutateList, mutateText } from '../mutate.ts';
import { agree, demand, demandEqual, outcomeOfLater, type Parser } from '../parser.ts';
import { CHAIN } from './audit.ts';

const UNREADABLE = 'UnreadableExport';
const ORIGIN = 'keyguard.test/audit/2026';
const primitives: Sha256 = { sha256: (data) => new Uint8Array(createHash('sha256').update(data).digest()) };

const { privateKey, publicKey } = (await crypto.subtle.generateKey('Ed25519', true, ['sign', 'verify'])) as CryptoKeyPair;
const signer = {
  publicKey: new Uint8Array(await crypto.subtle.exportKey('raw', publicKey)),
  sign: async (data: Bytes) => new Uint8Array(await crypto.subtle.sign('Ed25519', privateKey, data)),
};
const KEY = await verifierKey(ORIGIN, signer.publicKey);
const headMac = CHAIN.at(-1)!.mac;
const { frontier } = await appendLeaves(emptyTree(), CHAIN.map(({ bytes }) => bytes), primitives);
const NOTE = await signCheckpoint(auditCheckpoint({ origin: ORIGIN, size: CHAIN.length, root: await treeRoot(frontier, primitives), headMac }), signer);

async function linesFor(records: readonly AuditRecord[]): Promise<string[]> {
  const lines: string[] = [];
  for await (const line of writeExport({ origin: ORIGIN, size: CHAIN.length, mac: headMac, checkpoint: NOTE }, records)) lines.push(line);
  return lines;
}
const LINES = await linesFor(CHAIN);

function mutateLine(random: Generator, line: string): string {
  if (random.oneIn(2)) return mutateText(random, line, ['{"records":6}', '"handover_mac":', '[]', 'null', '1e0', '-0', ' ']);
  try {
    return JSON.stringify(mutateJson(random, JSON.parse(line) as JsonValue));
  } catch {
    return line;
  }
}

function mutateLines(random: Generator): string[] {
  let lines = LINES;
  for (let left = random.pick([0, 1, 1, 1, 2]); left > 0; left -= 1) lines = mutateList(random, lines, (line) => mutateLine(random, line), () => random.pick([...LINES, '', '{}', '{"records":5}']));
  return lines;
}

async function readAll(lines: readonly string[]): Promise<string[]> {
  const { header, records } = await readExport(lines);
  const kept: AuditRecord[] = [];
  for await (const record of records) kept.push(record);
  const written: string[] = [];
  for await (const line of writeExport(header, kept)) written.push(line);
  return written;
}

/** A value without its spelling: members in order, and zero without a sign. */
function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === 'object' && value !== null) return new Map(Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([name, each]) => [name, plain(each)]));
  return value === 0 ? 0 : value;
}

const isOriginal = (lines: readonly string[]): boolean => lines.length === LINES.length && lines.every((line, i) => line === LINES[i]);

export const EXPORT: readonly Parser[] = [
  {
    name: 'audit-verifier.readExport',
    async try(random) {
      const lines = mutateLines(random);
      const outcome = await outcomeOfLater(() => readAll(lines), UNREADABLE);
      if (!outcome.accepted) demand(!isOriginal(lines), 'refused the original');
      // What was read writes itself again, value for value: nothing was left out, and nothing read as something else.
      else demandEqual(outcome.value.map((line) => plain(JSON.parse(line))), lines.map((line) => plain(JSON.parse(line))), 'the export, written again,');
      return outcome.accepted ? 'accepted' : 'refused';
    },
  },
  {
    name: 'audit-verifier.linesOf',
    async try(random) {
      const bytes = mutateBytes(random, Buffer.from(LINES.slice(0, 3).join('\n')));
      async function* chunks(): AsyncGenerator<Uint8Array> {
        for (let at = 0; at < bytes.length; ) {
          const length = 1 + random.below(random.oneIn(3) ? 5 : 900);
          yield bytes.subarray(at, at + length);
          at += length;
        }
      }
      const outcome = await outcomeOfLater(async () => {
        const lines: string[] = [];
        for await (const line of linesOf(chunks())) lines.push(line);
        return lines;
      }, UNREADABLE);
      const lines = Buffer.from(bytes).toString('utf8').split('\n');
      if (lines.at(-1) === '') lines.pop();
      if (outcome.accepted) demandEqual(outcome.value, lines, 'the lines');
      return agree(outcome.accepted, isUtf8(bytes));
    },
  },
  {
    name: 'audit-verifier.verifyExport',
    async try(random) {
      const lines = mutateLines(random);
      // The checkpoint is kept elsewhere: what the export says of it cannot help whoever wrote the export.
      const outcome = await outcomeOfLater(() => verifyExport({ lines, checkpoints: [{ name: 'kept', note: NOTE }], verifierKeys: [KEY], macKeys: new Map(), primitives }), UNREADABLE);
      const isIntact = outcome.accepted && outcome.value.verdict === 'intact';
      if (!isIntact) demand(!isOriginal(lines), 'called the original attacked');
      else {
        const entries = lines.slice(1, -1).map((line) => (JSON.parse(line) as { entry: string }).entry);
        demandEqual(entries, CHAIN.map(({ bytes }) => Buffer.from(bytes).toString('base64')), 'the entries that were called intact');
      }
      return isIntact ? 'accepted' : 'refused';
    },
  },
];
