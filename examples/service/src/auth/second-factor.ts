/**
 * Second factors: an authenticator (TOTP), and ten backup codes for the day on which it is lost. The secret is sealed for its owner
 * before it is stored, backup codes are kept as keyed hashes, and each code of either kind lets somebody in once: the claim, the
 * proof of the session and the audit entry are one transaction.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { UnavailableError } from '@keyguard/core/errors';
import type { Bytes, Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { open, seal, type VaultPlace } from '@keyguard/core/vault';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import type { AuditLog } from '../audit/log.ts';
import { asAuth } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import type { SealedTable } from '../keys/sealed-tables.ts';
import type { Counter } from './attempts.ts';
import { hashOfBackupCode, newBackupCodes } from './backup-codes.ts';
import { userAccount } from './credentials.ts';
import type { Person } from './principal.ts';
import { renewSessionIn } from './session-renewal.ts';
import { newSessionToken } from './session-token.ts';
import type { Standings } from './standing.ts';
import { acceptedStep, otpauthUri, SECRET_BYTES, toBase32 } from './totp.ts';
import type { TryLimit } from './try-limit.ts';
import { changePersonIn } from './vouched-people.ts';

const TABLE = 'second_factors';
const ISSUER = 'KeyGuard';
// Whoever has given the password has so long to give the code.
const SIGN_IN_MS = 10 * 60_000;

/** What is kept of a person's second factor, as it may be shown. */
export interface SecondFactorState {
  readonly isSetUp: boolean;
  /** Whether one was begun, and no code of it has come yet. */
  readonly isPending: boolean;
  readonly activatedAtMs: number | null;
  readonly backupCodesLeft: number;
}

export interface SecondFactors {
  stateOf(userId: string): Promise<SecondFactorState>;
  /** A new secret in the place of one that was never activated. Shown once. @throws HttpProblem `second_factor_exists` */
  begin(person: Person): Promise<{ readonly secret: string; readonly uri: string }>;
  /**
   * Makes the secret count, by its first code. All sessions of the person end, and a new one, which has proven the factor, takes the
   * place of this one. The backup codes are shown once.
   */
  activate(person: Person, code: string): Promise<{ readonly backupCodes: readonly string[]; readonly sessionId: string }>;
  /**
   * Accepts a code (untrusted) once, and writes down that this session has proven the factor. A session that had not gets a new
   * token, which is answered: the old one opens nothing any more.
   * @throws HttpProblem `second_factor_invalid`, `second_factor_missing`, `rate_limited`, `not_authenticated`
   */
  prove(person: Person, code: string): Promise<{ readonly provenAtMs: number; readonly newToken: string | null }>;
  /** New backup codes in the place of all old ones, for a code. */
  renewBackupCodes(person: Person, code: string): Promise<readonly string[]>;
  /** Removes the factor, for a code. All sessions of the person end, and a new one takes the place of this one. */
  disable(person: Person, code: string): Promise<{ readonly sessionId: string }>;
  /** Removes the factor of somebody who lost it, and ends that person's sessions. `false` where there was none. */
  remove(userId: string, by: Person): Promise<boolean>;
}

export interface SecondFactorsOptions {
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly limit: TryLimit;
  readonly standings: Standings;
  readonly clock?: Clock;
}

interface FactorRow {
  id: string;
  ciphertext: Uint8Array;
  wrapped_dek: Uint8Array;
  kek_id: string;
  activated_at_ms: unknown;
}

interface Factor {
  readonly id: string;
  readonly isActive: boolean;
  /** Secret. */
  readonly secret: Bytes;
}

/** Claims a code in the transaction that it is for; `false` where somebody else was first. */
type CodeClaim = (tx: SqlTransaction) => Promise<boolean>;

function invalid(): HttpProblem {
  return new HttpProblem('second_factor_invalid', 'This code is not accepted: it is wrong, too old, or was used before. Wait for the next one.');
}

function factorPlace(deploymentId: string, id: string, userId: string): VaultPlace {
  return {
    deploymentId, table: TABLE, row: id, column: 'secret', version: 1, purpose: `totp-secret\n${userId}`,
  };
}

/** For the rotation of the key that wraps theirs. */
export function sealedSecondFactors(deploymentId: string): SealedTable {
  return {
    name: 'keyguard_auth.second_factors',
    key: [['id', 'text']],
    columns: ['t.user_id'],
    place: ({ id, user_id: userId }) => factorPlace(deploymentId, id as string, userId as string),
  };
}

export function createSecondFactors({ sql, keys, audit, limit, standings, clock = systemClock }: SecondFactorsOptions): SecondFactors {
  const primitives = nodeVaultPrimitives();
  const placeOf = (id: string, userId: string): VaultPlace => factorPlace(keys.deploymentId, id, userId);

  async function read(userId: string): Promise<Factor | null> {
    const { rows } = await asAuth(sql, (tx) =>
      tx.query<FactorRow>('SELECT id, ciphertext, wrapped_dek, kek_id, activated_at_ms FROM keyguard_auth.second_factors WHERE user_id = $1', [userId]),
    );
    const row = rows[0];
    if (row === undefined) return null;
    const sealed = { ciphertext: Uint8Array.from(row.ciphertext), wrappedDek: Uint8Array.from(row.wrapped_dek), kekId: row.kek_id };
    try {
      const secret = await open(sealed, placeOf(row.id, userId), { keyProvider: keys.kek, primitives });
      return { id: row.id, isActive: row.activated_at_ms !== null, secret };
    } catch (cause) {
      throw new UnavailableError('second_factors', 'A stored second factor does not open: it was changed behind our back.', { cause });
    }
  }

  /** Who has not proven anything yet shares one counter per account; a session that has proven it cannot be locked out by others. */
  function counterOf({ userId, sessionId, secondFactor }: Person): Counter {
    return { account: userAccount(userId), of: secondFactor.provenAtMs === null ? 'second_factor' : `second_factor\0${sessionId}` };
  }

  /** Judges a code that was counted before. */
  function judge({ id, secret }: Factor, code: string): CodeClaim {
    const nowMs = clock.nowMs();
    const step = acceptedStep(secret, code, nowMs);
    if (step !== null) {
      return async (tx) => {
        const { rows } = await tx.query(
          'UPDATE keyguard_auth.second_factors SET last_step = $2 WHERE id = $1 AND activated_at_ms IS NOT NULL AND last_step < $2 RETURNING id',
          [id, step],
        );
        return rows.length === 1;
      };
    }
    const hash = hashOfBackupCode(code, id, keys.hashToken);
    if (hash === null) throw invalid();
    return async (tx) => {
      const { rows } = await tx.query(
        'UPDATE keyguard_auth.backup_codes SET used_at_ms = $3 WHERE factor_id = $1 AND code_hash = $2 AND used_at_ms IS NULL RETURNING factor_id',
        [id, hash, nowMs],
      );
      return rows.length === 1;
    };
  }

  /** `work`, in the transaction that uses `code` up. */
  async function withCode<T>(person: Person, code: string, work: (tx: SqlTransaction, factor: Factor) => Promise<T>): Promise<T> {
    const counter = counterOf(person);
    await limit.claim(counter);
    const factor = await read(person.userId);
    if (factor === null || !factor.isActive) throw new HttpProblem('second_factor_missing', 'There is no second factor: set one up first.');
    const claim = judge(factor, code);
    return asAuth(sql, async (tx) => {
      if (!(await claim(tx))) throw invalid();
      await limit.succeeded(counter, tx);
      return work(tx, factor);
    });
  }

  async function replaceBackupCodes(tx: SqlTransaction, factorId: string): Promise<readonly string[]> {
    const codes = newBackupCodes();
    await tx.query('DELETE FROM keyguard_auth.backup_codes WHERE factor_id = $1', [factorId]);
    for (const code of codes) {
      await tx.query('INSERT INTO keyguard_auth.backup_codes (factor_id, code_hash) VALUES ($1, $2)', [factorId, hashOfBackupCode(code, factorId, keys.hashToken)]);
    }
    return codes;
  }

  async function removeIn(tx: SqlTransaction, userId: string): Promise<boolean> {
    // In this order everywhere: whoever uses a code of it holds it before its owner.
    const { rows } = await tx.query('SELECT 1 FROM keyguard_auth.second_factors WHERE user_id = $1 FOR UPDATE', [userId]);
    if (rows.length === 0) return false;
    await changePersonIn(tx, keys, userId, async (before) => {
      await tx.query('DELETE FROM keyguard_auth.second_factors WHERE user_id = $1', [userId]);
      return { ...before, factorId: null };
    });
    // A later factor must be proven anew.
    await tx.query('DELETE FROM keyguard_auth.session_proofs WHERE user_id = $1', [userId]);
    return true;
  }

  return {
    async stateOf(userId) {
      const { rows } = await asAuth(sql, (tx) =>
        tx.query<{ activated_at_ms: unknown; left: unknown }>(
          `SELECT f.activated_at_ms, (SELECT count(*) FROM keyguard_auth.backup_codes b WHERE b.factor_id = f.id AND b.used_at_ms IS NULL) AS left
            FROM keyguard_auth.second_factors f WHERE f.user_id = $1`,
          [userId],
        ),
      );
      const row = rows[0];
      const activatedAtMs = row === undefined || row.activated_at_ms === null ? null : Number(row.activated_at_ms);
      return {
        isSetUp: activatedAtMs !== null,
        isPending: row !== undefined && activatedAtMs === null,
        activatedAtMs,
        backupCodesLeft: Number(row?.left ?? 0),
      };
    },

    async begin({ userId, actor }) {
      const [id, secret] = [randomUUID(), Uint8Array.from(randomBytes(SECRET_BYTES))];
      const sealed = await seal(secret, placeOf(id, userId), { keyProvider: keys.kek, primitives });
      const account = await asAuth(sql, async (tx) => {
        const { rows } = await tx.query(
          `INSERT INTO keyguard_auth.second_factors AS f (id, user_id, ciphertext, wrapped_dek, kek_id, created_at_ms) VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (user_id) DO UPDATE SET id = excluded.id, ciphertext = excluded.ciphertext, wrapped_dek = excluded.wrapped_dek,
              kek_id = excluded.kek_id, created_at_ms = excluded.created_at_ms
              WHERE f.activated_at_ms IS NULL
            RETURNING f.id`,
          [id, userId, sealed.ciphertext, sealed.wrappedDek, sealed.kekId, clock.nowMs()],
        );
        if (rows.length === 0) throw new HttpProblem('second_factor_exists', 'There is a second factor already: disable it first.');
        const users = await tx.query<{ email: string }>('SELECT email FROM keyguard_auth.users WHERE id = $1', [userId]);
        await audit.recordIn(tx, { action: 'second_factor.begin', outcome: 'success', actor, resource: `user:${userId}` });
        return users.rows[0]!.email;
      });
      return { secret: toBase32(secret), uri: otpauthUri(secret, { issuer: ISSUER, account }) };
    },

    async activate(person, code) {
      const { userId, actor } = person;
      const counter = counterOf(person);
      await limit.claim(counter);
      const factor = await read(userId);
      if (factor === null) throw new HttpProblem('second_factor_missing', 'There is no second factor to activate: begin with one first.');
      if (factor.isActive) throw new HttpProblem('second_factor_exists', 'There is a second factor already.');
      const step = acceptedStep(factor.secret, code, clock.nowMs());
      if (step === null) throw invalid();
      return asAuth(sql, async (tx) => {
        await changePersonIn(tx, keys, userId, async (before) => {
          const { rows } = await tx.query(
            `UPDATE keyguard_auth.second_factors SET activated_at_ms = $2, last_step = $3 WHERE id = $1 AND activated_at_ms IS NULL RETURNING id`,
            [factor.id, clock.nowMs(), step],
          );
          if (rows.length === 0) throw invalid();
          return { ...before, factorId: factor.id };
        });
        await limit.succeeded(counter, tx);
        const backupCodes = await replaceBackupCodes(tx, factor.id);
        // Whoever has only the password, or a token of before, must not go on as if nothing had happened.
        const { sessionId, ended } = await renewSessionIn(tx, person, keys.hashToken);
        await standings.proveIn(tx, sessionId, userId);
        await audit.recordIn(tx, {
          action: 'second_factor.activate', outcome: 'success', actor, resource: `user:${userId}`, new_session_id: sessionId, sessions_ended: ended,
        });
        return { backupCodes, sessionId };
      });
    },

    async prove(person, code) {
      const { userId, sessionId, actor, secondFactor } = person;
      const isSignIn = secondFactor.provenAtMs === null;
      const newToken = isSignIn ? newSessionToken(person, keys.hashToken) : null;
      const provenAtMs = await withCode(person, code, async (tx) => {
        if (newToken !== null) {
          const { rows } = await tx.query(
            `UPDATE keyguard_auth.sessions SET token = $3, updated_at = CURRENT_TIMESTAMP
              WHERE id = $1 AND user_id = $2 AND created_at > to_timestamp($4::double precision / 1000) RETURNING id`,
            [sessionId, userId, newToken, clock.nowMs() - SIGN_IN_MS],
          );
          if (rows.length === 0) throw new HttpProblem('not_authenticated', 'This sign-in took too long: begin again with the password.');
        }
        const at = await standings.proveIn(tx, sessionId, userId);
        await audit.recordIn(tx, { action: 'second_factor.prove', outcome: 'success', actor, resource: `session:${sessionId}`, completes_sign_in: isSignIn });
        return at;
      });
      return { provenAtMs, newToken };
    },

    renewBackupCodes(person, code) {
      return withCode(person, code, async (tx, factor) => {
        const codes = await replaceBackupCodes(tx, factor.id);
        await audit.recordIn(tx, { action: 'second_factor.renew_backup_codes', outcome: 'success', actor: person.actor, resource: `user:${person.userId}` });
        return codes;
      });
    },

    disable(person, code) {
      return withCode(person, code, async (tx) => {
        await removeIn(tx, person.userId);
        const { sessionId, ended } = await renewSessionIn(tx, person, keys.hashToken);
        await audit.recordIn(tx, {
          action: 'second_factor.disable', outcome: 'success', actor: person.actor, resource: `user:${person.userId}`, new_session_id: sessionId, sessions_ended: ended,
        });
        return { sessionId };
      });
    },

    remove(userId, by) {
      return asAuth(sql, async (tx) => {
        if (!(await removeIn(tx, userId))) return false;
        await tx.query('DELETE FROM keyguard_auth.sessions WHERE user_id = $1', [userId]);
        await audit.recordIn(tx, { action: 'second_factor.remove', outcome: 'success', actor: by.actor, resource: `user:${userId}` });
        return true;
      });
    },
  };
}
