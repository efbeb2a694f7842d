/**
 * Checkpoints outside of the database, in a folder that its writers cannot reach: one file to which a line is added for each, and
 * one with the public keys that they are signed by. Nothing here is ever changed or taken away, so the folder may be on a disk that
 * only lets files grow.
 *
 * A line that a crash cut off is no checkpoint and spoils none. What is read is untrusted: signatures are for the reader to verify.
 */
import { mkdir, open, readFile, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';

const NOTES = 'checkpoints.jsonl';
const KEYS = 'verifier-keys.txt';
const TAIL_BYTES = 64 * 1024;

export interface KeptCheckpoints {
  readonly folder: string;
  /** The note that was added last, or `null` where there is none. */
  newest(): Promise<string | null>;
  /** All notes, oldest first; as a stream, because there may be one for each minute of years. */
  all(): AsyncIterable<string>;
  /** Adds a note; on the disk when it resolves. One caller of this process at a time. */
  add(note: string): Promise<void>;
  /** The public keys of this folder, one for each log that was kept here. */
  verifierKeys(): Promise<readonly string[]>;
  addVerifierKey(key: string): Promise<void>;
}

/** The folder is made when the first line is written. */
export function keptCheckpoints(folder: string): KeptCheckpoints {
  const notes = join(folder, NOTES);
  const keys = join(folder, KEYS);

  async function addLine(path: string, line: string): Promise<void> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    // "a+" to look at the last byte: a line that was cut off must not run into this one.
    const file = await open(path, 'a+', 0o600);
    try {
      const { size } = await file.stat();
      const isOpen = size > 0 && (await bytesAt(file, size - 1, 1))[0] !== 0x0a;
      await file.appendFile(`${isOpen ? '\n' : ''}${line}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    await syncFolder(folder);
  }

  return {
    folder,
    async newest() {
      const file = await opened(notes);
      if (file === null) return null;
      try {
        const { size } = await file.stat();
        for (let length = Math.min(size, TAIL_BYTES); ; length = Math.min(size, length * 4)) {
          const lines = (await bytesAt(file, size - length, length)).toString('utf8').split('\n');
          // The first may have begun before what was read.
          if (length < size) lines.shift();
          const note = lines.reverse().map(noteOf).find((each) => each !== null);
          if (note !== undefined) return note;
          if (length === size) return null;
        }
      } finally {
        await file.close();
      }
    },
    async *all() {
      const file = await opened(notes);
      if (file === null) return;
      try {
        for await (const line of file.readLines({ autoClose: false })) {
          const note = noteOf(line);
          if (note !== null) yield note;
        }
      } finally {
        await file.close();
      }
    },
    add: (note) => addLine(notes, JSON.stringify({ note })),
    verifierKeys: () => readKeys(keys),
    async addVerifierKey(key) {
      if (!(await readKeys(keys)).includes(key)) await addLine(keys, key);
    },
  };
}

async function opened(path: string): Promise<FileHandle | null> {
  try {
    return await open(path, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

async function bytesAt(file: FileHandle, position: number, length: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, position);
  return buffer.subarray(0, bytesRead);
}

function noteOf(line: string): string | null {
  try {
    const { note } = JSON.parse(line) as { note?: unknown };
    return typeof note === 'string' ? note : null;
  } catch {
    return null;
  }
}

async function readKeys(path: string): Promise<readonly string[]> {
  try {
    return (await readFile(path, 'utf8')).split('\n').filter((line) => line !== '');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

/** The name of a new file is on the disk when its folder is. */
async function syncFolder(folder: string): Promise<void> {
  if (process.platform === 'win32') return;
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
