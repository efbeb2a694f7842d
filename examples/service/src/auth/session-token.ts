/**
 * The token of a session says whose it is and which, under a key that is not in the database. Alone it opens nothing, only its signed form
 * does; and signed it opens nothing as somebody else, or with the proofs of another session, whatever a writer of the database has made of
 * the session's row.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { KeyedHash } from '../keys/hierarchy.ts';

const RANDOM_BYTES = 24;
const RANDOM_CHARACTERS = 32;

interface Owned {
  readonly sessionId: string;
  readonly userId: string;
}

function tokenOf(random: string, { sessionId, userId }: Owned, hash: KeyedHash): string {
  return random + hash(`session-token\0${random}\0${sessionId}\0${userId}`);
}

export function newSessionToken(session: Owned, hash: KeyedHash): string {
  return tokenOf(randomBytes(RANDOM_BYTES).toString('base64url'), session, hash);
}

/** Whether `token`, as it is stored, was made for this session of this person. */
export function isSessionTokenOf(session: Owned, token: string, hash: KeyedHash): boolean {
  const [given, due] = [Buffer.from(token), Buffer.from(tokenOf(token.slice(0, RANDOM_CHARACTERS), session, hash))];
  return given.length === due.length && timingSafeEqual(given, due);
}
