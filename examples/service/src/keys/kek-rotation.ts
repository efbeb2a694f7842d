/**
 * The rotation of the key encryption key. Only wrapped keys of rows change, never what they seal; every row can be opened at every
 * moment; and it goes on from wherever it was, whoever was killed. Each replica runs this: one at a time works, by a claim on the
 * rotation's row that lapses when its holder does.
 *
 * @see docs/decisions/0027-kek-rotation.md
 */
import { randomUUID } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Logger } from 'pino';
import { UnavailableError } from '@keyguard/core/errors';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asJobs } from '../db/as-user.ts';
import { describeError } from '../log.ts';
import type { Keyring } from './keyring.ts';
import { countUnder, readSealed, rewrapRows, sealedTableNames, writeRewrapped, type SealedTable } from './sealed-tables.ts';

/** Above so many wraps under one key it is time for the next: a quarter of what random IVs bear. */
export const WARN_AT_WRAPS = 2 ** 30;

const POLL_MS = 500;
const REPORT_MS = 1000;
// Whoever said nothing for as long serves nobody any more; if it does all the same, it learns of keys by the rows that name them.
const SILENT_MS = 5000;
const FORGOTTEN_MS = 3_600_000;
const CLAIM_MS = 5000;
const BATCH_ROWS = 200;
// Rows that did not open are not tried again at once.
const DAMAGED_PAUSE_MS = 60_000;
const SYSTEM = 'system';
const NOW_MS = '(extract(epoch FROM clock_timestamp()) * 1000)::bigint';

export interface KekRotationOptions {
  readonly sql: SqlClient;
  /** For short statements that must not wait behind other work. */
  readonly prompt: SqlClient;
  readonly keyring: Keyring;
  readonly tables: readonly SealedTable[];
  readonly audit: AuditLog;
  readonly log: Logger;
  readonly pollMs?: number;
  readonly batchRows?: number;
}

export interface KekRotation {
  /** Looks now for what is to be done, and not at the next poll. */
  wake(): void;
  /** @throws UnavailableError when the keys could not be read for some seconds */
  assertKeysKnown(): void;
  /** @throws UnavailableError when this replica could not write that it is there, for some seconds */
  assertWritten(): void;
  /** Lets the batch at hand come to its end, and leaves the rest to others. */
  stop(): Promise<void>;
}

interface Row {
  id: string;
  state: 'requested' | 'distributing' | 'rewrapping';
  from_kek_id: string | null;
  to_kek_id: string | null;
}

/** The claim was lost: another replica works now. */
class ClaimLost extends Error {}

/** Takes part in rotations until it is stopped. */
export function runKekRotation(options: KekRotationOptions): KekRotation {
  const { sql, prompt, keyring, tables, audit, log, pollMs = POLL_MS, batchRows = BATCH_ROWS } = options;
  const replicaId = randomUUID();
  const warned = new Set<string>();
  // As if it had been done just now: the start has.
  let refreshedAtMs = performance.now();
  let writtenAtMs = performance.now();
  let reported = '';
  let reportedAtMs = Number.NEGATIVE_INFINITY;
  let damagedUntilMs = Number.NEGATIVE_INFINITY;
  let isStopped = false;
  let hasFailed = false;
  let timer: NodeJS.Timeout | undefined;
  let running: Promise<void> = Promise.resolve();

  async function report(): Promise<void> {
    const [ids, primaryId] = [keyring.ids(), keyring.primaryId()];
    const words = JSON.stringify([ids, primaryId]);
    if (words === reported && performance.now() - reportedAtMs < REPORT_MS) return;
    await asJobs(prompt, async (tx) => {
      await tx.query(
        `INSERT INTO keyguard.replicas (id, kek_ids, primary_kek_id, seen_at_ms) VALUES ($1, $2::text[], $3, ${NOW_MS})
          ON CONFLICT (id) DO UPDATE SET kek_ids = excluded.kek_ids, primary_kek_id = excluded.primary_kek_id, seen_at_ms = excluded.seen_at_ms`,
        [replicaId, ids, primaryId],
      );
      await tx.query(`DELETE FROM keyguard.replicas WHERE seen_at_ms < ${NOW_MS} - $1::bigint`, [FORGOTTEN_MS]);
    });
    reported = words;
    reportedAtMs = performance.now();
    writtenAtMs = reportedAtMs;
  }

  async function countWraps(): Promise<void> {
    const wraps = keyring.takeWraps();
    if (wraps.size === 0) return;
    try {
      const { rows } = await asJobs(prompt, (tx) =>
        tx.query<{ kek_id: string; wraps: unknown }>(
          `INSERT INTO keyguard.kek_uses AS u (kek_id, wraps) SELECT w.id, w.count FROM unnest($1::text[], $2::bigint[]) AS w (id, count) ORDER BY w.id
            ON CONFLICT (kek_id) DO UPDATE SET wraps = u.wraps + excluded.wraps RETURNING kek_id, wraps`,
          [[...wraps.keys()], [...wraps.values()]],
        ),
      );
      for (const { kek_id: kekId, wraps: total } of rows) {
        if (Number(total) < WARN_AT_WRAPS || warned.has(kekId)) continue;
        warned.add(kekId);
        log.warn({ kekId, wraps: Number(total) }, 'a key encryption key has wrapped very many keys: rotate it');
      }
    } catch (error) {
      keyring.returnWraps(wraps);
      throw error;
    }
  }

  /** The running rotation, where nobody else works on it. */
  async function claim(): Promise<Row | null> {
    const { rows } = await asJobs(prompt, (tx) =>
      tx.query<Row>(
        `UPDATE keyguard.kek_rotations SET claimed_by = $1, claimed_until_ms = ${NOW_MS} + $2::bigint
          WHERE finished_at_ms IS NULL AND (claimed_by IS NULL OR claimed_by = $1 OR claimed_until_ms < ${NOW_MS})
          RETURNING id, state, from_kek_id, to_kek_id`,
        [replicaId, CLAIM_MS],
      ),
    );
    return rows[0] ?? null;
  }

  /** Locks the rotation's row while this replica still holds the claim. @throws ClaimLost */
  async function holdIn(tx: SqlTransaction, { id, state }: Row): Promise<void> {
    const { rows } = await tx.query(
      `UPDATE keyguard.kek_rotations SET claimed_until_ms = ${NOW_MS} + $4::bigint WHERE id = $1 AND claimed_by = $2 AND state = $3 RETURNING 1`,
      [id, replicaId, state, CLAIM_MS],
    );
    if (rows.length === 0) throw new ClaimLost();
  }

  async function moveKey(tx: SqlTransaction, id: string, from: string, to: string): Promise<void> {
    const { rows } = await tx.query(`UPDATE keyguard.kek_keys SET state = $3 WHERE id = $1 AND purpose = 'kek' AND state = $2 RETURNING 1`, [id, from, to]);
    if (rows.length === 0) throw new ClaimLost();
  }

  async function makeKey(row: Row): Promise<void> {
    const record = await keyring.makeRecord();
    await asJobs(sql, async (tx) => {
      await holdIn(tx, row);
      // The root may have been changed while this process could not be seen.
      await keyring.demandRootIn(tx);
      await tx.query(
        `INSERT INTO keyguard.kek_keys (id, purpose, state, wrapped, root_id, created_at_ms) VALUES ($1, $2, $3, $4, $5, $6)`,
        [record.id, record.purpose, record.state, record.wrapped, record.rootId, record.createdAtMs],
      );
      await tx.query(
        `UPDATE keyguard.kek_rotations SET state = 'distributing', to_kek_id = $2,
          from_kek_id = (SELECT k.id FROM keyguard.kek_keys k WHERE k.purpose = 'kek' AND k.state = 'primary') WHERE id = $1`,
        [row.id, record.id],
      );
      await audit.recordIn(tx, { action: 'kek.create', outcome: 'success', actor: SYSTEM, resource: `kek:${record.id}`, rotation_id: row.id });
    });
  }

  /** Whether every replica that serves says so of itself. */
  async function everyReplica(words: 'holds' | 'seals under', kekId: string): Promise<boolean> {
    const says = words === 'holds' ? '$1 = ANY(kek_ids)' : 'primary_kek_id = $1';
    const { rows } = await asJobs(prompt, (tx) =>
      tx.query<{ all: unknown }>(`SELECT bool_and(${says}) AS all FROM keyguard.replicas WHERE seen_at_ms > ${NOW_MS} - $2::bigint`, [kekId, SILENT_MS]),
    );
    return rows[0]!.all === true;
  }

  async function promote(row: Row): Promise<boolean> {
    const [from, to] = [row.from_kek_id!, row.to_kek_id!];
    if (!(await everyReplica('holds', to))) return false;
    await asJobs(sql, async (tx) => {
      await holdIn(tx, row);
      await moveKey(tx, from, 'primary', 'decrypt-only');
      await moveKey(tx, to, 'pre-active', 'primary');
      await tx.query(`UPDATE keyguard.kek_rotations SET state = 'rewrapping', promoted_at_ms = ${NOW_MS} WHERE id = $1`, [row.id]);
      await audit.recordIn(tx, { action: 'kek.promote', outcome: 'success', actor: SYSTEM, resource: `kek:${to}`, in_place_of: from, rotation_id: row.id });
    });
    await keyring.refresh();
    await report();
    return true;
  }

  /** Once through all tables. Answers with how many rows did not open. */
  async function rewrapAll(row: Row): Promise<number> {
    const [from, to] = [row.from_kek_id!, row.to_kek_id!];
    const remaining = await asJobs(sql, (tx) => countUnder(tx, from));
    await asJobs(sql, async (tx) => {
      await holdIn(tx, row);
      await tx.query('UPDATE keyguard.kek_rotations SET remaining = $2 WHERE id = $1', [row.id, remaining]);
    });
    let damaged = 0;
    for (const table of tables) {
      let after: readonly unknown[] | null = null;
      for (;;) {
        if (isStopped) throw new ClaimLost();
        const cursor: readonly unknown[] | null = after;
        const rows = await asJobs(sql, (tx) => readSealed(tx, table, from, cursor, batchRows));
        if (rows.length === 0) break;
        // Outside of any transaction: on the embedded database everyone would wait for it.
        const rewrapped = await rewrapRows(table, rows, keyring.one(from), keyring.one(to));
        const good = rewrapped.filter(({ newWrapped }) => newWrapped !== null);
        damaged += rewrapped.length - good.length;
        await asJobs(sql, async (tx) => {
          await holdIn(tx, row);
          const count = good.length === 0 ? 0 : await writeRewrapped(tx, table, good, from, to);
          await tx.query('UPDATE keyguard.kek_rotations SET rewrapped = rewrapped + $2::bigint, remaining = greatest(remaining - $2::bigint, 0), damaged = $3 WHERE id = $1', [row.id, count, damaged]);
        });
        after = rewrapped.at(-1)!.key;
        await report();
        refreshedAtMs = performance.now();
        await nextTurn();
      }
    }
    return damaged;
  }

  /** Whether the old key is out of use now: nothing is under it, and nothing can come to be. */
  async function disable(row: Row): Promise<boolean> {
    const from = row.from_kek_id!;
    // Not for the rows' sake, which the lock below is for: so that nobody is refused who would seal under the old key.
    if (!(await everyReplica('seals under', row.to_kek_id!))) return false;
    return asJobs(sql, async (tx) => {
      await holdIn(tx, row);
      // Waits for whoever is writing a row under it; whoever comes later finds it disabled.
      await tx.query('SELECT 1 FROM keyguard.kek_keys WHERE id = $1 FOR UPDATE', [from]);
      const left = await countUnder(tx, from);
      if (left > 0) {
        await tx.query('UPDATE keyguard.kek_rotations SET remaining = $2 WHERE id = $1', [row.id, left]);
        return false;
      }
      await moveKey(tx, from, 'decrypt-only', 'disabled');
      await tx.query(`UPDATE keyguard.kek_rotations SET state = 'done', remaining = 0, damaged = 0, finished_at_ms = ${NOW_MS} WHERE id = $1`, [row.id]);
      await audit.recordIn(tx, { action: 'kek.disable', outcome: 'success', actor: SYSTEM, resource: `kek:${from}`, rotation_id: row.id });
      return true;
    });
  }

  async function warnOfUntold(): Promise<void> {
    const known = new Set<string>(tables.map(({ name }) => name));
    const untold = (await asJobs(sql, sealedTableNames)).filter((name) => !known.has(name));
    if (untold.length > 0) log.error({ tables: untold }, 'tables of sealed values are not told to the rotation of keys: the old key stays in use for them');
  }

  /** One step of the rotation. Answers whether the next may follow at once. */
  async function step(row: Row): Promise<boolean> {
    if (row.state === 'requested') {
      await makeKey(row);
      await keyring.refresh();
      await report();
      return true;
    }
    if (row.state === 'distributing') return promote(row);
    if (performance.now() < damagedUntilMs) return false;
    const damaged = await rewrapAll(row);
    if (damaged > 0) {
      damagedUntilMs = performance.now() + DAMAGED_PAUSE_MS;
      log.error({ rotationId: row.id, rows: damaged }, 'rows do not open under the old key, so it stays in use');
      return false;
    }
    const isDone = await disable(row);
    if (isDone) log.info({ rotationId: row.id, from: row.from_kek_id, to: row.to_kek_id }, 'the key encryption key was rotated');
    return false;
  }

  async function turn(): Promise<void> {
    await keyring.refresh();
    refreshedAtMs = performance.now();
    await report();
    await countWraps();
    await work();
  }

  async function work(): Promise<void> {
    const row = isStopped ? null : await claim();
    if (row === null) return;
    if (row.state === 'requested') await warnOfUntold();
    if (await step(row)) await work();
  }

  async function guardedTurn(): Promise<void> {
    try {
      await turn();
      if (hasFailed) log.info('keys can be watched again');
      hasFailed = false;
    } catch (error) {
      // It goes on from where it was, here or elsewhere.
      if (error instanceof ClaimLost) return;
      if (!hasFailed) log.warn({ error: describeError(error) }, 'keys cannot be watched');
      hasFailed = true;
    }
  }

  function schedule(afterMs: number): void {
    clearTimeout(timer);
    if (isStopped) return;
    timer = setTimeout(() => {
      running = running.then(guardedTurn).then(() => schedule(pollMs));
    }, afterMs);
  }

  schedule(0);
  return {
    wake: () => schedule(0),
    assertKeysKnown() {
      if (performance.now() - refreshedAtMs > SILENT_MS) throw new UnavailableError('kek', 'The keys could not be read for some seconds.');
    },
    assertWritten() {
      if (performance.now() - writtenAtMs > SILENT_MS) throw new UnavailableError('database', 'Nothing could be written for some seconds.');
    },
    async stop() {
      isStopped = true;
      clearTimeout(timer);
      await running;
      try {
        await countWraps();
        await asJobs(prompt, async (tx) => {
          await tx.query('UPDATE keyguard.kek_rotations SET claimed_until_ms = 0 WHERE claimed_by = $1 AND finished_at_ms IS NULL', [replicaId]);
          await tx.query('DELETE FROM keyguard.replicas WHERE id = $1', [replicaId]);
        });
      } catch (error) {
        log.warn({ error: describeError(error) }, 'this replica could not say that it stops');
      }
    },
  };
}
