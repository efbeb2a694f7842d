/** Core in a real browser, on its WebCrypto. */
import { generateKeyPair, signingKey, webCryptoPrimitives, webCryptoRandom } from '@keyguard/core';
import { webCryptoHmac } from '@keyguard/core/fingerprint';
import { portableSuite } from './portable.ts';

portableSuite('Chromium', {
  primitives: webCryptoPrimitives(),
  newKey: async () => signingKey(await generateKeyPair()),
  random: webCryptoRandom(),
  hmac: webCryptoHmac(),
  crypto,
});
