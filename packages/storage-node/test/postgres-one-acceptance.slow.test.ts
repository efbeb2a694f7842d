/**
 * Copies of one request at once: one passes, in four processes on PostgreSQL and in the one that PGlite has. KEYGUARD_COPIES says how
 * many.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { postgresReplayStore } from '../src/postgres.ts';
import { raceProcesses } from './one-acceptance.ts';
import { pgliteSubstrate, postgresSubstrate, type Database, type Substrate } from './postgres-substrate.ts';
import { readRequest, signingDevice, verifierOf } from './signed-requests.ts';

const PROCESSES = 4;
const COPIES = Number(process.env['KEYGUARD_COPIES'] ?? 1000);
// All copies are on the way before the first answer is read: none may run out of time for that.
const PATIENCE_MS = 60_000;

describe.each([
  { title: 'PostgreSQL', start: () => postgresSubstrate() },
  { title: 'PGlite', start: pgliteSubstrate },
])('$title', ({ title, start }) => {
  let substrate: Substrate;
  let database: Database;
  beforeAll(async () => {
    substrate = await start();
    database = await substrate.open();
  }, 120_000);
  afterAll(async () => {
    await database.close();
    await substrate.stop();
  });

  it(`lets one of ${COPIES} copies pass`, { timeout: 180_000 }, async () => {
    const { device, sign } = await signingDevice();
    const request = await sign(Date.now());
    const refused = { replay_detected: COPIES - 1 };
    if (title === 'PostgreSQL') {
      const told = { store: { kind: 'postgres', url: database.appUrl! }, device, request, copies: COPIES / PROCESSES } as const;
      expect(await raceProcesses(PROCESSES, told)).toEqual({ accepted: 1, ...refused });
      return;
    }
    const policy = { seamTimeoutMs: PATIENCE_MS, requestsPerMinute: 1_000_000 };
    const verifier = verifierOf(postgresReplayStore(database.app), { device, policy });
    const outcomes: Record<string, number> = {};
    await Promise.all(
      Array.from({ length: COPIES }, async () => {
        const outcome = await verifier.verify(readRequest(request)).then(
          () => 'accepted',
          (error: Error & { code?: string }) => error.code ?? error.message,
        );
        outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
      }),
    );
    expect(outcomes).toEqual({ accepted: 1, ...refused });
  });
});
