/**
 * Which nonces were used, in PostgreSQL: a claim is one statement and one round trip, shared with the claims that are there at the same
 * time, and durable when it answers. Any number of processes share the table.
 */
import { UnavailableError, UsageError } from '@keyguard/core/errors';
import type { Clock, ReplayStore } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { setImmediate } from 'node:timers/promises';
import { integerArray, textArray } from './array-literal.ts';
import { asRole, callAsRole, guarded, integer, isClient, type Sql } from './client.ts';

const SEAM = 'replay_store';
const PURGE_BATCH = 5000;
const RECOUNT_EVERY_MS = 1000;
const MAX_BATCH = 256;
// A statement on a connection that is dead answers after seconds: claims that come later do not wait for it.
const LATE_MS = 50;
const MAX_SENDERS = 8;
// What an index holds for sure. A verifier's pairs are far shorter.
const MAX_CHARACTERS = 512;

interface Claim {
  readonly keyId: string;
  readonly nonce: string;
  readonly createdSeconds: number;
  readonly expiresAtMs: number;
  resolve(claimed: boolean): void;
  reject(error: unknown): void;
}

interface Sender {
  /** When its batch was sent. */
  beganAtMs: number;
}

/** How much to remember. */
export interface PostgresReplayStoreOptions {
  /**
   * How many pairs the table may hold, live ones and those not yet purged; more are refused with `overloaded`. Processes that
   * share the table count on their own and may together pass it by a few percent. Left out: no limit.
   */
  readonly maxRows?: number;
  /** Says what has expired, together with the clock of the database: nothing is removed before it has by both. */
  readonly clock?: Clock;
}

/** The {@link ReplayStore} on PostgreSQL, in a logged table, for all processes on one database. */
export interface PostgresReplayStore extends ReplayStore {
  /** @throws UnavailableError seam `replay_store`; `overloaded` when the table is full */
  claim(keyId: string, nonce: string, createdSeconds: number, expiresAtMs: number): Promise<boolean>;
  /**
   * Removes the pairs that have expired, in batches, and answers how many. Run it every minute or so, in one process or in all.
   * What was removed can never be claimed again: in the same commit the floor rises over it.
   */
  purge(): Promise<number>;
  /**
   * Refuses from now on whatever was created at or before `createdSeconds`. For whoever puts back a backup: the pairs that were
   * claimed after it was made are not known any more.
   */
  raiseFloor(createdSeconds: number): Promise<void>;
}

/**
 * A {@link ReplayStore} in a logged table.
 * @throws UsageError `invalid_option`
 */
export function postgresReplayStore(sql: Sql, options: PostgresReplayStoreOptions = {}): PostgresReplayStore {
  const { maxRows, clock = systemClock } = options;
  if (maxRows !== undefined && (!Number.isInteger(maxRows) || maxRows < 1 || maxRows >= 2 ** 31)) {
    throw new UsageError('invalid_option', 'maxRows must be a positive integer.');
  }
  // How many claims may pass before the table is counted again. Counting costs with the number of rows, so it happens after a
  // tenth of the room that was left, not with each claim.
  let room = 0;
  // Claims under way, which a count may or may not see: taken off the room, so that a burst cannot pass the limit.
  let underWay = 0;
  let counting: Promise<void> | null = null;
  let fullUntilMs = -Infinity;
  const waiting: Claim[] = [];
  let sender: Sender | null = null;
  // With those whose batch is late.
  let senders = 0;
  let late: NodeJS.Timeout | undefined;

  async function count(limit: number): Promise<void> {
    const unseen = underWay;
    const [row] = await callAsRole<{ held: unknown }>(sql, 'kg_jobs', 'SELECT keyguard.count_nonces($1) AS held', [limit]);
    const left = Math.max(0, limit - integer(row!.held) - unseen);
    room = Math.ceil(left / 10);
    if (left === 0) fullUntilMs = clock.nowMs() + RECOUNT_EVERY_MS;
  }

  async function takeRoom(limit: number): Promise<void> {
    while (room === 0) {
      if (clock.nowMs() < fullUntilMs) throw new UnavailableError(SEAM, 'The replay store is full.', { code: 'overloaded' });
      counting ??= count(limit).finally(() => {
        counting = null;
      });
      await counting;
    }
    // In one step: between the two another caller could count the table and see this claim nowhere.
    room -= 1;
    underWay += 1;
  }

  async function claimWithin(limit: number, ...pair: Parameters<ReplayStore['claim']>): Promise<boolean> {
    await takeRoom(limit);
    try {
      return await claim(...pair);
    } finally {
      underWay -= 1;
    }
  }

  async function claimAll(claims: readonly Claim[]): Promise<void> {
    // In one order everywhere: batches of two processes that insert the same pairs the other way round would wait for each other.
    const batch = claims.toSorted((a, b) => order(a.keyId, b.keyId) || order(a.nonce, b.nonce));
    try {
      const [row] = await callAsRole<{ claimed: unknown }>(sql, 'kg_verifier', 'SELECT keyguard.claim_nonces($1, $2, $3, $4) AS claimed', [
        textArray(batch.map(({ keyId }) => keyId)),
        textArray(batch.map(({ nonce }) => nonce)),
        integerArray(batch.map(({ createdSeconds }) => createdSeconds)),
        integerArray(batch.map(({ expiresAtMs }) => expiresAtMs)),
      ]);
      const answers = row?.claimed as readonly unknown[];
      if (!Array.isArray(answers) || answers.length !== batch.length) throw new Error('not an answer for each pair');
      batch.forEach(({ resolve, reject }, i) => {
        const claimed: unknown = answers[i];
        if (typeof claimed === 'boolean') resolve(claimed);
        // The floor is not there, and nobody knows what was forgotten.
        else reject(new UnavailableError(SEAM, 'The replay store has lost its floor.'));
      });
    } catch (error) {
      for (const { reject } of batch) reject(error);
    }
  }

  /** Sends what waits, one batch after the other, until nothing does or another sender has taken over. */
  async function send(): Promise<void> {
    const own: Sender = { beganAtMs: performance.now() };
    sender = own;
    senders += 1;
    for (;;) {
      // One turn of the event loop: whoever is awake already comes into this batch.
      await setImmediate();
      own.beganAtMs = performance.now();
      const batch = waiting.splice(0, MAX_BATCH);
      if (batch.length > 0) await claimAll(batch);
      if (sender !== own || waiting.length === 0) break;
    }
    senders -= 1;
    if (sender === own) sender = null;
  }

  /** Whoever waits behind a batch that is late gets another sender. */
  function watchLate(): void {
    late ??= setTimeout(() => {
      late = undefined;
      if (waiting.length === 0) return;
      if (sender === null || (senders < MAX_SENDERS && performance.now() - sender.beganAtMs >= LATE_MS)) void send();
      watchLate();
    }, LATE_MS);
  }

  function claim(keyId: string, nonce: string, createdSeconds: number, expiresAtMs: number): Promise<boolean> {
    return new Promise((resolve, reject) => {
      const one: Claim = { keyId, nonce, createdSeconds, expiresAtMs, resolve, reject };
      // What the database may refuse must not cost the others theirs, and a transaction that is handed in has no others.
      if (!isClient(sql) || !isOrdinary(one)) {
        void claimAll([one]);
        return;
      }
      waiting.push(one);
      if (sender === null) void send();
      else watchLate();
    });
  }

  async function purge(): Promise<number> {
    const nowMs = clock.nowMs();
    let total = 0;
    for (;;) {
      const [row] = await callAsRole<{ removed: unknown }>(sql, 'kg_jobs', 'SELECT keyguard.purge_nonces($1, $2) AS removed', [
        nowMs,
        PURGE_BATCH,
      ]);
      const removed = integer(row!.removed);
      total += removed;
      if (removed < PURGE_BATCH) return total;
    }
  }

  async function raiseFloor(createdSeconds: number): Promise<void> {
    if (!Number.isSafeInteger(createdSeconds)) throw new UsageError('invalid_option', 'createdSeconds must be Unix seconds.');
    await asRole(sql, 'kg_jobs', (tx) =>
      tx.query('UPDATE keyguard.nonce_floor SET floor_seconds = $1 WHERE floor_seconds < $1', [createdSeconds]),
    );
  }

  return {
    claim: (...pair): Promise<boolean> =>
      guarded(SEAM, () => (maxRows === undefined ? claim(...pair) : claimWithin(maxRows, ...pair))),
    purge: (): Promise<number> => guarded(SEAM, purge),
    raiseFloor: (createdSeconds): Promise<void> => guarded(SEAM, () => raiseFloor(createdSeconds)),
  };
}

const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

function isOrdinary({ keyId, nonce, createdSeconds, expiresAtMs }: Claim): boolean {
  const areTexts = [keyId, nonce].every((text) => typeof text === 'string' && text.length <= MAX_CHARACTERS && !text.includes('\0'));
  return areTexts && Number.isSafeInteger(createdSeconds) && Number.isSafeInteger(expiresAtMs);
}
