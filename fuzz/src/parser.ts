/**
 * What a fuzzed parser is, and how one input is judged: a parser may accept or refuse, a refusal must be one that its documentation
 * names, and what it accepts must be right in the eyes of somebody who shares no code with it.
 */
import { inspect, isDeepStrictEqual } from 'node:util';
import canonicalize from 'canonicalize';
import { generator, type Generator } from './generator.ts';

export type Verdict = 'accepted' | 'refused';

/** A function that reads untrusted input, with all that is needed to put one input to it and to judge the answer. */
export interface Parser {
  /** The module and the function. */
  readonly name: string;
  /** Draws an input, hands it to the function and judges. @throws Wrong */
  try(random: Generator): Verdict | Promise<Verdict>;
}

/** The parser did what it must not: accepted what it should refuse, refused what it should accept, or failed in another way. */
export class Wrong extends Error {
  override readonly name = 'Wrong';
}

/** `RejectedError merkle_proof_invalid`: the class, and the code where there is one. */
export type Refusal = string;

export type Outcome<T> = { readonly accepted: true; readonly value: T } | { readonly accepted: false; readonly refusal: Refusal };

function refusalOf(error: unknown, allowed: readonly Refusal[]): { readonly accepted: false; readonly refusal: Refusal } {
  const { name, code } = error as { name?: unknown; code?: unknown };
  const refusal = name === 'TypeError' || name === 'UnreadableExport' ? name : `${String(name)} ${String(code)}`;
  if (!(error instanceof Error) || !allowed.includes(refusal)) throw new Wrong(`threw ${refusal}, which is not documented`, { cause: error });
  return { accepted: false, refusal };
}

/** What `call` answers, or the refusal that it throws. @throws Wrong for any that is not `allowed` */
export function outcomeOf<T>(call: () => T, ...allowed: readonly Refusal[]): Outcome<T> {
  try {
    return { accepted: true, value: call() };
  } catch (error) {
    return refusalOf(error, allowed);
  }
}

/** {@link outcomeOf} for what answers later. */
export async function outcomeOfLater<T>(call: () => Promise<T>, ...allowed: readonly Refusal[]): Promise<Outcome<T>> {
  try {
    return { accepted: true, value: await call() };
  } catch (error) {
    return refusalOf(error, allowed);
  }
}

/** @throws Wrong unless `holds` */
export function demand(holds: boolean, what: string): void {
  if (!holds) throw new Wrong(what);
}

/** @throws Wrong unless both are deeply equal */
export function demandEqual(actual: unknown, expected: unknown, what: string): void {
  if (!isDeepStrictEqual(actual, expected)) throw new Wrong(`${what} is another than the oracle's`);
}

/** Where the oracle knows both: accepted if and only if `expected`. `input` is shown. @throws Wrong */
export function agree(accepted: boolean, expected: boolean, ...input: readonly unknown[]): Verdict {
  if (accepted !== expected) {
    const shown = input.length === 0 ? '' : `: ${inspect(input, { breakLength: Infinity }).slice(0, 500)}`;
    throw new Wrong(`${accepted ? 'accepted what the oracle refuses' : 'refused what the oracle accepts'}${shown}`);
  }
  return accepted ? 'accepted' : 'refused';
}

/** Whether `text` has a UTF-8 form: no surrogate without its partner. */
export function isUnicode(text: string): boolean {
  return Buffer.from(text).toString() === text;
}

/** What the `canonicalize` library writes; `undefined` where it writes nothing. */
export function canonicalised(value: unknown): string | undefined {
  try {
    return canonicalize(value);
  } catch {
    return undefined;
  }
}

export interface Counts {
  accepted: number;
  refused: number;
  slowestMs: number;
}

export interface Failure {
  readonly index: number;
  readonly what: string;
  readonly cause: string;
}

/** The longest that one input may take. Inputs have at most some hundred kilobytes. */
export const LIMIT_MS = 1000;

async function timed(parser: Parser, seed: number, index: number): Promise<{ verdict: Verdict; ms: number }> {
  const started = performance.now();
  const verdict = await parser.try(generator(seed, parser.name, index));
  return { verdict, ms: performance.now() - started };
}

/**
 * Puts the inputs from `from` to before `to` to `parser`, one after the other.
 * @param at told of each before it is tried, for whoever watches from outside
 */
export async function run(parser: Parser, seed: number, from: number, to: number, at: (index: number) => void = () => {}): Promise<Counts & { failures: Failure[] }> {
  const counts = { accepted: 0, refused: 0, slowestMs: 0, failures: [] as Failure[] };
  for (let index = from; index < to && counts.failures.length < 10; index += 1) {
    at(index);
    try {
      let { verdict, ms } = await timed(parser, seed, index);
      // The machine may have been busy with something else: only what is slow three times is.
      for (let again = 0; again < 2 && ms > LIMIT_MS; again += 1) ({ verdict, ms } = await timed(parser, seed, index));
      if (ms > LIMIT_MS) throw new Wrong(`took ${Math.round(ms)} ms`);
      counts[verdict] += 1;
      counts.slowestMs = Math.max(counts.slowestMs, ms);
    } catch (error) {
      const { message, cause } = error as Error;
      const what = error instanceof Wrong ? message : `the harness failed: ${String((error as Error).stack)}`;
      counts.failures.push({ index, what, cause: cause instanceof Error ? String(cause.stack) : '' });
    }
  }
  return counts;
}
