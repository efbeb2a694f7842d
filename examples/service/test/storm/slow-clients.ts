/**
 * A process of its own with clients that never come to an end: heads and bodies a byte at a time, and bombs of all kinds one after
 * the other. Told by a line `{"origin","heads","bodies","ms"}`, it answers with a line of how many of each were answered what.
 */
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';

interface Order {
  readonly origin: string;
  readonly heads: number;
  readonly bodies: number;
  /** How long the bombs go on. */
  readonly ms: number;
}

const BYTE_EVERY_MS = 500;
const BOMB_EVERY_MS = 50;
// Before anything is measured: it costs a second.
const gzip = gzipSync(Buffer.alloc(50 * 1024 * 1024));

/** The status that these bytes are answered with; after `first`, a byte at a time of `rest` for as long as anybody listens. */
function send(port: number, first: string | Buffer, rest: string | null): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    let answer = '';
    const drip = rest === null ? undefined : setInterval(() => socket.write(rest), BYTE_EVERY_MS);
    const done = (): void => {
      clearInterval(drip);
      resolve(/^HTTP\/1\.1 (\d{3})/.exec(answer)?.[1] ?? 'none');
      socket.destroy();
    };
    socket.setEncoding('latin1').on('data', (text) => (answer += text)).on('end', done).on('error', done).on('close', done);
    socket.write(first);
  });
}

for await (const line of createInterface({ input: process.stdin })) {
  const { origin, heads, bodies, ms } = JSON.parse(line) as Order;
  const port = Number(new URL(origin).port);
  const host = `Host: localhost:${port}\r\nConnection: close`;
  const post = `POST /api/auth/sign-in/email HTTP/1.1\r\n${host}\r\nContent-Type: application/json\r\n`;
  const counts: Record<string, Record<string, number>> = {};
  const tally = async (kind: string, answer: Promise<string>): Promise<void> => {
    const status = await answer;
    counts[kind] ??= {};
    counts[kind][status] = (counts[kind][status] ?? 0) + 1;
  };
  const bombs: [string, Buffer][] = [
    ['head', Buffer.from(`GET /api/openapi.json HTTP/1.1\r\n${host}\r\nX-A: ${'a'.repeat(64 * 1024)}\r\n\r\n`)],
    ['body', Buffer.from(`${post}Content-Length: 100000000\r\n\r\n${'['.repeat(128 * 1024)}`)],
    ['chunks', Buffer.from(`${post}Transfer-Encoding: chunked\r\n\r\n${`40\r\n${'['.repeat(64)}\r\n`.repeat(2000)}`)],
    ['gzip', Buffer.concat([Buffer.from(`${post}Content-Encoding: gzip\r\nContent-Length: ${gzip.length}\r\n\r\n`), gzip])],
  ];
  const all = [
    ...Array.from({ length: heads }, () => tally('slow heads', send(port, `GET /api/openapi.json HTTP/1.1\r\n${host}\r\nX-A: `, 'a'))),
    ...Array.from({ length: bodies }, () => tally('slow bodies', send(port, `${post}Content-Length: 1000\r\n\r\n{`, ' '))),
  ];
  const untilMs = performance.now() + ms;
  for (let i = 0; performance.now() < untilMs; i += 1) {
    const [kind, bytes] = bombs[i % bombs.length]!;
    all.push(tally(kind, send(port, bytes, null)));
    await pause(BOMB_EVERY_MS);
  }
  await Promise.all(all);
  process.stdout.write(`${JSON.stringify(counts)}\n`);
}
