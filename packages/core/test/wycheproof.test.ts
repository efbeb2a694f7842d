/**
 * Wycheproof's cases through the functions by which vault and audit chain use these algorithms, on every WebCrypto at hand.
 *
 * The seam: `algorithms.ts`, which is all that vault and key providers know of HKDF and PBKDF2 and their default for everything
 * else, and which the package does not export; and the public `webCryptoMacKey`. AES-GCM is in `vault-primitives.ts`. What is outside our formats must be refused, at a public door where there is one.
 * ECDSA is judged by the portable suite.
 */
import { Crypto as PeculiarCrypto } from '@peculiar/webcrypto';
import { describe, expect, it } from 'vitest';
import { hkdfBytes, pbkdf2, webCryptoVaultPrimitives } from '../src/algorithms.ts';
import { webCryptoMacKey } from '../src/audit.ts';
import { concat, equalBytes, u32 } from '../src/bytes.ts';
import { passphraseKey } from '../src/vault.ts';
import aesGcm from '../../../vectors/wycheproof/aes_gcm_test.json' with { type: 'json' };
import hkdfSha256 from '../../../vectors/wycheproof/hkdf_sha256_test.json' with { type: 'json' };
import hmacSha256 from '../../../vectors/wycheproof/hmac_sha256_test.json' with { type: 'json' };
import pbkdf2Sha256 from '../../../vectors/wycheproof/pbkdf2_hmacsha256_test.json' with { type: 'json' };
import { fromHex, toHex } from './portable.ts';
import { vaultPrimitivesSuite } from './vault-primitives.ts';

const usage = { name: 'UsageError', code: 'invalid_option' };
const doesNotOpen = { name: 'RejectedError', code: 'vault_open_failed' };

const platforms = [
  ['WebCrypto of Node', globalThis.crypto],
  ['an injected WebCrypto', new PeculiarCrypto() as Crypto],
] as const;

for (const [name, crypto] of platforms) vaultPrimitivesSuite(name, webCryptoVaultPrimitives(crypto));

describe.each(platforms)('Wycheproof on %s', (_, crypto) => {
  const { subtle } = crypto;

  it('HMAC-SHA-256: 162 cases with keys of 32 bytes as they should be, 12 with others refused', async () => {
    let judged = 0;
    let refused = 0;
    for (const { keySize, tests } of hmacSha256.testGroups) {
      for (const { tcId, key, msg, tag, result } of tests) {
        const at = `tcId ${tcId}`;
        if (keySize !== 256) {
          await expect(webCryptoMacKey({ keyId: 'k', key: fromHex(key), crypto }), at).rejects.toMatchObject(usage);
          refused += 1;
          continue;
        }
        const { mac } = await webCryptoMacKey({ keyId: 'k', key: fromHex(key), crypto });
        const computed = await mac(fromHex(msg));
        expect(computed.length).toBe(32);
        // A tag cut to 16 bytes is right in the file, and none to us: we compare all 32.
        expect(equalBytes(computed, fromHex(tag)), at).toBe(result === 'valid' && tag.length === 64);
        if (tag.length === 32) expect(toHex(computed).startsWith(tag), at).toBe(result === 'valid');
        judged += 1;
      }
    }
    expect([judged, refused]).toEqual([162, 12]);
  });

  it('HKDF-SHA-256: 24 cases without a salt as they should be; nothing of ours takes a salt', async () => {
    let judged = 0;
    let salted = 0;
    for (const { tests } of hkdfSha256.testGroups) {
      for (const { tcId, ikm, salt, info, size, okm, result } of tests) {
        const at = `tcId ${tcId}`;
        const secret = await subtle.importKey('raw', fromHex(ikm), 'HKDF', false, ['deriveBits']);
        const ours = toHex(await hkdfBytes(subtle, secret, fromHex(info)));
        // HMAC pads its key with zeros, so these salts are the empty one.
        if (/^(?:00){0,64}$/.test(salt)) {
          expect(result, at).toBe('valid');
          // We always take 32 bytes; a longer or shorter output begins alike.
          expect(ours.slice(0, 2 * size), at).toBe(okm.slice(0, 64));
          judged += 1;
        } else {
          if (result === 'valid') expect(ours.slice(0, 2 * size), at).not.toBe(okm.slice(0, 64));
          salted += 1;
        }
      }
    }
    expect([judged, judged + salted]).toEqual([24, 86]);
  });

  it('PBKDF2-HMAC-SHA-256: 60 cases as they should be, and every one refused as a passphrase header', async () => {
    let judged = 0;
    for (const { tests } of pbkdf2Sha256.testGroups) {
      for (const { tcId, password, salt, iterationCount, dkLen, dk, result } of tests) {
        const at = `tcId ${tcId}`;
        expect(result, at).toBe('valid');
        const ours = toHex(await pbkdf2(subtle, fromHex(password), fromHex(salt), iterationCount));
        expect(ours.slice(0, 2 * dkLen), at).toBe(dk.slice(0, 64));
        // All have fewer iterations than our floor, some a shorter salt too.
        const header = concat(fromHex('4b47500101'), u32(iterationCount), Uint8Array.of(salt.length / 2), fromHex(salt), new Uint8Array(32));
        await expect(passphraseKey('passphrase', { kekId: 'k', header, crypto }), at).rejects.toMatchObject(doesNotOpen);
        judged += 1;
      }
    }
    expect(judged).toBe(pbkdf2Sha256.numberOfTests);
  });

  it('every case of the four files was looked at', () => {
    const all = [aesGcm, hmacSha256, hkdfSha256, pbkdf2Sha256];
    expect(all.map(({ numberOfTests }) => numberOfTests)).toEqual([66 + 250, 162 + 12, 86, 60]);
  });
});
