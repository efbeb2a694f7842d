/**
 * Sums up the audit log's ended calls by the hour. It reads each entry once, in the transaction that says how far it has come: so
 * what it says is what the log says, to the token, whatever is killed and however many replicas run it. It is at most a second late.
 * In the same transaction budgets are charged with what the entry says, so that they count each call once too.
 */
import { fromUtf8 } from '@keyguard/core/bytes';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { listChains, type ChainKey } from '../audit/chains.ts';
import { settle, type Settlement } from '../budgets/charging.ts';
import { asJobs } from '../db/as-user.ts';
import { bytesOf, integer } from '../db/values.ts';

const HOUR_MS = 3_600_000;
// Calls wait while a batch is parsed, and on the embedded database also while it is read.
const BATCH = 250;
/** Up to how many milliseconds a call took to be counted in each place; the last place has the rest. */
export const DURATION_BOUNDS_MS: readonly number[] = Object.freeze([100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000]);

/** What one ended call adds. */
export interface CallUsage {
  readonly bucketMs: number;
  readonly projectId: string;
  readonly ownerId: string;
  readonly deviceId: string;
  readonly apiKeyId: string;
  readonly provider: string;
  readonly model: string;
  readonly isError: boolean;
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly costMicros: number;
  /** Tokens were reported, and the list of prices did not have the model. */
  readonly isUnpriced: boolean;
  readonly isUnreported: boolean;
  readonly estimatedTokens: number;
  readonly isPartial: boolean;
  readonly durationMs: number;
}

const text = (value: unknown): string => (typeof value === 'string' ? value : '');
const count = (value: unknown): number => (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : 0);

/** What an entry `llm.call_ended` adds; `null` for any other. */
export function usageOf(entry: Readonly<Record<string, unknown>>): CallUsage | null {
  if (entry['action'] !== 'llm.call_ended') return null;
  const endedAtMs = Date.parse(text(entry['ts']));
  const status = typeof entry['status'] === 'number' ? entry['status'] : 0;
  const isAnswered = status >= 200 && status < 300;
  const isReported = typeof entry['input_tokens'] === 'number' || typeof entry['output_tokens'] === 'number';
  return {
    bucketMs: Math.floor(endedAtMs / HOUR_MS) * HOUR_MS,
    projectId: text(entry['project_id']),
    ownerId: text(entry['owner_id']),
    deviceId: text(entry['actor']).replace(/^device:/, ''),
    apiKeyId: text(entry['api_key_id']),
    provider: text(entry['provider']),
    model: text(entry['model']),
    isError: entry['outcome'] !== 'success' || !isAnswered,
    inputTokens: count(entry['input_tokens']),
    outputTokens: count(entry['output_tokens']),
    costMicros: count(entry['cost_micros']),
    isUnpriced: isReported && typeof entry['cost_micros'] !== 'number',
    isUnreported: entry['usage_unknown'] === true,
    estimatedTokens: count(entry['estimated_tokens']),
    isPartial: entry['partial'] === true,
    durationMs: count(entry['duration_ms']),
  };
}

/** What budgets are charged with by an entry `llm.call_ended`; `null` where none bound the call. */
function settlementOf(entry: Readonly<Record<string, unknown>>): Settlement | null {
  if (typeof entry['charged_tokens'] !== 'number') return null;
  return { callId: text(entry['call_id']), tokens: count(entry['charged_tokens']), costMicros: count(entry['charged_cost_micros']) };
}

const UPSERT = `INSERT INTO keyguard.key_usage_analytics AS k (bucket_ms, project_id, owner_id, device_id, api_key_id, provider, model, requests, errors,
    input_tokens, output_tokens, cost_micros, unpriced_requests, unreported_requests, estimated_tokens, partial_requests, duration_ms, durations)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18::bigint[])
  ON CONFLICT (bucket_ms, project_id, device_id, owner_id, api_key_id, provider, model) DO UPDATE SET
    requests = k.requests + excluded.requests, errors = k.errors + excluded.errors, input_tokens = k.input_tokens + excluded.input_tokens,
    output_tokens = k.output_tokens + excluded.output_tokens, cost_micros = k.cost_micros + excluded.cost_micros,
    unpriced_requests = k.unpriced_requests + excluded.unpriced_requests, unreported_requests = k.unreported_requests + excluded.unreported_requests,
    estimated_tokens = k.estimated_tokens + excluded.estimated_tokens, partial_requests = k.partial_requests + excluded.partial_requests,
    duration_ms = k.duration_ms + excluded.duration_ms,
    durations = (SELECT array_agg(a + b ORDER BY i) FROM unnest(k.durations, excluded.durations) WITH ORDINALITY AS sums (a, b, i))`;

interface Sum {
  readonly of: CallUsage;
  requests: number;
  errors: number;
  inputTokens: number;
  outputTokens: number;
  costMicros: number;
  unpriced: number;
  unreported: number;
  estimated: number;
  partial: number;
  durationMs: number;
  readonly durations: number[];
}

function sumUp(calls: readonly CallUsage[]): Sum[] {
  const sums = new Map<string, Sum>();
  for (const call of calls) {
    const name = JSON.stringify([call.bucketMs, call.projectId, call.ownerId, call.deviceId, call.apiKeyId, call.provider, call.model]);
    let sum = sums.get(name);
    if (sum === undefined) {
      sum = { of: call, requests: 0, errors: 0, inputTokens: 0, outputTokens: 0, costMicros: 0, unpriced: 0, unreported: 0, estimated: 0, partial: 0, durationMs: 0, durations: [...DURATION_BOUNDS_MS, 0].map(() => 0) };
      sums.set(name, sum);
    }
    sum.requests += 1;
    sum.errors += Number(call.isError);
    sum.inputTokens += call.inputTokens;
    sum.outputTokens += call.outputTokens;
    sum.costMicros += call.costMicros;
    sum.unpriced += Number(call.isUnpriced);
    sum.unreported += Number(call.isUnreported);
    sum.estimated += call.estimatedTokens;
    sum.partial += Number(call.isPartial);
    sum.durationMs += call.durationMs;
    const place = DURATION_BOUNDS_MS.findIndex((boundMs) => call.durationMs <= boundMs);
    sum.durations[place < 0 ? DURATION_BOUNDS_MS.length : place]! += 1;
  }
  return [...sums.values()];
}

/** Sums up a batch of the chain `origin`; whether there is more. */
async function advance(tx: SqlTransaction, origin: string): Promise<boolean> {
  await tx.query('INSERT INTO keyguard.key_usage_progress (origin, seq) VALUES ($1, -1) ON CONFLICT DO NOTHING', [origin]);
  const { rows: progress } = await tx.query<{ seq: unknown }>('SELECT seq FROM keyguard.key_usage_progress WHERE origin = $1 FOR UPDATE SKIP LOCKED', [origin]);
  // Another replica is at it.
  if (progress[0] === undefined) return false;
  // Records become visible in their order, because the chain has one head: none can turn up behind this one.
  const { rows } = await tx.query<{ seq: unknown; entry: Uint8Array }>(
    `SELECT seq, entry FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq > $2 AND action = 'llm.call_ended' ORDER BY seq LIMIT $3`,
    [origin, integer(progress[0].seq), BATCH],
  );
  const last = rows.at(-1);
  if (last === undefined) return false;
  const entries = rows.map(({ entry }) => JSON.parse(fromUtf8(bytesOf(entry))) as Record<string, unknown>);
  await settle(tx, entries.map(settlementOf).filter((settlement) => settlement !== null));
  const calls = entries.map(usageOf).filter((call) => call !== null);
  for (const { of, requests, errors, inputTokens, outputTokens, costMicros, unpriced, unreported, estimated, partial, durationMs, durations } of sumUp(calls)) {
    await tx.query(UPSERT, [
      of.bucketMs, of.projectId, of.ownerId, of.deviceId, of.apiKeyId, of.provider, of.model, requests, errors, inputTokens, outputTokens,
      costMicros, unpriced, unreported, estimated, partial, durationMs, durations,
    ]);
  }
  await tx.query('UPDATE keyguard.key_usage_progress SET seq = $2 WHERE origin = $1', [origin, integer(last.seq)]);
  return rows.length === BATCH;
}

export interface UsageProjection {
  /** Sums up all that is in the log by now, unless another replica is at it. */
  tick(): Promise<void>;
}

export function usageProjection(sql: SqlClient, key: ChainKey): UsageProjection {
  let running: Promise<void> | null = null;
  async function catchUp(): Promise<void> {
    const chains = await asJobs(sql, (tx) => listChains(tx, key));
    for (const { origin } of chains) while (await asJobs(sql, (tx) => advance(tx, origin)));
  }
  return {
    tick: () =>
      (running ??= catchUp().finally(() => {
        running = null;
      })),
  };
}
