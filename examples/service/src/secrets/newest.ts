/**
 * Whether a secret's row is its newest one, by the audit log: every version is announced there in the transaction that makes it. So who
 * puts an old row back into the database is noticed when its value is asked for.
 */
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import { announcements, type AnnouncementRow, type AnnouncementsOptions } from '../audit/announcements.ts';
import { asJobs } from '../db/as-user.ts';

/** What the log says last of a secret. */
export interface Announced {
  readonly currentVersion: number;
  readonly isDeleted: boolean;
  /** Those that were asked about and have been destroyed. */
  readonly destroyed: ReadonlySet<number>;
}

/** Rows of the log about one secret. */
export interface AnnouncedRows {
  readonly last: AnnouncementRow | undefined;
  readonly destructions: readonly AnnouncementRow[];
}

export interface NewestSecrets {
  /** To be read in the transaction that has read the secret, and after that: so that few changes come between the two looks. */
  rowsIn(tx: SqlTransaction, secretId: string, options: { readonly withDestroyed: boolean }): Promise<AnnouncedRows>;
  /** What they say; `null` where they say nothing of the secret, or what they say does not bear its MAC. */
  announced(secretId: string, rows: AnnouncedRows): Promise<Announced | null>;
}

export function newestSecrets(options: AnnouncementsOptions): NewestSecrets {
  const { newest, all, entryIn } = announcements(options);
  const resourceOf = (secretId: string): string => `secret:${secretId}`;
  return {
    rowsIn: (tx, secretId, { withDestroyed }) =>
      asJobs(tx, async (jobs) => ({
        last: await newest(jobs, 'version', resourceOf(secretId)),
        destructions: withDestroyed ? await all(jobs, 'destruction', resourceOf(secretId)) : [],
      })),

    async announced(secretId, { last, destructions }) {
      const entry = last === undefined ? null : await entryIn(last, 'version', resourceOf(secretId));
      if (entry === null) return null;
      const destroyed = new Set<number>();
      for (const row of destructions) {
        const destruction = await entryIn(row, 'destruction', resourceOf(secretId));
        if (destruction === null) return null;
        destroyed.add(Number(destruction['version']));
      }
      return { currentVersion: Number(entry['version']), isDeleted: entry['action'] === 'secret.delete', destroyed };
    },
  };
}
