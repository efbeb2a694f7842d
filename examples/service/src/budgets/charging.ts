/**
 * What calls are charged to budgets, and when: each before it is sent, with the most that it is expected to use, in one transaction in
 * which the budget of its device and that of its project both have room; and with what it did use once its entry in the audit log is
 * summed up. So a call that is killed half-way stays charged with the expectation, and nothing is charged twice.
 *
 * Windows are locked in one order everywhere, devices before projects.
 */
import { UnavailableError } from '@keyguard/core/errors';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asJobs, asVerifier } from '../db/as-user.ts';
import { integer } from '../db/values.ts';
import { BUDGETS_SEAM, periodAround, windowIn, type Budget, type Subject, type UsageWindow, type WindowRow } from './rows.ts';

/** A budget in force. */
export interface Standing {
  readonly subject: Subject;
  readonly budget: Budget;
}

/** What a call counts for. */
export interface Amount {
  readonly tokens: number;
  /** Millionths of a US dollar. */
  readonly costMicros: number;
}

/** What is left, as of a call that was charged. */
export interface Charged extends Standing {
  readonly window: UsageWindow;
  readonly endsMs: number;
}

/** The budget that has no room for a call. */
export interface Exhausted extends Standing {
  /** When it may have: the period's end, or soon where running calls are expected to use what they will not. */
  readonly retryAtMs: number;
}

/** What is charged for a call whose end is on record. */
export interface Settlement extends Amount {
  readonly callId: string;
}

const SOON_MS = 1000;
const AT_ONCE = 200;

class NoRoom extends Error {
  readonly standing: Standing;
  constructor(standing: Standing) {
    super('There is no room in the budget.');
    this.standing = standing;
  }
}

/** Charges `amount` to all of `standings`, or to none. `standings` MUST be in the order of {@link Subject}: device, then project. */
export async function charge(sql: SqlClient, callId: string, standings: readonly Standing[], amount: Amount, nowMs: number): Promise<readonly Charged[] | Exhausted> {
  const never = standings.find(({ budget }) => !fits(budget, amount));
  if (never !== undefined) return { ...never, retryAtMs: periodAround(never.budget.period, nowMs).endsMs };
  try {
    return await asVerifier(sql, async (tx) => {
      const charged: Charged[] = [];
      for (const standing of standings) charged.push(await chargeOne(tx, callId, standing, amount, nowMs));
      return charged;
    });
  } catch (error) {
    if (!(error instanceof NoRoom)) throw error;
    return { ...error.standing, retryAtMs: await roomAt(sql, error.standing, amount, nowMs) };
  }
}

function fits({ maxTokens, maxCostMicros }: Budget, { tokens, costMicros }: Amount): boolean {
  return (maxTokens === null || tokens <= maxTokens) && (maxCostMicros === null || costMicros <= maxCostMicros);
}

async function chargeOne(tx: SqlTransaction, callId: string, standing: Standing, { tokens, costMicros }: Amount, nowMs: number): Promise<Charged> {
  const { subject, budget } = standing;
  const { beganMs, endsMs } = periodAround(budget.period, nowMs);
  const { rows } = await tx.query<WindowRow>(
    `INSERT INTO keyguard.usage_windows AS w (subject_type, subject_id, period, began_ms, requests, tokens, cost_micros, expected_tokens, expected_cost_micros)
      VALUES ($1, $2, $3, $4, 1, $5, $6, $5, $6)
      ON CONFLICT (subject_type, subject_id, period, began_ms) DO UPDATE SET requests = w.requests + 1, tokens = w.tokens + excluded.tokens,
        cost_micros = w.cost_micros + excluded.cost_micros, expected_tokens = w.expected_tokens + excluded.tokens,
        expected_cost_micros = w.expected_cost_micros + excluded.cost_micros
      WHERE ($7::bigint IS NULL OR w.requests < $7) AND ($8::bigint IS NULL OR w.tokens + excluded.tokens <= $8)
        AND ($9::bigint IS NULL OR w.cost_micros + excluded.cost_micros <= $9)
      RETURNING began_ms, requests, tokens, cost_micros, expected_tokens, expected_cost_micros`,
    [subject.type, subject.id, budget.period, beganMs, tokens, costMicros, budget.maxRequests, budget.maxTokens, budget.maxCostMicros],
  );
  if (rows[0] === undefined) throw new NoRoom(standing);
  await tx.query(
    `INSERT INTO keyguard.usage_charges (call_id, subject_type, subject_id, period, began_ms, tokens, cost_micros, charged_at_ms)
      VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
    [callId, subject.type, subject.id, budget.period, beganMs, tokens, costMicros, nowMs],
  );
  return { ...standing, window: windowIn(rows[0]), endsMs };
}

/** Soon, where it is only what running calls are expected to use that leaves no room. */
async function roomAt(sql: SqlClient, { subject, budget }: Standing, amount: Amount, nowMs: number): Promise<number> {
  const { beganMs, endsMs } = periodAround(budget.period, nowMs);
  const { rows } = await asVerifier(sql, (tx) =>
    tx.query<WindowRow>(
      `SELECT began_ms, requests, tokens, cost_micros, expected_tokens, expected_cost_micros FROM keyguard.usage_windows
        WHERE subject_type = $1 AND subject_id = $2 AND period = $3 AND began_ms = $4`,
      [subject.type, subject.id, budget.period, beganMs],
    ),
  );
  if (rows[0] === undefined) return nowMs + SOON_MS;
  const { requests, tokens, costMicros, expectedTokens, expectedCostMicros } = windowIn(rows[0]);
  const settled: Amount = { tokens: tokens - expectedTokens + amount.tokens, costMicros: costMicros - expectedCostMicros + amount.costMicros };
  const isSoon = (budget.maxRequests === null || requests < budget.maxRequests) && fits(budget, settled);
  return isSoon ? nowMs + SOON_MS : endsMs;
}

/** Takes back what was charged for a call of which nothing was sent. */
export async function takeBack(sql: SqlClient, callId: string): Promise<void> {
  await asVerifier(sql, (tx) => settleIn(tx, [{ callId, tokens: 0, costMicros: 0 }], true));
}

/**
 * Puts what calls used in the place of what they were expected to use, for those of them that were charged to a budget and are not
 * settled yet. As `kg_jobs`.
 */
export function settle(tx: SqlTransaction, settlements: readonly Settlement[]): Promise<void> {
  return settlements.length === 0 ? Promise.resolve() : settleIn(tx, settlements, false);
}

async function settleIn(tx: SqlTransaction, settlements: readonly Settlement[], isUndone: boolean): Promise<void> {
  const calls = [settlements.map(({ callId }) => callId), settlements.map(({ tokens }) => tokens), settlements.map(({ costMicros }) => costMicros)];
  // The windows first, in their order, as those who charge lock them.
  const { rows } = await tx.query(
    `SELECT 1 FROM keyguard.usage_windows w
      WHERE (w.subject_type, w.subject_id, w.period, w.began_ms) IN
        (SELECT c.subject_type, c.subject_id, c.period, c.began_ms FROM keyguard.usage_charges c WHERE c.call_id = ANY ($1::text[]))
      ORDER BY w.subject_type, w.subject_id, w.period, w.began_ms FOR UPDATE`,
    [calls[0]],
  );
  if (rows.length === 0) return;
  await tx.query(
    `WITH settled AS (
        DELETE FROM keyguard.usage_charges c USING unnest($1::text[], $2::bigint[], $3::bigint[]) AS s (call_id, tokens, cost_micros)
          WHERE c.call_id = s.call_id
          RETURNING c.subject_type, c.subject_id, c.period, c.began_ms, c.tokens AS expected_tokens, c.cost_micros AS expected_cost_micros, s.tokens, s.cost_micros
      ), sums AS (
        SELECT subject_type, subject_id, period, began_ms, count(*) AS calls, sum(expected_tokens) AS expected_tokens,
            sum(expected_cost_micros) AS expected_cost_micros, sum(tokens) AS tokens, sum(cost_micros) AS cost_micros
          FROM settled GROUP BY subject_type, subject_id, period, began_ms
      )
      UPDATE keyguard.usage_windows w SET tokens = w.tokens - s.expected_tokens + s.tokens, cost_micros = w.cost_micros - s.expected_cost_micros + s.cost_micros,
          expected_tokens = w.expected_tokens - s.expected_tokens, expected_cost_micros = w.expected_cost_micros - s.expected_cost_micros,
          requests = w.requests - CASE WHEN $4::boolean THEN s.calls ELSE 0 END
        FROM sums s
        WHERE (w.subject_type, w.subject_id, w.period, w.began_ms) = (s.subject_type, s.subject_id, s.period, s.began_ms)`,
    [...calls, isUndone],
  );
}

/**
 * Settles with the expectation itself, as an estimate that is on record, what calls were charged before `beforeMs` of which no end
 * was ever written: their process was killed, or could not write. `beforeMs` MUST be so long ago that none of them runs any more.
 */
export async function settleLost(sql: SqlClient, audit: AuditLog, beforeMs: number): Promise<void> {
  await asJobs(sql, async (tx) => {
    // Of two replicas one does it, so that each call is on record once.
    const { rows: turn } = await tx.query<{ is_ours: boolean }>(`SELECT pg_try_advisory_xact_lock(hashtextextended('keyguard.lost_calls', 0)) AS is_ours`);
    if (!turn[0]!.is_ours) return;
    const { rows } = await tx.query<{ call_id: string; tokens: unknown; cost_micros: unknown }>(
      `SELECT call_id, max(tokens) AS tokens, max(cost_micros) AS cost_micros FROM keyguard.usage_charges
        WHERE charged_at_ms < $1 GROUP BY call_id ORDER BY call_id LIMIT ${AT_ONCE}`,
      [beforeMs],
    );
    const lost = rows.map((row) => ({ callId: row.call_id, tokens: integer(row.tokens), costMicros: integer(row.cost_micros) }));
    await settle(tx, lost);
    for (const { callId, tokens, costMicros } of lost) {
      await audit.recordIn(tx, { action: 'budget.charge_lost_call', outcome: 'success', actor: 'system', call_id: callId, charged_tokens: tokens, charged_cost_micros: costMicros, charge_estimated: true });
    }
  });
}

/** Forgets what was used in periods that ended long ago. */
export async function purgeWindows(sql: SqlClient, beganBeforeMs: number): Promise<void> {
  await asJobs(sql, (tx) => tx.query('DELETE FROM keyguard.usage_windows WHERE began_ms < $1', [beganBeforeMs]));
}

/** @throws UnavailableError seam `budgets` */
export function unreadable(cause: unknown): UnavailableError {
  return new UnavailableError(BUDGETS_SEAM, 'Which budgets are in force cannot be read.', { cause });
}
