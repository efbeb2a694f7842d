/**
 * One of several processes at which copies of one request arrive at once: waits for the word, hands all of them to a verifier of its own,
 * and says how each ended. Its argument says on which store.
 */
import { once } from 'node:events';
import { writeSync } from 'node:fs';
import { Pool } from 'pg';
import type { ReplayStore } from '@keyguard/core/seams';
import { ioredisClient, redisReplayStore } from '../src/redis.ts';
import { pgClient, postgresReplayStore } from '../src/postgres.ts';
import type { RacingProcess } from './one-acceptance.ts';
import { connectIoredis } from './redis-clients.ts';
import { readRequest, verifierOf } from './signed-requests.ts';

// All copies are on the way before the first answer is read: none may run out of time for that.
const PATIENCE_MS = 60_000;

async function openStore(store: RacingProcess['store']): Promise<ReplayStore> {
  if (store.kind === 'redis') return redisReplayStore(ioredisClient(await connectIoredis(store.url)), { timeoutMs: PATIENCE_MS });
  return postgresReplayStore(pgClient(new Pool({ connectionString: store.url, max: 8 })));
}

const { store, device, request, copies } = JSON.parse(process.argv[2]!) as RacingProcess;
const verifier = verifierOf(await openStore(store), { device, policy: { seamTimeoutMs: PATIENCE_MS, requestsPerMinute: 1_000_000 } });
const outcomes: Record<string, number> = {};
writeSync(1, 'ready\n');
await once(process.stdin, 'data');
await Promise.all(
  Array.from({ length: copies }, async () => {
    const outcome = await verifier.verify(readRequest(request)).then(
      () => 'accepted',
      (error: Error & { code?: string }) => error.code ?? error.message,
    );
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  }),
);
writeSync(1, `${JSON.stringify(outcomes)}\n`);
process.exit(0);
