/**
 * Whether the keys in the database are still under the root that this process has opened. What a process wraps by a root of before would
 * be lost: nobody opens it any more. A root says of itself whether it is a file, and which; of two passphrases it does not. So what is
 * compared is a wrapped key itself, which is another one under each root.
 */
import { UnavailableError } from '@keyguard/core/errors';
import { equalBytes } from '@keyguard/core/bytes';
import type { KeyRecord } from '@keyguard/core/seams';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';

/**
 * To be called in the transaction that writes a wrapped key: until it ends, the root is not changed. `tx` acts as kg_jobs.
 * @throws UnavailableError where the root was changed
 */
export type DemandRoot = (tx: SqlTransaction) => Promise<void>;

/** `opened` is the key of the deployment, as this process has opened it. */
export function rootUnchanged(opened: KeyRecord): DemandRoot {
  return async (tx) => {
    const { rows } = await tx.query<{ wrapped: Uint8Array }>('SELECT wrapped FROM keyguard.kek_keys WHERE id = $1 FOR SHARE', [opened.id]);
    if (rows[0] === undefined || !equalBytes(Uint8Array.from(rows[0].wrapped), opened.wrapped)) throw rootChanged();
  };
}

export function rootChanged(): UnavailableError {
  return new UnavailableError('kek', 'The root key was changed while this process ran: restart it with the new one.');
}
