/**
 * The least that a proxy can be, in a process of its own: `node:http` with a keep-alive agent, and pipes. With `verify` it checks one
 * ECDSA signature first, always the same one, of bytes that are ready: what any signed request costs at least.
 */
import { verify as verifyBytes } from 'node:crypto';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { makeKey, makeRequest, quickSigner } from './material.ts';

export interface BareTask {
  readonly upstreamPort: number;
  readonly verify: boolean;
}

const { upstreamPort, verify } = JSON.parse(process.argv[2]!) as BareTask;
const key = await makeKey();
const { base, signatureDer } = await makeRequest(quickSigner(key));
const admits = verify ? (): boolean => verifyBytes('sha256', base, key.publicObject, signatureDer) : (): boolean => true;
const agent = new http.Agent({ keepAlive: true, noDelay: true });

const server = http.createServer({ keepAliveTimeout: 600_000 }, (request, response) => {
  if (!admits()) throw new Error('The bare check failed.');
  const { host: _host, connection: _connection, ...headers } = request.headers;
  const outgoing = http.request({ agent, host: '127.0.0.1', port: upstreamPort, method: request.method, path: request.url, headers }, (answer) => {
    response.socket?.setNoDelay(true);
    response.writeHead(answer.statusCode!, answer.headers);
    if (answer.headers['content-length'] === undefined) response.flushHeaders();
    answer.pipe(response);
  });
  outgoing.on('error', () => response.destroy());
  request.pipe(outgoing);
});
server.listen(0, '127.0.0.1', () => process.send!((server.address() as AddressInfo).port));
process.on('disconnect', () => process.exit());
