/**
 * How long a verifier waits for a seam. What is answered without waiting for the event loop, as by stores and limiters in memory,
 * never costs a timer.
 */

/** What an answer that did not come is told as. */
export const TIMED_OUT: unique symbol = Symbol('timed out');

interface Waiting {
  settled: boolean;
  timer: NodeJS.Timeout | undefined;
  readonly timeoutMs: number;
  readonly expire: () => void;
}

let fresh: Waiting[] = [];

// A tick that a microtask asks for runs when no microtask is left: what is not settled then waits for the world outside.
function watchWhenDrained(): void {
  process.nextTick(watchFresh);
}

function watchFresh(): void {
  const arrived = fresh;
  fresh = [];
  for (const waiting of arrived) {
    // A turn later: after a long turn of the event loop the answer may have arrived and not have been read yet.
    if (!waiting.settled) waiting.timer = setTimeout(() => setImmediate(waiting.expire), waiting.timeoutMs);
  }
}

/**
 * Resolves as `answer` does and rejects with what `failed` makes of its error, or of {@link TIMED_OUT} when `timeoutMs` have passed
 * since the microtasks of this turn were done.
 */
export function within<T>(timeoutMs: number, answer: Promise<T>, failed: (error: unknown) => Error): Promise<T> {
  return new Promise((resolve, reject) => {
    const waiting: Waiting = { settled: false, timer: undefined, timeoutMs, expire: () => reject(failed(TIMED_OUT)) };
    if (fresh.push(waiting) === 1) queueMicrotask(watchWhenDrained);
    answer.then(
      (value) => {
        settle(waiting);
        resolve(value);
      },
      (error: unknown) => {
        settle(waiting);
        reject(failed(error));
      },
    );
  });
}

function settle(waiting: Waiting): void {
  waiting.settled = true;
  if (waiting.timer !== undefined) clearTimeout(waiting.timer);
}
