/**
 * What takes long to make and is wanted by several processes at once, such as the workers of a test run in a fresh clone: one of them
 * makes it, the others wait for it, and later runs find it.
 */
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rename, rm, rmdir, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';

const LOOKS_EVERY_MS = 50;
// Whoever takes longer was killed while making it.
const GIVEN_UP_AFTER_MS = 60_000;

/** The folder `path`, after `make` has filled one that is then put in its place. */
export async function madeOnce(path: string, make: (draft: string) => Promise<void>): Promise<string> {
  const turn = `${path}.turn`;
  await mkdir(dirname(path), { recursive: true });
  for (;;) {
    if (existsSync(path)) return path;
    const isMine = await mkdir(turn).then(
      () => true,
      () => false,
    );
    if (!isMine) {
      const { mtimeMs } = await stat(turn).catch(() => ({ mtimeMs: Date.now() }));
      if (Date.now() - mtimeMs > GIVEN_UP_AFTER_MS) await rmdir(turn).catch(() => {});
      await pause(LOOKS_EVERY_MS);
      continue;
    }
    const draft = await mkdtemp(`${path}.draft-`);
    try {
      await make(draft);
      // Somebody who gave up on us may have been first.
      await rename(draft, path).catch(() => {});
    } finally {
      await rm(draft, { recursive: true, force: true });
      await rmdir(turn).catch(() => {});
    }
  }
}
