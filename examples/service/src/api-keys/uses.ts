/**
 * When keys were last used: gathered in memory and written a few seconds later, many at a time. Nothing depends on it, so what is lost
 * with the process is lost.
 */
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';

const MAX_HELD = 10_000;

export interface KeyUses {
  note(keyId: string): void;
  flush(): Promise<void>;
}

export function keyUses(sql: SqlClient): KeyUses {
  let held = new Map<string, number>();
  return {
    note(keyId) {
      if (held.size < MAX_HELD || held.has(keyId)) held.set(keyId, Date.now());
    },
    async flush() {
      if (held.size === 0) return;
      const taken = held;
      held = new Map();
      await asJobs(sql, (tx) =>
        tx.query(
          `UPDATE keyguard.stored_api_keys k SET last_used_at_ms = greatest(k.last_used_at_ms, u.used_at_ms)
            FROM unnest($1::text[], $2::bigint[]) AS u (id, used_at_ms) WHERE k.id = u.id`,
          [[...taken.keys()], [...taken.values()]],
        ),
      );
    },
  };
}
