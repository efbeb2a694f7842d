import { KeyGuardClient, type KeyStore, type SigningKey } from '@keyguard/core';
import { utf8 } from '@keyguard/core/bytes';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import { assertFresh, readSignedHead, verifySignature } from '@keyguard/core/verify';
import { indexedDbKeyStore, requestPersistence, type IndexedDbKeyStoreOptions } from '@keyguard/storage-indexeddb';
import { afterEach, describe, expect, it, vi } from 'vitest';

const primitives = webCryptoPrimitives();
const moduleUrl = new URL('../src/index.ts', import.meta.url).href;
const frames: HTMLIFrameElement[] = [];

let counter = 0;
function newDatabaseName(): string {
  counter += 1;
  return `test-${Date.now()}-${counter}`;
}

afterEach(() => {
  for (const frame of frames.splice(0)) frame.remove();
});

type StoreModule = { indexedDbKeyStore(options?: IndexedDbKeyStoreOptions): KeyStore };

/** The store as a page of its own would load it: another realm, another module instance, another connection. */
async function loadInFrame(): Promise<StoreModule> {
  const frame = document.createElement('iframe');
  frames.push(frame);
  document.body.append(frame);
  const realm = frame.contentWindow as Window & { eval(source: string): (url: string) => Promise<StoreModule> };
  return realm.eval('(url) => import(url)')(moduleUrl);
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function rawValue(databaseName: string, name: string): Promise<unknown> {
  const database = await settled(indexedDB.open(databaseName));
  try {
    return await settled(database.transaction('keys').objectStore('keys').get(name));
  } finally {
    database.close();
  }
}

async function putRaw(databaseName: string, name: string, value: unknown): Promise<void> {
  await indexedDbKeyStore({ databaseName }).get(name);
  const database = await settled(indexedDB.open(databaseName));
  await settled(database.transaction('keys', 'readwrite').objectStore('keys').put(value, name));
  database.close();
}

async function expectToSign(key: SigningKey): Promise<void> {
  const message = utf8('message');
  const verifyKey = await primitives.importPublicKey(key.publicKey);
  expect(await primitives.verify(verifyKey, message, new Uint8Array(await key.sign(message)))).toBe(true);
}

describe('indexedDbKeyStore', () => {
  it('gives 30 callers that race from 10 frames the same key', async () => {
    const databaseName = newDatabaseName();
    const modules = await Promise.all(Array.from({ length: 10 }, loadInFrame));
    expect(new Set(modules).size).toBe(10);
    const stores = modules.map((module) => module.indexedDbKeyStore({ databaseName }));
    const keys = await Promise.all(Array.from({ length: 30 }, (_, i) => stores[i % 10]!.getOrCreate('a')));
    expect(new Set(keys.map(({ keyId }) => keyId)).size).toBe(1);
    for (const key of keys) await expectToSign(key);
  });

  it('stores a private key that cannot be exported in any format, and nothing else', async () => {
    const databaseName = newDatabaseName();
    await indexedDbKeyStore({ databaseName }).getOrCreate('a');
    const pair = (await rawValue(databaseName, 'a')) as CryptoKeyPair;
    expect(Object.keys(pair).toSorted()).toEqual(['privateKey', 'publicKey']);
    expect(pair.privateKey.extractable).toBe(false);
    expect(pair.privateKey.usages).toEqual(['sign']);
    for (const format of ['pkcs8', 'jwk', 'raw'] as const) {
      await expect(crypto.subtle.exportKey(format, pair.privateKey), format).rejects.toMatchObject({
        name: 'InvalidAccessError',
      });
    }
  });

  it('asks for every change to reach the disk before it is acknowledged', async () => {
    const { transaction } = IDBDatabase.prototype;
    const changes: (string | undefined)[] = [];
    IDBDatabase.prototype.transaction = function spy(names, mode, options) {
      const opened = transaction.call(this, names, mode, options);
      if (opened.mode === 'readwrite') changes.push(opened.durability);
      return opened;
    };
    try {
      const store = indexedDbKeyStore({ databaseName: newDatabaseName() });
      await store.getOrCreate('a');
      for (const settle of ['discard', 'promote'] as const) await store[settle]('a', (await store.getOrCreatePending('a')).keyId);
      await store.delete('a');
    } finally {
      IDBDatabase.prototype.transaction = transaction;
    }
    expect(changes).toEqual(Array.from({ length: 6 }, () => 'strict'));
  });

  it('keeps the pending key in the record of its name, as little exportable as the key, and nothing of it once it is settled', async () => {
    const databaseName = newDatabaseName();
    const store = indexedDbKeyStore({ databaseName });
    const { keyId: first } = await store.getOrCreate('a');
    const pending = await store.getOrCreatePending('a');
    const record = (await rawValue(databaseName, 'a')) as CryptoKeyPair & { pending: CryptoKeyPair & { keyId: string } };
    expect(Object.keys(record).toSorted()).toEqual(['pending', 'privateKey', 'publicKey']);
    expect(Object.keys(record.pending).toSorted()).toEqual(['keyId', 'privateKey', 'publicKey']);
    expect(record.pending.privateKey.extractable).toBe(false);
    await expect(crypto.subtle.exportKey('pkcs8', record.pending.privateKey)).rejects.toMatchObject({ name: 'InvalidAccessError' });
    await store.discard('a', pending.keyId);
    expect(Object.keys((await rawValue(databaseName, 'a')) as object).toSorted()).toEqual(['privateKey', 'publicKey']);
    expect((await store.get('a'))?.keyId).toBe(first);
    const next = await store.getOrCreatePending('a');
    await store.promote('a', next.keyId);
    expect(Object.keys((await rawValue(databaseName, 'a')) as object).toSorted()).toEqual(['privateKey', 'publicKey']);
  });

  it('does not use a stored pending key that could be exported, or that is not the one it is said to be', async () => {
    const databaseName = newDatabaseName();
    const store = indexedDbKeyStore({ databaseName });
    const { keyId } = await store.getOrCreate('a');
    const other = await store.getOrCreatePending('a');
    const record = (await rawValue(databaseName, 'a')) as CryptoKeyPair;
    const weak = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify']);
    const strong = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign', 'verify']);
    for (const pending of [{ ...weak, keyId: other.keyId }, { ...strong, keyId: other.keyId }, null, {}, 'text']) {
      await putRaw(databaseName, 'a', { privateKey: record.privateKey, publicKey: record.publicKey, pending });
      await expect(store.getPending('a'), JSON.stringify(pending)).rejects.toMatchObject({ code: 'key_store_unusable' });
      await expect(store.getOrCreatePending('a')).rejects.toMatchObject({ code: 'key_store_unusable' });
      expect(await store.promote('a', other.keyId).catch(({ code }: { code: string }) => code)).not.toBe(true);
      expect((await store.get('a'))?.keyId).toBe(keyId);
    }
  });

  it('gives 30 callers that race from 10 frames the same pending key, and lets exactly one promote it', async () => {
    const databaseName = newDatabaseName();
    const modules = await Promise.all(Array.from({ length: 10 }, loadInFrame));
    const stores = modules.map((module) => module.indexedDbKeyStore({ databaseName }));
    await stores[0]!.getOrCreate('a');
    const keys = await Promise.all(Array.from({ length: 30 }, (_, i) => stores[i % 10]!.getOrCreatePending('a')));
    expect(new Set(keys.map(({ keyId }) => keyId)).size).toBe(1);
    for (const key of keys) await expectToSign(key);
    const promoted = await Promise.all(Array.from({ length: 30 }, (_, i) => stores[i % 10]!.promote('a', keys[0]!.keyId)));
    expect(promoted.filter(Boolean)).toHaveLength(1);
    expect((await stores[9]!.get('a'))?.keyId).toBe(keys[0]!.keyId);
  });

  it('does not use a stored key that could be exported', async () => {
    const databaseName = newDatabaseName();
    const pair = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify']);
    await putRaw(databaseName, 'a', pair);
    const store = indexedDbKeyStore({ databaseName });
    await expect(store.get('a')).rejects.toMatchObject({ code: 'key_store_unusable' });
    await expect(store.getOrCreate('a')).rejects.toMatchObject({ code: 'key_store_unusable' });
    expect(((await rawValue(databaseName, 'a')) as CryptoKeyPair).privateKey.extractable).toBe(true);
    await store.delete('a');
    await expectToSign(await store.getOrCreate('a'));
  });

  it.each([null, 'text', {}, { privateKey: 1, publicKey: 2 }])('does not replace a stored %j by a new key', async (value) => {
    const databaseName = newDatabaseName();
    await putRaw(databaseName, 'a', value);
    const store = indexedDbKeyStore({ databaseName });
    await expect(store.get('a')).rejects.toMatchObject({ code: 'key_store_unusable' });
    await expect(store.getOrCreate('a')).rejects.toMatchObject({ code: 'key_store_unusable' });
    expect(await rawValue(databaseName, 'a')).toEqual(value);
  });

  it('lets another tab delete the database and carries on in a new one', async () => {
    const databaseName = newDatabaseName();
    const store = indexedDbKeyStore({ databaseName });
    const first = await store.getOrCreate('a');
    await settled(indexedDB.deleteDatabase(databaseName));
    expect(await store.get('a')).toBeNull();
    const second = await store.getOrCreate('a');
    expect(second.keyId).not.toBe(first.keyId);
    await expectToSign(second);
  });

  it('says what to do while something keeps the database from answering, and recovers afterwards', { timeout: 30_000 }, async () => {
    const databaseName = newDatabaseName();
    const store = indexedDbKeyStore({ databaseName });
    const { keyId } = await store.getOrCreate('a');
    // A page that ignores `versionchange`, so that a deletion, and all that comes after it, must wait.
    const stubborn = await settled(indexedDB.open(databaseName));
    const request = indexedDB.deleteDatabase(databaseName);
    const deletion = settled(request);
    await new Promise((resolve) => (request.onblocked = resolve));
    await expect(store.getOrCreate('a')).rejects.toMatchObject({
      code: 'key_store_unusable',
      message: expect.stringContaining('close other tabs'),
    });
    stubborn.close();
    await deletion;
    const next = await store.getOrCreate('a');
    expect(next.keyId).not.toBe(keyId);
    await expectToSign(next);
  });

  it('says so where a database of that name is something else\'s', async () => {
    const newer = newDatabaseName();
    (await settled(indexedDB.open(newer, 7))).close();
    const other = newDatabaseName();
    (await settled(indexedDB.open(other, 1))).close();
    for (const databaseName of [newer, other]) {
      const store = indexedDbKeyStore({ databaseName });
      for (const verb of [store.get('a'), store.getOrCreate('a')]) {
        await expect(verb).rejects.toMatchObject({ code: 'key_store_unusable', message: expect.stringContaining('databaseName of its own') });
      }
    }
  });

  it.each([
    ['UnknownError', 'clear the data of this site'],
    ['InvalidStateError', 'private windows'],
    ['AbortError', 'free some room'],
    ['SomethingNewError', 'SomethingNewError'],
  ])('tells a person what to do about %s', async (name, told) => {
    const open = vi.spyOn(IDBFactory.prototype, 'open').mockImplementation(() => {
      throw new DOMException('Internal error.', name);
    });
    try {
      const store = indexedDbKeyStore({ databaseName: newDatabaseName() });
      await expect(store.getOrCreate('a')).rejects.toMatchObject({
        name: 'UsageError',
        code: 'key_store_unusable',
        message: expect.stringContaining(told),
        cause: expect.objectContaining({ name }),
      });
    } finally {
      open.mockRestore();
    }
  });

  it('says so where there is no secure context', async () => {
    const store = indexedDbKeyStore({ databaseName: newDatabaseName(), crypto: {} as Crypto });
    await expect(store.getOrCreate('a')).rejects.toMatchObject({
      code: 'key_store_unusable',
      message: expect.stringContaining('HTTPS'),
    });
  });
});

describe('requestPersistence', () => {
  const manager = (answers: Partial<Record<'persist' | 'persisted', () => Promise<boolean>>>): StorageManager => answers as StorageManager;
  const yes = async (): Promise<boolean> => true;
  const no = async (): Promise<boolean> => false;
  const fails = (): Promise<boolean> => Promise.reject(new TypeError('not in this context'));

  it('tells what the browser says, and does not ask where it has agreed already', async () => {
    const persist = vi.fn(no);
    expect(await requestPersistence(manager({ persist, persisted: yes }))).toBe('persistent');
    expect(persist).not.toHaveBeenCalled();
    expect(await requestPersistence(manager({ persist: yes, persisted: no }))).toBe('persistent');
    expect(await requestPersistence(manager({ persist: no, persisted: no }))).toBe('best-effort');
  });

  it('never throws', async () => {
    expect(await requestPersistence(manager({ persist: fails, persisted: no }))).toBe('unknown');
    expect(await requestPersistence(manager({ persist: yes, persisted: fails }))).toBe('unknown');
    expect(await requestPersistence(manager({}))).toBe('unknown');
    expect(await requestPersistence(undefined)).toMatch(/^(?:persistent|best-effort)$/);
  });
});

describe('KeyGuardClient on indexedDbKeyStore', () => {
  const origin = 'https://keyguard.example.com';

  async function verified(request: Request, tag: 'keyguard-v1' | 'keyguard-enroll-v1', key: SigningKey): Promise<Uint8Array> {
    const { pathname, search, host } = new URL(request.url);
    const rawHeaders = [...request.headers].flat();
    const head = readSignedHead({ method: request.method, target: pathname + search, rawHeaders }, [host]);
    expect(head.keyId).toBe(key.keyId);
    assertFresh(head.createdSeconds, { maxAgeSeconds: 300, maxFutureSeconds: 60 }, Date.now());
    const body = new Uint8Array(await request.arrayBuffer());
    const verifyKey = await primitives.importPublicKey(key.publicKey);
    await verifySignature(head, body, verifyKey, tag, primitives);
    const changed = new Uint8Array([...body, 32]);
    await expect(verifySignature(head, changed, verifyKey, tag, primitives)).rejects.toMatchObject({ code: 'signature_invalid' });
    return body;
  }

  it('enrolls, then signs each call with the key of this browser, and as another page after it', async () => {
    const databaseName = newDatabaseName();
    const sent: Request[] = [];
    const fakeFetch = async (input: RequestInfo | URL, init?: RequestInit): Promise<Response> => {
      const request = new Request(input, init);
      sent.push(request);
      return Response.json({ device_id: 'd1', key_id: request.headers.get('x-keyguard-key-id'), status: 'active' });
    };
    const keyStore = indexedDbKeyStore({ databaseName });
    const client = new KeyGuardClient({ origin, keyStore, fetch: fakeFetch });
    await expect(client.fetch(`${origin}/proxy/openai/v1/models`)).rejects.toMatchObject({ code: 'not_enrolled' });
    await client.enroll({ code: 'CODE', label: 'Browser' });
    const key = (await keyStore.get('keyguard.example.com'))!;
    const body = JSON.parse(new TextDecoder().decode(await verified(sent[0]!, 'keyguard-enroll-v1', key)));
    expect(body).toEqual({ jwk: key.publicKey, code: 'CODE', label: 'Browser' });

    await client.fetch(`${origin}/proxy/openai/v1/chat/completions?x=1`, { method: 'POST', body: '{"héllo":1}' });
    await verified(sent[1]!, 'keyguard-v1', key);

    const { indexedDbKeyStore: inAnotherPage } = await loadInFrame();
    const later = new KeyGuardClient({ origin, keyStore: inAnotherPage({ databaseName }), fetch: fakeFetch });
    await later.fetch(`${origin}/proxy/openai/v1/models`);
    await verified(sent[2]!, 'keyguard-v1', key);
    expect(sent).toHaveLength(3);
    const nonces = sent.map(({ headers }) => headers.get('x-keyguard-nonce'));
    expect(new Set(nonces).size).toBe(3);
  });
});
