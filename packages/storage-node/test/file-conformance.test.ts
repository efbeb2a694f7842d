/** The key store in files keeps the contract of its seam, on a file system that fails, hangs and is full as well. */
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { keyStoreConformance, type OpenKeyStore } from '@keyguard/conformance';
import { toBase64 } from '@keyguard/core/bytes';
import { passphraseKey } from '@keyguard/core/vault';
import { fileKeyStore, type FileKeyStoreOptions } from '@keyguard/storage-node/file';
import { afterAll, beforeAll, vi } from 'vitest';
import { fileFaults } from './file-faults.ts';

vi.mock(import('node:fs/promises'), async (original) => (await import('./file-faults.ts')).overFaults(await original()));

const PASSPHRASE = 'correct horse battery staple';

let base: string;
let counter = 0;

beforeAll(async () => {
  base = await mkdtemp(join(tmpdir(), 'keyguard-file-'));
});
afterAll(() => rm(base, { recursive: true, force: true }));

function newDirectory(): string {
  counter += 1;
  return join(base, `place-${counter}`);
}

/** A folder with the key `a` in it. */
async function withKey(options: Omit<FileKeyStoreOptions, 'directory'> = {}): Promise<string> {
  const directory = newDirectory();
  await fileKeyStore({ directory, ...options }).getOrCreate('a');
  return directory;
}

keyStoreConformance('fileKeyStore under a root key file', {
  timeoutMs: 60_000,
  faults: fileFaults,
  place: () => {
    const directory = newDirectory();
    return () => fileKeyStore({ directory });
  },
  broken: {
    'a folder that others can read': async () => {
      const directory = await withKey();
      await chmod(directory, 0o750);
      return fileKeyStore({ directory });
    },
    'a file in place of the folder': async () => {
      const directory = newDirectory();
      await writeFile(directory, '', { mode: 0o600 });
      return fileKeyStore({ directory });
    },
    'a root key that is lost': async () => {
      const directory = await withKey();
      await rm(join(directory, 'root.key'));
      return fileKeyStore({ directory });
    },
  },
});

/** With a salt file of the fewest iterations that there may be: every store that is opened derives, and there are hundreds. */
async function passphrasePlace(): Promise<OpenKeyStore> {
  const directory = newDirectory();
  await mkdir(directory, { mode: 0o700 });
  const { header } = await passphraseKey(PASSPHRASE, { kekId: 'passphrase-test', iterations: 100_000 });
  const salt = { format: 'keyguard-passphrase-v1', kekId: 'passphrase-test', header: toBase64(header) };
  await writeFile(join(directory, 'passphrase.json'), JSON.stringify(salt), { mode: 0o600 });
  return () => fileKeyStore({ directory, passphrase: PASSPHRASE });
}

keyStoreConformance('fileKeyStore under a passphrase', {
  timeoutMs: 60_000,
  faults: fileFaults,
  place: passphrasePlace,
  broken: {
    'another passphrase': async () => {
      const directory = await withKey({ passphrase: PASSPHRASE });
      return fileKeyStore({ directory, passphrase: 'incorrect horse' });
    },
    'no passphrase any more': async () => {
      const directory = await withKey({ passphrase: PASSPHRASE });
      return fileKeyStore({ directory });
    },
  },
});
