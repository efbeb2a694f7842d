/**
 * The word of a second administrator on who administers. Where two administer, what one asks for is written down and waits for three days;
 * another one who asks for the same in that time makes it happen. Whoever asks twice is one person still.
 *
 * Never decides that somebody may: that both administer at the moment at which it happens is asked then.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { isIntact, pageOf, pageStart, postgresAdministrators, rowMac, tampered, type Page, type PageRequest, type RowField, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';

const SEAM = 'administrators';
const TABLE = 'administrator_requests';
const WAITS_MS = 3 * 24 * 60 * 60_000;
const COLUMNS = 'id, kind, subject_id, requested_by, requested_at_ms, expires_at_ms, mac_key_id, mac';

export type RequestKind = 'make' | 'unmake';

export interface AdministratorRequest {
  readonly id: string;
  readonly kind: RequestKind;
  /** Of whom it is. */
  readonly subjectId: string;
  readonly requestedBy: string;
  readonly requestedAtMs: number;
  readonly expiresAtMs: number;
}

interface Row {
  id: string;
  kind: RequestKind;
  subject_id: string;
  requested_by: string;
  requested_at_ms: unknown;
  expires_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
}

export interface SecondVoice {
  /** Who else has asked for the same and administers still; `null` where nobody has. `tx` is kg_auth's, as in all of these. */
  heardIn(tx: SqlTransaction, kind: RequestKind, subjectId: string, by: string): Promise<string | null>;
  /** Writes down that `by` asks for it; again from now, where that one has asked before. */
  askIn(tx: SqlTransaction, kind: RequestKind, subjectId: string, by: string): Promise<AdministratorRequest>;
  /** Forgets what has happened, and what somebody had asked for who administers no longer. */
  settleIn(tx: SqlTransaction, subjectId: string): Promise<void>;
  /** What waits, newest first. */
  listIn(tx: SqlTransaction, request: PageRequest): Promise<Page<AdministratorRequest>>;
  /** What `by` has asked for, taken back; `null` where there is none of that id. What others ask for nobody takes back: the one of whom it is would. */
  withdrawIn(tx: SqlTransaction, id: string, by: string): Promise<AdministratorRequest | null>;
}

const fieldsOf = (one: AdministratorRequest): readonly RowField[] => [one.id, one.kind, one.subjectId, one.requestedBy, one.requestedAtMs, one.expiresAtMs];

function requestOf(row: Row): AdministratorRequest {
  return {
    id: row.id,
    kind: row.kind,
    subjectId: row.subject_id,
    requestedBy: row.requested_by,
    requestedAtMs: Number(row.requested_at_ms),
    expiresAtMs: Number(row.expires_at_ms),
  };
}

export function secondVoice({ rowMacKey, clock }: { readonly rowMacKey: RowMacKey; readonly clock: Clock }): SecondVoice {
  return {
    async heardIn(tx, kind, subjectId, by) {
      const { rows } = await tx.query<Row>(
        `SELECT ${COLUMNS} FROM keyguard_auth.administrator_requests WHERE kind = $1 AND subject_id = $2 AND requested_by <> $3 AND expires_at_ms > $4 ORDER BY requested_at_ms`,
        [kind, subjectId, by, clock.nowMs()],
      );
      for (const row of rows) {
        const stored = { macKeyId: row.mac_key_id, mac: Uint8Array.from(row.mac) };
        if (!(await isIntact(rowMacKey, TABLE, fieldsOf(requestOf(row)), stored))) throw tampered(SEAM, TABLE);
        if (await postgresAdministrators(tx, { rowMacKey, clock }).has(row.requested_by)) return row.requested_by;
      }
      return null;
    },

    async askIn(tx, kind, subjectId, by) {
      const nowMs = clock.nowMs();
      const request: AdministratorRequest = { id: randomUUID(), kind, subjectId, requestedBy: by, requestedAtMs: nowMs, expiresAtMs: nowMs + WAITS_MS };
      await tx.query('DELETE FROM keyguard_auth.administrator_requests WHERE (kind = $1 AND subject_id = $2 AND requested_by = $3) OR expires_at_ms <= $4', [kind, subjectId, by, nowMs]);
      await tx.query(
        `INSERT INTO keyguard_auth.administrator_requests (${COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
        [request.id, kind, subjectId, by, nowMs, request.expiresAtMs, rowMacKey.keyId, await rowMac(rowMacKey, TABLE, fieldsOf(request))],
      );
      return request;
    },

    async settleIn(tx, subjectId) {
      await tx.query('DELETE FROM keyguard_auth.administrator_requests WHERE subject_id = $1 OR requested_by = $1', [subjectId]);
    },

    async listIn(tx, request) {
      const start = pageStart(request);
      const { limit = 50 } = request;
      const { rows } = await tx.query<Row>(
        `SELECT ${COLUMNS} FROM keyguard_auth.administrator_requests
          WHERE expires_at_ms > $1 AND ($2::bigint IS NULL OR (requested_at_ms, id) < ($2::bigint, $3::text)) ORDER BY requested_at_ms DESC, id DESC LIMIT $4`,
        [clock.nowMs(), start?.[0] ?? null, start?.[1] ?? null, limit + 1],
      );
      return pageOf(rows, limit, (row) => [Number(row.requested_at_ms), row.id], requestOf);
    },

    async withdrawIn(tx, id, by) {
      const { rows } = await tx.query<Row>(`DELETE FROM keyguard_auth.administrator_requests WHERE id = $1 AND requested_by = $2 RETURNING ${COLUMNS}`, [id, by]);
      return rows[0] === undefined ? null : requestOf(rows[0]);
    },
  };
}
