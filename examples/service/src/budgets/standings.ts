/**
 * Which budgets bind a device: its own, and that of its project. What was read is kept for one second, so that a budget that is set is in
 * force within a second everywhere, and at once in the process that set it.
 */
import type { Device } from '@keyguard/core/seams';
import type { RowMacKey, SqlClient } from '@keyguard/storage-node/postgres';
import { asVerifier } from '../db/as-user.ts';
import type { Standing } from './charging.ts';
import { BUDGET_COLUMNS, budgetIn, type BudgetRow } from './rows.ts';

const KEPT_MS = 1000;
const MAX_KEPT = 10_000;

export interface Standings {
  /**
   * The device's, then the project's; none where there are no budgets.
   * @throws UnavailableError where one cannot be read, or was changed in the database
   */
  of(device: Pick<Device, 'deviceId' | 'projectId'>): Promise<readonly Standing[]>;
  /** Forgets everything, what is being read at this moment included. */
  clear(): void;
}

export function budgetStandings(sql: SqlClient, rowMacKey: RowMacKey): Standings {
  let kept = new Map<string, { readonly standings: Promise<readonly Standing[]>; readonly untilMs: number }>();

  async function load(deviceId: string, projectId: string | null): Promise<readonly Standing[]> {
    const { rows } = await asVerifier(sql, (tx) =>
      tx.query<BudgetRow>(
        `SELECT ${BUDGET_COLUMNS} FROM keyguard.usage_budgets
          WHERE (subject_type = 'device' AND subject_id = $1) OR (subject_type = 'project' AND subject_id = $2) ORDER BY subject_type`,
        [deviceId, projectId],
      ),
    );
    const stored = await Promise.all(rows.map((row) => budgetIn(rowMacKey, row)));
    return stored.flatMap(({ subject, budget }) => (budget === null ? [] : [{ subject, budget }]));
  }

  return {
    of({ deviceId, projectId }) {
      const now = performance.now();
      const found = kept.get(deviceId);
      if (found !== undefined && now < found.untilMs) return found.standings;
      if (found === undefined && kept.size >= MAX_KEPT) kept.delete(kept.keys().next().value!);
      const standings = load(deviceId, projectId);
      const entry = { standings, untilMs: now + KEPT_MS };
      kept.set(deviceId, entry);
      standings.catch(() => {
        if (kept.get(deviceId) === entry) kept.delete(deviceId);
      });
      return standings;
    },
    clear() {
      kept = new Map();
    },
  };
}
