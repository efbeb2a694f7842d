/**
 * The load, in a process of its own, on the other core: keep-alive connections over raw sockets, each with one request in flight.
 * Requests are signed and serialised before the clock starts; answers are only counted, so that this costs next to nothing.
 */
import { connect, type Socket } from 'node:net';
import { SignJWT } from 'jose';
import { AUTHORITY, BODY, keyFrom, ORDINARY_HEADERS, quickSigner, TARGET, type Key, type PrivateJwk } from './material.ts';
import { rfc9421Signer } from './rfc9421.ts';

const DISTINCT_TOKENS = 200;

/** What the requests of a run carry. Only KeyGuard's must all be different: the others are not kept from being sent twice. */
export type Carriage = 'none' | 'bearer' | 'rfc9421' | 'keyguard';

export interface Run {
  readonly port: number;
  readonly carriage: Carriage;
  readonly requests: number;
  readonly connections: number;
}

export interface RunResult {
  readonly requestsPerSecond: number;
}

type Headers = readonly (readonly [name: string, value: string])[];

function serialise(headers: Headers): Buffer {
  const all: Headers = [['host', AUTHORITY], ...headers, ['content-length', String(BODY.length)], ['connection', 'keep-alive']];
  return Buffer.concat([Buffer.from(`POST ${TARGET} HTTP/1.1\r\n${all.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`), BODY]);
}

async function prepare(key: Key, carriage: Carriage, requests: number): Promise<Buffer[]> {
  const signRfc9421 = rfc9421Signer(key);
  const sign = quickSigner(key);
  const one = async (i: number): Promise<Buffer> => {
    switch (carriage) {
      case 'none':
        return serialise(ORDINARY_HEADERS);
      case 'bearer': {
        const claims = new SignJWT({ jti: String(i), htm: 'POST', htu: `https://${AUTHORITY}${TARGET}` });
        const token = await claims.setProtectedHeader({ alg: 'ES256', kid: key.keyId }).setIssuedAt().setExpirationTime('5m').sign(key.privateObject);
        return serialise([...ORDINARY_HEADERS, ['authorization', `Bearer ${token}`]]);
      }
      case 'rfc9421':
        return serialise(Object.entries((await signRfc9421()).headers));
      case 'keyguard': {
        const signed = await sign({ method: 'POST', authority: AUTHORITY, target: TARGET, headers: ORDINARY_HEADERS, body: BODY });
        return serialise([...ORDINARY_HEADERS, ...Object.entries(signed)]);
      }
    }
  };
  const distinct = carriage === 'keyguard' ? requests : Math.min(requests, DISTINCT_TOKENS);
  const prepared: Buffer[] = [];
  for (let i = 0; i < distinct; i += 1) prepared.push(await one(i));
  return prepared;
}

async function open(port: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1', () => resolve(socket.setNoDelay(true)));
    socket.once('error', reject);
  });
}

/** Sends one request and answers with the length of its whole response: all of one server are equally long. */
async function probe(port: number, request: Buffer): Promise<number> {
  const socket = await open(port);
  return new Promise((resolve, reject) => {
    let text = '';
    socket.on('data', (chunk) => {
      text += chunk.toString('latin1');
      const headLength = text.indexOf('\r\n\r\n') + 4;
      if (headLength < 4) return;
      const length = headLength + Number(/content-length: (\d+)/i.exec(text)?.[1]);
      if (text.length < length) return;
      socket.destroy();
      if (text.startsWith('HTTP/1.1 200 ')) resolve(length);
      else reject(new Error(`A server refused what it should accept: ${text}`));
    });
    socket.write(request);
  });
}

const STATUS_AT = 'HTTP/1.1 '.length;
const DIGIT_TWO = 0x32;

async function drive(key: Key, { port, carriage, requests, connections }: Run): Promise<RunResult> {
  // The first is spent on the probe.
  const prepared = await prepare(key, carriage, requests + 1);
  const answerLength = await probe(port, prepared[0]!);
  const sockets = await Promise.all(Array.from({ length: connections }, () => open(port)));
  (globalThis as { gc?: () => void }).gc?.();
  let sent = 0;
  let answered = 0;
  const startedAtMs = performance.now();
  await new Promise<void>((resolve, reject) => {
    const sendTo = (socket: Socket): void => {
      if (sent === requests) return;
      sent += 1;
      socket.write(prepared[sent % prepared.length]!);
    };
    for (const socket of sockets) {
      let received = 0;
      socket.on('data', (chunk) => {
        if (received === 0 && chunk[STATUS_AT] !== DIGIT_TWO) reject(new Error(`A server refused what it should accept: ${chunk.toString('latin1')}`));
        received += chunk.length;
        if (received < answerLength) return;
        received = 0;
        answered += 1;
        if (answered === requests) resolve();
        else sendTo(socket);
      });
      socket.once('error', reject);
      socket.once('close', () => reject(new Error('A server closed a connection.')));
      sendTo(socket);
    }
  });
  const elapsedMs = performance.now() - startedAtMs;
  for (const socket of sockets) socket.removeAllListeners('close').destroy();
  return { requestsPerSecond: (requests * 1000) / elapsedMs };
}

const key = await keyFrom(JSON.parse(process.argv[2]!) as PrivateJwk);
process.on('message', (run) => {
  void drive(key, run as Run).then(
    (result) => process.send!(result),
    (error: unknown) => {
      console.error(error);
      process.exit(1);
    },
  );
});
process.on('disconnect', () => process.exit());
