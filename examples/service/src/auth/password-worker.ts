/** A thread that derives keys of passwords for `passwords.ts`, one at a time, and leaves the processor to whatever else wants it. */
import { scryptSync } from 'node:crypto';
import { setPriority } from 'node:os';
import { parentPort } from 'node:worker_threads';

const NICENESS = 10;

export interface Derivation {
  /** Secret. */
  readonly password: string;
  readonly salt: string;
  readonly lengthBytes: number;
  readonly cost: { readonly N: number; readonly r: number; readonly p: number; readonly maxmem: number };
}

// On Linux a thread has a priority of its own; elsewhere this would be the priority of the whole process.
if (process.platform === 'linux') {
  try {
    setPriority(0, NICENESS);
  } catch {
    // Where that is forbidden, derivations are as important as calls.
  }
}

parentPort?.on('message', ({ password, salt, lengthBytes, cost }: Derivation) => {
  // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread has no origin
  parentPort!.postMessage(new Uint8Array(scryptSync(password, salt, lengthBytes, cost)));
});
