/**
 * An adapter of one's own, whole: which nonces were used, in a file of SQLite. Any number of processes of one machine may share it.
 *
 * A claim is one statement, which is on the disk when it returns. SQLite answers on the thread that asks: a claim holds it up for as
 * long as the disk takes to sync, and for as long as another process holds the file.
 */
import type { DatabaseSync } from 'node:sqlite';
import { UnavailableError } from '@keyguard/core/errors';
import type { Clock, ReplayStore } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';

/** The furthest ahead that any policy lets a request be dated. */
const MAX_FUTURE_SECONDS = 60;
const PURGE_EVERY_MS = 1000;

const SCHEMA = `
  PRAGMA journal_mode = WAL;
  PRAGMA synchronous = FULL;
  CREATE TABLE IF NOT EXISTS floor (id INTEGER PRIMARY KEY CHECK (id = 1), seconds INTEGER NOT NULL) STRICT;
  CREATE TABLE IF NOT EXISTS nonces (
    key_id TEXT NOT NULL, nonce TEXT NOT NULL, created_seconds INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
    PRIMARY KEY (key_id, nonce)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX IF NOT EXISTS nonces_by_expiry ON nonces (expires_ms, created_seconds);`;

export interface SqliteReplayStoreOptions {
  readonly clock?: Clock;
  /** For how long a statement waits for another process to let go of the file; a claim is two at most. Default 100 ms. */
  readonly timeoutMs?: number;
}

/** A {@link ReplayStore} in `database`, which nobody else in this process uses. For the first minute of a new file nothing passes. */
export function sqliteReplayStore(database: DatabaseSync, { clock = systemClock, timeoutMs = 100 }: SqliteReplayStoreOptions = {}): ReplayStore {
  database.exec(`PRAGMA busy_timeout = ${Math.trunc(timeoutMs)}; ${SCHEMA}`);
  // A file that is new may stand in the place of one that was lost: whatever an earlier one may have accepted is refused.
  database.prepare('INSERT INTO floor VALUES (1, ?) ON CONFLICT DO NOTHING').run(Math.floor(clock.nowMs() / 1000) + MAX_FUTURE_SECONDS);
  const insert = database.prepare('INSERT INTO nonces SELECT ?1, ?2, ?3, ?4 FROM floor WHERE ?3 > seconds ON CONFLICT DO NOTHING');
  const readFloor = database.prepare('SELECT seconds FROM floor');
  const raiseFloor = database.prepare(
    'UPDATE floor SET seconds = max(seconds, (SELECT coalesce(max(created_seconds), 0) FROM nonces WHERE expires_ms < ?))',
  );
  const remove = database.prepare('DELETE FROM nonces WHERE expires_ms < ?');
  let purgedAtMs = -Infinity;

  /** Forgets what has expired, and in the same commit lays the floor above it, so that it stays refused. */
  function purge(nowMs: number): void {
    if (Math.abs(nowMs - purgedAtMs) < PURGE_EVERY_MS) return;
    database.exec('BEGIN IMMEDIATE');
    raiseFloor.run(nowMs);
    remove.run(nowMs);
    database.exec('COMMIT');
    purgedAtMs = nowMs;
  }

  /** Of a purge that failed: it would hold the file against all others, and what is claimed inside it would be lost with it. */
  function rollBack(): void {
    if (database.isTransaction) database.exec('ROLLBACK');
  }

  return {
    claim(keyId, nonce, createdSeconds, expiresAtMs): boolean {
      try {
        rollBack();
        const nowMs = clock.nowMs();
        purge(nowMs);
        if (insert.run(keyId, nonce, createdSeconds, expiresAtMs).changes === 1) return true;
        const readyAtMs = (Number(readFloor.get()!['seconds']) + 1) * 1000;
        if (nowMs >= readyAtMs || createdSeconds * 1000 >= readyAtMs) return false;
        throw new UnavailableError('replay_store', 'An earlier file may have held what was used until now.', { retryAfterMs: readyAtMs - nowMs });
      } catch (cause) {
        if (cause instanceof UnavailableError) throw cause;
        try {
          rollBack();
        } catch {
          // The next claim tries again, and does nothing before.
        }
        throw new UnavailableError('replay_store', 'SQLite did not do what was asked of it.', { cause });
      }
    },
  };
}
