/** That the benchmark of the proxy runs: whoever wants its figures must not find it broken. What it measures here says nothing. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';

const BENCHMARKS = fileURLToPath(new URL('../benchmarks', import.meta.url));
// Row, figure, and what else stands there.
const ROW = /^ {2}(\S.*?) {2,}([0-9.,]+|NOT RUN) /;
const RATIO = /^ {2}= (\S.*?) {1,}(-?[0-9.]+)(?: {3}|$)/;

it('measures every contestant of the proxy suite, and finds every call of theirs on record', async () => {
  // It fails by itself where an answer is not the provider's, or where a call that was answered is missing in the service's analytics.
  const { stdout } = await promisify(execFile)(process.execPath, ['--conditions=@keyguard/source', 'src/main.ts', '--only=proxy', '--smoke'], { cwd: BENCHMARKS, timeout: 240_000 });
  const lines = stdout.split('\n');
  const rows = lines.flatMap((line) => (line.startsWith('  = ') ? [] : [ROW.exec(`${line} `)].filter((match) => match !== null)));
  const figures = new Map<string, number[]>();
  for (const [, name, figure] of rows) figures.set(name!, [...(figures.get(name!) ?? []), Number(figure!.replaceAll(',', ''))]);
  for (const name of ['node:http proxy', 'node:http proxy + one bare verify', 'Portkey gateway', 'KeyGuard on PGlite', 'KeyGuard on PostgreSQL']) {
    const found = figures.get(name);
    // One connection, 32 of them, the first byte of a stream, and memory.
    expect(found?.length, name).toBe(4);
    for (const figure of found!) expect(figure, name).toBeGreaterThan(0);
  }
  expect(figures.get('further starts')).toHaveLength(1);
  expect(figures.has('KeyGuard on PostgreSQL and Redis')).toBe(true);
  const ratios = lines.flatMap((line) => RATIO.exec(line)?.[2] ?? []);
  expect(ratios.length).toBeGreaterThan(12);
  for (const ratio of ratios) expect(Number(ratio)).not.toBeNaN();
}, 300_000);
