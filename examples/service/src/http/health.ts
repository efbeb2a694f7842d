/** `/healthz`: the process runs. `/readyz`: it can do its work, or which part cannot. */
import { Router } from 'express';
import type { MaybePromise } from '@keyguard/core/seams';
import type { SqlClient } from '@keyguard/storage-node/postgres';

const CHECK_MS = 1000;
// Probes come from many sides, and each would wait in the database's line.
const KEPT_MS = 250;

export interface HealthOptions {
  readonly sql: SqlClient;
  /** Rejects while nobody can tell which devices changed. */
  readonly devicesAreWatched: () => MaybePromise<void>;
  /** Throws while nobody can tell which settings are in force. */
  readonly settingsAreKnown: () => void;
  /** Resolves when Redis can be used; `null` where there is none. */
  readonly checkRedis: (() => Promise<unknown>) | null;
  readonly isStopping: () => boolean;
}

export function healthRoutes({ sql, devicesAreWatched, settingsAreKnown, checkRedis, isStopping }: HealthOptions): Router {
  const router = Router({ caseSensitive: true, strict: true });
  const databaseAnswers = kept(() => answers(sql.query('SELECT 1')));
  const redisAnswers = checkRedis === null ? null : kept(() => answers(checkRedis()));
  router.get('/healthz', (_request, response) => {
    response.set('cache-control', 'no-store').json({ status: 'ok' });
  });
  router.get('/readyz', async (_request, response) => {
    const [database, changes, settings, redis] = await Promise.all([databaseAnswers(), isTold(devicesAreWatched), isTold(settingsAreKnown), redisAnswers?.()]);
    const checks = {
      database: database ? 'ok' : 'does not answer',
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

function kept(check: () => Promise<boolean>): () => Promise<boolean> {
  let last: { readonly atMs: number; readonly answered: Promise<boolean> } | null = null;
  return () => {
    const nowMs = performance.now();
    if (last === null || nowMs - last.atMs > KEPT_MS) last = { atMs: nowMs, answered: check() };
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
