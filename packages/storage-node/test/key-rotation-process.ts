/**
 * A process that replaces keys, over and over, and says each step once it is acknowledged. It may be told to end by SIGKILL
 * right before its n-th call of the file system, or that call may fail, so that a test can stop it at every step there is.
 */
import fs, { writeSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { fileKeyStore, type FileKeyStoreOptions } from '@keyguard/storage-node/file';

export interface RotationOrders {
  readonly options: FileKeyStoreOptions;
  readonly name: string;
  readonly rounds: number;
  readonly settle: 'promote' | 'discard';
  /**
   * What befalls which call of the file system, counted from 1: it fails; or the process dies right before it, where only those
   * calls count that change what is on the disk.
   */
  readonly fault: { readonly call: number; readonly kind: 'die' | 'fail' } | null;
}

// Synchronously: what was said was acknowledged, whatever happens to this process next.
const say = (line: string): void => void writeSync(1, `${line}\n`);

const { options, name, rounds, settle, fault } = JSON.parse(process.argv[2]!) as RotationOrders;
const store = fileKeyStore(options);
if (fault !== null) disturb(fault);
say('ready');
try {
  for (let round = 0; round < rounds; round += 1) {
    const { keyId } = await store.getOrCreatePending(name);
    say(`pending ${keyId}`);
    say(`${(await store[settle](name, keyId)) ? 'settled' : 'lost'} ${keyId}`);
  }
  say('done');
} catch (error) {
  say(`failed ${(error as { code?: string }).code}`);
}
process.exit(0);

function disturb({ call, kind }: { call: number; kind: 'die' | 'fail' }): void {
  const { promises } = fs as unknown as { promises: Record<string, (...parameters: unknown[]) => unknown> };
  let calls = 0;
  for (const verb of ['link', 'open', 'readdir', 'rename', 'stat', 'unlink']) {
    const original = promises[verb]!;
    promises[verb] = (...parameters: unknown[]) => {
      const isRead = ['readdir', 'stat'].includes(verb) || (verb === 'open' && parameters[1] === 'r');
      if (kind === 'die' && isRead) return original(...parameters);
      calls += 1;
      if (calls === call && kind === 'die') process.kill(process.pid, 'SIGKILL');
      if (calls === call) return Promise.reject(Object.assign(new Error('EMFILE'), { code: 'EMFILE', syscall: verb }));
      return original(...parameters);
    };
  }
  syncBuiltinESMExports();
}
