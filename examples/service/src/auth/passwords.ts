/**
 * Hashing of people's passwords (scrypt, by better-auth), a few at a time: a burst of sign-ins must not hold every thread of the
 * process, and what waits too long in line is refused.
 */
import { hashPassword, verifyPassword } from 'better-auth/crypto';
import { UnavailableError } from '@keyguard/core/errors';

const AT_A_TIME = 2;
const MAX_WAITING = 32;

let running = 0;
const waiting: (() => void)[] = [];

async function inTurn<T>(work: () => Promise<T>): Promise<T> {
  if (running >= AT_A_TIME) {
    if (waiting.length >= MAX_WAITING) throw new UnavailableError('password_hash', 'Too many passwords wait to be checked.', { code: 'overloaded' });
    // Whoever ends hands its place over, so `running` stays as it is.
    await new Promise<void>((resolve) => waiting.push(resolve));
  } else running += 1;
  try {
    return await work();
  } finally {
    const next = waiting.shift();
    if (next === undefined) running -= 1;
    else next();
  }
}

/** @param password secret */
export function hash(password: string): Promise<string> {
  return inTurn(() => hashPassword(password));
}

/** @param password secret, untrusted */
export function verify(given: { readonly hash: string; readonly password: string }): Promise<boolean> {
  return inTurn(() => verifyPassword(given));
}
