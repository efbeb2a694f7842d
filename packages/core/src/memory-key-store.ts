/** The {@link KeyStore} of one process. Its keys are in no file and die with it. */
import { UsageError } from './errors.ts';
import { generateKeyPair, signingKey } from './keys.ts';
import type { KeyStore, SigningKey } from './seams.ts';

/** What a name has. Promises, so that whoever comes while a key is being made waits for that one. */
interface Entry {
  readonly key: Promise<SigningKey>;
  pending: Promise<SigningKey> | null;
}

/** Keys that die with the process. Racing callers get the same key. */
export function memoryKeyStore(crypto: Crypto = globalThis.crypto): KeyStore {
  const entries = new Map<string, Entry>();
  const make = async (): Promise<SigningKey> => signingKey(await generateKeyPair(crypto), crypto);

  /** Compares and sets: nothing may run between the two, so `set` is called without a pause. */
  async function settle(name: string, pendingKeyId: string, set: (entry: Entry) => void): Promise<boolean> {
    const entry = entries.get(name);
    const pending = entry?.pending;
    if (entry === undefined || (await pending)?.keyId !== pendingKeyId) return false;
    if (entries.get(name) !== entry || entry.pending !== pending) return false;
    set(entry);
    return true;
  }

  return {
    getOrCreate(name: string): Promise<SigningKey> {
      let entry = entries.get(name);
      if (entry === undefined) {
        const made: Entry = { key: make(), pending: null };
        entries.set(name, made);
        // A failure is told, and not kept.
        made.key.catch(() => entries.get(name) === made && entries.delete(name));
        entry = made;
      }
      return entry.key;
    },
    async get(name: string): Promise<SigningKey | null> {
      return (await entries.get(name)?.key) ?? null;
    },
    async getPending(name: string): Promise<SigningKey | null> {
      return (await entries.get(name)?.pending) ?? null;
    },
    async getOrCreatePending(name: string): Promise<SigningKey> {
      const entry = entries.get(name);
      if (entry === undefined) throw new UsageError('not_enrolled', 'There is no key of that name which another could replace.');
      if (entry.pending === null) {
        const made = make();
        entry.pending = made;
        made.catch(() => {
          if (entry.pending === made) entry.pending = null;
        });
      }
      return entry.pending;
    },
    promote: (name: string, pendingKeyId: string): Promise<boolean> =>
      settle(name, pendingKeyId, ({ pending }) => entries.set(name, { key: pending!, pending: null })),
    discard: (name: string, pendingKeyId: string): Promise<boolean> =>
      settle(name, pendingKeyId, (entry) => {
        entry.pending = null;
      }),
    async delete(name: string): Promise<void> {
      entries.delete(name);
    },
  };
}
