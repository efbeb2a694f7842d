/**
 * What an implementation is built on, and how it is made to misbehave: the substrate beneath the code, and never the code itself.
 */
import type { MaybePromise } from '@keyguard/core/seams';

/**
 * What a suite must know before it defines its cases, so that none is left out silently at run time.
 *
 * - `external`: a database, a disk, a server. It can fail, hang and be full.
 * - `bounded`: the memory of this process, up to a number. It can be full.
 * - `memory`: the memory of this process. There is nothing to take away.
 */
export type Substrate = 'external' | 'bounded' | 'memory';

/**
 * The ways in which a substrate goes wrong. Each lasts until {@link calm}. A `bounded` substrate can only be filled.
 *
 * Most substrates are reached by a function or two: wrap them in {@link InjectedFaults.through} of {@link injectFaults}. Where the
 * real thing can be had (a server that is stopped, a disk that is full), hand that in instead.
 */
export interface Faults {
  /**
   * From now on this share of the calls of the substrate (`share`, from 0 to 1) fails, half of them before they have acted and half of them afterwards, so
   * that nobody can tell. `random` answers from 0 up to 1 and is seeded.
   */
  fail(share: number, random: () => number): MaybePromise<void>;
  /** From now on no call of the substrate comes back, whether it has acted already or acts once it is let go. */
  hang(random: () => number): MaybePromise<void>;
  /** From now on there is no room for anything new. What is there can be read. */
  fill(): MaybePromise<void>;
  /** The substrate is as it was, and what was hanging goes on. */
  calm(): MaybePromise<void>;
}

/** What a `bounded` substrate can suffer. */
export type Fullness = Pick<Faults, 'fill' | 'calm'>;

/** What a substrate says when it fails. */
export interface FaultTexts {
  /** What the substrate throws when a connection breaks or a device fails. Called for each failure. */
  readonly failure: () => unknown;
  /** What it throws when there is no room. */
  readonly full: () => unknown;
}

/** Faults of a substrate that is reached by a function or two. */
export interface InjectedFaults extends Faults {
  /** At once: this `share` of calls, from 0 to 1, fails. */
  fail(share: number, random: () => number): void;
  /** At once: no call comes back. */
  hang(random: () => number): void;
  /** At once: there is no room. */
  fill(): void;
  /** At once: as it was. */
  calm(): void;
  /** Makes one call of the substrate, under the faults of the moment. `needsRoom`: whether a full substrate refuses it. */
  through<T>(call: () => MaybePromise<T>, needsRoom?: boolean): Promise<T>;
  /**
   * The same for a substrate that answers on the thread that asks. It cannot hang by itself; hand in another `hang`, which holds what
   * it waits for.
   */
  throughNow<T>(call: () => T, needsRoom?: boolean): T;
}

type Mode =
  | { readonly kind: 'calm' | 'full' }
  | { readonly kind: 'failing'; readonly share: number; readonly random: () => number }
  | { readonly kind: 'hanging'; readonly random: () => number; readonly released: Promise<void> };

/** Faults for whatever is reached by calling a function. */
export function injectFaults({ failure, full }: FaultTexts): InjectedFaults {
  let mode: Mode = { kind: 'calm' };
  let release = (): void => {};

  function become(next: Mode): void {
    release();
    mode = next;
  }

  /** Whether a call that begins now fails, and when. */
  function drawn(now: Mode, needsRoom: boolean): 'before' | 'after' | 'never' {
    if (now.kind === 'full' && needsRoom) throw full();
    if (now.kind !== 'failing') return 'never';
    const number = now.random();
    return number < now.share / 2 ? 'before' : number < now.share ? 'after' : 'never';
  }

  return {
    fail: (share, random) => become({ kind: 'failing', share, random }),
    hang: (random) => {
      let resolveReleased = (): void => {};
      const released = new Promise<void>((resolve) => (resolveReleased = resolve));
      become({ kind: 'hanging', random, released });
      release = resolveReleased;
    },
    fill: () => become({ kind: 'full' }),
    calm: () => become({ kind: 'calm' }),
    async through<T>(call: () => MaybePromise<T>, needsRoom = true): Promise<T> {
      const now = mode;
      const fails = drawn(now, needsRoom);
      if (fails === 'before') throw failure();
      // Half of what hangs has acted already.
      if (now.kind === 'hanging' && now.random() < 0.5) await now.released;
      const answer = await call();
      if (now.kind === 'hanging') await now.released;
      if (fails === 'after') throw failure();
      return answer;
    },
    throughNow<T>(call: () => T, needsRoom = true): T {
      const fails = drawn(mode, needsRoom);
      if (fails === 'before') throw failure();
      const answer = call();
      if (fails === 'after') throw failure();
      return answer;
    },
  };
}

/** Every fifth call fails. */
export const FAILING_SHARE = 0.2;

/** Numbers from 0 up to 1, the same for the same seed: a linear congruential generator, which is even enough to choose by. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** The randomness of one run of failures, and how many calls it has let fail: where none did, a run shows nothing. */
export interface FailureDraw {
  readonly random: () => number;
  hits(): number;
}

export function failureDraw(seed: number): FailureDraw {
  const random = seeded(seed);
  let hits = 0;
  return {
    random: () => {
      const drawn = random();
      if (drawn < FAILING_SHARE) hits += 1;
      return drawn;
    },
    hits: () => hits,
  };
}

/** How a call ended: never a rejection, so that a hundred can be looked at together. */
export type Ending<T> = { readonly value: T } | { readonly error: unknown };

export async function ending<T>(call: () => MaybePromise<T>): Promise<Ending<T>> {
  try {
    return { value: await call() };
  } catch (error) {
    return { error };
  }
}

export const endings = <T>(calls: readonly (() => MaybePromise<T>)[]): Promise<Ending<T>[]> => Promise.all(calls.map((call) => ending(call)));

export const valuesOf = <T>(all: readonly Ending<T>[]): T[] => all.flatMap((one) => ('value' in one ? [one.value] : []));

export const errorsOf = (all: readonly Ending<unknown>[]): unknown[] => all.flatMap((one) => ('error' in one ? [one.error] : []));

/** The faults that a subject has to hand in where its substrate is external. */
export function faultsOf({ faults }: { readonly faults?: Faults | Fullness }): Faults {
  if (faults === undefined || !('fail' in faults)) throw new Error(`The subject hands in no faults. ${WHERE_THERE_ARE_NONE}`);
  return faults;
}

/** What a subject has to hand in where its substrate is external or bounded. */
export function fullnessOf({ faults }: { readonly faults?: Faults | Fullness }): Fullness {
  if (faults === undefined) throw new Error(`The subject cannot be made full. ${WHERE_THERE_ARE_NONE}`);
  return faults;
}

const WHERE_THERE_ARE_NONE = 'Where there is nothing that could go wrong, say substrate: \'memory\'.';

// Longer than any call takes that is not held up; and a suite waits for it a few times only.
const HELD_MS = 150;
/** What a machine that is busy with something else may add to a bound. */
const SLACK_MS = 2000;

/**
 * Makes `calls` while the substrate hangs. None may succeed meanwhile, and where a bound is promised all must have answered within it.
 * Then lets the substrate go, and resolves with how they ended.
 */
export async function endingsOverHang<T>(
  faults: Faults,
  random: () => number,
  boundMs: number | undefined,
  calls: readonly (() => MaybePromise<T>)[],
): Promise<Ending<T>[]> {
  await faults.hang(random);
  const early: Ending<T>[] = [];
  let held = true;
  const all = calls.map(async (call) => {
    const one = await ending(call);
    if (held) early.push(one);
    return one;
  });
  try {
    const patience = new Promise<void>((resolve) => setTimeout(resolve, boundMs === undefined ? HELD_MS : boundMs + SLACK_MS));
    await (boundMs === undefined ? patience : Promise.race([patience, Promise.all(all)]));
    held = false;
    if (valuesOf(early).length > 0) throw new Error(`${valuesOf(early).length} calls succeeded while the substrate hung.`);
    if (boundMs !== undefined && early.length < all.length) {
      throw new Error(`${all.length - early.length} of ${all.length} calls had no answer after the ${boundMs} ms that are promised.`);
    }
  } finally {
    held = false;
    await faults.calm();
  }
  return Promise.all(all);
}
