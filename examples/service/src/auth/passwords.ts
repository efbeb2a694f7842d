/**
 * Hashing of people's passwords (scrypt, by better-auth), so that a burst of sign-ins takes neither every thread of the process nor
 * every core of the machine: one core is left to whatever else is asked, and what waits too long in line is refused.
 */
import { availableParallelism } from 'node:os';
import { hashPassword, verifyPassword } from 'better-auth/crypto';
import { UnavailableError } from '@keyguard/core/errors';
import { turns } from './turns.ts';

// Of the four threads that also read files, look names up and derive keys, half at most.
const MOST_AT_A_TIME = 2;

const inTurn = turns({
  atATime: Math.max(1, Math.min(MOST_AT_A_TIME, availableParallelism() - 1)),
  maxWaiting: 32,
  refusal: () => new UnavailableError('password_hash', 'Too many passwords wait to be checked.', { code: 'overloaded' }),
});

/** @param password secret */
export function hash(password: string): Promise<string> {
  return inTurn(() => hashPassword(password));
}

/** @param password secret, untrusted */
export function verify(given: { readonly hash: string; readonly password: string }): Promise<boolean> {
  return inTurn(() => verifyPassword(given));
}
