/**
 * {@link VaultPrimitives} on `node:crypto`: synchronous, on the thread that asks, for values of up to 256 KiB. What the vault does for
 * a short value is a dozen operations of a few microseconds each, and WebCrypto pays for another thread at every one of them.
 *
 * Longer values go to WebCrypto's threads, so that none of them holds up the event loop. Keys are held as key objects, and the bytes
 * that were derived on the way are wiped.
 *
 * @see docs/spec/vault.md for the bytes, docs/decisions/0002-primitives-as-a-seam.md for why there are two
 */
import { createCipheriv, createDecipheriv, createHmac, createSecretKey, hash, type KeyObject } from 'node:crypto';
import { UsageError } from '@keyguard/core/errors';
import type { Bytes, VaultCiphertext, VaultKey, VaultKeys, VaultPrimitives } from '@keyguard/core/seams';

const CIPHER = 'aes-256-gcm';
const KEY_BYTES = 32;
const IV_BYTES = 12;
const TAG_BYTES = 16;
const FIRST_BLOCK = Uint8Array.of(1);
// About 50 µs of AES-GCM: less than one check of a signature, which a server does on the thread that asks as well.
const SYNCHRONOUS_BYTES = 262_144;

/** Primitives for `seal`, `open` and `aesKeyProvider` of `@keyguard/core/vault`. Holds nothing; one for the process is enough. */
export function nodeVaultPrimitives(): VaultPrimitives {
  const zeros = createSecretKey(new Uint8Array(KEY_BYTES));
  return {
    // By way of a string, as in `nodePrimitives`: half the time of the path that answers with a buffer.
    sha256: (data: Bytes): Bytes => Buffer.from(hash('sha256', data, 'binary'), 'binary'),
    importAesKey(key: Bytes): VaultKey {
      if (key.length !== KEY_BYTES) throw new UsageError('invalid_option', 'A key encryption key has 32 bytes.');
      return createSecretKey(key);
    },
    deriveKeys(secret: Bytes, encryptionLabel: Bytes, commitmentLabel: Bytes): VaultKeys {
      // RFC 5869 section 2.2: both labels share the extraction, which without a salt has a key of zeros.
      const extracted = keyOf(createHmac('sha256', zeros).update(secret).digest());
      return { encryption: expand(extracted, encryptionLabel), commitment: expand(extracted, commitmentLabel) };
    },
    hmac: (key: VaultKey, data: Bytes): Bytes => createHmac('sha256', key as KeyObject).update(data).digest() as Bytes,
    encrypt(key: VaultKey, iv: Bytes, aad: Bytes, plaintext: Bytes): VaultCiphertext | Promise<VaultCiphertext> {
      checkIv(iv);
      if (plaintext.length > SYNCHRONOUS_BYTES) return encryptElsewhere(key as KeyObject, iv, aad, plaintext);
      const cipher = createCipheriv(CIPHER, key as KeyObject, iv, { authTagLength: TAG_BYTES }).setAAD(aad);
      const ciphertext = cipher.update(plaintext) as Bytes;
      // GCM keeps nothing back: this makes the tag, and gives no bytes.
      cipher.final();
      return { ciphertext, tag: cipher.getAuthTag() as Bytes };
    },
    decrypt(key: VaultKey, iv: Bytes, aad: Bytes, encrypted: Bytes): Bytes | Promise<Bytes> {
      checkIv(iv);
      if (encrypted.length > SYNCHRONOUS_BYTES) return decryptElsewhere(key as KeyObject, iv, aad, encrypted);
      const tagAt = Math.max(0, encrypted.length - TAG_BYTES);
      const decipher = createDecipheriv(CIPHER, key as KeyObject, iv, { authTagLength: TAG_BYTES }).setAAD(aad);
      // Throws for a tag that is cut short.
      decipher.setAuthTag(encrypted.subarray(tagAt));
      const plaintext = decipher.update(encrypted.subarray(0, tagAt));
      try {
        // Throws where the tag is wrong.
        decipher.final();
      } catch (error) {
        plaintext.fill(0);
        throw error;
      }
      // Without what a `Buffer` adds: this one goes to whoever opened the value.
      return new Uint8Array(plaintext.buffer as ArrayBuffer, plaintext.byteOffset, plaintext.length);
    },
  };
}

function checkIv(iv: Bytes): void {
  if (iv.length !== IV_BYTES) throw new UsageError('invalid_option', 'An IV has 12 bytes.');
}

/** A key object in the place of `bytes`, which are wiped. */
function keyOf(bytes: Buffer): KeyObject {
  const key = createSecretKey(bytes);
  bytes.fill(0);
  return key;
}

/** RFC 5869 section 2.3, for as many bytes as one HMAC has. */
function expand(extracted: KeyObject, label: Bytes): KeyObject {
  return keyOf(createHmac('sha256', extracted).update(label).update(FIRST_BLOCK).digest());
}

async function withCryptoKey<T>(key: KeyObject, use: 'encrypt' | 'decrypt', work: (key: CryptoKey) => Promise<T>): Promise<T> {
  const bytes = key.export();
  try {
    return await work(await globalThis.crypto.subtle.importKey('raw', bytes as Bytes, 'AES-GCM', false, [use]));
  } finally {
    bytes.fill(0);
  }
}

const gcm = (iv: Bytes, aad: Bytes): AesGcmParams => ({ name: 'AES-GCM', iv, additionalData: aad, tagLength: TAG_BYTES * 8 });

function encryptElsewhere(key: KeyObject, iv: Bytes, aad: Bytes, plaintext: Bytes): Promise<VaultCiphertext> {
  return withCryptoKey(key, 'encrypt', async (imported) => {
    const encrypted = await globalThis.crypto.subtle.encrypt(gcm(iv, aad), imported, plaintext);
    const tagAt = encrypted.byteLength - TAG_BYTES;
    return { ciphertext: new Uint8Array(encrypted, 0, tagAt), tag: new Uint8Array(encrypted, tagAt) };
  });
}

function decryptElsewhere(key: KeyObject, iv: Bytes, aad: Bytes, encrypted: Bytes): Promise<Bytes> {
  return withCryptoKey(key, 'decrypt', async (imported) => new Uint8Array(await globalThis.crypto.subtle.decrypt(gcm(iv, aad), imported, encrypted)));
}
