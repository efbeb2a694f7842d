/**
 * Key providers on a file: a root key of 32 bytes, or the salt of a passphrase. Each is made once, whoever races for it, and
 * never replaced.
 *
 * @see docs/spec/vault.md
 */
import { createHash } from 'node:crypto';
import { basename, dirname, resolve } from 'node:path';
import { fromBase64, toBase64, toBase64Url } from '@keyguard/core/bytes';
import { hasCode } from '@keyguard/core/errors';
import type { Bytes, KeyProvider } from '@keyguard/core/seams';
import { aesKeyProvider, passphraseKey } from '@keyguard/core/vault';
import { readJson, writeJson } from './json.ts';
import { createPrivateFile, ensureParentDirectory, onFiles, readPrivateFile, sweepTemporaries, syncDirectory, unusable } from './private-file.ts';

const ROOT_KEY_BYTES = 32;
const ROOT_KEY_LABEL = 'kg-root-key-id-v1\0';
const KEK_ID_BYTES = 16;
const MAX_FILE_BYTES = 16_384;
const PASSPHRASE_FORMAT = 'keyguard-passphrase-v1';

/** A {@link KeyProvider} that says under which name it wraps, so that a wrong one is told from a damaged value. */
export interface NamedKeyProvider extends KeyProvider {
  readonly kekId: string;
}

/** Where the key is, and its name. */
export interface FileKeyProviderOptions {
  /** The file with the 32 bytes of the key, readable by this user only. */
  readonly path: string;
  /** `false` refuses a missing file, as is right where something was sealed under it before. Default `true`: makes it. */
  readonly create?: boolean;
  readonly crypto?: Crypto;
}

/**
 * A {@link KeyProvider} on a random 32-byte key in a file (mode 0600), made at the first use. Racing processes get the same
 * key, and a torn file is never seen. Its `kekId` is derived from the key, so another key file never passes for this one.
 *
 * Keep a copy of the file apart from what is sealed under it: without it, nothing opens again.
 * @throws UsageError `key_store_unusable` for a file that others can read or replace, that is damaged, or that is missing
 *   where `create` is `false`
 */
export async function fileKeyProvider(options: FileKeyProviderOptions): Promise<NamedKeyProvider> {
  const { path, create = true, crypto = globalThis.crypto } = options;
  return onFiles(path, async () => {
    const key = await readOrCreate(path, ROOT_KEY_BYTES, create, async () => crypto.getRandomValues(new Uint8Array(ROOT_KEY_BYTES)));
    try {
      if (key.length !== ROOT_KEY_BYTES) throw unusable(`${path} does not hold a root key of 32 bytes: restore it from a backup.`);
      const hash = createHash('sha256').update(ROOT_KEY_LABEL).update(key).digest();
      const kekId = `file-${toBase64Url(hash.subarray(0, KEK_ID_BYTES))}`;
      return { kekId, ...(await aesKeyProvider({ kekId, key, crypto })) };
    } finally {
      key.fill(0);
    }
  });
}

/** The passphrase, and where what it wraps under is kept. */
export interface PassphraseKeyProviderOptions {
  /** Secret; at least as hard to guess as what it protects deserves. */
  readonly passphrase: string;
  /** The file with salt and parameters. Not secret, but without it the passphrase opens nothing. */
  readonly path: string;
  /** `false` refuses a missing file, as is right where something was sealed under it before. Default `true`: makes it. */
  readonly create?: boolean;
  readonly crypto?: Crypto;
}

/**
 * A {@link KeyProvider} on a passphrase, whose salt is kept in a file (mode 0600), made at the first use; racing processes get
 * the same salt. Derives once, which takes a quarter of a second on purpose: keep the provider.
 * @throws UsageError `key_store_unusable` for a wrong passphrase, and for a file that others can read or replace, that is
 *   damaged, or that is missing where `create` is `false`
 * @throws UsageError `invalid_option` for what cannot be a passphrase
 */
export async function passphraseKeyProvider(options: PassphraseKeyProviderOptions): Promise<NamedKeyProvider> {
  const { passphrase, path } = options;
  return onFiles(path, async () => derive(passphrase, path, await readOrCreateSalt(options), options.crypto));
}

/** The bytes of the file with salt and parameters, made where it is missing. */
export async function readOrCreateSalt(options: PassphraseKeyProviderOptions): Promise<Bytes> {
  const { passphrase, path, create = true, crypto = globalThis.crypto } = options;
  return readOrCreate(path, MAX_FILE_BYTES, create, async () => {
    const kekId = `passphrase-${toBase64Url(crypto.getRandomValues(new Uint8Array(KEK_ID_BYTES)))}`;
    const { header } = await passphraseKey(passphrase, { kekId, crypto });
    return writeJson({ format: PASSPHRASE_FORMAT, kekId, header: toBase64(header) });
  });
}

/** The provider of a passphrase under the `bytes` of such a file. */
export async function derive(passphrase: string, path: string, bytes: Bytes, crypto: Crypto = globalThis.crypto): Promise<NamedKeyProvider> {
  const { format, kekId, header: text } = readJson(bytes);
  const header = typeof text === 'string' ? fromBase64(text) : null;
  if (format !== PASSPHRASE_FORMAT || typeof kekId !== 'string' || kekId === '' || header === null) {
    throw unusable(`${path} is damaged: restore it from a backup.`);
  }
  try {
    const { keyProvider } = await passphraseKey(passphrase, { kekId, header, crypto });
    return { kekId, ...keyProvider };
  } catch (error) {
    if (!hasCode(error, 'vault_open_failed')) throw error;
    throw unusable(`The passphrase is not the one of ${path}, or that file is damaged: try another passphrase, or restore the file.`);
  }
}

async function readOrCreate(path: string, maxBytes: number, create: boolean, make: () => Promise<Bytes>): Promise<Bytes> {
  await ensureParentDirectory(path);
  const directory = dirname(resolve(path));
  await sweepTemporaries(directory, (name) => name === basename(path));
  for (;;) {
    const found = await readPrivateFile(path, maxBytes);
    if (found !== null) {
      // Whoever made it may be killed before it is durable; what we seal under it must not outlive it.
      await syncDirectory(directory);
      return found;
    }
    if (!create) throw unusable(`${path} is missing, and keys were sealed under it: restore it from a backup, or copy it from where the same data is served.`);
    const made = await make();
    await createPrivateFile(path, made);
    made.fill(0);
  }
}
