/** Sessions as people see and end them. A session that ended is gone from the database, and its JWTs with it: each is asked for there. */
import { pageOf, pageStart, type Page, type PageRequest, type SqlClient } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asAuth } from '../db/as-user.ts';
import type { CurrentSignInPolicy } from './policy.ts';
import type { NamedSession, Person } from './principal.ts';

const PURGE_ROWS = 1000;

export interface SessionRecord {
  readonly id: string;
  readonly userId: string;
  readonly startedAtMs: number;
  /** To a minute. */
  readonly lastUsedAtMs: number;
  readonly endsAtMs: number;
  readonly ip: string | null;
  readonly userAgent: string | null;
  readonly secondFactorAtMs: number | null;
}

export interface Sessions {
  /** The live ones of a person, newest first. The caller MUST be allowed to know of them. */
  list(userId: string, request: PageRequest): Promise<Page<SessionRecord>>;
  /** Ends one of one's own; an administrator ends anybody's. `false` where there is none that the caller may know of. */
  end(id: string, by: Person): Promise<boolean>;
  /** Ends the session that a request has named, by its owner. `false` for one that has ended before. */
  signOut(session: NamedSession): Promise<boolean>;
  /** Ends all sessions of a person but `except`; how many there were. */
  endAll(userId: string, by: Person, options?: { readonly except?: string }): Promise<number>;
  /** Deletes what has ended by itself: sessions, tries by address, and what was to be verified. */
  purge(): Promise<number>;
}

interface Row {
  id: string;
  user_id: string;
  started_at_ms: unknown;
  last_used_at_ms: unknown;
  ends_at_ms: unknown;
  ip_address: string | null;
  user_agent: string | null;
  second_factor_at_ms: unknown;
}

const ms = (column: string): string => `floor(extract(epoch FROM ${column}) * 1000)::bigint`;

export interface SessionsOptions {
  readonly sql: SqlClient;
  readonly audit: AuditLog;
  readonly policy: CurrentSignInPolicy;
}

export function createSessions({ sql, audit, policy }: SessionsOptions): Sessions {
  return {
    async list(userId, request) {
      const start = pageStart(request);
      const { limit = 50 } = request;
      const { sessionLengthSeconds, sessionIdleSeconds } = policy();
      const { rows } = await asAuth(sql, (tx) =>
        tx.query<Row>(
          `SELECT s.id, s.user_id, ${ms('s.created_at')} AS started_at_ms, ${ms('s.updated_at')} AS last_used_at_ms,
              ${ms('least(s.expires_at, s.created_at + make_interval(secs => $5))')} AS ends_at_ms, s.ip_address, s.user_agent, p.second_factor_at_ms
            FROM keyguard_auth.sessions s LEFT JOIN keyguard_auth.session_proofs p ON p.session_id = s.id
            WHERE s.user_id = $1 AND s.expires_at > CURRENT_TIMESTAMP
              AND s.created_at > CURRENT_TIMESTAMP - make_interval(secs => $5) AND s.updated_at > CURRENT_TIMESTAMP - make_interval(secs => $6)
              AND ($2::bigint IS NULL OR (${ms('s.created_at')}, s.id) < ($2::bigint, $3::text))
            ORDER BY 3 DESC, s.id DESC LIMIT $4`,
          [userId, start?.[0] ?? null, start?.[1] ?? null, limit + 1, sessionLengthSeconds, sessionIdleSeconds],
        ),
      );
      return pageOf(rows, limit, (row) => [Number(row.started_at_ms), row.id], recordOf);
    },

    end(id, by) {
      return asAuth(sql, async (tx) => {
        const { rows } = await tx.query<{ user_id: string }>(
          'DELETE FROM keyguard_auth.sessions WHERE id = $1 AND (user_id = $2 OR $3::boolean) RETURNING user_id',
          [id, by.userId, by.isAdministrator],
        );
        if (rows[0] === undefined) return false;
        await audit.recordIn(tx, { action: 'session.end', outcome: 'success', actor: by.actor, resource: `session:${id}`, user_id: rows[0].user_id });
        return true;
      });
    },

    signOut({ sessionId, userId }) {
      return asAuth(sql, async (tx) => {
        const { rows } = await tx.query('DELETE FROM keyguard_auth.sessions WHERE id = $1 AND user_id = $2 RETURNING id', [sessionId, userId]);
        if (rows.length === 0) return false;
        await audit.recordIn(tx, { action: 'auth.sign_out', outcome: 'success', actor: `user:${userId}`, resource: `session:${sessionId}`, session_id: sessionId });
        return true;
      });
    },

    endAll(userId, by, { except } = {}) {
      return asAuth(sql, async (tx) => {
        const { rows } = await tx.query('DELETE FROM keyguard_auth.sessions WHERE user_id = $1 AND id IS DISTINCT FROM $2 RETURNING id', [userId, except ?? null]);
        await audit.recordIn(tx, { action: 'session.end_all', outcome: 'success', actor: by.actor, resource: `user:${userId}`, ended: rows.length });
        return rows.length;
      });
    },

    purge() {
      const { sessionLengthSeconds, sessionIdleSeconds } = policy();
      return asAuth(sql, async (tx) => {
        const gone = [
          await tx.query(
            `DELETE FROM keyguard_auth.sessions WHERE id IN (SELECT id FROM keyguard_auth.sessions WHERE expires_at <= CURRENT_TIMESTAMP
              OR created_at <= CURRENT_TIMESTAMP - make_interval(secs => $2) OR updated_at <= CURRENT_TIMESTAMP - make_interval(secs => $3)
              LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING id`,
            [PURGE_ROWS, sessionLengthSeconds, sessionIdleSeconds],
          ),
          await tx.query(
            `DELETE FROM keyguard_auth.verifications WHERE id IN (SELECT id FROM keyguard_auth.verifications WHERE expires_at <= CURRENT_TIMESTAMP
              LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING id`,
            [PURGE_ROWS],
          ),
          // Its longest window is a minute.
          await tx.query(
            `DELETE FROM keyguard_auth.rate_limits WHERE id IN (SELECT id FROM keyguard_auth.rate_limits
              WHERE last_request < extract(epoch FROM CURRENT_TIMESTAMP) * 1000 - 3600000 LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING id`,
            [PURGE_ROWS],
          ),
        ];
        return gone.reduce((sum, { rows }) => sum + rows.length, 0);
      });
    },
  };
}

function recordOf(row: Row): SessionRecord {
  return {
    id: row.id,
    userId: row.user_id,
    startedAtMs: Number(row.started_at_ms),
    lastUsedAtMs: Number(row.last_used_at_ms),
    endsAtMs: Number(row.ends_at_ms),
    ip: row.ip_address === '' ? null : row.ip_address,
    userAgent: row.user_agent === '' ? null : row.user_agent,
    secondFactorAtMs: row.second_factor_at_ms === null ? null : Number(row.second_factor_at_ms),
  };
}
