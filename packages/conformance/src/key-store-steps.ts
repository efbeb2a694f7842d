/** What the cases of all key stores have in common. */
import { utf8 } from '@keyguard/core/bytes';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { KeyStore, MaybePromise, Primitives, SigningKey } from '@keyguard/core/seams';
import { expect } from 'vitest';

/** Opens one place where keys are kept, again and again: each answer is a store of its own over the same keys. */
export type OpenKeyStore = () => MaybePromise<KeyStore>;

export const RACING = 100;
export const STORES = 5;

// Names that a careless mapping would confuse with one another, or carry somewhere else.
export const NAMES: readonly string[] = [
  'api.example.com',
  'API.example.com',
  'api.example.com:8443',
  'api_example.com',
  '../api.example.com',
  'api/example.com',
  '/etc/passwd',
  '.',
  '..',
  'con',
  '__proto__',
  'constructor',
  ' ',
  'caf\u00e9',
  'cafe\u0301',
  'a\u0000b',
  'a%00b',
  '\u{1f511}',
  'k'.repeat(300),
  'k'.repeat(301),
];

export const primitives: Primitives = webCryptoPrimitives();

export async function expectToSign(key: SigningKey): Promise<void> {
  const message = utf8('a message of no importance');
  const signature = await key.sign(message);
  const verifyKey = await primitives.importPublicKey(key.publicKey);
  expect(signature).toHaveLength(64);
  expect(await primitives.verify(verifyKey, message, signature)).toBe(true);
  expect(await primitives.verify(verifyKey, utf8('another message'), signature)).toBe(false);
}

/** Calls `work` `RACING` times at once, over all the stores in turn. */
export async function race<T>(stores: readonly KeyStore[], work: (store: KeyStore, i: number) => Promise<T>): Promise<T[]> {
  return Promise.all(Array.from({ length: RACING }, (_, i) => work(stores[i % stores.length]!, i)));
}

export async function openAll(open: OpenKeyStore): Promise<KeyStore[]> {
  return Promise.all(Array.from({ length: STORES }, () => open()));
}
