/** What the watch promises of its news: in time, to everyone, and a refusal where it cannot tell. Time is the test's. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { watchDeviceChanges, type DeviceWatch, type DeviceWatchOptions } from '@keyguard/server-verifier';
import { scriptedChanges, type ScriptedChanges } from './registry-script.ts';

const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date', 'performance'] }));

let opened: DeviceWatch[] = [];
afterEach(() => {
  for (const watch of opened) watch.stop();
  opened = [];
  vi.useRealTimers();
});

interface Watched {
  readonly changes: ScriptedChanges;
  readonly watch: DeviceWatch;
  readonly told: (readonly string[] | 'reset')[];
  readonly failures: unknown[];
  caughtUp: number;
}

function watched(options: DeviceWatchOptions = {}): Watched {
  const changes = scriptedChanges();
  const failures: unknown[] = [];
  const watch = watchDeviceChanges(changes, { onFailure: (error) => failures.push(error), ...options });
  opened.push(watch);
  const all: Watched = { changes, watch, told: [], failures, caughtUp: 0 };
  watch.listen({
    onChanged: (deviceIds) => all.told.push(deviceIds),
    onCaughtUp: () => {
      all.caughtUp += 1;
    },
  });
  return all;
}

/** Past the first poll. */
async function running(options?: DeviceWatchOptions): Promise<Watched> {
  const all = watched(options);
  await pass(0);
  all.changes.asked.open[0]!.answer({ cursor: 'c0', deviceIds: 'reset' });
  await pass(0);
  return all;
}

async function verdict(watch: DeviceWatch): Promise<'caught up' | 'silent'> {
  try {
    await watch.caughtUp();
    return 'caught up';
  } catch (error) {
    expect(error).toMatchObject({ name: 'UnavailableError', seam: 'device_changes' });
    return 'silent';
  }
}

describe('watchDeviceChanges', () => {
  it('knows nothing before its first answer, and makes callers wait for that a quarter of a second', async () => {
    const { changes, watch } = watched();
    expect(watch.silentForMs()).toBe(Infinity);
    const early = verdict(watch);
    const tooEarly = verdict(watched().watch);
    await pass(100);
    changes.asked.open[0]!.answer({ cursor: 'c0', deviceIds: 'reset' });
    await pass(0);
    expect(await early).toBe('caught up');
    await pass(150);
    expect(await tooEarly).toBe('silent');
    expect(changes.asked.count()).toBe(1);
  });

  it('asks every half second, on from where it was, and tells what it hears', async () => {
    const { changes, told } = await running();
    expect(told).toEqual(['reset']);
    await pass(499);
    expect(changes.asked.open).toHaveLength(0);
    await pass(1);
    changes.asked.open[0]!.answer({ cursor: 'c1', deviceIds: ['a', 'b'] });
    await pass(500);
    changes.asked.open[0]!.answer({ cursor: 'c2', deviceIds: [] });
    await pass(500);
    expect(changes.cursors).toEqual([null, 'c0', 'c1', 'c2']);
    expect(told).toEqual(['reset', ['a', 'b']]);
  });

  it('counts from when a poll began, not from when it was answered', async () => {
    const { changes, watch } = await running();
    await pass(500);
    await pass(400);
    changes.asked.open[0]!.answer({ cursor: 'c1', deviceIds: [] });
    await pass(0);
    expect(watch.silentForMs()).toBe(400);
    // The next one is due 500 ms after that one began.
    await pass(100);
    expect(changes.asked.open).toHaveLength(1);
  });

  it('is good for exactly as long as it says, and then for nobody', async () => {
    const { watch } = await running();
    await pass(1000);
    expect(watch.caughtUp()).toBeUndefined();
    await pass(1);
    const asking = verdict(watch);
    await pass(249);
    const late = Promise.race([asking, Promise.resolve('waits')]);
    expect(await late).toBe('waits');
    await pass(1);
    expect(await asking).toBe('silent');
  });

  it('after a pause of the whole process asks first, and refuses nobody who waits for the answer', async () => {
    const { changes, watch } = await running();
    // The machine slept: the wall clock knows, the other one and the timers do not.
    vi.setSystemTime(Date.now() + 3_600_000);
    expect(watch.silentForMs()).toBe(3_600_000);
    const asking = verdict(watch);
    await pass(0);
    expect(changes.asked.open).toHaveLength(1);
    changes.asked.open[0]!.answer({ cursor: 'c1', deviceIds: 'reset' });
    await pass(0);
    expect(await asking).toBe('caught up');
  });

  it('asks once more where the process stood still while it asked, and not for ever', async () => {
    for (const pauses of [1, 2]) {
      const { changes, watch } = await running();
      await pass(1001);
      changes.asked.open[0]!.answer({ cursor: 'c1', deviceIds: [] });
      await pass(0);
      vi.setSystemTime(Date.now() + 10_000);
      const asking = verdict(watch);
      for (let i = 0; i < pauses; i += 1) {
        await pass(0);
        vi.setSystemTime(Date.now() + 2000);
        changes.asked.open[0]!.answer({ cursor: 'c2', deviceIds: [] });
      }
      await pass(0);
      if (pauses === 1) changes.asked.open[0]!.answer({ cursor: 'c3', deviceIds: [] });
      await pass(0);
      expect(await asking).toBe(pauses === 1 ? 'caught up' : 'silent');
      watch.stop();
    }
  });

  it('takes nothing for younger because the clock was set back', async () => {
    const { watch } = await running();
    vi.setSystemTime(Date.now() - 86_400_000);
    await pass(1001);
    expect(watch.silentForMs()).toBe(1001);
    const asking = verdict(watch);
    await pass(250);
    expect(await asking).toBe('silent');
  });

  it('tells a known outage at once, tries again by the clock, and heals', async () => {
    const { changes, watch, failures, told } = await running();
    await pass(500);
    changes.asked.open[0]!.fail();
    await pass(0);
    await pass(500);
    changes.asked.open[0]!.fail();
    await pass(1);
    // Each caller is refused without a wait and without a question of its own.
    for (let i = 0; i < 10; i += 1) expect(await verdict(watch)).toBe('silent');
    expect(changes.asked.count()).toBe(3);
    expect(failures).toHaveLength(2);
    await pass(499);
    changes.asked.open[0]!.answer({ cursor: 'c9', deviceIds: ['x'] });
    await pass(0);
    expect(watch.caughtUp()).toBeUndefined();
    // What happened meanwhile is asked for from the last answer on.
    expect(changes.cursors).toEqual([null, 'c0', 'c0', 'c0']);
    expect(told).toEqual(['reset', ['x']]);
  });

  it('gives up on a poll that hangs, takes no late answer of it, and asks the same again', async () => {
    const { changes, watch, told } = await running();
    await pass(500);
    const hung = changes.asked.open[0]!;
    await pass(1001);
    expect(changes.cursors).toEqual([null, 'c0', 'c0']);
    hung.answer({ cursor: 'late', deviceIds: ['late'] });
    await pass(0);
    expect(told).toEqual(['reset']);
    expect(watch.silentForMs()).toBe(1501);
    changes.asked.open[0]!.answer({ cursor: 'c1', deviceIds: ['late'] });
    await pass(500);
    expect(told).toEqual(['reset', ['late']]);
    expect(changes.cursors).toEqual([null, 'c0', 'c0', 'c1']);
  });

  it('has not heard what a listener did not take, and tells it again', async () => {
    const { changes, watch, failures, told } = await running();
    let refuses = true;
    watch.listen({
      onChanged: () => {
        if (refuses) throw new Error('full');
      },
    });
    await pass(500);
    changes.asked.open[0]!.answer({ cursor: 'c1', deviceIds: ['a'] });
    await pass(0);
    expect(failures).toMatchObject([{ message: 'full' }]);
    expect(watch.silentForMs()).toBe(500);
    refuses = false;
    await pass(500);
    expect(changes.cursors).toEqual([null, 'c0', 'c0']);
    changes.asked.open[0]!.answer({ cursor: 'c1', deviceIds: ['a'] });
    await pass(0);
    expect(told).toEqual(['reset', ['a'], ['a']]);
    expect(watch.silentForMs()).toBe(0);
  });

  it.each([
    ['nothing', undefined],
    ['no cursor', { deviceIds: [] }],
    ['no devices', { cursor: 'c1' }],
    ['other devices', { cursor: 'c1', deviceIds: [1] }],
    ['another word', { cursor: 'c1', deviceIds: 'all' }],
  ])('takes %s for no answer', async (_, answer) => {
    const { changes, watch, told } = await running();
    await pass(500);
    changes.asked.open[0]!.answer(answer as never);
    await pass(0);
    expect(watch.silentForMs()).toBe(500);
    expect(told).toEqual(['reset']);
  });

  it('says when all are caught up, and nothing of it when they are not', async () => {
    const all = await running();
    expect(all.caughtUp).toBe(1);
    await pass(500);
    all.changes.asked.open[0]!.fail();
    await pass(500);
    expect(all.caughtUp).toBe(1);
    all.changes.asked.open[0]!.answer({ cursor: 'c1', deviceIds: [] });
    await pass(0);
    expect(all.caughtUp).toBe(2);
  });

  it('asks at a hint, once for many, and again where one came while it was asking', async () => {
    const { changes } = await running();
    await pass(100);
    for (let i = 0; i < 100; i += 1) changes.hint();
    await pass(0);
    expect(changes.asked.count()).toBe(2);
    for (let i = 0; i < 100; i += 1) changes.hint();
    changes.asked.open[0]!.answer({ cursor: 'c1', deviceIds: [] });
    await pass(19);
    expect(changes.asked.count()).toBe(2);
    await pass(1);
    expect(changes.asked.count()).toBe(3);
  });

  it('tells at once what this process has changed, whoever does not listen', async () => {
    const { watch, told, failures } = await running();
    watch.listen({
      onChanged: () => {
        throw new Error('deaf');
      },
    });
    watch.note('mine');
    expect(told).toEqual(['reset', ['mine']]);
    expect(failures).toHaveLength(1);
  });

  it('stops, and is then as good as silent', async () => {
    const { changes, watch } = await running();
    watch.stop();
    changes.hint();
    await pass(1001);
    expect(changes.asked.count()).toBe(1);
    expect(await verdict(watch)).toBe('silent');
  });

  it.each<[string, DeviceWatchOptions]>([
    ['a promise beyond a second', { maxStaleMs: 1001 }],
    ['no number', { maxStaleMs: NaN }],
    ['polls too far apart to keep the promise', { pollEveryMs: 501 }],
    ['polls without a pause', { pollEveryMs: 0 }],
  ])('refuses %s', (_, options) => {
    expect(() => watched(options)).toThrow(expect.objectContaining({ code: 'invalid_option' }));
  });
});
