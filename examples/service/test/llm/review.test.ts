/** Calls that last longer than what is known of their devices. */
import type http from 'node:http';
import type { APIError } from 'openai';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { RejectedError, UnavailableError } from '@keyguard/core/errors';
import { chunkEvent, SSE, startStage, startUpstream, STREAMED, until, type FakeUpstream, type Stage, type StageOptions } from './stage.ts';

const closing: (() => Promise<void>)[] = [];
afterEach(async () => {
  vi.restoreAllMocks();
  for (const close of closing.splice(0).toReversed()) await close();
});

const openStream = (_: unknown, response: http.ServerResponse): unknown => response.writeHead(200, SSE).write(chunkEvent('a'));

async function given(options: Partial<StageOptions> = {}): Promise<{ fake: FakeUpstream; stage: Stage; ended: Promise<APIError | null> }> {
  const fake = await startUpstream(openStream);
  closing.push(fake.close);
  const stage = await startStage({ upstream: fake.upstream, ...options });
  closing.push(stage.close);
  const stream = await stage.openai().chat.completions.create(STREAMED);
  const ended = (async () => {
    try {
      for await (const _ of stream);
      return null;
    } catch (error) {
      return error as APIError;
    }
  })();
  return { fake, stage, ended };
}

/** Lets the reviews that are under way come to their end. */
const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 20));

const now = performance.now.bind(performance);
/** Sets the monotonic clock this much ahead of its true time. */
function ahead(ms: number): void {
  vi.spyOn(performance, 'now').mockImplementation(() => now() + ms);
}

describe('a review', () => {
  it.each(['suspend', 'revoke'] as const)('ends the running call of a device after %s, with an error event, and leaves the upstream', async (move) => {
    const { fake, stage, ended } = await given();
    stage.proxy.review();
    await settled();
    expect(stage.proxy.usage().runningCalls).toBe(1);
    stage.registry.transition(stage.registry.list()[0]!.deviceId, move);
    stage.proxy.review();
    expect(await ended).toMatchObject({ code: 'device_cut_off' });
    expect(stage.events.at(-1)).toMatchObject({ type: 'ended', outcome: 'device_cut_off' });
    await until(() => fake.requests[0]!.socket.destroyed);
  });

  it('asks for the key and the address with which the call was let in', async () => {
    const asked: unknown[] = [];
    const { stage } = await given({ recheck: async (...call) => void asked.push(call) });
    stage.proxy.review();
    await settled();
    expect(asked).toEqual([[stage.key.keyId, '127.0.0.1']]);
  });

  it('ends a call that began before its end was known, also while its key is being looked up', async () => {
    let release = (): void => {};
    const held = new Promise<void>((resolve) => (release = resolve));
    const fake = await startUpstream(openStream);
    closing.push(fake.close);
    const stage = await startStage({
      upstream: fake.upstream,
      audit: async (event) => (event.type === 'started' ? held : undefined),
      recheck: async () => {
        throw new RejectedError('device_revoked', 'x');
      },
    });
    closing.push(stage.close);
    const call = stage.openai().chat.completions.create(STREAMED);
    await until(() => stage.proxy.usage().runningCalls === 1);
    stage.proxy.review();
    await settled();
    release();
    await expect(call).rejects.toMatchObject({ status: 403, code: 'device_cut_off' });
    expect(fake.requests).toHaveLength(0);
  });

  it('bears with not knowing for nine reviews, counted from when it last knew', async () => {
    let isDown = true;
    const recheck = async (): Promise<void> => {
      if (isDown) throw new UnavailableError('device_changes', 'x');
    };
    const { stage, ended } = await given({ recheck });
    ahead(4000);
    stage.proxy.review();
    await settled();
    expect(stage.proxy.usage().runningCalls).toBe(1);
    isDown = false;
    stage.proxy.review();
    await settled();
    isDown = true;
    ahead(8000);
    stage.proxy.review();
    await settled();
    expect(stage.proxy.usage().runningCalls).toBe(1);
    ahead(8500);
    stage.proxy.review();
    expect(await ended).toMatchObject({ code: 'device_unvouched' });
  });

  it('ends a call nobody can vouch for also when its ending cannot be written down, at once', async () => {
    const { stage, ended } = await given({
      audit: async (event) => (event.type === 'ended' ? new Promise(() => {}) : undefined),
      recheck: async () => {
        throw new Error('whatever');
      },
    });
    ahead(5000);
    const before = Date.now();
    stage.proxy.review();
    expect(await ended).toMatchObject({ code: 'device_unvouched' });
    expect(Date.now() - before).toBeLessThan(1000);
    expect(stage.faults).toHaveLength(1);
  });

  it('does not ask twice while it waits for an answer', async () => {
    let asked = 0;
    const { stage } = await given({
      recheck: () => {
        asked += 1;
        return new Promise(() => {});
      },
    });
    for (let i = 0; i < 10; i += 1) stage.proxy.review();
    expect(asked).toBe(1);
  });
});
