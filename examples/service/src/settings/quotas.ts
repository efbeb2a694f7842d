/**
 * How much one person may have of what anybody makes without asking somebody. What is there is counted, and the next one made, under one
 * lock: however many are asked for at once, there are never more. A person's service accounts count with the person, deleted ones too, so
 * that neither another account nor the end of one is more room.
 *
 * Never takes anything away: where the limit was lowered, what is there stays, and no more comes to it.
 */
import type { Clock } from '@keyguard/core/seams';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { asAuth, asJobs, asVerifier } from '../db/as-user.ts';
import { integer } from '../db/values.ts';
import { HttpProblem } from '../http/problems.ts';
import type { SettingsDocument } from './schema.ts';

export type QuotaLimits = SettingsDocument['quotas'];
export type QuotaName = keyof QuotaLimits;

export interface Quotas {
  /**
   * Holds, to the end of the caller's transaction, that there is room for `adding` more of these. To be asked before rows are locked.
   * @throws HttpProblem `quota_exceeded`
   */
  demandRoom(tx: SqlTransaction, principal: Principal, of: QuotaName, adding?: number): Promise<void>;
}

/** For what is built without settings. */
export const NO_QUOTAS: Quotas = { demandRoom: async () => {} };

interface Counted {
  /** Who sees the rows of all: the caller need not. */
  readonly as: typeof asAuth;
  /** With whose they are in `$1`, and the time in `$2`. */
  readonly query: string;
  readonly words: string;
}

const COUNTED: Readonly<Record<QuotaName, Counted>> = {
  service_accounts: {
    as: asAuth,
    query: 'SELECT count(*) AS n FROM keyguard.service_accounts WHERE owner_id = ANY ($1) AND $2::bigint IS NOT NULL',
    words: 'service accounts: delete one',
  },
  projects: {
    as: asJobs,
    query: 'SELECT count(*) AS n FROM keyguard.api_key_projects WHERE owner_id = ANY ($1) AND archived_at_ms IS NULL AND $2::bigint IS NOT NULL',
    words: 'projects that are not archived: archive one',
  },
  enrollment_codes: {
    as: asVerifier,
    query: 'SELECT count(*) AS n FROM keyguard.enrollment_codes WHERE created_by = ANY ($1) AND revoked_at_ms IS NULL AND expires_at_ms > $2 AND uses < max_uses',
    words: 'enrollment codes that are still good: revoke one',
  },
  invitations: {
    as: asAuth,
    query: 'SELECT count(*) AS n FROM keyguard_auth.invitations WHERE invited_by = ANY ($1) AND accepted_at_ms IS NULL AND revoked_at_ms IS NULL AND expires_at_ms > $2',
    words: 'invitations that nobody has accepted: revoke one',
  },
  shares: {
    as: asJobs,
    query: `SELECT count(*) AS n FROM keyguard.secret_shares WHERE created_by = ANY ($1) AND revoked_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > $2)
      AND (max_views IS NULL OR views < max_views)`,
    words: 'shares and links that still count: take one back',
  },
  secrets: {
    as: asJobs,
    query: 'SELECT count(*) AS n FROM keyguard.enterprise_secrets WHERE owner_id = ANY ($1) AND deleted_at_ms IS NULL AND $2::bigint IS NOT NULL',
    words: 'secrets: delete one',
  },
};

export interface QuotasOptions {
  readonly limits: () => QuotaLimits;
  readonly clock: Clock;
}

export function createQuotas({ limits, clock }: QuotasOptions): Quotas {
  /** The person, and all service accounts that are or were theirs. */
  async function ownersOf(tx: SqlTransaction, personId: string): Promise<readonly string[]> {
    const { rows } = await asAuth(tx, (inner) =>
      inner.query<{ id: string }>('SELECT id FROM keyguard.service_accounts WHERE owner_id = $1 UNION ALL SELECT id FROM keyguard.deleted_service_accounts WHERE owner_id = $1', [personId]),
    );
    return [personId, ...rows.map(({ id }) => id)];
  }

  async function personOf(tx: SqlTransaction, { kind, userId }: Principal): Promise<string> {
    if (kind === 'person') return userId;
    const { rows } = await asAuth(tx, (inner) => inner.query<{ owner_id: string }>('SELECT owner_id FROM keyguard.service_accounts WHERE id = $1', [userId]));
    return rows[0]?.owner_id ?? userId;
  }

  return {
    async demandRoom(tx, principal, of, adding = 1) {
      const limit = limits()[of];
      const personId = await personOf(tx, principal);
      await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.quota ' || $1 || ' ' || $2, 0))`, [of, personId]);
      const { as, query, words } = COUNTED[of];
      const owners = await ownersOf(tx, personId);
      const { rows } = await as(tx, (inner) => inner.query<{ n: unknown }>(query, [owners, clock.nowMs()]));
      if (integer(rows[0]!.n) + adding <= limit) return;
      throw new HttpProblem('quota_exceeded', `The settings allow one person ${limit} ${words}, or ask an administrator for more (quotas.${of}).`);
    },
  };
}
