/** How a provider key is tried: what is sent, what counts as taken, and what no answer can do. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { probe, type ProbeOutcome } from '../../src/llm/probe.ts';
import { PROVIDERS, upstreamOf } from '../../src/llm/providers.ts';

const KEY = 'sk-probe-canary-77aa';
const NOTHING = { deployment: null, apiVersion: null };
const [openai] = PROVIDERS as readonly [(typeof PROVIDERS)[number]];

describe('the trial of a provider key', () => {
  const undo: (() => unknown)[] = [];
  afterEach(async () => {
    for (const step of undo.splice(0)) await step();
  });

  async function upstream(handler: (request: IncomingMessage, response: ServerResponse) => unknown): Promise<{ readonly origin: string; readonly sockets: Set<Socket> }> {
    const server = createServer((request, response) => void handler(request, response));
    const sockets = new Set<Socket>();
    server.on('connection', (socket: Socket) => sockets.add(socket.on('close', () => sockets.delete(socket))));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    undo.push(() => {
      server.close();
      server.closeAllConnections();
    });
    return { origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, sockets };
  }
  const ask = (origin: string, timeoutMs?: number): Promise<ProbeOutcome> => probe(openai, { upstream: upstreamOf(openai, `${origin}/v1`)!, apiKey: KEY, options: NOTHING }, timeoutMs);

  it('sends the key as each provider wants it, and nothing that costs', async () => {
    for (const provider of PROVIDERS) {
      let seen: IncomingMessage | undefined;
      const { origin } = await upstream((request, response) => {
        seen = request;
        response.writeHead(200).end('{}');
      });
      const outcome = await probe(provider, { upstream: upstreamOf(provider, origin + provider.baseUrlSuffix)!, apiKey: KEY, options: NOTHING });
      expect(outcome).toMatchObject({ ok: true, code: 'accepted', status: 200 });
      expect([seen!.method, seen!.url]).toEqual(['GET', expect.stringMatching(/\/models(?:\?|$)/)]);
      expect(seen!.headers).toMatchObject(provider.authorization(KEY));
      expect(seen!.url).not.toContain(KEY);
    }
  });

  it.each([
    [200, true, 'accepted'], [204, true, 'accepted'], [401, false, 'key_refused'], [403, false, 'key_refused'], [404, false, 'unexpected_status'], [429, false, 'rate_limited'],
    [301, false, 'redirected'], [302, false, 'redirected'], [307, false, 'redirected'], [500, false, 'upstream_error'], [503, false, 'upstream_error'],
  ])('takes %i for what it is', async (status, ok, code) => {
    let asked = 0;
    const { origin } = await upstream((request, response) => {
      asked += 1;
      response.writeHead(status, { location: `http://${request.headers.host}/elsewhere` }).end(`{"leak":"${KEY}"}`);
    });
    const outcome = await ask(origin);
    expect(outcome).toEqual({ ok, code, status, latencyMs: expect.any(Number) });
    expect(asked).toBe(1);
    expect(JSON.stringify(outcome)).not.toContain(KEY);
  });

  it('waits for nobody: not for a head that does not come, not for a body without an end', async () => {
    const silent = await upstream(() => {});
    expect(await ask(silent.origin, 150)).toMatchObject({ ok: false, code: 'timed_out', status: null });
    const endless = await upstream((_request, response) => {
      response.writeHead(200);
      const timer = setInterval(() => response.write('x'.repeat(1024)), 1);
      response.on('close', () => clearInterval(timer));
    });
    expect(await ask(endless.origin)).toMatchObject({ ok: true, status: 200 });
    await expect.poll(() => silent.sockets.size + endless.sockets.size, { timeout: 2000 }).toBe(0);
  });

  it('says so where nobody answers, where the answer is no HTTP, and where a key fits into no header', async () => {
    expect(await ask('http://127.0.0.1:9')).toMatchObject({ ok: false, code: 'unreachable', status: null });
    const broken = await upstream((request) => request.socket.end('nonsense\r\n\r\n'));
    expect(await ask(broken.origin)).toMatchObject({ ok: false, code: 'unreachable', status: null });
    const { origin } = await upstream((_request, response) => response.writeHead(200).end());
    expect(await probe(openai, { upstream: upstreamOf(openai, `${origin}/v1`)!, apiKey: 'a\r\nb', options: NOTHING })).toMatchObject({ ok: false, code: 'unreachable' });
  });
});

describe('a key for one deployment', () => {
  const { serves, versioned } = PROVIDERS.find(({ confinement }) => confinement !== undefined)!.confinement!;

  it('is for the calls of that deployment, to the letter, and for no others', () => {
    expect(serves('openai/deployments/mine/chat/completions', 'mine')).toBe(true);
    for (const rest of ['openai/deployments/mine2/chat/completions', 'openai/deployments/theirs/chat/completions', 'openai/deployments/mine', 'openai/deployments/MINE/x', 'openai/deployments/%6dine/x', 'openai/v1/responses', 'openai/models', 'openai/files']) {
      expect([rest, serves(rest, 'mine')]).toEqual([rest, false]);
    }
  });

  it('gives its version to calls of deployments that name none, and to no others', () => {
    const rest = 'openai/deployments/mine/chat/completions';
    expect([versioned(rest, '', '2024-10-21'), versioned(rest, 'a=b', '2024-10-21')]).toEqual(['api-version=2024-10-21', 'a=b&api-version=2024-10-21']);
    expect([versioned(rest, 'api-version=x', '2024-10-21'), versioned('openai/v1/responses', '', '2024-10-21')]).toEqual(['api-version=x', '']);
  });
});
