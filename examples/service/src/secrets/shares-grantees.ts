/** Whom a share is given to: found by id or by e-mail when it is made, and named again when it is shown. */
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { asAuth, asJobs } from '../db/as-user.ts';
import type { GranteeKind } from './shares-schema.ts';

export interface NamedGrantee {
  readonly type: GranteeKind;
  readonly id?: string | undefined;
  readonly email?: string | undefined;
}

export interface Grantee {
  readonly type: GranteeKind;
  readonly id: string;
}

export interface Grantees {
  /** `null` where there is nobody of that id or address. */
  find(named: NamedGrantee): Promise<Grantee | null>;
  /** Who these are; whoever is not there any more is not in it. */
  describe(userIds: readonly string[], roleIds: readonly string[]): Promise<ReadonlyMap<string, { readonly type: GranteeKind; readonly label: string }>>;
}

export function grantees(sql: SqlClient): Grantees {
  return {
    async find({ type, id, email }) {
      const found = async (work: Promise<{ readonly rows: { id: string }[] }>): Promise<Grantee | null> => {
        const { rows } = await work;
        return rows[0] === undefined ? null : { type, id: rows[0].id };
      };
      switch (type) {
        case 'user':
          return found(asAuth(sql, (tx) => tx.query('SELECT id FROM keyguard_auth.users WHERE id = $1 OR email = $2', [id ?? null, email ?? null])));
        case 'role':
          return found(asJobs(sql, (tx) => tx.query('SELECT id FROM keyguard.secret_roles WHERE id = $1', [id])));
        case 'service_account':
          return found(asAuth(sql, (tx) => tx.query('SELECT id FROM keyguard.service_accounts WHERE id = $1', [id])));
      }
    },

    async describe(userIds, roleIds) {
      const named = new Map<string, { readonly type: GranteeKind; readonly label: string }>();
      const note = (type: GranteeKind, rows: readonly { id: string; label: string }[]): void => {
        for (const { id, label } of rows) named.set(id, { type, label });
      };
      if (userIds.length > 0) {
        note('user', (await asAuth(sql, (tx) => tx.query<{ id: string; label: string }>('SELECT id, email AS label FROM keyguard_auth.users WHERE id = ANY ($1)', [userIds]))).rows);
        const others = userIds.filter((id) => !named.has(id));
        if (others.length > 0) {
          note('service_account', (await asAuth(sql, (tx) => tx.query<{ id: string; label: string }>('SELECT id, name AS label FROM keyguard.service_accounts WHERE id = ANY ($1)', [others]))).rows);
        }
      }
      if (roleIds.length > 0) {
        note('role', (await asJobs(sql, (tx) => tx.query<{ id: string; label: string }>('SELECT id, name AS label FROM keyguard.secret_roles WHERE id = ANY ($1)', [roleIds]))).rows);
      }
      return named;
    },
  };
}
