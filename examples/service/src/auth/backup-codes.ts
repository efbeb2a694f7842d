/** Backup codes: ten of fifty bits each, typed without mistakes, kept as keyed hashes. */
import { randomBytes } from 'node:crypto';
import type { KeyedHash } from '../keys/hierarchy.ts';

const COUNT = 10;
const CHARACTERS = 10;
const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

export function newBackupCodes(): readonly string[] {
  return Array.from({ length: COUNT }, () => {
    const text = [...randomBytes(CHARACTERS)].map((byte) => ALPHABET[byte & 31]!).join('');
    return `${text.slice(0, 5)}-${text.slice(5)}`;
  });
}

/** The hash under which a code (untrusted) of this factor is kept; `null` for what cannot be one. */
export function hashOfBackupCode(code: string, factorId: string, hash: KeyedHash): string | null {
  const text = code.toUpperCase().replaceAll(/[\s-]/g, '').replaceAll('O', '0').replaceAll(/[IL]/g, '1');
  return /^[0-9A-HJKMNP-TV-Z]{10}$/.test(text) ? hash(`backup-code\0${factorId}\0${text}`) : null;
}
