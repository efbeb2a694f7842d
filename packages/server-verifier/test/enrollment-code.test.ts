import { expect, it } from 'vitest';
import { webCryptoRandom } from '@keyguard/core/system';
import { generateEnrollmentCode, hashEnrollmentCode } from '@keyguard/server-verifier';

it('makes codes of 26 Crockford characters, uniformly', () => {
  const seen = new Map<string, number>();
  for (let i = 0; i < 4000; i += 1) {
    const code = generateEnrollmentCode(webCryptoRandom());
    expect(code).toMatch(/^(?:[0-9A-HJKMNP-TV-Z]{5}-){5}[0-9A-HJKMNP-TV-Z]$/);
    for (const character of code.replaceAll('-', '')) seen.set(character, (seen.get(character) ?? 0) + 1);
  }
  expect(seen.size).toBe(32);
  const expected = (4000 * 26) / 32;
  for (const count of seen.values()) expect(Math.abs(count - expected)).toBeLessThan(expected * 0.12);
});

it('reads a code as people type it, and nothing else', () => {
  const code = '01234-56789-ABCDE-FGHJK-MNPQR-S';
  const hash = hashEnrollmentCode(code);
  expect(hash).toMatch(/^[A-Za-z0-9_-]{43}$/);
  for (const typed of [code.toLowerCase(), code.replaceAll('-', ' '), code.replaceAll('-', ''), code.replace('0', 'o').replace('1', 'L'), code.replace('1', 'i')]) {
    expect(hashEnrollmentCode(typed)).toBe(hash);
  }
  for (const odd of ['', code.slice(1), `${code}0`, code.replace('1', 'U'), code.replace('1', 'ı'), code.replace('0', '０'), `${code}\n`, `${code}${' '.repeat(60)}`]) {
    expect(hashEnrollmentCode(odd)).toBeNull();
  }
});
