/**
 * Every call of the official SDKs, current and the major before, through the proxy to upstreams that answer only to their own key,
 * and look at what else they were sent.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CLIENT_KEY, upstreamAt } from './sdk-subjects.ts';
import { SDK_CALLS, type SdkCall } from './sdk-calls.ts';
import { PROVIDER_KEY, startStage, startUpstream, until, type FakeUpstream, type Stage } from './stage.ts';

const KEYS: Readonly<Record<string, readonly [header: string, value: string]>> = {
  openai: ['authorization', `Bearer ${PROVIDER_KEY}`],
  azure: ['api-key', PROVIDER_KEY],
  anthropic: ['x-api-key', PROVIDER_KEY],
  google: ['x-goog-api-key', PROVIDER_KEY],
};
/** All that a provider is ever sent beside its key. */
const HEADERS: ReadonlySet<string> = new Set(['host', 'connection', 'accept', 'accept-encoding', 'user-agent', 'content-type', 'content-length']);
const OWN: Readonly<Record<string, readonly string[]>> = { anthropic: ['anthropic-version', 'anthropic-beta'], openai: ['openai-beta'], azure: ['openai-beta'], google: [] };

interface Received {
  readonly request: IncomingMessage;
  readonly body: Buffer;
}

async function fieldsOf({ request, body }: Received): Promise<Record<string, string>> {
  const form = await new Response(new Uint8Array(body), { headers: { 'content-type': request.headers['content-type']! } }).formData();
  const fields: [string, string][] = [];
  for (const [name, value] of form) fields.push([name, typeof value === 'string' ? value : Buffer.from(await value.arrayBuffer()).toString(value.type === 'image/png' ? 'latin1' : 'utf8')]);
  return Object.fromEntries(fields);
}

describe.each(Object.keys(KEYS))('the calls of the SDKs of %s', (provider) => {
  const [keyHeader, keyValue] = KEYS[provider]!;
  let upstream: FakeUpstream;
  let stage: Stage;
  let current: SdkCall;
  let received: Received[] = [];
  let signed: { readonly bytes: Uint8Array; readonly sha256: string | null }[] = [];

  function answer(request: IncomingMessage, response: ServerResponse, body: Buffer): void {
    received.push({ request, body });
    if (request.headers[keyHeader] !== keyValue) {
      response.writeHead(403, { 'content-type': 'application/json' }).end('{"error":{"message":"not my key"}}');
      return;
    }
    const { body: given, headers = {} } = current.answer;
    const bytes = Buffer.isBuffer(given) ? given : Buffer.from(typeof given === 'string' ? given : JSON.stringify(given));
    response.writeHead(200, { 'content-type': 'application/json', ...headers }).end(bytes);
  }

  beforeAll(async () => {
    upstream = await startUpstream(() => {});
    upstream.server.removeAllListeners('request').on('request', (request: IncomingMessage, response: ServerResponse) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk)).on('end', () => answer(request, response, Buffer.concat(chunks)));
    });
    stage = await startStage({
      upstream: upstreamAt(provider, `http://${upstream.upstream.authority}`),
      clientFetch: (input, init) => {
        // The SDK tries out what the platform can do.
        if (!String(input).startsWith('data:')) signed.push({ bytes: (init?.body as Uint8Array | null) ?? new Uint8Array(), sha256: new Headers(init?.headers).get('x-keyguard-body-sha256') });
        return fetch(input, init);
      },
    });
  });
  afterAll(async () => {
    await stage.close();
    await upstream.close();
  });

  it.each(SDK_CALLS.filter((call) => call.provider === provider))('$sdk: $title', async (call) => {
    current = call;
    received = [];
    signed = [];
    stage.events.length = 0;
    expect(await call.run(stage)).toEqual(call.gives);

    expect(received).toHaveLength(1);
    const [{ request, body }] = received as [Received];
    expect(`${request.method} ${request.url}`).toBe(call.sent);
    // Its own key, and nothing of ours or of the client's.
    const names = Object.keys(request.headers).filter((name) => name !== keyHeader && !OWN[provider]!.includes(name));
    expect(names.filter((name) => !HEADERS.has(name))).toEqual([]);
    expect(request.rawHeaders.filter((one) => one.includes(PROVIDER_KEY))).toHaveLength(1);
    expect(request.headers['user-agent']).toBe('keyguard');
    const everything = request.rawHeaders.join('\n') + request.url + body.toString('latin1');
    expect(everything).not.toMatch(/x-keyguard-|x-stainless-|x-goog-api-client/i);
    expect(everything).not.toContain(CLIENT_KEY);

    // To the byte what was signed.
    expect(signed).toHaveLength(1);
    expect(body.equals(signed[0]!.bytes)).toBe(true);
    expect(createHash('sha256').update(body).digest('base64')).toBe(signed[0]!.sha256);
    if (call.fields !== undefined) {
      const wanted = Object.entries(call.fields).map(([name, value]) => [name, value.startsWith('/') ? readFileSync(value, 'utf8') : value]);
      expect(await fieldsOf(received[0]!)).toMatchObject(Object.fromEntries(wanted));
    }

    await until(() => stage.events.some(({ type }) => type === 'ended'));
    const ended = stage.events.find(({ type }) => type === 'ended')!;
    expect(ended).toMatchObject({ outcome: 'completed', status: 200 });
    const { usage } = ended as { usage: { inputTokens: number | null; outputTokens: number | null } | null };
    expect([usage?.inputTokens ?? null, usage?.outputTokens ?? null]).toEqual(call.usage ?? [null, null]);
  });
});
