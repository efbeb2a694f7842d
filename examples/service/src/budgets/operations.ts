/** `/api/devices/{id}/budget` and `/api/projects/{id}/budget`. */
import * as z from 'zod';
import { operation, type Operation } from '../http/operations.ts';
import { idParams, time, timeJson } from '../http/pagination.ts';
import { projectId } from '../projects/operations.ts';
import type { Permission } from '../roles/permissions.ts';
import type { Budget, SubjectType } from './rows.ts';
import type { BudgetNow, Budgets } from './store.ts';

const most = z.int().min(1).max(1e15);
const limits = {
  period: z.enum(['day', 'month']).describe('Of the calendar of UTC.'),
  max_requests: most.nullable().describe('Calls that are sent to a provider.'),
  max_tokens: most.nullable().describe('Input and output, as the providers report them.'),
  max_cost_micros: most.nullable().describe('Millionths of a US dollar, by the list of prices.'),
};
const body = z
  .strictObject(limits)
  .refine(({ max_requests: requests, max_tokens: tokens, max_cost_micros: cost }) => requests !== null || tokens !== null || cost !== null, 'names no limit');

const budgetAnswer = z
  .object({
    budget: z
      .object({ period: z.enum(['day', 'month']), max_requests: most.nullable(), max_tokens: most.nullable(), max_cost_micros: most.nullable(), updated_at: time, updated_by: z.string() })
      .nullable(),
    current: z
      .object({
        began_at: time,
        ends_at: time,
        requests: z.int(),
        tokens: z.int().describe('Running calls included, with what they are expected to use.'),
        cost_micros: z.int().describe('Likewise.'),
        expected_tokens: z.int().describe('Of `tokens`, what running calls are expected to use.'),
        expected_cost_micros: z.int(),
      })
      .nullable()
      .describe('The running day or month.'),
  })
  .meta({ id: 'BudgetState' });

interface Kind {
  readonly type: SubjectType;
  readonly noun: string;
  readonly path: `/${string}`;
  readonly tag: string;
  readonly params: typeof idParams;
  readonly read: Permission;
}

const KINDS: readonly Kind[] = [
  { type: 'device', noun: 'Device', path: '/api/devices/{id}/budget', tag: 'Devices', params: idParams, read: 'devices:read' },
  // A UUID, but for the first one.
  { type: 'project', noun: 'Project', path: '/api/projects/{id}/budget', tag: 'Projects', params: z.strictObject({ id: projectId }) as unknown as typeof idParams, read: 'projects:read' },
];

export function budgetOperations(budgets: Budgets): readonly Operation[] {
  return KINDS.flatMap(({ type, noun, path, tag, params, read }) => [
    operation(
      {
        id: `get${noun}Budget`, action: 'budget.read', method: 'get', path, tag, access: read,
        summary: `Show what a ${type} may use, and what it has used`,
        params,
        answers: { 200: { description: 'The budget, if there is one', json: budgetAnswer } },
        problems: ['not_found'],
      },
      async ({ principal, params: { id } }) => answer(await budgets.get(principal, { type, id })),
    ),
    operation(
      {
        id: `set${noun}Budget`, action: 'budget.set', method: 'put', path, tag, access: 'administrator',
        summary: `Say how much a ${type} may use in a day or a month`,
        description: 'In force at once in this process, and within a second in every other; `null` for any amount. What was used before counts, where the device or project had a budget of that period then.',
        params,
        body,
        answers: { 200: { description: 'The budget', json: budgetAnswer } },
        problems: ['not_found', 'precondition_failed'],
      },
      async ({ principal, params: { id }, body: { period, max_requests: maxRequests, max_tokens: maxTokens, max_cost_micros: maxCostMicros }, ifMatch }) => {
        const budget: Budget = { period, maxRequests, maxTokens, maxCostMicros };
        return answer(await budgets.set(principal, { type, id }, budget, ifMatch));
      },
    ),
    operation(
      {
        id: `end${noun}Budget`, action: 'budget.end', method: 'delete', path, tag, access: 'administrator',
        summary: `Let a ${type} use any amount again`,
        params,
        answers: { 204: { description: 'Done' } },
        problems: ['not_found', 'precondition_failed'],
      },
      async ({ principal, params: { id }, ifMatch }) => {
        await budgets.set(principal, { type, id }, null, ifMatch);
        return {};
      },
    ),
  ]);
}

function answer({ stored, current }: BudgetNow): { readonly json: z.infer<typeof budgetAnswer>; readonly etag: string } {
  const budget = stored?.budget ?? null;
  return {
    json: {
      budget:
        stored === null || budget === null
          ? null
          : {
              period: budget.period, max_requests: budget.maxRequests, max_tokens: budget.maxTokens, max_cost_micros: budget.maxCostMicros,
              updated_at: timeJson(stored.updatedAtMs), updated_by: stored.updatedBy,
            },
      current:
        current === null
          ? null
          : {
              began_at: timeJson(current.beganMs), ends_at: timeJson(current.endsMs), requests: current.requests, tokens: current.tokens,
              cost_micros: current.costMicros, expected_tokens: current.expectedTokens, expected_cost_micros: current.expectedCostMicros,
            },
    },
    etag: String(stored?.revision ?? 0),
  };
}
