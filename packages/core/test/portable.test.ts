/** Core on Node's WebCrypto, and on one that is not the platform's: `@peculiar/webcrypto`, whose keys no other one takes. */
import { Crypto as PeculiarCrypto } from '@peculiar/webcrypto';
import { expect, it } from 'vitest';
import { generateKeyPair, signingKey, webCryptoPrimitives, webCryptoRandom } from '@keyguard/core';
import { webCryptoHmac } from '@keyguard/core/fingerprint';
import { portableSuite, type Platform } from './portable.ts';

const on = (crypto: Crypto): Platform => ({
  primitives: webCryptoPrimitives(crypto),
  newKey: async () => signingKey(await generateKeyPair(crypto), crypto),
  random: webCryptoRandom(crypto),
  hmac: webCryptoHmac(crypto),
  crypto,
});
const peculiar = new PeculiarCrypto() as Crypto;

portableSuite('WebCrypto of Node', on(globalThis.crypto));
portableSuite('an injected WebCrypto', on(peculiar));

it('the injected one is really another', async () => {
  const { privateKey } = await generateKeyPair(peculiar);
  await expect(crypto.subtle.sign({ name: 'ECDSA', hash: 'SHA-256' }, privateKey, new Uint8Array(1))).rejects.toThrow(TypeError);
});
