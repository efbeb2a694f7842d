/**
 * The bytes of one device key in a file: sealed, with name, key id and public key authenticated beside the private key. It
 * makes and opens them; where they lie, and which of them counts, is for the store to say.
 *
 * @see docs/spec/vault.md for the bytes of a sealed key
 */
import { fromBase64, toBase64 } from '@keyguard/core/bytes';
import { hasCode, type UsageError } from '@keyguard/core/errors';
import { importKeyPair, parsePublicJwk, signingKey } from '@keyguard/core/keys';
import type { Bytes, PublicJwk, SigningKey } from '@keyguard/core/seams';
import { open, seal, type SealedValue, type VaultPlace } from '@keyguard/core/vault';
import { readJson, writeJson } from './json.ts';
import type { NamedKeyProvider } from './key-provider.ts';
import { unusable } from './private-file.ts';

const DEVICE_KEY_FORMAT = 'keyguard-device-key-v1';

function placeOf(name: string, keyId: string): VaultPlace {
  return { deploymentId: 'local', table: 'device-key-file', row: name, column: keyId, version: 1, purpose: 'device-signing-key' };
}

/** A new key, sealed under `root` for this name, in the bytes of its file. */
export async function makeKeyFile(name: string, root: NamedKeyProvider, crypto: Crypto): Promise<{ readonly keyId: string; readonly bytes: Bytes }> {
  const pair = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify']);
  const { keyId, publicKey } = await signingKey(pair, crypto);
  const pkcs8 = new Uint8Array(await crypto.subtle.exportKey('pkcs8', pair.privateKey));
  try {
    const { ciphertext, wrappedDek, kekId } = await seal(pkcs8, placeOf(name, keyId), { keyProvider: root, crypto });
    const bytes = writeJson({
      format: DEVICE_KEY_FORMAT,
      name,
      keyId,
      publicKey,
      kekId,
      wrappedDek: toBase64(wrappedDek),
      ciphertext: toBase64(ciphertext),
    });
    return { keyId, bytes };
  } finally {
    pkcs8.fill(0);
  }
}

/**
 * The key in the bytes of the file at `path`, which must have been sealed under `root` for this name.
 * @throws UsageError `key_store_unusable`
 */
export async function openKeyFile(path: string, name: string, bytes: Bytes, root: NamedKeyProvider, crypto: Crypto): Promise<SigningKey> {
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
