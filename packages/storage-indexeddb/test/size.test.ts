import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';
import { expect, it } from 'vitest';

const CLIENT = `export { KeyGuardClient } from '@keyguard/core';`;
const STORE = `export { indexedDbKeyStore } from '@keyguard/storage-indexeddb';`;

async function shippedBytes(contents: string): Promise<number> {
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: import.meta.dirname, loader: 'js' },
    bundle: true,
    minify: true,
    write: false,
    format: 'esm',
    platform: 'browser',
    target: 'es2022',
    conditions: ['@keyguard/source'],
  });
  return gzipSync(outputFiles[0]!.contents, { level: 9 }).length;
}

it('adds at most 2 kB, minified and compressed, to a page that has the client', async () => {
  const [client, both] = await Promise.all([shippedBytes(CLIENT), shippedBytes(CLIENT + STORE)]);
  expect(both).toBeGreaterThan(client);
  expect(both - client).toBeLessThanOrEqual(2000);
});
