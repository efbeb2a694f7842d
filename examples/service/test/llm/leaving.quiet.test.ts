/** How soon an upstream is left by a client's leaving, a thousand times. What is measured is printed. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { inside, startLeaving, WINDOWS, type Leaving, type Window } from './leaving.ts';

const CLIENTS = 1000;
const AT_ONCE = 20;
const P99_MS = 250;

describe('a thousand clients that leave', { timeout: 60_000 }, () => {
  let leaving: Leaving;
  beforeAll(async () => {
    leaving = await startLeaving();
  });
  afterAll(() => leaving?.close());

  it(`are noticed by the upstream within ${P99_MS} ms, 99 of 100, and leave no socket`, async () => {
    const tookMs: Record<Window, number[]> = { 'before-headers': [], 'mid-stream': [], 'non-stream': [] };
    let next = 0;
    const worker = async (): Promise<void> => {
      while (next < CLIENTS) {
        const number = next++;
        const window = WINDOWS[number % WINDOWS.length]!;
        const id = `n-${number}`;
        const [arrival, loss] = [leaving.arrival(id), leaving.loss(id)];
        const request = await leaving.call(window, id);
        await inside(window, request, arrival);
        const leftAtMs = performance.now();
        request.destroy();
        tookMs[window].push((await loss) - leftAtMs);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    await leaving.nothingLeft();
    const all = Object.values(tookMs).flat().toSorted((a, b) => a - b);
    const at = (some: readonly number[], share: number): number => some[Math.ceil(some.length * share) - 1]!;
    for (const window of WINDOWS) {
      const sorted = tookMs[window].toSorted((a, b) => a - b);
      process.stdout.write(`${window}: an upstream was left after ${at(sorted, 0.5).toFixed(1)} ms (p50), ${at(sorted, 0.99).toFixed(1)} ms (p99), ${at(sorted, 1).toFixed(1)} ms at most\n`);
      expect(at(sorted, 0.99)).toBeLessThanOrEqual(P99_MS);
    }
    expect(all).toHaveLength(CLIENTS);
    expect(leaving.fake.requests).toHaveLength(CLIENTS);
    expect(leaving.stage.faults).toEqual([]);
    expect(leaving.stage.events.filter((event) => event.type === 'ended' && event.outcome === 'client_left')).toHaveLength(CLIENTS);
  });
});
