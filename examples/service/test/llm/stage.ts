/**
 * The whole path on real sockets: an enrolled device, an Express application with the real verifier and the proxy, and an
 * upstream that a test writes itself.
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import net, { type AddressInfo, type Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import express from 'express';
import OpenAI, { type ClientOptions } from 'openai';
import { enrollmentRouter, keyguard } from '@keyguard/adapters-express';
import { toBase64, toBase64Url, utf8 } from '@keyguard/core/bytes';
import { signatureBase, type CoveredHeader } from '@keyguard/core/canonical';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryDeviceRegistry, memoryKeyStore, memoryReplayStore, type MemoryDeviceRegistry } from '@keyguard/core/memory';
import type { Bytes, Clock, ReplayStore, SigningKey } from '@keyguard/core/seams';
import { webCryptoRandom } from '@keyguard/core/system';
import { createEnrollment, createVerifier, generateEnrollmentCode, hashEnrollmentCode, nodePrimitives } from '@keyguard/server-verifier';
import { bodyLimits, MAX_CALL_BYTES } from '../../src/llm/body-limits.ts';
import type { CallEvent } from '../../src/llm/call-events.ts';
import { openai } from '../../src/llm/openai.ts';
import { upstreamOf } from '../../src/llm/providers.ts';
import type { TrustedUpstream } from '../../src/llm/provider.ts';
import { llmProxy, type LlmProxy, type LlmProxyOptions } from '../../src/llm/routes.ts';

/** Where calls of the first provider go. */
export const openaiUpstream = (baseUrl?: string): TrustedUpstream => upstreamOf(openai, baseUrl)!;

/** What must never be seen anywhere but in the Authorization header at the upstream. */
export const PROVIDER_KEY = 'sk-provider-canary-5f1c0d8e';

export interface Stage {
  readonly port: number;
  readonly authority: string;
  readonly server: Server;
  readonly proxy: LlmProxy;
  readonly key: SigningKey;
  readonly client: KeyGuardClient;
  readonly registry: MemoryDeviceRegistry;
  readonly events: CallEvent[];
  readonly faults: unknown[];
  /** The official SDK, signing through the client. */
  openai(options?: Partial<ClientOptions>): OpenAI;
  /** A signed request, as the bytes that go over the wire. Signs whatever it is given, in the grammar or not. */
  signedBytes(request: RawRequest): Promise<Buffer>;
  /** Sends one signed request on a connection of its own and reads the answer to its end. */
  send(request: RawRequest): Promise<string>;
  close(): Promise<void>;
}

export interface RawRequest {
  readonly method?: string;
  readonly target: string;
  readonly body?: string;
  readonly contentType?: string;
  /** Signed. */
  readonly covered?: readonly CoveredHeader[];
  /** Sent and not signed, raw. */
  readonly headers?: readonly string[];
  readonly host?: string;
}

export interface StageOptions extends Partial<LlmProxyOptions> {
  readonly upstream: TrustedUpstream;
  readonly apiKey?: string;
  readonly clientClock?: Clock;
  /** Through which the client sends what it has signed. */
  readonly clientFetch?: typeof fetch;
  readonly replayStore?: ReplayStore;
  readonly maxUploadBytes?: number;
}

export async function startStage({ upstream, apiKey = PROVIDER_KEY, clientClock, clientFetch, replayStore = memoryReplayStore({ startedAtMs: 0 }), maxUploadBytes = 64 * 1024 * 1024, ...options }: StageOptions): Promise<Stage> {
  const app = express().disable('x-powered-by');
  const server = createServer(app);
  const port = await listen(server);
  const authority = `127.0.0.1:${port}`;

  const registry = memoryDeviceRegistry();
  const unlimited = { requestsPerMinute: 1_000_000, requestsPerMinutePerIp: 1_000_000 };
  const seams = {
    policy: { authorities: [authority], maxBodyBytes: Math.max(MAX_CALL_BYTES, maxUploadBytes), ...unlimited },
    registry,
    replayStore,
    primitives: nodePrimitives(),
  };
  const verifier = createVerifier(seams);
  app.use('/api/keyguard', enrollmentRouter({ verifier, enrollment: createEnrollment(seams) }));

  const events: CallEvent[] = [];
  const faults: unknown[] = [];
  const proxy = llmProxy({
    providerKeys: async () => ({ upstream, apiKeyId: null, apiKey }),
    modelLists: () => [],
    audit: async (event) => events.push(event),
    recheck: (keyId, ip) => verifier.recheck(keyId, ip),
    onFault: (error) => faults.push(error),
    ...options,
  });
  app.use(['/proxy', '/v1'], proxy.refuseUpgrades, keyguard(verifier, { sendRejection: proxy.sendRejection, maxBodyBytes: bodyLimits(maxUploadBytes) }), proxy.handler);

  const code = generateEnrollmentCode(webCryptoRandom());
  registry.addCode({ codeHash: hashEnrollmentCode(code)!, ownerId: 'owner', projectId: 'project', expiresAtMs: Date.now() + 60_000 });
  const keyStore = memoryKeyStore();
  const client = new KeyGuardClient({ origin: `http://${authority}`, keyStore, ...(clientClock && { clock: clientClock }), ...(clientFetch && { fetch: clientFetch }) });
  await client.enroll({ code, label: 'test' });
  const key = (await keyStore.get(authority))!;

  const signedBytes = async (request: RawRequest): Promise<Buffer> => {
    const { method = 'POST', target, body = '', covered = [], headers = [], host = authority } = request;
    const contentType = request.contentType ?? (body === '' ? null : 'application/json');
    const bytes = utf8(body);
    const mark = target.indexOf('?');
    const parts = {
      method,
      authority,
      path: mark < 0 ? target : target.slice(0, mark),
      query: mark < 0 ? '' : target.slice(mark + 1),
      bodySha256: toBase64((await nodePrimitives().sha256(bytes)) as Bytes),
      contentType,
      coveredHeaders: covered,
      timestamp: String(Math.floor(Date.now() / 1000)),
      keyId: key.keyId,
      nonce: toBase64Url(webCryptoRandom().bytes(16)),
    };
    const signature = toBase64(await key.sign(utf8(signatureBase(parts, 'keyguard-v1'))));
    const head = [
      `${method} ${target} HTTP/1.1`,
      `host: ${host}`,
      'connection: close',
      ...(contentType === null ? [] : [`content-type: ${contentType}`]),
      ...(bytes.length > 0 ? [`content-length: ${bytes.length}`] : []),
      ...covered.map(([name, value]) => `${name}: ${value}`),
      'x-keyguard-version: 1',
      `x-keyguard-key-id: ${parts.keyId}`,
      `x-keyguard-timestamp: ${parts.timestamp}`,
      `x-keyguard-nonce: ${parts.nonce}`,
      `x-keyguard-body-sha256: ${parts.bodySha256}`,
      `x-keyguard-signature: ${signature}`,
      ...headers,
    ];
    return Buffer.concat([Buffer.from(`${head.join('\r\n')}\r\n\r\n`, 'latin1'), bytes]);
  };

  return {
    port,
    authority,
    server,
    proxy,
    key,
    client,
    registry,
    events,
    faults,
    openai: (given = {}) =>
      new OpenAI({ baseURL: `http://${authority}/proxy/openai/v1`, apiKey: 'sk-client', fetch: client.fetch, maxRetries: 0, logLevel: 'off', ...given }),
    signedBytes,
    async send(request) {
      const socket = net.connect(port, '127.0.0.1');
      const chunks: Buffer[] = [];
      socket.on('data', (chunk) => chunks.push(chunk)).on('error', () => {});
      socket.write(await signedBytes(request));
      await once(socket, 'close');
      return Buffer.concat(chunks).toString('latin1');
    },
    async close() {
      await proxy.drain(0);
      proxy.close();
      await closeServer(server);
    },
  };
}

export interface FakeUpstream {
  readonly upstream: TrustedUpstream;
  readonly server: Server;
  readonly requests: IncomingMessage[];
  /** Every byte that came in, of all connections. */
  received(): string;
  close(): Promise<void>;
}

/** An upstream that answers as `handler` says. */
export async function startUpstream(handler: (request: IncomingMessage, response: ServerResponse) => unknown): Promise<FakeUpstream> {
  const requests: IncomingMessage[] = [];
  const chunks: Buffer[] = [];
  const server = createServer((request, response) => {
    requests.push(request);
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.once('end', () => void handler(request, response));
  });
  const port = await listen(server);
  return {
    upstream: openaiUpstream(`http://127.0.0.1:${port}/v1`),
    server,
    requests,
    received: () => `${requests.map(({ method, url, rawHeaders }) => [method, url, ...rawHeaders].join('\n')).join('\n')}\n${Buffer.concat(chunks).toString()}`,
    close: () => closeServer(server),
  };
}

/** An upstream below HTTP: gets each connection once the head of a request has come. */
export async function startRawUpstream(handler: (socket: Socket) => unknown): Promise<{ upstream: TrustedUpstream; close(): Promise<void> }> {
  const sockets = new Set<Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket.on('error', () => {}).on('close', () => sockets.delete(socket)));
    socket.once('data', () => handler(socket));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    upstream: openaiUpstream(`http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`),
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

/** A host that nobody may be sent to. Counts what reaches it. */
export async function startCanary(): Promise<{ authority: string; hits(): number; close(): Promise<void> }> {
  let hits = 0;
  const server = net.createServer((socket) => {
    hits += 1;
    socket.on('error', () => {}).destroy();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    authority: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    hits: () => hits,
    async close() {
      server.close();
      await once(server, 'close');
    },
  };
}

export async function listen(server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

async function closeServer(server: Server): Promise<void> {
  server.close();
  server.closeAllConnections();
  if (server.listening) await once(server, 'close');
}

/** Waits until `holds` does; fails after `withinMs`. */
export async function until(holds: () => boolean | Promise<boolean>, withinMs = 5000): Promise<void> {
  const end = Date.now() + withinMs;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`It did not hold within ${withinMs} ms: ${holds.toString()}`);
    await pause(5);
  }
}

export function connections(server: Server): Promise<number> {
  return new Promise((resolve, reject) => {
    server.getConnections((error, count) => (error === null ? resolve(count) : reject(error)));
  });
}

/** A chat completion chunk as an event. */
export function chunkEvent(content: string): string {
  const choices = [{ index: 0, delta: { content }, finish_reason: null }];
  return `data: ${JSON.stringify({ id: 'c', object: 'chat.completion.chunk', created: 0, model: 'm', choices })}\n\n`;
}

export const SSE = { 'content-type': 'text/event-stream; charset=utf-8' };

/** A question whose answer is streamed. */
export const STREAMED = { model: 'm', stream: true, messages: [{ role: 'user', content: 'Hello?' }] } as const satisfies OpenAI.ChatCompletionCreateParamsStreaming;
export const PLAIN = { model: 'm', messages: [{ role: 'user', content: 'Hello?' }] } as const satisfies OpenAI.ChatCompletionCreateParamsNonStreaming;
