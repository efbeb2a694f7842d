/**
 * Shares of secrets: who may give them, to whom, and what they are worth. Only who may share a secret gives it on, and never more
 * than they have; every row bears a MAC over all that it grants; nothing is kept in memory, so what is revoked is so everywhere at
 * once.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { isIntact, pageOf, pageStart, type Page, type PageRequest, type RowMacKey, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import type { Access } from '../roles/access.ts';
import type { Permission } from '../roles/permissions.ts';
import { NO_QUOTAS, type Quotas } from '../settings/quotas.ts';
import { secretIn, SECRET_COLUMNS, type Secret, type SecretRow } from './rows.ts';
import { countingShares, SHARE_COLUMNS, SHARES_TABLE, shareFields, shareGrant, shareMac, type ShareGrant, type ShareRow } from './shares.ts';
import { grantees, type Grantee, type Grantees, type NamedGrantee } from './shares-grantees.ts';
import { SHARED_PERMISSIONS, type GranteeKind, type SharePermission } from './shares-schema.ts';
import type { SecretStore } from './store.ts';

/** A share as it may be shown. */
export interface Share {
  readonly id: string;
  readonly secretId: string;
  readonly grantee: { readonly type: GranteeKind | 'link'; readonly id: string | null; readonly label: string | null };
  readonly permission: SharePermission;
  readonly createdBy: string;
  readonly createdAtMs: number;
  readonly expiresAtMs: number | null;
  readonly revokedAtMs: number | null;
  readonly maxViews: number | null;
  readonly views: number;
  /** Of a link. */
  readonly version: number | null;
  /** `null` for a link, of which only whoever opens it can tell. */
  readonly intact: boolean | null;
}

/** What somebody else has shared. */
export interface SharedSecret {
  readonly share: Share;
  readonly secret: Pick<Secret, 'id' | 'name' | 'type' | 'ownerId'>;
  readonly ownerLabel: string | null;
}

export interface NewShare {
  readonly grantee: NamedGrantee;
  readonly permission: SharePermission;
  /** `null`: until it is revoked. */
  readonly expiresAtMs: number | null;
}

export interface Shares {
  /**
   * Shares a secret, in place of what the same grantee was given before by whom this caller may overrule: the owner everybody, others
   * themselves.
   * @throws HttpProblem
   */
  give(principal: Principal, secretId: string, share: NewShare): Promise<Share>;
  /** The shares of a secret, newest first: all of them to its owner, to others who may share it those that they made. @throws HttpProblem */
  list(principal: Principal, secretId: string, request: PageRequest): Promise<Page<Share>>;
  /** Takes a share or a link back, for ever: by the owner, by who made it, and by whom it was given to. @throws HttpProblem `not_found` */
  revoke(principal: Principal, secretId: string, shareId: string): Promise<void>;
  /** What counts, now, of what was shared with the caller, newest first. */
  withMe(principal: Principal, request: PageRequest): Promise<Page<SharedSecret>>;
}

export interface SharesStoreOptions {
  readonly sql: SqlClient;
  readonly keys: Pick<DeploymentKeys, 'rowMacKey'>;
  readonly audit: AuditLog;
  readonly access: Access;
  readonly secrets: Pick<SecretStore, 'rows'>;
  readonly quotas?: Quotas;
  readonly clock?: Clock;
}

export interface StoredShareRow extends ShareRow {
  version: number | null;
}

export const STORED_SHARE_COLUMNS = `${SHARE_COLUMNS}, version`;

const timeOrNull = (value: unknown): number | null => (value === null ? null : Number(value));

/** `tx` acts for the caller. @throws HttpProblem unless the caller may, by themselves, give these permissions on the secret to others */
export async function demandMayGive(tx: SqlTransaction, access: Access, principal: Principal, { ownerId, projectId }: Secret, permissions: readonly Permission[]): Promise<void> {
  if (ownerId === principal.userId) return;
  if (principal.kind !== 'person') throw new HttpProblem('forbidden', 'A service account shares what it owns, and nothing else.');
  // What was shared with somebody is theirs to use, and not theirs to pass on.
  const own = await access.permissionsOn(tx, principal, { ownerId, projectId, shared: [] });
  if (!permissions.every((permission) => own.has(permission))) throw new HttpProblem('forbidden', 'Nobody shares more than they may do themselves.');
}

/** Rows as they may be shown, with the names of whom they are for. */
export type ShowShares = (rows: readonly StoredShareRow[]) => Promise<readonly Share[]>;

export function showShares(rowMacKey: RowMacKey, people: Grantees): ShowShares {
  return async (rows) => {
    const ids = (type: ShareRow['grantee_type']): readonly string[] => [...new Set(rows.filter((row) => row.grantee_type === type).map((row) => row.grantee_id!))];
    const named = await people.describe(ids('user'), ids('role'));
    return Promise.all(
      rows.map(async (row): Promise<Share> => {
        const known = row.grantee_id === null ? undefined : named.get(row.grantee_id);
        const stored = { macKeyId: row.mac_key_id, mac: Uint8Array.from(row.mac) };
        return {
          id: row.id,
          secretId: row.subject_id,
          grantee: { type: known?.type ?? row.grantee_type, id: row.grantee_id, label: known?.label ?? null },
          permission: row.permissions.includes('secrets:update') ? 'write' : 'read',
          createdBy: row.created_by,
          createdAtMs: Number(row.created_at_ms),
          expiresAtMs: timeOrNull(row.expires_at_ms),
          revokedAtMs: timeOrNull(row.revoked_at_ms),
          maxViews: row.max_views,
          views: row.views,
          version: row.version,
          intact: row.grantee_type === 'link' ? null : await isIntact(rowMacKey, SHARES_TABLE, shareFields(shareGrant(row)), stored),
        };
      }),
    );
  };
}

export function createShares({ sql, keys: { rowMacKey }, audit, access, secrets: { rows: secrets }, quotas = NO_QUOTAS, clock = systemClock }: SharesStoreOptions): Shares {
  const people = grantees(sql);
  const shown = showShares(rowMacKey, people);
  const counting = countingShares({ rowMacKey, access, clock });

  async function insert(tx: SqlTransaction, principal: Principal, secret: Secret, to: Grantee, { permission, expiresAtMs }: NewShare): Promise<StoredShareRow> {
    const nowMs = clock.nowMs();
    const grant: ShareGrant = {
      id: randomUUID(),
      subjectType: 'secret',
      subjectId: secret.id,
      ownerId: secret.ownerId,
      projectId: secret.projectId,
      granteeType: to.type === 'role' ? 'role' : 'user',
      granteeId: to.id,
      permissions: SHARED_PERMISSIONS[permission],
      tokenHash: null,
      maxViews: null,
      createdBy: principal.userId,
      createdAtMs: nowMs,
      expiresAtMs,
    };
    await tx.query(
      `UPDATE keyguard.secret_shares SET revoked_at_ms = $5
        WHERE subject_type = 'secret' AND subject_id = $1 AND grantee_type = $2 AND grantee_id = $3 AND revoked_at_ms IS NULL
          AND (owner_id = $4 OR created_by = $4)`,
      [secret.id, grant.granteeType, grant.granteeId, principal.userId, nowMs],
    );
    // What it takes the place of makes room for it.
    await quotas.demandRoom(tx, principal, 'shares');
    const { rows } = await tx.query<StoredShareRow>(
      `INSERT INTO keyguard.secret_shares (id, subject_type, subject_id, owner_id, project_id, grantee_type, grantee_id, permissions,
        created_by, created_at_ms, expires_at_ms, mac_key_id, mac) VALUES ($1, 'secret', $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        RETURNING ${STORED_SHARE_COLUMNS}`,
      [grant.id, secret.id, grant.ownerId, grant.projectId, grant.granteeType, grant.granteeId, grant.permissions, grant.createdBy, nowMs,
        expiresAtMs, rowMacKey.keyId, await shareMac(rowMacKey, grant)],
    );
    return rows[0]!;
  }

  return {
    async give(principal, secretId, share) {
      if (share.expiresAtMs !== null && share.expiresAtMs <= clock.nowMs()) throw new HttpProblem('invalid_request', 'expires_at: is over already.');
      const to = await people.find(share.grantee);
      const row = await asUser(sql, principal.userId, async (tx) => {
        const { secret } = await secrets.secretOf(tx, principal, secretId, 'secrets:share');
        await demandMayGive(tx, access, principal, secret, SHARED_PERMISSIONS[share.permission]);
        if (to === null) throw new HttpProblem('grantee_not_found', 'There is nobody of that id or address to share with.');
        if (to.id === secret.ownerId) throw new HttpProblem('invalid_request', 'grantee: owns this secret.');
        const made = await insert(tx, principal, secret, to, share);
        await audit.recordIn(tx, {
          action: 'secret.share',
          outcome: 'success',
          actor: principal.actor,
          resource: `secret:${secretId}`,
          share_id: made.id,
          grantee: `${to.type}:${to.id}`,
          permission: share.permission,
          expires_at_ms: share.expiresAtMs,
        });
        return made;
      });
      return (await shown([row]))[0]!;
    },

    async list(principal, secretId, request) {
      const { limit = 50 } = request;
      const start = pageStart(request);
      const { rows } = await asUser(sql, principal.userId, async (tx) => {
        const { secret } = await secrets.secretOf(tx, principal, secretId, 'secrets:share');
        return tx.query<StoredShareRow>(
          `SELECT ${STORED_SHARE_COLUMNS} FROM keyguard.secret_shares
            WHERE subject_type = 'secret' AND subject_id = $1 AND ($2::boolean OR created_by = $3)
              AND ($4::bigint IS NULL OR (created_at_ms, id) < ($4::bigint, $5::text))
            ORDER BY created_at_ms DESC, id DESC LIMIT $6`,
          [secretId, secret.ownerId === principal.userId, principal.userId, start?.[0] ?? null, start?.[1] ?? null, limit + 1],
        );
      });
      const page = pageOf(rows, limit, (row) => [Number(row.created_at_ms), row.id], (row) => row);
      return { items: await shown(page.items), nextCursor: page.nextCursor };
    },

    async revoke(principal, secretId, shareId) {
      await asUser(sql, principal.userId, async (tx) => {
        const { rows } = await tx.query<{ grantee_type: string; grantee_id: string | null; created_by: string }>(
          `UPDATE keyguard.secret_shares SET revoked_at_ms = coalesce(revoked_at_ms, $4)
            WHERE id = $1 AND subject_type = 'secret' AND subject_id = $2
              AND (owner_id = $3 OR created_by = $3 OR (grantee_type = 'user' AND grantee_id = $3))
            RETURNING grantee_type, grantee_id, created_by`,
          [shareId, secretId, principal.userId, clock.nowMs()],
        );
        const row = rows[0];
        if (row === undefined) throw notFound();
        await audit.recordIn(tx, {
          action: 'secret.unshare',
          outcome: 'success',
          actor: principal.actor,
          resource: `secret:${secretId}`,
          share_id: shareId,
          grantee: row.grantee_id === null ? 'link' : `${row.grantee_type}:${row.grantee_id}`,
        });
      });
    },

    async withMe(principal, request) {
      const { limit = 50 } = request;
      const start = pageStart(request);
      const found = await asUser(sql, principal.userId, async (tx) => {
        const { rows } = await tx.query<StoredShareRow>(
          `SELECT ${STORED_SHARE_COLUMNS} FROM keyguard.secret_shares
            WHERE subject_type = 'secret' AND revoked_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > $2) AND owner_id <> $1
              AND ((grantee_type = 'user' AND grantee_id = $1)
                OR (grantee_type = 'role' AND grantee_id IN (SELECT role_id FROM keyguard.secret_user_roles WHERE user_id = $1)))
              AND ($3::bigint IS NULL OR (created_at_ms, id) < ($3::bigint, $4::text))
            ORDER BY created_at_ms DESC, id DESC LIMIT $5`,
          [principal.userId, clock.nowMs(), start?.[0] ?? null, start?.[1] ?? null, limit + 1],
        );
        const page = pageOf(rows, limit, (row) => [Number(row.created_at_ms), row.id], (row) => row);
        const { rows: secretRows } = await tx.query<SecretRow>(
          `SELECT ${SECRET_COLUMNS} FROM keyguard.enterprise_secrets WHERE id = ANY ($1::text[]) AND deleted_at_ms IS NULL`,
          [[...new Set(page.items.map((row) => row.subject_id))]],
        );
        const held = new Map((await secrets.held(tx, principal, secretRows)).map(({ secret }) => [secret.id, secret]));
        const count = new Set((await counting(tx, principal.userId, 'secret', secretRows.map(secretIn))).map(({ id }) => id));
        return { rows: page.items.filter((row) => count.has(row.id) && held.has(row.subject_id)), held, nextCursor: page.nextCursor };
      });
      const owners = await people.describe([...new Set(found.rows.map((row) => row.owner_id))], []);
      const items = (await shown(found.rows)).map((share): SharedSecret => {
        const secret = found.held.get(share.secretId)!;
        return { share, secret, ownerLabel: owners.get(secret.ownerId)?.label ?? null };
      });
      return { items, nextCursor: found.nextCursor };
    },
  };
}
