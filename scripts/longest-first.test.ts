/** A name in the list of the longest test files that is none any more would silently order nothing. */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { LONGEST } from './longest-first.ts';

it('names only test files that there are, each once', () => {
  expect(LONGEST.filter((name) => !existsSync(fileURLToPath(new URL(`../${name}`, import.meta.url))))).toEqual([]);
  expect(new Set(LONGEST).size).toBe(LONGEST.length);
});
