/**
 * How long a verifier waits for a seam. What is answered within the same turn of the event loop, as stores and limiters in memory
 * are, never costs a timer.
 */

interface Waiting {
  settled: boolean;
  timer: NodeJS.Timeout | undefined;
  readonly timeoutMs: number;
  readonly expire: () => void;
}

let fresh: Waiting[] = [];

function watchFresh(): void {
  const arrived = fresh;
  fresh = [];
  for (const waiting of arrived) {
    if (!waiting.settled) waiting.timer = setTimeout(waiting.expire, waiting.timeoutMs);
  }
}

/** Settles as `answer` does, or with what `late` makes when `timeoutMs` have passed since this turn of the event loop. */
export function within<T>(timeoutMs: number, answer: Promise<T>, late: () => Error): Promise<T> {
  return new Promise((resolve, reject) => {
    const waiting: Waiting = { settled: false, timer: undefined, timeoutMs, expire: () => reject(late()) };
    const settle = (): void => {
      waiting.settled = true;
      clearTimeout(waiting.timer);
    };
    if (fresh.push(waiting) === 1) setImmediate(watchFresh);
    answer.then(
      (value) => {
        settle();
        resolve(value);
      },
      (error: unknown) => {
        settle();
        reject(error as Error);
      },
    );
  });
}
