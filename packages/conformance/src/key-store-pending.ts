/**
 * The part of a {@link KeyStore} that keeps a second key for a name: at most one is pending, and it takes the place of the first one
 * once, or never.
 */
import { thumbprint } from '@keyguard/core/keys';
import type { MaybePromise } from '@keyguard/core/seams';
import { expect } from 'vitest';
import type { Cases } from './cases.ts';
import { expectToSign, NAMES, openAll, primitives, race, RACING, STORES, type OpenKeyStore } from './key-store-steps.ts';

const OTHER_ID = 'A'.repeat(43);

export function pendingKeyCases(it: Cases, place: () => MaybePromise<OpenKeyStore>): void {
  it.contract('makes no pending key by looking, nor by acting on one that is not there', async () => {
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

  it.contract('makes no pending key for a name without a key, and no key either', async () => {
    const store = await (await place())();
    await expect(store.getOrCreatePending('a')).rejects.toMatchObject({ name: 'UsageError', code: 'not_enrolled' });
    await store.getOrCreate('b');
    await expect(store.getOrCreatePending('a')).rejects.toMatchObject({ name: 'UsageError', code: 'not_enrolled' });
    expect(await store.promote('a', OTHER_ID)).toBe(false);
    expect(await store.discard('a', OTHER_ID)).toBe(false);
    expect(await store.get('a')).toBeNull();
    expect(await store.getPending('a')).toBeNull();
  });

  it.contract('keeps the pending key beside the key: both sign, and only the key is the key', async () => {
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

  it.races(`gives ${RACING} racing callers over ${STORES} stores the same pending key`, async () => {
    const open = await place();
    const stores = await openAll(open);
    const { keyId } = await stores[0]!.getOrCreate('a');
    const pending = await race(stores, (store) => store.getOrCreatePending('a'));
    expect(new Set(pending.map((one) => one.keyId)).size).toBe(1);
    expect((await (await open()).getPending('a'))?.keyId).toBe(pending[0]!.keyId);
    await Promise.all(pending.map((one) => expectToSign(one)));
    expect((await stores[1]!.get('a'))?.keyId).toBe(keyId);
  });

  it.contract('promotes the pending key in the place of the key, for every store, and knows the former one no more', async () => {
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

  it.contract('discards the pending key and keeps the key; the next pending key is another', async () => {
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

  it.contract('compares before it sets: a wrong id changes nothing', async () => {
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

  it.races(`lets exactly one of ${RACING} racing callers promote`, async () => {
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

  it.races('lets exactly one of racing promotions and discards happen, and the store shows which', async () => {
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

  it.races('never loses the key while callers make, promote and discard pending keys at once', async () => {
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

  it.contract('forgets the pending key with the key that it was to replace', async () => {
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

  it.races('lets no pending key outlive a deletion that races with its promotion', async () => {
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

  it.contract('keeps a pending key of its own for each name', async () => {
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
