/**
 * Who is measured: the provider itself, bare proxies, the Portkey gateway, and the service of this repository on each of its databases,
 * every one a process of its own on one core. A database, where it is another process, is on the core of the load.
 */
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { ChildProcess } from 'node:child_process';
import { freePort } from './databases.ts';
import { canPin, messageOf, start, startProgram, type Core } from './processes.ts';
import type { BareTask } from './proxy-bare.ts';
import { PROVIDER_KEY, type Address, type LoadOrder } from './proxy-task.ts';

const SERVICE = fileURLToPath(new URL('../../examples/service/src/main.ts', import.meta.url));
const START_MS = 60_000;
const ADMIN = { email: 'admin@example.com', password: 'a password of the benchmark' };
const TARGET = '/v1/chat/completions';
const BEARER = ['authorization', `Bearer ${PROVIDER_KEY}`] as const;

export interface Contestant {
  readonly address: Address;
  /** `null` for the provider itself. */
  readonly child: ChildProcess | null;
}

/** Sends an order to the process of the load, and waits for what it reports. */
export type Ask = (order: LoadOrder) => Promise<unknown>;

export interface Stop {
  (work: () => unknown): void;
}

async function startNode(file: string, core: Core, task: object, onStop: Stop): Promise<{ readonly child: ChildProcess; readonly port: number }> {
  const child = start(file, core, JSON.stringify(task));
  onStop(() => child.connected && child.disconnect());
  return { child, port: (await messageOf(child)) as number };
}

const plainAddress = (port: number): Address => ({ port, target: TARGET, headers: [BEARER], signFor: null });

export async function startProvider(onStop: Stop): Promise<{ readonly contestant: Contestant; readonly port: number }> {
  const { port } = await startNode('./proxy-upstream.ts', 1, {}, onStop);
  return { contestant: { address: plainAddress(port), child: null }, port };
}

export async function startBare(task: BareTask, onStop: Stop): Promise<Contestant> {
  const { child, port } = await startNode('./proxy-bare.ts', 0, task, onStop);
  return { address: plainAddress(port), child };
}

async function stopProgram(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, 'exit');
  child.kill('SIGTERM');
  const late = setTimeout(() => child.kill('SIGKILL'), 10_000);
  await gone;
  clearTimeout(late);
}

/** Asks until the answer is 200. Rejects when the program ends, or takes too long. */
async function answers(url: string, child: ChildProcess): Promise<void> {
  for (const endsAtMs = performance.now() + START_MS; performance.now() < endsAtMs; await pause(5)) {
    if (child.exitCode !== null) throw new Error(`A program of the benchmark ended: ${child.spawnargs.join(' ')}.`);
    const isReady = await fetch(url).then(
      async (response) => {
        await response.arrayBuffer();
        return response.ok;
      },
      () => false,
    );
    if (isReady) return;
  }
  throw new Error(`Nothing answers at ${url}.`);
}

export async function startPortkey(upstreamPort: number, onStop: Stop): Promise<Contestant & { readonly version: string }> {
  const manifest = createRequire(import.meta.url).resolve('@portkey-ai/gateway/package.json');
  const { version, bin } = JSON.parse(await readFile(manifest, 'utf8')) as { version: string; bin: string };
  const port = await freePort();
  const child = startProgram(0, [join(dirname(manifest), bin), `--port=${port}`, '--headless'], { folder: tmpdir(), environment: {} });
  onStop(() => stopProgram(child));
  await answers(`http://127.0.0.1:${port}/`, child);
  const headers = [BEARER, ['x-portkey-provider', 'openai'], ['x-portkey-custom-host', `http://127.0.0.1:${upstreamPort}/v1`]] as const;
  return { address: { port, target: TARGET, headers, signFor: null }, child, version };
}

export interface ServiceTask {
  readonly upstreamPort: number;
  /** DATABASE_URL and what else says where its rows are; empty for the embedded database. */
  readonly environment: Readonly<Record<string, string>>;
}

export interface StartedService extends Contestant {
  /** How many calls its analytics count: the audit log's ended calls, a second late. */
  countedCalls(): Promise<number>;
}

async function runService(folder: string, port: number, { upstreamPort, environment }: ServiceTask, core: Core): Promise<ChildProcess> {
  const child = startProgram(core, ['--conditions=@keyguard/source', SERVICE], {
    folder,
    environment: {
      PORT: String(port),
      KEYGUARD_PUBLIC_URL: `http://127.0.0.1:${port}`,
      KEYGUARD_ADMIN_EMAIL: ADMIN.email,
      KEYGUARD_ADMIN_PASSWORD: ADMIN.password,
      OPENAI_API_KEY: PROVIDER_KEY,
      OPENAI_BASE_URL: `http://127.0.0.1:${upstreamPort}/v1`,
      ...environment,
    },
  });
  await answers(`http://127.0.0.1:${port}/readyz`, child);
  return child;
}

/** The service as anyone starts it, with limits that the load does not reach, and a device of the load enrolled. */
export async function startService(task: ServiceTask, ask: Ask, onStop: Stop): Promise<StartedService> {
  const folder = await mkdtemp(join(tmpdir(), 'keyguard-bench-'));
  onStop(() => rm(folder, { recursive: true, force: true }));
  const port = await freePort();
  const origin = `http://127.0.0.1:${port}`;
  const child = await runService(folder, port, task, 0);
  onStop(() => stopProgram(child));

  let token = '';
  const call = async (method: string, path: string, body?: object, headers: Record<string, string> = {}): Promise<{ json: Record<string, unknown>; headers: Headers }> => {
    const response = await fetch(origin + path, {
      method,
      headers: { ...(body && { 'content-type': 'application/json' }), ...(token !== '' && { authorization: `Bearer ${token}` }), ...headers },
      ...(body && { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path} answered ${response.status}: ${text}`);
    return { json: JSON.parse(text) as Record<string, unknown>, headers: response.headers };
  };
  // The administrator of the environment is created a moment after the first 200 of /readyz.
  for (let triesLeft = 5; token === ''; triesLeft -= 1) {
    await pause(500);
    const signIn = call('POST', '/api/auth/sign-in/email', ADMIN);
    token = (await (triesLeft === 0 ? signIn : signIn.catch(() => null)))?.headers.get('set-auth-token') ?? '';
  }
  const etag = (await call('GET', '/api/settings')).headers.get('etag')!;
  const limits = { requests_per_minute: 1_000_000, requests_per_minute_per_address: 10_000_000 };
  await call('PATCH', '/api/settings', { limits }, { 'if-match': etag });
  const { code } = (await call('POST', '/api/enrollment-codes', {})).json as { code: string };
  await ask({ enroll: { origin, code } });
  return {
    address: { port, target: `/proxy/openai${TARGET}`, headers: [], signFor: new URL(origin).host },
    child,
    async countedCalls() {
      const { data } = (await call('GET', '/api/analytics/usage')).json as { data: readonly { requests: number }[] };
      return data.reduce((sum, { requests }) => sum + requests, 0);
    },
  };
}

/** How long, in milliseconds, the service takes on the embedded database to say that it is ready: its first start, and `warm` more. */
export async function timeStarts(upstreamPort: number, warm: number): Promise<{ readonly firstMs: number; readonly warmMs: readonly number[] }> {
  const folder = await mkdtemp(join(tmpdir(), 'keyguard-bench-'));
  const timesMs: number[] = [];
  try {
    for (let i = 0; i <= warm; i += 1) {
      const port = await freePort();
      const startedAtMs = performance.now();
      const child = await runService(folder, port, { upstreamPort, environment: {} }, 'any');
      timesMs.push(performance.now() - startedAtMs);
      await stopProgram(child);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  const [firstMs, ...warmMs] = timesMs;
  return { firstMs: firstMs!, warmMs };
}

/** The memory of a process, in MiB; `null` where the system does not say. */
export async function residentMiB({ child }: Contestant): Promise<number | null> {
  if (child === null) return null;
  const status = await readFile(`/proc/${child.pid}/status`, 'utf8').catch(() => '');
  const kilobytes = /^VmRSS:\s+([0-9]+) kB$/m.exec(status)?.[1];
  return kilobytes === undefined ? null : Number(kilobytes) / 1024;
}

export const PINNING = canPin
  ? 'Each server is alone on one core, but that each is there all the time; the load, the provider, PostgreSQL and Redis are on the other.'
  : 'Nothing is pinned to a core, so that all share them.';
