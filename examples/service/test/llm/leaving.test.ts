import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { chunkEvent, connections, SSE, STREAMED, startStage, startUpstream, until, type FakeUpstream, type Stage } from './stage.ts';

/** When a client leaves: before the answer's head, in the middle of a stream, in the middle of an answer that is none. */
type Window = 'before-headers' | 'mid-stream' | 'non-stream';

const WINDOWS: readonly Window[] = ['before-headers', 'mid-stream', 'non-stream'];

let fake: FakeUpstream;
let stage: Stage;
/** By the number in the path: called when the upstream has the request, and when it has lost it. */
const arrived = new Map<string, () => void>();
const aborted = new Map<string, () => void>();

beforeEach(async () => {
  fake = await startUpstream((request, response) => {
    const [, , window, id] = request.url!.split('/') as [string, string, Window, string];
    response.once('close', () => aborted.get(id)?.());
    begin(window, response);
    arrived.get(id)?.();
  });
  stage = await startStage({ upstream: fake.upstream });
});

afterEach(async () => {
  await stage.close();
  await fake.close();
});

function begin(window: Window, response: ServerResponse): void {
  if (window === 'mid-stream') response.writeHead(200, SSE).write(chunkEvent('a'));
  else if (window === 'non-stream') response.writeHead(200, { 'content-type': 'application/json', 'content-length': 1000 }).write('{"half":');
}

function event(of: Map<string, () => void>, id: string): Promise<number> {
  return new Promise((resolve) => of.set(id, () => resolve(performance.now())));
}

async function call(window: Window, id: string): Promise<http.ClientRequest> {
  const bytes = await stage.signedBytes({ target: `/proxy/openai/v1/${window}/${id}`, body: '{}' });
  const [head] = bytes.toString('latin1').split('\r\n\r\n', 1);
  const headers = Object.fromEntries(head!.split('\r\n').slice(1).map((line) => line.split(': ', 2) as [string, string]));
  const request = http.request({ host: '127.0.0.1', port: stage.port, method: 'POST', path: `/proxy/openai/v1/${window}/${id}`, headers, agent: false });
  request.on('error', () => {}).end('{}');
  return request;
}

/** Resolves once the client is inside its window. */
async function inside(window: Window, request: http.ClientRequest, arrival: Promise<number>): Promise<void> {
  if (window === 'before-headers') {
    await arrival;
    return;
  }
  const response = await new Promise<IncomingMessage>((resolve) => request.once('response', resolve));
  await new Promise((resolve) => response.on('error', () => {}).once('data', resolve));
}

describe('a client that leaves', () => {
  it.each(WINDOWS)('%s: the upstream is aborted within 250 ms', async (window) => {
    for (let i = 0; i < 20; i += 1) {
      const id = `${window}-${i}`;
      const arrival = event(arrived, id);
      const loss = event(aborted, id);
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
    const stream = await stage.openai({ baseURL: `http://${stage.authority}/proxy/openai/v1/mid-stream/sdk` }).chat.completions.create(STREAMED);
    const loss = event(aborted, 'sdk');
    for await (const _ of stream) stream.controller.abort();
    await loss;
    await until(() => stage.events.at(-1)?.type === 'ended');
    expect(stage.events.at(-1)).toMatchObject({ outcome: 'client_left' });
  });

  it('while its key is looked up: the upstream never hears of it', async () => {
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

  it('a thousand of them, in all windows and before any: 0 sockets stay, of the server and to the upstream', { timeout: 30_000 }, async () => {
    const total = 1000;
    let next = 0;
    const worker = async (): Promise<void> => {
      while (next < total) {
        const number = next++;
        const id = `n-${number}`;
        const window = WINDOWS[number % 3]!;
        const arrival = event(arrived, id);
        const request = await call(window, id);
        // Every tenth leaves without waiting for anything.
        if (number % 10 === 9) await new Promise((resolve) => setTimeout(resolve, number % 7));
        else await inside(window, request, arrival);
        request.destroy();
      }
    };
    await Promise.all(Array.from({ length: 40 }, worker));
    await until(() => stage.proxy.usage().runningCalls === 0);
    await until(async () => (await connections(stage.server)) === 0);
    await until(async () => (await connections(fake.server)) === 0);
    expect(stage.proxy.usage()).toEqual({ runningCalls: 0, upstreamSockets: 0, keptSockets: 0 });
    expect(fake.requests.length).toBeGreaterThanOrEqual(900);
    expect(stage.faults).toEqual([]);
    // And each call that was begun has its ending on record.
    const begun = stage.events.filter(({ type }) => type === 'started').map(({ callId }) => callId);
    const ended = stage.events.filter(({ type }) => type === 'ended').map(({ callId }) => callId);
    expect(ended.toSorted()).toEqual(begun.toSorted());
  });
});
