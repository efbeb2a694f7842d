/**
 * The algorithms of the vault's formats on any W3C WebCrypto, each with the one set of parameters that the formats know. Not
 * exported by the package: nobody may seal with another IV, tag or salt.
 *
 * Refuses what is outside these parameters where WebCrypto would take it.
 *
 * @see docs/spec/vault.md section 1
 */
import { UsageError } from './errors.ts';
import type { Bytes, VaultCiphertext, VaultKey, VaultKeys, VaultPrimitives } from './seams.ts';

export const AES_KEY_BYTES = 32;
export const IV_BYTES = 12;
export const TAG_BYTES = 16;
const DERIVED_BYTES = 32;
const NO_SALT: Bytes = /* @__PURE__ */ new Uint8Array(0);
const AES = { name: 'AES-GCM', length: 256 } as const;
// The length must be said: WebCrypto's own default for HMAC is the block size of the hash.
const HMAC = { name: 'HMAC', hash: 'SHA-256', length: 256 } as const;

function gcm(iv: Bytes, aad: Bytes): AesGcmParams {
  // Another length is hashed into a counter first, which loses the guarantee that IVs which differ stay apart.
  if (iv.length !== IV_BYTES) throw new UsageError('invalid_option', 'An IV has 12 bytes.');
  return { name: 'AES-GCM', iv, additionalData: aad, tagLength: TAG_BYTES * 8 };
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

/** {@link VaultPrimitives} on a WebCrypto. A key is a `CryptoKey` that cannot be exported. */
export function webCryptoVaultPrimitives({ subtle }: Crypto): VaultPrimitives {
  return {
    async sha256(data: Bytes): Promise<Bytes> {
      return new Uint8Array(await subtle.digest('SHA-256', data));
    },
    async importAesKey(key: Bytes): Promise<VaultKey> {
      if (key.length !== AES_KEY_BYTES) throw new UsageError('invalid_option', 'A key encryption key has 32 bytes.');
      return subtle.importKey('raw', key, 'AES-GCM', false, ['encrypt', 'decrypt']);
    },
    async deriveKeys(secret: Bytes, encryptionLabel: Bytes, commitmentLabel: Bytes): Promise<VaultKeys> {
      const base = await subtle.importKey('raw', secret, 'HKDF', false, ['deriveKey']);
      const [encryption, commitment] = await Promise.all([
        subtle.deriveKey(hkdf(encryptionLabel), base, AES, false, ['encrypt', 'decrypt']),
        subtle.deriveKey(hkdf(commitmentLabel), base, HMAC, false, ['sign']),
      ]);
      return { encryption, commitment };
    },
    async hmac(key: VaultKey, data: Bytes): Promise<Bytes> {
      return new Uint8Array(await subtle.sign('HMAC', key as CryptoKey, data));
    },
    async encrypt(key: VaultKey, iv: Bytes, aad: Bytes, plaintext: Bytes): Promise<VaultCiphertext> {
      const encrypted = new Uint8Array(await subtle.encrypt(gcm(iv, aad), key as CryptoKey, plaintext));
      const tagAt = encrypted.length - TAG_BYTES;
      return { ciphertext: encrypted.subarray(0, tagAt), tag: encrypted.subarray(tagAt) };
    },
    async decrypt(key: VaultKey, iv: Bytes, aad: Bytes, encrypted: Bytes): Promise<Bytes> {
      return new Uint8Array(await subtle.decrypt(gcm(iv, aad), key as CryptoKey, encrypted));
    },
  };
}
