/**
 * `pnpm fuzz`: a million inputs to each parser, over all cores. `--inputs=N` sets another number, `--seed=S` repeats a run,
 * `--only=word,word` runs the parsers whose name holds one of the words, `--from=I` begins with input I, `--threads=N` splits over that many,
 * and `--write` writes the counts into benchmarks/FUZZING.md. Ends with 1 if a parser did anything wrong.
 */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import type { Counts, Failure } from './parser.ts';
import { PARSERS } from './parsers.ts';
import { renderMarkdown, type Circumstances, type Result } from './report.ts';
import type { Given, Range } from './worker.ts';

const BLOCK = 2000;
const PROGRESS_MS = 10_000;
// How long one input may be tried before its thread is given up. Most take less than a millisecond, but the machine may be busy.
const HANG_MS = 60_000;
// What a thread is at while it loads.
const NOT_STARTED = 2 ** 32 - 1;

const { values: flags } = parseArgs({
  // pnpm hands on the `--` that sets a script's own options apart.
  args: process.argv.slice(2).filter((argument) => argument !== '--'),
  options: {
    inputs: { type: 'string', default: '1000000' },
    seed: { type: 'string', default: String(Math.floor(Math.random() * 2 ** 32)) },
    only: { type: 'string', default: '' },
    from: { type: 'string', default: '0' },
    threads: { type: 'string', default: String(availableParallelism()) },
    write: { type: 'boolean', default: false },
  },
});

function integer(name: 'inputs' | 'seed' | 'from' | 'threads', least: number): number {
  const text = flags[name];
  if (!/^\d{1,10}$/.test(text) || Number(text) < least || Number(text) >= 2 ** 32) throw new Error(`--${name} must be an integer from ${least} to 2^32 - 1.`);
  return Number(text);
}
const [inputs, seed, start, threads] = [integer('inputs', 1), integer('seed', 0), integer('from', 0), integer('threads', 1)];
const words = flags.only.split(',');
const exact = PARSERS.filter(({ name }) => name === flags.only);
const chosen = exact.length > 0 ? exact : PARSERS.filter(({ name }) => words.some((word) => name.includes(word)));
if (chosen.length === 0) throw new Error(`No parser is called "${flags.only}". There are:\n${PARSERS.map(({ name }) => name).join('\n')}`);

interface Thread {
  readonly worker: Worker;
  readonly at: Uint32Array;
}

function newThread(): Thread {
  const given: Given = { seed, at: new SharedArrayBuffer(4) };
  const at = new Uint32Array(given.at).fill(NOT_STARTED);
  return { worker: new Worker(new URL('./worker.ts', import.meta.url), { workerData: given }), at };
}

/** One range on one thread. A thread that does not answer is ended, and what it was at is the failure. */
function put({ worker, at }: Thread, range: Range): Promise<Counts & { failures: readonly Failure[]; isLost: boolean }> {
  return new Promise((resolve, reject) => {
    const settle = (): void => {
      clearInterval(timer);
      worker.off('message', onAnswer).off('error', onError);
    };
    const onAnswer = (answer: Counts & { failures: readonly Failure[] }): void => {
      settle();
      resolve({ ...answer, isLost: false });
    };
    const onError = (error: unknown): void => {
      settle();
      reject(error as Error);
    };
    let [tried, sinceMs] = [-1, performance.now()];
    const timer = setInterval(() => {
      const nowMs = performance.now();
      if (at[0] !== tried || tried === NOT_STARTED) [tried, sinceMs] = [at[0]!, nowMs];
      if (nowMs - sinceMs < HANG_MS) return;
      settle();
      void worker.terminate();
      resolve({ accepted: 0, refused: 0, slowestMs: HANG_MS, failures: [{ index: tried, what: 'did not end', cause: '' }], isLost: true });
    }, 1000);
    worker.on('message', onAnswer).on('error', onError);
    // A thread of Node has no origin.
    // eslint-disable-next-line unicorn/require-post-message-target-origin
    worker.postMessage(range);
  });
}

const group = (n: number): string => n.toLocaleString('en-GB');

async function fuzz(name: string, pool: Thread[]): Promise<Result> {
  const total = { accepted: 0, refused: 0, slowestMs: 0, failures: [] as Failure[] };
  const startedMs = performance.now();
  let toldMs = startedMs;
  let next = start;
  await Promise.all(
    pool.map(async (_, i) => {
      while (next < start + inputs && total.failures.length < 10) {
        const from = next;
        next = Math.min(from + BLOCK, start + inputs);
        const counts = await put(pool[i]!, { parser: name, from, to: next });
        total.accepted += counts.accepted;
        total.refused += counts.refused;
        total.slowestMs = Math.max(total.slowestMs, counts.slowestMs);
        total.failures.push(...counts.failures);
        if (counts.isLost) pool[i] = newThread();
        if (performance.now() - toldMs > PROGRESS_MS) {
          toldMs = performance.now();
          console.log(`  ${name}: ${group(total.accepted + total.refused)} of ${group(inputs)}`);
        }
      }
    }),
  );
  const seconds = (performance.now() - startedMs) / 1000;
  const { accepted, refused, slowestMs, failures } = total;
  console.log(`${failures.length === 0 ? 'ok   ' : 'WRONG'} ${name}: ${group(accepted + refused)} inputs, ${group(accepted)} accepted, ${group(refused)} refused, ${failures.length} wrong; ${seconds.toFixed(1)} s, slowest ${slowestMs.toFixed(1)} ms`);
  for (const { index, what, cause } of failures.slice(0, 5)) {
    console.log(`  input ${index}: ${what}${cause === '' ? '' : `\n    ${cause}`}`);
    console.log(`  again: pnpm fuzz --seed=${seed} --only='${name}' --from=${index} --inputs=1`);
  }
  return { name, accepted, refused, slowestMs, seconds, wrong: failures.length };
}

function commit(): string {
  try {
    const git = (...args: string[]): string => execFileSync('git', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
    const changed = git('status', '--porcelain', '--untracked-files=no', '--', '../packages', '../examples', '.') === '' ? '' : ', with changes';
    return `${git('rev-parse', '--short=12', 'HEAD')}${changed}`;
  } catch {
    return 'unknown';
  }
}

const circumstances: Circumstances = {
  commit: commit(),
  machine: `${availableParallelism()} cores of ${cpus()[0]?.model.trim() ?? 'an unknown model'}, ${Math.round(totalmem() / 2 ** 30)} GiB`,
  node: process.versions.node,
  date: new Date().toISOString().slice(0, 10),
  seed,
  inputs,
};
console.log(`fuzz: ${group(inputs)} inputs to each of ${chosen.length} parsers, seed ${seed}, on ${threads} threads`);
const pool = Array.from({ length: threads }, newThread);
const results: Result[] = [];
for (const { name } of chosen) results.push(await fuzz(name, pool));
await Promise.all(pool.map(({ worker }) => worker.terminate()));
if (flags.write) writeFileSync(new URL('../../benchmarks/FUZZING.md', import.meta.url), renderMarkdown(results, circumstances));
const failed = results.filter(({ wrong }) => wrong > 0).length;
console.log(`fuzz: ${results.length - failed} passed, ${failed} failed (seed ${seed})`);
process.exitCode = failed === 0 ? 0 : 1;
