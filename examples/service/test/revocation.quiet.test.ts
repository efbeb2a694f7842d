/**
 * Revocation in every process: two services on one PostgreSQL, the second one behind a wire that the test can cut or freeze. What is
 * measured is printed.
 */
import { once } from 'node:events';
import { createServer, type Server, type ServerResponse } from 'node:http';
import net, { type AddressInfo, type Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import type { KeyStore } from '@keyguard/core/seams';
import { SUBJECTS, type Subject } from './llm/sdk-subjects.ts';
import { caller, folder, postgresBackend, remove, startService, type Deployment, type PostgresBackend, type Running } from './stage.ts';

vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 });

const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };
const WITHIN_MS = 1000;
const ROUNDS = 6;
const SDKS = SUBJECTS.filter(({ provider }) => provider !== 'azure');

/** The way from a service to its database. */
interface Wire {
  readonly port: number;
  /** Nothing gets through any more, and nobody is told. */
  freeze(): void;
  /** All connections break, and new ones are refused. */
  cut(): void;
  heal(): void;
  close(): Promise<void>;
}

async function startWire(to: { readonly host: string; readonly port: number }): Promise<Wire> {
  const sockets = new Set<Socket>();
  let state: 'well' | 'frozen' | 'cut' = 'well';
  const server = net.createServer((near) => {
    if (state === 'cut') {
      near.destroy();
      return;
    }
    const far = net.connect(to.port, to.host);
    for (const [one, other] of [[near, far], [far, near]] as const) {
      sockets.add(one);
      one.on('error', () => {}).on('close', () => {
        sockets.delete(one);
        other.destroy();
      });
      one.on('data', (bytes) => other.write(bytes));
      if (state === 'frozen') one.pause();
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    freeze() {
      state = 'frozen';
      for (const socket of sockets) socket.pause();
    },
    cut() {
      state = 'cut';
      for (const socket of sockets) socket.destroy();
    },
    heal() {
      state = 'well';
      for (const socket of sockets) socket.resume();
    },
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

/** How each provider speaks, by where it is asked to. */
const DIALECTS: readonly [path: RegExp, subject: Subject][] = [
  [/^\/v1\/chat\/completions$/, SUBJECTS.find(({ provider }) => provider === 'openai')!],
  [/^\/v1\/messages$/, SUBJECTS.find(({ provider }) => provider === 'anthropic')!],
  [/:streamGenerateContent/, SUBJECTS.find(({ provider }) => provider === 'google')!],
];

/** Answers every call: a stream by a word every 20 ms for ever, in the dialect of its provider; anything else at once. */
async function startTalker(): Promise<{ readonly origin: string; close(): Promise<void> }> {
  const talk = async (response: ServerResponse, { events }: Subject): Promise<void> => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    const [first, again] = events(['word', 'word']).words as [string, string];
    response.write(first);
    while (!response.destroyed) {
      response.write(again);
      await pause(20);
    }
  };
  const server: Server = createServer((request, response) => {
    response.on('error', () => {});
    request.resume().on('end', () => {
      const subject = DIALECTS.find(([path]) => path.test(request.url!))?.[1];
      if (subject !== undefined) void talk(response, subject);
      else response.writeHead(200, { 'content-type': 'application/json' }).end('{"data":[]}');
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

interface TestDevice {
  readonly deviceId: string;
  /** Calls the second service. */
  readonly client: KeyGuardClient;
}

interface Ended {
  readonly atMs: number;
  readonly lastEvent: string;
}

describe('two services on one PostgreSQL', () => {
  let backend: PostgresBackend;
  let deployment: Deployment;
  let talker: Awaited<ReturnType<typeof startTalker>>;
  let wire: Wire;
  let first: Running;
  let second: Running;
  let secondFolder = '';
  let admin = '';
  const call = caller(() => first.origin);

  beforeAll(async () => {
    [backend, talker, secondFolder] = await Promise.all([postgresBackend(), startTalker(), folder()]);
    deployment = await backend.deploy();
    const { DATABASE_URL = '', ...owner } = deployment.environment;
    const environment = {
      KEYGUARD_PASSPHRASE: 'one passphrase for both of them',
      KEYGUARD_ADMIN_EMAIL: ADMIN.email,
      KEYGUARD_ADMIN_PASSWORD: ADMIN.password,
      KEYGUARD_REQUESTS_PER_MINUTE: '100000',
      OPENAI_API_KEY: 'sk-test-key',
      OPENAI_BASE_URL: `${talker.origin}/v1`,
      ANTHROPIC_API_KEY: 'sk-test-key',
      ANTHROPIC_BASE_URL: talker.origin,
      GOOGLE_API_KEY: 'test-key',
      GOOGLE_GEMINI_BASE_URL: talker.origin,
      LOG_LEVEL: 'info',
    };
    first = await startService(deployment.folder, { ...environment, ...owner, DATABASE_URL }, { isMeasured: true });
    const url = new URL(DATABASE_URL);
    wire = await startWire({ host: url.hostname, port: Number(url.port) });
    [url.hostname, url.port] = ['127.0.0.1', String(wire.port)];
    second = await startService(secondFolder, { ...environment, DATABASE_URL: url.href }, { isMeasured: true });
    const signedIn = await call('POST', '/api/auth/sign-in/email', { body: ADMIN });
    admin = signedIn.headers.get('set-auth-token')!;
  });
  afterAll(async () => {
    wire?.heal();
    await Promise.all([first?.stop('SIGKILL'), second?.stop('SIGKILL')]);
    await wire?.close();
    await talker?.close();
    await backend?.stop();
    await remove(secondFolder);
  });

  /** A device that enrolled with the first service and calls the second one, which has it in memory from then on. */
  async function newDevice(): Promise<TestDevice> {
    const { json } = await call('POST', '/api/enrollment-codes', { token: admin, body: {} });
    const keys = memoryKeyStore();
    // One key for both origins: a client keeps one for each.
    const one: KeyStore = {
      getOrCreate: () => keys.getOrCreate('device'),
      get: () => keys.get('device'),
      getPending: () => keys.getPending('device'),
      getOrCreatePending: () => keys.getOrCreatePending('device'),
      promote: (_, id) => keys.promote('device', id),
      discard: (_, id) => keys.discard('device', id),
      delete: () => keys.delete('device'),
    };
    const { deviceId } = await new KeyGuardClient({ origin: first.origin, keyStore: one }).enroll({ code: json.code });
    const client = new KeyGuardClient({ origin: second.origin, keyStore: one });
    expect((await ask(client)).status).toBe(200);
    return { deviceId, client };
  }

  async function ask(client: KeyGuardClient): Promise<{ readonly status: number; readonly code: string | undefined; readonly sentAtMs: number; readonly tookMs: number }> {
    const sentAtMs = performance.now();
    const response = await client.fetch(`${second.origin}/proxy/openai/v1/models`);
    const { error } = (await response.json()) as { error?: { code?: string } };
    return { status: response.status, code: error?.code, sentAtMs, tookMs: performance.now() - sentAtMs };
  }

  /** A stream from the second service, and how it ends. */
  async function stream(client: KeyGuardClient): Promise<{ readonly ended: Promise<Ended>; readonly isOpen: () => boolean }> {
    const response = await client.fetch(`${second.origin}/proxy/openai/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model: 'm', stream: true, messages: [] }),
    });
    expect(response.status).toBe(200);
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    await reader.read();
    let isOpen = true;
    const read = async (): Promise<Ended> => {
      let tail = '';
      for (;;) {
        const { done, value = '' } = await reader.read();
        if (done) break;
        tail = (tail + value).slice(-2000);
      }
      isOpen = false;
      return { atMs: performance.now(), lastEvent: tail.trimEnd().split('\n\n').at(-1)! };
    };
    return { ended: read(), isOpen: () => isOpen };
  }

  /** The same of an official SDK: when it raised, and what. */
  async function sdkStream(client: KeyGuardClient, subject: Subject): Promise<{ readonly raised: Promise<{ readonly atMs: number; readonly message: string }> }> {
    const stream = subject.stream({ authority: new URL(second.origin).host, client })[Symbol.asyncIterator]();
    expect(await stream.next()).toEqual({ done: false, value: 'word' });
    const read = async (): Promise<{ readonly atMs: number; readonly message: string }> => {
      try {
        while (!(await stream.next()).done);
        return { atMs: performance.now(), message: 'it ended as if it were whole' };
      } catch (error) {
        return { atMs: performance.now(), message: (error as Error).message };
      }
    };
    return { raised: read() };
  }

  const move = async (deviceId: string, verb: string): Promise<number> => {
    expect((await call('POST', `/api/devices/${deviceId}/${verb}`, { token: admin })).status).toBe(200);
    return performance.now();
  };
  const ms = (some: readonly number[]): string => some.map((one) => one.toFixed(0)).join(', ');

  it('hold a device in the second one to its models, and to those of its project, within a second of the change in the first', async () => {
    const { deviceId, client } = await newDevice();
    const run = async (): Promise<number> => {
      const body = JSON.stringify({ model: 'm', stream: true, messages: [] });
      const response = await client.fetch(`${second.origin}/proxy/openai/v1/chat/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
      await response.body!.cancel();
      return response.status;
    };
    const took: number[] = [];
    for (const path of [`/api/devices/${deviceId}`, '/api/projects/default']) {
      expect(await run()).toBe(200);
      expect((await call('PATCH', path, { token: admin, body: { allowed_models: ['other'] } })).status).toBe(200);
      const acknowledgedAtMs = performance.now();
      let sentAtMs = acknowledgedAtMs;
      while ((await run()) === 200) {
        // The last one that was let through was sent then.
        took.push(sentAtMs - acknowledgedAtMs);
        await pause(20);
        sentAtMs = performance.now();
      }
      expect((await call('PATCH', path, { token: admin, body: { allowed_models: null } })).status).toBe(200);
      await pause(1100);
    }
    console.log(`models: the last calls that were let through began ${ms(took)} ms after the change`);
    for (const one of took) expect(one).toBeLessThan(1000);
  });

  it('refuse a device in the second one within a second of its revocation in the first, and end its streams there', async () => {
    const [refusals, ends, raises]: number[][] = [[], [], []];
    for (let round = 0; round < ROUNDS; round += 1) {
      const { deviceId, client } = await newDevice();
      const { ended } = await stream(client);
      const inSdks = await Promise.all(SDKS.map((subject) => sdkStream(client, subject)));
      // Wherever between two polls.
      await pause(round * 83);
      const acknowledgedAtMs = await move(deviceId, round % 2 === 0 ? 'revoke' : 'suspend');
      let answer = await ask(client);
      while (answer.status === 200 && performance.now() - acknowledgedAtMs < 5000) answer = await ask(client);
      refusals!.push(answer.sentAtMs + answer.tookMs - acknowledgedAtMs);
      // One that was on its way is cut like any other.
      if (answer.code === 'device_cut_off') answer = await ask(client);
      expect(answer).toMatchObject({ status: 403, code: round % 2 === 0 ? 'device_revoked' : 'device_suspended' });
      const { atMs, lastEvent } = await ended;
      ends!.push(atMs - acknowledgedAtMs);
      expect(lastEvent).toContain('"code":"device_cut_off"');
      for (const { raised } of inSdks) {
        const { atMs: raisedAtMs, message } = await raised;
        expect(message).toContain('may no longer call');
        raises!.push(raisedAtMs - acknowledgedAtMs);
      }
    }
    process.stdout.write(`revoked in one process, refused in the other after ${ms(refusals!)} ms; its streams ended after ${ms(ends!)} ms; the SDKs raised after at most ${Math.max(...raises!).toFixed(0)} ms\n`);
    for (const measured of [...refusals!, ...ends!, ...raises!]) expect(measured).toBeLessThan(WITHIN_MS);
  });

  it('let it in again within a second, and know a new device at once', async () => {
    const { deviceId, client } = await newDevice();
    await move(deviceId, 'suspend');
    await pause(WITHIN_MS);
    expect((await ask(client)).status).toBe(403);
    const resumedAtMs = await move(deviceId, 'resume');
    let answer = await ask(client);
    while (answer.status !== 200 && performance.now() - resumedAtMs < 5000) answer = await ask(client);
    const tookMs = answer.sentAtMs + answer.tookMs - resumedAtMs;
    process.stdout.write(`resumed in one process, let in by the other after ${tookMs.toFixed(0)} ms\n`);
    expect(tookMs).toBeLessThan(WITHIN_MS);
  });

  it.each(['freeze', 'cut'] as const)('the second one refuses everybody about a second after a %s of its database, ends streams after five, and heals', async (fault) => {
    const { client } = await newDevice();
    const streams = await Promise.all([stream(client), stream(client)]);
    await pause(200);
    wire[fault]();
    const sinceMs = performance.now();
    // Asked all the time, and not one after the other: what was let in before may wait for the database for longer.
    const asking: ReturnType<typeof ask>[] = [];
    const endsMs = Promise.all(streams.map(async ({ ended }) => ended));
    while (performance.now() - sinceMs < 2500) {
      asking.push(ask(client));
      await pause(50);
    }
    expect(streams.every(({ isOpen }) => isOpen())).toBe(true);
    const ready = await fetch(`${second.origin}/readyz`);
    expect(ready.status).toBe(503);
    expect(await ready.json()).toMatchObject({ checks: { device_changes: 'nothing is heard of changed devices' } });
    const answers = await Promise.all(asking);
    expect(answers.filter(({ status }) => status === 200)).toEqual([]);
    const late = answers.filter(({ sentAtMs }) => sentAtMs - sinceMs > WITHIN_MS);
    const refusedAfterMs = Math.min(...late.map(({ sentAtMs, tookMs }) => sentAtMs + tookMs - sinceMs));
    const slowestMs = Math.max(...late.map(({ tookMs }) => tookMs));
    expect(late.length).toBeGreaterThan(5);
    expect(new Set(late.map(({ status, code }) => `${status} ${code}`))).toEqual(new Set(['503 store_unavailable']));

    const ended = await endsMs;
    for (const { lastEvent } of ended) expect(lastEvent).toContain('"code":"device_unvouched"');
    const afterMs = ended.map(({ atMs }) => atMs - sinceMs);
    wire.heal();
    const healedAtMs = performance.now();
    let answer = await ask(client);
    while (answer.status !== 200 && performance.now() - healedAtMs < 20_000) {
      await pause(50);
      answer = await ask(client);
    }
    const healMs = answer.sentAtMs + answer.tookMs - healedAtMs;
    process.stdout.write(
      `${fault}: a request of a second later was refused ${refusedAfterMs.toFixed(0)} ms after it, each within ${slowestMs.toFixed(0)} ms; streams ended after ${ms(afterMs)} ms; healed after ${healMs.toFixed(0)} ms\n`,
    );
    // 1,250 ms by design; the rest, here and below, is for a machine that is busy.
    expect(refusedAfterMs).toBeLessThan(1500);
    // Long before a store that hangs would be given up on, after two seconds.
    expect(slowestMs).toBeLessThan(1500);
    for (const one of afterMs) {
      expect(one).toBeGreaterThan(4000);
      expect(one).toBeLessThan(6500);
    }
    expect(answer.status).toBe(200);
    // Its probes look once a second.
    await expect.poll(async () => (await fetch(`${second.origin}/readyz`)).status, { timeout: 5000 }).toBe(200);
    // The other one has noticed nothing.
    expect((await fetch(`${first.origin}/readyz`)).status).toBe(200);
  });
});
