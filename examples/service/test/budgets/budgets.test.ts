/** Budgets as devices and administrators meet them: set over HTTP, held to the request whatever races, and charged with what the log says. */
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { charge, purgeWindows, settle, settleLost, takeBack, type Standing } from '../../src/budgets/charging.ts';
import { asJobs } from '../../src/db/as-user.ts';
import { startOn, type RunningService } from '../roles/service.ts';
import { backends, type Backend, type CallAnswer } from '../stage.ts';
import { ask, enroll, startCountingUpstream, UNTOLD, type BudgetedDevice, type CountingUpstream } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const DAY_MS = 24 * 60 * 60_000;
const NOON = Date.UTC(2027, 1, 10, 12);

describe.each(backends())('budgets on %s', (_title, open) => {
  let backend: Backend;
  let service: RunningService;
  let upstream: CountingUpstream;
  const clock = { offset: 0, nowMs: (): number => Date.now() + clock.offset };

  beforeAll(async () => {
    [backend, upstream] = [await open(), await startCountingUpstream()];
    const { baseUrl } = upstream;
    const others = { ANTHROPIC_API_KEY: 'sk-ant-budgets-0123456789', ANTHROPIC_BASE_URL: baseUrl, GOOGLE_API_KEY: 'budgets-0123456789', GOOGLE_GEMINI_BASE_URL: baseUrl, AZURE_OPENAI_API_KEY: 'azure-0123456789', AZURE_OPENAI_ENDPOINT: baseUrl };
    service = await startOn(backend, { OPENAI_API_KEY: 'sk-budgets-0123456789', OPENAI_BASE_URL: baseUrl, ...others }, { clock });
  });
  afterAll(async () => {
    await service?.stop();
    await upstream?.stop();
    await backend?.stop();
  });

  const admin = (method: string, path: string, body?: object, headers: Record<string, string> = {}): Promise<CallAnswer> => service.call(method, path, { token: service.admin.token, headers, ...(body !== undefined && { body }) });
  async function newDevice(projectId?: string): Promise<BudgetedDevice> {
    const { code } = (await admin('POST', '/api/enrollment-codes', projectId === undefined ? {} : { project_id: projectId })).json;
    return enroll(service.origin, code);
  }
  async function newProject(): Promise<string> {
    const { id } = (await admin('POST', '/api/projects', { name: 'A project' })).json;
    await admin('POST', '/api/api-keys', { project_id: id, provider: 'openai', value: 'sk-of-a-project-0123456789' });
    return id;
  }
  const none = { max_requests: null, max_tokens: null, max_cost_micros: null };
  const setOf = (type: 'devices' | 'projects', id: string, limits: object, period = 'day'): Promise<CallAnswer> => admin('PUT', `/api/${type}/${id}/budget`, { period, ...none, ...limits });
  const used = async (type: 'devices' | 'projects', id: string): Promise<Record<string, number>> => (await admin('GET', `/api/${type}/${id}/budget`)).json.current;
  const settled = (type: 'devices' | 'projects', id: string): Promise<Record<string, number>> =>
    vi.waitFor(async () => {
      const now = await used(type, id);
      expect([now['expected_tokens'], now['expected_cost_micros']]).toEqual([0, 0]);
      return now;
    }, { timeout: 15_000, interval: 50 });
  const again = ({ fetch }: BudgetedDevice, more?: object): Promise<Response> => ask(fetch, service.origin, more);
  const statusesOf = async (answers: readonly Response[]): Promise<Record<number, number>> => {
    const counted: Record<number, number> = {};
    for (const answer of answers) {
      await answer.text();
      counted[answer.status] = (counted[answer.status] ?? 0) + 1;
    }
    return counted;
  };

  it('lets exactly so many requests through as it says, however many race, and says so in the provider’s dialect', async () => {
    const device = await newDevice();
    await again(device).then((answer) => answer.text());
    expect((await setOf('devices', device.deviceId, { max_requests: 10 })).status).toBe(200);
    const before = upstream.calls;
    const answers = await Promise.all(Array.from({ length: 100 }, () => again(device)));
    const refused = answers.find(({ status }) => status === 429)!.clone();
    expect(await statusesOf(answers)).toEqual({ 200: 10, 429: 90 });
    expect(upstream.calls - before).toBe(10);
    expect(await refused.json()).toMatchObject({ error: { type: 'rate_limit_error', code: 'budget_exceeded', message: expect.stringContaining("This device's budget for the day") } });
    const left = Number(refused.headers.get('retry-after'));
    expect(left).toBeGreaterThan(0);
    expect(left).toBeLessThanOrEqual(DAY_MS / 1000);
    expect(refused.headers.get('ratelimit')).toContain('"device-requests";r=0;t=');
    // Hours: nothing that an SDK waits for by itself.
    if (left > 60) expect(refused.headers.get('x-should-retry')).toBe('false');
    const sdk = new OpenAI({ baseURL: `${service.origin}/proxy/openai/v1`, apiKey: 'unused', fetch: device.fetch, maxRetries: 2, logLevel: 'off' });
    await expect(sdk.chat.completions.create({ model: 'gpt-4o-mini', messages: [{ role: 'user', content: 'Hello' }] })).rejects.toMatchObject({ status: 429, code: 'budget_exceeded' });
    expect(upstream.calls - before).toBe(10);
    expect((await service.audit('llm.call_refused'))[0]).toMatchObject({ code: 'budget_exceeded', actor: `device:${device.deviceId}` });
    // The next day has room again.
    clock.offset = DAY_MS;
    expect((await again(device)).status).toBe(200);
    clock.offset = 0;
  });

  it('charges the most that a call may use, and then what the provider reported, to the token and the micro-dollar', async () => {
    const device = await newDevice();
    await setOf('devices', device.deviceId, { max_tokens: 1000, max_cost_micros: 1000 });
    let wasRunning: Record<string, number> = {};
    upstream.answer((response) => {
      void used('devices', device.deviceId).then((now) => {
        wasRunning = now;
        response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ model: 'gpt-4o-mini-2024-07-18', choices: [], usage: { prompt_tokens: 300, completion_tokens: 50, prompt_tokens_details: { cached_tokens: 100 } } }));
      });
    });
    const answer = await again(device);
    await answer.text();
    upstream.answer(null);
    // 100 tokens of input at 0.15 and 100 of output at 0.6 dollars a million.
    expect(wasRunning).toMatchObject({ requests: 1, tokens: 200, expected_tokens: 200, cost_micros: 75, expected_cost_micros: 75 });
    expect(answer.headers.get('ratelimit-policy')).toBe('"default";q=100000;w=60, "device-tokens";q=1000;w=86400, "device-cost-micros";q=1000;w=86400');
    expect(answer.headers.get('ratelimit')).toMatch(/^"default";r=\d+;t=\d+, "device-tokens";r=800;t=\d+, "device-cost-micros";r=925;t=\d+$/);
    expect(await settled('devices', device.deviceId)).toMatchObject({ requests: 1, tokens: 350, cost_micros: 68 });
    const [ended] = await service.audit('llm.call_ended');
    // 200 × 0.15 + 100 × 0.075 + 50 × 0.6 = 67.5
    expect(ended).toMatchObject({ input_tokens: 300, cached_input_tokens: 100, output_tokens: 50, cost_micros: 68, price_source: expect.stringContaining('list prices'), charged_tokens: 350, charged_cost_micros: 68 });
    expect(ended).not.toHaveProperty('charge_estimated');
    await vi.waitFor(async () => {
      const { data } = (await admin('GET', `/api/analytics/usage?group_by=device_id&device_id=${device.deviceId}`)).json;
      expect(data).toMatchObject([{ requests: 1, input_tokens: 300, output_tokens: 50, cost_micros: 68, unpriced_requests: 0, unreported_requests: 0 }]);
    }, { timeout: 10_000, interval: 100 });
  });

  it('has no room for a call that may use more than is left, and soon again where that is only expected', async () => {
    const device = await newDevice();
    await setOf('devices', device.deviceId, { max_tokens: 500 });
    const tooMuch = await again(device, { max_tokens: 401 });
    expect([tooMuch.status, (await tooMuch.json()).error.message]).toEqual([429, expect.stringContaining('name a smaller maximum of output tokens')]);
    let finish: () => void = () => {};
    upstream.answer((response) => {
      finish = () => response.writeHead(200, { 'content-type': 'application/json' }).end('{"model":"gpt-4o-mini","usage":{"prompt_tokens":1,"completion_tokens":1}}');
    });
    const running = again(device, { max_tokens: 300 });
    await vi.waitFor(async () => expect((await used('devices', device.deviceId))['expected_tokens']).toBe(400), { timeout: 10_000 });
    const meanwhile = await again(device, { max_tokens: 300 });
    expect([meanwhile.status, meanwhile.headers.get('retry-after'), meanwhile.headers.get('x-should-retry')]).toEqual([429, '1', null]);
    await meanwhile.text();
    finish();
    await running.then((answer) => answer.text());
    upstream.answer(null);
    expect(await settled('devices', device.deviceId)).toMatchObject({ requests: 1, tokens: 2 });
    expect((await again(device, { max_tokens: 300 })).status).toBe(200);
  });

  it('is the project’s too, for all of its devices together, and both hold', async () => {
    const projectId = await newProject();
    const [one, two] = [await newDevice(projectId), await newDevice(projectId)];
    await setOf('projects', projectId, { max_requests: 5 }, 'month');
    await setOf('devices', one.deviceId, { max_requests: 2 });
    const before = upstream.calls;
    const first = await Promise.all(Array.from({ length: 10 }, () => again(one)));
    expect(await statusesOf(first)).toEqual({ 200: 2, 429: 8 });
    const second = await Promise.all(Array.from({ length: 10 }, () => again(two)));
    const text = await second.find(({ status }) => status === 429)!.clone().text();
    expect(await statusesOf(second)).toEqual({ 200: 3, 429: 7 });
    expect(upstream.calls - before).toBe(5);
    expect(text).toContain("The budget of this device's project for the month");
    // What the project had no room for is not charged to the device.
    expect(await used('devices', one.deviceId)).toMatchObject({ requests: 2 });
    expect(await used('projects', projectId)).toMatchObject({ requests: 5 });
    expect(second[0]!.headers.get('ratelimit')).toMatch(/"project-requests";r=\d;t=\d+/);
  });

  it.each([
    ['nothing was reported', null, { tokens: 104, charge_estimated: true, usage_unknown: true, estimated_tokens: 104 }],
    ['no list knows the model', { model: 'unheard-of', input: 7, output: 3 }, { tokens: 10, usage_unknown: undefined }],
  ])('charges an estimate that is marked where %s', async (_what, reported, { tokens, ...marks }) => {
    const device = await newDevice();
    await setOf('devices', device.deviceId, { max_tokens: 100_000, max_cost_micros: 1_000_000 });
    upstream.report(reported);
    await again(device).then((answer) => answer.text());
    upstream.report({ model: 'gpt-4o-mini', input: 10, output: 5 });
    const [ended] = await service.audit('llm.call_ended');
    expect({ usage_unknown: undefined, ...ended }).toMatchObject({ charged_tokens: tokens, ...marks });
    expect(await settled('devices', device.deviceId)).toMatchObject({ tokens, cost_micros: ended!['charged_cost_micros'] });
    expect(ended!['charged_cost_micros']).toBeGreaterThan(0);
  });

  const post = ({ fetch }: BudgetedDevice, path: string, body: object): Promise<Response> =>
    fetch(`${service.origin}/proxy/${path}`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });

  it.each([{ max_tokens: 1_000_000 }, { max_cost_micros: 1_000_000_000 }])('lets no call through whose answer does not tell what it uses, where %j is all there is', async (limits) => {
    const device = await newDevice();
    await setOf('devices', device.deviceId, limits);
    const before = upstream.calls;
    for (const [path, body] of UNTOLD) {
      const refused = await post(device, path, body);
      expect([path, refused.status, refused.headers.get('x-should-retry'), /usage_untold/i.test(await refused.text())]).toEqual([path, 403, 'false', true]);
    }
    expect(upstream.calls).toBe(before);
    expect((await service.audit('llm.call_refused'))[0]).toMatchObject({ code: 'usage_untold', actor: `device:${device.deviceId}` });
    expect(await used('devices', device.deviceId)).toMatchObject({ requests: 0, tokens: 0 });
    // What uses nothing, and what tells it.
    expect((await post(device, 'openai/v1/batches/b/cancel', {})).status).toBe(200);
    expect((await post(device, 'google/v1beta/interactions', { model: 'gemini-2.5-flash', input: 'x' })).status).toBe(200);
  });

  it('lets no call through that another reader could take for one in the background, and an image before whatever is behind it', async () => {
    const device = await newDevice();
    await setOf('devices', device.deviceId, { max_tokens: 1_000_000 });
    const raw = (path: string, body: string | Uint8Array<ArrayBuffer>): Promise<Response> =>
      device.fetch(`${service.origin}/proxy/${path}`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    const isOn = '{"model":"gpt-4o-mini","input":"x","background":true}';
    const unclear: readonly (string | Uint8Array<ArrayBuffer>)[] = [
      '{"background":true,"model":"gpt-4o-mini","input":"x","background":false}',
      '{"background":true,"model":"gpt-4o-mini","input":"x","\\u0062ackground":false}',
      '{"model":"gpt-4o-mini","input":"x","Background":true}',
      // Python's reader takes these for JSON.
      `\uFEFF${isOn}`,
      Uint8Array.from(Buffer.from(isOn, 'utf16le')),
    ];
    const before = upstream.calls;
    for (const path of ['openai/v1/responses', 'azure/openai/v1/responses', 'google/v1beta/interactions']) {
      for (const body of unclear) {
        const refused = await raw(path, body);
        expect([path, String(body), refused.status, /usage_untold/i.test(await refused.text())]).toEqual([path, String(body), 403, true]);
      }
    }
    expect(upstream.calls).toBe(before);
    expect((await post(device, 'openai/v1/responses', { model: 'gpt-4o-mini', input: 'x', background: false })).status).toBe(200);
    expect((await post(device, 'openai/v1/images/generations', { model: 'gpt-image-1', prompt: 'x', background: 'transparent' })).status).toBe(200);
  });

  it('marks such a call as unknown, with an estimate, where only requests are counted', async () => {
    const device = await newDevice();
    await setOf('devices', device.deviceId, { max_requests: 100 });
    // A new batch says that it used nothing so far.
    upstream.report({ model: 'gpt-4o-mini', input: 0, output: 0 });
    for (const [i, [path, body]] of UNTOLD.entries()) {
      expect([path, (await post(device, path, body).then(async (answer) => (await answer.text(), answer.status)))]).toEqual([path, 200]);
      if (path === 'openai/v1/responses') continue;
      const [ended] = await service.audit('llm.call_ended');
      expect([path, ended]).toEqual([path, expect.objectContaining({ usage_unknown: true, charge_estimated: true })]);
      expect(ended!['estimated_tokens']).toBeGreaterThanOrEqual(JSON.stringify(body).length / 4);
      expect(ended).not.toHaveProperty('output_tokens');
      expect(await used('devices', device.deviceId)).toMatchObject({ requests: i + 1 });
    }
    upstream.report({ model: 'gpt-4o-mini', input: 10, output: 5 });
  });

  it('charges an interaction with what it reports', async () => {
    const device = await newDevice();
    await setOf('devices', device.deviceId, { max_tokens: 10_000 });
    upstream.answer((response) => void response.writeHead(200, { 'content-type': 'application/json' }).end('{"id":"i","model":"gemini-2.5-flash","status":"completed","usage":{"total_input_tokens":100,"total_tool_use_tokens":7,"total_output_tokens":20,"total_thought_tokens":3}}'));
    await post(device, 'google/v1beta/interactions', { model: 'gemini-2.5-flash', input: 'x', generation_config: { max_output_tokens: 200 } }).then((answer) => answer.text());
    upstream.answer(null);
    expect((await service.audit('llm.call_ended'))[0]).toMatchObject({ model: 'gemini-2.5-flash', input_tokens: 107, output_tokens: 23, charged_tokens: 130 });
    expect(await settled('devices', device.deviceId)).toMatchObject({ requests: 1, tokens: 130 });
    const tooMuch = await post(device, 'google/v1beta/interactions', { model: 'gemini-2.5-flash', input: 'x', generation_config: { max_output_tokens: 10_000 } });
    expect([tooMuch.status, await tooMuch.text()]).toEqual([429, expect.stringContaining('BUDGET_EXCEEDED')]);
  });

  it('charges a stream that was cut with what was handed on, marked, and a refusal of the provider with nothing', async () => {
    const device = await newDevice();
    await setOf('devices', device.deviceId, { max_tokens: 100_000 });
    upstream.answer((response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(`data: {"model":"gpt-4o-mini","choices":[{"delta":{"content":"${'x'.repeat(6400)}"}}]}\n\n`);
      setTimeout(() => response.destroy(), 50);
    });
    await again(device, { stream: true }).then((answer) => answer.text());
    const [cut] = await service.audit('llm.call_ended');
    expect(cut).toMatchObject({ code: 'upstream_broken', partial: true, usage_unknown: true, charge_estimated: true });
    expect(cut!['charged_tokens']).toBeGreaterThan(100 + 6400 / 32);
    expect(cut!['charged_tokens']).toBeLessThan(100 + 6600 / 32);
    expect(await settled('devices', device.deviceId)).toMatchObject({ requests: 1, tokens: cut!['charged_tokens'] });
    upstream.answer((response) => void response.writeHead(400, { 'content-type': 'application/json' }).end('{"error":{}}'));
    await again(device).then((answer) => answer.text());
    upstream.answer(null);
    expect(await settled('devices', device.deviceId)).toMatchObject({ requests: 2, tokens: cut!['charged_tokens'] });
  });

  it('is set by administrators alone, for who has seen what is there, and is on record', async () => {
    const device = await newDevice();
    const path = `/api/devices/${device.deviceId}/budget`;
    const empty = await admin('GET', path);
    expect([empty.json, empty.headers.get('etag')]).toEqual([{ budget: null, current: null }, '"0"']);
    const made = await admin('PUT', path, { period: 'month', ...none, max_cost_micros: 5_000_000 }, { 'if-match': '"0"' });
    expect([made.status, made.headers.get('etag'), made.json.budget]).toEqual([200, '"1"', expect.objectContaining({ period: 'month', max_cost_micros: 5_000_000, max_tokens: null, updated_by: service.admin.userId })]);
    expect((await admin('PUT', path, { period: 'day', ...none, max_requests: 1 }, { 'if-match': '"0"' })).status).toBe(412);
    expect((await service.audit('budget.set')).find(({ outcome }) => outcome === 'success')).toMatchObject({ resource: `device:${device.deviceId}`, before: null, after: { period: 'month', max_cost_micros: 5_000_000 } });
    for (const bad of [{ period: 'day', ...none }, { period: 'week', ...none, max_requests: 1 }, { period: 'day', ...none, max_requests: 0 }, { period: 'day', ...none, max_requests: 1.5 }, { period: 'day', max_requests: 1 }]) {
      expect([bad, (await admin('PUT', path, bad)).status]).toEqual([bad, 400]);
    }
    expect((await admin('DELETE', path, undefined, { 'if-match': '"1"' })).status).toBe(204);
    expect((await admin('GET', path)).json).toEqual({ budget: null, current: null });
    expect((await service.audit('budget.end'))[0]).toMatchObject({ outcome: 'success', after: null });
    const owner = await service.newPerson('owner');
    const { code } = (await service.call('POST', '/api/enrollment-codes', { token: owner.token, body: {} })).json;
    const own = await enroll(service.origin, code);
    const asOwner = (method: string, body?: object): Promise<CallAnswer> => service.call(method, `/api/devices/${own.deviceId}/budget`, { token: owner.token, ...(body !== undefined && { body }) });
    await setOf('devices', own.deviceId, { max_requests: 3 });
    expect((await asOwner('GET')).json.budget).toMatchObject({ max_requests: 3 });
    expect([(await asOwner('PUT', { period: 'day', ...none, max_requests: 9 })).status, (await asOwner('DELETE')).status]).toEqual([403, 403]);
    // Nor around the service, as the role that acts for people.
    const raised = await asJobs(service.sql, (tx) => tx.query('UPDATE keyguard.usage_budgets SET max_requests = 9')).catch((error: unknown) => error);
    expect(raised).toMatchObject({ name: 'UnavailableError' });
  });

  it('that was changed in the database lets nobody through', async () => {
    const device = await newDevice();
    await setOf('devices', device.deviceId, { max_requests: 1 });
    await service.asSuperuser('UPDATE keyguard.usage_budgets SET max_requests = 1000, revision = revision + 1 WHERE subject_id = $1', [device.deviceId]);
    await new Promise((resolve) => setTimeout(resolve, 1100));
    const before = upstream.calls;
    const refused = await again(device);
    expect([refused.status, (await refused.json()).error.code, upstream.calls - before]).toEqual([503, 'service_unavailable', 0]);
    expect((await admin('GET', `/api/devices/${device.deviceId}/budget`)).status).toBe(503);
  });

  it('says how much of an answer’s time was ours', async () => {
    const device = await newDevice();
    upstream.answer((response) => {
      setTimeout(() => response.writeHead(200, { 'content-type': 'application/json' }).end('{}'), 300);
    });
    const startedMs = performance.now();
    const answer = await again(device);
    await answer.text();
    upstream.answer(null);
    const tookMs = performance.now() - startedMs;
    expect(answer.headers.get('x-keyguard-overhead-ms')).toMatch(/^\d+\.\d\d$/);
    const overheadMs = Number(answer.headers.get('x-keyguard-overhead-ms'));
    expect(overheadMs).toBeGreaterThan(0);
    expect(overheadMs).toBeLessThan(tookMs - 290);
  });

  describe('the windows', () => {
    const standings: readonly Standing[] = [
      { subject: { type: 'device', id: 'a device' }, budget: { period: 'day', maxRequests: 100, maxTokens: 1000, maxCostMicros: null } },
      { subject: { type: 'project', id: 'a project' }, budget: { period: 'month', maxRequests: null, maxTokens: 1500, maxCostMicros: null } },
    ];
    const rows = async (): Promise<unknown[]> =>
      (await service.asSuperuser<Record<string, unknown>>(`SELECT subject_type, requests::int, tokens::int, cost_micros::int, expected_tokens::int FROM keyguard.usage_windows WHERE subject_id IN ('a device', 'a project') ORDER BY 1`)).rows.map(Object.values);
    const open_ = async (): Promise<number> => (await service.asSuperuser<{ n: number }>(`SELECT count(*)::int AS n FROM keyguard.usage_charges WHERE subject_id IN ('a device', 'a project')`)).rows[0]!.n;
    const settleOne = (callId: string, tokens: number): Promise<unknown> => asJobs(service.sql, (tx) => settle(tx, [{ callId, tokens, costMicros: 0 }]));

    it('count each call once, whatever is done twice, and give back what was not used', async () => {
      expect(await charge(service.sql, 'c1', standings, { tokens: 400, costMicros: 4 }, NOON)).toMatchObject([{ window: { requests: 1, tokens: 400 } }, { window: { tokens: 400 } }]);
      expect(await charge(service.sql, 'c2', standings, { tokens: 400, costMicros: 4 }, NOON)).toHaveLength(2);
      expect(await charge(service.sql, 'c3', standings, { tokens: 400, costMicros: 4 }, NOON)).toMatchObject({ subject: { type: 'device' }, retryAtMs: NOON + 1000 });
      expect(await rows()).toEqual([['device', 2, 800, 8, 800], ['project', 2, 800, 8, 800]]);
      await settleOne('c1', 150);
      await settleOne('c1', 150);
      expect(await rows()).toEqual([['device', 2, 550, 4, 400], ['project', 2, 550, 4, 400]]);
      await takeBack(service.sql, 'c2');
      await takeBack(service.sql, 'c2');
      expect(await rows()).toEqual([['device', 1, 150, 0, 0], ['project', 1, 150, 0, 0]]);
      await settleOne('c2', 99);
      expect([await rows(), await open_()]).toEqual([[['device', 1, 150, 0, 0], ['project', 1, 150, 0, 0]], 0]);
      // More than was expected is charged all the same.
      await charge(service.sql, 'c4', standings, { tokens: 100, costMicros: 0 }, NOON);
      await settleOne('c4', 5000);
      expect(await charge(service.sql, 'c5', standings, { tokens: 1, costMicros: 0 }, NOON)).toMatchObject({ subject: { type: 'device' }, retryAtMs: Date.UTC(2027, 1, 11) });
      // What the second budget has no room for is not charged to the first.
      expect(await charge(service.sql, 'c6', standings, { tokens: 1, costMicros: 0 }, NOON + DAY_MS)).toMatchObject({ subject: { type: 'project' }, retryAtMs: Date.UTC(2027, 2, 1) });
      expect(await rows()).toHaveLength(2);
    });

    it('keep the expectation of a call whose process was killed, put it on record, and are forgotten long after', async () => {
      const one = [standings[0]!];
      const later = NOON + 2 * DAY_MS;
      await charge(service.sql, 'lost', one, { tokens: 70, costMicros: 7 }, later);
      await settleLost(service.sql, { recordIn: async () => {} } as never, later);
      expect(await open_()).toBe(1);
      const recorded: unknown[] = [];
      const log = { recordIn: async (_tx: unknown, entry: unknown) => void recorded.push(entry) } as never;
      // As two replicas do.
      await Promise.all([settleLost(service.sql, log, later + 1), settleLost(service.sql, log, later + 1)]);
      expect(recorded).toEqual([expect.objectContaining({ action: 'budget.charge_lost_call', call_id: 'lost', charged_tokens: 70, charge_estimated: true })]);
      const { rows: kept } = await service.asSuperuser(`SELECT tokens::int, expected_tokens::int FROM keyguard.usage_windows WHERE subject_id = 'a device' AND began_ms = $1`, [Date.UTC(2027, 1, 12)]);
      expect([kept, await open_()]).toEqual([[{ tokens: 70, expected_tokens: 0 }], 0]);
      await purgeWindows(service.sql, Date.UTC(2027, 2, 1));
      expect(await rows()).toEqual([]);
    });
  });
});
