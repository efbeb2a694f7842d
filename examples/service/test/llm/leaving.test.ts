import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { inside, startLeaving, WINDOWS, type Leaving } from './leaving.ts';
import { connections, STREAMED, startStage, until } from './stage.ts';

let leaving: Leaving;

beforeEach(async () => {
  leaving = await startLeaving();
});
afterEach(() => leaving.close());

describe('a client that leaves', () => {
  it.each(WINDOWS)('%s: the upstream is aborted within 250 ms', async (window) => {
    const { stage, call } = leaving;
    for (let i = 0; i < 20; i += 1) {
      const id = `${window}-${i}`;
      const arrival = leaving.arrival(id);
      const loss = leaving.loss(id);
      const request = await call(window, id);
      await inside(window, request, arrival);
      const leftAtMs = performance.now();
      request.destroy();
      expect((await loss) - leftAtMs).toBeLessThan(250);
    }
    await until(() => stage.events.filter(({ type }) => type === 'ended').length === 20);
    for (const ended of stage.events.filter(({ type }) => type === 'ended')) {
      expect(ended).toMatchObject({ outcome: 'client_left', status: window === 'before-headers' ? null : 200 });
    }
  });

  it('by the abort of the official SDK: the upstream is aborted too', async () => {
    const { stage } = leaving;
    const stream = await stage.openai({ baseURL: `http://${stage.authority}/proxy/openai/v1/mid-stream/sdk` }).chat.completions.create(STREAMED);
    const loss = leaving.loss('sdk');
    for await (const _ of stream) stream.controller.abort();
    await loss;
    await until(() => stage.events.at(-1)?.type === 'ended');
    expect(stage.events.at(-1)).toMatchObject({ outcome: 'client_left' });
  });

  it('while its key is looked up: the upstream never hears of it', async () => {
    const { fake } = leaving;
    let release = (): void => {};
    const held = new Promise<null>((resolve) => {
      release = () => resolve(null);
    });
    const waiting = await startStage({ upstream: fake.upstream, providerKeys: () => held });
    try {
      const before = fake.requests.length;
      const controller = new AbortController();
      const call = waiting.client.fetch(`http://${waiting.authority}/v1/chat/completions`, { method: 'POST', body: '{}', signal: controller.signal });
      await until(() => waiting.proxy.usage().runningCalls === 1);
      controller.abort();
      await expect(call).rejects.toThrow(/abort/i);
      await until(async () => (await connections(waiting.server)) === 0);
      release();
      await until(() => waiting.proxy.usage().runningCalls === 0);
      expect(fake.requests).toHaveLength(before);
      expect(waiting.events).toEqual([]);
    } finally {
      await waiting.close();
    }
  });

  it('hundreds of them, in all windows and before any: 0 sockets stay, of the server and to the upstream', async () => {
    const { fake, stage, call } = leaving;
    const total = 300;
    let next = 0;
    const worker = async (): Promise<void> => {
      while (next < total) {
        const number = next++;
        const id = `n-${number}`;
        const window = WINDOWS[number % 3]!;
        const arrival = leaving.arrival(id);
        const request = await call(window, id);
        // Every tenth leaves without waiting for anything.
        if (number % 10 === 9) await new Promise((resolve) => setTimeout(resolve, number % 7));
        else await inside(window, request, arrival);
        request.destroy();
      }
    };
    await Promise.all(Array.from({ length: 40 }, worker));
    await leaving.nothingLeft();
    expect(fake.requests.length).toBeGreaterThanOrEqual(270);
    expect(stage.faults).toEqual([]);
  });
});
