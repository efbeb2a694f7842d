/**
 * `/api/audit`: the log, newest first, by what it is asked for; as an export; and what proves it.
 */
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { asUser } from '../db/as-user.ts';
import { operation, type Operation } from '../http/operations.ts';
import { pageOf, pageQuery } from '../http/pagination.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import type { Access } from '../roles/access.ts';
import type { CheckpointStore } from './checkpoint-store.ts';
import type { Checkpoints } from './checkpoints.ts';
import { seqCursor } from './cursor.ts';
import { exportOperation } from './export.ts';
import type { KeptCheckpoints } from './kept.ts';
import type { AuditLog } from './log.ts';
import { macKeyOperations } from './mac-key-operations.ts';
import type { MacRotation } from './mac-rotation.ts';
import { proofOperations } from './proof-operations.ts';
import { auditEntry, conditionsOf, entryJson, filterQuery, readsAll, seqOf, type EntryRow } from './reading.ts';
import { timelineOperation } from './timeline.ts';
import { verifyOperation } from './verification.ts';

export interface AuditOperationsOptions {
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly access: Access;
  readonly store: CheckpointStore;
  readonly checkpoints: Checkpoints;
  readonly kept: KeptCheckpoints;
  readonly macRotation: MacRotation;
}

const query = pageQuery.extend({ cursor: seqCursor.optional(), ...filterQuery });

export function auditOperations(options: AuditOperationsOptions): readonly Operation[] {
  const { sql, access, audit } = options;
  const list = operation(
    {
      id: 'listAuditEntries', action: 'audit.list', method: 'get', path: '/api/audit', tag: 'Audit', access: 'audit:read',
      summary: 'Read the audit log, newest first',
      description: 'Administrators, and who holds `audit:read` by a role, see all of it; everyone else what they did themselves.',
      query,
      answers: { 200: { description: 'A page', json: pageOf(auditEntry) } },
    },
    async ({ query: { limit = 50, cursor, ...filters }, principal }) => {
      const rows = await asUser(sql, principal.userId, async (tx) => {
        const all = await readsAll(tx, access, principal);
        const { text, params } = conditionsOf(filters, { origin: audit.origin, principal, all });
        const [before, count] = [`$${params.length + 1}`, `$${params.length + 2}`];
        const found = await tx.query<EntryRow>(
          `SELECT seq, entry FROM keyguard.secret_audit_logs WHERE ${text} AND (${before}::bigint IS NULL OR seq < ${before}::bigint)
            ORDER BY seq DESC LIMIT ${count}`,
          [...params, cursor ?? null, limit + 1],
        );
        return found.rows;
      });
      const shown = rows.slice(0, limit);
      const hasMore = rows.length > limit;
      return { json: { data: shown.map(entryJson), has_more: hasMore, next_cursor: hasMore ? String(seqOf(shown.at(-1)!)) : null } };
    },
  );
  return [
    list,
    timelineOperation(options),
    exportOperation(options),
    ...proofOperations(options),
    ...macKeyOperations({ sql, origin: audit.origin, rotation: options.macRotation }),
    verifyOperation(options),
  ];
}
