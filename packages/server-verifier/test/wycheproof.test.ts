/** Invalid signatures that others have found to pass somewhere, before both ways in which a server checks one. */
import { expect, it } from 'vitest';
import { toBase64Url } from '@keyguard/core/bytes';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import { nodePrimitives } from '@keyguard/server-verifier/node-primitives';
import wycheproof from '../../../vectors/wycheproof/ecdsa_secp256r1_sha256_p1363_test.json' with { type: 'json' };

it('N26 all Wycheproof P1363 cases, through both primitives', async () => {
  let invalid = 0;
  for (const primitives of [webCryptoPrimitives(), nodePrimitives()]) {
    for (const group of wycheproof.testGroups) {
      const point = Buffer.from(group.publicKey.uncompressed, 'hex');
      const [x, y] = [toBase64Url(point.subarray(1, 33)), toBase64Url(point.subarray(33))];
      const imported = await primitives.importPublicKey({ crv: 'P-256', kty: 'EC', x, y });
      for (const { tcId, msg, sig, result } of group.tests) {
        const accepted = await primitives.verify(imported, new Uint8Array(Buffer.from(msg, 'hex')), new Uint8Array(Buffer.from(sig, 'hex')));
        expect({ tcId, accepted }).toEqual({ tcId, accepted: result === 'valid' });
        if (result === 'invalid') invalid += 1;
      }
    }
  }
  expect(invalid).toBe(2 * 89);
});
