/**
 * What an upstream may do wrong below HTTP and above, in the dialect of each provider: the official SDK raises an error that says what
 * it was, in bounded time, and no socket stays.
 */
import { once } from 'node:events';
import net, { type AddressInfo, type Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { failure, type FailureCode } from '../../src/llm/failures.ts';
import { collect, SUBJECTS, upstreamAt, WORDS, type Subject } from './sdk-subjects.ts';
import { startStage, until, type Stage } from './stage.ts';

const LIMITS = { connectTimeoutMs: 1000, headersTimeoutMs: 400, idleTimeoutMs: 400, callTimeoutMs: 1000, maxEventBytes: 128 * 1024 };
// Twice what the slowest of them may take here: the rest is for a machine that is busy.
const BOUND_MS = 2 * (LIMITS.callTimeoutMs + 1000);

type Misbehave = (socket: Socket, subject: Subject) => unknown;

const chunk = (text: string): string => `${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`;
const STREAM_HEAD = 'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n';
const first = ({ events }: Subject): string => chunk(events(WORDS).words[0]!);
const whole = (status: string, type: string, body: string, headers = ''): string => `HTTP/1.1 ${status}\r\ncontent-type: ${type}\r\n${headers}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;

/** Writes `piece` every `everyMs` for as long as somebody listens. */
async function drip(socket: Socket, piece: () => string, everyMs = 20): Promise<void> {
  while (!socket.destroyed) {
    socket.write(piece());
    await pause(everyMs);
  }
}

/** Writes `piece` as fast as it is taken, for ever. */
function pour(socket: Socket, piece: string): void {
  const more = (): void => {
    while (!socket.destroyed && socket.write(piece));
  };
  socket.on('drain', more);
  more();
}

const BEFORE_THE_HEAD: readonly [string, FailureCode, Misbehave][] = [
  ['says nothing', 'upstream_timeout', () => {}],
  ['drips its head', 'upstream_timeout', (socket) => {
    socket.write('HTTP/1.1 200 OK\r\nx-slow: ');
    return drip(socket, () => 'x');
  }],
  ['announces an answer again and again', 'upstream_timeout', (socket) => drip(socket, () => 'HTTP/1.1 102 Processing\r\n\r\n')],
  ['resets the connection', 'upstream_broken', (socket) => socket.resetAndDestroy()],
  ['sends a head of a megabyte', 'upstream_broken', (socket) => socket.write(`HTTP/1.1 200 OK\r\n${`x-large: ${'y'.repeat(1000)}\r\n`.repeat(1000)}\r\n`)],
  ['sends a header of a megabyte', 'upstream_broken', (socket) => socket.write(`HTTP/1.1 200 OK\r\nx-large: ${'y'.repeat(1_000_000)}\r\n\r\n`)],
  ['redirects', 'upstream_redirect', (socket) => socket.write('HTTP/1.1 307 Temporary Redirect\r\nlocation: https://elsewhere.example/\r\ncontent-length: 0\r\n\r\n')],
  ['says that nothing has changed', 'upstream_redirect', (socket) => socket.write('HTTP/1.1 304 Not Modified\r\n\r\n')],
  ['compresses', 'upstream_invalid', (socket) => socket.write('HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-type: text/event-stream\r\ncontent-length: 2\r\n\r\n\u001f\u008b')],
  ['shows a page', 'upstream_invalid', (socket) => socket.write(whole('200 OK', 'text/html; charset=utf-8', '<!doctype html><title>Sign in to this network</title>'))],
];

const IN_THE_MIDDLE: readonly [string, FailureCode, Misbehave][] = [
  ['falls silent', 'upstream_timeout', (socket, subject) => socket.write(STREAM_HEAD + first(subject))],
  ['drips for ever, a byte at a time', 'call_too_long', (socket, subject) => {
    socket.write(STREAM_HEAD + first(subject));
    const bytes = `: ${'x'.repeat(10_000)}`;
    let at = 0;
    return drip(socket, () => chunk(bytes[at++]!));
  }],
  ['goes on for ever', 'call_too_long', (socket, subject) => {
    socket.write(STREAM_HEAD + first(subject));
    return drip(socket, () => chunk(': alive\n\n'));
  }],
  ['sends a line without an end', 'upstream_event_too_long', (socket, subject) => {
    socket.write(`${STREAM_HEAD}${first(subject)}${chunk('data: {"text":"')}`);
    pour(socket, chunk('x'.repeat(16_384)));
  }],
  ['resets the connection inside of a chunk', 'upstream_broken', async (socket, subject) => {
    socket.write(`${STREAM_HEAD}${first(subject)}fff\r\ndata: {"half`);
    await pause(50);
    socket.resetAndDestroy();
  }],
  ['ends in good order, but too early', 'upstream_broken', (socket, subject) => socket.write(`${STREAM_HEAD}${first(subject)}0\r\n\r\n`)],
  ['answers once more, with an error', 'upstream_broken', async (socket, subject) => {
    socket.write(STREAM_HEAD + first(subject));
    await pause(50);
    socket.write(whole('500 Internal Server Error', 'application/json', '{}'));
  }],
];

interface Way {
  readonly subject: Subject;
  readonly stage: Stage;
  readonly sockets: ReadonlySet<Socket>;
  misbehave: Misbehave;
  close(): Promise<void>;
}

async function startWay(subject: Subject): Promise<Way> {
  const sockets = new Set<Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket.on('error', () => {}).on('close', () => sockets.delete(socket)));
    socket.on('data', (bytes: Buffer) => {
      if (bytes.toString('latin1').startsWith('POST ')) void way.misbehave(socket, subject);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const stage = await startStage({ upstream: upstreamAt(subject.provider, `http://127.0.0.1:${(server.address() as AddressInfo).port}`), limits: LIMITS });
  const way: Way = {
    subject,
    stage,
    sockets,
    misbehave: () => {},
    async close() {
      await stage.close();
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
  return way;
}

interface Failed {
  readonly title: string;
  readonly words: readonly string[];
  readonly status: number | undefined;
  readonly message: string | undefined;
  readonly outcome: unknown;
}

/** What the SDK makes of a call to such an upstream; nothing of the call is left then. */
async function failed({ subject, stage, sockets }: Way, kind: 'plain' | 'stream'): Promise<Failed> {
  stage.events.length = 0;
  const startedAtMs = performance.now();
  const options = { maxRetries: 0 };
  const { words, error } = await collect(
    kind === 'stream'
      ? subject.stream(stage, undefined, options)
      : (async function* () {
          yield await subject.plain(stage, options);
        })(),
  );
  expect(performance.now() - startedAtMs).toBeLessThan(BOUND_MS);
  await until(() => {
    const { runningCalls, upstreamSockets, keptSockets } = stage.proxy.usage();
    return runningCalls === 0 && upstreamSockets === 0 && sockets.size === keptSockets;
  });
  const [ended, ...more] = stage.events.filter(({ type }) => type === 'ended') as { outcome?: unknown }[];
  expect(more).toEqual([]);
  return { title: subject.title, words, status: (error as { status?: number } | null)?.status, message: error?.message, outcome: ended?.outcome };
}

describe('an upstream that', () => {
  let ways: readonly Way[] = [];
  beforeAll(async () => {
    ways = await Promise.all(SUBJECTS.filter(({ title }) => title.endsWith('current')).map(startWay));
  });
  afterAll(async () => {
    await Promise.all(ways.map((way) => way.close()));
  });

  /** Of all four providers at once, because most of it is waiting. */
  function behind(misbehave: Misbehave, kind: 'plain' | 'stream'): Promise<Failed[]> {
    return Promise.all(
      ways.map((way) => {
        way.misbehave = misbehave;
        return failed(way, kind);
      }),
    );
  }

  it.each(BEFORE_THE_HEAD)('%s: %s', async (_, code, misbehave) => {
    const { status, message } = failure(code);
    for (const kind of ['plain', 'stream'] as const) {
      expect(await behind(misbehave, kind)).toEqual(ways.map(({ subject: { title } }) => ({ title, words: [], status, message: expect.stringContaining(message) as string, outcome: code })));
    }
  });

  it.each(IN_THE_MIDDLE)('in the middle of a stream %s: %s', async (_, code, misbehave) => {
    // Of an event that was too long to be held back, the SDK has seen the beginning, and may raise at that.
    const message = expect.stringContaining(code === 'upstream_event_too_long' ? '' : failure(code).message) as string;
    expect(await behind(misbehave, 'stream')).toMatchObject(ways.map(({ subject: { title } }) => ({ title, words: [WORDS[0]], message, outcome: code })));
  });

  it('refuses with a page and a status: that is its answer', async () => {
    const answers = await behind((socket) => socket.end(whole('503 Service Unavailable', 'text/html', '<h1>down for maintenance</h1>', 'connection: close\r\n')), 'plain');
    expect(answers).toMatchObject(ways.map(({ subject: { title } }) => ({ title, words: [], status: 503, outcome: 'completed' })));
  });

  it('announces its answer before it comes: that is allowed', async () => {
    const answers = await behind((socket, subject) => socket.end(`HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n${whole('200 OK', 'application/json', JSON.stringify(subject.body), 'connection: close\r\n')}`), 'plain');
    expect(answers).toMatchObject(ways.map(({ subject: { title } }) => ({ title, words: [WORDS.join('')], message: undefined, outcome: 'completed' })));
  });
});
