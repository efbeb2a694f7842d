/** Budgets as people administer them: whoever sees a device or a project sees its budget, and administrators set it. */
import type { Clock } from '@keyguard/core/seams';
import { postgresDeviceDirectory, type RowMacKey, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { demandMatch } from '../http/preconditions.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { Projects } from '../projects/store.ts';
import type { ReachAccess } from '../roles/access.ts';
import { BUDGET_COLUMNS, budgetIn, periodAround, windowIn, writeBudget, type Budget, type BudgetRow, type StoredBudget, type Subject, type UsageWindow, type WindowRow } from './rows.ts';

/** A budget, and what was used of it. */
export interface BudgetNow {
  /** `null` where none was ever set. */
  readonly stored: StoredBudget | null;
  /** Of the running day or month; `null` where there is no budget. */
  readonly current: (UsageWindow & { readonly endsMs: number }) | null;
}

export interface Budgets {
  /** @throws HttpProblem `not_found` where the caller does not see the subject; UnavailableError for a row that was changed in the database */
  get(principal: Principal, subject: Subject): Promise<BudgetNow>;
  /** Sets or, with `null`, ends it. @throws HttpProblem `not_found`, `forbidden`, `precondition_failed` */
  set(principal: Principal, subject: Subject, budget: Budget | null, ifMatch: readonly string[] | null): Promise<BudgetNow>;
}

export interface BudgetsOptions {
  readonly sql: SqlClient;
  readonly rowMacKey: RowMacKey;
  readonly access: ReachAccess;
  readonly projects: Projects;
  readonly audit: AuditLog;
  /** Told after every change that is durable. */
  readonly onChanged: () => void;
  readonly clock: Clock;
}

export function createBudgets({ sql, rowMacKey, access, projects, audit, onChanged, clock }: BudgetsOptions): Budgets {
  /** @throws HttpProblem `not_found` */
  async function demandSeen(tx: SqlTransaction, principal: Principal, subject: Subject): Promise<void> {
    if (subject.type === 'project') {
      await projects.demandIn(tx, principal, subject.id, 'projects:read');
      return;
    }
    const reach = await access.reachOf(tx, principal, 'devices:read');
    if ((await postgresDeviceDirectory(tx, { rowMacKey, clock }).get(subject.id, { asUserId: principal.userId, reach })) === null) throw notFound();
  }

  async function storedIn(tx: SqlTransaction, subject: Subject): Promise<StoredBudget | null> {
    const { rows } = await tx.query<BudgetRow>(`SELECT ${BUDGET_COLUMNS} FROM keyguard.usage_budgets WHERE subject_type = $1 AND subject_id = $2`, [subject.type, subject.id]);
    return rows[0] === undefined ? null : budgetIn(rowMacKey, rows[0]);
  }

  async function nowIn(tx: SqlTransaction, stored: StoredBudget | null): Promise<BudgetNow> {
    if (stored === null || stored.budget === null) return { stored, current: null };
    const { subject, budget } = stored;
    const { beganMs, endsMs } = periodAround(budget.period, clock.nowMs());
    const { rows } = await tx.query<WindowRow>(
      `SELECT began_ms, requests, tokens, cost_micros, expected_tokens, expected_cost_micros FROM keyguard.usage_windows
        WHERE subject_type = $1 AND subject_id = $2 AND period = $3 AND began_ms = $4`,
      [subject.type, subject.id, budget.period, beganMs],
    );
    const used = rows[0] === undefined ? { requests: 0, tokens: 0, costMicros: 0, expectedTokens: 0, expectedCostMicros: 0 } : windowIn(rows[0]);
    return { stored, current: { ...used, beganMs, endsMs } };
  }

  return {
    get: (principal, subject) =>
      asUser(sql, principal.userId, async (tx) => {
        await demandSeen(tx, principal, subject);
        return nowIn(tx, await storedIn(tx, subject));
      }),

    async set(principal, subject, budget, ifMatch) {
      const after = await asUser(sql, principal.userId, async (tx) => {
        await demandSeen(tx, principal, subject);
        if (!principal.isAdministrator) throw new HttpProblem('forbidden', 'Only an administrator sets budgets.');
        const before = await storedIn(tx, subject);
        demandMatch(ifMatch, String(before?.revision ?? 0));
        const stored: StoredBudget = { subject, budget, updatedBy: principal.userId, updatedAtMs: clock.nowMs(), revision: (before?.revision ?? 0) + 1 };
        if (!(await writeBudget(tx, rowMacKey, stored))) throw new HttpProblem('precondition_failed', 'It was changed meanwhile: read it again, and change what is there now.');
        await audit.recordIn(tx, {
          action: budget === null ? 'budget.end' : 'budget.set', outcome: 'success', actor: principal.actor, resource: `${subject.type}:${subject.id}`,
          [subject.type === 'device' ? 'device_id' : 'project_id']: subject.id, before: shown(before?.budget ?? null), after: shown(budget),
        });
        return nowIn(tx, stored);
      });
      onChanged();
      return after;
    },
  };
}

function shown(budget: Budget | null): { readonly period: string; readonly max_requests: number | null; readonly max_tokens: number | null; readonly max_cost_micros: number | null } | null {
  return budget === null ? null : { period: budget.period, max_requests: budget.maxRequests, max_tokens: budget.maxTokens, max_cost_micros: budget.maxCostMicros };
}
