/** Real pages for the tests: a bundle of the store and of what checks its signatures, served from a local origin. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { build } from 'esbuild';
import type { Persistence } from '@keyguard/storage-indexeddb';

// Everything that a test asks of a page, as functions that answer with plain data.
const ENTRY = `
import { indexedDbKeyStore, requestPersistence } from '@keyguard/storage-indexeddb';
import { utf8 } from '@keyguard/core/bytes';
import { webCryptoPrimitives } from '@keyguard/core/primitives';

const primitives = webCryptoPrimitives();
const store = indexedDbKeyStore();
const message = utf8('message');

async function describeKey(key) {
  if (key === null) return null;
  const signature = await key.sign(message);
  const verifyKey = await primitives.importPublicKey(key.publicKey);
  return { keyId: key.keyId, publicKey: key.publicKey, verifies: await primitives.verify(verifyKey, message, signature) };
}

async function outcome(work) {
  try {
    return await work();
  } catch ({ name, code, message }) {
    return { name, code, message };
  }
}

globalThis.keys = {
  getOrCreate: (name) => outcome(async () => describeKey(await store.getOrCreate(name))),
  get: (name) => outcome(async () => describeKey(await store.get(name))),
  delete: (name) => outcome(() => store.delete(name)),
  persist: () => requestPersistence(),
  race: (name, callers) => Promise.all(Array.from({ length: callers }, async () => (await store.getOrCreate(name)).keyId)),
  exportStored: (name) =>
    new Promise((resolve, reject) => {
      const opening = indexedDB.open('keyguard');
      opening.onerror = () => reject(opening.error);
      opening.onsuccess = () => {
        const reading = opening.result.transaction('keys').objectStore('keys').get(name);
        reading.onsuccess = () => {
          opening.result.close();
          resolve(outcome(() => crypto.subtle.exportKey('pkcs8', reading.result.privateKey)));
        };
      };
    }),
};
`;

/** What `globalThis.keys` offers in a page. */
export interface PageKeys {
  getOrCreate(name: string): Promise<KeyDescription | Refusal>;
  get(name: string): Promise<KeyDescription | Refusal | null>;
  delete(name: string): Promise<void | Refusal>;
  persist(): Promise<Persistence>;
  race(name: string, callers: number): Promise<string[]>;
  exportStored(name: string): Promise<Refusal | object>;
}

export interface KeyDescription {
  readonly keyId: string;
  readonly publicKey: { readonly x: string; readonly y: string };
  readonly verifies: boolean;
}

export interface Refusal {
  readonly name: string;
  readonly code?: string;
  readonly message: string;
}

export interface Site {
  readonly origin: string;
  close(): Promise<void>;
}

/** Serves `/` (a page with the bundle) and `/sandboxed` (the same page in a frame without an origin of its own). */
export async function serveSite(): Promise<Site> {
  const { outputFiles } = await build({
    stdin: { contents: ENTRY, resolveDir: import.meta.dirname, loader: 'js' },
    bundle: true,
    write: false,
    format: 'iife',
    platform: 'browser',
    conditions: ['@keyguard/source'],
  });
  const script = outputFiles[0]!.text;
  const server: Server = createServer(({ url }, response) => {
    if (url === '/keys.js') {
      response.setHeader('content-type', 'text/javascript; charset=utf-8').end(script);
    } else {
      response.setHeader('content-type', 'text/html; charset=utf-8');
      response.end(
        url === '/sandboxed'
          ? '<!doctype html><iframe name="inner" sandbox="allow-scripts" src="/"></iframe>'
          : '<!doctype html><title>keys</title><script src="/keys.js"></script>',
      );
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: () =>
      new Promise((resolve, reject) => {
        server.closeAllConnections();
        server.close((error) => (error ? reject(error) : resolve()));
      }),
  };
}
