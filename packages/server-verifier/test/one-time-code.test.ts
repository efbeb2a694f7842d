import { expect, it } from 'vitest';
import { webCryptoRandom } from '@keyguard/core/system';
import { generateEnrollmentCode, generateRotationCode, hashEnrollmentCode, hashRotationCode } from '@keyguard/server-verifier';

it.each([['enrollment', generateEnrollmentCode], ['rotation', generateRotationCode]] as const)('makes %s codes of 26 Crockford characters, uniformly', (_, generate) => {
  const seen = new Map<string, number>();
  for (let i = 0; i < 4000; i += 1) {
    const code = generate(webCryptoRandom());
    expect(code).toMatch(/^(?:[0-9A-HJKMNP-TV-Z]{5}-){5}[0-9A-HJKMNP-TV-Z]$/);
    for (const character of code.replaceAll('-', '')) seen.set(character, (seen.get(character) ?? 0) + 1);
  }
  expect(seen.size).toBe(32);
  const expected = (4000 * 26) / 32;
  for (const count of seen.values()) expect(Math.abs(count - expected)).toBeLessThan(expected * 0.12);
});

it.each([['enrollment', hashEnrollmentCode], ['rotation', hashRotationCode]] as const)('reads a code (%s) as people type it, and nothing else', (_, hash) => {
  const code = '01234-56789-ABCDE-FGHJK-MNPQR-S';
  const hashed = hash(code);
  expect(hashed).toMatch(/^[A-Za-z0-9_-]{43}$/);
  for (const typed of [code.toLowerCase(), code.replaceAll('-', ' '), code.replaceAll('-', ''), code.replace('0', 'o').replace('1', 'L'), code.replace('1', 'i')]) {
    expect(hash(typed)).toBe(hashed);
  }
  for (const odd of ['', code.slice(1), `${code}0`, code.replace('1', 'U'), code.replace('1', 'ı'), code.replace('0', '０'), `${code}\n`, `${code}${' '.repeat(60)}`]) {
    expect(hash(odd)).toBeNull();
  }
});

it('keeps codes for enrollment and for rotation apart by their hashes', () => {
  const code = '7K3QF-0MZ8T-4V2XN-9RBCD-HE6JP-S';
  expect(hashEnrollmentCode(code)).toBe('edYXl_YjI47WjeXBzto44dqpWZPv1P7dKqVSha1wi0A');
  expect(hashRotationCode(code)).toBe('zTv4hg_T5TX5ebP2QvWtcH_WRuSrZ82AUzoLOIP9qJw');
});
