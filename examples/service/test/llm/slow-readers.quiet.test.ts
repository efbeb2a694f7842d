/**
 * Two hundred clients that read large streams slowly, through the service in a process of its own: what it holds for them stays the
 * same while they read, because the upstreams are made to wait. What is measured is printed.
 */
import { readFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { caller, folder, remove, startService, type Running } from '../stage.ts';
import { connections, SSE, until } from './stage.ts';

const READERS = 200;
const MEBIBYTE = 1024 * 1024;
const READ_FOR_MS = 10_000;
/** Between two reads of one reader. */
const READ_EVERY_MS = 500;
const EVENT = `data: ${'x'.repeat(65_528)}\n\n`;
// A few buffers for each of the two connections of a call, and what the collector leaves lying about.
const MAX_GROWTH = 120 * MEBIBYTE;
const MAX_DRIFT = 30 * MEBIBYTE;
const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };

async function residentBytes(pid: number): Promise<number> {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))![1]) * 1024;
}

describe('slow readers', { timeout: 120_000 }, () => {
  let data: string;
  let service: Running;
  let client: KeyGuardClient;
  let upstream: Server;
  /** What each stream has taken. */
  const written: number[] = [];
  const call = caller(() => service.origin);

  beforeAll(async () => {
    upstream = createServer((request, response) => {
      const number = written.push(0) - 1;
      response.on('error', () => {}).writeHead(200, SSE);
      const pour = (): void => {
        while (!response.destroyed) {
          written[number]! += EVENT.length;
          if (!response.write(EVENT)) break;
        }
      };
      request.resume().on('end', pour);
      response.on('drain', pour);
    });
    await new Promise<void>((resolve) => upstream.listen(0, '127.0.0.1', resolve));
    data = await folder();
    service = await startService(data, {
      KEYGUARD_ADMIN_EMAIL: ADMIN.email,
      KEYGUARD_ADMIN_PASSWORD: ADMIN.password,
      OPENAI_API_KEY: 'sk-test-key',
      OPENAI_BASE_URL: `http://127.0.0.1:${(upstream.address() as AddressInfo).port}/v1`,
    }, { isMeasured: true });
    const token = (await call('POST', '/api/auth/sign-in/email', { body: ADMIN })).headers.get('set-auth-token')!;
    const { code } = (await call('POST', '/api/enrollment-codes', { token, body: {} })).json;
    client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    await client.enroll({ code });
  }, 90_000);
  afterAll(async () => {
    await service?.stop('SIGKILL');
    upstream?.close();
    upstream?.closeAllConnections();
    await remove(data);
  });

  it('keep its memory flat, and their upstreams waiting', async () => {
    const pid = service.child.pid!;
    const before = await residentBytes(pid);
    const abort = new AbortController();
    let read = 0;
    const responses = await Promise.all(
      Array.from({ length: READERS }, () => client.fetch(`${service.origin}/proxy/openai/v1/chat/completions`, { method: 'POST', body: '{"stream":true}', signal: abort.signal })),
    );
    expect(responses.every(({ status }) => status === 200)).toBe(true);
    const readers = responses.map(async ({ body }) => {
      for await (const chunk of body!) {
        read += chunk.length;
        await pause(READ_EVERY_MS);
      }
    });
    for (const reader of readers) reader.catch(() => {});

    const sum = (): number => written.reduce((total, bytes) => total + bytes, 0);
    const samples: number[] = [];
    // The first seconds fill the buffers of the kernel.
    await pause(READ_FOR_MS / 3);
    const [filled, readBefore] = [sum(), read];
    const endsAtMs = performance.now() + READ_FOR_MS;
    while (performance.now() < endsAtMs) {
      samples.push(await residentBytes(pid));
      await pause(100);
    }
    const passed = read - readBefore;
    const taken = sum() - filled;
    const [half, later] = [samples.slice(0, samples.length / 2), samples.slice(samples.length / 2)].map((some) => Math.max(...some)) as [number, number];
    const mebibytes = (bytes: number): string => (bytes / MEBIBYTE).toFixed(0);
    process.stdout.write(
      `${READERS} slow readers: ${mebibytes(before)} MiB before, at most ${mebibytes(half)} and then ${mebibytes(later)} MiB while ${mebibytes(passed)} MiB were read and ${mebibytes(taken)} MiB taken of the upstreams\n`,
    );
    expect(passed).toBeGreaterThan((READERS * MEBIBYTE) / 4);
    expect(later - before).toBeLessThan(MAX_GROWTH);
    expect(later - half).toBeLessThan(MAX_DRIFT);
    // They write no faster than it is read, but for what the kernel holds.
    expect(taken).toBeLessThan(2 * passed);

    const leftAtMs = performance.now();
    abort.abort();
    await until(async () => (await connections(upstream)) === 0, 30_000);
    process.stdout.write(`all of them left at once: the last upstream was left after ${(performance.now() - leftAtMs).toFixed(0)} ms\n`);
    expect((await call('GET', '/readyz')).status).toBe(200);
  });
});
