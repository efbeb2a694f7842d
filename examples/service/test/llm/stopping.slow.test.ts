/**
 * SIGTERM to the service itself, in the middle of a hundred streams of the official SDKs: those that end in time end whole, the rest
 * with an error that the SDK raises, and it is gone within half a minute.
 */
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { caller, folder, remove, startService, type Running } from '../stage.ts';
import { collect, SUBJECTS, WORDS, type Subject } from './sdk-subjects.ts';
import { SSE, until } from './stage.ts';

const STREAMS = 100;
const DRAIN_MS = 30_000;
const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };
const SDKS = SUBJECTS.filter(({ provider }) => provider !== 'azure');
const DIALECTS: readonly [path: RegExp, subject: Subject][] = [
  [/^\/v1\/chat\/completions$/, SDKS.find(({ provider }) => provider === 'openai')!],
  [/^\/v1\/messages$/, SDKS.find(({ provider }) => provider === 'anthropic')!],
  [/:streamGenerateContent/, SDKS.find(({ provider }) => provider === 'google')!],
];

describe('the service, told to stop', { timeout: 120_000 }, () => {
  let data: string;
  let service: Running;
  let client: KeyGuardClient;
  let upstream: Server;
  /** The streams that wait for their second half. */
  const open: { readonly response: ServerResponse; readonly subject: Subject }[] = [];
  const call = caller(() => service.origin);

  beforeAll(async () => {
    upstream = createServer((request, response) => {
      response.on('error', () => {});
      request.resume().on('end', () => {
        const subject = DIALECTS.find(([path]) => path.test(request.url!))![1];
        response.writeHead(200, SSE).write(subject.events(WORDS).words[0]);
        open.push({ response, subject });
      });
    });
    await new Promise<void>((resolve) => upstream.listen(0, '127.0.0.1', resolve));
    const origin = `http://127.0.0.1:${(upstream.address() as AddressInfo).port}`;
    data = await folder();
    service = await startService(data, {
      KEYGUARD_ADMIN_EMAIL: ADMIN.email,
      KEYGUARD_ADMIN_PASSWORD: ADMIN.password,
      OPENAI_API_KEY: 'sk-test-key',
      OPENAI_BASE_URL: `${origin}/v1`,
      ANTHROPIC_API_KEY: 'sk-test-key',
      ANTHROPIC_BASE_URL: origin,
      GOOGLE_API_KEY: 'test-key',
      GOOGLE_GEMINI_BASE_URL: origin,
    });
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

  it(`lets ${STREAMS / 2} of ${STREAMS} streams end whole and ends the others with an error event, cuts none, and is gone in time`, async () => {
    const place = { authority: new URL(service.origin).host, client };
    const streams = Array.from({ length: STREAMS }, (_, i) => {
      const subject = SDKS[i % SDKS.length]!;
      return collect(subject.stream(place, undefined, { maxRetries: 0 })).then((outcome) => ({ ...outcome, title: subject.title }));
    });
    await until(() => open.length === STREAMS, 30_000);
    const stoppedAtMs = performance.now();
    const exit = service.stop('SIGTERM');
    await expect.poll(async () => (await call('GET', '/readyz')).status, { timeout: 1000, interval: 20 }).toBe(503);
    const notReadyMs = performance.now() - stoppedAtMs;
    await expect(SDKS[0]!.plain(place, { maxRetries: 0 })).rejects.toMatchObject({ status: 503, code: 'service_stopping' });
    await pause(1000);
    for (const { response, subject } of open.slice(0, STREAMS / 2)) {
      const { words, last } = subject.events(WORDS);
      response.end(words.slice(1).join('') + last);
    }

    const outcomes = await Promise.all(streams);
    expect(await exit).toBe(0);
    const tookMs = performance.now() - stoppedAtMs;
    const whole = outcomes.filter(({ error }) => error === null);
    const ended = outcomes.filter(({ error }) => error?.message.includes('is stopping') === true);
    process.stdout.write(`SIGTERM: not ready after ${notReadyMs.toFixed(0)} ms, ${whole.length} streams whole, ${ended.length} with an error event, gone after ${(tookMs / 1000).toFixed(1)} s\n`);
    expect(outcomes.filter((outcome) => !whole.includes(outcome) && !ended.includes(outcome)).map(({ title, error }) => [title, error?.message])).toEqual([]);
    expect([whole.length, ended.length]).toEqual([STREAMS / 2, STREAMS / 2]);
    expect(new Set(whole.map(({ words }) => words.join('')))).toEqual(new Set([WORDS.join('')]));
    expect(new Set(ended.map(({ words }) => words.join('')))).toEqual(new Set([WORDS[0]]));
    expect(tookMs).toBeLessThan(DRAIN_MS);
  });
});
