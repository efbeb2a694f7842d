/**
 * Enrollment codes: with one a new device comes in. Shown once to a person; only the hash is ever kept.
 */
import type { Random } from '@keyguard/core/seams';
import { generateCode, hashCode } from './one-time-code.ts';

/** A new code, for instance `7K3QF-0MZ8T-…`: six groups, read aloud or typed without mistakes. */
export function generateEnrollmentCode(random: Random): string {
  return generateCode(random);
}

/**
 * The hash under which a code (untrusted) is kept, as base64url; `null` for what cannot be a code. Case, spaces and hyphens do
 * not matter, and O, I and L are read as 0, 1 and 1.
 */
export function hashEnrollmentCode(code: string): string | null {
  return hashCode(code, 'keyguard-enrollment-code-v1');
}
