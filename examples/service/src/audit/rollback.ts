/**
 * Whether the audit log in the database is still the one that was signed for. To be asked before anything is appended: at the start
 * of the service, and after a backup was put back.
 *
 * A log that is behind the newest checkpoint outside, or another one, is refused until somebody answers for it. Then a new chain
 * begins, whose first entry cites that checkpoint: what is lost stays on record.
 */
import { createHash } from 'node:crypto';
import { equalBytes } from '@keyguard/core/bytes';
import { checkpointVerifier, headMacOf, readRestore, restoreEntry, verifierKey, verifyCheckpoint, type Checkpoint } from '@keyguard/core/checkpoint';
import { isRejected } from '@keyguard/core/errors';
import type { AuditEntry, Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { postgresAuditSink, type SqlClient } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import { bytesOf, integer } from '../db/values.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { beginChain, listChains, nextChain, type Chain } from './chains.ts';
import { macBefore, readHead, rootAt } from './checkpoint-store.ts';
import type { KeptCheckpoints } from './kept.ts';
import { growTiles } from './tree.ts';

const TOKEN_CHARACTERS = 16;

/** The database is behind what was signed for, or another one. The message says what to do. */
export class RolledBackError extends Error {
  override readonly name = 'RolledBackError';
}

export interface RollbackCheckOptions {
  readonly sql: SqlClient;
  readonly keys: Pick<DeploymentKeys, 'deploymentId' | 'rowMacKey' | 'auditMac' | 'checkpointSigner'>;
  readonly kept: KeptCheckpoints;
  /** What the refusal asked for, where somebody answers for this restore; it holds for no other. */
  readonly acknowledged: string | null;
  /** Who answers for it, as the log names them. Default `operator`. */
  readonly actor?: string;
  readonly clock?: Clock;
}

/** A kept note whose signature was verified. */
interface Known extends Checkpoint {
  readonly note: string;
}

/**
 * Resolves with the chain to go on with: one that begins with all that was signed for, as far as the newest checkpoint outside knows,
 * or one that was begun because somebody answered for what is missing. Costs no more for a long log than for a short one. Without any
 * checkpoint outside there is nothing to compare, and it resolves.
 * @throws RolledBackError otherwise
 */
export async function assertNotRolledBack(options: RollbackCheckOptions): Promise<Chain> {
  const { sql, keys, kept, acknowledged } = options;
  const chains = await asJobs(sql, (tx) => listChains(tx, keys));
  const [present] = chains;
  const note = await kept.newest();
  if (note === null) return present;
  const known = await verified(note, options);
  const fault = known.origin === present.origin ? await contradiction(sql, known) : await notCited(known, chains, options);
  if (fault === null) return present;
  const token = createHash('sha256').update(note).digest('hex').slice(0, TOKEN_CHARACTERS);
  if (acknowledged !== token) throw refusal(fault, kept.folder, token);
  return goOn(known, chains, options);
}

/** Under the key of this deployment, or one that was written down beside the checkpoints. */
async function verified(note: string, { keys, kept }: RollbackCheckOptions): Promise<Known> {
  const origin = note.slice(0, Math.max(0, note.indexOf('\n')));
  const own = await verifierKey(origin, keys.checkpointSigner.publicKey).catch(() => null);
  for (const key of [own, ...(await kept.verifierKeys())]) {
    if (key === null) continue;
    try {
      const checkpoint = await verifyCheckpoint(note, [await checkpointVerifier(key)]);
      headMacOf(checkpoint);
      return { ...checkpoint, note };
    } catch (error) {
      if (!isRejected(error)) throw error;
    }
  }
  throw new RolledBackError(
    `The newest checkpoint in ${kept.folder} is signed by no key that is known: it was exchanged, or the folder belongs to another deployment. ` +
      'Put the folder back, or name an empty one with KEYGUARD_CHECKPOINT_DIR if you are sure that no checkpoint of this log was ever kept.',
  );
}

/** How the database contradicts a checkpoint of its present chain; `null` where it does not. */
async function contradiction(sql: SqlClient, { origin, size, root, ...checkpoint }: Known): Promise<string | null> {
  const head = await asJobs(sql, (tx) => readHead(tx, origin));
  if (head.size < size) return `it has ${head.size} entries, and ${size} were signed for. An older state of it was put back, or its end was cut off`;
  if (size === 0) return null;
  const last = await asJobs(sql, (tx) => macBefore(tx, origin, size));
  if (last === null) return `entry ${size - 1}, which was signed for, is not there`;
  await growTiles(sql, origin, size);
  const headMac = headMacOf({ origin, size, root, ...checkpoint });
  const isSame = equalBytes(await rootAt(sql, origin, size), root) && (headMac === null || equalBytes(headMac, last.mac));
  return isSame ? null : `its first ${size} entries are not those that were signed for. It was changed, or went on from an older state`;
}

/** Whether the present chain began with a restore that cites what is known of the old one. */
async function notCited(known: Known, chains: readonly Chain[], options: RollbackCheckOptions): Promise<string | null> {
  for (const { origin } of chains) {
    const cited = await citedBy(origin, options);
    if (cited === null) break;
    if (cited.origin !== known.origin) continue;
    if (cited.size > known.size || (cited.size === known.size && equalBytes(cited.root, known.root))) return null;
    return `it went on after a restore that was answered for with a checkpoint of ${cited.size} entries, and one of ${known.size} is kept here`;
  }
  return `it is another log (${chains[0]!.origin}) than the one that is kept there (${known.origin}). The database was replaced, or its audit log deleted`;
}

async function citedBy(origin: string, options: RollbackCheckOptions): Promise<Known | null> {
  const { rows } = await asJobs(options.sql, (tx) =>
    tx.query<{ entry: unknown }>('SELECT entry FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq = 0', [origin]),
  );
  const restore = rows[0] === undefined ? null : readRestore(bytesOf(rows[0].entry));
  return restore === null ? null : verified(restore.oldCheckpoint, options);
}

function refusal(fault: string, folder: string, token: string): RolledBackError {
  return new RolledBackError(
    `The audit log is not the one that was signed for: ${fault}.\n` +
      `  The checkpoint that says so is the last one in ${folder}.\n` +
      '  If you have put back a backup, and know what is lost by it, start once with\n' +
      `    KEYGUARD_ACKNOWLEDGE_RESTORE=${token}\n` +
      '  The log then goes on under a new name, and begins with an entry that cites that checkpoint. If you have not, do not: somebody\n' +
      '  has written to the database. Keep both as they are, and see docs/service/audit.md.',
  );
}

/** Puts on record that the restore was answered for. */
async function goOn(known: Known, chains: readonly [Chain, ...Chain[]], { sql, keys, actor = 'operator', clock = systemClock }: RollbackCheckOptions): Promise<Chain> {
  const [present] = chains;
  const { auditMac } = keys;
  const sinkOf = (origin: string): ReturnType<typeof postgresAuditSink> =>
    postgresAuditSink(sql, { origin, macKey: auditMac.macKey, nextMacKey: auditMac.nextMacKey, previousMacKeys: auditMac.previousMacKeys, clock });
  if (present.origin !== known.origin && chains.some(({ origin }) => origin === known.origin)) {
    // Another replica has begun a chain already, with an older checkpoint: what it could not know is put on record there.
    const entry: AuditEntry = { action: 'audit.newer_checkpoint_acknowledged', outcome: 'success', actor, old_checkpoint: known.note };
    await sinkOf(present.origin).append([entry]);
    return present;
  }
  const size = await countUnbroken(sql, known.origin);
  await growTiles(sql, known.origin, size);
  const entry = restoreEntry({ actor, oldCheckpoint: known.note, keptSize: size, keptRoot: await rootAt(sql, known.origin, size) });
  const chain = nextChain(present, keys.deploymentId);
  await asJobs(sql, async (tx) => {
    await beginChain(tx, keys.rowMacKey, chain, clock.nowMs());
    await sinkOf(chain.origin).appendIn(tx, [entry]);
  });
  return chain;
}

/** How many entries there are from the first on without a gap, whatever the database says that there are. */
async function countUnbroken(sql: SqlClient, origin: string): Promise<number> {
  const { rows } = await asJobs(sql, (tx) =>
    tx.query<{ count: unknown }>(
      `SELECT count(*) AS count FROM (SELECT seq, row_number() OVER (ORDER BY seq) - 1 AS place FROM keyguard.secret_audit_logs WHERE origin = $1) r
        WHERE r.seq = r.place`,
      [origin],
    ),
  );
  return integer(rows[0]!.count);
}
