/**
 * Puts the keys of a deployment under another root. Nothing else changes: neither the keys nor what they seal. All rows change in one
 * transaction, so that whenever it is killed either the old root opens all of them or the new one does.
 */
import { UsageError } from '@keyguard/core/errors';
import { toBase64 } from '@keyguard/core/bytes';
import type { KeyRecord } from '@keyguard/core/seams';
import { postgresKeyRecords, type SqlClient } from '@keyguard/storage-node/postgres';
import { listChains } from '../audit/chains.ts';
import { auditLog } from '../audit/log.ts';
import type { RootKeyConfig } from '../config.ts';
import { asJobs } from '../db/as-user.ts';
import { context, deploymentIdOf, openDeploymentKeys, primaryOf, unwrap } from './hierarchy.ts';
import { openRoot, type Root } from './root.ts';

export interface RootChange {
  readonly from: string;
  readonly to: string;
  /** How many keys were wrapped anew. */
  readonly keys: number;
}

const isSame = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

async function wrapAnew(record: KeyRecord, from: Root, to: Root, deploymentId: string): Promise<KeyRecord> {
  // There is nothing of it to wrap.
  if (record.state === 'destroyed') return { ...record, rootId: to.rootId };
  const boundTo = record.purpose === 'deployment' ? '' : deploymentId;
  const key = await unwrap(from, record, record.purpose, boundTo);
  try {
    const { bytes } = await to.keyProvider.wrap(key, context(boundTo, record.purpose, record.id));
    const fresh: KeyRecord = { ...record, wrapped: bytes, rootId: to.rootId };
    // Before the old form is gone.
    const opened = await unwrap(to, fresh, record.purpose, boundTo);
    try {
      if (!isSame(opened, key)) throw new UsageError('key_store_unusable', `The new root does not give back the key ${record.id}. Nothing was changed.`);
    } finally {
      opened.fill(0);
    }
    return fresh;
  } finally {
    key.fill(0);
  }
}

/**
 * MUST be called by whoever has the database alone. Both roots open nothing that the other one wrapped; afterwards only `next` opens.
 * @throws UsageError `key_store_unusable` where `current` is not the root, or `next` is the same one
 */
export async function changeRoot(sql: SqlClient, current: RootKeyConfig, next: RootKeyConfig): Promise<RootChange> {
  const records = postgresKeyRecords(sql);
  const kept = await records.list();
  if (kept.length === 0) throw new UsageError('key_store_unusable', 'There are no keys in this database yet: start with the root key that you want.');
  const keys = await openDeploymentKeys(records, current);
  const from = await openRoot(current, kept);
  const to = await openRoot(next, []);
  if (next.kind === 'file' && from.rootId === to.rootId) throw new UsageError('key_store_unusable', 'That is the root key already.');
  const deploymentId = await deploymentIdOf(from, primaryOf(kept, 'deployment')!);
  const fresh = await Promise.all(kept.map((record) => wrapAnew(record, from, to, deploymentId)));
  const [chain] = await asJobs(sql, (tx) => listChains(tx, keys));
  const audit = auditLog(sql, keys, { origin: chain.origin });
  await asJobs(sql, async (tx) => {
    const { rows } = await tx.query<{ id: string; wrapped: Uint8Array }>('SELECT id, wrapped FROM keyguard.kek_keys ORDER BY id FOR UPDATE');
    const before = new Map(kept.map((record) => [record.id, record]));
    if (rows.length !== kept.length || !rows.every(({ id, wrapped }) => before.has(id) && isSame(before.get(id)!.wrapped, wrapped))) {
      throw new UsageError('key_store_unusable', 'The keys changed while they were being wrapped anew: nothing was done. Try again.');
    }
    await tx.query(
      `UPDATE keyguard.kek_keys k SET wrapped = decode(r.wrapped, 'base64'), root_id = $3 FROM unnest($1::text[], $2::text[]) AS r (id, wrapped) WHERE k.id = r.id`,
      [fresh.map(({ id }) => id), fresh.map(({ wrapped }) => toBase64(wrapped)), to.rootId],
    );
    await audit.recordIn(tx, { action: 'root_key.change', outcome: 'success', actor: 'operator', from: from.rootId, to: to.rootId });
  });
  // As the next start does it.
  await openDeploymentKeys(records, next);
  return { from: from.rootId, to: to.rootId, keys: fresh.filter(({ state }) => state !== 'destroyed').length };
}
