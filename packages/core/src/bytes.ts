/**
 * Bytes and text: UTF-8, strict base64 and base64url, concatenation, comparison.
 *
 * The decoders accept exactly the canonical text of a byte string and nothing else (no white space, no other alphabet, no
 * missing or extra padding, no stray trailing bits), because a second spelling of one value is a way around a check.
 *
 * @see RFC 4648 sections 3.5, 4 and 5
 */
import type { Bytes } from './seams.ts';

const NOT_ASCII = ~127;
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const BASE64URL = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';

// Up to this length a loop takes a third of the time that the way to the encoder and back takes.
const SHORT_TEXT = 64;

/** UTF-8 bytes of `text`. Lone surrogates become U+FFFD: check first where that matters. */
export function utf8(text: string): Bytes {
  if (text.length > SHORT_TEXT) return encoder.encode(text) as Bytes;
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) {
    const code = text.charCodeAt(i);
    if ((code & NOT_ASCII) !== 0) return encoder.encode(text) as Bytes;
    bytes[i] = code;
  }
  return bytes;
}

/**
 * The text whose UTF-8 is `bytes` (untrusted), byte for byte: a byte-order mark is kept.
 * @throws TypeError when `bytes` are not UTF-8
 */
export function fromUtf8(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

/** All `parts` one after the other, in a new array. */
export function concat(...parts: readonly Uint8Array[]): Bytes {
  let length = 0;
  for (const part of parts) length += part.length;
  const joined = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

/** Whether two byte strings are equal, in a time that depends on their lengths only. */
export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  let difference = 0;
  for (let i = 0; i < a.length; i += 1) difference |= a[i]! ^ b[i]!;
  return difference === 0;
}

/** `value` as four bytes, most significant first. `value` is an integer from 0 to 2³² − 1. */
export function u32(value: number): Bytes {
  return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
}

function encode(bytes: Uint8Array, alphabet: string, padded: boolean): string {
  const whole = bytes.length - (bytes.length % 3);
  let text = '';
  for (let i = 0; i < whole; i += 3) {
    const n = (bytes[i]! << 16) | (bytes[i + 1]! << 8) | bytes[i + 2]!;
    text += alphabet[n >> 18]! + alphabet[(n >> 12) & 63]! + alphabet[(n >> 6) & 63]! + alphabet[n & 63]!;
  }
  if (bytes.length - whole === 1) {
    const n = bytes[whole]!;
    text += alphabet[n >> 2]! + alphabet[(n << 4) & 63]! + (padded ? '==' : '');
  } else if (bytes.length - whole === 2) {
    const n = (bytes[whole]! << 8) | bytes[whole + 1]!;
    text += alphabet[n >> 10]! + alphabet[(n >> 4) & 63]! + alphabet[(n << 2) & 63]! + (padded ? '=' : '');
  }
  return text;
}

function reverse(alphabet: string): Uint8Array {
  const table = new Uint8Array(128).fill(255);
  for (let i = 0; i < 64; i += 1) table[alphabet.charCodeAt(i)] = i;
  return table;
}

const FROM_BASE64 = /* @__PURE__ */ reverse(BASE64);
const FROM_BASE64URL = /* @__PURE__ */ reverse(BASE64URL);

const ZERO_BITS = 65; // 'A', in both alphabets.
const NOT_SIX_BITS = ~63;

function decode(text: string, table: Uint8Array, padded: boolean): Bytes | null {
  let end = text.length;
  if (padded) {
    if (end % 4 !== 0) return null;
    if (text.endsWith('==')) end -= 2;
    else if (text.endsWith('=')) end -= 1;
  }
  const rest = end % 4;
  if (rest === 1) return null;
  const bytes = new Uint8Array((end * 3) >> 2);
  let at = 0;
  // Four characters at a time; in the last four, what is not there counts as zero bits.
  for (let i = 0; i < end; i += 4) {
    const whole = i + 4 <= end;
    const c0 = text.charCodeAt(i);
    const c1 = text.charCodeAt(i + 1);
    const c2 = whole || rest === 3 ? text.charCodeAt(i + 2) : ZERO_BITS;
    const c3 = whole ? text.charCodeAt(i + 3) : ZERO_BITS;
    if (((c0 | c1 | c2 | c3) & NOT_ASCII) !== 0) return null;
    const v0 = table[c0]!;
    const v1 = table[c1]!;
    const v2 = table[c2]!;
    const v3 = table[c3]!;
    if (((v0 | v1 | v2 | v3) & NOT_SIX_BITS) !== 0) return null;
    // Writing past the end does nothing: that is where the last bits, if they are not zero, would have gone.
    bytes[at] = (v0 << 2) | (v1 >> 4);
    bytes[at + 1] = (v1 << 4) | (v2 >> 2);
    bytes[at + 2] = (v2 << 6) | v3;
    at += 3;
    // The bits that belong to no byte must be zero, or one byte string would have several texts.
    if (!whole && ((rest === 2 ? v1 & 15 : v2 & 3) !== 0)) return null;
  }
  return bytes;
}

/** RFC 4648 section 4, with padding. */
export function toBase64(bytes: Uint8Array): string {
  return encode(bytes, BASE64, true);
}

/** The inverse of {@link toBase64}; `null` for any text (untrusted) that it would not have written. */
export function fromBase64(text: string): Bytes | null {
  return decode(text, FROM_BASE64, true);
}

/** RFC 4648 section 5, without padding. */
export function toBase64Url(bytes: Uint8Array): string {
  return encode(bytes, BASE64URL, false);
}

/** The inverse of {@link toBase64Url}; `null` for any text (untrusted) that it would not have written. */
export function fromBase64Url(text: string): Bytes | null {
  return decode(text, FROM_BASE64URL, false);
}
