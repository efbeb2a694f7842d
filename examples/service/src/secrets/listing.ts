/** Lists of secrets and of their versions: what is stored, never a value. */
import { pageOf, pageStart, type Page, type PageRequest, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { SECRET_COLUMNS, type HeldSecret, type SealedRow, type SecretRow, type SecretRows } from './rows.ts';

export interface SecretFilter {
  /** In the name or a tag, whatever the case. */
  readonly q?: string | undefined;
  readonly name?: string | undefined;
  readonly type?: string | undefined;
  readonly tag?: string | undefined;
  readonly projectId?: string | undefined;
  /** Those that have expired already as well. */
  readonly expiringBeforeMs?: number | undefined;
}

export interface SecretVersion {
  readonly version: number;
  readonly state: SealedRow['state'];
  readonly createdBy: string;
  readonly createdAtMs: number;
  readonly reason: string | null;
  readonly verifiedAtMs: number | null;
  readonly overlapUntilMs: number | null;
  readonly destroyedAtMs: number | null;
}

interface Reach {
  readonly everywhere: boolean;
  readonly project_ids: readonly string[];
  readonly secret_ids: readonly string[];
}

/** Where the user for whom `tx` acts can have secrets to see, beside their own: so that a list looks there and nowhere else. */
async function reachOf(tx: SqlTransaction, userId: string): Promise<Reach> {
  const { rows } = await tx.query<Reach>(
    `SELECT keyguard.acting_has_permission('secrets:read', NULL) AS everywhere,
      ARRAY(SELECT DISTINCT a.project_id FROM keyguard.secret_user_roles a WHERE a.user_id = $1 AND a.project_id IS NOT NULL) AS project_ids,
      ARRAY(SELECT DISTINCT h.subject_id FROM keyguard.secret_shares h WHERE h.subject_type = 'secret' AND h.revoked_at_ms IS NULL
        AND (h.grantee_type = 'user' AND h.grantee_id = $1
          OR h.grantee_type = 'role' AND h.grantee_id IN (SELECT a.role_id FROM keyguard.secret_user_roles a WHERE a.user_id = $1))) AS secret_ids`,
    [userId],
  );
  return rows[0]!;
}

const pattern = (text: string): string => `%${text.replaceAll(/[\\%_]/g, '\\$&')}%`;

/** What `filter` finds among what `principal`, for whom `tx` acts, may know of; newest first. */
export async function findSecrets(
  tx: SqlTransaction,
  rows: SecretRows,
  principal: Principal,
  filter: SecretFilter,
  request: PageRequest,
): Promise<Page<HeldSecret>> {
  const { limit = 50 } = request;
  const after = pageStart(request);
  const { everywhere, project_ids: projectIds, secret_ids: secretIds } = await reachOf(tx, principal.userId);
  const { rows: found } = await tx.query<SecretRow>(
    `SELECT ${SECRET_COLUMNS} FROM keyguard.enterprise_secrets
      WHERE deleted_at_ms IS NULL
        AND ($1::boolean OR owner_id = $2 OR project_id = ANY ($3::text[]) OR id = ANY ($4::text[]))
        AND ($5::bigint IS NULL OR (created_at_ms, id) < ($5::bigint, $6::text))
        AND ($7::text IS NULL OR name ILIKE $7 OR EXISTS (SELECT FROM unnest(tags) AS t (tag) WHERE t.tag ILIKE $7))
        AND ($8::text IS NULL OR name = $8)
        AND ($9::text IS NULL OR type = $9)
        AND ($10::text IS NULL OR $10 = ANY (tags))
        AND ($11::text IS NULL OR project_id = $11)
        AND ($12::bigint IS NULL OR expires_at_ms < $12)
      ORDER BY created_at_ms DESC, id DESC LIMIT $13`,
    [everywhere, principal.userId, projectIds, secretIds, after?.[0] ?? null, after?.[1] ?? null, filter.q === undefined ? null : pattern(filter.q),
      filter.name ?? null, filter.type ?? null, filter.tag ?? null, filter.projectId ?? null, filter.expiringBeforeMs ?? null, limit + 1],
  );
  const { items, nextCursor } = pageOf(found, limit, (row) => [Number(row.created_at_ms), row.id], (row) => row);
  return { items: await rows.held(tx, principal, items), nextCursor };
}

export async function listSecrets(sql: SqlClient, rows: SecretRows, principal: Principal, filter: SecretFilter, request: PageRequest): Promise<Page<HeldSecret>> {
  return asUser(sql, principal.userId, (tx) => findSecrets(tx, rows, principal, filter, request));
}

interface VersionRow {
  version: number;
  state: SealedRow['state'];
  created_by: string;
  created_at_ms: unknown;
  reason: string | null;
  verified_at_ms: unknown;
  overlap_until_ms: unknown;
  destroyed_at_ms: unknown;
}

const timeOrNull = (value: unknown): number | null => (value === null ? null : Number(value));

/** A page of the versions of a secret, newest first. @throws HttpProblem `not_found` */
export async function listVersions(
  sql: SqlClient,
  rows: SecretRows,
  principal: Principal,
  id: string,
  { limit, before }: { readonly limit: number; readonly before: number | null },
): Promise<Page<SecretVersion>> {
  const found = await asUser(sql, principal.userId, async (tx) => {
    await rows.secretOf(tx, principal, id, 'secrets:read');
    return tx.query<VersionRow>(
      `SELECT version, state, created_by, created_at_ms, reason, verified_at_ms, overlap_until_ms, destroyed_at_ms FROM keyguard.secret_versions
        WHERE subject_type = 'secret' AND subject_id = $1 AND ($2::integer IS NULL OR version < $2::integer) ORDER BY version DESC LIMIT $3`,
      [id, before, limit + 1],
    );
  });
  const items = found.rows.slice(0, limit).map((row) => ({
    version: row.version,
    state: row.state,
    createdBy: row.created_by,
    createdAtMs: Number(row.created_at_ms),
    reason: row.reason,
    verifiedAtMs: timeOrNull(row.verified_at_ms),
    overlapUntilMs: timeOrNull(row.overlap_until_ms),
    destroyedAtMs: timeOrNull(row.destroyed_at_ms),
  }));
  return { items, nextCursor: found.rows.length > limit ? String(items.at(-1)!.version) : null };
}
