/**
 * What a body may cost before anything is proven, and after: memory, time and connections, over real sockets. The bytes are
 * framed by hand, as someone would who means ill.
 */
import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect, it, vi } from 'vitest';
import type { Express } from 'express';
import { utf8 } from '@keyguard/core/bytes';
import type { Bytes } from '@keyguard/core/seams';
import { definePolicy } from '@keyguard/server-verifier';
import { bodyBudget } from '@keyguard/server-verifier/body';
import { readRawBody } from '@keyguard/server-verifier/node';
import { AUTHORITY, dial, exchange, NOW_MS, openWorkbench, send, signed, toBytes, valueOf, withHeader, type WireRequest } from './wire.ts';

const SIGNATURE = 'x-keyguard-signature';
const MEBIBYTE = 1024 * 1024;

/** The head of a chunked request that keeps its connection, up to where the body begins. */
function chunkedHead(request: WireRequest): string {
  const lines = request.headers.map(([name, value]) => `${name}: ${value}`);
  return [`${request.method} ${request.target} HTTP/1.1`, ...lines, 'transfer-encoding: chunked', '', ''].join('\r\n');
}

/** The head of a request that announces its length. */
function announcedHead(request: WireRequest, length: number = request.body.length): string {
  return chunkedHead(request).replace('transfer-encoding: chunked', `content-length: ${length}`);
}

function oneByteChunks(body: Bytes): Buffer {
  return Buffer.concat([...body].map((byte) => Buffer.from([0x31, 0x0d, 0x0a, byte, 0x0d, 0x0a])));
}

/** Keeps every request that comes in, for what its socket tells. */
function watch(requests: IncomingMessage[]): (app: Express) => void {
  return (app) => void app.use((request, _response, next) => (requests.push(request), next()));
}

/** Resolves when the server has read `bytes` of the request that came in last, and all that is left to do is to wait for more. */
async function consumed(requests: readonly IncomingMessage[], bytes: number): Promise<void> {
  const isConsumed = (request?: IncomingMessage): boolean => request?.socket.bytesRead === bytes && request.readableFlowing === true && request.readableLength === 0;
  await vi.waitUntil(() => isConsumed(requests.at(-1)), { timeout: 30_000 });
}

/** How many bytes this process holds, with what is garbage taken out. */
function heldBytes(): number {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  collect();
  collect();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

describe('memory', () => {
  it('300,000 chunks of one byte cost the device that sends them what they hold, not what chunks cost', { timeout: 60_000 }, async () => {
    const requests: IncomingMessage[] = [];
    const bench = await openWorkbench({ before: watch(requests) });
    const body = new Uint8Array(300_000).fill(7) as Bytes;
    const request = await signed(await bench.enrolledKey(), { body });
    const [head, chunks] = [chunkedHead(request).replace('\r\n', '\r\nconnection: close\r\n'), oneByteChunks(body)];
    const before = heldBytes();
    const line = dial(bench.port);
    line.write(head);
    line.write(chunks);
    await consumed(requests, head.length + chunks.length);
    expect(heldBytes() - before).toBeLessThan(6 * MEBIBYTE);
    line.write('0\r\n\r\n');
    expect(await line.answer).toMatchObject({ status: 200 });
    expect(Buffer.from(bench.passed[0]!.body).equals(body)).toBe(true);
    await bench.close();
  });

  it('not one byte of a body is held for who has not proven a key', async () => {
    const bench = await openWorkbench({ policy: { authorities: [AUTHORITY], maxUnverifiedBytes: 1, bodyTimeoutMs: 60_000 } });
    const [enrolled, stranger] = [await bench.enrolledKey(), await bench.newKey()];
    const unknown = await signed(stranger);
    const bad = withHeader(await signed(enrolled), SIGNATURE, valueOf(unknown, SIGNATURE));
    for (const request of [unknown, bad]) {
      for (const framing of [{ chunked: false }, { chunked: true }]) {
        expect(await send(bench, request, framing)).toMatchObject({ status: 401, code: 'signature_invalid' });
      }
      // Nor is one waited for: the answer comes while the body is still on its way.
      for (const head of [announcedHead(request), chunkedHead(request)]) {
        expect(await exchange(bench.port, head)).toMatchObject({ status: 401, code: 'signature_invalid' });
      }
    }
    // The control: of a proven device the body is read, which this server has no memory for.
    expect(await send(bench, await signed(enrolled))).toMatchObject({ status: 503, code: 'overloaded' });
    expect(await send(bench, await signed(enrolled), { chunked: true })).toMatchObject({ status: 503, code: 'overloaded' });
    expect(bench.passed).toHaveLength(0);
    await bench.close();
  });

  it('is limited for all bodies together, chunked or announced, and free again when one of them is done', async () => {
    const requests: IncomingMessage[] = [];
    const bench = await openWorkbench({ before: watch(requests), policy: { authorities: [AUTHORITY], maxBodyBytes: 16_000, maxUnverifiedBytes: 24_000 } });
    const [own, other] = [await bench.enrolledKey(), await bench.enrolledKey()];
    for (const chunked of [true, false]) {
      const slow = await signed(own, { body: 'x'.repeat(10_000) });
      const line = dial(bench.port);
      const body = Buffer.from(slow.body);
      const head = (chunked ? `${chunkedHead(slow)}2710\r\n` : announcedHead(slow)).replace('\r\n', '\r\nconnection: close\r\n');
      line.write(head);
      line.write(body.subarray(0, 9000));
      await consumed(requests, head.length + 9000);
      for (const framing of [{ chunked: false }, { chunked: true }]) {
        expect(await send(bench, await signed(other, { body: 'y'.repeat(16_000) }), framing)).toMatchObject({ status: 503, code: 'overloaded' });
        // What is left over is for the others, not for the device that holds most of it.
        expect(await send(bench, await signed(other, { body: 'y'.repeat(3000) }), framing)).toMatchObject({ status: 200 });
        expect(await send(bench, await signed(own, { body: 'y'.repeat(3000) }), framing)).toMatchObject({ status: 503, code: 'overloaded' });
      }
      line.write(body.subarray(9000));
      if (chunked) line.write('\r\n0\r\n\r\n');
      expect(await line.answer).toMatchObject({ status: 200 });
      for (const framing of [{ chunked: false }, { chunked: true }]) {
        expect(await send(bench, await signed(other, { body: 'y'.repeat(16_000) }), framing)).toMatchObject({ status: 200 });
      }
    }
    await bench.close();
  });

  it('is given back after every way in which a body can fail', async () => {
    const requests: IncomingMessage[] = [];
    const policy = { authorities: [AUTHORITY], maxBodyBytes: 12_000, maxUnverifiedBytes: 12_000, bodyTimeoutMs: 300 };
    const bench = await openWorkbench({ before: watch(requests), policy });
    const own = await bench.enrolledKey();
    const body = 'x'.repeat(10_000);
    const failures: [string, () => Promise<string | null>, string][] = [
      ['another body', async () => (await send(bench, { ...(await signed(own, { body })), body: utf8('y'.repeat(10_000)) })).code, 'signature_invalid'],
      ['too large', async () => (await send(bench, await signed(own, { body: 'x'.repeat(12_001) }), { chunked: true })).code, 'body_too_large'],
      ['too slow', async () => (await exchange(bench.port, toBytes(await signed(own, { body })).subarray(0, -1))).code, 'request_timeout'],
      [
        'given up',
        async () => {
          const line = dial(bench.port);
          const before = bench.rejections.length;
          const bytes = toBytes(await signed(own, { body })).subarray(0, -1);
          line.write(bytes);
          await consumed(requests, bytes.length);
          line.leave();
          await vi.waitUntil(() => bench.rejections.length > before);
          return bench.rejections.at(-1)!.error.code;
        },
        'malformed_request',
      ],
      [
        'used before',
        async () => {
          const request = await signed(own, { body });
          await send(bench, request);
          return (await send(bench, request, { chunked: true })).code;
        },
        'replay_detected',
      ],
    ];
    for (const [name, fail, code] of failures) {
      for (let i = 0; i < 2; i += 1) expect({ name, code: await fail() }).toEqual({ name, code });
      expect({ name, answer: await send(bench, await signed(own, { body })) }).toMatchObject({ name, answer: { status: 200 } });
    }
    await bench.close();
  });
});

describe('a caller who leaves in the middle of a body', () => {
  it.each([true, false])('is refused, reported, and takes nothing along (chunked: %s)', async (chunked) => {
    const requests: IncomingMessage[] = [];
    const bench = await openWorkbench({ before: watch(requests) });
    const own = await bench.enrolledKey();
    const request = await signed(own, { body: 'x'.repeat(1000) });
    const line = dial(bench.port);
    line.write(chunked ? `${chunkedHead(request)}3e8\r\nxxx` : `${announcedHead(request)}xxx`);
    await vi.waitUntil(() => requests[0]?.readableFlowing === true);
    line.leave();
    await vi.waitUntil(() => bench.rejections.length === 1);
    expect(bench.rejections[0]).toMatchObject({ keyId: own.keyId, error: { code: 'malformed_request', detail: 'body ended early' } });
    expect(bench.passed).toHaveLength(0);
    // Its nonce was not used: the same request passes when it arrives whole.
    expect(await send(bench, request)).toMatchObject({ status: 200 });
    await bench.close();
  });
});

describe('the connection', () => {
  const next = `GET /api/keyguard/time HTTP/1.1\r\nhost: ${AUTHORITY}\r\nconnection: close\r\n\r\n`;

  it('ends with a refusal whose body was not read: it would be taken for the next request', async () => {
    const bench = await openWorkbench();
    const request = await signed(await bench.newKey(), { body: next });
    for (const head of [announcedHead(request), `${chunkedHead(request)}${next.length.toString(16)}\r\n`]) {
      const line = dial(bench.port);
      line.write(head);
      const answer = await line.answer;
      expect(answer).toMatchObject({ status: 401, code: 'signature_invalid' });
      expect(answer.headers.get('connection')).toBe('close');
    }
    await bench.close();
  });

  it('stays for the next request where there was nothing left to read', async () => {
    const bench = await openWorkbench();
    const request = await signed(await bench.newKey(), { method: 'GET', headers: [], body: '' });
    const line = dial(bench.port);
    line.write(chunkedHead(request).replace('transfer-encoding: chunked\r\n', ''));
    await vi.waitUntil(() => bench.rejections.length === 1);
    line.write(next);
    const answer = await line.answer;
    expect(answer.status).toBe(401);
    expect(answer.headers.get('connection')).toBe('keep-alive');
    expect(answer.body).toContain(`"server_time":${NOW_MS / 1000}`);
    await bench.close();
  });
});

describe('what the headers say of a body', () => {
  // As a server does that drops headers beyond a number of its own (Node 20), and with them the one that announces the body.
  const drop = (app: Express): void =>
    void app.use((request, _response, next) => {
      const lost = new Set(['content-length', 'transfer-encoding']);
      for (const name of lost) delete request.headers[name];
      request.rawHeaders = request.rawHeaders.filter((_, i) => !lost.has(request.rawHeaders[i - (i % 2)]!.toLowerCase()));
      next();
    });

  it.each([true, false])('N41 is not believed: a body that nothing announces is read, and refused unless it was signed (chunked: %s)', async (chunked) => {
    const bench = await openWorkbench({ before: drop });
    const own = await bench.enrolledKey();
    const bodyless = await signed(own, { headers: [], body: '' });
    const added = await exchange(bench.port, toBytes({ ...bodyless, body: utf8('{"evil":true}') }, { chunked }));
    expect(added).toMatchObject({ status: 401, code: 'signature_invalid' });
    expect(bench.passed).toHaveLength(0);
    expect(await send(bench, bodyless, { chunked })).toMatchObject({ status: 200 });
    expect(await send(bench, await signed(own), { chunked })).toMatchObject({ status: 200 });
    expect(Buffer.from(bench.passed.at(-1)!.body).toString()).toBe('{"model":"m"}');
    await bench.close();
  });
});

describe('readRawBody', () => {
  const policy = definePolicy({ authorities: [AUTHORITY], maxBodyBytes: 100_000 });
  const charge = (): void => {};

  /** A message as a server hands it over, of these chunks and headers. */
  function message(chunks: Iterable<Uint8Array>, headers: Record<string, string> = {}): IncomingMessage {
    return Object.assign(Readable.from(chunks, { objectMode: false }), { headers }) as unknown as IncomingMessage;
  }

  it('reads to the end of the stream, also where no header announces a body', async () => {
    const bytes = await readRawBody(message([Buffer.from('one'), Buffer.from('two')]), policy, charge);
    expect(Buffer.from(bytes).toString()).toBe('onetwo');
    expect(await readRawBody(message([]), policy, charge)).toHaveLength(0);
  });

  it('gives the bytes as they came, however they were cut, and charges for all that it allocates', async () => {
    const body = Buffer.from(Array.from({ length: 100_000 }, (_, i) => (i * 31 + (i >> 8)) & 255));
    for (const size of [1, 7, 4096, 16_383, 16_384, 16_385, 50_000, 99_999, 100_000]) {
      const chunks = Array.from({ length: Math.ceil(body.length / size) }, (_, i) => body.subarray(i * size, (i + 1) * size));
      for (const headers of [{}, { 'content-length': String(body.length) }]) {
        let charged = 0;
        const bytes = await readRawBody(message(chunks, headers), policy, (more) => (charged += more));
        expect(body.equals(bytes)).toBe(true);
        expect(charged).toBe(100_000);
      }
    }
  });

  it('refuses more than the limit, announced or not, and a message that is gone already', async () => {
    const large = Buffer.alloc(100_001);
    await expect(readRawBody(message([large]), policy, charge)).rejects.toMatchObject({ code: 'body_too_large' });
    expect(() => readRawBody(message([large], { 'content-length': '100001' }), policy, charge)).toThrow(expect.objectContaining({ code: 'body_too_large' }));
    const gone = message([]);
    gone.destroy();
    expect(() => readRawBody(gone, policy, charge)).toThrow(expect.objectContaining({ code: 'malformed_request' }));
  });

  it('is a mistake in the program where something else read before', async () => {
    const read = message([Buffer.from('x')]);
    for await (const _chunk of read);
    for (const odd of [read, Object.assign(message([]), { body: {} })]) {
      expect(() => readRawBody(odd, policy, charge)).toThrow(expect.objectContaining({ name: 'UsageError' }));
    }
  });

  it('a budget is shared by all, gives back what was released, and nobody alone may use it up', () => {
    const budget = bodyBudget(80);
    const overloaded = expect.objectContaining({ code: 'overloaded' }) as Error;
    const whole = budget('a');
    whole.charge(80);
    const refused = budget('b');
    expect(() => refused.charge(1)).toThrow(overloaded);
    refused.release();
    whole.release();
    // One body may have it all; a second one of the same holder has an eighth together with the first.
    const [first, second] = [budget('a'), budget('a')];
    first.charge(8);
    expect(() => second.charge(3)).toThrow(overloaded);
    expect(() => first.charge(3)).toThrow(overloaded);
    budget('b').charge(70);
    first.release();
    second.charge(10);
    second.release();
  });

  it('a budget forgets who holds nothing any more', () => {
    const budget = bodyBudget(80);
    const before = heldBytes();
    for (let i = 0; i < 100_000; i += 1) {
      const lease = budget(`ip:${i}`);
      lease.charge(80);
      lease.release();
    }
    expect(heldBytes() - before).toBeLessThan(4 * MEBIBYTE);
    // Still in use, or it would be garbage with all that it holds.
    budget('last').charge(80);
  });
});
