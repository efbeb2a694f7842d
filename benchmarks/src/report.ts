/** The results as a table for the terminal and as `RESULTS.md`. */
import { figureOf, formatFigure } from './chart.ts';
import { isMet, type Goal, type Ratio, type Section } from './results.ts';

export interface Circumstances {
  readonly commit: string;
  readonly machine: string;
  readonly node: string;
  readonly date: string;
  readonly command: string;
  readonly pinned: boolean;
  readonly loadBefore: number;
}

const describeGoal = ({ atLeast, atMost }: Goal): string => (atLeast !== undefined ? `≥ ${atLeast}` : `≤ ${atMost}`);

function verdict(ratio: Ratio): string {
  if (ratio.goal === null) return '';
  return isMet(ratio) ? 'pass' : 'miss';
}

/** By how much a missed goal is missed, in per cent of the goal. */
function shortfall({ value, goal }: Ratio): string {
  const bound = goal?.atLeast ?? goal?.atMost ?? value;
  return `${((Math.abs(value - bound) / bound) * 100).toFixed(0)} %`;
}

export function renderTable(sections: readonly Section[], circumstances: Circumstances): string {
  const lines: string[] = [...describe(circumstances), ''];
  for (const { title, unit, rows, ratios } of sections) {
    lines.push(`${title}  [${unit}]`);
    for (const row of rows) {
      const spread = row.lowerQuartile === row.upperQuartile ? '' : `${formatFigure(row.lowerQuartile)} … ${formatFigure(row.upperQuartile)}`;
      const waited = row.waited === undefined ? '' : `   p50 ${formatFigure(row.waited.p50Ms)} ms, p99 ${formatFigure(row.waited.p99Ms)} ms`;
      lines.push(`  ${row.name.padEnd(52)} ${figureOf(row).padStart(9)}   ${row.notRun ?? spread}${waited}`);
    }
    for (const ratio of ratios) {
      const goal = ratio.goal === null ? '' : `goal ${describeGoal(ratio.goal)}`;
      lines.push(`  = ${ratio.name.padEnd(50)} ${ratio.value.toFixed(3).padStart(9)}   ${goal.padEnd(12)} ${verdict(ratio)}`.trimEnd());
    }
    lines.push('');
  }
  const missed = sections.flatMap(({ ratios }) => ratios).filter((ratio) => !isMet(ratio));
  lines.push(missed.length === 0 ? 'All goals are met.' : `Missed: ${missed.map((ratio) => `${ratio.name} by ${shortfall(ratio)}`).join('; ')}.`);
  return lines.join('\n');
}

function describe({ commit, machine, node, date, command, pinned, loadBefore }: Circumstances): string[] {
  return [
    `Commit ${commit}, ${date}`,
    `${machine}, Node ${node}, ${pinned ? 'each process pinned to one core, unless it says otherwise' : 'not pinned'}, load before the run ${loadBefore.toFixed(2)}`,
    `Command: ${command}`,
  ];
}

export interface MarkdownOptions {
  /** What stands in the way of each missed goal, by the name of its ratio. */
  readonly why: Readonly<Record<string, string>>;
  /** The file of the chart. */
  readonly chart: string;
}

/** `RESULTS.md`. */
export function renderMarkdown(sections: readonly Section[], circumstances: Circumstances, { why, chart }: MarkdownOptions): string {
  const { commit, machine, node, date, command, pinned, loadBefore } = circumstances;
  const lines = [
    '# Benchmark results',
    '',
    'Written by the benchmark itself; do not edit. Absolute figures do not travel between machines, ratios within one run do.',
    '',
    '| | |',
    '| --- | --- |',
    `| commit | ${commit} |`,
    `| machine | ${machine}; load before the run ${loadBefore.toFixed(2)} |`,
    `| runtime | Node ${node}, OpenSSL ${process.versions.openssl} |`,
    `| date | ${date} |`,
    `| command | \`${command}\` |`,
    `| method | contestants in turn in every round, medians of the rounds, ratios as medians of the ratios within a round; ${pinned ? 'each process pinned to one core, unless it says otherwise' : 'not pinned'} |`,
    '| seed | none: keys and nonces are drawn anew in every run |',
    '',
    `![The results as bars](${chart})`,
    '',
    '## Goals',
    '',
    '| ratio | measured | goal | |',
    '| --- | ---: | --- | --- |',
  ];
  const ratios = sections.flatMap((section) => section.ratios);
  for (const ratio of ratios) {
    if (ratio.goal !== null) lines.push(`| ${ratio.name} | ${ratio.value.toFixed(2)} | ${describeGoal(ratio.goal)} | ${verdict(ratio)} |`);
  }
  lines.push('');
  const missed = ratios.filter((ratio) => !isMet(ratio));
  if (missed.length > 0) {
    lines.push('### Missed', '');
    for (const ratio of missed) lines.push(`- **${ratio.name}**: by ${shortfall(ratio)}. ${why[ratio.name] ?? ''}`.trimEnd());
    lines.push('');
  }
  for (const { title, about, unit, rows, ratios } of sections) {
    const anyWaited = rows.some(({ waited }) => waited !== undefined);
    lines.push(`## ${title}`, '', about, '', `| | ${unit} | middle half |${anyWaited ? ' p50 | p99 |' : ''}`, `| --- | ---: | ---: |${anyWaited ? ' ---: | ---: |' : ''}`);
    for (const row of rows) {
      const spread = row.lowerQuartile === row.upperQuartile ? '' : `${formatFigure(row.lowerQuartile)} – ${formatFigure(row.upperQuartile)}`;
      const name = row.kind === 'ours' ? `**${row.name}**` : row.name;
      const waits = row.waited === undefined ? ['', ''] : [row.waited.p50Ms, row.waited.p99Ms].map((ms) => `${formatFigure(ms)} ms`);
      lines.push(`| ${name} | ${figureOf(row)} | ${row.notRun ?? spread} |${anyWaited ? ` ${waits.join(' | ')} |` : ''}`);
    }
    lines.push('', ...ratios.map((ratio) => `- ${ratio.name}: ${ratio.value.toFixed(2)}`), '');
  }
  return lines.join('\n');
}
