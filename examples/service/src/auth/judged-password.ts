/**
 * What better-auth compares a password with. It reads the hash itself, and knows nothing of MACs: so it may compare with none but the one
 * that was vouched for, and outside of such a comparison with none at all.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import * as passwords from './passwords.ts';

const vouchedFor = new AsyncLocalStorage<string | null>();

/** `ask`, in which a password is compared with this hash alone; `null` for none. */
export function comparingWith<T>(hash: string | null, ask: () => Promise<T>): Promise<T> {
  return vouchedFor.run(hash, ask);
}

export const judgedPassword = {
  hash: passwords.hash,
  async verify(asked: Parameters<typeof passwords.verify>[0]): Promise<boolean> {
    return vouchedFor.getStore() === asked.hash && passwords.verify(asked);
  },
};
