/**
 * A new password for who forgot the old one: an administrator makes a one-time token and hands it over. Whoever uses it ends all
 * sessions of the account; its second factor stays. Where there are two administrators it takes a token of each of two, so that nobody
 * becomes somebody else alone; and of two administrators none becomes the other one.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { postgresAdministrators, type RowField, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asAuth } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { areTwo } from '../roles/four-eyes.ts';
import { accountOf, type Attempts } from './attempts.ts';
import { linkInvalid, oneTimeLinks } from './one-time-links.ts';
import * as passwords from './passwords.ts';
import type { Person } from './principal.ts';
import { setPasswordIn } from './vouched-people.ts';

export interface PasswordResets {
  /** Whether `token` is still one with which, alone or beside another, a password is set. */
  isOpen(token: string): Promise<boolean>;
  /** The token is shown this once; one that the same administrator made before is worth nothing from now on. `null` where there is no such person. */
  create(userId: string, expiresInSeconds: number, by: Person): Promise<{ readonly token: string; readonly expiresAtMs: number } | null>;
  /**
   * Sets the password; one winner, whatever races. `secondToken` is one of another administrator's.
   * @throws HttpProblem `link_invalid`, and `four_eyes_required` where a second token is needed and is missing
   */
  accept(token: string, secondToken: string | null, password: string): Promise<void>;
}

interface Row {
  id: string;
  token_hash: string;
  user_id: string;
  created_by: string;
  created_at_ms: unknown;
  expires_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
  email: string;
}

export interface PasswordResetsOptions {
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly attempts: Attempts;
  readonly clock?: Clock;
}

export function createPasswordResets({ sql, keys, audit, attempts, clock = systemClock }: PasswordResetsOptions): PasswordResets {
  const links = oneTimeLinks({ table: 'password_resets', prefix: 'kgr_' }, { hash: keys.hashToken, rowMacKey: keys.rowMacKey });

  const administratorsIn = (tx: SqlTransaction): ReturnType<typeof postgresAdministrators> => postgresAdministrators(tx, { rowMacKey: keys.rowMacKey, clock });

  /** The row of each token, where they let this password be set; `null` where not. */
  async function allowedIn(tx: SqlTransaction, tokenHash: string, secondHash: string | null): Promise<readonly [Row, ...Row[]] | null> {
    const first = await openIn(tx, tokenHash);
    if (first === null) return null;
    if (!(await areTwo(tx))) return [first];
    if (secondHash === null) throw new HttpProblem('four_eyes_required', 'This takes a second token as well, of another administrator: send it as second_token. Where there is none who could make it, the operator helps on the host (keyguard administrators).');
    const second = await openIn(tx, secondHash);
    return second !== null && second.user_id === first.user_id && second.created_by !== first.created_by ? [first, second] : null;
  }

  async function openIn(tx: SqlTransaction, tokenHash: string): Promise<Row | null> {
    const { rows } = await tx.query<Row>(
      `SELECT r.id, r.token_hash, r.user_id, r.created_by, r.created_at_ms, r.expires_at_ms, r.mac_key_id, r.mac, u.email
        FROM keyguard_auth.password_resets r JOIN keyguard_auth.users u ON u.id = r.user_id
        WHERE r.token_hash = $1 AND r.used_at_ms IS NULL AND r.expires_at_ms > $2
          AND NOT EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = r.user_id)`,
      [tokenHash, clock.nowMs()],
    );
    const row = rows[0];
    if (row === undefined) return null;
    // Who has stopped being an administrator meanwhile lets nobody in.
    if (!(await administratorsIn(tx).has(row.created_by))) return null;
    const fields = [row.id, row.token_hash, row.user_id, row.created_by, Number(row.created_at_ms), Number(row.expires_at_ms)];
    await links.demandIntact(fields, { macKeyId: row.mac_key_id, mac: row.mac });
    return row;
  }

  return {
    async isOpen(token) {
      const tokenHash = links.hashOf(token);
      return tokenHash !== null && (await asAuth(sql, (tx) => openIn(tx, tokenHash))) !== null;
    },

    async create(userId, expiresInSeconds, by) {
      const { token, tokenHash } = links.newToken();
      const [id, nowMs] = [randomUUID(), clock.nowMs()];
      const expiresAtMs = nowMs + expiresInSeconds * 1000;
      const fields: readonly RowField[] = [id, tokenHash, userId, by.userId, nowMs, expiresAtMs];
      const { macKeyId, mac } = await links.seal(fields);
      return asAuth(sql, async (tx) => {
        const { rows } = await tx.query('SELECT 1 FROM keyguard_auth.users WHERE id = $1', [userId]);
        if (rows.length === 0) return null;
        await tx.query('DELETE FROM keyguard_auth.password_resets WHERE user_id = $1 AND created_by = $2', [userId, by.userId]);
        await tx.query(
          `INSERT INTO keyguard_auth.password_resets (id, token_hash, user_id, created_by, created_at_ms, expires_at_ms, mac_key_id, mac)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
          [id, tokenHash, userId, by.userId, nowMs, expiresAtMs, macKeyId, mac],
        );
        await audit.recordIn(tx, { action: 'password_reset.create', outcome: 'success', actor: by.actor, resource: `user:${userId}` });
        return { token, expiresAtMs };
      });
    },

    async accept(token, secondToken, password) {
      const tokenHash = links.hashOf(token);
      const secondHash = secondToken === null ? null : links.hashOf(secondToken);
      if (tokenHash === null || (secondToken !== null && secondHash === null)) throw linkInvalid();
      if ((await asAuth(sql, (tx) => allowedIn(tx, tokenHash, secondHash))) === null) throw linkInvalid();
      const passwordHash = await passwords.hash(password);
      const isDone = await asAuth(sql, async (tx) => {
        const allowed = await allowedIn(tx, tokenHash, secondHash);
        if (allowed === null) return false;
        const [{ user_id: userId, email }] = allowed;
        const { rows } = await tx.query(
          'UPDATE keyguard_auth.password_resets SET used_at_ms = $2 WHERE id = ANY($1) AND used_at_ms IS NULL AND expires_at_ms > $2 RETURNING id',
          [allowed.map(({ id }) => id), clock.nowMs()],
        );
        // Nothing of this is kept where somebody else was faster with one of them.
        if (rows.length < allowed.length) throw linkInvalid();
        await setPasswordIn(tx, keys, userId, passwordHash);
        await tx.query('DELETE FROM keyguard_auth.sessions WHERE user_id = $1', [userId]);
        // What was counted of the old password says nothing of the new one.
        await attempts.unlock(accountOf(email), tx);
        await audit.recordIn(tx, {
          action: 'password_reset.accept', outcome: 'success', actor: `user:${userId}`, resource: `user:${userId}`,
          made_by: allowed.map(({ created_by: by }) => by).join(' '),
        });
        return true;
      });
      if (!isDone) throw linkInvalid();
    },
  };
}
