/**
 * What every implementation of `VaultPrimitives` must keep: Wycheproof's cases, an independent judge on node:crypto, and the words
 * of the interface on arrays that are handed in and out.
 *
 * A file that hands in an implementation is next to the package that owns it.
 */
import { createHmac, hkdfSync, randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import type { Bytes, VaultCiphertext, VaultPrimitives } from '@keyguard/core/seams';
import aesGcm from '../../../vectors/wycheproof/aes_gcm_test.json' with { type: 'json' };
import hkdfSha256 from '../../../vectors/wycheproof/hkdf_sha256_test.json' with { type: 'json' };
import { fromHex, toHex } from './portable.ts';
import * as judge from './vault-judge.ts';

const usage = { name: 'UsageError', code: 'invalid_option' };
const random = (lengthBytes: number): Bytes => new Uint8Array(randomBytes(lengthBytes));
const joined = ({ ciphertext, tag }: VaultCiphertext): string => toHex(ciphertext) + toHex(tag);
// An implementation may answer at once or later, and throw at once or later.
const later = async <T>(call: () => T | Promise<T>): Promise<T> => call();

export function vaultPrimitivesSuite(name: string, primitives: VaultPrimitives): void {
  describe(`the algorithms of the vault on ${name}`, () => {
    it('AES-GCM: 66 Wycheproof cases with our sizes as they should be, 250 with others refused', async () => {
      let judged = 0;
      let refused = 0;
      for (const { keySize, ivSize, tagSize, tests } of aesGcm.testGroups) {
        expect(tagSize).toBe(128);
        for (const { tcId, key, iv, aad, msg, ct, tag, result } of tests) {
          const at = `tcId ${tcId}`;
          if (keySize !== 256) {
            await expect(later(() => primitives.importAesKey(fromHex(key))), at).rejects.toMatchObject(usage);
            refused += 1;
            continue;
          }
          const imported = await primitives.importAesKey(fromHex(key));
          const encrypt = (): Promise<VaultCiphertext> => later(() => primitives.encrypt(imported, fromHex(iv), fromHex(aad), fromHex(msg)));
          const decrypt = (encrypted: string): Promise<Bytes> => later(() => primitives.decrypt(imported, fromHex(iv), fromHex(aad), fromHex(encrypted)));
          if (ivSize !== 96) {
            await expect(decrypt(ct + tag), at).rejects.toMatchObject(usage);
            await expect(encrypt(), at).rejects.toMatchObject(usage);
            refused += 1;
            continue;
          }
          if (result === 'valid') {
            expect(toHex(await decrypt(ct + tag)), at).toBe(msg);
            const encrypted = await encrypt();
            expect([toHex(encrypted.ciphertext), toHex(encrypted.tag)], at).toEqual([ct, tag]);
            // A tag of 4, 8, 12 or 15 bytes is what other interfaces take for a shorter one.
            for (const bytes of [4, 8, 12, 15]) await expect(decrypt(ct + tag.slice(0, 2 * bytes)), at).rejects.toThrow(Error);
          } else {
            await expect(decrypt(ct + tag), at).rejects.toThrow(Error);
          }
          judged += 1;
        }
      }
      expect([judged, refused]).toEqual([66, 250]);
    });

    it('HKDF-SHA-256 and HMAC: the keys are those of the 24 Wycheproof cases without a salt', async () => {
      let judged = 0;
      for (const { tests } of hkdfSha256.testGroups) {
        for (const { tcId, ikm, salt, info, size, okm } of tests) {
          // HMAC pads its key with zeros, so these salts are the empty one.
          if (!/^(?:00){0,64}$/.test(salt)) continue;
          const at = `tcId ${tcId}`;
          // We always take 32 bytes; a longer or shorter output begins alike.
          const derived = Buffer.from(hkdfSync('sha256', fromHex(ikm), '', fromHex(info), 32));
          expect(toHex(derived).slice(0, 2 * size), at).toBe(okm.slice(0, 64));
          const other = judge.hkdf(fromHex(ikm), 'other');
          const [iv, aad, data] = [random(12), random(20), random(50)];
          const [one, two] = [
            await primitives.deriveKeys(fromHex(ikm), fromHex(info), new Uint8Array(Buffer.from('other'))),
            await primitives.deriveKeys(fromHex(ikm), new Uint8Array(Buffer.from('other')), fromHex(info)),
          ];
          expect(joined(await primitives.encrypt(one.encryption, iv, aad, data)), at).toBe(toHex(judge.gcmEncrypt(derived, iv, aad, data)));
          expect(joined(await primitives.encrypt(two.encryption, iv, aad, data)), at).toBe(toHex(judge.gcmEncrypt(other, iv, aad, data)));
          expect(toHex(await primitives.hmac(one.commitment, data)), at).toBe(createHmac('sha256', other).update(data).digest('hex'));
          expect(toHex(await primitives.hmac(two.commitment, data)), at).toBe(createHmac('sha256', derived).update(data).digest('hex'));
          judged += 1;
        }
      }
      expect(judged).toBe(24);
    });

    it('SHA-256', async () => {
      expect(toHex(await primitives.sha256(new Uint8Array(Buffer.from('xabcx')).subarray(1, 4)))).toBe(
        'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
      );
    });

    it.each([0, 1, 15, 16, 17, 65_519, 65_536, 65_537, 262_127, 262_128, 262_129, 262_144, 262_145, 1_048_577])(
      'AES-GCM of %d bytes: as an independent implementation has it, and nothing of it can be changed',
      async (lengthBytes) => {
        const [raw, iv, aad, data] = [random(32), random(12), random(99), random(lengthBytes)];
        const key = await primitives.importAesKey(raw);
        const { ciphertext, tag } = await primitives.encrypt(key, iv, aad, data);
        const encrypted: Bytes = new Uint8Array(Buffer.concat([ciphertext, tag]));
        expect(Buffer.compare(encrypted, judge.gcmEncrypt(raw, iv, aad, data))).toBe(0);
        const opened = await primitives.decrypt(key, iv, aad, encrypted);
        expect(Object.getPrototypeOf(opened)).toBe(Uint8Array.prototype);
        expect(Buffer.compare(opened, data)).toBe(0);
        const flipped = (bytes: Bytes, at: number): Bytes => {
          const copy = new Uint8Array(bytes);
          copy[at]! ^= 0x80;
          return copy;
        };
        const wrong: Parameters<VaultPrimitives['decrypt']>[] = [
          [key, iv, aad, flipped(encrypted, 0)],
          [key, iv, aad, flipped(encrypted, encrypted.length - 17 < 0 ? 3 : encrypted.length - 17)],
          [key, iv, aad, flipped(encrypted, encrypted.length - 1)],
          [key, iv, flipped(aad, 98), encrypted],
          [key, flipped(iv, 11), aad, encrypted],
          [await primitives.importAesKey(random(32)), iv, aad, encrypted],
          [key, iv, aad, encrypted.subarray(0, encrypted.length - 1)],
          [key, iv, aad, encrypted.subarray(1)],
          [key, iv, aad, new Uint8Array(0)],
        ];
        for (const parts of wrong) await expect(later(() => primitives.decrypt(...parts))).rejects.toThrow(Error);
        for (const length of [0, 11, 13, 16]) {
          await expect(later(() => primitives.encrypt(key, random(length), aad, data))).rejects.toMatchObject(usage);
          await expect(later(() => primitives.decrypt(key, random(length), aad, encrypted))).rejects.toMatchObject(usage);
        }
      },
    );

    it('changes nothing that it is given, keeps none of it, and answers with memory of its own', async () => {
      for (const lengthBytes of [32, 300_000]) {
        const [secret, raw, label, iv, aad, data] = [random(32), random(32), random(15), random(12), random(40), random(lengthBytes)];
        const given = [secret, raw, label, iv, aad, data];
        const before = given.map((bytes) => toHex(bytes));
        const { encryption, commitment } = await primitives.deriveKeys(secret, label, label);
        const imported = await primitives.importAesKey(raw);
        const encrypted = await primitives.encrypt(encryption, iv, aad, data);
        const wrapped = await primitives.encrypt(imported, iv, aad, data);
        const mac = await primitives.hmac(commitment, data);
        const hash = await primitives.sha256(data);
        expect(given.map((bytes) => toHex(bytes))).toEqual(before);
        const answers = [encrypted.ciphertext, wrapped.ciphertext, mac, hash];
        const texts = answers.map((bytes) => toHex(bytes));

        const [ivAgain, aadAgain, dataAgain] = [iv, aad, data].map((bytes) => new Uint8Array(bytes)) as [Bytes, Bytes, Bytes];
        for (const bytes of given) bytes.fill(0);
        expect(answers.map((bytes) => toHex(bytes))).toEqual(texts);
        for (const bytes of answers) bytes.fill(0);
        const again = [
          (await primitives.encrypt(encryption, ivAgain, aadAgain, dataAgain)).ciphertext,
          (await primitives.encrypt(imported, ivAgain, aadAgain, dataAgain)).ciphertext,
          await primitives.hmac(commitment, dataAgain),
          await primitives.sha256(dataAgain),
        ];
        expect(again.map((bytes) => toHex(bytes))).toEqual(texts);
      }
    });
  });
}
