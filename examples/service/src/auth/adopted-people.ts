/**
 * People of before what they sign in by bore a MAC: they get it once, at the first start after the upgrade. The audit log is the witness
 * that this was done, or never needed: whoever loses a MAC afterwards gets none again by a restart.
 */
import type { SqlClient } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asAuth, asJobs } from '../db/as-user.ts';
import { vouchForAllIn, type Vouching } from './vouched-people.ts';

/** What the entry says that is the witness: of the adoption, or of the making of the first administrator, before whom there is nobody. */
export const WITNESS = { people_bear_macs: true } as const;
// As the index says it. In a text that somebody chose, the quotes would not be these bytes.
const WITNESSED = `position('"people_bear_macs":true'::bytea IN entry) > 0`;

/** Who was adopted; 0 where nobody had to be. Before anybody signs in. */
export function adoptPeople({ sql, vouching, audit }: { readonly sql: SqlClient; readonly vouching: Vouching; readonly audit: AuditLog }): Promise<number> {
  return asAuth(sql, async (tx) => {
    // Another replica that starts waits.
    await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.adopt_people', 0))`);
    const { rows: people } = await tx.query('SELECT 1 FROM keyguard_auth.users LIMIT 1');
    if (people.length === 0) return 0;
    const { rows: witnesses } = await asJobs(tx, (as) => as.query(`SELECT 1 FROM keyguard.secret_audit_logs WHERE ${WITNESSED} LIMIT 1`));
    if (witnesses.length > 0) return 0;
    const adopted = await vouchForAllIn(tx, vouching);
    await audit.recordIn(tx, { action: 'auth.accounts_adopted', outcome: 'success', actor: 'system', ...WITNESS, people: adopted });
    return adopted;
  });
}
