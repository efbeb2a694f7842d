/**
 * Hashing of people's passwords (scrypt, in the form of better-auth), so that a burst of sign-ins takes neither the threads of the
 * process nor the cores of the machine from those who call: it happens in threads of its own that give way to all others, one core is
 * left to whatever else is asked, and what waits too long in line is refused.
 */
import { once } from 'node:events';
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { UnavailableError } from '@keyguard/core/errors';
import type { Derivation } from './password-worker.ts';
import { turns } from './turns.ts';

const SEAM = 'password_hash';
const SALT_BYTES = 16;
const KEY_BYTES = 64;
const [N, r] = [16_384, 16];
const COST: Derivation['cost'] = { N, r, p: 1, maxmem: 2 * 128 * N * r };
// Each takes 32 MiB and a core.
const MOST_AT_A_TIME = 2;

const inTurn = turns({
  atATime: Math.max(1, Math.min(MOST_AT_A_TIME, availableParallelism() - 1)),
  maxWaiting: 32,
  refusal: () => new UnavailableError(SEAM, 'Too many passwords wait to be checked.', { code: 'overloaded' }),
});

/** Threads without work; they do not keep the process alive. */
const idle: Worker[] = [];

function newThread(): Worker {
  const thread = new Worker(new URL('./password-worker.ts', import.meta.url));
  // What is wrong with one is told to whoever waits for it.
  thread.on('error', () => {});
  thread.once('exit', () => {
    const at = idle.indexOf(thread);
    if (at >= 0) idle.splice(at, 1);
  });
  return thread;
}

async function derive(password: string, salt: string): Promise<Uint8Array> {
  const thread = idle.pop() ?? newThread();
  const over = new AbortController();
  const { signal } = over;
  thread.ref();
  try {
    const order: Derivation = { password: password.normalize('NFKC'), salt, lengthBytes: KEY_BYTES, cost: COST };
    const ended = once(thread, 'exit', { signal }).then((): never => {
      throw new Error('The thread ended.');
    });
    const answered = once(thread, 'message', { signal });
    // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread has no origin
    thread.postMessage(order);
    const [key] = (await Promise.race([answered, ended])) as [Uint8Array];
    thread.unref();
    idle.push(thread);
    return key;
  } catch (cause) {
    void thread.terminate();
    throw new UnavailableError(SEAM, 'A password could not be checked.', { cause });
  } finally {
    over.abort();
  }
}

/** @param password secret */
export function hash(password: string): Promise<string> {
  return inTurn(async () => {
    const salt = randomBytes(SALT_BYTES).toString('hex');
    return `${salt}:${Buffer.from(await derive(password, salt)).toString('hex')}`;
  });
}

/** @param password secret, untrusted */
export function verify({ hash: stored, password }: { readonly hash: string; readonly password: string }): Promise<boolean> {
  return inTurn(async () => {
    const [salt = '', hex = ''] = stored.split(':');
    const kept = Buffer.from(hex, 'hex');
    const key = await derive(password, salt);
    return salt !== '' && kept.length === KEY_BYTES && timingSafeEqual(kept, key);
  });
}
