/**
 * What the audit log says of one thing: the witness of which state of it is the newest. A writer of the database can put an old row
 * back, with a MAC that was good once; the entry of the change that came after is chained, and would have to be cut out of the log.
 *
 * Entries are found by their own bytes. The columns beside them are copies that nobody vouches for, and decide nothing here.
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

/**
 * What is announced: which version of a secret counts, in which state the row of a provider key is, that a version of either was
 * destroyed. The same actions as in `keyguard.announcement`, which finds them.
 */
export type AnnouncementKind = 'version' | 'row' | 'destruction';

const ACTIONS: Readonly<Record<AnnouncementKind, ReadonlySet<string>>> = {
  version: new Set(['secret.create', 'secret.add_version', 'secret.restore_version', 'secret.delete']),
  row: new Set([
    'api_key.create', 'api_key.import', 'api_key.adopt', 'api_key.rotate', 'api_key.restore_version', 'api_key.update', 'api_key.set_default', 'api_key.displace',
    'api_key.revoke',
  ]),
  destruction: new Set(['secret.destroy_version', 'api_key.destroy_version']),
};

const COLUMNS = 'origin, seq, entry, prev_mac, mac, mac_key_id';
/** That the bytes of an entry name one of the actions above, as the index says it: where a statement leaves it out, the index is not used. */
export const isIndexed = (entry: string): string => `(position('"action":"secret.'::bytea IN ${entry}) > 0 OR position('"action":"api_key.'::bytea IN ${entry}) > 0)`;
const INDEXED = isIndexed('entry');
/** Of how many things the newest announcement is remembered. */
const MAX_REMEMBERED = 10_000;

export interface Announcements {
  /**
   * The newest row of this kind about `resource`: in the present chain, or else in those before it. `undefined` where there is none, and
   * where this process has seen a newer one, which is gone.
   */
  newest(tx: SqlTransaction, kind: AnnouncementKind, resource: string): Promise<AnnouncementRow | undefined>;
  all(tx: SqlTransaction, kind: AnnouncementKind, resource: string): Promise<readonly AnnouncementRow[]>;
  /**
   * The entry in a row that bears its MAC and is of this kind and about `resource`, else `null`. In a transaction nothing else is asked of
   * the database.
   * @throws UnavailableError seam `audit_mac_key` where that would have been needed: the next transaction has the key
   */
  entryIn(row: AnnouncementRow, kind: AnnouncementKind, resource: string, inTransaction?: boolean): Promise<Announcement | null>;
}

export interface AnnouncementsOptions {
  /** The chain that is written to now. */
  readonly origin: string;
  /** Every key under which the log was ever chained. */
  readonly auditMac: Pick<AuditMacKeys, 'all' | 'reload'>;
  /** Of how many things the newest announcement is remembered. Default 10,000. */
  readonly remembered?: number;
}

/** `tx` acts as kg_jobs. */
export function announcements({ origin, auditMac, remembered = MAX_REMEMBERED }: AnnouncementsOptions): Announcements {
  /** Where in the present chain the newest one was that was read and bore its MAC: whatever is found later is not before it. */
  const seen = new Map<string, number>();

  function remember(name: string, seq: number): void {
    if (seq <= (seen.get(name) ?? -1)) return;
    seen.delete(name);
    if (seen.size >= remembered) seen.delete(seen.keys().next().value!);
    seen.set(name, seq);
  }

  return {
    async newest(tx, kind, resource) {
      const name = `${kind} ${resource}`;
      // Before the statement: what was seen by now was committed by now, and the statement must see it too.
      const least = seen.get(name) ?? -1;
      const { rows } = await tx.query<AnnouncementRow>(
        `SELECT ${COLUMNS} FROM keyguard.secret_audit_logs WHERE origin = $2 AND keyguard.announcement(entry) = $1 AND ${INDEXED} ORDER BY seq DESC LIMIT 1`,
        [name, origin],
      );
      if (Number(rows[0]?.seq ?? -1) < least) return undefined;
      if (rows[0] !== undefined) return rows[0];
      // Since the present chain began, after a restore, nothing has happened to it.
      const { rows: earlier } = await tx.query<AnnouncementRow>(
        `SELECT DISTINCT ON (origin) ${COLUMNS} FROM keyguard.secret_audit_logs WHERE keyguard.announcement(entry) = $1 AND ${INDEXED} ORDER BY origin, seq DESC`,
        [name],
      );
      return earlier.toSorted((a, b) => (writtenAt(a) < writtenAt(b) ? 1 : -1))[0];
    },

    async all(tx, kind, resource) {
      return (await tx.query<AnnouncementRow>(`SELECT ${COLUMNS} FROM keyguard.secret_audit_logs WHERE keyguard.announcement(entry) = $1 AND ${INDEXED}`, [`${kind} ${resource}`])).rows;
    },

    async entryIn(row, kind, resource, inTransaction = false) {
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
      if (entry['resource'] !== resource || !ACTIONS[kind].has(String(entry['action']))) return null;
      // Not of a transaction that may still be rolled back.
      if (!inTransaction && row.origin === origin) remember(`${kind} ${resource}`, record.seq);
      return entry;
    },
  };
}

/** What the entry itself says. One that says nothing counts as the newest, and bears no MAC. */
function writtenAt({ entry }: AnnouncementRow): string {
  try {
    return String((JSON.parse(fromUtf8(Uint8Array.from(entry))) as Announcement)['ts']);
  } catch {
    return '\uffff';
  }
}
