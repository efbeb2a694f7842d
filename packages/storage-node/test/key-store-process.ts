/** One of several processes that race for keys: waits for the word, then asks for each name and says what it got. */
import { writeSync } from 'node:fs';
import { once } from 'node:events';
import { fileKeyStore, type FileKeyStoreOptions } from '@keyguard/storage-node/file';

const { options, names } = JSON.parse(process.argv[2]!) as { options: FileKeyStoreOptions; names: string[] };
const store = fileKeyStore(options);
writeSync(1, 'ready\n');
await once(process.stdin, 'data');
for (const name of names) {
  try {
    const { keyId } = await store.getOrCreate(name);
    // Synchronously: what was said was acknowledged, whatever happens to this process next.
    writeSync(1, `key ${name} ${keyId}\n`);
  } catch (error) {
    const { code, message } = error as Error & { code?: string };
    writeSync(1, `refused ${code} ${message}\n`);
  }
}
process.exit(0);
