/**
 * Codes that one person shows and another types: 130 random bits as 26 Crockford base32 characters in groups. What a code is for
 * is in its hash, so a code of one kind never passes for one of another. Nothing here logs or stores.
 *
 * @see https://www.crockford.com/base32.html
 */
import { toBase64Url, utf8 } from '@keyguard/core/bytes';
import type { Random } from '@keyguard/core/seams';
import { hash } from 'node:crypto';

/** What a code may be for: the label under which it is hashed. */
export type CodeLabel = 'keyguard-enrollment-code-v1' | 'keyguard-rotation-code-v1';

const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
const CHARACTERS = 26;
const GROUPS = /.{1,5}/g;
// ASCII before anything else: letters of other scripts must not become ours by upper-casing.
const TYPED = /^[0-9A-Za-z -]{26,64}$/;
const CODE = /^[0-9A-HJKMNP-TV-Z]{26}$/;

/** A new code, for instance `7K3QF-0MZ8T-…`: six groups, read aloud or typed without mistakes. */
export function generateCode(random: Random): string {
  const bytes = random.bytes(CHARACTERS);
  let code = '';
  // 256 is a multiple of 32, so five bits of each byte are uniform.
  for (let i = 0; i < CHARACTERS; i += 1) code += ALPHABET[bytes[i]! & 31];
  return code.match(GROUPS)!.join('-');
}

/**
 * The hash under which a code (untrusted) is kept, as base64url; `null` for what cannot be a code. Case, spaces and hyphens do
 * not matter, and O, I and L are read as 0, 1 and 1.
 */
export function hashCode(code: string, label: CodeLabel): string | null {
  if (!TYPED.test(code)) return null;
  const normalised = code.toUpperCase().replaceAll(/[ -]/g, '').replaceAll('O', '0').replaceAll(/[IL]/g, '1');
  if (!CODE.test(normalised)) return null;
  return toBase64Url(hash('sha256', utf8(`${label}\0${normalised}`), 'buffer'));
}
