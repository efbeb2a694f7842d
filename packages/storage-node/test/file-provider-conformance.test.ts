/** Key providers on files keep the contract of their seam, on a file system that fails, hangs and is full as well. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { keyProviderConformance } from '@keyguard/conformance';
import { toBase64 } from '@keyguard/core/bytes';
import { hasCode } from '@keyguard/core/errors';
import { passphraseKey } from '@keyguard/core/vault';
import { fileKeyProvider, passphraseKeyProvider } from '@keyguard/storage-node/file';
import { afterAll, beforeAll, vi } from 'vitest';
import { fileFaults } from './file-faults.ts';

vi.mock(import('node:fs/promises'), async (original) => (await import('./file-faults.ts')).overFaults(await original()));

const PASSPHRASE = 'correct horse battery staple';
const isOutage = (error: unknown): boolean => hasCode(error, 'key_store_unusable');

let base: string;
let counter = 0;

beforeAll(async () => {
  base = await mkdtemp(join(tmpdir(), 'keyguard-provider-'));
});
afterAll(() => rm(base, { recursive: true, force: true }));

function newPath(): string {
  counter += 1;
  return join(base, `key-${counter}`);
}

keyProviderConformance('fileKeyProvider', {
  faults: fileFaults,
  isOutage,
  place: () => {
    const path = newPath();
    return () => fileKeyProvider({ path });
  },
});

keyProviderConformance('passphraseKeyProvider', {
  faults: fileFaults,
  isOutage,
  // With a salt file of the fewest iterations that there may be: whoever opens it derives.
  place: async () => {
    const path = newPath();
    const kekId = `passphrase-${counter}`;
    const { header } = await passphraseKey(PASSPHRASE, { kekId, iterations: 100_000 });
    await writeFile(path, JSON.stringify({ format: 'keyguard-passphrase-v1', kekId, header: toBase64(header) }), { mode: 0o600 });
    return () => passphraseKeyProvider({ path, passphrase: PASSPHRASE });
  },
});
