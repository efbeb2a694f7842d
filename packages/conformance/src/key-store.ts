/**
 * What every {@link KeyStore} must keep: one key per name for all racing callers, that signs and verifies, whose id is its
 * thumbprint, and that is gone once it is deleted; and at most one pending key beside it, which takes its place once, or never.
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
        await expect(store.getOrCreatePending('a')).rejects.toMatchObject({ name: 'UsageError', code: 'key_store_unusable' });
      });
    }

    pendingKeyCases(subject);
  });
}

const OTHER_ID = 'A'.repeat(43);

/** Calls `work` `RACING` times at once, over all the stores in turn. */
async function race<T>(stores: readonly KeyStore[], work: (store: KeyStore, i: number) => Promise<T>): Promise<T[]> {
  return Promise.all(Array.from({ length: RACING }, (_, i) => work(stores[i % stores.length]!, i)));
}

async function openAll(open: OpenKeyStore): Promise<KeyStore[]> {
  return Promise.all(Array.from({ length: STORES }, () => open()));
}

function pendingKeyCases({ place }: KeyStoreSubject): void {
  it('makes no pending key by looking, nor by acting on one that is not there', async () => {
    const store = await (await place())();
    expect(await store.getPending('a')).toBeNull();
    const { keyId } = await store.getOrCreate('a');
    expect(await store.getPending('a')).toBeNull();
    for (const id of [OTHER_ID, keyId, '', '../../escape']) {
      expect(await store.promote('a', id)).toBe(false);
      expect(await store.discard('a', id)).toBe(false);
    }
    expect(await store.getPending('a')).toBeNull();
    expect((await store.get('a'))?.keyId).toBe(keyId);
  });

  it('makes no pending key for a name without a key, and no key either', async () => {
    const store = await (await place())();
    await expect(store.getOrCreatePending('a')).rejects.toMatchObject({ name: 'UsageError', code: 'not_enrolled' });
    await store.getOrCreate('b');
    await expect(store.getOrCreatePending('a')).rejects.toMatchObject({ name: 'UsageError', code: 'not_enrolled' });
    expect(await store.promote('a', OTHER_ID)).toBe(false);
    expect(await store.discard('a', OTHER_ID)).toBe(false);
    expect(await store.get('a')).toBeNull();
    expect(await store.getPending('a')).toBeNull();
  });

  it('keeps the pending key beside the key: both sign, and only the key is the key', async () => {
    const open = await place();
    const store = await open();
    const key = await store.getOrCreate('a');
    const pending = await store.getOrCreatePending('a');
    expect(pending.keyId).not.toBe(key.keyId);
    expect(await thumbprint(pending.publicKey, primitives)).toBe(pending.keyId);
    expect(Object.keys(pending).toSorted()).toEqual(['keyId', 'publicKey', 'sign']);
    await expectToSign(pending);
    for (const one of [store, await open()]) {
      expect((await one.get('a'))?.keyId).toBe(key.keyId);
      expect((await one.getOrCreate('a')).keyId).toBe(key.keyId);
      expect((await one.getPending('a'))?.keyId).toBe(pending.keyId);
      expect((await one.getOrCreatePending('a')).keyId).toBe(pending.keyId);
      await expectToSign((await one.get('a'))!);
      await expectToSign((await one.getPending('a'))!);
    }
  });

  it(`gives ${RACING} racing callers over ${STORES} stores the same pending key`, async () => {
    const open = await place();
    const stores = await openAll(open);
    const { keyId } = await stores[0]!.getOrCreate('a');
    const pending = await race(stores, (store) => store.getOrCreatePending('a'));
    expect(new Set(pending.map((one) => one.keyId)).size).toBe(1);
    expect((await (await open()).getPending('a'))?.keyId).toBe(pending[0]!.keyId);
    await Promise.all(pending.map((one) => expectToSign(one)));
    expect((await stores[1]!.get('a'))?.keyId).toBe(keyId);
  });

  it('promotes the pending key in the place of the key, for every store, and knows the former one no more', async () => {
    const open = await place();
    const [one, two] = [await open(), await open()];
    const first = await one.getOrCreate('a');
    const pending = await one.getOrCreatePending('a');
    // Looked at before, so that a store which remembers has something to remember wrongly.
    expect((await two.get('a'))?.keyId).toBe(first.keyId);
    expect((await two.getPending('a'))?.keyId).toBe(pending.keyId);
    expect(await one.promote('a', pending.keyId)).toBe(true);
    for (const store of [one, two, await open()]) {
      expect((await store.get('a'))?.keyId).toBe(pending.keyId);
      expect((await store.getOrCreate('a')).keyId).toBe(pending.keyId);
      expect(await store.getPending('a')).toBeNull();
      await expectToSign((await store.get('a'))!);
      expect(await store.promote('a', pending.keyId)).toBe(false);
      expect(await store.discard('a', pending.keyId)).toBe(false);
    }
    const next = await two.getOrCreatePending('a');
    expect([first.keyId, pending.keyId]).not.toContain(next.keyId);
    expect((await one.getPending('a'))?.keyId).toBe(next.keyId);
  });

  it('discards the pending key and keeps the key; the next pending key is another', async () => {
    const open = await place();
    const [one, two] = [await open(), await open()];
    const { keyId } = await one.getOrCreate('a');
    const seen = new Set<string>();
    for (let round = 0; round < 4; round += 1) {
      const pending = await one.getOrCreatePending('a');
      seen.add(pending.keyId);
      expect((await two.getPending('a'))?.keyId).toBe(pending.keyId);
      expect(await two.discard('a', pending.keyId)).toBe(true);
      for (const store of [one, two, await open()]) {
        expect(await store.getPending('a')).toBeNull();
        expect((await store.get('a'))?.keyId).toBe(keyId);
        expect(await store.discard('a', pending.keyId)).toBe(false);
        expect(await store.promote('a', pending.keyId)).toBe(false);
      }
    }
    expect(seen.size).toBe(4);
    const last = await two.getOrCreatePending('a');
    expect(await one.promote('a', last.keyId)).toBe(true);
    expect((await two.get('a'))?.keyId).toBe(last.keyId);
  });

  it('compares before it sets: a wrong id changes nothing', async () => {
    const store = await (await place())();
    const { keyId } = await store.getOrCreate('a');
    const former = await store.getOrCreatePending('a');
    await store.discard('a', former.keyId);
    const pending = await store.getOrCreatePending('a');
    for (const id of [OTHER_ID, keyId, former.keyId, pending.keyId.slice(0, -1), '']) {
      expect(await store.promote('a', id), id).toBe(false);
      expect(await store.discard('a', id), id).toBe(false);
    }
    expect((await store.get('a'))?.keyId).toBe(keyId);
    expect((await store.getPending('a'))?.keyId).toBe(pending.keyId);
  });

  it(`lets exactly one of ${RACING} racing callers promote`, async () => {
    const stores = await openAll(await place());
    await stores[0]!.getOrCreate('a');
    for (let round = 0; round < 3; round += 1) {
      const { keyId } = await stores[0]!.getOrCreatePending('a');
      const promoted = await race(stores, (store) => store.promote('a', keyId));
      expect(promoted.filter(Boolean)).toHaveLength(1);
      for (const store of stores) {
        expect((await store.get('a'))?.keyId).toBe(keyId);
        expect(await store.getPending('a')).toBeNull();
      }
    }
  });

  it('lets exactly one of racing promotions and discards happen, and the store shows which', async () => {
    const stores = await openAll(await place());
    let { keyId } = await stores[0]!.getOrCreate('a');
    for (let round = 0; round < 6; round += 1) {
      const pending = await stores[round % STORES]!.getOrCreatePending('a');
      const promotes = (i: number): boolean => (i + round) % 2 === 0;
      const answers = await race(stores, (store, i) => (promotes(i) ? store.promote('a', pending.keyId) : store.discard('a', pending.keyId)));
      const winners = answers.flatMap((won, i) => (won ? [promotes(i)] : []));
      expect(winners).toHaveLength(1);
      if (winners[0]!) keyId = pending.keyId;
      for (const store of stores) {
        expect((await store.get('a'))?.keyId).toBe(keyId);
        expect(await store.getPending('a')).toBeNull();
      }
    }
    await expectToSign((await stores[0]!.get('a'))!);
  });

  it('never loses the key while callers make, promote and discard pending keys at once', async () => {
    const stores = await openAll(await place());
    const { keyId: first } = await stores[0]!.getOrCreate('a');
    const promoted = new Set<string>();
    const discarded = new Set<string>();
    await race(stores, async (store, i) => {
      if (i % 5 === 4) {
        await expectToSign((await store.get('a'))!);
        return;
      }
      const { keyId } = await store.getOrCreatePending('a');
      if (await (i % 2 === 0 ? store.promote('a', keyId) : store.discard('a', keyId))) (i % 2 === 0 ? promoted : discarded).add(keyId);
    });
    const key = (await stores[0]!.get('a'))!;
    await expectToSign(key);
    // No key was both, or could come to be the key without having been promoted.
    expect([...promoted].filter((id) => discarded.has(id))).toEqual([]);
    expect([first, ...promoted]).toContain(key.keyId);
    expect(promoted.size + discarded.size).toBeGreaterThan(0);
    const last = await stores[0]!.getOrCreatePending('a');
    expect([first, ...promoted, ...discarded]).not.toContain(last.keyId);
    expect(await stores[1]!.promote('a', last.keyId)).toBe(true);
    for (const store of stores) expect((await store.get('a'))?.keyId).toBe(last.keyId);
  });

  it('forgets the pending key with the key that it was to replace', async () => {
    const open = await place();
    const [one, two] = [await open(), await open()];
    await one.getOrCreate('a');
    const pending = await one.getOrCreatePending('a');
    await one.getOrCreate('b');
    const other = await one.getOrCreatePending('b');
    await two.delete('a');
    for (const store of [one, two, await open()]) {
      expect(await store.get('a')).toBeNull();
      expect(await store.getPending('a')).toBeNull();
      expect(await store.promote('a', pending.keyId)).toBe(false);
      expect((await store.getPending('b'))?.keyId).toBe(other.keyId);
    }
    const again = await one.getOrCreate('a');
    expect(again.keyId).not.toBe(pending.keyId);
    expect(await two.getPending('a')).toBeNull();
    expect(await two.promote('a', pending.keyId)).toBe(false);
    expect((await two.get('a'))?.keyId).toBe(again.keyId);
  });

  it('lets no pending key outlive a deletion that races with its promotion', async () => {
    const stores = await openAll(await place());
    for (let round = 0; round < 8; round += 1) {
      await stores[0]!.getOrCreate('a');
      const { keyId } = await stores[0]!.getOrCreatePending('a');
      await Promise.all([stores[1]!.promote('a', keyId), stores[2]!.delete('a'), stores[3]!.promote('a', keyId)]);
      for (const store of stores) {
        expect(await store.get('a')).toBeNull();
        expect(await store.getPending('a')).toBeNull();
      }
    }
  });

  it('keeps a pending key of its own for each name', async () => {
    const open = await place();
    const store = await open();
    const keys = new Map<string, string>();
    for (const name of NAMES) keys.set(name, (await store.getOrCreate(name)).keyId);
    const pending = new Map<string, string>();
    for (const name of NAMES) {
      expect(await store.getPending(name), JSON.stringify(name)).toBeNull();
      pending.set(name, (await store.getOrCreatePending(name)).keyId);
    }
    expect(new Set([...keys.values(), ...pending.values()]).size).toBe(2 * NAMES.length);
    const promoted = NAMES.filter((_, i) => i % 2 === 0);
    for (const name of promoted) {
      expect(await store.promote(name, pending.get('con')!), JSON.stringify(name)).toBe(name === 'con');
      if (name !== 'con') expect(await store.promote(name, pending.get(name)!), JSON.stringify(name)).toBe(true);
    }
    const later = await open();
    for (const name of NAMES) {
      const isPromoted = promoted.includes(name);
      expect((await later.get(name))?.keyId, JSON.stringify(name)).toBe((isPromoted ? pending : keys).get(name));
      expect((await later.getPending(name))?.keyId, JSON.stringify(name)).toBe(isPromoted ? undefined : pending.get(name));
    }
  });
}
