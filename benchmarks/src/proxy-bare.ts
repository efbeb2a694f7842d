/**
 * The least that a proxy can be, in a process of its own: `node:http` with a keep-alive agent, and pipes. With `verify` it checks one
 * ECDSA signature first, always the same one, of bytes that are ready: what any signed request costs at least. With `commitsTo` it also
 * waits for three rows, each inserted and committed by itself: a nonce and a record before it hands a call on, and a record before the
 * answer ends. So it shows what is left of a gateway that writes its calls down, when all else is taken away.
 */
import { randomBytes, verify as verifyBytes } from 'node:crypto';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { poolOn } from './databases.ts';
import { makeKey, makeRequest, quickSigner } from './material.ts';

export interface BareTask {
  readonly upstreamPort: number;
  readonly verify: boolean;
  /** Where PostgreSQL has the two tables; `null`: nothing is written. */
  readonly commitsTo: string | null;
}

const { upstreamPort, verify, commitsTo } = JSON.parse(process.argv[2]!) as BareTask;
const key = await makeKey();
const { base, signatureDer } = await makeRequest(quickSigner(key));
const admits = verify ? (): boolean => verifyBytes('sha256', base, key.publicObject, signatureDer) : (): boolean => true;
const agent = new http.Agent({ keepAlive: true, noDelay: true });
const pool = commitsTo === null ? null : poolOn(commitsTo, 20);
// As long as the entry of a call.
const record = randomBytes(500);
const writeNonce = async (): Promise<unknown> => pool?.query('INSERT INTO bare_nonces VALUES ($1)', [randomBytes(16).toString('base64url')]);
const writeRecord = async (): Promise<unknown> => pool?.query('INSERT INTO bare_records (entry) VALUES ($1)', [record]);

const server = http.createServer({ keepAliveTimeout: 600_000 }, async (request, response) => {
  if (!admits()) throw new Error('The bare check failed.');
  if (pool !== null) {
    await writeNonce();
    await writeRecord();
  }
  const { host: _host, connection: _connection, ...headers } = request.headers;
  const outgoing = http.request({ agent, host: '127.0.0.1', port: upstreamPort, method: request.method, path: request.url, headers }, (answer) => {
    response.socket?.setNoDelay(true);
    response.writeHead(answer.statusCode!, answer.headers);
    if (answer.headers['content-length'] === undefined) response.flushHeaders();
    if (pool === null) {
      answer.pipe(response);
      return;
    }
    // With its last bytes an answer of known length is at its end.
    const held: Buffer[] = [];
    const isHeld = answer.headers['content-length'] !== undefined;
    answer.on('data', (bytes: Buffer) => void (isHeld ? held.push(bytes) : response.write(bytes)));
    answer.once('end', () => void writeRecord().then(() => response.end(Buffer.concat(held))));
  });
  outgoing.on('error', () => response.destroy());
  request.pipe(outgoing);
});
server.listen(0, '127.0.0.1', () => process.send!((server.address() as AddressInfo).port));
process.on('disconnect', () => process.exit());
