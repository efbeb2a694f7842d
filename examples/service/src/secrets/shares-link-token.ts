/**
 * The token of a one-time link: 256 random bits, and a prefix that says whether a passphrase is asked for, so that the page which
 * opens it knows without asking the service. Only a keyed hash of the token is ever kept.
 */
import { randomBytes } from 'node:crypto';
import type { KeyedHash } from '../keys/hierarchy.ts';

const TOKEN_BYTES = 32;
const PLAIN_PREFIX = 'kgl_';
const PASSPHRASE_PREFIX = 'kgp_';
const TOKEN = /^kg[lp]_[A-Za-z0-9_-]{43}$/;

/** A new token. Secret. */
export function generateLinkToken({ asksForPassphrase }: { readonly asksForPassphrase: boolean }): string {
  return (asksForPassphrase ? PASSPHRASE_PREFIX : PLAIN_PREFIX) + randomBytes(TOKEN_BYTES).toString('base64url');
}

/** By what a link is found, or `null` for a text (untrusted) that never was a token. */
export function hashLinkToken(hashToken: KeyedHash, token: string): string | null {
  return TOKEN.test(token) ? hashToken(`share-link\0${token}`) : null;
}

/** The address that a person is sent. What stands behind `#` never leaves the browser by itself: no log, preview or Referer has it. */
export function linkUrl(origin: string, token: string): string {
  return `${origin}/s#${token}`;
}
