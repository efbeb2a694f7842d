/** A real log, as a database holds it, with the checkpoints that were kept elsewhere: what the attacks of the tests are made on. */
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { sealEntries, type ChainPosition } from '@keyguard/core/audit';
import { auditCheckpoint, signCheckpoint, verifierKey } from '@keyguard/core/checkpoint';
import { memoryAuditSink } from '@keyguard/core/memory';
import { appendLeaves, emptyTree, treeRoot, type Sha256 } from '@keyguard/core/merkle';
import type { AuditEntry, AuditMacKey, AuditRecord, Bytes, CheckpointSigner } from '@keyguard/core/seams';
import { writeExport } from '../src/export.ts';
import { verifyExport, type NamedNote, type Report, type VerifyExportOptions } from '../src/verify.ts';

export const ORIGIN = 'keyguard.test/audit/2026';
export const primitives: Sha256 = { sha256: (data: Bytes): Bytes => new Uint8Array(createHash('sha256').update(data).digest()) };

export const macSecrets = new Map(['mac-1', 'mac-2'].map((keyId) => [keyId, new Uint8Array(randomBytes(32))]));
export const macKeys: ReadonlyMap<string, AuditMacKey> = new Map(
  [...macSecrets].map(([keyId, key]) => [keyId, { keyId, mac: (data: Bytes): Bytes => new Uint8Array(createHmac('sha256', key).update(data).digest()) }]),
);

export async function newSigner(): Promise<CheckpointSigner> {
  const { privateKey, publicKey } = (await crypto.subtle.generateKey('Ed25519', false, ['sign', 'verify'])) as CryptoKeyPair;
  return {
    publicKey: new Uint8Array(await crypto.subtle.exportKey('raw', publicKey)),
    sign: async (data) => new Uint8Array(await crypto.subtle.sign('Ed25519', privateKey, data)),
  };
}
export const signer: CheckpointSigner = await newSigner();
export const publicKey: string = await verifierKey(ORIGIN, signer.publicKey);

/** What an attacker of the database can write to. */
export interface Database {
  records: AuditRecord[];
  head: { size: number; mac: Bytes };
  checkpoint: string | null;
}

export interface Log {
  readonly database: Database;
  /** Kept elsewhere, by size. */
  readonly notes: ReadonlyMap<number, string>;
}

export const entryOf = (n: number): AuditEntry => ({ action: n % 3 === 0 ? 'secret.reveal' : 'llm.call', outcome: 'success', actor: `user:${n % 5}`, n });

export function headOf(records: readonly AuditRecord[]): Database['head'] {
  return { size: records.length, mac: records.at(-1)?.mac ?? new Uint8Array(32) };
}

export async function rootOf(records: readonly AuditRecord[]): Promise<Bytes> {
  const { frontier } = await appendLeaves(emptyTree(), records.map(({ bytes }) => bytes), primitives);
  return treeRoot(frontier, primitives);
}

export async function noteOf(records: readonly AuditRecord[], origin = ORIGIN, by: CheckpointSigner = signer): Promise<string> {
  const { size, mac: headMac } = headOf(records);
  return signCheckpoint(auditCheckpoint({ origin, size, root: await rootOf(records), headMac }), by);
}

/** Goes on with `records` by `more` entries, a second apart, from number `from` of the entries; after 25 records the key is another. */
export async function extend(records: readonly AuditRecord[], more: number, from = records.length): Promise<AuditRecord[]> {
  let nowMs = 1_780_000_000_000 + records.length * 1000;
  let kept = [...records];
  for (let n = 0; n < more; n += 1) {
    const keys = kept.length < 25 ? { macKey: macKeys.get('mac-1')! } : { macKey: macKeys.get('mac-2')!, previousMacKeys: [macKeys.get('mac-1')!] };
    const sink = memoryAuditSink({ origin: ORIGIN, ...keys, records: kept, clock: { nowMs: () => (nowMs += 1000) } });
    await sink.append([entryOf(from + n)]);
    kept = [];
    for await (const record of sink.read(0)) kept.push(record);
  }
  return kept;
}

/** 60 records, a checkpoint every ten of them, and one more record than the last checkpoint knows of. */
export async function newLog(): Promise<Log> {
  const records = (await extend([], 60)).slice(0, 61);
  const notes = new Map<number, string>();
  for (let size = 10; size <= 60; size += 10) notes.set(size, await noteOf(records.slice(0, size)));
  return { database: { records, head: headOf(records), checkpoint: notes.get(60)! }, notes };
}

/** The records of `records` from `position` on, sealed anew over other entries: what only a holder of the key can do. */
export async function reseal(records: readonly AuditRecord[], from: number, entries: readonly AuditEntry[]): Promise<AuditRecord[]> {
  const before = records.slice(0, from);
  const position: ChainPosition = { seq: from, prevMac: headOf(before).mac, macKeyId: null };
  const key = macKeys.get(records[from]!.macKeyId)!;
  return [...before, ...(await sealEntries({ origin: ORIGIN, ...position, entries, nowMs: 1_790_000_000_000, key }))];
}

export interface Given {
  readonly database: Database;
  readonly notes: Iterable<string>;
  readonly origin?: string;
}

export async function exportOf({ records, head, checkpoint }: Database, origin = ORIGIN): Promise<string[]> {
  const lines: string[] = [];
  for await (const line of writeExport({ origin, ...head, checkpoint }, records)) lines.push(line);
  return lines;
}

export async function examine({ database, notes, origin }: Given, more: Partial<VerifyExportOptions> = {}): Promise<Report> {
  const checkpoints: NamedNote[] = [...notes].map((note, i) => ({ name: `checkpoint ${i}`, note }));
  const lines = await exportOf(database, origin);
  return verifyExport({ lines, checkpoints, verifierKeys: [publicKey], macKeys: new Map(), primitives, ...more });
}
