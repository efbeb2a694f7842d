/** Work that must not all be done at once: a few at a time, some in line, and a refusal for whoever would wait too long. */

export interface TurnsOptions {
  readonly atATime: number;
  readonly maxWaiting: number;
  /** How many places, in line and at work, one holder may have, so that nobody alone shuts the door for others. Default: all. */
  readonly maxPerHolder?: number;
  /** What whoever finds the line full is told. */
  readonly refusal: () => Error;
}

/** Does `work` in its turn, first come first served. @throws whatever `refusal` made, at once, where the line is full */
export type InTurn = <T>(work: () => Promise<T>, holder?: string) => Promise<T>;

export function turns({ atATime, maxWaiting, maxPerHolder = Infinity, refusal }: TurnsOptions): InTurn {
  let running = 0;
  const waiting: (() => void)[] = [];
  const places = new Map<string, number>();

  async function inTurn<T>(work: () => Promise<T>): Promise<T> {
    if (running >= atATime) {
      if (waiting.length >= maxWaiting) throw refusal();
      // Whoever ends hands its place over, so `running` stays as it is.
      await new Promise<void>((resolve) => waiting.push(resolve));
    } else running += 1;
    try {
      return await work();
    } finally {
      const next = waiting.shift();
      if (next === undefined) running -= 1;
      else next();
    }
  }

  return async (work, holder) => {
    if (holder === undefined) return inTurn(work);
    const held = places.get(holder) ?? 0;
    if (held >= maxPerHolder) throw refusal();
    places.set(holder, held + 1);
    try {
      return await inTurn(work);
    } finally {
      const left = places.get(holder)! - 1;
      if (left === 0) places.delete(holder);
      else places.set(holder, left);
    }
  };
}
