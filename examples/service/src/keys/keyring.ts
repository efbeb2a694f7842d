/**
 * The key encryption keys of this deployment, as one key provider: it wraps under the primary key, and unwraps under whichever key
 * a row names. Other processes add keys and change which one is primary: `refresh` learns of it, and so does a row under a key that
 * is not known here yet.
 */
import type { Bytes, KeyProvider, KeyRecord, KeyRecords, WrappedKey } from '@keyguard/core/seams';
import { equalBytes } from '@keyguard/core/bytes';
import { UnavailableError } from '@keyguard/core/errors';
import { aesKeyProvider } from '@keyguard/core/vault';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import { rootChanged, type DemandRoot } from './root-unchanged.ts';

export const KEK_PURPOSE = 'kek';

// A reader may have a row in hand from before it was rewrapped: a disabled key is still opened with for as long, where it is held.
const KEPT_AFTER_DISABLED_MS = 60_000;
// A row that names a key which is nowhere must not make every reading of it a reading of all keys.
const MISS_MS = 250;

/** What a wrap is counted under. */
export type Wraps = ReadonlyMap<string, number>;

/** MUST NOT be asked inside a transaction: a key that is not known is read from the database. */
export interface Keyring extends KeyProvider {
  /** Under which key it wraps. */
  primaryId(): string;
  /** The keys that it opens with. */
  ids(): readonly string[];
  /** The key `id` alone. @throws UnavailableError for one that is not held */
  one(id: string): KeyProvider;
  /** Reads which keys there are. Afterwards it holds every key that was in use when it was called. */
  refresh(): Promise<void>;
  /** How often it has wrapped since this was asked last, by key. */
  takeWraps(): Wraps;
  /** Takes back what could not be written down. */
  returnWraps(wraps: Wraps): void;
  /** A new key, wrapped by the root and kept nowhere yet. */
  makeRecord(): Promise<KeyRecord>;
  /** To be called in the transaction that keeps it. */
  readonly demandRootIn: DemandRoot;
}

export interface KeyringOptions {
  readonly records: KeyRecords;
  /** Unwraps a record by the root, for the caller to wipe. */
  readonly openRecord: (record: KeyRecord) => Promise<Bytes>;
  readonly makeRecord: () => Promise<KeyRecord>;
  readonly demandRootIn: DemandRoot;
}

interface Held {
  readonly provider: KeyProvider;
  /** As the root had wrapped it when it was opened: another root has wrapped it otherwise. */
  readonly wrapped: Bytes;
  /** When it was first found to be disabled. */
  disabledAtMs: number | null;
}

const USABLE: ReadonlySet<string> = new Set(['pre-active', 'primary', 'decrypt-only']);

/** The keyring of what `records` has now. */
export async function openKeyring({ records, openRecord, makeRecord, demandRootIn }: KeyringOptions): Promise<Keyring> {
  const primitives = nodeVaultPrimitives();
  const held = new Map<string, Held>();
  let wraps = new Map<string, number>();
  let primary: string | null = null;
  let refreshing: Promise<void> | null = null;
  let refreshedAtMs = Number.NEGATIVE_INFINITY;

  async function hold(record: KeyRecord): Promise<void> {
    const key = await openRecord(record);
    try {
      held.set(record.id, { provider: await aesKeyProvider({ kekId: record.id, key, primitives }), wrapped: record.wrapped, disabledAtMs: null });
    } finally {
      key.fill(0);
    }
  }

  async function read(): Promise<void> {
    const startedAtMs = performance.now();
    const kept = (await records.list()).filter(({ purpose }) => purpose === KEK_PURPOSE);
    for (const record of kept) {
      if (USABLE.has(record.state) && !equalBytes(held.get(record.id)?.wrapped ?? record.wrapped, record.wrapped)) throw rootChanged();
      if (USABLE.has(record.state) && !held.has(record.id)) await hold(record);
    }
    const usable = new Set(kept.filter(({ state }) => USABLE.has(state)).map(({ id }) => id));
    for (const [id, one] of held) {
      if (usable.has(id)) continue;
      one.disabledAtMs ??= startedAtMs;
      if (startedAtMs - one.disabledAtMs > KEPT_AFTER_DISABLED_MS) held.delete(id);
    }
    // Last: whoever asks in the meantime wraps under a key that is still good.
    primary = kept.find(({ state }) => state === 'primary')?.id ?? null;
    refreshedAtMs = startedAtMs;
  }

  async function refresh(): Promise<void> {
    // Whoever asks while a reading is under way means one that begins now.
    if (refreshing !== null) await refreshing.catch(() => {});
    refreshing ??= read().finally(() => {
      refreshing = null;
    });
    return refreshing;
  }

  function one(id: string): KeyProvider {
    const found = held.get(id);
    if (found === undefined) throw new UnavailableError('kek', `The key ${id} is not in use.`);
    return {
      async wrap(dek, context) {
        wraps.set(id, (wraps.get(id) ?? 0) + 1);
        return found.provider.wrap(dek, context);
      },
      unwrap: (key, context) => found.provider.unwrap(key, context),
    };
  }

  function primaryId(): string {
    if (primary === null) throw new UnavailableError('kek', 'There is no key under which values are sealed.');
    return primary;
  }

  await read();

  return {
    primaryId,
    ids: () => [...held].filter(([, { disabledAtMs }]) => disabledAtMs === null).map(([id]) => id),
    one,
    refresh,
    async wrap(dek: Bytes, context: Bytes): Promise<WrappedKey> {
      return one(primaryId()).wrap(dek, context);
    },
    async unwrap(key: WrappedKey, context: Bytes): Promise<Bytes> {
      if (!held.has(key.kekId) && performance.now() - refreshedAtMs > MISS_MS) await refresh();
      // A key that is nowhere is a row that somebody changed: every key refuses it in the one way that all refusals have.
      return (held.get(key.kekId) ?? held.get(primaryId()))!.provider.unwrap(key, context);
    },
    takeWraps() {
      const taken = wraps;
      wraps = new Map();
      return taken;
    },
    returnWraps(taken) {
      for (const [id, count] of taken) wraps.set(id, (wraps.get(id) ?? 0) + count);
    },
    makeRecord,
    demandRootIn,
  };
}
