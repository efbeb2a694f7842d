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
  const der = new Uint8Array(2 + 2 * (2 + 1 + SCALAR_BYTES));
  der[0] = 0x30;
  const afterR = writeInteger(der, 2, signature, 0);
  const end = writeInteger(der, afterR, signature, SCALAR_BYTES);
  der[1] = end - 2;
  return der.subarray(0, end);
}

function writeInteger(der: Uint8Array, at: number, from: Bytes, start: number): number {
  let first = start;
  const last = start + SCALAR_BYTES - 1;
  while (first < last && from[first] === 0) first += 1;
  const pad = from[first]! > 127 ? 1 : 0;
  const length = last - first + 1 + pad;
  der[at] = 0x02;
  der[at + 1] = length;
  for (let i = 0; i < length - pad; i += 1) der[at + 2 + pad + i] = from[first + i]!;
  return at + 2 + length;
}
