/** Records of the chain, as they stand in the database. */
import type { AuditRecord } from '@keyguard/core/seams';
import { bytesOf, integer } from '../db/values.ts';

/** The columns that a record is made of. */
export const RECORD_COLUMNS = 'seq, entry, prev_mac, mac, mac_key_id, handover_mac, handover_mac_key_id';

export interface RecordRow {
  readonly seq: unknown;
  readonly entry: unknown;
  readonly prev_mac: unknown;
  readonly mac: unknown;
  readonly mac_key_id: string;
  readonly handover_mac: unknown;
  readonly handover_mac_key_id: string | null;
}

export function recordOf(row: RecordRow): AuditRecord {
  const { mac_key_id: macKeyId, handover_mac_key_id: from } = row;
  const record = { seq: integer(row.seq), bytes: bytesOf(row.entry), prevMac: bytesOf(row.prev_mac), mac: bytesOf(row.mac), macKeyId };
  return from === null ? record : { ...record, handover: { macKeyId: from, mac: bytesOf(row.handover_mac) } };
}
