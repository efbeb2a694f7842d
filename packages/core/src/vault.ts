/**
 * The vault: seals a value for one place (deployment, table, row, column, version, purpose) and opens it there only.
 *
 * Each value has a data encryption key of its own, which seals once; a {@link KeyProvider} wraps it. Format 1 must open for
 * ever. This room stores nothing, names no reason when it refuses, and gives out no byte of plaintext that it has not
 * authenticated.
 *
 * @see docs/spec/vault.md for the exact bytes
 */
import { IV_BYTES, TAG_BYTES, webCryptoVaultPrimitives } from './algorithms.ts';
import { concat, equalBytes, u32, utf8 } from './bytes.ts';
import { isUnavailable, UnavailableError, UsageError } from './errors.ts';
import { drawBytes, isNonEmptyText, lengthPrefixed, vaultOpenFailed } from './key-provider.ts';
import type { Bytes, KeyProvider, Random, VaultPrimitives } from './seams.ts';
import { webCryptoRandom } from './system.ts';

export * from './key-provider.ts';

// "KGV", version 1.
const FORMAT: Bytes = /* @__PURE__ */ Uint8Array.of(0x4b, 0x47, 0x56, 1);
// HKDF-SHA-256, HMAC-SHA-256 commitment, AES-256-GCM.
const ALGORITHM: Bytes = /* @__PURE__ */ Uint8Array.of(1);
const DEK_BYTES = 32;
const DEK_ID_AT = 5;
const DEK_ID_BYTES = 16;
const IV_AT = 21;
const COMMITMENT_AT = 33;
const CIPHERTEXT_AT = 65;
const FRESH_BYTES = DEK_BYTES + DEK_ID_BYTES + IV_BYTES;

const ENCRYPTION_LABEL: Bytes = /* @__PURE__ */ utf8('kg-vault-enc-v1');
const COMMITMENT_LABEL: Bytes = /* @__PURE__ */ utf8('kg-vault-com-v1');
const DEK_LABEL: Bytes = /* @__PURE__ */ utf8('kg-vault-dek-v1');

/** Where a value lives. All of it is authenticated and none of it is stored in the envelope. Trusted: the caller's own. */
export interface VaultPlace {
  /** The random id of the deployment, so that another one's database opens nothing here. */
  readonly deploymentId: string;
  readonly table: string;
  readonly row: string;
  readonly column: string;
  /** The version of the value, an integer from 0 to 2⁵³ − 1. */
  readonly version: number;
  /** What the value is for, for instance `provider-key`. */
  readonly purpose: string;
}

/** What is stored. All three are untrusted when they come back. */
export interface SealedValue {
  /** The envelope: header, commitment, ciphertext and tag; 81 bytes more than the plaintext. */
  readonly ciphertext: Bytes;
  readonly wrappedDek: Bytes;
  readonly kekId: string;
}

/** Who wraps the data key, and what to draw on. */
export interface SealOptions {
  readonly keyProvider: KeyProvider;
  readonly crypto?: Crypto;
  readonly random?: Random;
  /** What it computes on; by default `crypto`. */
  readonly primitives?: VaultPrimitives;
}

/** Who unwraps the data key. */
export interface OpenOptions {
  readonly keyProvider: KeyProvider;
  readonly crypto?: Crypto;
  /** What it computes on; by default `crypto`. */
  readonly primitives?: VaultPrimitives;
}

/** From which key to which. */
export interface RewrapOptions {
  readonly from: KeyProvider;
  readonly to: KeyProvider;
}

function checkPlace(place: VaultPlace): void {
  for (const name of ['deploymentId', 'table', 'row', 'column', 'purpose'] as const) {
    if (!isNonEmptyText(place[name])) {
      throw new UsageError('invalid_option', `${name} of a place must be well-formed text, not empty.`);
    }
  }
  if (!Number.isSafeInteger(place.version) || place.version < 0) {
    throw new UsageError('invalid_option', 'version of a place must be an integer from 0 to 2^53 - 1.');
  }
}

/** In what the AAD of the value and the context of its DEK both end. */
function placeFields(place: VaultPlace, dekId: Bytes): readonly Bytes[] {
  const version = concat(u32(Math.floor(place.version / 2 ** 32)), u32(place.version));
  return [
    utf8(place.deploymentId),
    utf8(place.table),
    utf8(place.row),
    utf8(place.column),
    version,
    dekId,
    utf8(place.purpose),
  ];
}

const valueAad = (fields: readonly Bytes[]): Bytes => lengthPrefixed(FORMAT, ALGORITHM, ...fields);
const dekContext = (fields: readonly Bytes[]): Bytes => lengthPrefixed(DEK_LABEL, ...fields);

/**
 * Encrypts `plaintext` under a fresh key, so that it opens at `place` and nowhere else.
 *
 * @param plaintext secret; any length, 1 MiB and more in one call. MUST NOT be changed before the answer is there; wiping it
 *   afterwards is the caller's
 * @param place trusted
 * @throws UsageError `invalid_option` for a place with an empty or ill-formed part
 * @throws UnavailableError as the key provider throws it, and where the primitives answer with what is no ciphertext
 */
export async function seal(plaintext: Bytes, place: VaultPlace, options: SealOptions): Promise<SealedValue> {
  checkPlace(place);
  const { keyProvider, crypto = globalThis.crypto } = options;
  const primitives = options.primitives ?? webCryptoVaultPrimitives(crypto);
  const fresh = drawBytes(options.random ?? webCryptoRandom(crypto), FRESH_BYTES);
  const dek = new Uint8Array(fresh.subarray(0, DEK_BYTES));
  const header = concat(FORMAT, ALGORITHM, fresh.subarray(DEK_BYTES));
  fresh.fill(0);
  try {
    const fields = placeFields(place, dekIdOf(header));
    const aad = valueAad(fields);
    const [keys, aadHash, wrapped] = await Promise.all([
      primitives.deriveKeys(dek, ENCRYPTION_LABEL, COMMITMENT_LABEL),
      primitives.sha256(aad),
      keyProvider.wrap(dek, dekContext(fields)),
    ]);
    const [commitment, { ciphertext, tag }] = await Promise.all([
      primitives.hmac(keys.commitment, concat(header, aadHash)),
      primitives.encrypt(keys.encryption, header.slice(IV_AT), aad, plaintext),
    ]);
    const envelope = concat(header, commitment, ciphertext, tag);
    if (envelope.length !== CIPHERTEXT_AT + plaintext.length + TAG_BYTES) {
      throw new UnavailableError('vault_primitives', 'The primitives of the vault gave another number of bytes.');
    }
    return { ciphertext: envelope, wrappedDek: wrapped.bytes, kekId: wrapped.kekId };
  } finally {
    dek.fill(0);
  }
}

// A copy: what was checked must be what is used, whatever the owner of the array does in the meantime. `slice` of a Node `Buffer`
// is none.
function copyOf(bytes: Bytes, from: number, to: number): Bytes {
  return new Uint8Array(bytes.subarray(from, to));
}

function readHeader(ciphertext: Bytes): Bytes {
  const header = copyOf(ciphertext, 0, COMMITMENT_AT);
  const isFormat = FORMAT.every((byte, i) => header[i] === byte) && header[FORMAT.length] === ALGORITHM[0];
  if (!isFormat || ciphertext.length < CIPHERTEXT_AT + TAG_BYTES) throw vaultOpenFailed();
  return header;
}

function dekIdOf(header: Bytes): Bytes {
  return header.slice(DEK_ID_AT, DEK_ID_AT + DEK_ID_BYTES);
}

async function unwrapDek(from: KeyProvider, sealed: SealedValue, fields: readonly Bytes[]): Promise<Bytes> {
  const dek = await from.unwrap({ kekId: sealed.kekId, bytes: sealed.wrappedDek }, dekContext(fields));
  if (dek.length !== DEK_BYTES) throw vaultOpenFailed();
  return dek;
}

async function opaquely<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (isUnavailable(error)) throw error;
    throw vaultOpenFailed();
  }
}

/**
 * The plaintext that was sealed for exactly this `place`. Whatever is wrong (place, key, envelope, version of the format), the
 * refusal is one and the same, and no plaintext comes out before all of it is authenticated.
 *
 * @param sealed untrusted
 * @param place trusted
 * @throws RejectedError `vault_open_failed`, always with the same message and without detail
 * @throws UnavailableError as the key provider throws it
 */
export async function open(sealed: SealedValue, place: VaultPlace, options: OpenOptions): Promise<Bytes> {
  return opaquely(async () => {
    checkPlace(place);
    const { keyProvider, crypto = globalThis.crypto } = options;
    const primitives = options.primitives ?? webCryptoVaultPrimitives(crypto);
    const header = readHeader(sealed.ciphertext);
    const commitment = copyOf(sealed.ciphertext, COMMITMENT_AT, CIPHERTEXT_AT);
    const encrypted = sealed.ciphertext.subarray(CIPHERTEXT_AT);
    const fields = placeFields(place, dekIdOf(header));
    const aad = valueAad(fields);
    const dek = await unwrapDek(keyProvider, sealed, fields);
    try {
      const [keys, aadHash] = await Promise.all([
        primitives.deriveKeys(dek, ENCRYPTION_LABEL, COMMITMENT_LABEL),
        primitives.sha256(aad),
      ]);
      const expected = await primitives.hmac(keys.commitment, concat(header, aadHash));
      // GCM does not commit to its key: one ciphertext can be made to open under two.
      if (!equalBytes(expected, commitment)) throw vaultOpenFailed();
      return await primitives.decrypt(keys.encryption, header.slice(IV_AT), aad, encrypted);
    } finally {
      dek.fill(0);
    }
  });
}

/**
 * The same sealed value with its DEK wrapped by `to` in place of `from`. The envelope is not touched: the answer holds the
 * very array that was given.
 *
 * @param sealed untrusted
 * @param place trusted
 * @throws RejectedError `vault_open_failed` where `from` does not unwrap the DEK for this place
 * @throws UnavailableError as a key provider throws it
 */
export async function rewrap(sealed: SealedValue, place: VaultPlace, options: RewrapOptions): Promise<SealedValue> {
  const { from, to } = options;
  const [dek, fields] = await opaquely(async () => {
    checkPlace(place);
    const parts = placeFields(place, dekIdOf(readHeader(sealed.ciphertext)));
    return [await unwrapDek(from, sealed, parts), parts] as const;
  });
  try {
    const wrapped = await to.wrap(dek, dekContext(fields));
    return { ciphertext: sealed.ciphertext, wrappedDek: wrapped.bytes, kekId: wrapped.kekId };
  } finally {
    dek.fill(0);
  }
}
