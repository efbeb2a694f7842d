/**
 * Which file of a folder holds the pending key of a name. Node has no lock that a killed process lets go, so there is none: each
 * step is one call of the file system that succeeds for exactly one caller, on a name that does not come back while it counts.
 *
 * Beside the key itself, `device-<hash>.key`, a name has, while its key has the id `K`,
 *
 * - `device-<hash>.K.P.pending`: a sealed key of the id `P` that may replace `K`;
 * - `device-<hash>.K.0.next`, then `.1.next`, …: the id that was chosen to replace `K`, and the one chosen after that was discarded.
 *
 * A choice is made by linking, so racing processes agree on one, and is never changed. The pending key is the chosen one whose
 * `.pending` file is there. It is promoted by renaming that file to the key, and discarded by removing it: one of the two
 * happens, once, and cannot happen to another key, because the file's name bears the id. Key ids do not come back either; so
 * what bears the id of a former key is of no use to anyone, and is removed after the next promotion. A process that has not
 * noticed a promotion may still choose for the former key; so what is found counts only where the key of the name is the same
 * after looking as it was before.
 */
import { createHash } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { utf8 } from '@keyguard/core/bytes';
import { isKeyId } from '@keyguard/core/canonical';
import type { Bytes } from '@keyguard/core/seams';
import { createPrivateFile, readPrivateFile, removeFile, unusable } from './private-file.ts';

const KEY_FILE = /^device-[0-9a-f]{64}\.key$/;
const PENDING_FILE = /^device-[0-9a-f]{64}\.([A-Za-z0-9_-]{43})\.(?:[A-Za-z0-9_-]{43}\.pending|[0-9]+\.next)$/;
const CHOICE_BYTES = 43;

/** Whether a file of this name holds the key of some name, as opposed to a pending one. */
export const isKeyFile = (fileName: string): boolean => KEY_FILE.test(fileName);

/** Whether a file of this name belongs to a key store. */
export const isStoreFile = (fileName: string): boolean => isKeyFile(fileName) || PENDING_FILE.test(fileName);

/** Where the files of one name lie: the hash of it, because file systems fold case, normalise Unicode and know names of their own. */
export interface NamedFiles {
  readonly directory: string;
  /** What the names of all its files begin with. */
  readonly prefix: string;
  /** The file of the key itself. */
  readonly keyPath: string;
}

export function filesOf(directory: string, name: string): NamedFiles {
  const prefix = `device-${createHash('sha256').update(name).digest('hex')}.`;
  return { directory, prefix, keyPath: join(directory, `${prefix}key`) };
}

export interface PendingFile {
  readonly keyId: string;
  readonly path: string;
}

/** Where the pending key with this id lies while the key of the name is `currentKeyId`. */
export function pendingFile({ directory, prefix }: NamedFiles, currentKeyId: string, keyId: string): PendingFile {
  return { keyId, path: join(directory, `${prefix}${currentKeyId}.${keyId}.pending`) };
}

const choicePath = ({ directory, prefix }: NamedFiles, currentKeyId: string, index: number): string =>
  join(directory, `${prefix}${currentKeyId}.${index}.next`);

/**
 * The pending key, as the choices say, and the file's bytes; or `null`, with the index of the choice that is still to be made.
 * It is pending only if the key of the name still is `currentKeyId` once this has resolved: look again.
 * @throws UsageError `key_store_unusable`
 */
export async function findPending(
  files: NamedFiles,
  currentKeyId: string,
  maxBytes: number,
): Promise<{ readonly found: (PendingFile & { readonly bytes: Bytes }) | null; readonly nextIndex: number }> {
  for (let index = 0; ; index += 1) {
    const path = choicePath(files, currentKeyId, index);
    const choice = await readPrivateFile(path, CHOICE_BYTES);
    if (choice === null) return { found: null, nextIndex: index };
    const keyId = Buffer.from(choice).toString('latin1');
    // It becomes part of a path.
    if (!isKeyId(keyId)) throw unusable(`${path} is damaged or was changed: restore it from a backup, or delete it if no rotation is under way.`);
    const pending = pendingFile(files, currentKeyId, keyId);
    const bytes = await readPrivateFile(pending.path, maxBytes);
    if (bytes !== null) return { found: { ...pending, bytes }, nextIndex: index + 1 };
  }
}

/** Makes that choice, unless another made it. Whoever made it, look again: only what is found then counts. */
export async function choosePending(files: NamedFiles, currentKeyId: string, index: number, keyId: string): Promise<void> {
  await createPrivateFile(choicePath(files, currentKeyId, index), utf8(keyId));
}

/** The files of this name but for its key, each with the id of the key that it is about. */
export async function listPendingFiles({ directory, prefix }: NamedFiles): Promise<{ readonly path: string; readonly currentKeyId: string }[]> {
  const files: { path: string; currentKeyId: string }[] = [];
  for (const fileName of await fileNames(directory)) {
    const currentKeyId = fileName.startsWith(prefix) ? PENDING_FILE.exec(fileName)?.[1] : undefined;
    if (currentKeyId !== undefined) files.push({ path: join(directory, fileName), currentKeyId });
  }
  return files;
}

/** Removes the key of this name and all that is pending. */
export async function removeFilesOf(files: NamedFiles): Promise<void> {
  for (;;) {
    // Before the key, so that no pending one can take its place once it is gone; and again, for one that just had.
    const pending = await listPendingFiles(files);
    for (const { path } of pending) await removeFile(path);
    if (!(await removeFile(files.keyPath)) && pending.length === 0) return;
  }
}

async function fileNames(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}
