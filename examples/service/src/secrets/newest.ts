/**
 * Whether a secret's row is its newest one, by the audit log: every version is announced there in the transaction that makes it, and
 * the log is chained. So who puts an old row back into the database, with a MAC that was good once, is noticed when its value is asked
 * for; they would have to cut the log as well, which its checkpoints show.
 */
import { verifyRecords } from '@keyguard/core/audit';
import { fromUtf8 } from '@keyguard/core/bytes';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import type { AuditMacKeys } from '../keys/audit-mac-keys.ts';

/** What the log says last of a secret. */
export interface Announced {
  readonly currentVersion: number;
  readonly isDeleted: boolean;
  /** Those that were asked about and have been destroyed. */
  readonly destroyed: ReadonlySet<number>;
}

/** `null` where the log says nothing of the secret, or what it says does not bear its MAC. */
export type NewestOf = (secretId: string, options: { readonly withDestroyed: boolean }) => Promise<Announced | null>;

export interface NewestOptions {
  readonly sql: SqlClient;
  /** The chain that is written to now. */
  readonly origin: string;
  /** Every key under which the log was ever chained. */
  readonly auditMac: Pick<AuditMacKeys, 'all' | 'reload'>;
}

interface Row {
  origin: string;
  seq: unknown;
  entry: Uint8Array;
  prev_mac: Uint8Array;
  mac: Uint8Array;
  mac_key_id: string;
}

// In the words of the partial index, which these queries are for.
const OF_VERSIONS = `resource = $1 AND action IN ('secret.create', 'secret.add_version', 'secret.restore_version', 'secret.destroy_version', 'secret.delete')`;
const COLUMNS = 'origin, seq, entry, prev_mac, mac, mac_key_id';

export function newestOf({ sql, origin, auditMac }: NewestOptions): NewestOf {
  /** The entry in a record that bears its MAC and is about this secret; the columns beside it are copies that nobody vouches for. */
  async function entryIn(row: Row, resource: string): Promise<Readonly<Record<string, unknown>> | null> {
    const record = {
      seq: Number(row.seq),
      bytes: Uint8Array.from(row.entry),
      prevMac: Uint8Array.from(row.prev_mac),
      mac: Uint8Array.from(row.mac),
      macKeyId: row.mac_key_id,
    };
    // Another process has gone over to a key that this one has not heard of yet.
    if (!auditMac.all.has(record.macKeyId)) await auditMac.reload();
    try {
      await verifyRecords([record], { origin: row.origin, keys: auditMac.all, from: { seq: record.seq, prevMac: record.prevMac, macKeyId: null } });
    } catch {
      return null;
    }
    const entry = JSON.parse(fromUtf8(record.bytes)) as Readonly<Record<string, unknown>>;
    return entry['resource'] === resource ? entry : null;
  }

  async function newest(tx: SqlTransaction, resource: string): Promise<Row | undefined> {
    const { rows } = await tx.query<Row>(
      `SELECT ${COLUMNS} FROM keyguard.secret_audit_logs WHERE origin = $2 AND ${OF_VERSIONS} AND action <> 'secret.destroy_version'
        ORDER BY seq DESC LIMIT 1`,
      [resource, origin],
    );
    if (rows[0] !== undefined) return rows[0];
    // Since the present chain began, after a restore, nothing has happened to it.
    const { rows: earlier } = await tx.query<Row>(
      `SELECT ${COLUMNS} FROM keyguard.secret_audit_logs WHERE ${OF_VERSIONS} AND action <> 'secret.destroy_version'
        ORDER BY ts_ms DESC, seq DESC LIMIT 1`,
      [resource],
    );
    return earlier[0];
  }

  return async (secretId, { withDestroyed }) => {
    const resource = `secret:${secretId}`;
    const { last, destructions } = await asJobs(sql, async (tx) => ({
      last: await newest(tx, resource),
      destructions: withDestroyed
        ? (await tx.query<Row>(`SELECT ${COLUMNS} FROM keyguard.secret_audit_logs WHERE ${OF_VERSIONS} AND action = 'secret.destroy_version'`, [resource])).rows
        : [],
    }));
    const entry = last === undefined ? null : await entryIn(last, resource);
    if (entry === null) return null;
    const destroyed = new Set<number>();
    for (const row of destructions) {
      const destruction = await entryIn(row, resource);
      if (destruction === null) return null;
      destroyed.add(Number(destruction['version']));
    }
    return { currentVersion: Number(entry['version']), isDeleted: entry['action'] === 'secret.delete', destroyed };
  };
}
