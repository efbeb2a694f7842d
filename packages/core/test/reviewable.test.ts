/** Core can be read in an afternoon: docs/reading-core.md says in which order, and this says that it stays so. */
import { readdirSync, readFileSync } from 'node:fs';
import { expect, it } from 'vitest';

const source = new URL('../src/', import.meta.url);
const guide = readFileSync(new URL('../../../docs/reading-core.md', import.meta.url), 'utf8');
const files = readdirSync(source).map((name) => [name, readFileSync(new URL(name, source), 'utf8').split('\n').length - 1] as const);

it('no file has more than 300 lines, and all of them together have no more than 5,500', () => {
  expect(files.filter(([, lines]) => lines > 300)).toEqual([]);
  expect(files.reduce((sum, [, lines]) => sum + lines, 0)).toBeLessThanOrEqual(5500);
});

it('the guide names every file, and no file that is gone', () => {
  const named = new Set([...guide.matchAll(/`([a-z0-9-]+\.ts)`/g)].map(([, name]) => name));
  expect(files.map(([name]) => name).filter((name) => !named.has(name))).toEqual([]);
  expect([...named].filter((name) => !files.some(([file]) => file === name))).toEqual([]);
});
