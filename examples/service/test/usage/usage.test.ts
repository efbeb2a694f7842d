/** What the usage figures say, against what an upstream reported; the service as a child process that is killed in between. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { usageOf } from '../../src/usage/projection.ts';
import { backends, caller, freePort, startService, type Backend, type Deployment, type Running } from '../stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };

describe('usageOf', () => {
  const entry = {
    action: 'llm.call_ended', outcome: 'success', actor: 'device:d', owner_id: 'o', project_id: 'p', api_key_id: 'k', provider: 'openai', method: 'POST',
    status: 200, code: 'completed', request_bytes: 40, response_bytes: 60, duration_ms: 12, ts: '2026-11-23T04:59:59.999Z', model: 'm', input_tokens: 3, output_tokens: 4, cost_micros: 5, price_source: 'list prices',
  };

  it('is what the entry says, in the hour in which it was written', () => {
    expect(usageOf(entry)).toEqual({
      bucketMs: Date.parse('2026-11-23T04:00:00Z'), projectId: 'p', ownerId: 'o', deviceId: 'd', apiKeyId: 'k', provider: 'openai', model: 'm', isError: false,
      inputTokens: 3, outputTokens: 4, costMicros: 5, isUnpriced: false, isUnreported: false, estimatedTokens: 0, isPartial: false, durationMs: 12,
    });
  });

  it.each([
    ['nothing was reported', { input_tokens: undefined, output_tokens: undefined, cost_micros: undefined, usage_unknown: true, estimated_tokens: 25 }, { isUnreported: true, estimatedTokens: 25, inputTokens: 0, isUnpriced: false }],
    ['the list has no price', { cost_micros: undefined }, { isUnpriced: true, costMicros: 0 }],
    ['a list was read', { method: 'GET', input_tokens: undefined, output_tokens: undefined }, { isUnreported: false, estimatedTokens: 0 }],
    ['the provider refused', { status: 429, input_tokens: undefined, output_tokens: undefined }, { isError: true, isUnreported: false }],
    ['the stream was cut', { outcome: 'failed', code: 'client_left', partial: true }, { isError: true, isPartial: true, inputTokens: 3 }],
    ['nobody was answered', { outcome: 'failed', code: 'upstream_unreachable', status: 502, input_tokens: undefined }, { isError: true, isPartial: false }],
    ['nonsense stands there', { input_tokens: -1, output_tokens: 'x', duration_ms: 1.5 }, { inputTokens: 0, outputTokens: 0, durationMs: 0 }],
  ])('where %s', (_title, change, expected) => {
    expect(usageOf({ ...entry, ...change })).toMatchObject(expected);
  });

  it('is nothing for other entries', () => {
    expect(usageOf({ ...entry, action: 'llm.call' })).toBeNull();
  });
});

describe.each(backends())('the usage figures on %s', (_title, open) => {
  let backend: Backend;
  let deployment: Deployment;
  let service: Running;
  let upstream: Server;
  let port = 0;
  const reported = { requests: 0, input: 0, output: 0, silent: 0 };
  const call = caller(() => service.origin);

  const start = async (): Promise<void> => {
    service = await startService(deployment.folder, {
      ...deployment.environment,
      PORT: String(port),
      KEYGUARD_ADMIN_EMAIL: ADMIN.email,
      KEYGUARD_ADMIN_PASSWORD: ADMIN.password,
      OPENAI_API_KEY: 'sk-usage-0123456789',
      OPENAI_BASE_URL: `http://127.0.0.1:${(upstream.address() as AddressInfo).port}/v1`,
    });
  };
  const signIn = async (): Promise<string> => (await call('POST', '/api/auth/sign-in/email', { body: ADMIN })).headers.get('set-auth-token')!;

  beforeAll(async () => {
    upstream = createServer((request, response) => {
      request.resume().on('end', () => {
        reported.requests += 1;
        const usage = reported.requests % 3 === 0 ? undefined : { prompt_tokens: reported.requests, completion_tokens: 2 };
        if (usage === undefined) reported.silent += 1;
        reported.input += usage?.prompt_tokens ?? 0;
        reported.output += usage?.completion_tokens ?? 0;
        response.writeHead(200, { 'content-type': 'application/json' });
        response.end(JSON.stringify({ model: reported.requests % 2 === 0 ? 'even' : 'odd', usage, choices: [] }));
      });
    });
    await new Promise<void>((resolve) => upstream.listen(0, '127.0.0.1', resolve));
    backend = await open();
    deployment = await backend.deploy();
    port = await freePort();
    await start();
  });
  afterAll(async () => {
    await service?.stop('SIGKILL');
    await backend?.stop();
    upstream?.closeAllConnections();
    upstream?.close();
  });

  it('are what the provider reported, to the token, also when the service is killed in between', async () => {
    let token = await signIn();
    const { json: made } = await call('POST', '/api/enrollment-codes', { token, body: { auto_approve: true } });
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    await client.enroll({ code: made.code, label: 'usage' });
    const ask = async (): Promise<void> => {
      const response = await client.fetch(`${service.origin}/proxy/openai/v1/chat/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"model":"m"}' });
      expect(response.status).toBe(200);
      await response.text();
    };
    for (let i = 0; i < 20; i += 1) await ask();
    // At once: most likely before the log was summed up.
    await service.stop('SIGKILL');
    await start();
    await Promise.all(Array.from({ length: 20 }, ask));
    token = await signIn();

    const expected = { requests: 40, errors: 0, input_tokens: reported.input, output_tokens: reported.output, unreported_requests: reported.silent, partial_requests: 0 };
    const read = async (query: string): Promise<{ requests: number; [name: string]: unknown }[]> => (await call('GET', `/api/analytics/usage${query}`, { token })).json.data;
    await vi.waitFor(async () => expect((await read('?group_by=provider'))[0]).toMatchObject({ provider: 'openai', ...expected }), { timeout: 20_000, interval: 200 });
    const [whole] = (await read('?group_by=provider')) as unknown as [{ estimated_tokens: number; durations: number[] }];
    expect(whole.estimated_tokens).toBeGreaterThan(0);
    expect(whole.durations.reduce((sum, one) => sum + one, 0)).toBe(40);

    const models = await read('?group_by=model');
    expect(models.map(({ model }) => model).toSorted()).toEqual(['even', 'odd']);
    expect(models.reduce((sum, { input_tokens: tokens }) => sum + (tokens as number), 0)).toBe(reported.input);
    expect(await read('?group_by=day,device_id&model=odd')).toEqual([expect.objectContaining({ day: expect.stringMatching(/T00:00:00\.000Z$/), requests: 20 })]);
    expect(await read('?model=unknown')).toEqual([]);
    expect(await read('?to=2020-01-01T00:00:00Z')).toEqual([]);
    for (const bad of ['?group_by=owner_id', '?group_by=hour,day', '?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z', '?group_by=bucket_ms;', '?since=1', '?from=yesterday']) {
      expect([bad, (await call('GET', `/api/analytics/usage${bad}`, { token })).status]).toEqual([bad, 400]);
    }
  });
});
