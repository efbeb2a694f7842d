/**
 * Choices that look random and can be made again: each input of each parser has a generator of its own, so one input is
 * repeated by its number alone, however the work was split.
 */
import type { Bytes } from '@keyguard/core/seams';

/** A source of choices. Not for secrets. */
export interface Generator {
  /** An integer from 0 to `limit` - 1. `limit` is from 1 to 2³². */
  below(limit: number): number;
  /** True once in `n` calls, in the mean. */
  oneIn(n: number): boolean;
  pick<T>(list: readonly T[]): T;
  bytes(lengthBytes: number): Bytes;
}

/** FNV-1a: what tells the parsers' generators apart. */
function hashOf(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i += 1) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** The generator (sfc32) of the input `index` of the parser `name`, under `seed`: integers from 0 to 2³² - 1. */
export function generator(seed: number, name: string, index: number): Generator {
  let [a, b, c, counter] = [seed | 0, hashOf(name) | 0, index | 0, 1];
  const next = (): number => {
    const sum = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + sum;
    return sum >>> 0;
  };
  // Until a difference of one bit has reached all of the state.
  for (let i = 0; i < 15; i += 1) next();
  const below = (limit: number): number => Math.floor((next() / 2 ** 32) * limit);
  return {
    below,
    oneIn: (n) => below(n) === 0,
    pick: (list) => list[below(list.length)]!,
    bytes(lengthBytes) {
      const bytes = new Uint8Array(lengthBytes);
      for (let i = 0; i < lengthBytes; i += 4) {
        const word = next();
        for (let j = 0; j < 4; j += 1) bytes[i + j] = word >>> (8 * j);
      }
      return bytes;
    },
  };
}
