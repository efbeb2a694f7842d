/**
 * `GET /api/audit`: the log, newest first. An administrator sees all of it, everyone else what they did themselves: the policies
 * decide.
 */
import * as z from 'zod';
import { fromUtf8 } from '@keyguard/core/bytes';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { asUser } from '../db/as-user.ts';
import { operation, type Operation } from '../http/operations.ts';
import { pageOf, pageQuery } from '../http/pagination.ts';
import { auditOrigin } from './log.ts';

interface Row {
  seq: unknown;
  entry: Uint8Array;
}

const query = pageQuery.extend({ cursor: z.string().regex(/^(?:0|[1-9][0-9]{0,15})$/, 'is not one that was handed out').optional() });

const auditEntry = z
  .looseObject({ action: z.string(), actor: z.string(), outcome: z.string(), seq: z.int(), ts: z.string() })
  .meta({ id: 'AuditEntry', description: 'As it was chained: members beside these depend on the action.' });

export function auditOperations({ sql, deploymentId }: { readonly sql: SqlClient; readonly deploymentId: string }): readonly Operation[] {
  const origin = auditOrigin(deploymentId);
  return [
    operation(
      {
        id: 'listAuditEntries', action: 'audit.list', method: 'get', path: '/api/audit', tag: 'Audit', access: 'audit:read',
        summary: 'Read the audit log, newest first',
        query,
        answers: { 200: { description: 'A page', json: pageOf(auditEntry) } },
      },
      async ({ query: { limit = 50, cursor }, principal }) => {
        const { rows } = await asUser(sql, principal.userId, (tx) =>
          tx.query<Row>(
            `SELECT seq, entry FROM keyguard.secret_audit_logs WHERE origin = $1 AND ($2::bigint IS NULL OR seq < $2::bigint)
              ORDER BY seq DESC LIMIT $3`,
            [origin, cursor ?? null, limit + 1],
          ),
        );
        const shown = rows.slice(0, limit);
        const hasMore = rows.length > limit;
        return {
          json: {
            data: shown.map(({ entry }) => JSON.parse(fromUtf8(entry)) as object),
            has_more: hasMore,
            next_cursor: hasMore ? String(shown.at(-1)!.seq) : null,
          },
        };
      },
    ),
  ];
}
