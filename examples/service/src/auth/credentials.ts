/** The passwords of people, as they are kept: checked for somebody who is signed in already, and set for somebody who holds a link. */
import { randomUUID } from 'node:crypto';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asAuth } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { TryLimit } from './try-limit.ts';
import * as passwords from './passwords.ts';
import type { Person } from './principal.ts';

export interface Credentials {
  /**
   * Demands the password again from who is signed in; of somebody who has none, nothing. Counted by session: guessing here locks
   * nobody else out. Its hash, or `null` for none.
   * @throws HttpProblem `invalid_password`, `rate_limited`
   */
  demand(person: Person, password: string | undefined): Promise<string | null>;
  /**
   * Puts `password` in the place of the one with `hash`, and ends all sessions of the person; one winner, whatever races, so that nobody who
   * knew an old password sets another one after it was replaced. The new hash.
   * @throws HttpProblem `invalid_password` where it is another one by now, `not_authenticated` where the session has ended meanwhile
   */
  replace(person: Person, hash: string, password: string): Promise<string>;
  /** The hash of the password of whoever has this address, for {@link Credentials.endUnless}; `null` where there is none. */
  hashOf(email: string): Promise<string | null>;
  /**
   * Ends the session of this stored token where the password that it began with, `hash`, is not the one any more: whoever sets another
   * one ends the sessions that there are, and this one may have come just after. `true` where it has ended.
   */
  endUnless(hash: string | null, sessionToken: string): Promise<boolean>;
}

const notYours = (): HttpProblem => new HttpProblem('invalid_password', 'This is not your password.');

export interface CredentialsOptions {
  readonly sql: SqlClient;
  readonly audit: AuditLog;
  readonly limit: TryLimit;
}

export function createCredentials({ sql, audit, limit }: CredentialsOptions): Credentials {
  return {
    async demand({ userId, sessionId }, password) {
      const { rows } = await asAuth(sql, (tx) =>
        tx.query<{ password: string }>(
          `SELECT password FROM keyguard_auth.accounts WHERE user_id = $1 AND provider_id = 'credential' AND password IS NOT NULL`,
          [userId],
        ),
      );
      const hash = rows[0]?.password;
      if (hash === undefined) return null;
      const counter = { account: userAccount(userId), of: `password\0${sessionId}` };
      await limit.claim(counter);
      if (password === undefined || !(await passwords.verify({ hash, password }))) throw notYours();
      await limit.succeeded(counter);
      return hash;
    },

    async replace({ userId, sessionId, actor }, hash, password) {
      const next = await passwords.hash(password);
      await asAuth(sql, async (tx) => {
        const { rows } = await tx.query<{ password: string | null }>(
          `SELECT password FROM keyguard_auth.accounts WHERE user_id = $1 AND provider_id = 'credential' FOR UPDATE`,
          [userId],
        );
        if (rows[0]?.password !== hash) throw notYours();
        await setPasswordIn(tx, userId, next);
        const { rows: ended } = await tx.query<{ id: string }>('DELETE FROM keyguard_auth.sessions WHERE user_id = $1 RETURNING id', [userId]);
        if (!ended.some(({ id }) => id === sessionId)) throw new HttpProblem('not_authenticated', 'This session has ended: sign in again.');
        await audit.recordIn(tx, { action: 'auth.change_password', outcome: 'success', actor });
      });
      return next;
    },

    async hashOf(email) {
      const { rows } = await asAuth(sql, (tx) =>
        tx.query<{ password: string | null }>(
          `SELECT a.password FROM keyguard_auth.accounts a JOIN keyguard_auth.users u ON u.id = a.user_id WHERE u.email = $1 AND a.provider_id = 'credential'`,
          [email.toLowerCase()],
        ),
      );
      return rows[0]?.password ?? null;
    },

    endUnless(hash, sessionToken) {
      return asAuth(sql, async (tx) => {
        // Waits for whoever sets another one at this moment.
        const { rows } = await tx.query<{ password: string | null }>(
          `SELECT a.password FROM keyguard_auth.accounts a JOIN keyguard_auth.sessions s ON s.user_id = a.user_id
            WHERE s.token = $1 AND a.provider_id = 'credential' FOR SHARE OF a`,
          [sessionToken],
        );
        if (hash !== null && rows[0]?.password === hash) return false;
        await tx.query('DELETE FROM keyguard_auth.sessions WHERE token = $1', [sessionToken]);
        return true;
      });
    },
  };
}

/** What is counted for a person, by whatever address. */
export function userAccount(userId: string): string {
  return `user\0${userId}`;
}

/** Writes the hash of a password in the caller's transaction, in the place of the one before. */
export async function setPasswordIn(tx: SqlTransaction, userId: string, hash: string): Promise<void> {
  await tx.query(
    `INSERT INTO keyguard_auth.accounts (id, user_id, account_id, provider_id, password) VALUES ($1, $2, $2, 'credential', $3)
      ON CONFLICT (provider_id, account_id) DO UPDATE SET password = excluded.password, updated_at = CURRENT_TIMESTAMP`,
    [randomUUID(), userId, hash],
  );
}
