/**
 * `vault`: envelopes, wrapped keys and passphrase headers. Nothing opens but what was sealed, byte for byte, in its own place.
 */
import { aesKeyProvider, open, passphraseKey, seal, type PassphraseKey, type SealedValue, type VaultPlace } from '@keyguard/core/vault';
import type { Bytes, KeyProvider } from '@keyguard/core/seams';
import { createHmac, randomBytes } from 'node:crypto';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateText } from '../mutate.ts';
import { agree, demandEqual, outcomeOfLater, type Parser } from '../parser.ts';

const REFUSED = 'RejectedError vault_open_failed';

const PLACE: VaultPlace = { deploymentId: 'd-1', table: 'secret_versions', row: 'r-1', column: 'value', version: 1, purpose: 'provider-key' };
const PLACES: readonly VaultPlace[] = [PLACE, { ...PLACE, row: 'r-2' }, { ...PLACE, version: 2 }, { ...PLACE, deploymentId: 'd-2', table: 'backups' }];

interface Original {
  readonly place: VaultPlace;
  readonly plaintext: Bytes;
  readonly sealed: SealedValue;
}

const kek = await aesKeyProvider({ kekId: 'kek-1', key: new Uint8Array(randomBytes(32)) });
const deks: Bytes[] = [];
// Shows the data keys to the harness, which then hands them out whatever the wrapped key says: what is left is the envelope's own.
const watching: KeyProvider = {
  async wrap(dek, context) {
    deks.push(dek.slice());
    return kek.wrap(dek, context);
  },
  unwrap: (key, context) => kek.unwrap(key, context),
};

async function original(place: VaultPlace, i: number): Promise<Original> {
  const plaintext = new Uint8Array(randomBytes([0, 1, 51, 1000][i]!));
  return { place, plaintext, sealed: await seal(plaintext, place, { keyProvider: watching }) };
}

const ORIGINALS: Original[] = [];
for (const [i, place] of PLACES.entries()) ORIGINALS.push(await original(place, i));

const equal = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

function mutatePlace(random: Generator, place: VaultPlace): VaultPlace {
  const name = random.pick(['deploymentId', 'table', 'row', 'column', 'version', 'purpose'] as const);
  if (name === 'version') return { ...place, version: random.pick([0, 1, 2, 2 ** 32 + 1, 2 ** 53, -1, 1.5, Number.NaN]) };
  return random.oneIn(4) ? random.pick(PLACES) : { ...place, [name]: random.oneIn(5) ? place.table : mutateText(random, place[name]) };
}

interface Attempt {
  readonly of: Original;
  readonly sealed: SealedValue;
  readonly place: VaultPlace;
}

function attempt(random: Generator): Attempt {
  const of = random.pick(ORIGINALS);
  const { ciphertext, wrappedDek, kekId } = of.sealed;
  const other = random.pick(ORIGINALS).sealed;
  const part = random.below(6);
  const sealed = {
    ciphertext: part <= 2 ? mutateBytes(random, ciphertext, ORIGINALS.map((each) => each.sealed.ciphertext)) : ciphertext,
    wrappedDek: part === 3 ? mutateBytes(random, wrappedDek, [other.wrappedDek]) : part === 4 ? other.wrappedDek : wrappedDek,
    kekId: random.oneIn(20) ? mutateText(random, kekId) : kekId,
  };
  return { of, sealed, place: part === 5 ? mutatePlace(random, of.place) : of.place };
}

function isPlace(place: VaultPlace, of: VaultPlace): boolean {
  return Object.entries(of).every(([name, value]) => place[name as keyof VaultPlace] === value);
}

const wrapper = new Uint8Array(randomBytes(32));
const aes = await aesKeyProvider({ kekId: 'kek-2', key: wrapper });
const contexts = ['one', 'two', ''].map((word) => new Uint8Array(Buffer.from(word)));
const wraps: { dek: Bytes; context: Bytes; bytes: Bytes }[] = [];
for (const context of contexts) {
  const dek = new Uint8Array(randomBytes(32));
  wraps.push({ dek, context, bytes: (await aes.wrap(dek, context)).bytes });
}

/**
 * WebCrypto with the stretching of passphrases replaced by one HMAC over the same inputs, because a million derivations would take
 * a day: what is tried here is the reading of the header, and that all of it counts.
 */
function quickCrypto(): Crypto {
  const { subtle } = globalThis.crypto;
  const passwords = new WeakMap<object, Uint8Array>();
  const quick: Pick<SubtleCrypto, 'importKey' | 'deriveBits' | 'deriveKey' | 'encrypt' | 'decrypt'> = {
    async importKey(...words: unknown[]) {
      const [, data, algorithm] = words as [string, Uint8Array, unknown];
      if (algorithm !== 'PBKDF2') return subtle.importKey(...(words as Parameters<SubtleCrypto['importKey']>));
      const key = {} as CryptoKey;
      passwords.set(key, data.slice());
      return key;
    },
    async deriveBits(parameters, key, length) {
      const password = passwords.get(key);
      if (password === undefined) return subtle.deriveBits(parameters, key, length);
      const { salt, iterations } = parameters as unknown as { salt: Uint8Array; iterations: number };
      return new Uint8Array(createHmac('sha256', password).update(`${iterations} `).update(salt).digest()).buffer;
    },
    deriveKey: subtle.deriveKey.bind(subtle),
    encrypt: subtle.encrypt.bind(subtle),
    decrypt: subtle.decrypt.bind(subtle),
  };
  return { subtle: quick, getRandomValues: globalThis.crypto.getRandomValues.bind(globalThis.crypto) } as unknown as Crypto;
}

const quick = quickCrypto();
const made: PassphraseKey[] = [];
for (const iterations of [100_000, 600_000, 2_000_000]) made.push(await passphraseKey('correct horse', { kekId: 'p', iterations, crypto: quick }));

export const VAULT: readonly Parser[] = [
  {
    name: 'vault.open',
    async try(random) {
      const { of, sealed, place } = attempt(random);
      const outcome = await outcomeOfLater(() => open(sealed, place, { keyProvider: kek }), REFUSED);
      const isOriginal = equal(sealed.ciphertext, of.sealed.ciphertext) && equal(sealed.wrappedDek, of.sealed.wrappedDek) && sealed.kekId === of.sealed.kekId;
      if (outcome.accepted) demandEqual(outcome.value, of.plaintext, 'the plaintext');
      return agree(outcome.accepted, isOriginal && isPlace(place, of.place));
    },
  },
  {
    name: 'vault.open, its data key known',
    async try(random) {
      const { of, sealed, place } = attempt(random);
      const dek = deks[ORIGINALS.indexOf(of)]!;
      const keyProvider: KeyProvider = { ...kek, unwrap: async () => dek.slice() };
      const outcome = await outcomeOfLater(() => open(sealed, place, { keyProvider }), REFUSED);
      if (outcome.accepted) demandEqual(outcome.value, of.plaintext, 'the plaintext');
      return agree(outcome.accepted, equal(sealed.ciphertext, of.sealed.ciphertext) && isPlace(place, of.place));
    },
  },
  {
    name: 'vault.aesKeyProvider.unwrap',
    async try(random) {
      const { dek, context: ownContext, bytes: ownBytes } = random.pick(wraps);
      const bytes = random.oneIn(6) ? ownBytes : mutateBytes(random, ownBytes, wraps.map((each) => each.bytes));
      const context = random.oneIn(4) ? mutateBytes(random, ownContext, contexts) : ownContext;
      const kekId = random.oneIn(20) ? mutateText(random, 'kek-2') : 'kek-2';
      const outcome = await outcomeOfLater(() => aes.unwrap({ kekId, bytes }, context), REFUSED);
      if (outcome.accepted) demandEqual(outcome.value, dek, 'the data key');
      return agree(outcome.accepted, equal(bytes, ownBytes) && equal(context, ownContext) && kekId === 'kek-2');
    },
  },
  {
    name: 'vault.passphraseKey, its header',
    async try(random) {
      const own = random.pick(made);
      const followed = random.oneIn(2) ? new Uint8Array([...own.header, ...random.bytes(65)]) : own.header;
      const header = mutateBytes(random, followed, made.map((each) => each.header));
      const outcome = await outcomeOfLater(() => passphraseKey('correct horse', { kekId: 'p', header, crypto: quick }), REFUSED);
      const begun = made.find((each) => equal(header.slice(0, each.header.length), each.header));
      if (outcome.accepted) demandEqual([outcome.value.header, outcome.value.iterations], [begun?.header, begun?.iterations], 'what was read');
      return agree(outcome.accepted, begun !== undefined);
    },
  },
];
