/**
 * A canary host that nobody may be sent to. Each request is validly signed as it stands, in the grammar or not, and goes over a raw
 * socket, so that no client library tidies it up.
 */
import net from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { FORMS, PREFIX } from './canary-forms.ts';
import { PROVIDER_KEY, startCanary, startStage, startUpstream, type FakeUpstream, type Stage } from './stage.ts';

let canary: Awaited<ReturnType<typeof startCanary>>;
let fake: FakeUpstream;
let stage: Stage;

beforeAll(async () => {
  canary = await startCanary();
  fake = await startUpstream((_, response) => response.writeHead(200, { 'content-type': 'application/json' }).end('{"reached":true}'));
  stage = await startStage({ upstream: fake.upstream });
});

afterAll(async () => {
  await stage.close();
  await fake.close();
  await canary.close();
});

describe('a canary host', () => {
  it('counts what reaches it', async () => {
    const other = await startCanary();
    const [host, port] = other.authority.split(':');
    await new Promise((resolve) => net.connect(Number(port), host!).on('error', () => {}).on('close', resolve));
    expect(other.hits()).toBe(1);
    await other.close();
  });

  it('is tried in at least 60 forms, of which enough get past the verifier to mean something', async () => {
    expect(FORMS.length).toBeGreaterThanOrEqual(60);
    const before = fake.requests.length;
    for (const [, form] of FORMS) await stage.send(form(canary.authority));
    expect(canary.hits()).toBe(0);
    expect(fake.requests.length - before).toBeGreaterThanOrEqual(120);
  });

  it.each(FORMS)('%s', async (_, form) => {
    const before = fake.requests.length;
    const answer = await stage.send(form(canary.authority));
    expect(canary.hits()).toBe(0);
    expect(answer).not.toContain(PROVIDER_KEY);
    const reached = fake.requests.slice(before);
    if (reached.length === 0) {
      // Refused, or not even HTTP to the server's mind.
      expect(answer).toMatch(/^(?:HTTP\/1\.1 4\d\d |$)/);
      return;
    }
    expect(answer).toMatch(/^HTTP\/1\.1 200 /);
    expect(reached).toHaveLength(1);
    const { url, headers, rawHeaders } = reached[0]!;
    expect(url!.startsWith('/v1/')).toBe(true);
    expect(rawHeaders.filter((name) => name.toLowerCase() === 'host')).toHaveLength(1);
    expect(headers.host).toBe(fake.upstream.authority);
    expect(headers.authorization).toBe(`Bearer ${PROVIDER_KEY}`);
  });

  it.each([
    ['/proxy/anthropic/v1', 'x-api-key'],
    ['/proxy/google/v1beta', 'x-goog-api-key'],
    ['/proxy/azure/openai', 'api-key'],
  ])('is not reached in any of these forms below %s either', async (prefix, keyHeader) => {
    const before = fake.requests.length;
    for (const [, form] of FORMS) {
      const request = form(canary.authority);
      expect(await stage.send({ ...request, target: request.target.replace(PREFIX, prefix) })).not.toContain(PROVIDER_KEY);
    }
    expect(canary.hits()).toBe(0);
    const reached = fake.requests.slice(before).filter(({ headers }) => headers[keyHeader] === PROVIDER_KEY);
    expect(reached.length).toBeGreaterThanOrEqual(50);
    expect(new Set(reached.map(({ headers }) => headers.host))).toEqual(new Set([fake.upstream.authority]));
  });

  it('and a client key goes nowhere', async () => {
    for (const header of ['authorization: Bearer sk-client', 'api-key: sk-client', 'x-api-key: sk-client', 'x-goog-api-key: sk-client', 'proxy-authorization: Basic sk-client', 'cookie: key=sk-client', 'openai-api-key: sk-client']) {
      await stage.send({ target: `${PREFIX}/chat/completions`, body: '{}', headers: [header] });
    }
    expect(fake.received()).not.toContain('sk-client');
  });
});
