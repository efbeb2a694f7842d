/**
 * The load, in a process of its own, on the other core. Requests are signed and serialised before the clock starts, each with a
 * nonce of its own.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { utf8 } from '@keyguard/core/bytes';
import { KeyGuardClient } from '@keyguard/core/client';
import { isUnavailable } from '@keyguard/core/errors';
import { memoryKeyStore } from '@keyguard/core/memory';
import type { Bytes } from '@keyguard/core/seams';
import { createSigner, type Signer } from '@keyguard/core/sign';
import { BODY, ORDINARY_HEADERS } from './material.ts';
import { EVENTS, type Address, type LoadOrder, type Slice, type SliceReport } from './proxy-task.ts';
import { open } from './proxy-wire.ts';
import { quantile } from './rounds.ts';

const BODIES: Readonly<Record<Slice['body'], Bytes>> = { plain: BODY, stream: utf8(`${Buffer.from(BODY).toString('latin1').slice(0, -1)},"stream":true}`) };

const signers = new Map<string, Signer>();

async function enroll({ origin, code }: { readonly origin: string; readonly code: string }): Promise<void> {
  const keyStore = memoryKeyStore();
  const { host } = new URL(origin);
  const client = new KeyGuardClient({ origin, keyStore });
  // A Redis that has just been started may have forgotten what was used before, and the service waits until that is too old.
  for (let triesLeft = 5; ; triesLeft -= 1) {
    try {
      const { status } = await client.enroll({ code, label: 'benchmark' });
      if (status === 'active') break;
      throw new Error(`The benchmark's device is ${status}.`);
    } catch (error) {
      if (triesLeft === 0 || !isUnavailable(error)) throw error;
      await pause(3000);
    }
  }
  signers.set(host, createSigner({ key: (await keyStore.get(host))! }));
}

async function serialise({ port, target, headers, signFor }: Address, body: Bytes): Promise<Buffer> {
  const authority = `127.0.0.1:${port}`;
  const own = [...ORDINARY_HEADERS, ...headers];
  const signed = signFor === null ? {} : await signers.get(signFor)!({ method: 'POST', authority, target, headers: own, body });
  const all = [['host', authority], ...own, ...Object.entries(signed), ['content-length', String(body.length)], ['connection', 'keep-alive']];
  return Buffer.concat([Buffer.from(`POST ${target} HTTP/1.1\r\n${all.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`), body]);
}

async function check(address: Address): Promise<void> {
  const connection = await open(address.port);
  const plain = await connection.text(await serialise(address, BODIES.plain));
  if (!plain.includes('"chatcmpl-bench"')) throw new Error(`Not what the provider answered: ${plain}`);
  const streamed = await connection.text(await serialise(address, BODIES.stream));
  const events = streamed.split('"word ').length - 1;
  if (events !== EVENTS || !streamed.includes('data: [DONE]')) throw new Error(`Not the provider's stream: ${streamed}`);
  connection.close();
}

async function drive({ address, body, requests, connections: count }: Slice): Promise<SliceReport> {
  const prepared: Buffer[] = [];
  const distinct = address.signFor === null ? 1 : requests;
  for (let i = 0; i < distinct; i += 1) prepared.push(await serialise(address, BODIES[body]));
  const connections = await Promise.all(Array.from({ length: count }, () => open(address.port)));
  (globalThis as { gc?: () => void }).gc?.();
  const waitedMs: number[] = [];
  let sent = 0;
  const startedAtMs = performance.now();
  await Promise.all(
    connections.map(async (connection) => {
      while (sent < requests) {
        const request = prepared[sent % distinct]!;
        sent += 1;
        const sentAtMs = performance.now();
        const { firstByteAtMs, endedAtMs } = await connection.exchange(request);
        waitedMs.push((body === 'stream' ? firstByteAtMs : endedAtMs) - sentAtMs);
      }
    }),
  );
  const elapsedMs = performance.now() - startedAtMs;
  for (const connection of connections) connection.close();
  return { perSecond: (requests * 1000) / elapsedMs, p50Ms: quantile(waitedMs, 0.5), p99Ms: quantile(waitedMs, 0.99) };
}

async function obey(order: LoadOrder): Promise<SliceReport | 'done'> {
  if ('slice' in order) return drive(order.slice);
  await ('enroll' in order ? enroll(order.enroll) : check(order.check));
  return 'done';
}

process.on('message', (order: LoadOrder) => {
  void obey(order).then(
    (answer) => process.send!(answer),
    (error: unknown) => {
      console.error(error);
      process.exit(1);
    },
  );
});
process.on('disconnect', () => process.exit());
process.send!('ready');
