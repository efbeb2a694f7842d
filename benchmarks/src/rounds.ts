/**
 * Fair measuring: every contestant runs a short slice in every round, in turn (A B C, B C A, …), so that whatever else the
 * machine does hits all alike. What is told of them are medians; a ratio is the median of the ratios within each round.
 */

/** One thing to be timed. */
export interface Contestant {
  readonly name: string;
  /** Runs the operation `operations` times, one after the other. */
  readonly run: (operations: number) => void | Promise<void>;
  /** How often per slice, where it differs from the others: something short needs more to be seen. */
  readonly operations?: number;
}

export interface RoundsOptions {
  readonly contestants: readonly Contestant[];
  readonly operations: number;
  readonly rounds: number;
  readonly warmUpRounds: number;
  /** No more rounds are begun after this time, warm-up included: a busy machine gets fewer, not a run without end. */
  readonly budgetMs: number;
  /** Makes the inputs of one round; not timed. */
  readonly prepare?: () => void | Promise<void>;
}

/** Microseconds per operation, one figure per round, by contestant. */
export type Timings = ReadonlyMap<string, readonly number[]>;

export async function timeInTurn({ contestants, operations, rounds, warmUpRounds, budgetMs, prepare }: RoundsOptions): Promise<Timings> {
  const timings = new Map<string, number[]>(contestants.map(({ name }) => [name, []]));
  const budget = budgetOf(budgetMs);
  for (let round = -warmUpRounds; round < rounds && budget.allows(round); round += 1) {
    await prepare?.();
    for (let turn = 0; turn < contestants.length; turn += 1) {
      const contestant = contestants[(turn + Math.abs(round)) % contestants.length]!;
      const count = contestant.operations ?? operations;
      // What the contestant before has left to the event loop is not on this one's account.
      await new Promise((resolve) => setImmediate(resolve));
      const startedAtMs = performance.now();
      await contestant.run(count);
      const elapsedMs = performance.now() - startedAtMs;
      if (round >= 0) timings.get(contestant.name)!.push((elapsedMs * 1000) / count);
    }
  }
  return timings;
}

const FEWEST_ROUNDS = 3;

/** Whether another round may begin; the warm-up and a few rounds always may. */
export function budgetOf(budgetMs: number): { readonly allows: (round: number) => boolean } {
  const endsAtMs = performance.now() + budgetMs;
  return { allows: (round) => round < FEWEST_ROUNDS || performance.now() < endsAtMs };
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) * q;
  const low = Math.floor(at);
  const high = Math.ceil(at);
  return sorted[low]! + (sorted[high]! - sorted[low]!) * (at - low);
}

export const median = (values: readonly number[]): number => quantile(values, 0.5);

/** The median over the rounds of `of(round of a, round of b, …)`. */
export function pairedMedian(series: readonly (readonly number[])[], of: (...values: number[]) => number): number {
  const [first = []] = series;
  return median(first.map((_, round) => of(...series.map((values) => values[round]!))));
}
