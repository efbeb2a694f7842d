/**
 * The port, and what is said on it before there is an application: while the service starts, and to whatever is no HTTP. Slow and
 * oversized requests end here.
 */
import { createServer, STATUS_CODES, type IncomingMessage, type RequestListener, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { problemType } from './problems.ts';

// By default Node looks every half minute for who is too slow, and lets them be for as long.
const CONNECTIONS_CHECKED_EVERY_MS = 2000;

/** Answers while the service is being put together. */
const starting: RequestListener = (request, response) => {
  const isAlive = request.url === '/healthz';
  response.writeHead(isAlive ? 200 : 503, { 'content-type': 'application/json', 'cache-control': 'no-store', 'retry-after': '1' });
  response.end(JSON.stringify({ status: isAlive ? 'ok' : 'starting' }));
};

const MALFORMED = (status: number): string =>
  JSON.stringify({ type: problemType('malformed_request'), title: 'Malformed request', status, detail: 'The request cannot be read.', code: 'malformed_request' });

function answerMalformed(response: ServerResponse, status = 400): void {
  response.writeHead(status, { 'content-type': 'application/problem+json', 'cache-control': 'no-store', connection: 'close' });
  response.end(MALFORMED(status));
}

/** What is no HTTP gets an answer all the same, where there is still someone to read it. */
function refuseUnreadable(error: NodeJS.ErrnoException, socket: Duplex): void {
  const status = error.code === 'HPE_HEADER_OVERFLOW' ? 431 : error.code === 'ERR_HTTP_REQUEST_TIMEOUT' ? 408 : 400;
  const body = MALFORMED(status);
  const head = [`HTTP/1.1 ${status} ${STATUS_CODES[status]}`, 'content-type: application/problem+json', `content-length: ${Buffer.byteLength(body)}`, 'connection: close'];
  socket.end(`${head.join('\r\n')}\r\n\r\n${body}`);
}

export interface Listening {
  readonly port: number;
  readonly server: Server;
  /** From now on `application` answers; `onUnreadable` hears of what never got so far, with the address at the other end of the socket. */
  serve(application: RequestListener, onUnreadable: (ip: string | null) => void): void;
}

/** Listens on `port` (0 for any) of `host`; answers that the service is starting, until there is something to {@link Listening.serve}. */
export async function listen({ port, host }: { readonly port: number; readonly host: string }): Promise<Listening> {
  let listener = starting;
  let onUnreadable: (ip: string | null) => void = () => {};
  const refuse = (request: IncomingMessage, response: ServerResponse, status?: number): void => {
    onUnreadable(request.socket.remoteAddress ?? null);
    answerMalformed(response, status);
  };
  const server = createServer({ headersTimeout: 15_000, requestTimeout: 60_000, connectionsCheckingInterval: CONNECTIONS_CHECKED_EVERY_MS, keepAliveTimeout: 65_000, requireHostHeader: false }, (request, response) => {
    // Forms that are no path (absolute, authority, asterisk) are read by routers in ways of their own. Node would refuse a
    // request without a Host by itself, but without a code.
    if (request.url?.startsWith('/') && request.headers.host !== undefined) listener(request, response);
    else refuse(request, response);
  });
  server.on('clientError', (error: NodeJS.ErrnoException, socket: Duplex) => {
    if (error.code === 'ECONNRESET' || !socket.writable) {
      socket.destroy();
      return;
    }
    onUnreadable((socket as Socket).remoteAddress ?? null);
    refuseUnreadable(error, socket);
  });
  server.on('checkExpectation', (request, response) => refuse(request, response, 417));
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject).listen(port, host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    server,
    serve(application, hear) {
      [listener, onUnreadable] = [application, hear];
    },
  };
}
