/**
 * `GET /api/audit`: the log, newest first. An administrator sees all of it, everyone else what they did themselves: the policies
 * decide.
 */
import { Router } from 'express';
import * as z from 'zod';
import { fromUtf8 } from '@keyguard/core/bytes';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { principalOf } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { pageQuery } from '../http/pagination.ts';
import { auditOrigin } from './log.ts';

interface Row {
  seq: unknown;
  entry: Uint8Array;
}

const query = pageQuery.extend({ cursor: z.string().regex(/^(?:0|[1-9][0-9]{0,15})$/, 'is not one that was handed out').optional() });

export function auditRoutes({ sql, deploymentId }: { readonly sql: SqlClient; readonly deploymentId: string }): Router {
  const router = Router({ caseSensitive: true, strict: true });
  const origin = auditOrigin(deploymentId);

  router.get('/api/audit', async (request, response) => {
    const { limit = 50, cursor } = query.parse(request.query);
    const { rows } = await asUser(sql, principalOf(request).userId, (tx) =>
      tx.query<Row>(
        `SELECT seq, entry FROM keyguard.secret_audit_logs WHERE origin = $1 AND ($2::bigint IS NULL OR seq < $2::bigint)
          ORDER BY seq DESC LIMIT $3`,
        [origin, cursor ?? null, limit + 1],
      ),
    );
    const shown = rows.slice(0, limit);
    const hasMore = rows.length > limit;
    response.set('cache-control', 'no-store').json({
      data: shown.map(({ entry }) => JSON.parse(fromUtf8(entry)) as object),
      has_more: hasMore,
      next_cursor: hasMore ? String(shown.at(-1)!.seq) : null,
    });
  });

  return router;
}
