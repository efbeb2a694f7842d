/**
 * A reporter for Vitest that prints, at the end of a run, which implementation was seen to keep which property of its seam; made of the
 * results of the cases, and of nothing else. With `claims` it also holds a document to that.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import type { TestModule, TestRunEndReason, Vitest } from 'vitest/node';
import { EVIDENCE, type Evidence } from './cases.ts';
import { differences, readMarkdown, rowsOf, toMarkdown, writeMarkdown, type Outcome, type Row } from './table.ts';

export type { Property } from './cases.ts';
export type { Cell, Row } from './table.ts';

/** Which table the run is held to. */
export interface ConformanceReporterOptions {
  /**
   * A Markdown file with the table. After a run of all tests it must be the table of that run: a cell that is claimed and did not run
   * fails the run, and so does one that ran and is not there.
   */
  readonly claims?: string;
  /** Rows that this machine cannot run, for want of a server. Everything is expected by default. */
  readonly mayBeMissing?: (row: Pick<Row, 'seam' | 'implementation'>) => boolean;
  /** Writes the table into `claims`, in place of holding it to that. */
  readonly write?: boolean;
}

/** A reporter for Vitest: prints which implementation keeps what, made of the cases that ran. */
export default class ConformanceReporter {
  readonly #options: ConformanceReporterOptions;
  #vitest: Vitest | undefined;

  constructor(options: ConformanceReporterOptions = {}) {
    this.#options = options;
  }

  /** Called by Vitest before the run. */
  onInit(vitest: Vitest): void {
    this.#vitest = vitest;
  }

  /** Called by Vitest after the run: prints the table, and fails the run where it is not the one that is claimed. */
  onTestRunEnd(testModules: readonly TestModule[], _errors: unknown, reason: TestRunEndReason): void {
    const rows = rowsOf(testModules.flatMap((module) => [...outcomesOf(module)]));
    if (rows.length > 0) this.#print(`\n${toMarkdown(rows)}\n`);
    const { claims } = this.#options;
    if (claims !== undefined && reason !== 'interrupted' && isComplete(this.#vitest!)) this.#settle(claims, rows);
  }

  #settle(claims: string, rows: readonly Row[]): void {
    const { mayBeMissing = () => false, write = false } = this.#options;
    const document = readFileSync(claims, 'utf8');
    const claimed = readMarkdown(document);
    if (write) {
      const missing = claimed.filter((claim) => mayBeMissing(claim) && !rows.some((row) => row.seam === claim.seam && row.implementation === claim.implementation));
      writeFileSync(claims, writeMarkdown(document, [...rows, ...missing]));
      return;
    }
    const found = differences(claimed, rows, mayBeMissing);
    if (found.length === 0) return;
    this.#print(`\n FAIL  ${claims} does not say what ran:\n${found.map((line) => `   ${line}`).join('\n')}\n`);
    process.exitCode = 1;
  }

  #print(text: string): void {
    this.#vitest!.logger.log(text);
  }
}

function* outcomesOf(module: TestModule): Generator<Outcome> {
  for (const test of module.children.allTests()) {
    const evidence = (test.meta() as Record<string, unknown>)[EVIDENCE] as Evidence | undefined;
    const { state } = test.result();
    // What was skipped is no evidence, and neither is what never ended.
    if (evidence !== undefined && (state === 'passed' || state === 'failed')) yield { ...evidence, passed: state === 'passed' };
  }
}

/** Whether nothing was left out: by name, by file, by project, by what changed, or by machine. */
function isComplete(vitest: Vitest): boolean {
  const { config } = vitest;
  const given = config as typeof config & { readonly project?: string | readonly string[]; readonly changed?: unknown; readonly related?: unknown };
  const filters: readonly unknown[] = [
    (vitest as Vitest & { readonly filenamePattern?: readonly string[] }).filenamePattern,
    config.testNamePattern,
    given.project,
    given.changed,
    given.related,
    config.shard,
  ];
  return !config.watch && filters.every((filter) => filter === undefined || filter === false || (Array.isArray(filter) && filter.length === 0));
}
