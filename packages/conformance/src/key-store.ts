/**
 * What every {@link KeyStore} must keep: one key per name for all racing callers, that signs and verifies, whose id is its
 * thumbprint, and that is gone once it is deleted; and at most one pending key beside it, which takes its place once, or never. Also
 * while what it is built on fails, hangs or is full.
 */
import { thumbprint } from '@keyguard/core/keys';
import type { KeyStore, MaybePromise } from '@keyguard/core/seams';
import { describe, expect } from 'vitest';
import { casesOf } from './cases.ts';
import type { Faults, Substrate } from './faults.ts';
import { keyStoreFaultCases } from './key-store-faults.ts';
import { pendingKeyCases } from './key-store-pending.ts';
import { expectToSign, NAMES, openAll, primitives, RACING, STORES, type OpenKeyStore } from './key-store-steps.ts';

export type { OpenKeyStore } from './key-store-steps.ts';

/** A key store to be judged, with what the suite needs beside it. */
export interface KeyStoreSubject {
  /** A new, empty place for each test. */
  readonly place: () => MaybePromise<OpenKeyStore>;
  /** A store that cannot keep keys, each time failing in another way. */
  readonly broken?: Readonly<Record<string, () => MaybePromise<KeyStore>>>;
  /** Of all places. Left out in memory. */
  readonly faults?: Faults;
  /** Within how many milliseconds every verb answers or throws, where the store promises that. */
  readonly boundMs?: number;
  /** Default `external`. */
  readonly substrate?: Exclude<Substrate, 'bounded'>;
  /** Per test. Default 20 s. */
  readonly timeoutMs?: number;
}

/** Runs the suite against one implementation. Call it at the top of a test file. */
export function keyStoreConformance(title: string, subject: KeyStoreSubject): void {
  describe(`${title} keeps the contract of KeyStore`, { timeout: subject.timeoutMs ?? 20_000 }, () => {
    const it = casesOf('KeyStore', title);

    it.contract('knows no key at first, and does not make one by looking', async () => {
      const store = await (await subject.place())();
      expect(await store.get('a')).toBeNull();
      expect(await store.get('a')).toBeNull();
    });

    it.contract('names a key by its thumbprint and shows the public half only', async () => {
      const key = await (await (await subject.place())()).getOrCreate('a');
      expect(key.keyId).toMatch(/^[A-Za-z0-9_-]{43}$/);
      expect(Object.keys(key.publicKey).toSorted()).toEqual(['crv', 'kty', 'x', 'y']);
      expect(await thumbprint(key.publicKey, primitives)).toBe(key.keyId);
      expect(Object.keys(key).toSorted()).toEqual(['keyId', 'publicKey', 'sign']);
    });

    it.contract('signs with the key that it shows, also when the key is read again', async () => {
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

    it.races(`gives ${RACING} racing callers over ${STORES} stores the same key`, async () => {
      const open = await subject.place();
      const stores = await openAll(open);
      const keys = await Promise.all(Array.from({ length: RACING }, (_, i) => stores[i % STORES]!.getOrCreate('a')));
      expect(new Set(keys.map(({ keyId }) => keyId)).size).toBe(1);
      expect((await (await open()).get('a'))?.keyId).toBe(keys[0]!.keyId);
      await Promise.all(keys.map((key) => expectToSign(key)));
    });

    it.contract('keeps a key of its own for each name', async () => {
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

    it.contract('forgets what is deleted, and nothing else', async () => {
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

    it.contract('sees what another store over the same place deleted or made', async () => {
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

    it.contract('deletes what was never there', async () => {
      const store = await (await subject.place())();
      await store.delete('a');
      await store.delete('a');
      expect(await store.get('a')).toBeNull();
    });

    it.races('survives callers that make and delete one name at once', async () => {
      const open = await subject.place();
      const stores = await openAll(open);
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
      it.contract(`refuses rather than weakens: ${how}`, async () => {
        const store = await broken();
        await expect(store.getOrCreate('a')).rejects.toMatchObject({ name: 'UsageError', code: 'key_store_unusable' });
        await expect(store.get('a')).rejects.toMatchObject({ name: 'UsageError', code: 'key_store_unusable' });
        await expect(store.getOrCreatePending('a')).rejects.toMatchObject({ name: 'UsageError', code: 'key_store_unusable' });
      });
    }

    pendingKeyCases(it, subject.place);
    if (subject.substrate !== 'memory') keyStoreFaultCases(it, subject);
  });
}
