/**
 * Seams that live in the memory of one process: for tests, demonstrations and the first ten minutes. Everything is forgotten
 * when the process ends, and they behave as the durable ones do as long as it lives. Reached by its subpath only.
 */
import { chainAfter, chainStart, continueChain, type ChainKeys } from './audit.ts';
import { UnavailableError, UsageError } from './errors.ts';
import type {
  AuditEntry,
  AuditRecord,
  AuditSink,
  Bytes,
  Clock,
  ReplayStore,
  Subtree,
  SubtreePlace,
  SubtreeReader,
} from './seams.ts';
import { systemClock } from './system.ts';

export * from './memory-devices.ts';
export { memoryKeyStore } from './memory-key-store.ts';

/** How much to remember, and from when on. */
export interface MemoryReplayStoreOptions {
  readonly clock?: Clock;
  /** How many live pairs it holds before it refuses more with `overloaded`. Default 1,000,000, about 300 MB. */
  readonly capacity?: number;
  /** How far ahead a request may be dated. Default 2 s: after a restart nothing is accepted for as long. */
  readonly maxFutureSeconds?: number;
  /**
   * The time up to which an earlier process may have accepted requests; those created until then (and the future allowance)
   * are refused. Default: now. Earlier only where no earlier process can have known any key that this one will know.
   */
  readonly startedAtMs?: number;
}

/** A {@link ReplayStore} for exactly one process. For the first three seconds it answers 503: it cannot know what was used. */
export function memoryReplayStore(options: MemoryReplayStoreOptions = {}): ReplayStore {
  const { clock = systemClock, capacity = 1_000_000, maxFutureSeconds = 2 } = options;
  const live = new Set<string>();
  // Pairs by the second in which they expire, so that forgetting costs what was remembered and no more.
  const byExpiry = new Map<number, { pairs: string[]; newestSeconds: number }>();
  const startedAtMs = options.startedAtMs ?? clock.nowMs();
  const startFloorSeconds = Math.floor(startedAtMs / 1000) + maxFutureSeconds;
  let purgeFloorSeconds = 0;
  let purgedSeconds = 0;

  function purge(nowMs: number): void {
    const nowSeconds = Math.floor(nowMs / 1000);
    if (nowSeconds === purgedSeconds) return;
    // Also when the clock has stepped back: it may have been wrong before, and what is purged stays refused by the floor.
    purgedSeconds = nowSeconds;
    for (const [second, { pairs, newestSeconds }] of byExpiry) {
      if (second >= nowSeconds) continue;
      for (const pair of pairs) live.delete(pair);
      byExpiry.delete(second);
      // What was forgotten can never be accepted again, even if the clock steps back.
      purgeFloorSeconds = Math.max(purgeFloorSeconds, newestSeconds);
    }
  }

  return {
    maxFutureSeconds,
    claim(keyId: string, nonce: string, createdSeconds: number, expiresAtMs: number): boolean {
      const nowMs = clock.nowMs();
      purge(nowMs);
      if (createdSeconds <= purgeFloorSeconds) return false;
      if (createdSeconds <= startFloorSeconds) {
        const readyAtMs = (startFloorSeconds + 1) * 1000;
        if (nowMs >= readyAtMs) return false;
        throw new UnavailableError('replay_store', 'The replay store has just started and does not know yet what was used before.', {
          retryAfterMs: readyAtMs - nowMs,
        });
      }
      const pair = `${keyId.length}.${keyId}${nonce}`;
      if (live.has(pair)) return false;
      if (live.size >= capacity) {
        throw new UnavailableError('replay_store', 'The replay store is full.', { code: 'overloaded' });
      }
      live.add(pair);
      const second = Math.ceil(expiresAtMs / 1000);
      const expiring = byExpiry.get(second);
      if (expiring === undefined) byExpiry.set(second, { pairs: [pair], newestSeconds: createdSeconds });
      else {
        expiring.pairs.push(pair);
        expiring.newestSeconds = Math.max(expiring.newestSeconds, createdSeconds);
      }
      return true;
    },
  };
}

/** Which chain to keep, and under which keys. */
export interface MemoryAuditSinkOptions extends ChainKeys {
  /** Names the chain. */
  readonly origin: string;
  readonly clock?: Clock;
  /** What the chain consists of already, for instance under an earlier key. Trusted, and copied. */
  readonly records?: readonly AuditRecord[];
}

/** A chain that lives as long as the process. It has no transactions, so `appendIn` always throws. */
export function memoryAuditSink(options: MemoryAuditSinkOptions): AuditSink {
  const { clock = systemClock } = options;
  const records = [...(options.records ?? [])];
  let last: Promise<unknown> = Promise.resolve();
  async function appendNow(entries: readonly AuditEntry[]): Promise<readonly AuditRecord[]> {
    const newest = records.at(-1);
    const head = newest === undefined ? chainStart() : chainAfter(newest);
    const sealed = await continueChain({ ...options, head, entries, nowMs: clock.nowMs() });
    records.push(...sealed);
    return sealed.slice(sealed.length - entries.length);
  }
  return {
    append(entries: readonly AuditEntry[]): Promise<readonly AuditRecord[]> {
      // One after the other: the head must not move while a batch is sealed.
      const appended = last.then(() => appendNow(entries));
      last = appended.catch(() => {});
      return appended;
    },
    async appendIn(): Promise<readonly AuditRecord[]> {
      throw new UsageError('invalid_option', 'The memory sink has no transactions: use append().');
    },
    async head(): Promise<AuditRecord | null> {
      return records.at(-1) ?? null;
    },
    async *read(fromSeq: number): AsyncIterable<AuditRecord> {
      for (let seq = fromSeq; seq < records.length; seq += 1) yield records[seq]!;
    },
  };
}

/** A {@link SubtreeReader} that is told what `appendLeaves` completed, of one tree, in order. */
export interface MemorySubtrees extends SubtreeReader {
  /** Takes what `appendLeaves` completed, in the order in which it was completed. */
  add(completed: readonly Subtree[]): void;
}

/** A {@link SubtreeReader} that dies with the process. Throws for a subtree that was not added. */
export function memorySubtrees(): MemorySubtrees {
  const levels: Bytes[][] = [];
  return {
    add(completed: readonly Subtree[]): void {
      for (const { level, index, hash } of completed) {
        const hashes = (levels[level] ??= []);
        if (index !== hashes.length) throw new UsageError('invalid_option', 'Subtrees must be added in order, each once.');
        hashes.push(hash);
      }
    },
    read: (places: readonly SubtreePlace[]): readonly Bytes[] =>
      places.map(({ level, index }) => {
        const hash = levels[level]?.[index];
        if (hash === undefined) throw new UnavailableError('subtree_reader', 'The tree is smaller than that.');
        return hash;
      }),
  };
}
