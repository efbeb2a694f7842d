/**
 * An exclusive lock on the data folder. PGlite in two processes on one folder loses acknowledged rows without an error, so the
 * second process MUST be refused before it opens anything.
 *
 * The lock is the operating system's own record lock on a file, taken by SQLite, which is part of Node: the kernel releases it
 * when the process ends, however it ends, so `kill -9` leaves nothing behind, and there is no moment in which two processes both
 * find a stale lock and take it. It holds across containers that share the folder on one machine.
 *
 * A file can be deleted, and its lock is then on nothing: so a second process also refuses while the one that is named beside the
 * lock still runs, and the first stops as soon as its file is not there any more.
 */
import { closeSync, lstatSync, mkdirSync, openSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import type { DatabaseSync } from 'node:sqlite';

const LOCK_FILE = 'keyguard.lock';
const OWNER_FILE = 'keyguard.pid';
const SQLITE_BUSY = 5;

const WATCH_MS = 1000;

export interface FolderLock {
  release(): void;
}

/** The folder is not ours alone, or is no folder. The message says what to do. */
export class FolderUnsafeError extends Error {
  override readonly name = 'FolderUnsafeError';
}

/** Somebody else has the folder. The message says who, and what to do. */
export class FolderInUseError extends Error {
  override readonly name = 'FolderInUseError';
}

// What is not referenced is collected, and a database that is collected is closed, and its lock gone.
const held = new Set<DatabaseSync>();

/**
 * Makes `folder` (0700) where it is missing and takes its lock, or throws at once; before anything else is opened. `onLost` is told,
 * within about a second, when the lock's file was deleted or replaced: the process MUST stop then.
 * @throws FolderInUseError, FolderUnsafeError
 */
export async function claimFolder(folder: string, onLost: () => void): Promise<FolderLock> {
  prepareFolder(folder);
  const path = join(folder, LOCK_FILE);
  const { DatabaseSync } = await quietly(() => import('node:sqlite'));
  const database = new DatabaseSync(path, { timeout: 0 });
  try {
    // Nothing is ever written, so there is nothing to journal.
    database.exec('PRAGMA journal_mode = MEMORY');
    database.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    database.close();
    if ((error as { errcode?: number }).errcode !== SQLITE_BUSY) throw error;
    throw inUse(folder, readOwner(folder));
  }
  const owner = readOwner(folder);
  if (owner !== null && isRunning(owner)) {
    database.close();
    throw inUse(folder, owner);
  }
  held.add(database);
  writeFileSync(join(folder, OWNER_FILE), `${process.pid} ${hostname()} ${startOf(process.pid) ?? '-'}\n`, { mode: 0o600 });
  const { dev, ino } = statSync(path);
  const watch = setInterval(() => {
    const present = statSync(path, { throwIfNoEntry: false });
    if (present?.ino === ino && present.dev === dev) return;
    clearInterval(watch);
    onLost();
  }, WATCH_MS);
  watch.unref();
  return {
    release() {
      clearInterval(watch);
      if (!held.delete(database)) return;
      // Whoever comes next must not take us for running.
      writeFileSync(join(folder, OWNER_FILE), '', { mode: 0o600 });
      database.close();
    },
  };
}

function prepareFolder(folder: string): void {
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (error) {
    const { code = 'unknown error' } = error as NodeJS.ErrnoException;
    throw new FolderUnsafeError(`The data folder ${folder} cannot be made (${code}): set KEYGUARD_DATA_DIR to a folder that this user may write.`);
  }
  const { uid, mode } = lstatSync(folder);
  if (process.getuid !== undefined && uid !== process.getuid()) {
    throw new FolderUnsafeError(`The data folder ${folder} belongs to another user: give it to this one with  chown, or set KEYGUARD_DATA_DIR.`);
  }
  if (process.platform !== 'win32' && (mode & 0o022) !== 0) {
    throw new FolderUnsafeError(`Others may write the data folder ${folder}, and so decide what is in it: run  chmod 700 ${folder}`);
  }
  try {
    // Made by us, so that nobody else may open it; SQLite then finds it.
    closeSync(openSync(join(folder, LOCK_FILE), 'a', 0o600));
  } catch (error) {
    const { code = 'unknown error' } = error as NodeJS.ErrnoException;
    throw new FolderUnsafeError(`The data folder ${folder} cannot be written (${code}).`);
  }
}

interface Owner {
  readonly pid: number;
  readonly host: string;
  /** When that process began, as its system counts; `-` where that is not known. */
  readonly start: string;
}

function readOwner(folder: string): Owner | null {
  try {
    const [, pid, host, start] = /^([0-9]{1,10}) ([\w.-]{1,64}) ([0-9]+|-)$/m.exec(readFileSync(join(folder, OWNER_FILE), 'utf8')) ?? [];
    return pid === undefined ? null : { pid: Number(pid), host: host!, start: start! };
  } catch {
    return null;
  }
}

/** Only what is certain counts: a process id is used again, its moment of birth is not. */
function isRunning({ pid, host, start }: Owner): boolean {
  return pid !== process.pid && host === hostname() && start !== '-' && startOf(pid) === start;
}

/** Linux only: field 22 of /proc/PID/stat, counted from behind the name, which may hold anything. */
function startOf(pid: number): string | null {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /s, '').split(' ')[19] ?? null;
  } catch {
    return null;
  }
}

function inUse(folder: string, owner: Owner | null): FolderInUseError {
  return new FolderInUseError(
    `The data folder ${folder} is in use by another KeyGuard${owner === null ? '' : ` (process ${owner.pid} on ${owner.host})`}. ` +
      'Stop that one, or give this one a folder of its own with KEYGUARD_DATA_DIR (and a PORT). To serve the same data with ' +
      'several processes, each with a folder of its own, let them share a PostgreSQL (DATABASE_URL) and the root key.',
  );
}

/** Without Node's remark that the module is young: only its locks are used here, and they are SQLite's. */
async function quietly<T>(load: () => Promise<T>): Promise<T> {
  const { emitWarning } = process;
  process.emitWarning = () => {};
  try {
    return await load();
  } finally {
    process.emitWarning = emitWarning;
  }
}
