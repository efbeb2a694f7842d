/**
 * The only ambient time and randomness of this package. Everything else takes a {@link Clock} and a {@link Random}.
 */
import type { Bytes, Clock, Random } from './seams.ts';

/** The clock of the machine. */
export const systemClock: Clock = { nowMs: () => Date.now() };

/** The generator of the platform's WebCrypto, or of the one given. Draws at most 65,536 bytes a call. */
export function webCryptoRandom(crypto: Crypto = globalThis.crypto): Random {
  return { bytes: (lengthBytes: number): Bytes => crypto.getRandomValues(new Uint8Array(lengthBytes)) };
}
