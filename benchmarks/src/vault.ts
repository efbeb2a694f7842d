/** Sealing and opening one value, against the operations that the format cannot do without, on WebCrypto and on node:crypto. */
import {
  createCipheriv,
  createDecipheriv,
  createHmac,
  createSecretKey,
  hash,
  hkdfSync,
  randomBytes,
  randomFillSync,
  timingSafeEqual,
  type KeyObject,
} from 'node:crypto';
import { utf8 } from '@keyguard/core/bytes';
import type { Bytes, VaultPrimitives } from '@keyguard/core/seams';
import { aesKeyProvider, open, seal, type SealedValue, type VaultPlace } from '@keyguard/core/vault';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import { rowsOf, type Section, type Suite } from './results.ts';
import { pairedMedian, timeInTurn, type Contestant } from './rounds.ts';

const PLACE: VaultPlace = {
  deploymentId: 'Zq0Xw3cVb5nM1lK9jH7gF5dS3aP1oI8u6y4t2r0eW_Q',
  table: 'stored_api_keys',
  row: '3f1c0f3e-6f9e-4d6e-9d27-5f7f6f0a4b11',
  column: 'value',
  version: 1,
  purpose: 'provider-key\nopenai\ndefault',
};
const KEK_ID = 'kek-6f1d2c84-3f0b-4a57-9d68-1f4e2f7c9b10';
const ENCRYPTION_LABEL = utf8('kg-vault-enc-v1');
const COMMITMENT_LABEL = utf8('kg-vault-com-v1');
const NO_SALT = new Uint8Array(0);

/** What the bare operations run on: bytes of the lengths that the format has for the place above, all of them ready. */
interface Material {
  readonly plaintext: Bytes;
  readonly kek: Bytes;
  readonly dek: Bytes;
  readonly iv: Bytes;
  /** AAD of the value. */
  readonly aad: Bytes;
  /** AAD of the wrapped DEK. */
  readonly wrapAad: Bytes;
  /** Header and hash of the AAD. */
  readonly committed: Bytes;
}

const random = (lengthBytes: number): Bytes => randomFillSync(new Uint8Array(lengthBytes));

function materialOf(lengthBytes: number): Material {
  const place = [PLACE.deploymentId, PLACE.table, PLACE.row, PLACE.column, PLACE.purpose].reduce((sum, part) => sum + 4 + part.length, 4 + 8 + 4 + 16);
  const contextBytes = 4 + 'kg-vault-dek-v1'.length + place;
  return {
    plaintext: new Uint8Array(randomBytes(lengthBytes)),
    kek: random(32),
    dek: random(32),
    iv: random(12),
    aad: random(4 + 4 + 4 + 1 + place),
    wrapAad: random(4 + 5 + 4 + KEK_ID.length + 4 + 4 + contextBytes),
    committed: random(33 + 32),
  };
}

/** The two ways of one runtime: the bare operations one after the other, and the vault. */
interface Runtime {
  readonly name: string;
  readonly bareSeal: () => unknown;
  readonly bareOpen: () => unknown;
  readonly primitives: VaultPrimitives | undefined;
}

function nodeRuntime({ plaintext, kek, dek, iv, aad, wrapAad, committed }: Material): Runtime {
  const kekObject = createSecretKey(kek);
  const derive = (base: KeyObject, label: Bytes): KeyObject => createSecretKey(Buffer.from(hkdfSync('sha256', base, NO_SALT, label, 32)));
  const encrypt = (key: KeyObject, data: Bytes, additional: Bytes): readonly [Buffer, Buffer] => {
    const cipher = createCipheriv('aes-256-gcm', key, iv, { authTagLength: 16 }).setAAD(additional);
    const ciphertext = cipher.update(data);
    cipher.final();
    return [ciphertext, cipher.getAuthTag()];
  };
  const decrypt = (key: KeyObject, [ciphertext, tag]: readonly [Buffer, Buffer], additional: Bytes): Buffer => {
    const decipher = createDecipheriv('aes-256-gcm', key, iv, { authTagLength: 16 }).setAAD(additional).setAuthTag(tag);
    const opened = decipher.update(ciphertext);
    decipher.final();
    return opened;
  };
  const base = createSecretKey(dek);
  const sealed = encrypt(derive(base, ENCRYPTION_LABEL), plaintext, aad);
  const wrapped = encrypt(kekObject, dek, wrapAad);
  const commitment = createHmac('sha256', derive(base, COMMITMENT_LABEL)).update(committed).digest();
  return {
    name: 'node:crypto',
    primitives: nodeVaultPrimitives(),
    bareSeal() {
      random(32 + 16 + 12);
      random(12);
      const secret = createSecretKey(dek);
      const encryption = derive(secret, ENCRYPTION_LABEL);
      const commitmentKey = derive(secret, COMMITMENT_LABEL);
      return [
        hash('sha256', aad, 'buffer'),
        createHmac('sha256', commitmentKey).update(committed).digest(),
        encrypt(encryption, plaintext, aad),
        encrypt(kekObject, dek, wrapAad),
      ];
    },
    bareOpen() {
      const secret = createSecretKey(decrypt(kekObject, wrapped, wrapAad));
      const encryption = derive(secret, ENCRYPTION_LABEL);
      const commitmentKey = derive(secret, COMMITMENT_LABEL);
      hash('sha256', aad, 'buffer');
      demand(timingSafeEqual(createHmac('sha256', commitmentKey).update(committed).digest(), commitment));
      return decrypt(encryption, sealed, aad);
    },
  };
}

async function webCryptoRuntime({ plaintext, kek, dek, iv, aad, wrapAad, committed }: Material): Promise<Runtime> {
  const { subtle } = globalThis.crypto;
  const kekObject = await subtle.importKey('raw', kek, 'AES-GCM', false, ['encrypt', 'decrypt']);
  const gcm = (additionalData: Bytes): AesGcmParams => ({ name: 'AES-GCM', iv, additionalData, tagLength: 128 });
  const hkdf = (info: Bytes): HkdfParams => ({ name: 'HKDF', hash: 'SHA-256', salt: NO_SALT, info });
  const aes = { name: 'AES-GCM', length: 256 };
  const hmac = { name: 'HMAC', hash: 'SHA-256', length: 256 };
  const derive = async (secret: Bytes): Promise<readonly [CryptoKey, CryptoKey]> => {
    const base = await subtle.importKey('raw', secret, 'HKDF', false, ['deriveKey']);
    const encryption = await subtle.deriveKey(hkdf(ENCRYPTION_LABEL), base, aes, false, ['encrypt', 'decrypt']);
    return [encryption, await subtle.deriveKey(hkdf(COMMITMENT_LABEL), base, hmac, false, ['sign', 'verify'])];
  };
  const [encryption, commitmentKey] = await derive(dek);
  const sealed = await subtle.encrypt(gcm(aad), encryption, plaintext);
  const wrapped = await subtle.encrypt(gcm(wrapAad), kekObject, dek);
  const commitment = await subtle.sign('HMAC', commitmentKey, committed);
  return {
    name: 'WebCrypto',
    primitives: undefined,
    async bareSeal() {
      globalThis.crypto.getRandomValues(new Uint8Array(32 + 16 + 12));
      globalThis.crypto.getRandomValues(new Uint8Array(12));
      const [encryptionKey, key] = await derive(dek);
      await subtle.digest('SHA-256', aad);
      await subtle.sign('HMAC', key, committed);
      await subtle.encrypt(gcm(aad), encryptionKey, plaintext);
      return subtle.encrypt(gcm(wrapAad), kekObject, dek);
    },
    async bareOpen() {
      const [encryptionKey, key] = await derive(new Uint8Array(await subtle.decrypt(gcm(wrapAad), kekObject, wrapped)));
      await subtle.digest('SHA-256', aad);
      demand(await subtle.verify('HMAC', key, commitment, committed));
      return subtle.decrypt(gcm(aad), encryptionKey, sealed);
    },
  };
}

const bareName = (verb: 'seal' | 'open', runtime: string): string => `bare operations of ${verb}, ${runtime}`;
const ourName = (verb: 'seal' | 'open', runtime: string): string => `KeyGuard ${verb}, ${runtime}`;

async function contestantsFor(runtime: Runtime, { plaintext, kek }: Material): Promise<Contestant[]> {
  const options = runtime.primitives === undefined ? {} : { primitives: runtime.primitives };
  const keyProvider = await aesKeyProvider({ kekId: KEK_ID, key: kek, ...options });
  const sealed: SealedValue = await seal(plaintext, PLACE, { keyProvider, ...options });
  const bare = (name: string, work: () => unknown): Contestant => ({
    name,
    async run(operations) {
      // Not awaited where it answers at once: the bare operations wait for nothing.
      for (let i = 0; i < operations; i += 1) {
        const answer = work();
        if (answer instanceof Promise) await answer;
      }
    },
  });
  return [
    bare(bareName('seal', runtime.name), runtime.bareSeal),
    {
      name: ourName('seal', runtime.name),
      async run(operations) {
        for (let i = 0; i < operations; i += 1) await seal(plaintext, PLACE, { keyProvider, ...options });
      },
    },
    bare(bareName('open', runtime.name), runtime.bareOpen),
    {
      name: ourName('open', runtime.name),
      async run(operations) {
        for (let i = 0; i < operations; i += 1) demand((await open(sealed, PLACE, { keyProvider, ...options })).length === plaintext.length);
      },
    },
  ];
}

interface SizeOptions {
  readonly title: string;
  readonly about: string;
  readonly lengthBytes: number;
  readonly operations: number;
  readonly rounds: number;
  readonly warmUpRounds: number;
  readonly budgetMs: number;
  readonly goal: { readonly atLeast: number } | null;
}

async function timeSize({ title, about, lengthBytes, operations, rounds, warmUpRounds, budgetMs, goal }: SizeOptions): Promise<Section> {
  const material = materialOf(lengthBytes);
  const runtimes = [nodeRuntime(material), await webCryptoRuntime(material)];
  const timings = new Map<string, readonly number[]>();
  // One after the other: a program has one of them, and what WebCrypto leaves to its threads and to the collector is not node:crypto's.
  for (const runtime of runtimes) {
    const contestants = await contestantsFor(runtime, material);
    const own = await timeInTurn({ operations, rounds, warmUpRounds, budgetMs: budgetMs / runtimes.length, contestants });
    for (const [name, values] of own) timings.set(name, values);
  }
  const verbs = ['seal', 'open'] as const;
  const kinds = runtimes.flatMap(({ name }) => verbs.flatMap((verb) => [[bareName(verb, name), 'limit'], [ourName(verb, name), 'ours']] as const));
  return {
    title,
    about,
    unit: 'µs',
    rows: rowsOf(timings, Object.fromEntries(kinds)),
    ratios: runtimes.flatMap(({ name }) =>
      verbs.map((verb) => ({
        name: `bare operations / ${verb} ${sizeName(lengthBytes)}, ${name}`,
        value: pairedMedian([timings.get(bareName(verb, name))!, timings.get(ourName(verb, name))!], (bare, ours) => bare / ours),
        goal,
      })),
    ),
  };
}

const sizeName = (lengthBytes: number): string => (lengthBytes < 2 ** 20 ? `${lengthBytes / 1024} KiB` : `${lengthBytes / 2 ** 20} MiB`);

export const vault: Suite = async ({ quick }) => [
  await timeSize({
    title: 'Seal and open a value of 1 KiB',
    about:
      'One after the other, on one core, with an AES key that wraps the data key. The limit is the sum of what the format requires, each operation alone with its bytes ready: the random bytes, two ' +
      'derivations (hkdfSync, deriveKey), one hash, one HMAC, and AES-GCM twice. The vault on node:crypto lets both derivations share their extraction, and on WebCrypto it has several operations under ' +
      'way at once, which the sums have not.',
    lengthBytes: 1024,
    operations: 50,
    rounds: quick ? 60 : 300,
    warmUpRounds: quick ? 40 : 150,
    budgetMs: quick ? 10_000 : 30_000,
    goal: { atLeast: 0.8 },
  }),
  await timeSize({
    title: 'Seal and open a value of 1 MiB',
    about:
      'The same in one call. Sealing copies the ciphertext once, to its place behind header and commitment, since no interface of either runtime writes it there; opening copies nothing. Above 256 KiB ' +
      "the vault on node:crypto leaves AES to WebCrypto's threads, which the bare operations do not: on one core it can only lose by that, and the event loop wins.",
    lengthBytes: 2 ** 20,
    operations: 4,
    rounds: quick ? 20 : 60,
    warmUpRounds: quick ? 5 : 10,
    budgetMs: quick ? 6_000 : 16_000,
    goal: null,
  }),
];

function demand(holds: boolean): void {
  if (!holds) throw new Error('A contestant refused what it should accept.');
}
