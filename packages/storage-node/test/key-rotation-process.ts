/**
 * A process that replaces keys, over and over, and says each step once it is acknowledged. It may be told to end by SIGKILL
 * right before its n-th call of the file system, so that a test can stop it at every step there is.
 */
import fs, { writeSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { fileKeyStore, type FileKeyStoreOptions } from '@keyguard/storage-node/file';

export interface RotationOrders {
  readonly options: FileKeyStoreOptions;
  readonly name: string;
  readonly rounds: number;
  readonly settle: 'promote' | 'discard';
  /** Before which call of the file system to die; `null` for none. Counted from 1. */
  readonly dieBeforeCall: number | null;
}

// Synchronously: what was said was acknowledged, whatever happens to this process next.
const say = (line: string): void => void writeSync(1, `${line}\n`);

const { options, name, rounds, settle, dieBeforeCall } = JSON.parse(process.argv[2]!) as RotationOrders;
const store = fileKeyStore(options);
if (dieBeforeCall !== null) dieAt(dieBeforeCall);
say('ready');
for (let round = 0; round < rounds; round += 1) {
  const { keyId } = await store.getOrCreatePending(name);
  say(`pending ${keyId}`);
  say(`${(await store[settle](name, keyId)) ? 'settled' : 'lost'} ${keyId}`);
}
say('done');
process.exit(0);

function dieAt(call: number): void {
  const { promises } = fs as unknown as { promises: Record<string, (...parameters: unknown[]) => unknown> };
  let calls = 0;
  for (const verb of ['link', 'open', 'readdir', 'rename', 'stat', 'unlink']) {
    const original = promises[verb]!;
    promises[verb] = (...parameters: unknown[]) => {
      calls += 1;
      if (calls === call) process.kill(process.pid, 'SIGKILL');
      return original(...parameters);
    };
  }
  syncBuiltinESMExports();
}
