/** The vault on node:crypto: the same suites as on WebCrypto, and each opens what the other sealed. */
import { randomBytes } from 'node:crypto';
import { keyProviderConformance } from '@keyguard/conformance';
import { expect, test } from 'vitest';
import type { Bytes } from '@keyguard/core/seams';
import { aesKeyProvider, open, seal } from '@keyguard/core/vault';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import { portableVaultSuite } from '../../core/test/portable.ts';
import { vaultPrimitivesSuite } from '../../core/test/vault-primitives.ts';

const primitives = nodeVaultPrimitives();
const place = { deploymentId: 'd', table: 't', row: 'r', column: 'c', version: 7, purpose: 'p' };
const random = (lengthBytes: number): Bytes => new Uint8Array(randomBytes(lengthBytes));

vaultPrimitivesSuite('node:crypto', primitives);
portableVaultSuite('node:crypto', primitives);

keyProviderConformance('aesKeyProvider on node:crypto', {
  substrate: 'memory',
  place: () => {
    const key = random(32);
    return () => aesKeyProvider({ kekId: 'kek', key, primitives });
  },
});

test.each([0, 1024, 65_537, 1_048_576])('%d bytes that were sealed on the one open on the other, also as a Buffer', async (lengthBytes) => {
  const [key, plaintext] = [random(32), random(lengthBytes)];
  const onNode = { keyProvider: await aesKeyProvider({ kekId: 'k', key, primitives }), primitives };
  const onWebCrypto = { keyProvider: await aesKeyProvider({ kekId: 'k', key }) };
  for (const [sealing, opening] of [[onNode, onWebCrypto], [onWebCrypto, onNode], [onNode, onNode]] as const) {
    const sealed = await seal(Buffer.from(plaintext), place, sealing);
    const stored = { ...sealed, ciphertext: Buffer.from(sealed.ciphertext), wrappedDek: Buffer.from(sealed.wrappedDek) };
    expect(Buffer.compare(await open(stored, place, opening), plaintext)).toBe(0);
  }
});

test('short values take no turn of the event loop', async () => {
  const options = { keyProvider: await aesKeyProvider({ kekId: 'k', key: random(32), primitives }), primitives };
  let turned = false;
  setImmediate(() => {
    turned = true;
  });
  for (let i = 0; i < 10; i += 1) await open(await seal(random(1024), place, options), place, options);
  expect(turned).toBe(false);
});

test('long values do: the event loop goes on while they are encrypted', async () => {
  const key = await primitives.importAesKey(random(32));
  expect(primitives.encrypt(key, random(12), random(1), random(1_048_576))).toBeInstanceOf(Promise);
  expect(primitives.encrypt(key, random(12), random(1), random(1024))).not.toBeInstanceOf(Promise);
});
