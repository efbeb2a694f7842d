/**
 * The key store of a browser: a key pair in IndexedDB whose private half no script can export, not even this one. It makes
 * keys, finds them again and forgets them; it never falls back to a key that could be read, and keeps nothing in clear text.
 *
 * What it cannot do: a script that runs in the page can still *use* the key while the page lives. And a browser may clear the
 * storage of a site that is not visited for long; `navigator.storage.persist()` asks it not to. A key that is gone is gone:
 * the device enrolls again.
 *
 * @see docs/spec/request-signing.md
 */
import { hasCode, UsageError } from '@keyguard/core/errors';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import type { KeyStore, SigningKey } from '@keyguard/core/seams';
import { createStore, del, get, update, type UseStore } from 'idb-keyval';

const OBJECT_STORE = 'keys';
const DEADLINE_MS = 10_000;

const REASONS: Readonly<Record<string, string>> = {
  SecurityError: 'The browser keeps no data for this page: site data is blocked, or the frame is sandboxed.',
  QuotaExceededError: 'There is no room left for the data of this site.',
  TimeoutError: 'The key database does not answer: close other tabs of this site, then reload.',
  DataCloneError: 'This browser cannot keep a non-extractable key in IndexedDB.',
};

export interface IndexedDbKeyStoreOptions {
  /** The IndexedDB database, for this store alone. Default `keyguard`. */
  readonly databaseName?: string;
  /** The WebCrypto of the browser; keys of any other implementation cannot be kept here. */
  readonly crypto?: Crypto;
}

/**
 * A {@link KeyStore} in which every tab, frame and worker of one origin finds the same key, across reloads and restarts. The
 * private key is a non-extractable `CryptoKey` from the moment it is made. May be constructed anywhere, also where there is
 * no IndexedDB; only its verbs need it.
 *
 * All verbs throw `UsageError` `key_store_unusable` where the browser keeps no keys (blocked or full storage, no secure
 * context, a database that does not answer in ten seconds), and for a stored value that is not such a key.
 */
export function indexedDbKeyStore(options: IndexedDbKeyStoreOptions = {}): KeyStore {
  const { databaseName = 'keyguard', crypto = globalThis.crypto } = options;
  let database = connect(databaseName);

  async function transact<T>(work: (database: UseStore) => Promise<T>): Promise<T> {
    try {
      return await inTime(work(database));
    } catch (error) {
      if (hasCode(error, 'key_store_unusable')) throw error;
      // The connection may have been closed under us (another tab deletes the database, the browser clears it).
      database = connect(databaseName);
      return inTime(work(database));
    }
  }

  async function read(pair: CryptoKeyPair): Promise<SigningKey> {
    if (pair.privateKey.extractable) throw unusable('The stored key could be exported, so it is not used: delete it.');
    return signingKey(pair, crypto);
  }

  return {
    getOrCreate: (name: string): Promise<SigningKey> =>
      usable(async () => {
        if (!crypto?.subtle) throw unusable('Keys need a secure context: serve the page over HTTPS, or from localhost.');
        let pair = await transact((keys) => get<CryptoKeyPair>(name, keys));
        if (pair === undefined) {
          // Made first: an IndexedDB transaction does not stay open while WebCrypto works.
          const fresh = await generateKeyPair(crypto);
          await transact((keys) => update<CryptoKeyPair>(name, (kept) => (pair = kept ?? fresh), keys));
        }
        return read(pair!);
      }),
    get: (name: string): Promise<SigningKey | null> =>
      usable(async () => {
        const pair = await transact((keys) => get<CryptoKeyPair>(name, keys));
        return pair === undefined ? null : read(pair);
      }),
    delete: (name: string): Promise<void> => usable(() => transact((keys) => del(name, keys))),
  };
}

function connect(databaseName: string): UseStore {
  const use = createStore(databaseName, OBJECT_STORE);
  // The transaction that idb-keyval opens gives us the connection; ours says that a commit must have reached the disk.
  return (mode, callback) =>
    use('readonly', ({ transaction: { db } }) => {
      db.onversionchange = () => db.close();
      return callback(db.transaction(OBJECT_STORE, mode, { durability: 'strict' }).objectStore(OBJECT_STORE));
    });
}

// A database that someone else holds open while it is being deleted keeps every request waiting, without an event.
async function inTime<T>(work: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const deadline = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(unusable(REASONS.TimeoutError!)), DEADLINE_MS);
  });
  try {
    return await Promise.race([work, deadline]);
  } finally {
    clearTimeout(timer);
  }
}

async function usable<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (hasCode(cause, 'key_store_unusable')) throw cause;
    const { name } = cause as Error;
    throw unusable(REASONS[name] ?? `The key database of this page cannot be used (${name}).`, cause);
  }
}

function unusable(message: string, cause?: unknown): UsageError {
  return new UsageError('key_store_unusable', message, { cause });
}
