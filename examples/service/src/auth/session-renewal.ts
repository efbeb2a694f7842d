/**
 * A session that takes another's place when what proves its owner changes: new id and new token, so that neither the cookie, nor the
 * bearer, nor a JWT of before opens anything. Never makes a session of nothing, and never lets one live longer than it would have.
 *
 * @see docs/decisions/0035-what-nobody-does-alone.md; OWASP ASVS 5.0, 7.2.4 and 7.4.3; NIST SP 800-63B-4, 5.1
 */
import { randomUUID } from 'node:crypto';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import { HttpProblem } from '../http/problems.ts';
import type { KeyedHash } from '../keys/hierarchy.ts';
import type { Person } from './principal.ts';
import { newSessionToken } from './session-token.ts';

export interface Renewed {
  readonly sessionId: string;
  /** How many other sessions of this person have ended with it. */
  readonly ended: number;
}

/**
 * Puts a new session in the place of `person`'s, as kg_auth in the caller's transaction, and ends all others of that person.
 * @throws HttpProblem `not_authenticated` where the session has ended meanwhile
 */
export async function renewSessionIn(tx: SqlTransaction, { sessionId, userId }: Pick<Person, 'sessionId' | 'userId'>, hash: KeyedHash): Promise<Renewed> {
  const id = randomUUID();
  const { rows: made } = await tx.query(
    `INSERT INTO keyguard_auth.sessions (id, user_id, token, expires_at, ip_address, user_agent, created_at, updated_at)
      SELECT $3, user_id, $4, expires_at, ip_address, user_agent, created_at, CURRENT_TIMESTAMP FROM keyguard_auth.sessions WHERE id = $1 AND user_id = $2
      RETURNING id`,
    [sessionId, userId, id, newSessionToken({ sessionId: id, userId }, hash)],
  );
  if (made.length === 0) throw new HttpProblem('not_authenticated', 'This session has ended: sign in again.');
  const { rows: gone } = await tx.query('DELETE FROM keyguard_auth.sessions WHERE user_id = $1 AND id <> $2 RETURNING id', [userId, id]);
  return { sessionId: id, ended: gone.length - 1 };
}
