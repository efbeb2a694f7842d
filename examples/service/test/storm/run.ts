/**
 * What a storm costs those who call a provider meanwhile: the service is a child process, the storm comes from another one, and each
 * round compares calls just before a storm with calls in it.
 */
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { setTimeout as pause } from 'node:timers/promises';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { caller, startService, startUpstream, type Backend } from '../stage.ts';

const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };
const CALL_EVERY_MS = 20;
// More of them would be a storm of their own where the machine is busy.
const MAX_CALLS_AT_ONCE = 8;
const QUIET_MS = 2000;

export interface StormOptions {
  /** The program that makes the storm: told by a line, it answers with a line when it is over. */
  readonly program: string;
  /** What it is told, beside where the service is and who may sign in. */
  readonly order: Readonly<Record<string, unknown>>;
  readonly rounds: number;
  /** Whether to leave out a first storm, in which everything is compiled. */
  readonly isWarm: boolean;
}

export interface Latencies {
  readonly count: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

export interface StormResult {
  /** Of each round. */
  readonly rounds: readonly { readonly quiet: Latencies; readonly storm: Latencies; readonly tookMs: number }[];
  /** What the program said of each. */
  readonly said: readonly Readonly<Record<string, Record<string, number>>>[];
  /** What the calls were answered. */
  readonly calls: readonly number[];
}

function latenciesOf(took: readonly number[]): Latencies {
  const sorted = took.toSorted((a, b) => a - b);
  const at = (part: number): number => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? Number.NaN;
  return { count: sorted.length, p50Ms: at(0.5), p99Ms: at(0.99) };
}

export async function measureStorm(backend: Backend, { program, order, rounds, isWarm }: StormOptions): Promise<StormResult> {
  const deployment = await backend.deploy();
  const upstream = await startUpstream();
  const service = await startService(deployment.folder, {
    ...deployment.environment,
    KEYGUARD_ADMIN_EMAIL: ADMIN.email,
    KEYGUARD_ADMIN_PASSWORD: ADMIN.password,
    KEYGUARD_REQUESTS_PER_MINUTE: '100000',
    OPENAI_API_KEY: 'sk-storm-key',
    OPENAI_BASE_URL: upstream.baseUrl,
    TRUST_PROXY: '1',

  });
  const stormer = spawn(process.execPath, [fileURLToPath(new URL(program, import.meta.url))], { stdio: ['pipe', 'pipe', 'inherit'] });
  try {
    const answers = createInterface({ input: stormer.stdout })[Symbol.asyncIterator]();
    const storm = async (): Promise<Record<string, Record<string, number>>> => {
      stormer.stdin.write(`${JSON.stringify({ origin: service.origin, ...ADMIN, ...order })}\n`);
      return JSON.parse((await answers.next()).value as string) as Record<string, Record<string, number>>;
    };
    const call = caller(() => service.origin);
    const signedIn = await call('POST', '/api/auth/sign-in/email', { body: ADMIN });
    const { json } = await call('POST', '/api/enrollment-codes', { token: signedIn.headers.get('set-auth-token')!, body: {} });
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    await client.enroll({ code: json.code });

    const statuses = new Set<number>();
    const ask = async (): Promise<number> => {
      const sentMs = performance.now();
      const response = await client.fetch(`${service.origin}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: 'm', messages: [{ role: 'user', content: 'Hello' }] }),
      });
      await response.arrayBuffer();
      statuses.add(response.status);
      return performance.now() - sentMs;
    };
    /** Calls at a steady pace, however long each takes, until `over` resolves. */
    const callUntil = async <T>(over: Promise<T>): Promise<{ latencies: Latencies; outcome: T }> => {
      const state = { isOver: false };
      const ending = over.finally(() => (state.isOver = true));
      const asked: Promise<number>[] = [];
      let running = 0;
      while (!state.isOver) {
        if (running < MAX_CALLS_AT_ONCE) {
          running += 1;
          asked.push(ask().finally(() => (running -= 1)));
        }
        await pause(CALL_EVERY_MS);
      }
      return { latencies: latenciesOf(await Promise.all(asked)), outcome: await ending };
    };

    await callUntil(pause(1000));
    if (isWarm) await callUntil(storm());
    const results: { quiet: Latencies; storm: Latencies; tookMs: number }[] = [];
    const said: Record<string, Record<string, number>>[] = [];
    for (let round = 0; round < rounds; round += 1) {
      const quiet = await callUntil(pause(QUIET_MS));
      const beganMs = performance.now();
      const stormy = await callUntil(storm());
      said.push(stormy.outcome);
      results.push({ quiet: quiet.latencies, storm: stormy.latencies, tookMs: Math.round(performance.now() - beganMs) });
      await pause(200);
    }
    return { rounds: results, said, calls: [...statuses] };
  } finally {
    stormer.kill();
    await service.stop('SIGKILL');
    await upstream.stop();
  }
}

/** The middle one. */
function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

export function describeStorm({ rounds, said, calls }: StormResult): string {
  const lines = rounds.map(
    ({ quiet, storm, tookMs }) =>
      `  quiet p50 ${quiet.p50Ms.toFixed(1)} p99 ${quiet.p99Ms.toFixed(1)} (${quiet.count})  storm of ${tookMs} ms p50 ${storm.p50Ms.toFixed(1)} p99 ${storm.p99Ms.toFixed(1)} (${storm.count})`,
  );
  const added = (pick: (one: Latencies) => number): string => median(rounds.map(({ quiet, storm }) => pick(storm) - pick(quiet))).toFixed(1);
  return [...lines, `  added, median of rounds: p50 ${added(({ p50Ms }) => p50Ms)} ms, p99 ${added(({ p99Ms }) => p99Ms)} ms; answered ${JSON.stringify(said.at(-1))}; calls ${calls.join(', ')}`, ''].join('\n');
}
