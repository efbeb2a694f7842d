/** The passwords of people, as they are kept: checked for somebody who is signed in already, and set for somebody who holds a link. */
import type { SqlClient } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asAuth } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { TryLimit } from './try-limit.ts';
import * as passwords from './passwords.ts';
import type { Person } from './principal.ts';
import { heldPersonIn, passwordHashOf, personIn, personOfAddressIn, setPasswordIn, type Vouching } from './vouched-people.ts';

export interface Credentials {
  /**
   * Demands the password again from who is signed in; of somebody who has none, nothing. Counted by session: guessing here locks
   * nobody else out. Its hash, or `null` for none.
   * @throws HttpProblem `invalid_password`, `rate_limited`; UnavailableError for whom somebody changed in the database, here as below
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
  readonly vouching: Vouching;
  readonly audit: AuditLog;
  readonly limit: TryLimit;
}

export function createCredentials({ sql, vouching, audit, limit }: CredentialsOptions): Credentials {
  return {
    async demand({ userId, sessionId }, password) {
      const owner = await asAuth(sql, (tx) => personIn(tx, vouching, userId));
      if (owner === null) throw new HttpProblem('not_authenticated', 'This session has ended: sign in again.');
      const hash = passwordHashOf(owner);
      if (hash === null) return null;
      const counter = { account: userAccount(userId), of: `password\0${sessionId}` };
      await limit.claim(counter);
      if (password === undefined || !(await passwords.verify({ hash, password }))) throw notYours();
      await limit.succeeded(counter);
      return hash;
    },

    async replace({ userId, sessionId, actor }, hash, password) {
      const next = await passwords.hash(password);
      await asAuth(sql, async (tx) => {
        const owner = await heldPersonIn(tx, vouching, userId, 'NO KEY UPDATE');
        if (owner === null || passwordHashOf(owner) !== hash) throw notYours();
        await setPasswordIn(tx, vouching, userId, next);
        const { rows: ended } = await tx.query<{ id: string }>('DELETE FROM keyguard_auth.sessions WHERE user_id = $1 RETURNING id', [userId]);
        if (!ended.some(({ id }) => id === sessionId)) throw new HttpProblem('not_authenticated', 'This session has ended: sign in again.');
        await audit.recordIn(tx, { action: 'auth.change_password', outcome: 'success', actor });
      });
      return next;
    },

    async hashOf(email) {
      const owner = await asAuth(sql, (tx) => personOfAddressIn(tx, vouching, email.toLowerCase()));
      return owner === null ? null : passwordHashOf(owner);
    },

    endUnless(hash, sessionToken) {
      return asAuth(sql, async (tx) => {
        const { rows } = await tx.query<{ user_id: string }>('SELECT user_id FROM keyguard_auth.sessions WHERE token = $1', [sessionToken]);
        // Waits for whoever sets another one at this moment.
        const owner = rows[0] === undefined ? null : await heldPersonIn(tx, vouching, rows[0].user_id);
        if (hash !== null && owner !== null && passwordHashOf(owner) === hash) return false;
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
