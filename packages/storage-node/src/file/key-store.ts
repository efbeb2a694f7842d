/**
 * The {@link KeyStore} of a Node program: sealed files in a folder of its own. Which file is which is the matter of
 * `pending-file.ts`, and its bytes are that of `device-key-file.ts`.
 */
import { readdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { equalBytes } from '@keyguard/core/bytes';
import { UsageError } from '@keyguard/core/errors';
import type { Bytes, KeyStore, SigningKey } from '@keyguard/core/seams';
import { makeKeyFile, openKeyFile } from './device-key-file.ts';
import { derive, fileKeyProvider, readOrCreateSalt, type NamedKeyProvider } from './key-provider.ts';
import { choosePending, filesOf, findPending, isKeyFile, isStoreFile, listPendingFiles, pendingFile, removeFilesOf } from './pending-file.ts';
import {
  assertPrivateDirectory,
  createPrivateFile,
  ensurePrivateDirectory,
  moveFileOver,
  onFiles,
  readPrivateFile,
  removeFile,
  sweepTemporaries,
  syncDirectory,
  unusable,
} from './private-file.ts';

const MAX_FILE_BYTES = 16_384;
const MAX_NAME_LENGTH = 1024;
const LONE_SURROGATE = /[\uD800-\uDFFF]/u;

/** Where the keys are kept, and what seals them. */
export interface FileKeyStoreOptions {
  /** A folder of its own, made with mode 0700 where it is missing. */
  readonly directory: string;
  /** Seals the keys under a passphrase (secret), in place of a root key file. */
  readonly passphrase?: string;
  /** Seals the keys under the key in this file. Default `<directory>/root.key`, made at the first use. */
  readonly rootKeyFile?: string;
  readonly crypto?: Crypto;
}

/**
 * A {@link KeyStore} of sealed files, one per name, in which racing processes get the same key and a killed one leaves nothing
 * torn. Public key, key id and name are authenticated together with the private key, so a changed or swapped file is refused.
 * In this process the private key is a non-extractable `CryptoKey`; on the disk it is extractable for whoever reads both the
 * file and the root key, or knows the passphrase.
 *
 * Nothing is repaired by making a new key: with a wrong passphrase, a missing root key, or a file that is damaged or readable
 * by others, all verbs but `delete` throw `UsageError` `key_store_unusable` and say what to do.
 * @throws UsageError `invalid_option`
 */
export function fileKeyStore(options: FileKeyStoreOptions): KeyStore {
  const { passphrase, crypto = globalThis.crypto } = options;
  const directory = resolve(options.directory);
  const rootKeyFile = options.rootKeyFile === undefined ? join(directory, 'root.key') : resolve(options.rootKeyFile);
  // An environment variable that is not set must not turn a passphrase into a key file.
  if (Object.hasOwn(options, 'passphrase') && (typeof passphrase !== 'string' || passphrase === '')) {
    throw new UsageError('invalid_option', 'passphrase must be text, not empty; leave it out to use a root key file.');
  }
  if (passphrase !== undefined && options.rootKeyFile !== undefined) {
    throw new UsageError('invalid_option', 'Give a passphrase or a rootKeyFile, not both.');
  }
  // What was opened before, by name and whether it was pending: it need not be opened again as long as the bytes are the same.
  const known = new Map<string, { readonly bytes: Bytes; readonly key: SigningKey }>();
  let derived: { readonly salt: Bytes; readonly root: NamedKeyProvider } | undefined;
  let opening: Promise<NamedKeyProvider> | undefined;
  let swept = false;

  async function openRootOnce(): Promise<NamedKeyProvider> {
    // The root is made before the first key; so where there is a key, a missing root is a loss and not a beginning.
    const create = !(await readdir(directory)).some(isKeyFile);
    if (passphrase === undefined) return fileKeyProvider({ path: rootKeyFile, create, crypto });
    const path = join(directory, 'passphrase.json');
    const salt = await readOrCreateSalt({ passphrase, path, create, crypto });
    // Derived anew only when the file changed: nothing may be sealed under a salt that is no longer on the disk.
    if (derived === undefined || !equalBytes(derived.salt, salt)) {
      derived = { salt, root: await derive(passphrase, path, salt, crypto) };
    }
    return derived.root;
  }

  // One at a time, since a hundred racing callers must not derive a hundred times.
  function openRoot(): Promise<NamedKeyProvider> {
    opening ??= openRootOnce().finally(() => {
      opening = undefined;
    });
    return opening;
  }

  async function openOnce(as: 'key' | 'pending', name: string, path: string, bytes: Bytes): Promise<SigningKey> {
    const cached = known.get(as + name);
    if (cached !== undefined && equalBytes(cached.bytes, bytes)) return cached.key;
    // Whoever made it may be killed before it is durable; the key must not be used before it is.
    await syncDirectory(directory);
    const key = await openKeyFile(path, name, bytes, await openRoot(), crypto);
    known.set(as + name, { bytes, key });
    return key;
  }

  async function read(name: string): Promise<SigningKey | null> {
    const { keyPath } = filesOf(directory, name);
    const bytes = await readPrivateFile(keyPath, MAX_FILE_BYTES);
    if (bytes !== null) return openOnce('key', name, keyPath, bytes);
    known.delete(`key${name}`);
    return null;
  }

  /** The pending key of that name; or which choice is to be made to have one; or `null` for a name without a key. */
  async function readPending(name: string): Promise<{ path: string; key: SigningKey } | { currentKeyId: string; nextIndex: number } | null> {
    for (;;) {
      const current = await read(name);
      if (current === null) return null;
      const { found, nextIndex } = await findPending(filesOf(directory, name), current.keyId, MAX_FILE_BYTES);
      if (found === null) {
        known.delete(`pending${name}`);
        return { currentKeyId: current.keyId, nextIndex };
      }
      // Replaced meanwhile: then what was found may have been chosen too late, by another who had not noticed either.
      if ((await read(name))?.keyId !== current.keyId) continue;
      const key = await openOnce('pending', name, found.path, found.bytes);
      if (key.keyId !== found.keyId) throw unusable(`${found.path} holds another key than it says: restore the right file from a backup, or delete it.`);
      return { path: found.path, key };
    }
  }

  async function sweepOnce(): Promise<void> {
    if (swept) return;
    await sweepTemporaries(directory, isStoreFile);
    swept = true;
  }

  /** Runs `work` where there is a folder; what it answers where there is none is `otherwise`. */
  function inDirectory<T>(name: string, otherwise: T, work: () => Promise<T>): Promise<T> {
    checkName(name);
    return onFiles(directory, async () => ((await assertPrivateDirectory(directory)) ? work() : otherwise));
  }

  /** The pending key of that name, if it has this id. */
  async function findById(name: string, pendingKeyId: string): Promise<{ path: string; key: SigningKey } | null> {
    const pending = await readPending(name);
    return pending !== null && 'key' in pending && pending.key.keyId === pendingKeyId ? pending : null;
  }

  return {
    async getOrCreate(name: string): Promise<SigningKey> {
      checkName(name);
      return onFiles(directory, async () => {
        await ensurePrivateDirectory(directory);
        await sweepOnce();
        for (;;) {
          const key = await read(name);
          if (key !== null) return key;
          const made = await makeKeyFile(name, await openRoot(), crypto);
          // Whether ours or another's is there now, the answer is what is on the disk.
          await createPrivateFile(filesOf(directory, name).keyPath, made.bytes);
        }
      });
    },
    async get(name: string): Promise<SigningKey | null> {
      return inDirectory(name, null, () => read(name));
    },
    async getPending(name: string): Promise<SigningKey | null> {
      return inDirectory(name, null, async () => {
        const pending = await readPending(name);
        return pending !== null && 'key' in pending ? pending.key : null;
      });
    },
    async getOrCreatePending(name: string): Promise<SigningKey> {
      const key = await inDirectory(name, null, async () => {
        const files = filesOf(directory, name);
        await sweepOnce();
        const made: string[] = [];
        for (;;) {
          const pending = await readPending(name);
          if (pending === null || 'key' in pending) {
            // Not chosen, or chosen to replace a key that is no longer there. After an error they stay: another may have been
            // given what was chosen, and the server may know it.
            for (const path of made) if (path !== pending?.path) await removeFile(path);
            return pending === null ? null : pending.key;
          }
          const { currentKeyId, nextIndex } = pending;
          const { keyId, bytes } = await makeKeyFile(name, await openRoot(), crypto);
          const { path } = pendingFile(files, currentKeyId, keyId);
          made.push(path);
          await createPrivateFile(path, bytes);
          await choosePending(files, currentKeyId, nextIndex, keyId);
        }
      });
      if (key === null) throw new UsageError('not_enrolled', 'There is no key of that name which another could replace.');
      return key;
    },
    async promote(name: string, pendingKeyId: string): Promise<boolean> {
      return inDirectory(name, false, async () => {
        const files = filesOf(directory, name);
        // Opened first: a damaged file must not take the place of a key that works.
        const pending = await findById(name, pendingKeyId);
        if (pending === null || !(await moveFileOver(pending.path, files.keyPath))) return false;
        // Listed before it is read which key is there now: so what is about another one is about a former one.
        const listed = await listPendingFiles(files);
        const current = await read(name);
        for (const { path, currentKeyId } of listed) if (currentKeyId !== current?.keyId) await removeFile(path);
        return true;
      });
    },
    async discard(name: string, pendingKeyId: string): Promise<boolean> {
      return inDirectory(name, false, async () => {
        const pending = await findById(name, pendingKeyId);
        if (pending === null) return false;
        known.delete(`pending${name}`);
        return removeFile(pending.path);
      });
    },
    async delete(name: string): Promise<void> {
      checkName(name);
      const files = filesOf(directory, name);
      await onFiles(directory, async () => {
        known.delete(`key${name}`);
        known.delete(`pending${name}`);
        await removeFilesOf(files);
        // A writer killed after linking leaves a second name for the same sealed key.
        await sweepTemporaries(directory, (other) => other.startsWith(files.prefix), 0);
      });
    },
  };
}

function checkName(name: string): void {
  if (typeof name === 'string' && name !== '' && name.length <= MAX_NAME_LENGTH && !LONE_SURROGATE.test(name)) return;
  throw new UsageError('invalid_option', `The name of a key is well-formed text of 1 to ${MAX_NAME_LENGTH} characters.`);
}
