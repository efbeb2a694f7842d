/** Requests as bytes on a socket, for what no client would send. */
import { connect } from 'node:net';

export interface RawAnswer {
  readonly status: number;
  /** Names in lower case. */
  readonly headers: ReadonlyMap<string, string>;
  readonly body: string;
  readonly json: { readonly code?: string };
}

/** Sends these bytes to `origin`, and reads until the other side is through. `lines` end with CRLF each; `body` follows an empty line. */
export function raw(origin: string, lines: readonly string[], body: string | Uint8Array = ''): Promise<RawAnswer> {
  const { hostname, port } = new URL(origin);
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname === 'localhost' ? '127.0.0.1' : hostname);
    const chunks: Buffer[] = [];
    const done = (): void => {
      const text = Buffer.concat(chunks).toString('latin1');
      const end = text.indexOf('\r\n\r\n');
      const [first = '', ...rest] = text.slice(0, Math.max(0, end)).split('\r\n');
      const headers = new Map(rest.map((line) => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]));
      const content = text.slice(end + 4);
      let json: RawAnswer['json'] = {};
      try {
        json = JSON.parse(content.slice(content.indexOf('{'), content.lastIndexOf('}') + 1)) as RawAnswer['json'];
      } catch {
        // Not JSON; the text is there.
      }
      resolve({ status: Number(first.split(' ')[1] ?? 0), headers, body: content, json });
    };
    socket.setTimeout(30_000, () => socket.destroy(new Error('nothing was answered in time')));
    socket.on('data', (chunk) => chunks.push(chunk)).on('error', (error: NodeJS.ErrnoException) => (chunks.length > 0 || error.code === 'ECONNRESET' || error.code === 'EPIPE' ? done() : reject(error))).on('end', done);
    socket.write(Buffer.concat([Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1'), typeof body === 'string' ? Buffer.from(body) : body]));
  });
}
