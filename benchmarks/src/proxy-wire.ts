/**
 * Answers of HTTP/1.1 servers, read from a raw socket: when the head was whole, when the first byte of the body came, and when the
 * answer was at its end. Bodies are not kept, so that reading costs next to nothing.
 */
import { connect, type Socket } from 'node:net';

/** When the parts of one answer came, by the monotonic clock. */
export interface Answer {
  readonly firstByteAtMs: number;
  readonly endedAtMs: number;
}

export interface Connection {
  /** Sends one request and reads its answer. Rejects where the status is not 200, or the connection ends. */
  exchange(request: Buffer): Promise<Answer>;
  /** Sends one request and resolves with all that was answered, as latin1. */
  text(request: Buffer): Promise<string>;
  close(): void;
}

const HEAD_END = '\r\n\r\n';
const LAST_CHUNK = '0\r\n\r\n';

/** How the body of an answer ends, as its head says. */
function endOf(head: string): number | 'chunked' {
  const length = /\r\ncontent-length: *([0-9]+)/i.exec(head)?.[1];
  if (length !== undefined) return Number(length);
  if (/\r\ntransfer-encoding: *chunked/i.test(head)) return 'chunked';
  throw new Error(`An answer has no end: ${head}`);
}

export async function open(port: number): Promise<Connection> {
  const socket = await new Promise<Socket>((resolve, reject) => {
    const opened = connect(port, '127.0.0.1', () => resolve(opened.setNoDelay(true)));
    opened.once('error', reject);
  });
  let onData: ((chunk: Buffer) => void) | undefined;
  let onGone: ((error: Error) => void) | undefined;
  socket.on('data', (chunk: Buffer) => onData?.(chunk));
  socket.on('error', (error) => onGone?.(error));
  socket.on('close', () => onGone?.(new Error('A server closed a connection.')));

  function read(request: Buffer, keep: ((bytes: Buffer) => void) | null): Promise<Answer> {
    return new Promise((resolve, reject) => {
      let head = '';
      let end: number | 'chunked' | undefined;
      let bodyBytes = 0;
      let tail = '';
      let firstByteAtMs = 0;
      onGone = reject;
      onData = (chunk) => {
        keep?.(chunk);
        let body = chunk;
        if (end === undefined) {
          const before = head.length;
          head += chunk.toString('latin1');
          const at = head.indexOf(HEAD_END);
          if (at < 0) return;
          if (!head.startsWith('HTTP/1.1 200 ')) {
            reject(new Error(`A server refused what it should accept: ${head}`));
            return;
          }
          body = chunk.subarray(at + HEAD_END.length - before);
          end = endOf(head.slice(0, at));
        }
        if (body.length > 0 && bodyBytes === 0) firstByteAtMs = performance.now();
        bodyBytes += body.length;
        if (end === 'chunked') {
          tail = (tail + body.subarray(-LAST_CHUNK.length).toString('latin1')).slice(-LAST_CHUNK.length);
          if (tail !== LAST_CHUNK) return;
        } else if (bodyBytes < end) return;
        onData = undefined;
        onGone = undefined;
        resolve({ firstByteAtMs, endedAtMs: performance.now() });
      };
      socket.write(request);
    });
  }

  return {
    exchange: (request) => read(request, null),
    async text(request) {
      const chunks: Buffer[] = [];
      await read(request, (bytes) => chunks.push(bytes));
      return Buffer.concat(chunks).toString('latin1');
    },
    close: () => socket.destroy(),
  };
}
