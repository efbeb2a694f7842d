import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { concat, equalBytes, fromBase64, fromBase64Url, fromUtf8, toBase64, toBase64Url, u32, utf8 } from '@keyguard/core/bytes';

const bytes = fc.uint8Array({ maxLength: 200 }) as fc.Arbitrary<Uint8Array<ArrayBuffer>>;

describe('UTF-8', () => {
  it('is what Node writes for any text, short or long, and read back', () => {
    const unit = fc.oneof({ weight: 20, arbitrary: fc.constantFrom(...'ABCabc019 \0\x7f'.split('')) }, { weight: 1, arbitrary: fc.constantFrom('\x80', 'é', '€', '\ufeff', '\u{1f511}') });
    fc.assert(
      fc.property(fc.string({ unit, maxLength: 90 }), (text) => {
        expect(utf8(text)).toEqual(new Uint8Array(Buffer.from(text)));
        expect(fromUtf8(utf8(text))).toBe(text);
      }),
      { numRuns: 2000 },
    );
    for (const length of [0, 63, 64, 65]) expect(utf8('a'.repeat(length))).toEqual(new Uint8Array(length).fill(97));
    expect(utf8(`${'a'.repeat(63)}\ud800`)).toEqual(utf8(`${'a'.repeat(63)}\ufffd`));
  });
});

describe('base64 and base64url', () => {
  it('write what Node writes and read it back', () => {
    fc.assert(
      fc.property(bytes, (value) => {
        expect(toBase64(value)).toBe(Buffer.from(value).toString('base64'));
        expect(toBase64Url(value)).toBe(Buffer.from(value).toString('base64url'));
        expect(fromBase64(toBase64(value))).toEqual(value);
        expect(fromBase64Url(toBase64Url(value))).toEqual(value);
      }),
    );
  });

  it('accept one text per byte string: whatever decodes, encodes to the same text', () => {
    const text = fc.string({ unit: fc.constantFrom(...'ABCabc019+/-_= \n'.split('')), maxLength: 12 });
    fc.assert(
      fc.property(text, (candidate) => {
        const plain = fromBase64(candidate);
        if (plain !== null) expect(toBase64(plain)).toBe(candidate);
        const url = fromBase64Url(candidate);
        if (url !== null) expect(toBase64Url(url)).toBe(candidate);
      }),
      { numRuns: 20_000 },
    );
  });

  it.each(['QQ', 'QQ=', 'QR==', 'QQ==\n', ' QQ==', 'QQ===', '====', 'Q===', 'QUI', 'QUJ=', 'Q-==', 'é===', 'QQ==QQ=='])(
    'refuse %j as base64',
    (text) => {
      expect(fromBase64(text)).toBeNull();
    },
  );

  it.each(['QQ==', 'QR', 'Q', 'Q+', 'QQ ', 'QUJ', 'Q\u0100'])('refuse %j as base64url', (text) => {
    expect(fromBase64Url(text)).toBeNull();
  });
});

describe('bytes', () => {
  it('concatenate and compare', () => {
    expect(concat(Uint8Array.of(1), new Uint8Array(0), Uint8Array.of(2, 3))).toEqual(Uint8Array.of(1, 2, 3));
    expect(equalBytes(Uint8Array.of(1, 2), Uint8Array.of(1, 2))).toBe(true);
    expect(equalBytes(Uint8Array.of(1, 2), Uint8Array.of(1, 3))).toBe(false);
    expect(equalBytes(Uint8Array.of(1, 2), Uint8Array.of(1, 2, 0))).toBe(false);
    expect(u32(0xfffefdfc)).toEqual(Uint8Array.of(255, 254, 253, 252));
  });

  it('read UTF-8 exactly: a byte-order mark stays, anything broken is refused', () => {
    expect(fromUtf8(utf8('\uFEFFé'))).toBe('\uFEFFé');
    expect(() => fromUtf8(Uint8Array.of(0xc0, 0xaf))).toThrow(TypeError);
    expect(() => fromUtf8(Uint8Array.of(0xed, 0xa0, 0x80))).toThrow(TypeError);
  });
});
