/**
 * An exclusive lock on the data folder. PGlite in two processes on one folder loses acknowledged rows without an error, so the
 * second process MUST be refused before it opens anything.
 *
 * The lock is the operating system's own record lock on a file, taken by SQLite, which is part of Node: the kernel releases it
 * when the process ends, however it ends, so `kill -9` leaves nothing behind, and there is no moment in which two processes both
 * find a stale lock and take it. It holds across containers that share the folder on one machine.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import type { DatabaseSync } from 'node:sqlite';

const LOCK_FILE = 'keyguard.lock';
const OWNER_FILE = 'keyguard.pid';
const SQLITE_BUSY = 5;

export interface FolderLock {
  release(): void;
}

/** Somebody else has the folder. The message says who, and what to do. */
export class FolderInUseError extends Error {
  override readonly name = 'FolderInUseError';
}

// What is not referenced is collected, and a database that is collected is closed, and its lock gone.
const held = new Set<DatabaseSync>();

/**
 * Makes `folder` (0700) where it is missing and takes its lock, or throws at once; before anything else is opened.
 * @throws FolderInUseError
 */
export async function claimFolder(folder: string): Promise<FolderLock> {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const { DatabaseSync } = await quietly(() => import('node:sqlite'));
  const database = new DatabaseSync(join(folder, LOCK_FILE), { timeout: 0 });
  try {
    // Nothing is ever written, so there is nothing to journal.
    database.exec('PRAGMA journal_mode = MEMORY');
    database.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    database.close();
    if ((error as { errcode?: number }).errcode !== SQLITE_BUSY) throw error;
    throw new FolderInUseError(
      `The data folder ${folder} is in use by another KeyGuard${ownerOf(folder)}. ` +
        'Stop that one, or give this one a folder of its own with KEYGUARD_DATA_DIR (and a PORT), ' +
        'or set DATABASE_URL: any number of processes may share a PostgreSQL.',
    );
  }
  held.add(database);
  writeFileSync(join(folder, OWNER_FILE), `${process.pid} ${hostname()}\n`, { mode: 0o600 });
  return {
    release() {
      if (held.delete(database)) database.close();
    },
  };
}

/** For the message only: whatever stands in the file, the lock alone decides. */
function ownerOf(folder: string): string {
  try {
    const [, pid, host] = /^([0-9]{1,10}) ([\w.-]{1,64})$/m.exec(readFileSync(join(folder, OWNER_FILE), 'utf8')) ?? [];
    return pid === undefined ? '' : ` (process ${pid} on ${host})`;
  } catch {
    return '';
  }
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
