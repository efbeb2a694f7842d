/**
 * How the first administrator comes to be: by a one-time code that the operator reads off the terminal, or from the environment.
 * Either happens at most once in the life of a deployment, whatever races.
 */
import { randomUUID } from 'node:crypto';
import { generateEnrollmentCode, hashEnrollmentCode } from '@keyguard/server-verifier/enrollment-code';
import type { Clock } from '@keyguard/core/seams';
import { systemClock, webCryptoRandom } from '@keyguard/core/system';
import { postgresAdministrators, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asAuth } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { WITNESS } from './adopted-people.ts';
import * as passwords from './passwords.ts';
import { addPersonIn, setPasswordIn } from './vouched-people.ts';

export interface NewAdministrator {
  /** Lower-case. */
  readonly email: string;
  readonly password: string;
  readonly name?: string | undefined;
}

export interface Setup {
  /** Whether there is an administrator. */
  isDone(): Promise<boolean>;
  /** A new one-time code, to be shown on the terminal and nowhere else; the one before it is worth nothing from now on. */
  issueCode(): Promise<string>;
  /** Makes the administrator whom the holder of `code` (untrusted) names. @throws HttpProblem */
  redeem(code: string, administrator: NewAdministrator): Promise<{ readonly userId: string }>;
  /** Makes the administrator from the operator's configuration. `false` where there is one already. */
  createFromEnvironment(administrator: NewAdministrator): Promise<boolean>;
}

export interface SetupOptions {
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly clock?: Clock;
}

export function createSetup({ sql, keys, audit, clock = systemClock }: SetupOptions): Setup {
  const hashOf = (code: string): string | null => {
    const hash = hashEnrollmentCode(code);
    return hash === null ? null : keys.hashToken(`setup-code\0${hash}`);
  };

  async function isDoneIn(tx: SqlTransaction): Promise<boolean> {
    const { rows } = await tx.query('SELECT 1 FROM keyguard.administrators LIMIT 1');
    return rows.length > 0;
  }

  /** One at a time in the whole deployment, so that nobody becomes an administrator beside another. */
  async function lock(tx: SqlTransaction): Promise<void> {
    await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.setup', 0))`);
  }

  async function create(tx: SqlTransaction, { email, name }: NewAdministrator, passwordHash: string, by: string): Promise<string> {
    const userId = randomUUID();
    await addPersonIn(tx, keys, { id: userId, name: name ?? email.split('@', 1)[0]!, email });
    await setPasswordIn(tx, keys, userId, passwordHash);
    await postgresAdministrators(tx, { rowMacKey: keys.rowMacKey, clock }).grant(userId, { grantedBy: by });
    await tx.query('DELETE FROM keyguard_auth.setup_codes');
    await audit.recordIn(tx, {
      action: 'setup.administrator_created',
      outcome: 'success',
      actor: by,
      resource: `user:${userId}`,
      ...WITNESS,
    });
    return userId;
  }

  return {
    isDone: () => asAuth(sql, isDoneIn),

    async issueCode() {
      const code = generateEnrollmentCode(webCryptoRandom());
      await asAuth(sql, async (tx) => {
        await lock(tx);
        await tx.query('DELETE FROM keyguard_auth.setup_codes');
        await tx.query('INSERT INTO keyguard_auth.setup_codes (code_hash, created_at_ms) VALUES ($1, $2)', [hashOf(code), clock.nowMs()]);
      });
      return code;
    },

    async redeem(code, administrator) {
      const codeHash = hashOf(code);
      const isValidIn = async (tx: SqlTransaction): Promise<boolean> => {
        if (await isDoneIn(tx)) throw new HttpProblem('setup_complete', 'There is an administrator already: sign in.');
        const { rows } = await tx.query('SELECT 1 FROM keyguard_auth.setup_codes WHERE code_hash = $1', [codeHash ?? '']);
        return rows.length === 1;
      };
      const refuse = (): never => {
        throw new HttpProblem('setup_code_invalid', 'This is not the setup code that the service printed at its last start.');
      };
      // Looked at before the password is hashed, so that guessing costs us nothing; and again when it counts.
      if (!(await asAuth(sql, isValidIn))) return refuse();
      const passwordHash = await passwords.hash(administrator.password);
      const userId = await asAuth(sql, async (tx) => {
        await lock(tx);
        return (await isValidIn(tx)) ? create(tx, administrator, passwordHash, 'setup-code') : null;
      });
      return userId === null ? refuse() : { userId };
    },

    async createFromEnvironment(administrator) {
      if (await asAuth(sql, isDoneIn)) return false;
      const passwordHash = await passwords.hash(administrator.password);
      return asAuth(sql, async (tx) => {
        await lock(tx);
        if (await isDoneIn(tx)) return false;
        await create(tx, administrator, passwordHash, 'operator');
        return true;
      });
    },
  };
}
