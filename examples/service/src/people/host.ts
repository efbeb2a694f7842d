/**
 * What the operator does on the host while no service runs, with the root key and the database: says who administers. The way out where
 * two had to agree and one is gone. Each change is in the audit log, by `operator`.
 */
import { systemClock } from '@keyguard/core/system';
import { postgresAdministrators, postgresKeyRecords, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { keptCheckpoints } from '../audit/kept.ts';
import { auditLog } from '../audit/log.ts';
import { assertNotRolledBack } from '../audit/rollback.ts';
import type { Config } from '../config.ts';
import { asAuth } from '../db/as-user.ts';
import { openDeploymentKeys } from '../keys/hierarchy.ts';
import { lockAdministrators } from '../roles/four-eyes.ts';
import { secondVoice } from './second-voice.ts';

const OPERATOR = 'operator';

export interface AdministratorRecord {
  readonly id: string;
  readonly email: string;
  readonly isDisabled: boolean;
  /** `false` where the row was written behind the service's back: it makes nobody an administrator. */
  readonly intact: boolean;
}

/** Nothing was changed. The message says why. */
export class HostError extends Error {
  override readonly name = 'HostError';
}

export interface HostAdministration {
  administrators(): Promise<readonly AdministratorRecord[]>;
  /** @throws HostError for an address that is nobody's or a disabled person's */
  make(email: string): Promise<void>;
  /** Ends that person's sessions too. @throws HostError for who does not administer, and for the last one who can */
  unmake(email: string): Promise<void>;
}

/**
 * The caller MUST have the database to itself.
 * @throws UnavailableError for a root key that is not this database's, and for an audit log that is not the one that was signed for
 */
export async function hostAdministration(sql: SqlClient, config: Config): Promise<HostAdministration> {
  const keys = await openDeploymentKeys(postgresKeyRecords(sql), config.rootKey);
  const kept = keptCheckpoints(config.checkpointDir);
  const { origin } = await assertNotRolledBack({ sql, keys, kept, acknowledged: config.acknowledgedRestore });
  const audit = auditLog(sql, keys, { origin });
  const { rowMacKey } = keys;
  const administratorsIn = (tx: SqlTransaction): ReturnType<typeof postgresAdministrators> => postgresAdministrators(tx, { rowMacKey, clock: systemClock });
  const voice = secondVoice({ rowMacKey, clock: systemClock });

  async function listIn(tx: SqlTransaction): Promise<readonly AdministratorRecord[]> {
    const { rows } = await tx.query<{ id: string; email: string | null; is_disabled: boolean }>(
      `SELECT a.user_id AS id, u.email, d.user_id IS NOT NULL AS is_disabled FROM keyguard.administrators a
        LEFT JOIN keyguard_auth.users u ON u.id = a.user_id LEFT JOIN keyguard.disabled_people d ON d.user_id = a.user_id ORDER BY u.email`,
    );
    const found: AdministratorRecord[] = [];
    for (const { id, email, is_disabled: isDisabled } of rows) {
      const intact = await administratorsIn(tx).has(id).catch(() => false);
      found.push({ id, email: email ?? id, isDisabled, intact });
    }
    return found;
  }

  async function idOf(tx: SqlTransaction, email: string): Promise<string> {
    const { rows } = await tx.query<{ id: string; is_disabled: boolean }>(
      'SELECT u.id, EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = u.id) AS is_disabled FROM keyguard_auth.users u WHERE u.email = $1',
      [email.toLowerCase()],
    );
    if (rows[0] === undefined) throw new HostError(`There is nobody with the address ${email}.`);
    if (rows[0].is_disabled) throw new HostError(`${email} is disabled: an administrator enables that person first.`);
    return rows[0].id;
  }

  return {
    administrators: () => asAuth(sql, listIn),

    make: (email) =>
      asAuth(sql, async (tx) => {
        await lockAdministrators(tx);
        const id = await idOf(tx, email);
        const before = (await listIn(tx)).find((one) => one.id === id);
        if (before?.intact === true) throw new HostError(`${email} administers already.`);
        if (before !== undefined) await administratorsIn(tx).revoke(id);
        await administratorsIn(tx).grant(id, { grantedBy: OPERATOR });
        await voice.settleIn(tx, id);
        await audit.recordIn(tx, { action: 'user.make_administrator', outcome: 'success', actor: OPERATOR, resource: `user:${id}` });
      }),

    unmake: (email) =>
      asAuth(sql, async (tx) => {
        await lockAdministrators(tx);
        const all = await listIn(tx);
        const one = all.find((record) => record.email === email.toLowerCase() || record.id === email);
        if (one === undefined) throw new HostError(`${email} does not administer.`);
        if (!all.some(({ id, intact, isDisabled }) => id !== one.id && intact && !isDisabled)) {
          throw new HostError('Somebody must administer: make another person an administrator first.');
        }
        await administratorsIn(tx).revoke(one.id);
        await voice.settleIn(tx, one.id);
        const { rows } = await tx.query('DELETE FROM keyguard_auth.sessions WHERE user_id = $1 RETURNING id', [one.id]);
        await audit.recordIn(tx, { action: 'user.unmake_administrator', outcome: 'success', actor: OPERATOR, resource: `user:${one.id}`, sessions_ended: rows.length });
      }),
  };
}
