/**
 * What every {@link KeyStore} must keep: one key per name for all racing callers, that signs and verifies, whose id is its
 * thumbprint, and that is gone once it is deleted.
 */
import { thumbprint } from '@keyguard/core/keys';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import { utf8 } from '@keyguard/core/bytes';
import type { KeyStore, MaybePromise, SigningKey } from '@keyguard/core/seams';
import { describe, expect, it } from 'vitest';

/** Opens one place where keys are kept, again and again: each answer is a store of its own over the same keys. */
export type OpenKeyStore = () => MaybePromise<KeyStore>;

export interface KeyStoreSubject {
  /** A new, empty place for each test. */
  readonly place: () => MaybePromise<OpenKeyStore>;
  /** A store that cannot keep keys, each time failing in another way. */
  readonly broken?: Readonly<Record<string, () => MaybePromise<KeyStore>>>;
  /** Per test. Default 20 s. */
  readonly timeoutMs?: number;
}

const RACING = 100;
const STORES = 5;

// Names that a careless mapping would confuse with one another, or carry somewhere else.
const NAMES = [
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

const primitives = webCryptoPrimitives();

async function expectToSign(key: SigningKey): Promise<void> {
  const message = utf8('a message of no importance');
  const signature = await key.sign(message);
  const verifyKey = await primitives.importPublicKey(key.publicKey);
  expect(signature).toHaveLength(64);
  expect(await primitives.verify(verifyKey, message, signature)).toBe(true);
  expect(await primitives.verify(verifyKey, utf8('another message'), signature)).toBe(false);
}

/** Runs the suite against one implementation. Call it at the top of a test file. */
export function keyStoreConformance(title: string, subject: KeyStoreSubject): void {
  describe(`${title} keeps the contract of KeyStore`, { timeout: subject.timeoutMs ?? 20_000 }, () => {
    it('knows no key at first, and does not make one by looking', async () => {
      const store = await (await subject.place())();
      expect(await store.get('a')).toBeNull();
      expect(await store.get('a')).toBeNull();
    });

    it('names a key by its thumbprint and shows the public half only', async () => {
      const key = await (await (await subject.place())()).getOrCreate('a');
      expect(key.keyId).toMatch(/^[A-Za-z0-9_-]{43}$/);
      expect(Object.keys(key.publicKey).toSorted()).toEqual(['crv', 'kty', 'x', 'y']);
      expect(await thumbprint(key.publicKey, primitives)).toBe(key.keyId);
      expect(Object.keys(key).toSorted()).toEqual(['keyId', 'publicKey', 'sign']);
    });

    it('signs with the key that it shows, also when the key is read again', async () => {
      const open = await subject.place();
      const made = await (await open()).getOrCreate('a');
      await expectToSign(made);
      const again = await (await open()).get('a');
      expect(again?.keyId).toBe(made.keyId);
      await expectToSign(again!);
      const third = await (await open()).getOrCreate('a');
      expect(third.keyId).toBe(made.keyId);
      await expectToSign(third);
    });

    it(`gives ${RACING} racing callers over ${STORES} stores the same key`, async () => {
      const open = await subject.place();
      const stores = await Promise.all(Array.from({ length: STORES }, () => open()));
      const keys = await Promise.all(Array.from({ length: RACING }, (_, i) => stores[i % STORES]!.getOrCreate('a')));
      expect(new Set(keys.map(({ keyId }) => keyId)).size).toBe(1);
      expect((await (await open()).get('a'))?.keyId).toBe(keys[0]!.keyId);
      await Promise.all(keys.map((key) => expectToSign(key)));
    });

    it('keeps a key of its own for each name', async () => {
      const open = await subject.place();
      const store = await open();
      const made = new Map<string, string>();
      for (const name of NAMES) {
        expect(await store.get(name), JSON.stringify(name)).toBeNull();
        made.set(name, (await store.getOrCreate(name)).keyId);
      }
      expect(new Set(made.values()).size).toBe(NAMES.length);
      const later = await open();
      for (const [name, keyId] of made) expect((await later.get(name))?.keyId, JSON.stringify(name)).toBe(keyId);
    });

    it('forgets what is deleted, and nothing else', async () => {
      const open = await subject.place();
      const store = await open();
      const [first, other] = await Promise.all([store.getOrCreate('a'), store.getOrCreate('b')]);
      await store.delete('a');
      expect(await store.get('a')).toBeNull();
      expect(await (await open()).get('a')).toBeNull();
      expect((await (await open()).get('b'))?.keyId).toBe(other.keyId);
      const second = await store.getOrCreate('a');
      expect(second.keyId).not.toBe(first.keyId);
      await expectToSign(second);
    });

    it('sees what another store over the same place deleted or made', async () => {
      const open = await subject.place();
      const [one, two] = [await open(), await open()];
      const first = await one.getOrCreate('a');
      expect((await two.get('a'))?.keyId).toBe(first.keyId);
      await two.delete('a');
      expect(await one.get('a')).toBeNull();
      const second = await two.getOrCreate('a');
      expect((await one.get('a'))?.keyId).toBe(second.keyId);
      expect((await one.getOrCreate('a')).keyId).toBe(second.keyId);
      // And without having looked in between.
      await two.delete('a');
      const third = await two.getOrCreate('a');
      expect((await one.get('a'))?.keyId).toBe(third.keyId);
      await expectToSign(await one.getOrCreate('a'));
      expect(third.keyId).not.toBe(second.keyId);
    });

    it('deletes what was never there', async () => {
      const store = await (await subject.place())();
      await store.delete('a');
      await store.delete('a');
      expect(await store.get('a')).toBeNull();
    });

    it('survives callers that make and delete one name at once', async () => {
      const open = await subject.place();
      const stores = await Promise.all(Array.from({ length: STORES }, () => open()));
      await Promise.all(
        Array.from({ length: RACING }, async (_, i) => {
          const store = stores[i % STORES]!;
          if (i % 4 === 3) await store.delete('a');
          else await expectToSign(await store.getOrCreate('a'));
        }),
      );
      const last = await stores[0]!.getOrCreate('a');
      expect((await stores[1]!.get('a'))?.keyId).toBe(last.keyId);
    });

    for (const [how, broken] of Object.entries(subject.broken ?? {})) {
      it(`refuses rather than weakens: ${how}`, async () => {
        const store = await broken();
        await expect(store.getOrCreate('a')).rejects.toMatchObject({ name: 'UsageError', code: 'key_store_unusable' });
        await expect(store.get('a')).rejects.toMatchObject({ name: 'UsageError', code: 'key_store_unusable' });
      });
    }
  });
}
