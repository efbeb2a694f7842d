/**
 * Whether the row of a key is its newest one, by the audit log: every change of a row is announced there with the revision that it made.
 * So whoever puts an old row back, with the version, the default or the expiry that it had, is noticed when the key is opened.
 */
import { UnavailableError } from '@keyguard/core/errors';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { announcements, type Announcement, type AnnouncementRow, type AnnouncementsOptions } from '../audit/announcements.ts';
import { asJobs } from '../db/as-user.ts';
import { KEYS_SEAM, notIntact, type StoredApiKey } from './rows.ts';

const MAX_TRIES = 20;

/** A key as it was read, and the row of the log that was the last about it thereafter. */
export interface Found {
  readonly key: StoredApiKey;
  readonly lastRow: AnnouncementRow | undefined;
}

export interface NewestKeys {
  /** What the log says last of the key; `null` where that is nothing, or does not bear its MAC. */
  lastWord(keyId: string): Promise<Announcement | null>;
  /**
   * That `key`, whose row `tx` has locked, is as it was written and as the log says last: so that no change ever vouches for a row that
   * was put back.
   * @throws HttpProblem `integrity_failed`
   */
  demandNewestIn(tx: SqlTransaction, key: StoredApiKey): Promise<void>;
  /** Whether the log says that this version was destroyed. `null` where an entry that says so does not bear its MAC. */
  isDestroyed(keyId: string, version: number): Promise<boolean | null>;
  /** The row of the log's last word. To be read in the transaction that has read the key, and after that. */
  lastRowIn(tx: SqlTransaction, keyId: string): Promise<AnnouncementRow | undefined>;
  /**
   * What `read` finds, once that is intact and what the log says last; `null` where it finds nothing. `read` is asked again where the
   * key was changed between its two looks.
   * @param changed what to throw for a row that was changed or put back in the database
   */
  settled<T extends Found>(read: () => Promise<T | null>, changed: () => Error): Promise<T | null>;
}

export function newestKeys({ sql, ...options }: AnnouncementsOptions & { readonly sql: SqlClient }): NewestKeys {
  const { newest, all, entryIn } = announcements(options);
  const resourceOf = (keyId: string): string => `api_key:${keyId}`;

  const lastRowIn = (tx: SqlTransaction, keyId: string): Promise<AnnouncementRow | undefined> => asJobs(tx, (jobs) => newest(jobs, 'row', resourceOf(keyId)));

  return {
    async lastWord(keyId) {
      const row = await asJobs(sql, (tx) => lastRowIn(tx, keyId));
      return row === undefined ? null : entryIn(row, 'row', resourceOf(keyId));
    },

    lastRowIn,

    async demandNewestIn(tx, key) {
      if (!key.intact) throw notIntact();
      const row = await lastRowIn(tx, key.id);
      const entry = row === undefined ? null : await entryIn(row, 'row', resourceOf(key.id), true);
      if (entry?.['revision'] !== key.revision) throw notIntact();
    },

    async isDestroyed(keyId, version) {
      const rows = await asJobs(sql, (tx) => all(tx, 'destruction', resourceOf(keyId)));
      for (const row of rows) {
        const entry = await entryIn(row, 'destruction', resourceOf(keyId));
        if (entry === null) return null;
        if (entry['version'] === version) return true;
      }
      return false;
    },

    async settled(read, changed) {
      let least = 0;
      let of: string | null = null;
      for (let tries = 0; tries < MAX_TRIES; tries += 1) {
        const found = await read();
        if (found === null) return null;
        const { key, lastRow } = found;
        if (!key.intact) throw changed();
        // What the log said in the round before had happened by now: a row that still lags behind it was put back.
        if (key.id === of && key.revision < least) throw changed();
        const revision: unknown = (lastRow === undefined ? null : await entryIn(lastRow, 'row', resourceOf(key.id)))?.['revision'];
        if (typeof revision !== 'number' || revision < key.revision) throw changed();
        if (revision === key.revision) return found;
        [of, least] = [key.id, revision];
      }
      throw new UnavailableError(KEYS_SEAM, 'This key is being changed all the time.', { code: 'overloaded' });
    },
  };
}
