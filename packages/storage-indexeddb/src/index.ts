/**
 * The key store of a browser: a key pair in IndexedDB whose private half no script can export, not even this one. It makes
 * keys, finds them again and forgets them; it never falls back to a key that could be read, and keeps nothing in clear text.
 *
 * What it cannot do: a script that runs in the page can still *use* the key while the page lives. And a browser may clear the
 * storage of a site that is not visited for long; {@link requestPersistence} asks it not to. A key that is gone is gone: the
 * device enrolls again.
 *
 * @see docs/spec/request-signing.md
 */
import { hasCode, UsageError } from '@keyguard/core/errors';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import type { KeyStore, SigningKey } from '@keyguard/core/seams';
import { createStore, del, get, type UseStore } from 'idb-keyval';

export { requestPersistence, type Persistence } from './persistence.ts';

const OBJECT_STORE = 'keys';
const DEADLINE_MS = 10_000;

const REASONS: Readonly<Record<string, string>> = {
  SecurityError: 'The browser keeps no data for this page: site data is blocked, or the frame is sandboxed.',
  QuotaExceededError: 'There is no room left for the data of this site.',
  TimeoutError: 'The key database does not answer: close other tabs of this site, then reload.',
  DataCloneError: 'This browser cannot keep a non-extractable key in IndexedDB.',
  InvalidStateError: 'The browser lets this page keep no keys: some do so in private windows. Open it in an ordinary one.',
  UnknownError: 'The browser cannot read its own storage, or the disk is full: free some room and restart it, or else clear the data of this site and enroll again.',
  VersionError: 'The key database was made by something else: give indexedDbKeyStore a databaseName of its own.',
  NotFoundError: 'The key database was made by something else: give indexedDbKeyStore a databaseName of its own.',
  AbortError: 'The browser gave up writing the key, as when the disk is full: free some room, then reload.',
};

/** What is kept under a name, in one record: so no transaction ever sees, or leaves, half of a change. */
interface KeyRecord extends CryptoKeyPair {
  /** The key that is to replace this one. Its id stands beside it, because a transaction cannot wait for a hash. */
  readonly pending?: PendingKey | undefined;
}

interface PendingKey extends CryptoKeyPair {
  readonly keyId: string;
}

/** Where in the browser the keys are kept. */
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

  async function transact<T>(work: (database: UseStore) => Promise<T>, isRepeatable = true): Promise<T> {
    let hasBegun = false;
    const watched: UseStore = (mode, callback) =>
      database(mode, (records) => {
        hasBegun = true;
        return callback(records);
      });
    try {
      return await inTime(work(watched));
    } catch (error) {
      // What compares and sets may have been kept, whatever the browser says; a second time it would find its own work and deny it.
      if ((hasBegun && !isRepeatable) || hasCode(error, 'key_store_unusable')) throw error;
      // The connection may have been closed under us (another tab deletes the database, the browser clears it).
      database = connect(databaseName);
      return inTime(work(database));
    }
  }

  async function read(pair: CryptoKeyPair): Promise<SigningKey> {
    if (pair.privateKey.extractable) throw unusable('The stored key could be exported, so it is not used: delete it.');
    return signingKey(pair, crypto);
  }

  async function readPending({ keyId, privateKey, publicKey }: PendingKey): Promise<SigningKey> {
    const key = await read({ privateKey, publicKey });
    if (key.keyId !== keyId) throw unusable('The stored pending key is not the one that it is said to be: delete the key of this name.');
    return key;
  }

  async function makePair(): Promise<CryptoKeyPair> {
    if (!crypto?.subtle) throw unusable('Keys need a secure context: serve the page over HTTPS, or from localhost.');
    return generateKeyPair(crypto);
  }

  const find = (name: string): Promise<KeyRecord | undefined> => transact((keys) => get<KeyRecord>(name, keys));

  /** One transaction: hands `decide` the record and keeps what it answers; where that is `undefined`, nothing changes. */
  const change = (name: string, decide: (record: KeyRecord | undefined) => KeyRecord | undefined, isRepeatable = true): Promise<void> =>
    transact((keys) => keys('readwrite', (records) => changeIn(records, name, decide)), isRepeatable);

  /** Compares and sets in one transaction: puts what `next` makes of a record whose pending key has this id. */
  async function settle(name: string, pendingKeyId: string, next: (record: KeyRecord, pending: PendingKey) => CryptoKeyPair): Promise<boolean> {
    let settled = false;
    await change(
      name,
      (record) => {
        const pending = record?.pending;
        settled = pending?.keyId === pendingKeyId;
        if (!settled) return undefined;
        const { privateKey, publicKey } = next(record!, pending!);
        return { privateKey, publicKey };
      },
      false,
    );
    return settled;
  }

  return {
    getOrCreate: (name: string): Promise<SigningKey> =>
      usable(async () => {
        let pair: CryptoKeyPair | undefined = await find(name);
        if (pair === undefined) {
          // Made first: an IndexedDB transaction does not stay open while WebCrypto works.
          const fresh = await makePair();
          await change(name, (kept) => {
            pair = kept ?? fresh;
            return kept === undefined ? fresh : undefined;
          });
        }
        return read(pair!);
      }),
    get: (name: string): Promise<SigningKey | null> =>
      usable(async () => {
        const record = await find(name);
        return record === undefined ? null : read(record);
      }),
    getPending: (name: string): Promise<SigningKey | null> =>
      usable(async () => {
        const pending = (await find(name))?.pending;
        return pending === undefined ? null : readPending(pending);
      }),
    getOrCreatePending: (name: string): Promise<SigningKey> =>
      usable(async () => {
        let record = await find(name);
        if (record !== undefined && record.pending === undefined) {
          // A key that cannot be used is no key to be replaced.
          await read(record);
          const fresh = await makePair();
          const pending: PendingKey = { keyId: (await signingKey(fresh, crypto)).keyId, ...fresh };
          await change(name, (kept) => {
            record = kept && { ...kept, pending: kept.pending ?? pending };
            return kept?.pending ? undefined : record;
          });
        }
        if (record === undefined) throw new UsageError('not_enrolled', 'There is no key of that name which another could replace.');
        return readPending(record.pending!);
      }),
    promote: (name: string, pendingKeyId: string): Promise<boolean> =>
      usable(async () => {
        const pending = (await find(name))?.pending;
        // Read first: what cannot be used must not take the place of a key that works.
        if (pending?.keyId === pendingKeyId) await readPending(pending);
        return settle(name, pendingKeyId, (_record, kept) => kept);
      }),
    discard: (name: string, pendingKeyId: string): Promise<boolean> => usable(() => settle(name, pendingKeyId, (record) => record)),
    delete: (name: string): Promise<void> => usable(() => transact((keys) => del(name, keys))),
  };
}

function changeIn(records: IDBObjectStore, name: string, decide: (record: KeyRecord | undefined) => KeyRecord | undefined): Promise<void> {
  const { transaction } = records;
  return new Promise((resolve, reject) => {
    let failure: unknown;
    transaction.addEventListener('complete', () => resolve());
    // Every error ends in this.
    transaction.addEventListener('abort', () => reject(failure ?? transaction.error));
    const reading: IDBRequest<KeyRecord | undefined> = records.get(name);
    reading.addEventListener('success', () => {
      try {
        const next = decide(reading.result);
        if (next !== undefined) records.put(next, name);
      } catch (error) {
        failure = error;
        transaction.abort();
      }
    });
  });
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
    if (hasCode(cause, 'key_store_unusable') || hasCode(cause, 'not_enrolled')) throw cause;
    const { name } = cause as Error;
    throw unusable(REASONS[name] ?? `The key database of this page cannot be used (${name}).`, cause);
  }
}

function unusable(message: string, cause?: unknown): UsageError {
  return new UsageError('key_store_unusable', message, { cause });
}
