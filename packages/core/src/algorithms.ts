/**
 * The algorithms of the vault's formats, each with the one set of parameters that the formats know. Not exported by the package:
 * nobody may seal with another IV, tag or salt.
 *
 * Refuses what is outside these parameters where WebCrypto would take it.
 *
 * @see docs/spec/vault.md section 1
 */
import { UsageError } from './errors.ts';
import type { Bytes } from './seams.ts';

export const AES_KEY_BYTES = 32;
export const IV_BYTES = 12;
export const TAG_BYTES = 16;
const DERIVED_BYTES = 32;
const NO_SALT: Bytes = /* @__PURE__ */ new Uint8Array(0);

/** An AES-256-GCM key that cannot be exported. @throws UsageError `invalid_option` for any other length than 32 bytes */
export async function importAesKey(subtle: SubtleCrypto, key: Bytes): Promise<CryptoKey> {
  if (key.length !== AES_KEY_BYTES) throw new UsageError('invalid_option', 'A key encryption key has 32 bytes.');
  return subtle.importKey('raw', key, 'AES-GCM', false, ['encrypt', 'decrypt']);
}

function gcm(iv: Bytes, aad: Bytes): AesGcmParams {
  // Another length is hashed into a counter first, which loses the guarantee that IVs which differ stay apart.
  if (iv.length !== IV_BYTES) throw new UsageError('invalid_option', 'An IV has 12 bytes.');
  return { name: 'AES-GCM', iv, additionalData: aad, tagLength: TAG_BYTES * 8 };
}

/** Ciphertext and 16-byte tag. `iv` has 12 bytes and MUST NOT be used twice with `key`. */
export async function gcmEncrypt(subtle: SubtleCrypto, key: CryptoKey, iv: Bytes, aad: Bytes, plaintext: Bytes): Promise<Bytes> {
  return new Uint8Array(await subtle.encrypt(gcm(iv, aad), key, plaintext));
}

/** The plaintext, or throws: none of it comes out before the 16-byte tag at the end of `encrypted` is verified. */
export async function gcmDecrypt(subtle: SubtleCrypto, key: CryptoKey, iv: Bytes, aad: Bytes, encrypted: Bytes): Promise<Bytes> {
  return new Uint8Array(await subtle.decrypt(gcm(iv, aad), key, encrypted));
}

/** HKDF-SHA-256 with an empty salt, told apart by `label`. */
export function hkdf(label: Bytes): HkdfParams {
  return { name: 'HKDF', hash: 'SHA-256', salt: NO_SALT, info: label };
}

/** 32 bytes of HKDF-SHA-256 with an empty salt. */
export async function hkdfBytes(subtle: SubtleCrypto, secret: CryptoKey, label: Bytes): Promise<Bytes> {
  return new Uint8Array(await subtle.deriveBits(hkdf(label), secret, DERIVED_BYTES * 8));
}

/** 32 bytes of PBKDF2 with HMAC-SHA-256. How many iterations and which salts are allowed is for the caller to check. */
export async function pbkdf2(subtle: SubtleCrypto, password: Bytes, salt: Bytes, iterations: number): Promise<Bytes> {
  const base = await subtle.importKey('raw', password, 'PBKDF2', false, ['deriveBits']);
  const parameters = { name: 'PBKDF2', hash: 'SHA-256', salt, iterations };
  return new Uint8Array(await subtle.deriveBits(parameters, base, DERIVED_BYTES * 8));
}
