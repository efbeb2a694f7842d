/**
 * All benchmarks in one run: `pnpm bench`. `--quick` is a short run for CI, `--million` adds a million devices and nonces (and to
 * a short run a million audit entries), and `--only=sign,verify` runs some of the suites. `--write` writes RESULTS.md and results.svg; of
 * some suites RESULTS-SIGN-VERIFY.md and its chart, so that what was measured elsewhere or at another time stays what it was.
 */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, totalmem } from 'node:os';
import { parseArgs } from 'node:util';
import { drawChart } from './chart.ts';
import { express } from './express.ts';
import { messageOf, canPin, start } from './processes.ts';
import { renderMarkdown, renderTable, type Circumstances } from './report.ts';
import type { Section, Suite, SuiteOptions } from './results.ts';
import { WHY_MISSED } from './why-missed.ts';

const inProcessOfItsOwn =
  (name: string, core: 1 | 'any' = 1): Suite =>
  async (options) =>
    (await messageOf(start('./suite.ts', core, name, JSON.stringify(options)))) as readonly Section[];

const SUITES: Readonly<Record<string, Suite>> = {
  sign: inProcessOfItsOwn('sign'),
  verify: inProcessOfItsOwn('verify'),
  express,
  vault: inProcessOfItsOwn('vault'),
  audit: inProcessOfItsOwn('audit'),
  merkle: inProcessOfItsOwn('merkle'),
  growth: inProcessOfItsOwn('growth'),
  stores: inProcessOfItsOwn('stores', 'any'),
  append: inProcessOfItsOwn('append', 'any'),
  // With what it starts there, PostgreSQL among it: only the servers that are measured are on the other core.
  proxy: inProcessOfItsOwn('proxy', 1),
};

function commit(): string {
  try {
    const git = (...args: string[]): string => execFileSync('git', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
    const changed = git('status', '--porcelain', '--untracked-files=no', '--', '../packages', '../examples/service', '.') === '' ? '' : ', with changes';
    return `${git('rev-parse', '--short=12', 'HEAD')}${changed}`;
  } catch {
    return 'unknown';
  }
}

const { values: flags } = parseArgs({
  // pnpm hands on the `--` that sets a script's own options apart.
  args: process.argv.slice(2).filter((argument) => argument !== '--'),
  options: {
    quick: { type: 'boolean', default: false },
    smoke: { type: 'boolean', default: false },
    million: { type: 'boolean', default: false },
    write: { type: 'boolean', default: false },
    only: { type: 'string', default: Object.keys(SUITES).join(',') },
  },
});
const options: SuiteOptions = { quick: flags.quick || flags.smoke, smoke: flags.smoke, million: flags.million };
const chosen = flags.only.split(',').map((name) => {
  const suite = SUITES[name];
  if (suite === undefined) throw new Error(`There is no suite "${name}"; there are ${Object.keys(SUITES).join(', ')}.`);
  return { name, suite };
});
const circumstances: Circumstances = {
  commit: commit(),
  machine: `${availableParallelism()} cores of ${cpus()[0]?.model.trim() ?? 'an unknown model'}, ${Math.round(totalmem() / 2 ** 30)} GiB`,
  node: process.versions.node,
  date: new Date().toISOString().slice(0, 10),
  command: ['pnpm bench', ...process.argv.slice(2)].join(' '),
  pinned: canPin,
  loadBefore: loadavg()[0]!,
};

const sections: Section[] = [];
for (const { name, suite } of chosen) {
  process.stderr.write(`${name} …\n`);
  sections.push(...(await suite(options)));
}
console.log(renderTable(sections, circumstances));
if (flags.write) {
  const isWhole = chosen.length === Object.keys(SUITES).length;
  const name = ['results', ...(isWhole ? [] : chosen.map((suite) => suite.name))].join('-');
  const file = (fileName: string): URL => new URL(`../${fileName}`, import.meta.url);
  writeFileSync(file(`${name.toUpperCase()}.md`), renderMarkdown(sections, circumstances, { why: WHY_MISSED, chart: `${name}.svg` }));
  writeFileSync(file(`${name}.svg`), drawChart(sections));
}
