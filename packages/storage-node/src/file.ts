/**
 * Keys in files: the device key of a Node program, and the root key of a server.
 *
 * A key file on Node is extractable. Whoever can read the sealed file *and* the root key file (or knows the passphrase) has
 * the private key: the program's own user, root, a backup of both. Sealing keeps out those who get the one without the other.
 * And an old file of the same name put back in place of a newer one cannot be told from it. Where that is not enough, keep the
 * key in hardware, behind another `KeyStore`.
 *
 * @see docs/spec/vault.md for the bytes of a sealed key
 */
import { createHash } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { equalBytes, fromBase64, fromUtf8, toBase64, toBase64Url, utf8 } from '@keyguard/core/bytes';
import { hasCode, UsageError } from '@keyguard/core/errors';
import { importKeyPair, parsePublicJwk, signingKey } from '@keyguard/core/keys';
import type { Bytes, KeyProvider, KeyStore, PublicJwk, SigningKey } from '@keyguard/core/seams';
import { aesKeyProvider, open, passphraseKey, seal, type SealedValue, type VaultPlace } from '@keyguard/core/vault';
import {
  assertPrivateDirectory,
  createPrivateFile,
  ensureParentDirectory,
  ensurePrivateDirectory,
  onFiles,
  readPrivateFile,
  removeFile,
  sweepTemporaries,
  syncDirectory,
  unusable,
} from './file/private-file.ts';

const ROOT_KEY_BYTES = 32;
const ROOT_KEY_LABEL = 'kg-root-key-id-v1\0';
const KEK_ID_BYTES = 16;
const MAX_FILE_BYTES = 16_384;
const MAX_NAME_LENGTH = 1024;
const PASSPHRASE_FORMAT = 'keyguard-passphrase-v1';
const DEVICE_KEY_FORMAT = 'keyguard-device-key-v1';
const DEVICE_KEY_FILE = /^device-[0-9a-f]{64}\.key$/;
const LONE_SURROGATE = /[\uD800-\uDFFF]/u;

/** A {@link KeyProvider} that says under which name it wraps, so that a wrong one is told from a damaged value. */
export interface NamedKeyProvider extends KeyProvider {
  readonly kekId: string;
}

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

async function readOrCreateSalt(options: PassphraseKeyProviderOptions): Promise<Bytes> {
  const { passphrase, path, create = true, crypto = globalThis.crypto } = options;
  return readOrCreate(path, MAX_FILE_BYTES, create, async () => {
    const kekId = `passphrase-${toBase64Url(crypto.getRandomValues(new Uint8Array(KEK_ID_BYTES)))}`;
    const { header } = await passphraseKey(passphrase, { kekId, crypto });
    return writeJson({ format: PASSPHRASE_FORMAT, kekId, header: toBase64(header) });
  });
}

async function derive(passphrase: string, path: string, bytes: Bytes, crypto: Crypto = globalThis.crypto): Promise<NamedKeyProvider> {
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
    if (!create) throw unusable(`${path} is missing, and keys were sealed under it: restore it from a backup.`);
    const made = await make();
    await createPrivateFile(path, made);
    made.fill(0);
  }
}

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
  const known = new Map<string, { readonly bytes: Bytes; readonly key: SigningKey }>();
  let derived: { readonly salt: Bytes; readonly root: NamedKeyProvider } | undefined;
  let opening: Promise<NamedKeyProvider> | undefined;
  let swept = false;

  async function openRootOnce(): Promise<NamedKeyProvider> {
    // The root is made before the first key; so where there is a key, a missing root is a loss and not a beginning.
    const create = !(await readdir(directory)).some((name) => DEVICE_KEY_FILE.test(name));
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

  async function read(name: string): Promise<SigningKey | null> {
    const path = join(directory, fileName(name));
    const bytes = await readPrivateFile(path, MAX_FILE_BYTES);
    if (bytes === null) {
      known.delete(name);
      return null;
    }
    const cached = known.get(name);
    if (cached !== undefined && equalBytes(cached.bytes, bytes)) return cached.key;
    // Whoever made it may be killed before it is durable; the key must not be used before it is.
    await syncDirectory(directory);
    const key = await openKeyFile(path, name, bytes, await openRoot(), crypto);
    known.set(name, { bytes, key });
    return key;
  }

  async function sweepOnce(): Promise<void> {
    if (swept) return;
    await sweepTemporaries(directory, (name) => DEVICE_KEY_FILE.test(name));
    swept = true;
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
          await createPrivateFile(join(directory, fileName(name)), made);
        }
      });
    },
    async get(name: string): Promise<SigningKey | null> {
      checkName(name);
      return onFiles(directory, async () => ((await assertPrivateDirectory(directory)) ? read(name) : null));
    },
    async delete(name: string): Promise<void> {
      checkName(name);
      const file = fileName(name);
      await onFiles(directory, async () => {
        known.delete(name);
        await removeFile(join(directory, file));
        // A writer killed after linking leaves a second name for the same sealed key.
        await sweepTemporaries(directory, (other) => other === file, 0);
      });
    },
  };
}

function checkName(name: string): void {
  if (typeof name === 'string' && name !== '' && name.length <= MAX_NAME_LENGTH && !LONE_SURROGATE.test(name)) return;
  throw new UsageError('invalid_option', `The name of a key is well-formed text of 1 to ${MAX_NAME_LENGTH} characters.`);
}

// A hash, because file systems fold case, normalise Unicode and know names of their own.
function fileName(name: string): string {
  return `device-${createHash('sha256').update(name).digest('hex')}.key`;
}

function placeOf(name: string, keyId: string): VaultPlace {
  return { deploymentId: 'local', table: 'device-key-file', row: name, column: keyId, version: 1, purpose: 'device-signing-key' };
}

async function makeKeyFile(name: string, root: NamedKeyProvider, crypto: Crypto): Promise<Bytes> {
  const pair = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify']);
  const { keyId, publicKey } = await signingKey(pair, crypto);
  const pkcs8 = new Uint8Array(await crypto.subtle.exportKey('pkcs8', pair.privateKey));
  try {
    const { ciphertext, wrappedDek, kekId } = await seal(pkcs8, placeOf(name, keyId), { keyProvider: root, crypto });
    return writeJson({
      format: DEVICE_KEY_FORMAT,
      name,
      keyId,
      publicKey,
      kekId,
      wrappedDek: toBase64(wrappedDek),
      ciphertext: toBase64(ciphertext),
    });
  } finally {
    pkcs8.fill(0);
  }
}

async function openKeyFile(path: string, name: string, bytes: Bytes, root: NamedKeyProvider, crypto: Crypto): Promise<SigningKey> {
  const { keyId, publicKey, sealed } = readKeyFile(path, name, bytes);
  if (sealed.kekId !== root.kekId) {
    throw unusable(`${path} was sealed under another root key or passphrase (${sealed.kekId}): bring that one back.`);
  }
  let pkcs8: Bytes | undefined;
  try {
    pkcs8 = await open(sealed, placeOf(name, keyId), { keyProvider: root, crypto });
    const key = await signingKey(await importKeyPair(pkcs8, publicKey, crypto), crypto);
    // The seal binds the key id, and the key id is the hash of the public key.
    if (key.keyId !== keyId) throw damaged(path);
    return key;
  } catch (error) {
    if (hasCode(error, 'key_store_unusable')) throw error;
    throw damaged(path);
  } finally {
    pkcs8?.fill(0);
  }
}

function readKeyFile(path: string, name: string, bytes: Bytes): { keyId: string; publicKey: PublicJwk; sealed: SealedValue } {
  const file = readJson(bytes);
  if (file.format !== DEVICE_KEY_FORMAT) throw damaged(path);
  if (file.name !== name) {
    throw unusable(`${path} holds the key of another name: restore the right file from a backup, or delete it and enroll again.`);
  }
  const { keyId, kekId } = file;
  const wrappedDek = typeof file.wrappedDek === 'string' ? fromBase64(file.wrappedDek) : null;
  const ciphertext = typeof file.ciphertext === 'string' ? fromBase64(file.ciphertext) : null;
  if (typeof keyId !== 'string' || keyId === '' || typeof kekId !== 'string' || wrappedDek === null || ciphertext === null) {
    throw damaged(path);
  }
  try {
    return { keyId, publicKey: parsePublicJwk(file.publicKey), sealed: { kekId, wrappedDek, ciphertext } };
  } catch {
    throw damaged(path);
  }
}

function damaged(path: string): UsageError {
  return unusable(`${path} is damaged or was changed: restore it from a backup, or delete it and enroll this device again.`);
}

function writeJson(value: object): Bytes {
  return utf8(`${JSON.stringify(value, undefined, 2)}\n`);
}

function readJson(bytes: Bytes): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(fromUtf8(bytes));
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}
