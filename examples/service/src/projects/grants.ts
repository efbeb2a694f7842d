/**
 * What a project lets its devices do, for the calls that they make. What was read is kept for one second, so that what somebody
 * changed counts within a second everywhere, and at once in the process that changed it.
 */
import { UnavailableError } from '@keyguard/core/errors';
import type { RowMacKey, SqlClient } from '@keyguard/storage-node/postgres';
import { asVerifier } from '../db/as-user.ts';
import { GRANT_COLUMNS, vouchedGrant, type ProjectGrant, type ProjectGrantRow } from './rows.ts';

const KEPT_MS = 1000;
const MAX_KEPT = 1000;

export interface ProjectGrants {
  /** @throws UnavailableError where nobody can tell, and for a project that is not there */
  find(projectId: string): Promise<ProjectGrant>;
  /** Forgets what is known of a project, what is being read at this moment included. */
  forget(projectId: string): void;
}

export function projectGrants(sql: SqlClient, rowMacKey: RowMacKey): ProjectGrants {
  const kept = new Map<string, { readonly grant: Promise<ProjectGrant>; readonly untilMs: number }>();

  async function load(projectId: string): Promise<ProjectGrant> {
    const { rows } = await asVerifier(sql, (tx) => tx.query<ProjectGrantRow>(`SELECT ${GRANT_COLUMNS} FROM keyguard.api_key_projects WHERE id = $1`, [projectId]));
    if (rows[0] === undefined) throw new UnavailableError('projects', 'The project of a device is not there.');
    return vouchedGrant(rowMacKey, rows[0]);
  }

  return {
    find(projectId) {
      const now = performance.now();
      const found = kept.get(projectId);
      if (found !== undefined && now < found.untilMs) return found.grant;
      // Taken out first, so that the one that was read longest ago makes room.
      kept.delete(projectId);
      if (kept.size >= MAX_KEPT) kept.delete(kept.keys().next().value!);
      const entry = { grant: load(projectId), untilMs: now + KEPT_MS };
      kept.set(projectId, entry);
      entry.grant.catch(() => {
        if (kept.get(projectId) === entry) kept.delete(projectId);
      });
      return entry.grant;
    },
    forget(projectId) {
      kept.delete(projectId);
    },
  };
}
