/**
 * The form of a backup: gzip over lines of JSON. The first is the manifest, then for each table its columns and its rows, every value
 * as PostgreSQL writes it in text; the last line has the count and the SHA-256 of all lines before it. What is sealed in the database
 * is sealed here; everything else (names, addresses, times, the audit log, hashes of passwords) is readable: keep it like the database.
 */
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { link, open, rm } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createGzip } from 'node:zlib';

export const FORMAT = 'keyguard-backup-v1';

/** The backup, or where it is to go, is not as it must be. The message says what to do, and that nothing was changed. */
export class BackupError extends Error {
  override readonly name = 'BackupError';
}

export interface Manifest {
  readonly format: typeof FORMAT;
  readonly made_at: string;
  /** Which migrations the database had, with their checksums. */
  readonly migrations: readonly (readonly [component: string, name: string, checksum: string])[];
  /** Under which root key its keys are. */
  readonly root_id: string;
  /** The chains of the audit log, each with its last record. */
  readonly audit: readonly { readonly origin: string; readonly seq: number; readonly mac: string }[];
  /** The newest signed checkpoint of each chain. */
  readonly checkpoints: readonly { readonly origin: string; readonly note: string }[];
  readonly warning: string;
}

export type Line = { readonly manifest: Manifest } | { readonly table: string; readonly columns: readonly string[] } | readonly (string | null)[];

/** Writes `lines` to a new file (mode 0600), which is there whole or not at all. @throws BackupError where there is one already */
export async function writeBackup(path: string, lines: AsyncIterable<Line>): Promise<void> {
  const unfinished = `${path}.unfinished`;
  await rm(unfinished, { force: true });
  const digest = createHash('sha256');
  let count = 0;
  async function* texts(): AsyncGenerator<string> {
    for await (const line of lines) {
      const text = `${JSON.stringify(line)}\n`;
      digest.update(text);
      count += 1;
      yield text;
    }
    yield `${JSON.stringify({ end: { lines: count, sha256: digest.digest('hex') } })}\n`;
  }
  try {
    await pipeline(Readable.from(texts()), createGzip(), createWriteStream(unfinished, { mode: 0o600, flags: 'wx' }));
    const file = await open(unfinished, 'r');
    await file.sync().finally(() => file.close());
    // Unlike a renaming, this replaces nothing.
    await link(unfinished, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') throw new BackupError(`${path} is there already: name another file.`);
    throw error;
  } finally {
    await rm(unfinished, { force: true });
  }
}

/** The lines of a backup but for the last, which is checked: whoever reads MUST NOT keep anything before this has come to its end. */
export async function* readBackup(path: string): AsyncGenerator<Line> {
  const digest = createHash('sha256');
  let count = 0;
  let isWhole = false;
  const unzipped = createReadStream(path).pipe(createGunzip());
  try {
    for await (const text of createInterface({ input: unzipped, crlfDelay: Number.POSITIVE_INFINITY })) {
      const line = JSON.parse(text) as Line | { readonly end: { readonly lines: number; readonly sha256: string } };
      if (isWhole) throw new BackupError(`${path} goes on behind its end.`);
      if ('end' in line) {
        if (line.end.lines !== count || line.end.sha256 !== digest.digest('hex')) throw new BackupError(`${path} is damaged: its checksum is another one.`);
        isWhole = true;
      } else {
        digest.update(`${text}\n`);
        count += 1;
        yield line;
      }
    }
  } catch (error) {
    if (error instanceof BackupError) throw error;
    throw new BackupError(`${path} cannot be read: it is damaged, or no backup.`, { cause: error });
  }
  if (!isWhole) throw new BackupError(`${path} is cut off.`);
}

/** The manifest of a backup, once all of it was read and found whole. */
export async function checkBackup(path: string): Promise<Manifest> {
  let manifest: Manifest | null = null;
  for await (const line of readBackup(path)) if ('manifest' in line) manifest ??= line.manifest;
  if (manifest === null || manifest.format !== FORMAT) throw new BackupError(`${path} is no backup of this form.`);
  return manifest;
}
