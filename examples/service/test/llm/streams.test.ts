import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import net from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import type { APIError } from 'openai';
import { afterEach, describe, expect, it } from 'vitest';
import {
  chunkEvent,
  listen, openaiUpstream,
  PLAIN,
  SSE,
  startRawUpstream,
  startStage,
  startUpstream,
  STREAMED,
  until,
  type FakeUpstream,
  type Stage,
  type StageOptions,
} from './stage.ts';

const MEBIBYTE = 1024 * 1024;
const closing: (() => Promise<void>)[] = [];

afterEach(async () => {
  for (const close of closing.splice(0).toReversed()) await close();
});

async function given(
  handler: (request: IncomingMessage, response: ServerResponse) => unknown,
  options: Partial<StageOptions> = {},
): Promise<{ fake: FakeUpstream; stage: Stage }> {
  const fake = await startUpstream(handler);
  closing.push(fake.close);
  const stage = await startStage({ upstream: fake.upstream, ...options });
  closing.push(stage.close);
  return { fake, stage };
}

/** Reads a stream with the official SDK: what came before the end, and what was raised at it. */
async function readStream(stage: Stage): Promise<{ words: string[]; error: APIError | null }> {
  const words: string[] = [];
  try {
    for await (const chunk of await stage.openai().chat.completions.create(STREAMED)) words.push(chunk.choices[0]!.delta.content!);
    return { words, error: null };
  } catch (error) {
    return { words, error: error as APIError };
  }
}

async function post(stage: Stage, path: string): Promise<Response> {
  return stage.client.fetch(`http://${stage.authority}/proxy/openai/v1/${path}`, { method: 'POST', body: '{}' });
}

describe('a stream that the upstream breaks', () => {
  it.each([
    ['between two events', chunkEvent('a')],
    ['in the middle of an event', `${chunkEvent('a')}data: {"choices":[{"del`],
    ['between the lines of an event', `${chunkEvent('a')}event: x\n`],
    ['in the middle of a line end', `${chunkEvent('a')}data: {}\r`],
  ])('%s: the SDK raises after the whole events', async (_, sent) => {
    const { stage } = await given(async (__, response) => {
      response.writeHead(200, SSE).write(sent);
      await pause(30);
      response.destroy();
    });
    const { words, error } = await readStream(stage);
    expect(words).toEqual(['a']);
    expect(error).toMatchObject({ code: 'upstream_broken', type: 'server_error' });
    expect(stage.events.at(-1)).toMatchObject({ type: 'ended', outcome: 'upstream_broken', status: 200 });
  });

  it('before its first event: the SDK raises too', async () => {
    const { stage } = await given(async (_, response) => {
      response.writeHead(200, SSE).flushHeaders();
      await pause(30);
      response.destroy();
    });
    expect(await readStream(stage)).toMatchObject({ words: [], error: { code: 'upstream_broken' } });
  });

  it('in the middle of an HTTP chunk, by a reset', async () => {
    const raw = await startRawUpstream((socket) => {
      const event = chunkEvent('a');
      socket.write(`HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n${(event.length * 2).toString(16)}\r\n${event}data: {"ch`);
      setTimeout(() => socket.resetAndDestroy(), 30);
    });
    closing.push(raw.close);
    const { stage } = await given(() => {}, { upstream: raw.upstream });
    expect(await readStream(stage)).toMatchObject({ words: ['a'], error: { code: 'upstream_broken' } });
  });

  it.each([
    ['without the last event', '', 'upstream_broken'],
    ['with the last event', 'data: [DONE]\n\n', null],
  ])('whose end is the end of the connection, %s', async (_, last, code) => {
    const raw = await startRawUpstream((socket) => socket.end(`HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n${chunkEvent('a')}${last}`));
    closing.push(raw.close);
    const { stage } = await given(() => {}, { upstream: raw.upstream });
    const { words, error } = await readStream(stage);
    expect(words).toEqual(['a']);
    expect(error?.code ?? null).toBe(code);
  });

  it('ends as a whole HTTP message, with the error as its last event', async () => {
    const { stage } = await given(async (_, response) => {
      response.writeHead(200, SSE).write(`${chunkEvent('a')}data: {"cut`);
      await pause(30);
      response.destroy();
    });
    const text = await (await post(stage, 'chat/completions')).text();
    const message = 'The provider broke off its answer before the end.';
    expect(text).toBe(`${chunkEvent('a')}data: ${JSON.stringify({ error: { message, type: 'server_error', param: null, code: 'upstream_broken' } })}\n\n`);
  });

  it('in the Responses API: a named event, and its SDK raises', async () => {
    const { stage } = await given(async (_, response) => {
      response.writeHead(200, SSE).write('event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n');
      await pause(30);
      response.destroy();
    });
    const stream = await stage.openai().responses.create({ model: 'm', input: 'Hello?', stream: true });
    const types: string[] = [];
    const error = await (async () => {
      for await (const event of stream) types.push(event.type);
    })().catch((raised: unknown) => raised);
    expect(types).toEqual(['response.created']);
    expect(error).toMatchObject({ code: 'upstream_broken' });
    expect(await (await post(stage, 'responses')).text()).toMatch(/\n\nevent: error\ndata: \{"type":"error","error":\{.*\}\}\n\n$/);
  });

  it('after a part of a very long event: the error event stands alone behind it', async () => {
    const { stage } = await given(async (_, response) => {
      response.writeHead(200, SSE).write(`data: ${'x'.repeat(200_000)}`);
      await pause(50);
      response.destroy();
    });
    const events = (await (await post(stage, 'images/generations')).text()).split('\n\n');
    expect(events[0]).toBe(`data: ${'x'.repeat(events[0]!.length - 6)}`);
    expect(JSON.parse(events[1]!.slice('data: '.length))).toMatchObject({ error: { code: 'upstream_broken' } });
    expect(events.slice(2)).toEqual(['']);
  });
});

describe('an answer that is no stream and that the upstream breaks', () => {
  it.each([
    ['of known length', { 'content-length': '1000' }],
    ['of unknown length', {}],
  ])('%s: the client sees an error', async (_, headers) => {
    const { stage } = await given(async (__, response) => {
      response.writeHead(200, { 'content-type': 'application/json', ...headers }).write('{"id":"half');
      await pause(30);
      response.destroy();
    });
    await expect(stage.openai().chat.completions.create(PLAIN)).rejects.toThrow(/terminated|Connection error/);
    const response = await post(stage, 'chat/completions');
    await expect(response.text()).rejects.toThrow('terminated');
    expect(stage.events.at(-1)).toMatchObject({ outcome: 'upstream_broken' });
  });
});

describe('an upstream that is silent', () => {
  it('before its head: 504', async () => {
    const { fake, stage } = await given(() => {}, { limits: { headersTimeoutMs: 150 } });
    await expect(stage.openai().chat.completions.create(PLAIN)).rejects.toMatchObject({ status: 504, code: 'upstream_timeout' });
    await until(async () => fake.requests[0]!.socket.destroyed);
  });

  it('drips its head byte by byte: 504 all the same', async () => {
    const raw = await startRawUpstream(async (socket) => {
      for (const byte of `HTTP/1.1 200 OK\r\nx: ${'y'.repeat(1000)}`) {
        if (socket.destroyed) return;
        socket.write(byte);
        await pause(10);
      }
    });
    closing.push(raw.close);
    const { stage } = await given(() => {}, { upstream: raw.upstream, limits: { headersTimeoutMs: 150 } });
    await expect(stage.openai().chat.completions.create(PLAIN)).rejects.toMatchObject({ status: 504, code: 'upstream_timeout' });
  });

  it('in the middle of a stream: the SDK raises after the idle timeout', async () => {
    const { fake, stage } = await given((_, response) => response.writeHead(200, SSE).write(chunkEvent('a')), { limits: { idleTimeoutMs: 150 } });
    expect(await readStream(stage)).toMatchObject({ words: ['a'], error: { code: 'upstream_timeout' } });
    await until(() => fake.requests[0]!.socket.destroyed);
  });

  it('in the middle of an answer that is no stream: the client sees an error', async () => {
    const { stage } = await given((_, response) => response.writeHead(200, { 'content-length': 100 }).write('half'), { limits: { idleTimeoutMs: 150 } });
    await expect((await post(stage, 'x')).text()).rejects.toThrow('terminated');
  });

  it('is not one that is slow: every byte counts as life', async () => {
    const { stage } = await given(
      async (_, response) => {
        response.writeHead(200, SSE);
        for (const byte of chunkEvent('slow')) {
          response.write(byte);
          await pause(3);
        }
        response.end('data: [DONE]\n\n');
      },
      { limits: { idleTimeoutMs: 400 } },
    );
    expect(await readStream(stage)).toEqual({ words: ['slow'], error: null });
  });

  it('nor may one be slow for ever', async () => {
    const { stage } = await given(
      async (_, response) => {
        response.writeHead(200, SSE);
        while (!response.destroyed) {
          response.write(': alive\n\n');
          await pause(10);
        }
      },
      { limits: { callTimeoutMs: 250 } },
    );
    expect(await readStream(stage)).toMatchObject({ words: [], error: { code: 'call_too_long' } });
  });
});

describe('an upstream that never ends', () => {
  it('a line: capped, with an error event, and the upstream is left', async () => {
    const { fake, stage } = await given(
      (_, response) => {
        response.writeHead(200, SSE).write(`${chunkEvent('a')}data: `);
        const pour = (): void => {
          while (!response.destroyed && response.write('x'.repeat(16_384)));
        };
        response.on('drain', pour);
        pour();
      },
      { limits: { maxEventBytes: 256 * 1024 } },
    );
    const text = await (await post(stage, 'chat/completions')).text();
    expect(text.length).toBeLessThan(MEBIBYTE);
    expect(text).toMatch(/"code":"upstream_event_too_long"\}\}\n\n$/);
    await until(() => fake.requests[0]!.socket.destroyed);
    await until(() => stage.proxy.usage().upstreamSockets === 0);
  });
});

describe('a client that reads slowly', () => {
  it.each([
    ['a stream', SSE, `data: ${'x'.repeat(65_528)}\n\n`],
    ['a body', { 'content-type': 'application/octet-stream' }, 'x'.repeat(65_536)],
  ])('%s: the upstream is stopped, memory stays flat, and everything arrives when it reads on', async (_, headers, piece) => {
    const total = 128 * MEBIBYTE;
    let written = 0;
    const { stage } = await given((__, response) => {
      response.writeHead(200, headers);
      const pour = (): void => {
        while (written < total) {
          written += piece.length;
          if (!response.write(piece)) return void response.once('drain', pour);
        }
        response.end();
      };
      pour();
    });
    const socket = net.connect(stage.port, '127.0.0.1');
    closing.push(async () => void socket.destroy());
    socket.write(await stage.signedBytes({ target: '/proxy/openai/v1/files/big', body: '{}' }));
    await once(socket, 'readable');
    // What a stopped sender may still write is what the kernel holds for two connections, and a few buffers of ours.
    let before = -1;
    while (before !== written) {
      before = written;
      await pause(250);
    }
    expect(written).toBeGreaterThan(0);
    expect(written).toBeLessThan(40 * MEBIBYTE);
    expect(stage.proxy.usage().runningCalls).toBe(1);
    let received = 0;
    socket.on('data', (chunk: Buffer) => {
      received += chunk.length;
    });
    await once(socket, 'close');
    expect(written).toBe(total);
    expect(received).toBeGreaterThan(total);
    await until(() => stage.events.at(-1)?.type === 'ended');
    expect(stage.events.at(-1)).toMatchObject({ outcome: 'completed', responseBytes: total });
  });

  it('and then takes nothing at all: it is cut off after the idle timeout', async () => {
    const { stage } = await given(
      (_, response) => {
        response.writeHead(200, SSE);
        const pour = (): void => {
          while (!response.destroyed && response.write(`data: ${'x'.repeat(65_528)}\n\n`));
        };
        response.on('drain', pour);
        pour();
      },
      { limits: { idleTimeoutMs: 300 } },
    );
    const socket = net.connect(stage.port, '127.0.0.1');
    closing.push(async () => void socket.destroy());
    socket.on('error', () => {}).write(await stage.signedBytes({ target: '/proxy/openai/v1/x', body: '{}' }));
    await until(() => stage.proxy.usage().runningCalls === 1);
    await until(() => stage.proxy.usage().runningCalls === 0);
    expect(stage.events.at(-1)).toMatchObject({ type: 'ended', outcome: 'client_left' });
    await until(() => stage.proxy.usage().upstreamSockets === 0);
  });
});

describe('a large request', () => {
  it('arrives whole at an upstream that reads slowly', async () => {
    const body = randomBytes(4 * MEBIBYTE).toString('base64');
    const hash = createHash('sha256');
    const server = createServer(async (request, response) => {
      for await (const chunk of request) {
        hash.update(chunk);
        await pause(5);
      }
      response.end(hash.digest('hex'));
    });
    const upstream = openaiUpstream(`http://127.0.0.1:${await listen(server)}/v1`);
    closing.push(async () => void server.close().closeAllConnections());
    const { stage } = await given(() => {}, { upstream });
    const response = await stage.client.fetch(`http://${stage.authority}/proxy/openai/v1/files`, { method: 'POST', body });
    expect(await response.text()).toBe(createHash('sha256').update(body).digest('hex'));
  });
});
