/**
 * Makes checkpoints: every 1,000 entries, and within a minute of any. Replicas take turns; each also writes down, outside of the
 * database, what any of them signed, once it has seen for itself that it continues what it wrote down before.
 *
 * It signs for nothing that it has not checked: the tree must begin with the one that was signed last, here or outside, and the MACs of
 * all entries since must be right. Where they are not, nothing more is signed, and nothing more is appended by this process.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { chainStart, verifyRecords } from '@keyguard/core/audit';
import { equalBytes } from '@keyguard/core/bytes';
import { auditCheckpoint, headMacOf, signCheckpoint, type Checkpoint } from '@keyguard/core/checkpoint';
import { isRejected } from '@keyguard/core/errors';
import type { AuditRecord, Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import { integer } from '../db/values.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { macBefore, readHead, rootAt, type CheckpointStore } from './checkpoint-store.ts';
import type { KeptCheckpoints } from './kept.ts';
import type { AuditLog } from './log.ts';
import { growTiles } from './tree.ts';

const TURN_MS = 30_000;
/** Of one turn, at the boundaries of `everyEntries`: a log that was left alone for long is caught up in several. */
const SIGNED_AT_ONCE = 100;

/** The log is not the one that was signed for. Nothing may be appended to it before somebody has looked. */
export class AuditLogContradicted extends Error {
  override readonly name = 'AuditLogContradicted';
}

export interface CheckpointsOptions {
  readonly sql: SqlClient;
  readonly keys: Pick<DeploymentKeys, 'auditMac' | 'checkpointSigner'>;
  readonly store: CheckpointStore;
  readonly kept: KeptCheckpoints;
  readonly audit: Pick<AuditLog, 'sink' | 'halt'>;
  readonly clock?: Clock;
  readonly everyEntries?: number;
  readonly everyMs?: number;
}

export interface Checkpoints {
  /** To be called every second: signs where it is time to, and writes down outside what is new. One call at a time. */
  tick(): Promise<void>;
  /** Signs now for all that is there, in the same way; the newest checkpoint afterwards is at least of that size. */
  sign(): Promise<void>;
}

export function createCheckpoints(options: CheckpointsOptions): Checkpoints {
  const { sql, keys, store, kept, audit, clock = systemClock, everyEntries = 1000, everyMs = 60_000 } = options;
  const { origin } = store;
  const holder = randomUUID();
  /** What this process has written down last, or found there; `undefined` before it has looked. */
  let outside: Checkpoint | null | undefined;
  let running: Promise<void> = Promise.resolve();

  function contradicted(what: string): AuditLogContradicted {
    const error = new AuditLogContradicted(`The audit log is not the one that was signed for: ${what}`);
    audit.halt(error.message);
    return error;
  }

  async function readOutside(): Promise<Checkpoint | null> {
    if (outside !== undefined) return outside;
    const note = await kept.newest();
    let found: Checkpoint | null = null;
    if (note !== null) {
      try {
        found = await store.verify(note);
      } catch (error) {
        // Of a chain before this one, as the start has checked.
        if (!isRejected(error)) throw error;
      }
    }
    outside = found;
    return found;
  }

  /** Whether the tree of this chain begins with the one of `checkpoint`. */
  async function continues(checkpoint: Checkpoint): Promise<boolean> {
    return equalBytes(await rootAt(sql, origin, checkpoint.size), checkpoint.root);
  }

  /** Writes down what was signed since, by whichever process. */
  async function keepOutside(): Promise<void> {
    const known = await readOutside();
    const newest = await store.newest();
    if (newest === null || (known !== null && newest.size <= known.size)) return;
    if (known !== null && !(await continues(known))) throw contradicted(`its first ${known.size} entries have another root than what is kept in ${kept.folder}.`);
    await kept.addVerifierKey(store.verifierKey);
    await kept.add(newest.note);
    outside = newest;
  }

  /** The last checkpoint that anybody here knows of. */
  async function lastSigned(): Promise<Checkpoint | null> {
    const [inside, known] = [await store.newest(), await readOutside()];
    if (inside === null || known === null) return inside ?? known;
    if (inside.size === known.size && !equalBytes(inside.root, known.root)) throw contradicted(`two checkpoints of ${known.size} entries have different roots.`);
    return inside.size >= known.size ? inside : known;
  }

  async function isDue(signed: number, head: number): Promise<boolean> {
    if (head - signed >= everyEntries) return true;
    const { rows } = await asJobs(sql, (tx) =>
      tx.query<{ ts_ms: unknown }>('SELECT ts_ms FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq = $2::bigint', [origin, signed]),
    );
    // A second early, because a tick comes each second. A clock that went back must not put it off.
    const age = rows[0] === undefined ? 0 : Math.abs(clock.nowMs() - integer(rows[0].ts_ms));
    return age >= everyMs - 1000;
  }

  /** One process at a time; the turn of one that died ends by itself. */
  async function takeTurn(): Promise<boolean> {
    const nowMs = clock.nowMs();
    const { rows } = await asJobs(sql, (tx) =>
      tx.query(
        `INSERT INTO keyguard.audit_checkpoint_turns AS t (origin, holder, until_ms) VALUES ($1, $2, $3::bigint)
          ON CONFLICT (origin) DO UPDATE SET holder = $2, until_ms = $3::bigint
            WHERE t.holder = $2 OR t.until_ms < $4::bigint OR t.until_ms > $3::bigint RETURNING origin`,
        [origin, holder, nowMs + TURN_MS, nowMs],
      ),
    );
    return rows.length > 0;
  }

  async function endTurn(): Promise<void> {
    await asJobs(sql, (tx) => tx.query('UPDATE keyguard.audit_checkpoint_turns SET until_ms = 0 WHERE origin = $1 AND holder = $2', [origin, holder]));
  }

  /** The records from `from` to before `to`, and no others. */
  async function* recordsBetween(from: number, to: number): AsyncGenerator<AuditRecord> {
    if (from >= to) return;
    for await (const record of audit.sink.read(from)) {
      yield record;
      if (record.seq >= to - 1) return;
    }
  }

  async function signUpTo(last: Checkpoint | null, size: number): Promise<void> {
    const from = last?.size ?? 0;
    // Another process may have gone over to a key that this one has not heard of.
    await keys.auditMac.reload();
    await growTiles(sql, origin, size);
    if (last !== null && !(await continues(last))) throw contradicted(`its first ${from} entries have another root than what was signed.`);
    // What has been added must be ours: else a writer of the database would have us vouch for what he wrote.
    const position = from === 0 || last === null ? chainStart() : { seq: from, prevMac: headMacOf(last) ?? new Uint8Array(32), macKeyId: null };
    try {
      const end = await verifyRecords(recordsBetween(from, size), { origin, keys: keys.auditMac.all, from: position });
      if (end.seq !== size) throw contradicted(`it has ${end.seq} records, and its head says ${size}.`);
    } catch (error) {
      if (isRejected(error)) throw contradicted(error.detail ?? 'a record does not verify.');
      throw error;
    }
    const boundaries: number[] = [];
    for (let at = (Math.floor(from / everyEntries) + 1) * everyEntries; at < size; at += everyEntries) boundaries.push(at);
    for (const at of [...boundaries.slice(-SIGNED_AT_ONCE), size]) {
      const root = await rootAt(sql, origin, at);
      const { mac } = (await asJobs(sql, (tx) => macBefore(tx, origin, at)))!;
      const checkpoint = auditCheckpoint({ origin, size: at, root, headMac: mac });
      const note = await signCheckpoint(checkpoint, keys.checkpointSigner);
      await store.add({ ...checkpoint, note, createdAtMs: clock.nowMs() });
    }
  }

  async function work(isForced: boolean): Promise<void> {
    const last = await lastSigned();
    const signed = last?.size ?? 0;
    const { size } = await asJobs(sql, (tx) => readHead(tx, origin));
    if (size < signed) throw contradicted(`${signed} entries were signed for, and it has ${size}.`);
    if (size > signed && (isForced || (await isDue(signed, size))) && (await takeTurn())) {
      try {
        await signUpTo(last, size);
      } finally {
        await endTurn();
      }
    }
    await keepOutside();
  }

  /** One after the other: each sees what the one before has signed. */
  function next(isForced: boolean): Promise<void> {
    running = running.catch(() => {}).then(() => work(isForced));
    return running;
  }

  async function sign(): Promise<void> {
    const { size } = await asJobs(sql, (tx) => readHead(tx, origin));
    for (let tries = 0; ; tries += 1) {
      await next(true);
      if (((await store.newest())?.size ?? 0) >= size || tries === 100) return;
      // It is another one's turn.
      await pause(100);
    }
  }

  return { tick: () => next(false), sign };
}
