/**
 * Nonces in Redis: a sorted set, to which a script adds a pair once it has made sure that the server still knows all that was ever
 * claimed on it. Where it may not, whatever was created until then is refused.
 */
import { isUnavailable, UnavailableError, UsageError } from '@keyguard/core/errors';
import type { Clock, ReplayStore } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { createHash } from 'node:crypto';
import { CLAIM_SCRIPT, MAX_FUTURE_SECONDS, MAX_SKEW_MS } from './claim-script.ts';
import type { RedisClient } from './client.ts';

const SEAM = 'replay_store';
const SCRIPT_SHA1 = createHash('sha1').update(CLAIM_SCRIPT).digest('hex');
const RECHECK_MS = 1000;
// More than a claim adds, so that the set shrinks to what is alive; and little enough that no claim waits for it.
const FORGOTTEN_BY_CLAIM = 4;
const FORGOTTEN_BY_CHECK = 1000;

/** Which key to use, and how much it may hold. */
export interface RedisReplayStoreOptions {
  /** The key that holds all nonces. Stores that share it share their nonces. Default `keyguard:nonces`. */
  readonly key?: string;
  /** Within how many milliseconds each verb answers or throws: 1 to 60,000, default 200. */
  readonly timeoutMs?: number;
  /**
   * How long a master that was cut off may go on accepting beside its successor: two seconds more than its `min-replicas-max-lag`,
   * with `min-replicas-to-write 1`. After a failover nothing passes for so much longer. MUST be the same in all processes. Default 0:
   * one server, or a failover that ends the old master first.
   */
  readonly isolatedMasterMs?: number;
  /** Of this process; MUST stay within a second of the clock of Redis. */
  readonly clock?: Clock;
}

/** What the store knows of itself. */
export interface RedisReplayStoreState {
  /** From when on requests that are created then pass: in the past, but for some seconds after a loss. */
  readonly readyAtMs: number;
}

/** The {@link ReplayStore} on Redis, for all processes that share it. */
export interface RedisReplayStore extends ReplayStore {
  /**
   * Refuses with `retryAfterMs` while the store cannot know whether the request is new: for some five seconds after Redis was empty,
   * restarted or failed over.
   * @throws UnavailableError seam `replay_store`; `overloaded` when Redis is full. Where the connection broke or the time ran out the
   *   pair may have been claimed all the same: the client MUST sign anew.
   */
  claim(keyId: string, nonce: string, createdSeconds: number, expiresAtMs: number): Promise<boolean>;
  readonly maxFutureSeconds: number;
  /**
   * Resolves when Redis answers and is fit to keep nonces. For the start of a service, and for its readiness; claims look by
   * themselves, at least once a second.
   * @throws UnavailableError seam `replay_store`, saying what the operator must change
   */
  check(): Promise<RedisReplayStoreState>;
}

interface Reply {
  readonly verdict: unknown;
  readonly serverMs: number;
  readonly detail: unknown;
}

/**
 * A {@link ReplayStore} on one Redis or Valkey master.
 * @throws UsageError `invalid_option`
 */
export function redisReplayStore(client: RedisClient, options: RedisReplayStoreOptions = {}): RedisReplayStore {
  const { key = 'keyguard:nonces', timeoutMs = 200, isolatedMasterMs = 0, clock = systemClock } = options;
  if (typeof client?.send !== 'function') throw new UsageError('invalid_option', 'client must be a RedisClient.');
  if (!isIntegerWithin(timeoutMs, 1, 60_000)) throw new UsageError('invalid_option', 'timeoutMs must be an integer from 1 to 60,000.');
  if (!isIntegerWithin(isolatedMasterMs, 0, 3_600_000)) {
    throw new UsageError('invalid_option', 'isolatedMasterMs must be an integer from 0 to 3,600,000.');
  }
  // By a clock that never steps.
  let checkedAtMs = -Infinity;

  async function run(pair: readonly [name: string, createdSeconds: number, expiresAtMs: number] | null): Promise<Reply> {
    const startedAtMs = performance.now();
    const nowMs = clock.nowMs();
    // The floor after a loss is laid above what could have been accepted before it: so nothing beyond may be.
    if (pair !== null && pair[1] > Math.floor(nowMs / 1000) + MAX_FUTURE_SECONDS) {
      throw new UnavailableError(SEAM, `Nothing is claimed that is dated more than ${MAX_FUTURE_SECONDS} s ahead.`);
    }
    const looksAtPolicy = pair === null || startedAtMs - checkedAtMs >= RECHECK_MS;
    const most = pair === null ? FORGOTTEN_BY_CHECK : FORGOTTEN_BY_CLAIM;
    const rest = ['1', key, nowMs, looksAtPolicy ? 1 : 0, isolatedMasterMs, most, ...(pair ?? [])].map(String);
    const reply = await within(timeoutMs, evaluate(client, rest));
    const answer = readReply(reply, nowMs);
    if (looksAtPolicy) checkedAtMs = startedAtMs;
    return answer;
  }

  return {
    maxFutureSeconds: MAX_FUTURE_SECONDS,
    async claim(keyId, nonce, createdSeconds, expiresAtMs): Promise<boolean> {
      if (!Number.isSafeInteger(createdSeconds) || !Number.isSafeInteger(expiresAtMs)) {
        throw new UsageError('invalid_option', 'createdSeconds and expiresAtMs must be integers.');
      }
      return guarded(async () => {
        const { verdict, serverMs, detail } = await run([`${keyId.length}.${keyId}${nonce}`, createdSeconds, expiresAtMs]);
        if (verdict === 'claimed') return true;
        if (verdict === 'used' || verdict === 'expired') return false;
        if (verdict !== 'floor') throw notUnderstood();
        const readyAtMs = readyAt(detail);
        if (serverMs >= readyAtMs) return false;
        throw new UnavailableError(SEAM, 'Redis may have forgotten what was used until now.', { retryAfterMs: readyAtMs - serverMs });
      });
    },
    check: (): Promise<RedisReplayStoreState> =>
      guarded(async () => {
        const { verdict, detail } = await run(null);
        if (verdict !== 'checked') throw notUnderstood();
        return { readyAtMs: readyAt(detail) };
      }),
  };
}

async function evaluate(client: RedisClient, rest: readonly string[]): Promise<unknown> {
  try {
    return await client.send(['EVALSHA', SCRIPT_SHA1, ...rest]);
  } catch (error) {
    // Nothing was run: this server has never seen the script, or was told to forget it.
    if (!(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error;
  }
  return client.send(['EVAL', CLAIM_SCRIPT, ...rest]);
}

function within<T>(timeoutMs: number, answer: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const expire = (): void => reject(new UnavailableError(SEAM, `Redis did not answer within ${timeoutMs} ms.`));
    // A turn of the event loop later: after a long turn the answer may have arrived and not have been read yet.
    const timer = setTimeout(() => setImmediate(expire), timeoutMs);
    answer.then(
      (value) => {
        clearTimeout(timer);
        resolve(value);
      },
      (error: unknown) => {
        clearTimeout(timer);
        reject(error as Error);
      },
    );
  });
}

/** @throws UnavailableError for a server that is not fit to keep nonces, and for what is no reply of the script */
function readReply(reply: unknown, nowMs: number): Reply {
  const [verdict, serverMs, detail] = Array.isArray(reply) ? (reply as unknown[]) : [];
  if (typeof serverMs !== 'number' || !Number.isSafeInteger(serverMs)) throw notUnderstood();
  if (verdict === 'replica') throw new UnavailableError(SEAM, 'This Redis is a replica: nonces are claimed on the master.');
  if (verdict === 'nameless') throw new UnavailableError(SEAM, 'This Redis does not tell its replication id, so its losses would go unnoticed.');
  if (verdict === 'skewed') {
    const aheadMs = serverMs - nowMs;
    const how = `${Math.abs(aheadMs)} ms ${aheadMs > 0 ? 'ahead of' : 'behind'}`;
    throw new UnavailableError(SEAM, `The clock of Redis is ${how} this process's; they must agree to ${MAX_SKEW_MS} ms.`);
  }
  if (verdict === 'evicting') {
    throw new UnavailableError(SEAM, `The maxmemory-policy of Redis must be noeviction: it is ${String(detail)}, so nonces could be evicted.`);
  }
  return { verdict, serverMs, detail };
}

function readyAt(floorSeconds: unknown): number {
  if (typeof floorSeconds !== 'number' || !Number.isSafeInteger(floorSeconds)) throw notUnderstood();
  return (floorSeconds + 1) * 1000;
}

function notUnderstood(): UnavailableError {
  return new UnavailableError(SEAM, 'Redis gave an answer that is none.');
}

async function guarded<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (isUnavailable(cause)) throw cause;
    if (cause instanceof Error && /\bOOM\b/.test(cause.message)) {
      throw new UnavailableError(SEAM, 'Redis is full.', { code: 'overloaded', cause });
    }
    throw new UnavailableError(SEAM, 'Redis could not be asked.', { cause });
  }
}

function isIntegerWithin(value: number, min: number, max: number): boolean {
  return Number.isInteger(value) && value >= min && value <= max;
}
