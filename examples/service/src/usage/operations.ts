/** `GET /api/analytics/usage`: what was used, by whom and of what. The policies decide what is summed up for whom. */
import * as z from 'zod';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { integer } from '../db/values.ts';
import { operation, type Operation } from '../http/operations.ts';
import { time, timeJson } from '../http/pagination.ts';
import { HttpProblem } from '../http/problems.ts';
import { DURATION_BOUNDS_MS } from './projection.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const MAX_ROWS = 5000;

// Each is a column, or made of one; nothing of a request gets into the text of the statement.
const GROUPS = {
  hour: 'bucket_ms',
  day: `(bucket_ms / ${DAY_MS} * ${DAY_MS})`,
  project_id: 'project_id',
  device_id: 'device_id',
  api_key_id: 'api_key_id',
  provider: 'provider',
  model: 'model',
} as const;
type Group = keyof typeof GROUPS;
const GROUP_NAMES = Object.keys(GROUPS) as [Group, ...Group[]];

const query = z.strictObject({
  from: z.iso.datetime().optional().describe('Default: a day before `to`. Rounded down to the hour.'),
  to: z.iso.datetime().optional().describe('Default: now. Not included.'),
  group_by: z
    .string()
    .max(100)
    .optional()
    .describe(`With commas between, of: ${GROUP_NAMES.join(', ')}. Default: provider,model.`)
    .transform((text, context): readonly Group[] => {
      const names = [...new Set((text ?? 'provider,model').split(','))];
      if (names.every((name): name is Group => Object.hasOwn(GROUPS, name)) && !(names.includes('hour') && names.includes('day'))) return names;
      context.addIssue({ code: 'custom', message: `must be some of ${GROUP_NAMES.join(', ')}, and of hour and day one` });
      return z.NEVER;
    }),
  project_id: z.string().min(1).max(100).optional(),
  device_id: z.uuid().optional(),
  api_key_id: z.uuid().optional(),
  provider: z.string().min(1).max(50).optional(),
  model: z.string().min(1).max(200).optional(),
});

const usage = z
  .object({
    hour: time.optional(),
    day: time.optional(),
    project_id: z.string().optional(),
    device_id: z.string().optional(),
    api_key_id: z.string().optional().describe('Empty for the built-in demonstration.'),
    provider: z.string().optional(),
    model: z.string().optional().describe('Empty where the provider named none.'),
    requests: z.int(),
    errors: z.int().describe('Refused by the provider, broken, or left by the caller.'),
    input_tokens: z.int().describe('As the providers reported them.'),
    output_tokens: z.int().describe('As the providers reported them.'),
    cost_micros: z.int().describe('Millionths of a US dollar, by the list of prices.'),
    unpriced_requests: z.int().describe('Tokens were reported, and the list has no price of the model: what they cost is not known, and in no figure.'),
    unreported_requests: z.int().describe('Answered, and the provider reported no tokens.'),
    estimated_tokens: z.int().describe('What those may have been, by their bytes. An estimate, and in none of the other figures.'),
    partial_requests: z.int().describe('Ended before the answer did: their tokens are what had been reported by then.'),
    mean_duration_ms: z.number(),
    durations: z.array(z.int()).describe(`Calls of at most ${DURATION_BOUNDS_MS.join(', ')} ms, and longer ones.`),
  })
  .meta({ id: 'Usage' });

/** Of one stored key. */
export const usageOfKeyQuery = query.omit({ api_key_id: true });
export const usageAnswer = { description: 'One row for each group, the one with the most requests first', json: z.object({ from: time, to: time, data: z.array(usage) }) };

/** Sums up what `principal` may see. @throws HttpProblem `invalid_request` */
export type UsageReport = (principal: Principal, asked: z.infer<typeof query>) => Promise<object>;

type Row = { readonly [name in Group]?: unknown } & Readonly<Record<'requests' | 'errors' | 'input_tokens' | 'output_tokens' | 'cost_micros' | 'unpriced_requests' | 'unreported_requests' | 'estimated_tokens' | 'partial_requests' | 'duration_ms', unknown>> & {
  readonly durations: readonly unknown[];
};

export function usageReport(sql: SqlClient): UsageReport {
  return async (principal, { from, to, group_by: groups, ...filters }) => {
    const toMs = to === undefined ? Date.now() : Date.parse(to);
    const fromMs = Math.floor((from === undefined ? toMs - DAY_MS : Date.parse(from)) / HOUR_MS) * HOUR_MS;
    if (fromMs >= toMs) throw new HttpProblem('invalid_request', 'from must be before to.');
    const { rows } = await asUser(sql, principal.userId, (tx) =>
      tx.query<Row>(
        `SELECT ${groups.map((name) => `${GROUPS[name]} AS ${name}`).join(', ')}, sum(requests) AS requests, sum(errors) AS errors,
            sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, sum(cost_micros) AS cost_micros,
            sum(unpriced_requests) AS unpriced_requests, sum(unreported_requests) AS unreported_requests,
            sum(estimated_tokens) AS estimated_tokens, sum(partial_requests) AS partial_requests, sum(duration_ms) AS duration_ms,
            ARRAY[${[...DURATION_BOUNDS_MS, 0].map((_, i) => `sum(durations[${i + 1}])`).join(', ')}]::bigint[] AS durations
          FROM keyguard.key_usage_analytics
          WHERE bucket_ms >= $1 AND bucket_ms < $2 AND ($3::text IS NULL OR project_id = $3) AND ($4::text IS NULL OR device_id = $4)
            AND ($5::text IS NULL OR api_key_id = $5) AND ($6::text IS NULL OR provider = $6) AND ($7::text IS NULL OR model = $7)
          GROUP BY ${groups.map((_, i) => i + 1).join(', ')} ORDER BY requests DESC, ${groups.map((_, i) => i + 1).join(', ')} LIMIT ${MAX_ROWS + 1}`,
        [fromMs, toMs, filters.project_id ?? null, filters.device_id ?? null, filters.api_key_id ?? null, filters.provider ?? null, filters.model ?? null],
      ),
    );
    if (rows.length > MAX_ROWS) throw new HttpProblem('invalid_request', `There are more than ${MAX_ROWS} groups: choose a shorter time, or fewer groups.`);
    return { from: timeJson(fromMs), to: timeJson(toMs), data: rows.map((row) => usageJson(row, groups)) };
  };
}

export function usageOperations(report: UsageReport): readonly Operation[] {
  return [
    operation(
      {
        id: 'getUsage', action: 'usage.read', method: 'get', path: '/api/analytics/usage', tag: 'Usage', access: 'usage:read',
        summary: 'Sum up calls, tokens and cost',
        description: 'One\'s own devices; all of them for administrators; those of a project for holders of `usage:read` in it. At most a second behind the audit log.',
        query,
        answers: { 200: usageAnswer },
      },
      async ({ query: asked, principal }) => ({ json: await report(principal, asked) }),
    ),
  ];
}

function usageJson(row: Row, groups: readonly Group[]): object {
  const requests = integer(row.requests);
  return {
    ...Object.fromEntries(groups.map((name) => [name, name === 'hour' || name === 'day' ? timeJson(integer(row[name])) : row[name]])),
    requests,
    errors: integer(row.errors),
    input_tokens: integer(row.input_tokens),
    output_tokens: integer(row.output_tokens),
    cost_micros: integer(row.cost_micros),
    unpriced_requests: integer(row.unpriced_requests),
    unreported_requests: integer(row.unreported_requests),
    estimated_tokens: integer(row.estimated_tokens),
    partial_requests: integer(row.partial_requests),
    mean_duration_ms: Math.round(integer(row.duration_ms) / requests),
    durations: row.durations.map(integer),
  };
}
