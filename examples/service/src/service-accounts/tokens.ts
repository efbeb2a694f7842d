/**
 * The tokens of service accounts: `kgsa_<prefix>_<secret>`. The prefix finds the row and is no secret; the secret has 256 random
 * bits, and only a keyed hash of the whole token is kept.
 */
import { randomBytes, randomInt, timingSafeEqual } from 'node:crypto';
import type { KeyedHash } from '../keys/hierarchy.ts';

const PREFIX_CHARACTERS = 'abcdefghijklmnopqrstuvwxyz0123456789';
const PREFIX_LENGTH = 12;
const SECRET_BYTES = 32;
const TOKEN = /^kgsa_([a-z0-9]{12})_[A-Za-z0-9_-]{43}$/;

export interface Token {
  readonly prefix: string;
  /** Secret; shown once. */
  readonly text: string;
}

export function generateToken(): Token {
  const prefix = Array.from({ length: PREFIX_LENGTH }, () => PREFIX_CHARACTERS[randomInt(PREFIX_CHARACTERS.length)]).join('');
  return { prefix, text: `kgsa_${prefix}_${randomBytes(SECRET_BYTES).toString('base64url')}` };
}

/** Whether a bearer (untrusted) claims to be one of these. */
export function isServiceAccountToken(bearer: string): boolean {
  return bearer.startsWith('kgsa_');
}

/** The prefix of what has the form of a token, or `null`. */
export function prefixOf(bearer: string): string | null {
  return TOKEN.exec(bearer)?.[1] ?? null;
}

export function hashOf(hashToken: KeyedHash, token: string): string {
  return hashToken(`service-account\0${token}`);
}

/** In constant time. */
export function isSameHash(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)];
  return left.length === right.length && timingSafeEqual(left, right);
}
