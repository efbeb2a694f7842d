/**
 * Rotation codes: with one a device replaces its key, once. They read like enrollment codes, and neither passes for the other.
 * Shown once to the owner of the device; only the hash is ever kept.
 */
import type { Random } from '@keyguard/core/seams';
import { generateCode, hashCode } from './one-time-code.ts';

/** A new code, for instance `7K3QF-0MZ8T-…`: six groups, read aloud or typed without mistakes. */
export function generateRotationCode(random: Random): string {
  return generateCode(random);
}

/**
 * The hash under which a code (untrusted) is kept, as base64url; `null` for what cannot be a code. It is read as an enrollment
 * code is, and hashed under a label of its own.
 */
export function hashRotationCode(code: string): string | null {
  return hashCode(code, 'keyguard-rotation-code-v1');
}
