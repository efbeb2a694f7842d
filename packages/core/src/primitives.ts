/**
 * The default {@link Primitives}: SHA-256 and ECDSA P-256 on any W3C WebCrypto. Portable, at the price of a thread hop per
 * call; a Node server injects `nodePrimitives()` of `@keyguard/server-verifier` instead.
 *
 * @see https://www.w3.org/TR/webcrypto-2/
 */
import { RejectedError } from './errors.ts';
import type { Bytes, Primitives, PublicJwk, VerifyKey } from './seams.ts';

const P256 = { name: 'ECDSA', namedCurve: 'P-256' } as const;
const ECDSA_SHA256 = { name: 'ECDSA', hash: 'SHA-256' } as const;

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
      if (exported.x !== x || exported.y !== y) {
        throw new RejectedError('jwk_invalid', 'The key is not in its canonical form.');
      }
      return key;
    },
    async verify(key: VerifyKey, data: Bytes, signature: Bytes): Promise<boolean> {
      return subtle.verify(ECDSA_SHA256, key as CryptoKey, signature, data);
    },
  };
}
