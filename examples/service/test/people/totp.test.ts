/** One-time codes against the vectors of RFC 6238, appendix B (SHA-1; its eight digits end in our six), and of RFC 4648. */
import { describe, expect, it } from 'vitest';
import { utf8 } from '@keyguard/core/bytes';
import { acceptedStep, codeOfStep, otpauthUri, stepAt, toBase32 } from '../../src/auth/totp.ts';

const SECRET = utf8('12345678901234567890');

describe('one-time codes', () => {
  it.each([
    [59, '94287082'],
    [1111111109, '07081804'],
    [1111111111, '14050471'],
    [1234567890, '89005924'],
    [2000000000, '69279037'],
    [20000000000, '65353130'],
  ])('are those of RFC 6238 at %d s', (seconds, eightDigits) => {
    expect(codeOfStep(SECRET, stepAt(seconds * 1000))).toBe(eightDigits.slice(2));
  });

  it('are accepted for a step to either side, and not beyond', () => {
    const nowMs = 1_700_000_000_000;
    const step = stepAt(nowMs);
    expect([-2, -1, 0, 1, 2].map((distance) => acceptedStep(SECRET, codeOfStep(SECRET, step + distance), nowMs))).toEqual([null, step - 1, step, step + 1, null]);
    for (const text of ['', '12345', '1234567', '12345a', '１２３４５６', ' 12345']) expect(acceptedStep(SECRET, text, nowMs)).toBeNull();
  });

  it.each([['', ''], ['f', 'MY'], ['fo', 'MZXQ'], ['foo', 'MZXW6'], ['foob', 'MZXW6YQ'], ['fooba', 'MZXW6YTB'], ['foobar', 'MZXW6YTBOI']])('writes %j in base32', (text, expected) => {
    expect(toBase32(utf8(text))).toBe(expected);
  });

  it('names its account in the URI as authenticators read it', () => {
    const uri = new URL(otpauthUri(SECRET, { issuer: 'Key Guard', account: 'a+b@example.com' }));
    expect([uri.protocol, uri.host, decodeURIComponent(uri.pathname)]).toEqual(['otpauth:', 'totp', '/Key Guard:a+b@example.com']);
    expect(Object.fromEntries(uri.searchParams)).toEqual({ secret: toBase32(SECRET), issuer: 'Key Guard', algorithm: 'SHA1', digits: '6', period: '30' });
    expect(uri.search).not.toContain('+');
  });
});
