/**
 * The key store in IndexedDB keeps the contract of its seam in a real Chromium, also while the database fails (by its prototypes), has
 * no room, or does not answer: then a transaction of another connection is in the way, as one of another tab would be.
 */
import { keyStoreConformance, type Faults } from '@keyguard/conformance';
import type { KeyStore } from '@keyguard/core';
import { indexedDbKeyStore } from '@keyguard/storage-indexeddb';

/** After which the store gives up. */
const DEADLINE_MS = 10_000;
/** After which it does where the database hangs, here: nobody wants to wait for it that long. */
const HURRIED_DEADLINE_MS = 500;

const databases: string[] = [];
function newDatabaseName(): string {
  const name = `conformance-${Date.now()}-${databases.length}`;
  databases.push(name);
  return name;
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

let letGo: (() => void)[] = [];

const { setTimeout: realSetTimeout } = globalThis;
globalThis.setTimeout = ((run: () => void, delayMs?: number) =>
  realSetTimeout(run, delayMs === DEADLINE_MS && letGo.length > 0 ? HURRIED_DEADLINE_MS : delayMs)) as typeof setTimeout;

type Draw = 'goes well' | 'fails before' | 'fails after';
let draw: () => Draw = () => 'goes well';
let isFull = false;

const { put, get, delete: remove } = IDBObjectStore.prototype;
const { addEventListener } = IDBTransaction.prototype;

const failure = (): DOMException => new DOMException('Internal error.', 'UnknownError');

IDBObjectStore.prototype.put = function faulty(value, key) {
  if (isFull) throw new DOMException('There is no room.', 'QuotaExceededError');
  if (draw() === 'fails before') throw failure();
  return put.call(this, value, key);
};
IDBObjectStore.prototype.get = function faulty(key) {
  if (draw() === 'fails before') throw failure();
  return get.call(this, key);
};
IDBObjectStore.prototype.delete = function faulty(key) {
  if (draw() === 'fails before') throw failure();
  return remove.call(this, key);
};
// A change that was kept, and of which the page hears that it was not.
IDBTransaction.prototype.addEventListener = function faulty(this: IDBTransaction, type: string, listener: EventListener) {
  if (type !== 'complete') return addEventListener.call(this, type, listener);
  addEventListener.call(this, 'complete', (event) => {
    if (draw() !== 'fails after') return listener(event);
    Object.defineProperty(this, 'error', { value: failure() });
    this.dispatchEvent(new Event('abort'));
  });
} as typeof addEventListener;

/** A transaction that never ends until it is told to: whatever comes after it waits. */
async function inTheWay(databaseName: string): Promise<() => void> {
  const database = await settled(indexedDB.open(databaseName));
  let isOver = false;
  const records = database.transaction('keys', 'readwrite').objectStore('keys');
  const goOn = (): void => {
    if (isOver) database.close();
    else get.call(records, 'nothing').onsuccess = goOn;
  };
  goOn();
  return () => {
    isOver = true;
  };
}

const faults: Faults = {
  fail(share, random) {
    draw = () => {
      const drawn = random();
      return drawn < share / 2 ? 'fails before' : drawn < share ? 'fails after' : 'goes well';
    };
  },
  async hang() {
    letGo = [await inTheWay(databases.at(-1)!)];
  },
  fill() {
    isFull = true;
  },
  calm() {
    draw = () => 'goes well';
    isFull = false;
    for (const one of letGo.splice(0)) one();
  },
};

async function withoutTheStore(): Promise<KeyStore> {
  const databaseName = newDatabaseName();
  const request = indexedDB.open(databaseName);
  request.onupgradeneeded = () => request.result.createObjectStore('something-else');
  (await settled(request)).close();
  return indexedDbKeyStore({ databaseName });
}

keyStoreConformance('indexedDbKeyStore', {
  timeoutMs: 60_000,
  faults,
  boundMs: HURRIED_DEADLINE_MS,
  place: () => {
    const databaseName = newDatabaseName();
    return () => indexedDbKeyStore({ databaseName });
  },
  broken: { 'a database that belongs to something else': withoutTheStore },
});
