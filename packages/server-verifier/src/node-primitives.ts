/**
 * {@link Primitives} on `node:crypto`: synchronous, on the request's own thread. On a server it costs a third less than
 * WebCrypto, and its latency does not depend on what else waits for the thread pool (a password derivation, a DNS look-up).
 *
 * Signatures are handed to OpenSSL as DER: its P1363 path is measurably slower on Node 24.
 *
 * @see docs/decisions/0003-synchronous-verification.md
 */
import { createPublicKey, hash, verify, type KeyObject } from 'node:crypto';
import { RejectedError } from '@keyguard/core/errors';
import type { Bytes, Primitives, PublicJwk, VerifyKey } from '@keyguard/core/seams';

const SCALAR_BYTES = 32;

/** The {@link Primitives} of a server: answers at once, and verifies exactly what `webCryptoPrimitives()` of core does. */
export function nodePrimitives(): Primitives {
  return {
    sha256(data: Bytes): Bytes {
      // By way of a string: that path of OpenSSL's binding takes two thirds of the time of the one that answers with a buffer.
      return Buffer.from(hash('sha256', data, 'binary'), 'binary');
    },
    importPublicKey({ crv, kty, x, y }: PublicJwk): VerifyKey {
      let key: KeyObject;
      try {
        key = createPublicKey({ key: { crv, kty, x, y }, format: 'jwk' });
      } catch (cause) {
        throw new RejectedError('jwk_invalid', 'The key is not a point on P-256.', { cause });
      }
      const exported = key.export({ format: 'jwk' });
      if (exported.x !== x || exported.y !== y || exported.crv !== 'P-256') {
        throw new RejectedError('jwk_invalid', 'The key is not in its canonical form.');
      }
      return key;
    },
    verify(key: VerifyKey, data: Bytes, signature: Bytes): boolean {
      if (signature.length !== 2 * SCALAR_BYTES) return false;
      return verify('sha256', data, key as KeyObject, toDer(signature));
    },
  };
}

/** `r‖s` as the DER sequence of two integers that X9.62 writes: minimal, positive. */
function toDer(signature: Bytes): Uint8Array {
  const r = firstOctet(signature, 0);
  const s = firstOctet(signature, SCALAR_BYTES);
  const rPad = signature[r]! >> 7;
  const sPad = signature[s]! >> 7;
  const rLength = SCALAR_BYTES - r + rPad;
  const sLength = 2 * SCALAR_BYTES - s + sPad;
  // From the pool: an array of its own would cost more than all else here.
  const der = Buffer.allocUnsafe(6 + rLength + sLength);
  der[0] = 0x30;
  der[1] = 4 + rLength + sLength;
  writeInteger(der, 2, signature, r, rPad, rLength);
  writeInteger(der, 4 + rLength, signature, s, sPad, sLength);
  return der;
}

/** Where the scalar that begins at `start` has its first octet that is not zero, or its last octet. */
function firstOctet(signature: Bytes, start: number): number {
  const last = start + SCALAR_BYTES - 1;
  let first = start;
  while (first < last && signature[first] === 0) first += 1;
  return first;
}

function writeInteger(der: Uint8Array, at: number, from: Bytes, first: number, pad: number, length: number): void {
  der[at] = 0x02;
  der[at + 1] = length;
  der[at + 2] = 0;
  for (let i = 0; i < length - pad; i += 1) der[at + 2 + pad + i] = from[first + i]!;
}
