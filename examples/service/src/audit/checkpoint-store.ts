/**
 * The checkpoints in the database, and the state of the chain that they are made of. Every read verifies the signature: a row is a
 * row that anybody may have written.
 */
import { checkpointVerifier, headMacOf, verifierKey, verifyCheckpoint, type Checkpoint } from '@keyguard/core/checkpoint';
import { isRejected, UnavailableError } from '@keyguard/core/errors';
import { readFrontier, treeRoot } from '@keyguard/core/merkle';
import type { Bytes, CheckpointSigner } from '@keyguard/core/seams';
import type { Sql, SqlTransaction } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import { bytesOf, integer } from '../db/values.ts';
import { sha256, tileReader } from './tree.ts';

/** A signed note, and what it says. */
export interface SignedCheckpoint extends Checkpoint {
  readonly note: string;
  readonly createdAtMs: number;
}

export interface Head {
  /** How many records the database says that there are. */
  readonly size: number;
  readonly mac: Bytes;
  readonly macKeyId: string | null;
}

export async function readHead(tx: SqlTransaction, origin: string): Promise<Head> {
  const { rows } = await tx.query<{ size: unknown; mac: unknown; mac_key_id: string | null }>('SELECT size, mac, mac_key_id FROM keyguard.audit_head($1)', [origin]);
  const row = rows[0];
  return row === undefined ? { size: 0, mac: new Uint8Array(32), macKeyId: null } : { size: integer(row.size), mac: bytesOf(row.mac), macKeyId: row.mac_key_id };
}

/** The MAC of the last of the first `size` records; `null` where it is not there. */
export async function macBefore(tx: SqlTransaction, origin: string, size: number): Promise<{ readonly mac: Bytes; readonly macKeyId: string } | null> {
  const { rows } = await tx.query<{ mac: unknown; mac_key_id: string }>(
    'SELECT mac, mac_key_id FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq = $2::bigint',
    [origin, size - 1],
  );
  return rows[0] === undefined ? null : { mac: bytesOf(rows[0].mac), macKeyId: rows[0].mac_key_id };
}

/** The root of the tree over the first `size` entries, out of what is kept of it. */
export async function rootAt(sql: Sql, origin: string, size: number): Promise<Bytes> {
  return treeRoot(await readFrontier(size, tileReader(sql, origin)), sha256);
}

export interface CheckpointStore {
  readonly origin: string;
  /** What auditors pin. */
  readonly verifierKey: string;
  /** What `note` (untrusted) says, if the key of this log signed it. @throws RejectedError `checkpoint_invalid` */
  verify(note: string): Promise<Checkpoint>;
  /** The newest one. @throws UnavailableError `audit_checkpoints` for a row that this deployment did not sign */
  newest(): Promise<SignedCheckpoint | null>;
  /** The one of exactly that many entries. */
  at(size: number): Promise<SignedCheckpoint | null>;
  /** The smallest one that is signed over more than `seq` entries. */
  over(seq: number): Promise<SignedCheckpoint | null>;
  add(checkpoint: SignedCheckpoint): Promise<void>;
}

interface CheckpointRow {
  tree_size: unknown;
  signed_note: string;
  created_at_ms: unknown;
}

const COLUMNS = 'tree_size, signed_note, created_at_ms';

export async function checkpointStore(sql: Sql, origin: string, signer: CheckpointSigner): Promise<CheckpointStore> {
  const key = await verifierKey(origin, signer.publicKey);
  const verifier = await checkpointVerifier(key);

  async function read(where: string, params: readonly unknown[]): Promise<SignedCheckpoint | null> {
    const { rows } = await asJobs(sql, (tx) => tx.query<CheckpointRow>(`SELECT ${COLUMNS} FROM keyguard.audit_checkpoints WHERE origin = $1 ${where} LIMIT 1`, [origin, ...params]));
    const row = rows[0];
    if (row === undefined) return null;
    try {
      const checkpoint = await verifyCheckpoint(row.signed_note, [verifier]);
      if (checkpoint.size === integer(row.tree_size)) return { ...checkpoint, note: row.signed_note, createdAtMs: integer(row.created_at_ms) };
    } catch (error) {
      if (!isRejected(error)) throw error;
    }
    throw new UnavailableError('audit_checkpoints', 'A checkpoint in the database is not one that this deployment signed.');
  }

  return {
    origin,
    verifierKey: key,
    async verify(note) {
      const checkpoint = await verifyCheckpoint(note, [verifier]);
      headMacOf(checkpoint);
      return checkpoint;
    },
    newest: () => read('ORDER BY tree_size DESC', []),
    at: (size) => read('AND tree_size = $2::bigint', [size]),
    over: (seq) => read('AND tree_size > $2::bigint ORDER BY tree_size', [seq]),
    async add({ size, root, note, createdAtMs }) {
      await asJobs(sql, (tx) =>
        tx.query(
          `INSERT INTO keyguard.audit_checkpoints (origin, tree_size, root_hash, signed_note, created_at_ms) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT DO NOTHING`,
          [origin, size, root, note, createdAtMs],
        ),
      );
    },
  };
}
