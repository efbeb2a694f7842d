/** One makes what many want; who fails or is killed at it is followed by another. */
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { madeOnce } from './made-once.ts';

let folder: string;
let path: string;
let times: number;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'keyguard-made-'));
  path = join(folder, 'deep', 'image');
  times = 0;
});
afterEach(() => rm(folder, { recursive: true }));

async function make(draft: string): Promise<void> {
  times += 1;
  await pause(200);
  // Nobody sees it half made.
  expect(existsSync(path)).toBe(false);
  await writeFile(join(draft, 'content'), 'whole');
}

it('is made once, however many want it at the same time, and leaves nothing else behind', async () => {
  expect(await Promise.all(Array.from({ length: 10 }, () => madeOnce(path, make)))).toEqual(Array.from({ length: 10 }, () => path));
  expect(await madeOnce(path, make)).toBe(path);
  expect([times, await readFile(join(path, 'content'), 'utf8'), await readdir(join(folder, 'deep'))]).toEqual([1, 'whole', ['image']]);
});

it('is made by the next one where somebody failed, or was killed', async () => {
  await expect(madeOnce(path, () => Promise.reject(new Error('no room')))).rejects.toThrow('no room');
  await mkdir(`${path}.turn`);
  const longAgo = new Date(Date.now() - 3_600_000);
  await utimes(`${path}.turn`, longAgo, longAgo);
  await madeOnce(path, make);
  expect([times, await readdir(join(folder, 'deep'))]).toEqual([1, ['image']]);
});
