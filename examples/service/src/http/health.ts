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
  readonly isStopping: () => boolean;
}

export function healthRoutes({ sql, devicesAreWatched, isStopping }: HealthOptions): Router {
  const router = Router({ caseSensitive: true, strict: true });
  let last: { readonly atMs: number; readonly answered: Promise<boolean> } | null = null;
  const databaseAnswers = (): Promise<boolean> => {
    const nowMs = performance.now();
    if (last === null || nowMs - last.atMs > KEPT_MS) last = { atMs: nowMs, answered: answers(sql) };
    return last.answered;
  };
  router.get('/healthz', (_request, response) => {
    response.set('cache-control', 'no-store').json({ status: 'ok' });
  });
  router.get('/readyz', async (_request, response) => {
    const [database, changes] = await Promise.all([databaseAnswers(), isTold(devicesAreWatched)]);
    const checks = {
      database: database ? 'ok' : 'does not answer',
      device_changes: changes ? 'ok' : 'nothing is heard of changed devices',
      service: isStopping() ? 'is stopping' : 'ok',
    };
    const isReady = Object.values(checks).every((check) => check === 'ok');
    response.status(isReady ? 200 : 503).set('cache-control', 'no-store').json({ status: isReady ? 'ready' : 'not ready', checks });
  });
  return router;
}

async function answers(sql: SqlClient): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), CHECK_MS);
  });
  try {
    return await Promise.race([sql.query('SELECT 1').then(() => true), late]);
  } catch {
    return false;
  } finally {
    clearTimeout(timer);
  }
}

async function isTold(devicesAreWatched: () => MaybePromise<void>): Promise<boolean> {
  try {
    await devicesAreWatched();
    return true;
  } catch {
    return false;
  }
}
