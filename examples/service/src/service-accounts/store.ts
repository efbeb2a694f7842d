/**
 * Service accounts as their owners manage them. An owner makes, changes and rotates; an administrator sees all, shuts and deletes, and
 * never gets a token of somebody else's account, which would be a way to whatever that account may read.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { pageOf, pageStart, tampered, type Page, type PageRequest, type RowMacKey, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asAuth, asUser } from '../db/as-user.ts';
import { demandMatch } from '../http/preconditions.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { KeyedHash } from '../keys/hierarchy.ts';
import { PERMISSION_NAMES, type Permission } from '../roles/permissions.ts';
import type { Quotas } from '../settings/quotas.ts';
import { accountMac, COLUMNS, grantOf, isAccountIntact, SEAM, TABLE, timeOf, type AccountRow, type ServiceAccountGrant } from './rows.ts';
import { generateToken, hashOf } from './tokens.ts';

export interface AccountRecord extends Omit<ServiceAccountGrant, 'tokenHash' | 'previous'> {
  readonly previousExpiresAtMs: number | null;
  readonly lastUsedAtMs: number | null;
  readonly createdAtMs: number;
  readonly version: number;
  /** `false` for a row that was changed behind our back: its tokens open nothing. */
  readonly intact: boolean;
}

export interface NewAccount {
  readonly name: string;
  readonly scopes: readonly Permission[];
  readonly ipAllowlist: readonly string[] | null;
  readonly expiresAtMs: number | null;
}

/** With the token, which is shown this once. */
export interface WithToken {
  readonly account: AccountRecord;
  readonly token: string;
}

export interface ServiceAccounts {
  /** The caller's own; for an administrator, all. Newest first. */
  list(principal: Principal, request: PageRequest): Promise<Page<AccountRecord>>;
  /** @throws HttpProblem `not_found` */
  get(principal: Principal, id: string): Promise<AccountRecord>;
  /** @throws HttpProblem `quota_exceeded` */
  create(principal: Principal, account: NewAccount): Promise<WithToken>;
  /** Whether the caller's account is there, and in use by the token of this prefix. */
  countsBy(principal: Principal, id: string, tokenPrefix: string): Promise<boolean>;
  /** @throws HttpProblem `not_found`, `forbidden` for anybody but the owner, `precondition_failed` */
  update(principal: Principal, id: string, change: Partial<NewAccount>, ifMatch: readonly string[] | null): Promise<AccountRecord>;
  /**
   * A new token; the old one is worth nothing from `overlapMs` on, and one before it at once.
   * @throws HttpProblem `not_found`, `forbidden` for anybody but the owner
   */
  rotate(principal: Principal, id: string, overlapMs: number): Promise<WithToken>;
  /** Its tokens open nothing from the next request on. @throws HttpProblem `not_found` */
  disable(principal: Principal, id: string): Promise<AccountRecord>;
  /** @throws HttpProblem `not_found`, `forbidden` for an owner whose account somebody else has shut */
  enable(principal: Principal, id: string): Promise<AccountRecord>;
  /** With the roles that it holds. @throws HttpProblem `not_found` */
  remove(principal: Principal, id: string): Promise<void>;
}

export interface ServiceAccountsOptions {
  readonly sql: SqlClient;
  readonly rowMacKey: RowMacKey;
  readonly hashToken: KeyedHash;
  readonly audit: AuditLog;
  readonly quotas: Quotas;
  readonly clock: Clock;
}

export function createServiceAccounts({ sql, rowMacKey, hashToken, audit, quotas, clock }: ServiceAccountsOptions): ServiceAccounts {
  async function recordOf(row: AccountRow): Promise<AccountRecord> {
    const { tokenHash: _hash, previous, ...grant } = grantOf(row);
    return {
      ...grant,
      previousExpiresAtMs: previous?.expiresAtMs ?? null,
      lastUsedAtMs: timeOf(row.last_used_at_ms),
      createdAtMs: Number(row.created_at_ms),
      version: Number(row.version),
      intact: await isAccountIntact(rowMacKey, row),
    };
  }

  /** Where the caller may know of it. */
  async function readIn(tx: SqlTransaction, principal: Principal, id: string, lock: '' | 'FOR UPDATE' = ''): Promise<AccountRow> {
    const { rows } = await tx.query<AccountRow>(`SELECT ${COLUMNS} FROM keyguard.service_accounts WHERE id = $1 AND ($2 OR owner_id = $3) ${lock}`, [
      id, principal.isAdministrator, principal.userId,
    ]);
    if (rows[0] === undefined) throw notFound();
    return rows[0];
  }

  function demandOwner(principal: Principal, row: AccountRow): void {
    if (row.owner_id !== principal.userId) throw new HttpProblem('forbidden', 'Only its owner does this with a service account.');
  }

  /** Of what nobody vouches for nothing is vouched for anew. */
  async function demandIntact(row: AccountRow): Promise<void> {
    if (!(await isAccountIntact(rowMacKey, row))) throw tampered(SEAM, TABLE);
  }

  async function writeIn(tx: SqlTransaction, grant: ServiceAccountGrant): Promise<AccountRow> {
    const { rows } = await tx.query<AccountRow>(
      `UPDATE keyguard.service_accounts SET name = $2, token_prefix = $3, token_hash = $4, previous_prefix = $5, previous_hash = $6,
        previous_expires_at_ms = $7, scopes = $8, ip_allowlist = $9, expires_at_ms = $10, disabled_at_ms = $11, disabled_by = $12,
        version = version + 1, mac_key_id = $13, mac = $14 WHERE id = $1 RETURNING ${COLUMNS}`,
      [grant.id, grant.name, grant.tokenPrefix, grant.tokenHash, grant.previous?.prefix ?? null, grant.previous?.hash ?? null,
        grant.previous?.expiresAtMs ?? null, grant.scopes, grant.ipAllowlist, grant.expiresAtMs, grant.disabled?.atMs ?? null,
        grant.disabled?.by ?? null, rowMacKey.keyId, await accountMac(rowMacKey, grant)],
    );
    if (rows[0] === undefined) throw notFound();
    return rows[0];
  }

  function entry(action: string, principal: Principal, grant: ServiceAccountGrant): Parameters<AuditLog['recordIn']>[1] {
    return {
      action: `service_account.${action}`, outcome: 'success', actor: principal.actor, resource: `service_account:${grant.id}`,
      owner_id: grant.ownerId, name: grant.name,
    };
  }

  /** Shuts, or opens again. */
  function setDisabled(principal: Principal, id: string, wanted: boolean): Promise<AccountRecord> {
    return asUser(sql, principal.userId, async (tx) => {
      const row = await readIn(tx, principal, id, 'FOR UPDATE');
      const grant = grantOf(row);
      if ((grant.disabled !== null) === wanted) return recordOf(row);
      if (grant.disabled !== null && !principal.isAdministrator && grant.disabled.by !== principal.userId) {
        throw new HttpProblem('forbidden', 'Somebody else has disabled this account: an administrator can enable it.');
      }
      await demandIntact(row);
      const changed = await writeIn(tx, { ...grant, disabled: wanted ? { atMs: clock.nowMs(), by: principal.userId } : null });
      await audit.recordIn(tx, entry(wanted ? 'disable' : 'enable', principal, grant));
      return recordOf(changed);
    });
  }

  return {
    list: (principal, request) =>
      asUser(sql, principal.userId, async (tx) => {
        const start = pageStart(request);
        const { limit = 50 } = request;
        const { rows } = await tx.query<AccountRow>(
          `SELECT ${COLUMNS} FROM keyguard.service_accounts
            WHERE ($1 OR owner_id = $2) AND ($3::bigint IS NULL OR (created_at_ms, id) < ($3::bigint, $4::text))
            ORDER BY created_at_ms DESC, id DESC LIMIT $5`,
          [principal.isAdministrator, principal.userId, start?.[0] ?? null, start?.[1] ?? null, limit + 1],
        );
        const page = pageOf(rows, limit, (row) => [Number(row.created_at_ms), row.id], recordOf);
        return { items: await Promise.all(page.items), nextCursor: page.nextCursor };
      }),

    get: (principal, id) => asUser(sql, principal.userId, async (tx) => recordOf(await readIn(tx, principal, id))),

    create: (principal, { name, scopes, ipAllowlist, expiresAtMs }) =>
      asUser(sql, principal.userId, async (tx) => {
        await quotas.demandRoom(tx, principal, 'service_accounts');
        const token = generateToken();
        const grant: ServiceAccountGrant = {
          id: randomUUID(),
          name,
          ownerId: principal.userId,
          tokenPrefix: token.prefix,
          tokenHash: hashOf(hashToken, token.text),
          previous: null,
          scopes: inOrder(scopes),
          ipAllowlist,
          expiresAtMs,
          disabled: null,
        };
        const { rows } = await tx.query<AccountRow>(
          `INSERT INTO keyguard.service_accounts (id, name, owner_id, token_prefix, token_hash, scopes, ip_allowlist, expires_at_ms, created_at_ms,
            mac_key_id, mac) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING ${COLUMNS}`,
          [grant.id, name, grant.ownerId, grant.tokenPrefix, grant.tokenHash, grant.scopes, ipAllowlist, expiresAtMs, clock.nowMs(),
            rowMacKey.keyId, await accountMac(rowMacKey, grant)],
        );
        await audit.recordIn(tx, {
          ...entry('create', principal, grant), scopes: [...grant.scopes], ip_allowlist: ipAllowlist === null ? null : [...ipAllowlist], expires_at_ms: expiresAtMs,
        });
        return { account: await recordOf(rows[0]!), token: token.text };
      }),

    countsBy: (principal, id, tokenPrefix) =>
      asUser(sql, principal.userId, async (tx) => {
        const { rows } = await tx.query(
          `SELECT 1 FROM keyguard.service_accounts
            WHERE id = $1 AND owner_id = $2 AND token_prefix = $3 AND disabled_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > $4)`,
          [id, principal.userId, tokenPrefix, clock.nowMs()],
        );
        return rows.length > 0;
      }),

    update: (principal, id, change, ifMatch) =>
      asUser(sql, principal.userId, async (tx) => {
        const row = await readIn(tx, principal, id, 'FOR UPDATE');
        demandOwner(principal, row);
        demandMatch(ifMatch, String(row.version));
        await demandIntact(row);
        const before = grantOf(row);
        const after: ServiceAccountGrant = { ...before, ...change, scopes: change.scopes === undefined ? before.scopes : inOrder(change.scopes) };
        const changed = await writeIn(tx, after);
        await audit.recordIn(tx, {
          ...entry('update', principal, after), scopes: [...after.scopes], scopes_before: [...before.scopes],
          ip_allowlist: after.ipAllowlist === null ? null : [...after.ipAllowlist], expires_at_ms: after.expiresAtMs,
        });
        return recordOf(changed);
      }),

    rotate: (principal, id, overlapMs) =>
      asUser(sql, principal.userId, async (tx) => {
        const row = await readIn(tx, principal, id, 'FOR UPDATE');
        demandOwner(principal, row);
        await demandIntact(row);
        const before = grantOf(row);
        const token = generateToken();
        const previous = overlapMs === 0 ? null : { prefix: before.tokenPrefix, hash: before.tokenHash, expiresAtMs: clock.nowMs() + overlapMs };
        const after = { ...before, tokenPrefix: token.prefix, tokenHash: hashOf(hashToken, token.text), previous };
        const changed = await writeIn(tx, after);
        await audit.recordIn(tx, { ...entry('rotate', principal, after), old_token_until_ms: previous?.expiresAtMs ?? null });
        return { account: await recordOf(changed), token: token.text };
      }),

    disable: (principal, id) => setDisabled(principal, id, true),
    enable: (principal, id) => setDisabled(principal, id, false),

    remove: (principal, id) =>
      asUser(sql, principal.userId, async (tx) => {
        const row = await readIn(tx, principal, id, 'FOR UPDATE');
        await tx.query('DELETE FROM keyguard.secret_user_roles WHERE user_id = $1', [id]);
        await tx.query('DELETE FROM keyguard.service_accounts WHERE id = $1', [id]);
        // What it has made stays, and is the owner's to answer for.
        await asAuth(tx, (inner) => inner.query('INSERT INTO keyguard.deleted_service_accounts (id, owner_id) VALUES ($1, $2)', [id, row.owner_id]));
        await audit.recordIn(tx, entry('delete', principal, grantOf(row)));
      }),
  };
}

function inOrder(scopes: readonly Permission[]): readonly Permission[] {
  return PERMISSION_NAMES.filter((name) => scopes.includes(name));
}
