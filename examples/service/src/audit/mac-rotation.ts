/**
 * Changes the MAC key of the audit log while any number of replicas append. The new key is first there for all to follow, and then the
 * one to write with; the first replica that appends goes over by an entry under both keys, and all others follow it.
 *
 * What has been done is in the state of two rows, so that whoever comes after one that died goes on: a key that nobody writes with yet
 * is made the one to write with once it has been there long enough.
 */
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { AuditMacKeys } from '../keys/audit-mac-keys.ts';
import type { AuditLog } from './log.ts';

/** Every replica asks each second. One that was not told for so long learns of it when it meets the first record under the new key. */
const DISTRIBUTED_AFTER_MS = 5000;
const NOW_MS = `(date_part('epoch', clock_timestamp()) * 1000)::bigint`;

export interface MacRotationOptions {
  readonly sql: SqlClient;
  readonly auditMac: AuditMacKeys;
  readonly audit: AuditLog;
  readonly distributedAfterMs?: number;
}

export interface MacRotation {
  /**
   * Begins a change; it ends by itself within some seconds.
   * @throws HttpProblem `illegal_transition` while another is under way
   * @throws UnavailableError where the root key is not the one any more that this process has
   */
  begin(actor: string): Promise<{ readonly from: string; readonly to: string }>;
  /** To be called every second: learns of keys, and ends a change that it is time to end. */
  tick(): Promise<void>;
}

export function createMacRotation({ sql, auditMac, audit, distributedAfterMs = DISTRIBUTED_AFTER_MS }: MacRotationOptions): MacRotation {
  async function promote(tx: SqlTransaction): Promise<void> {
    // The row is locked: of several replicas one promotes, and the others find nothing to do.
    const { rows } = await tx.query<{ id: string }>(
      `SELECT id FROM keyguard.kek_keys WHERE purpose = 'audit-mac' AND state = 'pre-active' AND created_at_ms <= ${NOW_MS} - $1::bigint FOR UPDATE`,
      [distributedAfterMs],
    );
    const to = rows[0]?.id;
    if (to === undefined) return;
    const before = await tx.query<{ id: string }>(`UPDATE keyguard.kek_keys SET state = 'decrypt-only' WHERE purpose = 'audit-mac' AND state = 'primary' RETURNING id`);
    await tx.query(`UPDATE keyguard.kek_keys SET state = 'primary' WHERE id = $1`, [to]);
    await audit.recordIn(tx, { action: 'audit_mac_key.promote', outcome: 'success', actor: 'system', from_key_id: before.rows[0]!.id, to_key_id: to });
  }

  return {
    async begin(actor) {
      const record = await auditMac.newRecord();
      const from = auditMac.macKey.keyId;
      await asJobs(sql, async (tx) => {
        // The root may have been changed while this process could not be seen.
        await auditMac.demandRootIn(tx);
        const { rows } = await tx.query(
          `INSERT INTO keyguard.kek_keys (id, purpose, state, wrapped, root_id, created_at_ms) VALUES ($1, 'audit-mac', 'pre-active', $2, $3, ${NOW_MS})
            ON CONFLICT DO NOTHING RETURNING id`,
          [record.id, record.wrapped, record.rootId],
        );
        if (rows.length === 0) throw new HttpProblem('illegal_transition', 'The MAC key is being changed already. It takes some seconds.');
        await audit.recordIn(tx, { action: 'audit_mac_key.rotate', outcome: 'success', actor, from_key_id: from, to_key_id: record.id });
      });
      await auditMac.reload();
      return { from, to: record.id };
    },

    async tick() {
      await auditMac.reload();
      if (auditMac.nextMacKey === auditMac.macKey) return;
      await asJobs(sql, promote);
      await auditMac.reload();
    },
  };
}
