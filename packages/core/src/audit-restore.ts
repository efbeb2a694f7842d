/**
 * After an acknowledged restore: the first entry of the new chain, which cites what was known of the old one, so that what is
 * lost stays on record.
 *
 * @see docs/spec/audit.md section 9
 */
import { fromBase64, toBase64 } from './bytes.ts';
import { parseCanonicalJson } from './canonical-json.ts';
import { RejectedError, UsageError } from './errors.ts';
import type { AuditEntry, Bytes, JsonValue } from './seams.ts';

const RESTORE = 'audit.restore_acknowledged';
const ROOT_BYTES = 32;

/** What is on record of a restore: who answered for it, and how much of the old chain is left. */
export interface AcknowledgedRestore {
  /** Who acknowledged it, for instance `user:…`. */
  readonly actor: string;
  /** The signed note of the last checkpoint of the old chain that anybody knows of. Untrusted when it is read. */
  readonly oldCheckpoint: string;
  /** How many records of the old chain the restored database has. Those from there to the size in the checkpoint are lost. */
  readonly keptSize: number;
  /** The root of the tree over these, 32 bytes. */
  readonly keptRoot: Bytes;
}

/**
 * The entry with which the chain under the new origin MUST begin. The caller MUST have verified the checkpoint.
 * @throws UsageError `invalid_option`
 */
export function restoreEntry({ actor, oldCheckpoint, keptSize, keptRoot }: AcknowledgedRestore): AuditEntry {
  if (!Number.isSafeInteger(keptSize) || keptSize < 0 || keptRoot.length !== ROOT_BYTES) {
    throw new UsageError('invalid_option', 'keptSize is an integer from 0 to 2^53 - 1, and keptRoot has 32 bytes.');
  }
  return {
    action: RESTORE,
    outcome: 'success',
    actor,
    old_checkpoint: oldCheckpoint,
    kept_size: keptSize,
    kept_root: toBase64(keptRoot),
  };
}

/**
 * What the first entry of a chain says of a restore, or `null` where the chain did not begin with one.
 * @param bytes of record 0; untrusted, as what they say is
 * @throws RejectedError `audit_record_invalid` for such an entry with members of another form; `json_not_canonical` for bytes that
 *   are no entry at all
 */
export function readRestore(bytes: Uint8Array): AcknowledgedRestore | null {
  const entry = parseCanonicalJson(bytes) as { readonly [name: string]: JsonValue } | null;
  if (entry?.['action'] !== RESTORE) return null;
  const { actor, old_checkpoint: oldCheckpoint, kept_size: keptSize, kept_root: rootText } = entry;
  const keptRoot = typeof rootText === 'string' ? fromBase64(rootText) : null;
  const isSize = typeof keptSize === 'number' && Number.isSafeInteger(keptSize) && keptSize >= 0;
  if (typeof actor !== 'string' || typeof oldCheckpoint !== 'string' || !isSize || keptRoot?.length !== ROOT_BYTES) {
    throw new RejectedError('audit_record_invalid', 'An audit record does not verify.', {
      detail: 'seq 0: the restore is not described as it must be',
    });
  }
  return { actor, oldCheckpoint, keptSize, keptRoot };
}
