import { describe, expect, it } from 'vitest';
import { turns } from '../../src/auth/turns.ts';

const FULL = new Error('full');
const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Work that ends when it is told to. */
function bench(inTurn: ReturnType<typeof turns>): { come: (holder?: string) => Promise<string>; readonly begun: (() => void)[] } {
  const begun: (() => void)[] = [];
  const come = (holder?: string): Promise<string> => inTurn(() => new Promise<string>((resolve) => begun.push(() => resolve('done'))), holder).catch((error: Error) => error.message);
  return { come, begun };
}

describe('turns', () => {
  it('come to as many at a time as there may be, in the order in which they came, and no more wait than may', async () => {
    const { come, begun } = bench(turns({ atATime: 2, maxWaiting: 3, refusal: () => FULL }));
    const all = Array.from({ length: 8 }, () => come());
    await tick();
    expect(begun).toHaveLength(2);
    expect(await Promise.all(all.slice(5))).toEqual(['full', 'full', 'full']);
    for (let ended = 0; ended < 5; ended += 1) {
      begun[ended]!();
      await tick();
      expect(begun).toHaveLength(Math.min(5, ended + 3));
    }
    expect(await Promise.all(all.slice(0, 5))).toEqual(Array.from({ length: 5 }, () => 'done'));
    // Nothing is left of it: two at once again.
    void come();
    void come();
    await tick();
    expect(begun).toHaveLength(7);
  });

  it('are handed over by work that fails', async () => {
    const inTurn = turns({ atATime: 1, maxWaiting: 1, refusal: () => FULL });
    const failing = inTurn(async () => {
      await tick();
      throw new Error('broken');
    });
    const next = inTurn(async () => 'done');
    await expect(failing).rejects.toThrow('broken');
    expect(await next).toBe('done');
  });

  it('are not all taken by one', async () => {
    const { come, begun } = bench(turns({ atATime: 1, maxWaiting: 10, maxPerHolder: 2, refusal: () => FULL }));
    const [first, second, third, other] = [come('one'), come('one'), come('one'), come('other')];
    expect(await third).toBe('full');
    for (let i = 0; i < 3; i += 1) {
      await tick();
      begun[i]!();
    }
    expect(await Promise.all([first, second, other])).toEqual(['done', 'done', 'done']);
    void come('one');
    await tick();
    expect(begun).toHaveLength(4);
  });
});
