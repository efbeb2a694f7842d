/**
 * The default {@link Primitives}: SHA-256 and ECDSA P-256 on any W3C WebCrypto. Portable, at the price of a thread hop per
 * call; a Node server injects `nodePrimitives()` of `@keyguard/server-verifier` instead.
 *
 * @see https://www.w3.org/TR/webcrypto-2/
 */
import { fromBase64Url } from './bytes.ts';
import { RejectedError } from './errors.ts';
import type { Bytes, Primitives, PublicJwk, VerifyKey } from './seams.ts';

const P256 = { name: 'ECDSA', namedCurve: 'P-256' } as const;
const ECDSA_SHA256 = { name: 'ECDSA', hash: 'SHA-256' } as const;
const SIGNATURE_BYTES = 64;

// NIST SP 800-186 section 3.2.1.3: the prime of the field, and b of y² = x³ - 3x + b.
const FIELD = 0xffffffff00000001000000000000000000000000ffffffffffffffffffffffffn;
const B = 0x5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604bn;

function coordinate(text: string): bigint {
  let value = 0n;
  for (const byte of fromBase64Url(text) ?? []) value = (value << 8n) | BigInt(byte);
  return value;
}

// Not every implementation looks: some take any two numbers for a point, and only later verify nothing with it.
function isOnCurve(x: bigint, y: bigint): boolean {
  return x < FIELD && y < FIELD && (y * y - (x * x - 3n) * x - B) % FIELD === 0n;
}

/** {@link Primitives} on the platform's WebCrypto, or on the one given (for instance `@peculiar/webcrypto`). */
export function webCryptoPrimitives(crypto: Crypto = globalThis.crypto): Primitives {
  const { subtle } = crypto;
  return {
    async sha256(data: Bytes): Promise<Bytes> {
      return new Uint8Array(await subtle.digest('SHA-256', data));
    },
    async importPublicKey({ crv, kty, x, y }: PublicJwk): Promise<VerifyKey> {
      let key: CryptoKey;
      let exported: JsonWebKey;
      try {
        key = await subtle.importKey('jwk', { crv, kty, x, y }, P256, true, ['verify']);
        exported = await subtle.exportKey('jwk', key);
      } catch (cause) {
        throw new RejectedError('jwk_invalid', 'The key is not a point on P-256.', { cause });
      }
      if (!isOnCurve(coordinate(x), coordinate(y))) throw new RejectedError('jwk_invalid', 'The key is not a point on P-256.');
      if (exported.x !== x || exported.y !== y) {
        throw new RejectedError('jwk_invalid', 'The key is not in its canonical form.');
      }
      return key;
    },
    async verify(key: VerifyKey, data: Bytes, signature: Bytes): Promise<boolean> {
      if (signature.length !== SIGNATURE_BYTES) return false;
      return subtle.verify(ECDSA_SHA256, key as CryptoKey, signature, data);
    },
  };
}
