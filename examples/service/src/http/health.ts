/** `/healthz`: the process runs. `/readyz`: it can do its work, or which part cannot. */
import { statfs } from 'node:fs/promises';
import { Router } from 'express';
import type { MaybePromise } from '@keyguard/core/seams';
import type { SqlClient } from '@keyguard/storage-node/postgres';

const CHECK_MS = 1000;
// Probes come from many sides, and each would wait in the database's line.
const KEPT_MS = 250;
// Each takes the lock of the log's head for a moment.
const APPEND_KEPT_MS = 1000;
// A database that has no room any more stops in the middle of something.
const MIN_FREE_BYTES = 64 * 1024 * 1024;

export interface HealthOptions {
  readonly sql: SqlClient;
  /** Rejects while nobody can tell which devices changed. */
  readonly devicesAreWatched: () => MaybePromise<void>;
  /** Throws while nobody can tell which settings are in force. */
  readonly settingsAreKnown: () => void;
  /** Resolves when Redis can be used; `null` where there is none. */
  readonly checkRedis: (() => Promise<unknown>) | null;
  /** Throws while the keys of this deployment cannot be read again, or are under another root key by now. */
  readonly keysAreKnown: () => void;
  /** Throws while nothing has been written to the database for some seconds. Something is, each second, by a job. */
  readonly databaseIsWritten: () => void;
  /** Resolves when the audit log could be appended to. */
  readonly checkAuditHead: () => Promise<unknown>;
  /** Whose disk must have room. */
  readonly dataDir: string;
  readonly isStopping: () => boolean;
}

export function healthRoutes({ sql, devicesAreWatched, settingsAreKnown, checkRedis, keysAreKnown, databaseIsWritten, checkAuditHead, dataDir, isStopping }: HealthOptions): Router {
  const router = Router({ caseSensitive: true, strict: true });
  const databaseAnswers = kept(() => answers(sql.query('SELECT 1')));
  const redisAnswers = checkRedis === null ? null : kept(() => answers(checkRedis()));
  const auditIsOpen = kept(() => answers(checkAuditHead()), APPEND_KEPT_MS);
  const diskHasRoom = kept(() => answers(assertRoom(dataDir)));
  router.get('/healthz', (_request, response) => {
    response.set('cache-control', 'no-store').json({ status: 'ok' });
  });
  router.get('/readyz', async (_request, response) => {
    const [database, changes, settings, redis, keys, writes, audit, disk] = await Promise.all([
      databaseAnswers(),
      isTold(devicesAreWatched),
      isTold(settingsAreKnown),
      redisAnswers?.(),
      isTold(keysAreKnown),
      isTold(databaseIsWritten),
      auditIsOpen(),
      diskHasRoom(),
    ]);
    const checks = {
      database: database ? 'ok' : 'does not answer',
      database_writes: writes ? 'ok' : 'nothing can be written: is its disk full, or is it read-only?',
      audit_log: audit ? 'ok' : 'cannot be appended to',
      keys: keys ? 'ok' : 'cannot be read, or are under another root key: restart with the right one',
      disk: disk ? 'ok' : 'the disk of the data folder has less than 64 MiB left',
      device_changes: changes ? 'ok' : 'nothing is heard of changed devices',
      settings: settings ? 'ok' : 'nobody can tell which are in force',
      ...(redis !== undefined && { redis: redis ? 'ok' : 'cannot be used' }),
      service: isStopping() ? 'is stopping' : 'ok',
    };
    const isReady = Object.values(checks).every((check) => check === 'ok');
    response.status(isReady ? 200 : 503).set('cache-control', 'no-store').json({ status: isReady ? 'ready' : 'not ready', checks });
  });
  return router;
}

async function assertRoom(folder: string): Promise<void> {
  const { bavail, bsize } = await statfs(folder);
  if (bavail * bsize < MIN_FREE_BYTES) throw new Error('full');
}

function kept(check: () => Promise<boolean>, keptMs: number = KEPT_MS): () => Promise<boolean> {
  let last: { readonly atMs: number; readonly answered: Promise<boolean> } | null = null;
  return () => {
    const nowMs = performance.now();
    if (last === null || nowMs - last.atMs > keptMs) last = { atMs: nowMs, answered: check() };
    return last.answered;
  };
}

async function answers(work: Promise<unknown>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), CHECK_MS);
  });
  try {
    return await Promise.race([work.then(() => true), late]);
  } catch {
    return false;
  } finally {
    clearTimeout(timer);
  }
}

async function isTold(ask: () => MaybePromise<void>): Promise<boolean> {
  try {
    await ask();
    return true;
  } catch {
    return false;
  }
}
