/** The cache by hand: each race as a script, with the registry's and the feed's answers in the order that hurts. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { Device } from '@keyguard/core/seams';
import { cachedDeviceRegistry, watchDeviceChanges, type CachedDeviceRegistry, type CachedDeviceRegistryOptions, type DeviceWatch } from '@keyguard/server-verifier';
import { device, scriptedChanges, scriptedRegistry, type ScriptedChanges, type ScriptedRegistry } from './registry-script.ts';

const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);

interface Scene {
  readonly registry: ScriptedRegistry;
  readonly changes: ScriptedChanges;
  readonly watch: DeviceWatch;
  readonly cache: CachedDeviceRegistry;
  /** The next poll, with this as its news. */
  poll(...deviceIds: string[]): Promise<void>;
  /** Has the cache keep this device. */
  load(wanted: Device): Promise<void>;
}

let scene: Scene;

async function open(options: CachedDeviceRegistryOptions = {}): Promise<Scene> {
  const [registry, changes] = [scriptedRegistry(), scriptedChanges()];
  const watch = watchDeviceChanges(changes);
  const cache = cachedDeviceRegistry(registry, watch, options);
  let polls = 0;
  await pass(0);
  changes.asked.open[0]!.answer({ cursor: 'c', deviceIds: 'reset' });
  await pass(0);
  return {
    registry,
    changes,
    watch,
    cache,
    async poll(...deviceIds) {
      if (changes.asked.open.length === 0) await pass(500);
      changes.asked.open[0]!.answer({ cursor: `c${(polls += 1)}`, deviceIds });
      await pass(0);
    },
    async load(wanted) {
      const loading = cache.findByKeyId(wanted.keyId);
      await pass(0);
      registry.asked.open[0]!.answer(wanted);
      expect(await loading).toBe(wanted);
    },
  };
}

beforeEach(async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date', 'performance'] });
  scene = await open();
});
afterEach(() => {
  scene.watch.stop();
  vi.useRealTimers();
});

const revoked = (keyId: string): Device => device(keyId, { status: 'revoked' });

describe('cachedDeviceRegistry', () => {
  it('asks once, and then answers at once', async () => {
    const { cache, registry, load } = scene;
    await load(device('k'));
    expect(cache.findByKeyId('k')).toEqual(device('k'));
    expect(registry.asked.count()).toBe(1);
  });

  it('asks once for all who ask at the same time', async () => {
    const { cache, registry } = scene;
    const all = Promise.all(Array.from({ length: 100 }, () => cache.findByKeyId('k')));
    await pass(0);
    expect(registry.asked.count()).toBe(1);
    registry.asked.open[0]!.answer(device('k'));
    expect(new Set(await all).size).toBe(1);
  });

  it('forgets a device with all of its keys when it changed, and no other', async () => {
    const { cache, load, poll } = scene;
    const [old, present, other] = [device('old', { deviceId: 'd' }), device('new', { deviceId: 'd' }), device('other')];
    for (const one of [old, present, other]) await load(one);
    await poll('d', 'never heard of');
    expect(cache.kept()).toBe(1);
    expect(cache.findByKeyId('other')).toBe(other);
    await load(revoked('old'));
    await load(revoked('new'));
  });

  it('forgets everything at a reset', async () => {
    const { cache, changes, load } = scene;
    await load(device('a'));
    await load(device('b'));
    await pass(500);
    changes.asked.open[0]!.answer({ cursor: 'c', deviceIds: 'reset' });
    await pass(0);
    expect(cache.kept()).toBe(0);
    await load(revoked('a'));
  });

  it('forgets at once what this process has changed', async () => {
    const { watch, load } = scene;
    await load(device('k'));
    watch.note('device of k');
    await load(revoked('k'));
  });

  describe.each(['a poll', 'this process', 'a reset'] as const)('a change, told by %s, while the device is being read', (by) => {
    const tell = async (): Promise<void> => {
      if (by === 'this process') scene.watch.note('device of k');
      else if (by === 'a poll') await scene.poll('device of k');
      else {
        await pass(500);
        scene.changes.asked.open[0]!.answer({ cursor: 'c', deviceIds: 'reset' });
        await pass(0);
      }
    };

    it('is not covered up by what was read before it: not kept, not answered', async () => {
      const { cache, registry } = scene;
      const asking = cache.findByKeyId('k');
      await pass(0);
      await tell();
      registry.asked.open[0]!.answer(device('k'));
      await pass(0);
      expect(cache.kept()).toBe(0);
      registry.asked.open[0]!.answer(revoked('k'));
      expect(await asking).toMatchObject({ status: 'revoked' });
      expect(cache.findByKeyId('k')).toMatchObject({ status: 'revoked' });
    });

    it('nor answered to those who asked only after it', async () => {
      const { cache, registry } = scene;
      const before = cache.findByKeyId('k');
      await pass(0);
      await tell();
      const after = cache.findByKeyId('k');
      await pass(0);
      registry.asked.open[0]!.answer(device('k'));
      await pass(0);
      registry.asked.open[0]!.answer(revoked('k'));
      expect(await after).toMatchObject({ status: 'revoked' });
      expect(await before).toMatchObject({ status: 'revoked' });
    });
  });

  it('a change of another device disturbs no reading', async () => {
    const { cache, registry, poll } = scene;
    const asking = cache.findByKeyId('k');
    await pass(0);
    await poll('another');
    registry.asked.open[0]!.answer(device('k'));
    expect(await asking).toMatchObject({ status: 'active' });
    expect(registry.asked.count()).toBe(1);
  });

  it('gives up on a device that changes each time while it is being read', async () => {
    const { cache, registry, watch } = scene;
    const asking = Promise.resolve(cache.findByKeyId('k')).catch((error: unknown) => error);
    for (let i = 0; i < 5; i += 1) {
      await pass(0);
      watch.note('device of k');
      registry.asked.open[0]!.answer(device('k'));
    }
    await pass(0);
    expect(await asking).toMatchObject({ name: 'UnavailableError', seam: 'device_registry' });
    expect(registry.asked.open).toHaveLength(0);
  });

  it('does not remember that it did not know a key', async () => {
    const { cache, registry } = scene;
    const asking = cache.findByKeyId('k');
    await pass(0);
    registry.asked.open[0]!.answer(null);
    expect(await asking).toBeNull();
    await scene.load(device('k'));
  });

  it('takes no null from a reading that began before it was asked: the key may have been enrolled since', async () => {
    const { cache, registry } = scene;
    const before = cache.findByKeyId('k');
    await pass(0);
    const after = cache.findByKeyId('k');
    await pass(0);
    expect(registry.asked.count()).toBe(1);
    registry.asked.open[0]!.answer(null);
    expect(await before).toBeNull();
    await pass(0);
    registry.asked.open[0]!.answer(device('k'));
    expect(await after).toMatchObject({ keyId: 'k' });
  });

  it('waits for no reading that is slow, and lets none of it stay', async () => {
    const { cache, registry, poll } = scene;
    const slow = cache.findByKeyId('k');
    await poll();
    await poll();
    await pass(1);
    const next = cache.findByKeyId('k');
    await pass(0);
    expect(registry.asked.count()).toBe(2);
    registry.asked.open[1]!.answer(revoked('k'));
    expect(await next).toMatchObject({ status: 'revoked' });
    registry.asked.open[0]!.answer(device('k'));
    expect(await slow).toMatchObject({ status: 'revoked' });
  });

  it('refuses everyone once it has heard nothing for too long, and asks no registry', async () => {
    const { cache, registry, changes, load } = scene;
    await load(device('k'));
    await pass(500);
    changes.asked.open[0]!.fail();
    await pass(501);
    for (const keyId of ['k', 'unknown']) {
      const asking = Promise.resolve(cache.findByKeyId(keyId)).catch((error: unknown) => error);
      await pass(250);
      expect(await asking).toMatchObject({ name: 'UnavailableError', code: 'store_unavailable', seam: 'device_changes' });
    }
    expect(registry.asked.count()).toBe(1);
    changes.asked.open[0]!.answer({ cursor: 'c', deviceIds: [] });
    await pass(0);
    // It heard of everything that happened meanwhile, so what it kept is as good as it was.
    expect(cache.findByKeyId('k')).toMatchObject({ status: 'active' });
  });

  it('gives no answer for which it waited so long that it is too old', async () => {
    const { cache, registry } = scene;
    const asking = Promise.resolve(cache.findByKeyId('k')).catch((error: unknown) => error);
    await pass(1100);
    registry.asked.open[0]!.answer(device('k'));
    await pass(250);
    expect(await asking).toMatchObject({ seam: 'device_changes' });
  });

  it('reads again after a minute what nobody said had changed, whatever the clock is set to', async () => {
    const { load, poll } = scene;
    await load(device('k'));
    vi.setSystemTime(Date.now() - 3_600_000);
    for (let i = 0; i < 118; i += 1) await poll();
    expect(scene.cache.findByKeyId('k')).toMatchObject({ status: 'active' });
    // No later one may come before it is a minute old.
    await poll();
    await load(revoked('k'));
    expect(scene.cache.kept()).toBe(1);
  });

  it('keeps no more than it may: the one that was read first makes room', async () => {
    scene.watch.stop();
    scene = await open({ maxDevices: 3 });
    for (const keyId of ['a', 'b', 'c', 'd', 'e']) await scene.load(device(keyId));
    expect(scene.cache.kept()).toBe(3);
    expect(scene.cache.findByKeyId('c')).toMatchObject({ keyId: 'c' });
    await scene.load(device('a'));
    await scene.poll('device of a', 'device of b', 'device of c', 'device of d', 'device of e');
    expect(scene.cache.kept()).toBe(0);
  });

  it('hands a failure on, keeps nothing of it, and refuses a device of another key', async () => {
    const { cache, registry } = scene;
    const failing = Promise.all(['k', 'k'].map(async (keyId) => cache.findByKeyId(keyId))).catch((error: unknown) => error);
    await pass(0);
    registry.asked.open[0]!.fail(new Error('down'));
    expect(await failing).toMatchObject({ message: 'down' });
    const other = Promise.resolve(cache.findByKeyId('k')).catch((error: unknown) => error);
    await pass(0);
    registry.asked.open[0]!.answer(device('another'));
    expect(await other).toMatchObject({ seam: 'device_registry' });
    expect(cache.kept()).toBe(0);
  });

  it('gives everyone the same device, which nobody can change', async () => {
    await scene.load(device('k', { ipAllowlist: ['192.0.2.1'] }));
    const found = scene.cache.findByKeyId('k') as unknown as { status: string; ipAllowlist: string[]; publicKey: { x: string } };
    expect(() => (found.status = 'pending')).toThrow(TypeError);
    expect(() => found.ipAllowlist.push('::/0')).toThrow(TypeError);
    expect(() => (found.publicKey.x = 'y')).toThrow(TypeError);
  });

  it.each<CachedDeviceRegistryOptions>([{ maxDevices: 0 }, { maxDevices: 1.5 }, { maxAgeMs: 60_001 }, { maxAgeMs: 1999 }, { maxAgeMs: NaN }])('refuses %j', (options) => {
    expect(() => cachedDeviceRegistry(scene.registry, scene.watch, options)).toThrow(expect.objectContaining({ code: 'invalid_option' }));
  });
});
