/**
 * Whether a secret's row is its newest one, by the audit log: every version is announced there in the transaction that makes it. So who
 * puts an old row back into the database is noticed when its value is asked for.
 */
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { announcements, type AnnouncementsOptions } from '../audit/announcements.ts';
import { asJobs } from '../db/as-user.ts';

/** What the log says last of a secret. */
export interface Announced {
  readonly currentVersion: number;
  readonly isDeleted: boolean;
  /** Those that were asked about and have been destroyed. */
  readonly destroyed: ReadonlySet<number>;
}

/** `null` where the log says nothing of the secret, or what it says does not bear its MAC. */
export type NewestOf = (secretId: string, options: { readonly withDestroyed: boolean }) => Promise<Announced | null>;

export interface NewestOptions extends AnnouncementsOptions {
  readonly sql: SqlClient;
}

// In the words of the partial index, which these queries are for.
const OF_VERSIONS = `action IN ('secret.create', 'secret.add_version', 'secret.restore_version', 'secret.destroy_version', 'secret.delete')`;

export function newestOf({ sql, ...options }: NewestOptions): NewestOf {
  const { newest, all, entryIn } = announcements(options);
  return async (secretId, { withDestroyed }) => {
    const resource = `secret:${secretId}`;
    const { last, destructions } = await asJobs(sql, async (tx) => ({
      last: await newest(tx, resource, `${OF_VERSIONS} AND action <> 'secret.destroy_version'`),
      destructions: withDestroyed ? await all(tx, resource, `${OF_VERSIONS} AND action = 'secret.destroy_version'`) : [],
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
