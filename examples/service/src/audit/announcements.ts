/**
 * What the audit log says of one thing: the witness of which state of it is the newest. A writer of the database can put an old row
 * back, with a MAC that was good once; the entry of the change that came after is chained, and would have to be cut out of the log.
 */
import { verifyRecords } from '@keyguard/core/audit';
import { fromUtf8 } from '@keyguard/core/bytes';
import { UnavailableError } from '@keyguard/core/errors';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditMacKeys } from '../keys/audit-mac-keys.ts';

export interface AnnouncementRow {
  origin: string;
  seq: unknown;
  entry: Uint8Array;
  prev_mac: Uint8Array;
  mac: Uint8Array;
  mac_key_id: string;
}

/** An entry as it was chained. */
export type Announcement = Readonly<Record<string, unknown>>;

const COLUMNS = 'origin, seq, entry, prev_mac, mac, mac_key_id';

export interface Announcements {
  /** The newest row about `resource` for which `condition` holds: in the present chain, or else in those before it. */
  newest(tx: SqlTransaction, resource: string, condition: string): Promise<AnnouncementRow | undefined>;
  all(tx: SqlTransaction, resource: string, condition: string): Promise<readonly AnnouncementRow[]>;
  /**
   * The entry in a row that bears its MAC and is about `resource`, else `null`: the columns beside it are copies that nobody vouches for.
   * In a transaction nothing else is asked of the database.
   * @throws UnavailableError seam `audit_mac_key` where that would have been needed: the next transaction has the key
   */
  entryIn(row: AnnouncementRow, resource: string, inTransaction?: boolean): Promise<Announcement | null>;
}

export interface AnnouncementsOptions {
  /** The chain that is written to now. */
  readonly origin: string;
  /** Every key under which the log was ever chained. */
  readonly auditMac: Pick<AuditMacKeys, 'all' | 'reload'>;
}

/** `condition` is text of a program, in the words of a partial index on `resource`: MUST NOT come from outside. `tx` acts as kg_jobs. */
export function announcements({ origin, auditMac }: AnnouncementsOptions): Announcements {
  return {
    async newest(tx, resource, condition) {
      const { rows } = await tx.query<AnnouncementRow>(
        `SELECT ${COLUMNS} FROM keyguard.secret_audit_logs WHERE origin = $2 AND resource = $1 AND ${condition} ORDER BY seq DESC LIMIT 1`,
        [resource, origin],
      );
      if (rows[0] !== undefined) return rows[0];
      // Since the present chain began, after a restore, nothing has happened to it.
      const { rows: earlier } = await tx.query<AnnouncementRow>(
        `SELECT ${COLUMNS} FROM keyguard.secret_audit_logs WHERE resource = $1 AND ${condition} ORDER BY ts_ms DESC, seq DESC LIMIT 1`,
        [resource],
      );
      return earlier[0];
    },

    async all(tx, resource, condition) {
      return (await tx.query<AnnouncementRow>(`SELECT ${COLUMNS} FROM keyguard.secret_audit_logs WHERE resource = $1 AND ${condition}`, [resource])).rows;
    },

    async entryIn(row, resource, inTransaction = false) {
      const record = {
        seq: Number(row.seq),
        bytes: Uint8Array.from(row.entry),
        prevMac: Uint8Array.from(row.prev_mac),
        mac: Uint8Array.from(row.mac),
        macKeyId: row.mac_key_id,
      };
      // Another process has gone over to a key that this one has not heard of yet.
      if (!auditMac.all.has(record.macKeyId)) {
        const reloaded = auditMac.reload();
        if (inTransaction) {
          reloaded.catch(() => {});
          throw new UnavailableError('audit_mac_key', 'The audit log has gone over to a key that this process does not know yet.');
        }
        await reloaded;
      }
      try {
        await verifyRecords([record], { origin: row.origin, keys: auditMac.all, from: { seq: record.seq, prevMac: record.prevMac, macKeyId: null } });
      } catch {
        return null;
      }
      const entry = JSON.parse(fromUtf8(record.bytes)) as Announcement;
      return entry['resource'] === resource ? entry : null;
    },
  };
}
