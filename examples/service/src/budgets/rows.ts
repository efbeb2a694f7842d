/**
 * Budgets as they are stored: one row for a device or a project, under a row MAC, so that nobody who can only write to the database
 * raises one. Who deletes the row takes the budget away, and whoever changes what was counted starts it anew: neither lets anybody call
 * who may not, and the log of calls says what was used.
 */
import { isIntact, rowMac, tampered, type RowField, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { integer } from '../db/values.ts';

export type SubjectType = 'device' | 'project';

/** Whose budget. */
export interface Subject {
  readonly type: SubjectType;
  readonly id: string;
}

export type Period = 'day' | 'month';

/** How much may be used in each day or month of UTC; `null` for any amount. At least one of the three is set. */
export interface Budget {
  readonly period: Period;
  readonly maxRequests: number | null;
  readonly maxTokens: number | null;
  /** Millionths of a US dollar. */
  readonly maxCostMicros: number | null;
}

/** What the row of a subject says; `budget` is `null` where there is none any more. */
export interface StoredBudget {
  readonly subject: Subject;
  readonly budget: Budget | null;
  readonly updatedBy: string;
  readonly updatedAtMs: number;
  readonly revision: number;
}

/** What was used in one day or month. */
export interface UsageWindow {
  readonly beganMs: number;
  readonly requests: number;
  /** Those of running calls included, with what they are expected to use. */
  readonly tokens: number;
  readonly costMicros: number;
  /** Of these, the expectations. */
  readonly expectedTokens: number;
  readonly expectedCostMicros: number;
}

export interface BudgetRow {
  subject_type: SubjectType;
  subject_id: string;
  period: Period | null;
  max_requests: unknown;
  max_tokens: unknown;
  max_cost_micros: unknown;
  updated_by: string;
  updated_at_ms: unknown;
  revision: number;
  mac_key_id: string;
  mac: Uint8Array;
}

export interface WindowRow {
  began_ms: unknown;
  requests: unknown;
  tokens: unknown;
  cost_micros: unknown;
  expected_tokens: unknown;
  expected_cost_micros: unknown;
}

const TABLE = 'usage_budgets';
export const BUDGETS_SEAM = 'budgets';
export const BUDGET_COLUMNS = 'subject_type, subject_id, period, max_requests, max_tokens, max_cost_micros, updated_by, updated_at_ms, revision, mac_key_id, mac';

const limit = (value: unknown): number | null => (value === null ? null : integer(value));

function fieldsOf({ subject, budget, updatedBy, updatedAtMs, revision }: StoredBudget): readonly RowField[] {
  return [subject.type, subject.id, budget?.period ?? null, budget?.maxRequests ?? null, budget?.maxTokens ?? null, budget?.maxCostMicros ?? null, updatedBy, updatedAtMs, revision];
}

/** @throws UnavailableError seam `budgets` for a row that was changed in the database: nobody knows what the budget is */
export async function budgetIn(rowMacKey: RowMacKey, row: BudgetRow): Promise<StoredBudget> {
  const stored: StoredBudget = {
    subject: { type: row.subject_type, id: row.subject_id },
    budget:
      row.period === null
        ? null
        : { period: row.period, maxRequests: limit(row.max_requests), maxTokens: limit(row.max_tokens), maxCostMicros: limit(row.max_cost_micros) },
    updatedBy: row.updated_by,
    updatedAtMs: integer(row.updated_at_ms),
    revision: row.revision,
  };
  if (!(await isIntact(rowMacKey, TABLE, fieldsOf(stored), { macKeyId: row.mac_key_id, mac: row.mac }))) throw tampered(BUDGETS_SEAM, TABLE);
  return stored;
}

export function windowIn(row: WindowRow): UsageWindow {
  return {
    beganMs: integer(row.began_ms),
    requests: integer(row.requests),
    tokens: integer(row.tokens),
    costMicros: integer(row.cost_micros),
    expectedTokens: integer(row.expected_tokens),
    expectedCostMicros: integer(row.expected_cost_micros),
  };
}

/** Writes the row; of two who write at once the later one must have seen the earlier. Whether it was written. */
export async function writeBudget(tx: SqlTransaction, rowMacKey: RowMacKey, stored: StoredBudget): Promise<boolean> {
  const { subject, budget, updatedBy, updatedAtMs, revision } = stored;
  const { rows } = await tx.query(
    `INSERT INTO keyguard.usage_budgets AS b (${BUDGET_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
      ON CONFLICT (subject_type, subject_id) DO UPDATE SET period = excluded.period, max_requests = excluded.max_requests, max_tokens = excluded.max_tokens,
        max_cost_micros = excluded.max_cost_micros, updated_by = excluded.updated_by, updated_at_ms = excluded.updated_at_ms,
        revision = excluded.revision, mac_key_id = excluded.mac_key_id, mac = excluded.mac
      WHERE b.revision = excluded.revision - 1 RETURNING 1`,
    [subject.type, subject.id, budget?.period ?? null, budget?.maxRequests ?? null, budget?.maxTokens ?? null, budget?.maxCostMicros ?? null,
      updatedBy, updatedAtMs, revision, rowMacKey.keyId, await rowMac(rowMacKey, TABLE, fieldsOf(stored))],
  );
  return rows.length > 0;
}

/** The day or the month of UTC in which `atMs` lies. */
export function periodAround(period: Period, atMs: number): { readonly beganMs: number; readonly endsMs: number } {
  const at = new Date(atMs);
  const [year, month, day] = [at.getUTCFullYear(), at.getUTCMonth(), at.getUTCDate()];
  return period === 'day'
    ? { beganMs: Date.UTC(year, month, day), endsMs: Date.UTC(year, month, day + 1) }
    : { beganMs: Date.UTC(year, month), endsMs: Date.UTC(year, month + 1) };
}
