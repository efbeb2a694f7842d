/**
 * Device keys and verification on `@noble/curves`, for runtimes without `crypto.subtle`, such as React Native. Reached by its
 * subpath only; needs `@noble/curves` and `@noble/hashes` installed, and `crypto.getRandomValues`, with which the library hides
 * from a clock what it does with a private key.
 *
 * A key here is bytes in memory that JavaScript can read: whoever runs code in the application can take it along. Where there is
 * WebCrypto, use that. Several milliseconds a signature check: for clients, not for servers.
 *
 * @see docs/decisions/0012-noble-as-an-optional-peer.md
 */
import { p256 } from '@noble/curves/nist.js';
import { hmac } from '@noble/hashes/hmac.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { concat, fromBase64Url, toBase64Url } from './bytes.ts';
import { RejectedError, UnavailableError, UsageError } from './errors.ts';
import { thumbprint } from './keys.ts';
import type { Bytes, Primitives, PublicJwk, Random, SigningKey, VerifyKey } from './seams.ts';
import { webCryptoRandom } from './system.ts';

const SCALAR_BYTES = 32;
const SIGNATURE_BYTES = 64;
const MAX_DRAWS = 8;
const UNCOMPRESSED: Bytes = /* @__PURE__ */ Uint8Array.of(4);

/** {@link Primitives} in JavaScript. Accepts high `s`, as the protocol demands; answers at once. */
export function noblePrimitives(): Primitives {
  return {
    sha256: (data: Bytes): Bytes => sha256(data) as Bytes,
    importPublicKey({ crv, kty, x, y }: PublicJwk): VerifyKey {
      const xBytes = fromBase64Url(x);
      const yBytes = fromBase64Url(y);
      if (crv !== 'P-256' || kty !== 'EC' || xBytes?.length !== SCALAR_BYTES || yBytes?.length !== SCALAR_BYTES) {
        throw new RejectedError('jwk_invalid', 'The key is not in its canonical form.');
      }
      const point = concat(UNCOMPRESSED, xBytes, yBytes);
      if (!p256.utils.isValidPublicKey(point, false)) throw new RejectedError('jwk_invalid', 'The key is not a point on P-256.');
      return point;
    },
    verify(key: VerifyKey, data: Bytes, signature: Bytes): boolean {
      if (signature.length !== SIGNATURE_BYTES) return false;
      return p256.verify(signature, data, key as Bytes, { lowS: false });
    },
  };
}

/** HMAC-SHA-256 in JavaScript, as `fingerprintDigest` and the providers of fingerprints take it. */
export function nobleHmac(key: Bytes, data: Bytes): Bytes {
  return hmac(sha256, key, data) as Bytes;
}

/**
 * The {@link SigningKey} of a P-256 private key. Signatures are deterministic (RFC 6979): a poor generator cannot betray the key.
 *
 * The key stays in memory as long as the answer does. `privateKey` is copied: the caller wipes its own, and stores it nowhere but
 * in what the platform has for keys (Keychain, Keystore).
 * @param privateKey secret: 32 bytes, most significant first, from 1 to the order of the curve less 1
 * @throws UsageError `invalid_option`
 */
export async function nobleSigningKey(privateKey: Bytes): Promise<SigningKey> {
  if (privateKey.length !== SCALAR_BYTES || !p256.utils.isValidSecretKey(privateKey)) {
    throw new UsageError('invalid_option', 'A P-256 private key has 32 bytes, and is neither zero nor too great.');
  }
  // Not `slice`, which of a Node `Buffer` is no copy.
  const secret = new Uint8Array(privateKey);
  const point = p256.getPublicKey(secret, false);
  const x = toBase64Url(point.subarray(1, 1 + SCALAR_BYTES));
  const y = toBase64Url(point.subarray(1 + SCALAR_BYTES));
  const publicKey: PublicJwk = { crv: 'P-256', kty: 'EC', x, y };
  return {
    keyId: await thumbprint(publicKey, noblePrimitives()),
    publicKey,
    sign: async (data: Bytes): Promise<Bytes> => p256.sign(data, secret, { lowS: false }) as Bytes,
  };
}

/**
 * 32 new bytes for {@link nobleSigningKey}, evenly distributed over all private keys. Secret; the caller stores them.
 * @throws UnavailableError where `random` does not answer with that many bytes, or with nothing usable
 */
export function generateNobleKey(random: Random = webCryptoRandom()): Bytes {
  // Fewer than one draw in 2³² is too great: a second one already means that the generator is broken.
  for (let draw = 0; draw < MAX_DRAWS; draw += 1) {
    const bytes = random.bytes(SCALAR_BYTES);
    if (bytes.length !== SCALAR_BYTES) break;
    if (p256.utils.isValidSecretKey(bytes)) return bytes;
  }
  throw new UnavailableError('random', 'The generator gave nothing that could be a private key.');
}
