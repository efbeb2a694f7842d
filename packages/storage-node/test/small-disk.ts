/** A file system of a few megabytes, to be filled: what a full disk does can only be seen on one. Mounting it takes root. */
import { spawnSync } from 'node:child_process';
import { statfsSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface SmallDisk {
  readonly folder: string;
  /** Leaves so many bytes free, or none. */
  fill(freeBytes?: number): void;
  /** Gives back what `fill` took. */
  empty(): Promise<void>;
  unmount(): Promise<void>;
}

export async function mountSmallDisk(mebibytes: number): Promise<SmallDisk | null> {
  const folder = await mkdtemp(join(tmpdir(), 'keyguard-disk-'));
  const { status } = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${mebibytes}m,mode=0755`, 'tmpfs', folder]);
  if (status !== 0) {
    await rm(folder, { recursive: true });
    return null;
  }
  const ballast = join(folder, 'ballast');
  return {
    folder,
    fill(freeBytes = 0) {
      const { bavail, bsize } = statfsSync(folder);
      writeFileSync(ballast, Buffer.alloc(Math.max(0, bavail * bsize - freeBytes)), { flag: 'a' });
    },
    empty: () => rm(ballast, { force: true }),
    async unmount() {
      spawnSync('umount', ['-l', folder]);
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Whether this user may mount at all. */
export async function canMount(): Promise<boolean> {
  const disk = await mountSmallDisk(1);
  await disk?.unmount();
  return disk !== null;
}
