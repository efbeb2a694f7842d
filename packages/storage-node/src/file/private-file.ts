/**
 * Files that only their owner may read, each written once and whole: never over another's, and put in the place of another in
 * one step where that is asked for. Racing processes end up with one file; a process that is killed leaves either all of it or
 * nothing, and at most a temporary file, which is swept later.
 *
 * On Windows, access is a matter of the folder's ACL, which is not looked at here.
 */
import { randomUUID } from 'node:crypto';
import type { Stats } from 'node:fs';
import { link, mkdir, open, readdir, rename, stat, unlink } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { UsageError } from '@keyguard/core/errors';
import type { Bytes } from '@keyguard/core/seams';

const OTHERS = 0o077;
const OTHERS_WRITE = 0o022;
const STICKY = 0o1000;
/** Longer than any writer takes between making its temporary file and linking it into place. */
const ABANDONED_AFTER_MS = 60_000;
const TEMPORARY = /^\.(.+)\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.tmp$/;

const isWindows = process.platform === 'win32';

/** The one refusal of this package's key files. `message` says what to do; it never holds a secret. */
export function unusable(message: string, cause?: unknown): UsageError {
  return new UsageError('key_store_unusable', message, cause === undefined ? {} : { cause });
}

function errnoOf(error: unknown): string | undefined {
  const code: unknown = error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
  return typeof code === 'string' ? code : undefined;
}

/**
 * Runs `work` on `path`, and turns what the file system answers into a refusal.
 * @throws UsageError `key_store_unusable`
 */
export async function onFiles<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).syscall === undefined) throw cause;
    throw unusable(`Keys cannot be kept at ${path}: the system answers ${errnoOf(cause) ?? 'an error'}.`, cause);
  }
}

function assertOwned(path: string, stats: Stats): void {
  const user = process.geteuid?.();
  // What root owns, root can read and change whatever it says; anyone else's is not ours to trust.
  if (user === undefined || stats.uid === user || stats.uid === 0) return;
  throw unusable(`${path} belongs to another user (uid ${stats.uid}), who can read it: run this as that user, or chown ${user} "${path}".`);
}

/**
 * Makes the folder for this user alone, where it is missing.
 * @throws UsageError `key_store_unusable` where others can look into it
 */
export async function ensurePrivateDirectory(directory: string): Promise<void> {
  const firstMade = await mkdir(directory, { recursive: true, mode: 0o700 });
  if (firstMade !== undefined) {
    const above = dirname(resolve(firstMade));
    for (let at = resolve(directory); at !== above; at = dirname(at)) await syncDirectory(dirname(at));
  }
  await assertPrivateDirectory(directory);
}

/**
 * @returns whether there is such a folder
 * @throws UsageError `key_store_unusable` where others can look into it
 */
export async function assertPrivateDirectory(directory: string): Promise<boolean> {
  const stats = await statOrNull(directory);
  if (stats === null) return false;
  if (!stats.isDirectory()) throw unusable(`${directory} is not a folder: name a folder of its own for the keys.`);
  if (isWindows) return true;
  assertOwned(directory, stats);
  if ((stats.mode & OTHERS) !== 0) throw unusable(`Others can look into ${directory}: run chmod 700 "${directory}".`);
  return true;
}

/**
 * Makes the folder of `path` for this user alone, where it is missing. One that is there already may be readable by others.
 * @throws UsageError `key_store_unusable` where others could put another file in place of this one
 */
export async function ensureParentDirectory(path: string): Promise<void> {
  const directory = dirname(resolve(path));
  if ((await statOrNull(directory)) === null) await ensurePrivateDirectory(directory);
  if (isWindows) return;
  const stats = await stat(directory);
  assertOwned(directory, stats);
  if ((stats.mode & OTHERS_WRITE) !== 0 && (stats.mode & STICKY) === 0) {
    throw unusable(`Others can replace files in ${directory}: run chmod go-w "${directory}".`);
  }
}

async function statOrNull(path: string): Promise<Stats | null> {
  try {
    return await stat(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return null;
    throw error;
  }
}

/**
 * The bytes of the file, or `null` where there is none. The caller wipes them if they are secret.
 * @throws UsageError `key_store_unusable` where others can read it, and for more than `maxBytes`
 */
export async function readPrivateFile(path: string, maxBytes: number): Promise<Bytes | null> {
  let handle;
  try {
    handle = await open(path, 'r');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return null;
    throw error;
  }
  try {
    const stats = await handle.stat();
    if (!stats.isFile()) throw unusable(`${path} is not a file.`);
    if (!isWindows) {
      assertOwned(path, stats);
      if ((stats.mode & OTHERS) !== 0) {
        throw unusable(`Others can read ${path}: run chmod 600 "${path}", and consider what it protects as known to them.`);
      }
    }
    if (stats.size > maxBytes) throw unusable(`${path} is too long to be a key file: restore it from a backup.`);
    const bytes = new Uint8Array(stats.size);
    let filled = 0;
    while (filled < bytes.length) {
      const { bytesRead } = await handle.read(bytes, filled);
      if (bytesRead === 0) throw unusable(`${path} changed while it was read.`);
      filled += bytesRead;
    }
    return bytes;
  } finally {
    await handle.close();
  }
}

/**
 * Writes `bytes` to a new file, all of them or none, and never over one that is there. The winner's file is durable when this
 * resolves, whoever won.
 * @returns whether this call made the file
 */
export async function createPrivateFile(path: string, bytes: Bytes): Promise<boolean> {
  const directory = dirname(path);
  for (;;) {
    const temporary = join(directory, `.${basename(path)}.${randomUUID()}.tmp`);
    try {
      const handle = await open(temporary, 'wx', 0o600);
      try {
        await handle.writeFile(bytes);
        await handle.sync();
      } finally {
        await handle.close();
      }
      await link(temporary, path);
      return true;
    } catch (error) {
      const code = errnoOf(error);
      if (code === 'EEXIST') return false;
      if (code === 'EPERM' || code === 'ENOTSUP' || code === 'EOPNOTSUPP') {
        const reason = 'has no hard links, without which racing processes cannot agree';
        throw unusable(`The file system of ${directory} ${reason}: choose another folder.`, error);
      }
      // Someone swept our temporary file; but a folder that is gone is an error like any other.
      if (code !== 'ENOENT' || (await statOrNull(directory)) === null) throw error;
    } finally {
      await unlinkIfThere(temporary);
      await syncDirectory(directory);
    }
  }
}

/** Removes a file. Durable when it resolves. @returns whether this call removed it: of racing ones, one does */
export async function removeFile(path: string): Promise<boolean> {
  const removed = await unlinkIfThere(path);
  await syncDirectory(dirname(path));
  return removed;
}

/**
 * Puts the file `from` in the place of `to`, of the same folder, in one step: at every moment `to` is the one or the other.
 * Durable when it resolves.
 * @returns whether this call did; `false`, and nothing is changed, where there is no `from`
 */
export async function moveFileOver(from: string, to: string): Promise<boolean> {
  try {
    await rename(from, to);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
    return false;
  }
  await syncDirectory(dirname(to));
  return true;
}

async function unlinkIfThere(path: string): Promise<boolean> {
  try {
    await unlink(path);
    return true;
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
    return false;
  }
}

/** Removes the temporary files that killed writers of `isOurs` files left behind; of the young ones, a writer may be alive. */
export async function sweepTemporaries(
  directory: string,
  isOurs: (name: string) => boolean,
  abandonedAfterMs: number = ABANDONED_AFTER_MS,
): Promise<void> {
  if ((await statOrNull(directory)) === null) return;
  for (const entry of await readdir(directory)) {
    const name = TEMPORARY.exec(entry)?.[1];
    if (name === undefined || !isOurs(name)) continue;
    const path = join(directory, entry);
    const stats = await statOrNull(path);
    if (stats !== null && Date.now() - stats.mtimeMs >= abandonedAfterMs) await unlinkIfThere(path);
  }
}

/** Makes durable which files the folder holds. */
export async function syncDirectory(directory: string): Promise<void> {
  // Windows cannot open a folder, and journals its entries by itself.
  if (isWindows) return;
  const handle = await open(directory, 'r').catch((error: unknown) => {
    if (errnoOf(error) === 'ENOENT') return null;
    throw error;
  });
  try {
    await handle?.sync();
  } finally {
    await handle?.close();
  }
}
