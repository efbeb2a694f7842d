/**
 * The token of a session says whose it is, under a key that is not in the database. Alone it opens nothing, only its signed form does; and
 * signed it opens nothing as somebody else, to whom a writer of the database has given the session's row.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { KeyedHash } from '../keys/hierarchy.ts';

const RANDOM_BYTES = 24;
const RANDOM_CHARACTERS = 32;

function tokenOf(random: string, userId: string, hash: KeyedHash): string {
  return random + hash(`session-token\0${random}\0${userId}`);
}

export function newSessionToken(userId: string, hash: KeyedHash): string {
  return tokenOf(randomBytes(RANDOM_BYTES).toString('base64url'), userId, hash);
}

/** Whether `token`, as it is stored, was made for a session of this person. */
export function isSessionTokenOf(userId: string, token: string, hash: KeyedHash): boolean {
  const [given, due] = [Buffer.from(token), Buffer.from(tokenOf(token.slice(0, RANDOM_CHARACTERS), userId, hash))];
  return given.length === due.length && timingSafeEqual(given, due);
}
