/**
 * What a storm costs those who call a provider meanwhile: the service is a child process, the storm comes from another one, and each
 * round compares calls just before a storm with calls in it. One call in a hundred is judged by those of all rounds together: in a
 * single round it is the one slowest call. Beside them `/healthz` is asked, which needs nothing but the event loop of the service: what
 * it waits for is no queue of ours, and what only the calls wait for is one.
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
  readonly p95Ms: number;
  readonly p99Ms: number;
}

/** What was seen while something went on. */
export interface Seen {
  readonly calls: Latencies;
  /** Of an answer that needs no database. */
  readonly loop: Latencies;
}

export interface StormResult {
  /** Of each round. */
  readonly rounds: readonly { readonly quiet: Seen; readonly storm: Seen; readonly tookMs: number }[];
  /** Of all of them together. */
  readonly pooled: { readonly quiet: Seen; readonly storm: Seen };
  /** What the program said of each. */
  readonly said: readonly Readonly<Record<string, Record<string, number>>>[];
  /** What the calls were answered. */
  readonly calls: readonly number[];
}

function latenciesOf(took: readonly number[]): Latencies {
  const sorted = took.toSorted((a, b) => a - b);
  const at = (part: number): number => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? Number.NaN;
  return { count: sorted.length, p50Ms: at(0.5), p95Ms: at(0.95), p99Ms: at(0.99) };
}

interface Took {
  readonly calls: readonly number[];
  readonly loop: readonly number[];
}

const seenOf = ({ calls, loop }: Took): Seen => ({ calls: latenciesOf(calls), loop: latenciesOf(loop) });

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
  }, { isMeasured: true });
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
    const askLoop = async (): Promise<number> => {
      const sentMs = performance.now();
      await (await fetch(`${service.origin}/healthz`)).arrayBuffer();
      return performance.now() - sentMs;
    };
    /** Calls at a steady pace, however long each takes, until `over` resolves. */
    const callUntil = async <T>(over: Promise<T>): Promise<{ took: Took; outcome: T }> => {
      const state = { isOver: false };
      const ending = over.finally(() => (state.isOver = true));
      const asked: Record<keyof Took, Promise<number>[]> = { calls: [], loop: [] };
      const running = { calls: 0, loop: 0 };
      const send = (kind: keyof Took, work: () => Promise<number>): void => {
        if (running[kind] >= MAX_CALLS_AT_ONCE) return;
        running[kind] += 1;
        asked[kind].push(work().finally(() => (running[kind] -= 1)));
      };
      while (!state.isOver) {
        send('calls', ask);
        send('loop', askLoop);
        await pause(CALL_EVERY_MS);
      }
      return { took: { calls: await Promise.all(asked.calls), loop: await Promise.all(asked.loop) }, outcome: await ending };
    };

    await callUntil(pause(1000));
    if (isWarm) await callUntil(storm());
    const took: { quiet: Took; storm: Took; tookMs: number }[] = [];
    const said: Record<string, Record<string, number>>[] = [];
    for (let round = 0; round < rounds; round += 1) {
      const quiet = await callUntil(pause(QUIET_MS));
      const beganMs = performance.now();
      const stormy = await callUntil(storm());
      said.push(stormy.outcome);
      took.push({ quiet: quiet.took, storm: stormy.took, tookMs: Math.round(performance.now() - beganMs) });
      await pause(200);
    }
    const all = (when: 'quiet' | 'storm'): Seen => seenOf({ calls: took.flatMap((one) => one[when].calls), loop: took.flatMap((one) => one[when].loop) });
    const results = took.map(({ quiet, storm: stormy, tookMs }) => ({ quiet: seenOf(quiet), storm: seenOf(stormy), tookMs }));
    return { rounds: results, pooled: { quiet: all('quiet'), storm: all('storm') }, said, calls: [...statuses] };
  } finally {
    stormer.kill();
    await service.stop('SIGKILL');
    await upstream.stop();
  }
}

const inWords = ({ count, p50Ms, p95Ms, p99Ms }: Latencies): string => `p50 ${p50Ms.toFixed(1)} p95 ${p95Ms.toFixed(1)} p99 ${p99Ms.toFixed(1)} (${count})`;

export function describeStorm({ rounds, pooled: { quiet, storm }, said, calls }: StormResult): string {
  const lines = rounds.map(({ tookMs, ...round }) => `  quiet ${inWords(round.quiet.calls)}  storm of ${tookMs} ms ${inWords(round.storm.calls)}`);
  const added = (pick: (one: Latencies) => number, of: 'calls' | 'loop'): string => (pick(storm[of]) - pick(quiet[of])).toFixed(1);
  const [p50, p99] = [({ p50Ms }: Latencies): number => p50Ms, ({ p99Ms }: Latencies): number => p99Ms];
  return [
    ...lines,
    `  all rounds: quiet ${inWords(quiet.calls)}  storm ${inWords(storm.calls)}: added p50 ${added(p50, 'calls')} ms, p99 ${added(p99, 'calls')} ms`,
    `  the event loop alone: quiet ${inWords(quiet.loop)}  storm ${inWords(storm.loop)}: added p50 ${added(p50, 'loop')} ms, p99 ${added(p99, 'loop')} ms`,
    `  answered ${JSON.stringify(said.at(-1))}; calls ${calls.join(', ')}`,
    '',
  ].join('\n');
}
