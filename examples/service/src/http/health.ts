/** `/healthz`: the process runs. `/readyz`: it can do its work, or which part cannot. */
import { access, constants, statfs } from 'node:fs/promises';
import { Router } from 'express';
import type { MaybePromise } from '@keyguard/core/seams';
import type { SqlClient } from '@keyguard/storage-node/postgres';

const CHECK_MS = 1000;
// Probes come from many sides, and each would wait in the database's line.
const KEPT_MS = 250;
// Each takes the lock of the log's head for a moment.
const APPEND_KEPT_MS = 1000;
// A database that has no room any more stops in the middle of something.
const MIN_FREE_MIB = 64;
const MEBIBYTE = 1024 * 1024;

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
  /** That must be there to be written to, on a disk with room. */
  readonly dataDir: string;
  /** Default 64. */
  readonly minFreeMib?: number;
  readonly isStopping: () => boolean;
}

export function healthRoutes({ sql, devicesAreWatched, settingsAreKnown, checkRedis, keysAreKnown, databaseIsWritten, checkAuditHead, dataDir, minFreeMib = MIN_FREE_MIB, isStopping }: HealthOptions): Router {
  const router = Router({ caseSensitive: true, strict: true });
  const databaseAnswers = kept(() => answers(sql.query('SELECT 1')));
  const redisAnswers = checkRedis === null ? null : kept(() => answers(checkRedis()));
  const auditIsOpen = kept(() => answers(checkAuditHead()), APPEND_KEPT_MS);
  const stateOfDisk = kept(() => diskOf(dataDir, minFreeMib));
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
      stateOfDisk(),
    ]);
    const checks = {
      database: database ? 'ok' : 'does not answer',
      // Written by whoever has just read the keys, and by nobody else.
      database_writes: writes ? 'ok' : keys ? 'nothing can be written: is its disk full, or is it read-only?' : 'not tried while the keys cannot be read',
      audit_log: audit ? 'ok' : 'cannot be appended to',
      keys: keys ? 'ok' : 'cannot be read, or are under another root key: restart with the right one',
      disk,
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

async function diskOf(folder: string, minFreeMib: number): Promise<string> {
  if (!(await answers(access(folder, constants.W_OK | constants.X_OK)))) return 'the data folder is not there, or cannot be written to';
  return (await answers(assertRoom(folder, minFreeMib))) ? 'ok' : `the disk of the data folder has less than ${minFreeMib} MiB left`;
}

async function assertRoom(folder: string, minFreeMib: number): Promise<void> {
  const { bavail, bsize } = await statfs(folder);
  if (bavail * bsize < minFreeMib * MEBIBYTE) throw new Error('full');
}

function kept<T>(check: () => Promise<T>, keptMs: number = KEPT_MS): () => Promise<T> {
  let last: { readonly atMs: number; readonly answered: Promise<T> } | null = null;
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
