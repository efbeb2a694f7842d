/** What a suite finds out, as plain data: it crosses a process boundary and is printed, written and drawn elsewhere. */
import { median, quantile, type Timings } from './rounds.ts';

export type Unit = 'µs' | 'ms' | 'MiB' | 'requests/s' | 'entries/s';

export interface Row {
  readonly name: string;
  readonly median: number;
  /** The middle half of the rounds. */
  readonly lowerQuartile: number;
  readonly upperQuartile: number;
  /** `ours` is drawn in another colour, `limit` is what cannot be beaten. */
  readonly kind: 'ours' | 'peer' | 'limit' | 'part';
  /** Why there are no figures. */
  readonly notRun?: string;
  /** How long one caller waited, where that does not follow from the rate: medians over the rounds. */
  readonly waited?: { readonly p50Ms: number; readonly p99Ms: number };
}

export interface Goal {
  readonly atLeast?: number;
  readonly atMost?: number;
}

export interface Ratio {
  readonly name: string;
  readonly value: number;
  readonly goal: Goal | null;
}

export interface Section {
  readonly title: string;
  readonly about: string;
  readonly unit: Unit;
  readonly rows: readonly Row[];
  readonly ratios: readonly Ratio[];
}

export interface SuiteOptions {
  /** Fewer rounds: enough to see a regression, not to quote. */
  readonly quick: boolean;
  /** One short round of the proxy suite: enough to see that it runs, and nothing of its figures. */
  readonly smoke: boolean;
  /** Also a million devices and nonces, and in a quick run a million entries of an audit chain. */
  readonly million: boolean;
}

export type Suite = (options: SuiteOptions) => Promise<readonly Section[]>;

export function rowOf(name: string, values: readonly number[], kind: Row['kind']): Row {
  return { name, median: median(values), lowerQuartile: quantile(values, 0.25), upperQuartile: quantile(values, 0.75), kind };
}

/** A row that says that something could not be measured, so that nobody takes its absence for an oversight. */
export function rowNotRun(name: string, why: string): Row {
  return { name, median: 0, lowerQuartile: 0, upperQuartile: 0, kind: 'part', notRun: why };
}

export function rowsOf(timings: Timings, kinds: Readonly<Record<string, Row['kind']>>): Row[] {
  return [...timings].map(([name, values]) => rowOf(name, values, kinds[name] ?? 'peer'));
}

export function isMet({ value, goal }: Ratio): boolean {
  return goal === null || (value >= (goal.atLeast ?? -Infinity) && value <= (goal.atMost ?? Infinity));
}
