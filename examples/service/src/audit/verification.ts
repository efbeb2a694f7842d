/**
 * `POST /api/audit/verify`: goes through the whole log with the MAC keys and with the checkpoints that are kept outside, and names what
 * was done to it. Whoever does not trust this service verifies an export with `examples/audit-verifier`, which is the same code.
 */
import { setImmediate } from 'node:timers/promises';
import * as z from 'zod';
import { fromUtf8 } from '@keyguard/core/bytes';
import { readRestore, verifierKey } from '@keyguard/core/checkpoint';
import { isRejected, isUnavailable } from '@keyguard/core/errors';
import type { AuditRecord } from '@keyguard/core/seams';
import { writeExport } from '@keyguard/example-audit-verifier/export';
import { verifyExport, type NamedNote, type Report } from '@keyguard/example-audit-verifier/verify';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import { bytesOf, integer } from '../db/values.ts';
import { operation, type Operation } from '../http/operations.ts';
import { HttpProblem } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { listChains } from './chains.ts';
import { readHead } from './checkpoint-store.ts';
import type { KeptCheckpoints } from './kept.ts';
import type { AuditLog } from './log.ts';
import { RECORD_COLUMNS, recordOf, type RecordRow } from './records.ts';
import { sha256 } from './tree.ts';

// What is worked through between two turns of everything else.
const PAGE = 200;
/** Of each chain. Each costs a root; the newest ones say most. */
const MAX_NOTES = 1000;
const MAX_COPIES = 100;
const MAX_COLUMN_CHARACTERS = 256;
const COPIED = ['actor', 'device_id', 'action', 'resource', 'outcome', 'ip', 'request_id'] as const;

export interface Verification extends Report {
  /** Entries whose columns, by which they are found and shown to people, say something else than they do themselves. */
  readonly wrongCopies: readonly number[];
}

export interface VerificationOptions {
  readonly sql: SqlClient;
  readonly keys: Pick<DeploymentKeys, 'deploymentId' | 'rowMacKey' | 'auditMac' | 'checkpointSigner'>;
  readonly kept: KeptCheckpoints;
  readonly origin: string;
}

type CheckedRow = RecordRow & Readonly<Record<(typeof COPIED)[number], string | null>> & { readonly ts_ms: unknown };

/** Verifies the chain `origin` as the database has it now. Takes half a minute of one core for a million entries, in small pieces. */
export async function verifyLog({ sql, keys, kept, origin }: VerificationOptions): Promise<Verification> {
  await keys.auditMac.reload();
  const wrongCopies: number[] = [];

  async function* records(): AsyncGenerator<AuditRecord> {
    for (let after = -1; ; ) {
      const { rows } = await asJobs(sql, (tx) =>
        tx.query<CheckedRow>(
          `SELECT ${RECORD_COLUMNS}, ts_ms, ${COPIED.join(', ')}
            FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq > $2::bigint ORDER BY seq LIMIT ${PAGE}`,
          [origin, after],
        ),
      );
      for (const row of rows) {
        if (wrongCopies.length < MAX_COPIES && !isCopied(row)) wrongCopies.push(integer(row.seq));
        yield recordOf(row);
      }
      if (rows.length < PAGE) return;
      after = integer(rows.at(-1)!.seq);
      await setImmediate();
    }
  }

  const { chains, head, checkpoint, first } = await asJobs(sql, async (tx) => ({
    chains: await listChains(tx, keys),
    checkpoint: (await tx.query<{ signed_note: string }>('SELECT signed_note FROM keyguard.audit_checkpoints WHERE origin = $1 ORDER BY tree_size DESC LIMIT 1', [origin])).rows[0],
    head: await readHead(tx, origin),
    first: (await tx.query<{ entry: unknown }>('SELECT entry FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq = 0', [origin])).rows[0],
  }));
  const origins = chains.map((chain) => chain.origin);
  const own = await Promise.all(origins.map((name) => verifierKey(name, keys.checkpointSigner.publicKey)));
  const report = await verifyExport({
    lines: writeExport({ origin, size: head.size, mac: head.mac, checkpoint: checkpoint?.signed_note ?? null }, records()),
    checkpoints: await notesFor(kept, origin, citedOrigin(first?.entry), origins),
    verifierKeys: [...new Set([...own, ...(await kept.verifierKeys())])],
    macKeys: keys.auditMac.all,
    primitives: sha256,
  });
  if (wrongCopies.length === 0) return { ...report, wrongCopies };
  const copies = wrongCopies.map((seq) => ({
    attack: 'edit' as const, range: { from: seq, to: seq + 1 }, isExact: true, because: 'The columns beside the entry, by which it is found, say something else than it does.',
  }));
  return { ...report, verdict: 'attacked', findings: [...report.findings, ...copies], wrongCopies };
}

/** Whether the columns say what the entry says, as the sink writes them. */
function isCopied(row: CheckedRow): boolean {
  let entry: Readonly<Record<string, unknown>>;
  try {
    entry = JSON.parse(fromUtf8(bytesOf(row.entry))) as Readonly<Record<string, unknown>>;
  } catch {
    // The entry itself is what is wrong, and is named as that.
    return true;
  }
  const column = (value: unknown): string | null => (typeof value === 'string' ? value.slice(0, MAX_COLUMN_CHARACTERS).replaceAll('\0', '\uFFFD') : null);
  return COPIED.every((name) => row[name] === column(entry[name])) && Date.parse(String(entry['ts'])) === integer(row.ts_ms);
}

function citedOrigin(entry: unknown): string | null {
  if (entry === undefined) return null;
  try {
    return readRestore(bytesOf(entry))?.oldCheckpoint.split('\n')[0] ?? null;
  } catch (error) {
    if (!isRejected(error)) throw error;
    return null;
  }
}

/** What is kept of this chain and of the one that it cites; all that is of no chain at all; and nothing of chains before. */
async function notesFor(kept: KeptCheckpoints, origin: string, cited: string | null, origins: readonly string[]): Promise<readonly NamedNote[]> {
  const older = new Set(origins.filter((name) => name !== origin && name !== cited));
  let notes: NamedNote[] = [];
  let number = 0;
  for await (const note of kept.all()) {
    number += 1;
    if (older.has(note.slice(0, Math.max(0, note.indexOf('\n'))))) continue;
    notes.push({ name: `line ${number} of ${kept.folder}`, note });
    if (notes.length <= 2 * MAX_NOTES) continue;
    // Every other one of the older half: what is newest stays whole.
    notes = [...notes.slice(0, MAX_NOTES).filter((_, i) => i % 2 === 0), ...notes.slice(MAX_NOTES)];
  }
  return notes;
}

const finding = z.object({ attack: z.string(), from: z.int().nullable(), to: z.int().nullable(), is_exact: z.boolean(), because: z.string() });
const verification = z
  .object({
    verdict: z.enum(['intact', 'attacked', 'unproven']).describe('`unproven`: nothing is wrong, and no checkpoint vouches for anything yet.'),
    origin: z.string(),
    records: z.int(),
    proven_size: z.int().describe('How many entries, from the first on, are those that a checkpoint was signed for.'),
    macs: z.enum(['right', 'wrong', 'not checked']),
    findings: z.array(finding).describe('From `from` to before `to`.'),
    restore: z.object({ old_origin: z.string(), lost_from: z.int(), lost_to: z.int() }).nullable(),
    is_recorded: z.boolean().describe('Whether this verification is in the log; it is not where the log takes no more.'),
  })
  .meta({ id: 'AuditVerification' });

export function verifyOperation({ audit, ...options }: Omit<VerificationOptions, 'origin'> & { readonly audit: AuditLog }): Operation {
  let isRunning = false;
  return operation(
    {
      id: 'verifyAuditLog', action: 'audit.verify', method: 'post', path: '/api/audit/verify', tag: 'Audit', access: 'administrator',
      summary: 'Verify the whole log with the MAC keys and the checkpoints that are kept outside',
      description: 'One at a time. To verify without trusting this service, export the log and use `examples/audit-verifier`.',
      answers: { 200: { description: 'What was found', json: verification } },
      problems: ['illegal_transition'],
    },
    async ({ principal: { actor } }) => {
      if (isRunning) throw new HttpProblem('illegal_transition', 'The log is being verified already.');
      isRunning = true;
      try {
        const { verdict, origin, records, provenSize, macs, findings, restore } = await verifyLog({ ...options, origin: audit.origin });
        const isRecorded = await isWritten(audit, { action: 'audit.verify', outcome: verdict === 'attacked' ? 'failed' : 'success', actor, verdict, records, proven_size: provenSize });
        return {
          json: {
            verdict, origin, records, proven_size: provenSize, macs,
            findings: findings.map(({ attack, range, isExact, because }) => ({ attack, from: range?.from ?? null, to: range?.to ?? null, is_exact: isExact, because })),
            restore: restore && { old_origin: restore.oldOrigin, lost_from: restore.lostFrom, lost_to: restore.lostTo },
            is_recorded: isRecorded,
          },
        };
      } finally {
        isRunning = false;
      }
    },
  );
}

/** A log that was tampered with may take no more entries, and must be verified all the same: what is answered holds no value. */
async function isWritten(audit: AuditLog, entry: Parameters<AuditLog['record']>[0]): Promise<boolean> {
  try {
    await audit.record(entry);
    return true;
  } catch (error) {
    if (!isUnavailable(error)) throw error;
    return false;
  }
}
