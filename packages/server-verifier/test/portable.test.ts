/** Core on `node:crypto`, as a server runs it; device keys are WebCrypto's, as a client makes them. */
import { createHmac } from 'node:crypto';
import { generateKeyPair, signingKey, webCryptoRandom } from '@keyguard/core';
import { nodePrimitives } from '@keyguard/server-verifier';
import { portableSuite } from '../../core/test/portable.ts';

portableSuite('node:crypto', {
  primitives: nodePrimitives(),
  newKey: async () => signingKey(await generateKeyPair()),
  random: webCryptoRandom(),
  hmac: (key, data) => new Uint8Array(createHmac('sha256', key).update(data).digest()),
  crypto: null,
});
