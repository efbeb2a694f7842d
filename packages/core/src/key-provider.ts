/**
 * Key providers that need nothing but WebCrypto: one on a random AES-256 key, one on a human's passphrase.
 *
 * They wrap 32-byte keys and bind each to the context it was wrapped for. A key that came in never goes out again, and
 * every failure to unwrap looks the same. They keep no list of keys and do not count wraps: the owner of a KEK does.
 *
 * @see docs/spec/vault.md
 */
import { AES_KEY_BYTES as KEY_BYTES, hkdf, hkdfBytes, IV_BYTES, pbkdf2, TAG_BYTES, webCryptoVaultPrimitives } from './algorithms.ts';
import { concat, equalBytes, u32, utf8 } from './bytes.ts';
import { RejectedError, UnavailableError, UsageError } from './errors.ts';
import type { Bytes, KeyProvider, Random, VaultKey, VaultPrimitives, WrappedKey } from './seams.ts';
import { webCryptoRandom } from './system.ts';

/** Iterations of PBKDF2 below which nothing is written or read. */
export const MIN_PBKDF2_ITERATIONS = 100_000;
/** Iterations of PBKDF2 above which nothing is written or read: a forged header must not buy hours of our time. */
export const MAX_PBKDF2_ITERATIONS = 2_000_000;
/** Iterations of PBKDF2 under which a new header is written. */
export const DEFAULT_PBKDF2_ITERATIONS = 600_000;

const CHECK_BYTES = 32;
const WRITTEN_SALT_BYTES = 16;
const MIN_SALT_BYTES = 16;
const MAX_SALT_BYTES = 64;
const MAX_WAITING_DERIVATIONS = 16;

// "KGW", version 1, algorithm 1: AES-256-GCM.
const WRAP_HEADER: Bytes = /* @__PURE__ */ Uint8Array.of(0x4b, 0x47, 0x57, 1, 1);
// "KGP", version 1, derivation 1: PBKDF2 with HMAC-SHA-256.
const PASSPHRASE_HEADER: Bytes = /* @__PURE__ */ Uint8Array.of(0x4b, 0x47, 0x50, 1, 1);
const SALT_LENGTH_AT = 9;
const SALT_AT = 10;

const LONE_SURROGATE = /[\uD800-\uDFFF]/u;
const NO_PREFIX: Bytes = /* @__PURE__ */ new Uint8Array(0);
const WRAP_LABEL: Bytes = /* @__PURE__ */ utf8('kg-passphrase-wrap-v1');
const CHECK_LABEL: Bytes = /* @__PURE__ */ utf8('kg-passphrase-check-v1');

/** Whether `value` is text with one UTF-8 form of its own, and not empty. */
export function isNonEmptyText(value: unknown): value is string {
  return typeof value === 'string' && value !== '' && !LONE_SURROGATE.test(value);
}

/** Each field preceded by its length (u32, big-endian): different lists of fields never give the same bytes. */
export function lengthPrefixed(...fields: readonly Uint8Array[]): Bytes {
  let length = 0;
  for (const field of fields) length += 4 + field.length;
  const joined = new Uint8Array(length);
  let at = 0;
  for (const field of fields) {
    joined[at] = field.length >>> 24;
    joined[at + 1] = field.length >>> 16;
    joined[at + 2] = field.length >>> 8;
    joined[at + 3] = field.length;
    joined.set(field, at + 4);
    at += 4 + field.length;
  }
  return joined;
}

/** The one answer to everything that does not open. It carries neither cause nor detail, so that nothing can be told apart. */
export function vaultOpenFailed(): RejectedError {
  return new RejectedError('vault_open_failed', 'The value cannot be opened.');
}

/** `lengthBytes` from `random`, which MUST answer that many. @throws UnavailableError */
export function drawBytes(random: Random, lengthBytes: number): Bytes {
  const bytes = random.bytes(lengthBytes);
  if (bytes.length !== lengthBytes) throw new UnavailableError('random', 'The generator gave another number of bytes.');
  return bytes;
}

function gcmKeyProvider(primitives: VaultPrimitives, random: Random, kekId: string, key: VaultKey, prefix: Bytes): KeyProvider {
  const head = concat(prefix, WRAP_HEADER);
  const kekIdBytes = utf8(kekId);
  const aad = (context: Bytes): Bytes => lengthPrefixed(WRAP_HEADER, kekIdBytes, prefix, context);
  return {
    async wrap(dek: Bytes, context: Bytes): Promise<WrappedKey> {
      if (dek.length !== KEY_BYTES) throw new UsageError('invalid_option', 'Only keys of 32 bytes are wrapped.');
      const iv = drawBytes(random, IV_BYTES);
      const { ciphertext, tag } = await primitives.encrypt(key, iv, aad(context), dek);
      return { kekId, bytes: concat(head, iv, ciphertext, tag) };
    },
    async unwrap(wrapped: WrappedKey, context: Bytes): Promise<Bytes> {
      try {
        const ivAt = head.length;
        const encryptedAt = ivAt + IV_BYTES;
        // Not copied: the head is the same for all, and the rest is authenticated as it is read.
        const { bytes } = wrapped;
        if (
          wrapped.kekId !== kekId ||
          bytes.length !== encryptedAt + KEY_BYTES + TAG_BYTES ||
          !equalBytes(bytes.subarray(0, ivAt), head)
        ) {
          throw vaultOpenFailed();
        }
        const iv = bytes.subarray(ivAt, encryptedAt);
        return await primitives.decrypt(key, iv, aad(context), bytes.subarray(encryptedAt));
      } catch {
        throw vaultOpenFailed();
      }
    },
  };
}

function checkKekId(kekId: string): void {
  if (!isNonEmptyText(kekId)) throw new UsageError('invalid_option', 'kekId must be well-formed text, not empty.');
}

/** A key encryption key as bytes, and its name. */
export interface AesKeyProviderOptions {
  /** Names the key in every wrapped DEK, and is authenticated there. Never reuse it for another key. */
  readonly kekId: string;
  /** 32 random bytes. Imported as non-extractable; the caller may wipe them once the provider is there. */
  readonly key: Bytes;
  readonly crypto?: Crypto;
  readonly random?: Random;
  /** What it computes on; by default `crypto`. */
  readonly primitives?: VaultPrimitives;
}

/**
 * A {@link KeyProvider} on one random AES-256 key: the key cannot be had back from it, and each wrapped DEK opens only under
 * the same key, key id and context.
 *
 * IVs are random, so one key MUST NOT wrap more than 2³² DEKs; whoever owns the KEK counts, and rotates long before.
 * @throws UsageError `invalid_option`
 */
export async function aesKeyProvider(options: AesKeyProviderOptions): Promise<KeyProvider> {
  const { kekId, key, crypto = globalThis.crypto } = options;
  checkKekId(kekId);
  const primitives = options.primitives ?? webCryptoVaultPrimitives(crypto);
  const imported = await primitives.importAesKey(key);
  return gcmKeyProvider(primitives, options.random ?? webCryptoRandom(crypto), kekId, imported, NO_PREFIX);
}

let deriving = false;
const waiting: (() => void)[] = [];

// A derivation holds a thread of the pool for a quarter of a second: fifty at once would stall every other use of it.
async function oneAtATime<T>(derive: () => Promise<T>): Promise<T> {
  if (deriving) {
    if (waiting.length >= MAX_WAITING_DERIVATIONS) {
      throw new UnavailableError('key_derivation', 'Too many passphrases wait to be derived.', { code: 'overloaded' });
    }
    await new Promise<void>((resolve) => waiting.push(resolve));
  }
  deriving = true;
  try {
    return await derive();
  } finally {
    const next = waiting.shift();
    if (next === undefined) deriving = false;
    else next();
  }
}

/** What to derive a key from, beside the passphrase. */
export interface PassphraseKeyOptions {
  readonly kekId: string;
  /**
   * Untrusted bytes that begin with the header to derive by; a key that was wrapped under the passphrase will do. Without
   * it, a new header with a fresh salt is made.
   */
  readonly header?: Bytes;
  /** Only for a new header: 100,000 to 2,000,000, by default 600,000. */
  readonly iterations?: number;
  readonly crypto?: Crypto;
  readonly random?: Random;
}

/** A passphrase, derived once: the ability to wrap and unwrap, and what must be stored to derive it again. */
export interface PassphraseKey {
  readonly keyProvider: KeyProvider;
  /** Salt, iterations and check value. Not secret; every key wrapped here begins with it and is bound to it. */
  readonly header: Bytes;
  /** Of PBKDF2, as `header` has them. */
  readonly iterations: number;
  /** Fewer iterations than the default of today: the caller should wrap its keys anew under a new header. */
  readonly belowDefault: boolean;
}

function isAllowed(iterations: number): boolean {
  return (
    Number.isInteger(iterations) && iterations >= MIN_PBKDF2_ITERATIONS && iterations <= MAX_PBKDF2_ITERATIONS
  );
}

interface PassphraseParameters {
  readonly bytes: Bytes;
  readonly iterations: number;
  readonly salt: Bytes;
  /** What the derived key must answer to; `null` when it is yet to be written. */
  readonly check: Bytes | null;
}

function newParameters(random: Random, iterations: number): PassphraseParameters {
  if (!isAllowed(iterations)) {
    throw new UsageError('invalid_option', 'iterations must be an integer from 100,000 to 2,000,000.');
  }
  const salt = drawBytes(random, WRITTEN_SALT_BYTES);
  const bytes = concat(PASSPHRASE_HEADER, u32(iterations), Uint8Array.of(salt.length), salt);
  return { bytes, iterations, salt, check: null };
}

function readParameters(given: Bytes): PassphraseParameters {
  // A copy, also of a Node `Buffer`: it is checked now, and used after the derivation.
  const header = new Uint8Array(given.subarray(0, SALT_AT + MAX_SALT_BYTES + CHECK_BYTES));
  const saltLength = header[SALT_LENGTH_AT] ?? 0;
  const saltEnd = SALT_AT + saltLength;
  if (
    header.length < saltEnd + CHECK_BYTES ||
    !equalBytes(header.subarray(0, PASSPHRASE_HEADER.length), PASSPHRASE_HEADER) ||
    saltLength < MIN_SALT_BYTES ||
    saltLength > MAX_SALT_BYTES
  ) {
    throw vaultOpenFailed();
  }
  const iterations = new DataView(header.buffer).getUint32(PASSPHRASE_HEADER.length);
  if (!isAllowed(iterations)) throw vaultOpenFailed();
  const check = header.slice(saltEnd, saltEnd + CHECK_BYTES);
  return { bytes: header.slice(0, saltEnd), iterations, salt: header.slice(SALT_AT, saltEnd), check };
}

async function stretch(subtle: SubtleCrypto, passphrase: string, parameters: PassphraseParameters): Promise<CryptoKey> {
  const { iterations, salt } = parameters;
  const password = utf8(passphrase.normalize('NFC'));
  let secret: Bytes | undefined;
  try {
    secret = await pbkdf2(subtle, password, salt, iterations);
    return await subtle.importKey('raw', secret, 'HKDF', false, ['deriveKey', 'deriveBits']);
  } finally {
    password.fill(0);
    secret?.fill(0);
  }
}

/**
 * A {@link KeyProvider} on a passphrase (NFC, PBKDF2-SHA-256): opens only what was wrapped under the same passphrase, salt
 * and iterations. A wrong passphrase is refused here, before anything is unwrapped.
 *
 * For keys that a person must be able to open, and derived once: never per record. Derivations run one at a time in this
 * copy of the module; at most 16 wait.
 *
 * @param passphrase secret; not empty, well-formed, without U+0000 (HMAC cannot tell a trailing one from none)
 * @throws UsageError `invalid_option`
 * @throws RejectedError `vault_open_failed` for a wrong passphrase and for any header that is not one
 * @throws UnavailableError `overloaded`
 */
export async function passphraseKey(passphrase: string, options: PassphraseKeyOptions): Promise<PassphraseKey> {
  const { kekId, header: given, iterations: wanted, crypto = globalThis.crypto } = options;
  const { subtle } = crypto;
  const random = options.random ?? webCryptoRandom(crypto);
  checkKekId(kekId);
  if (!isNonEmptyText(passphrase) || passphrase.includes('\0')) {
    throw new UsageError('invalid_option', 'A passphrase is well-formed text without U+0000, and not empty.');
  }
  if (given !== undefined && wanted !== undefined) {
    throw new UsageError('invalid_option', 'iterations are those of the header, where one is given.');
  }
  const parameters =
    given === undefined ? newParameters(random, wanted ?? DEFAULT_PBKDF2_ITERATIONS) : readParameters(given);
  const secret = await oneAtATime(() => stretch(subtle, passphrase, parameters));
  const [key, check] = await Promise.all([
    subtle.deriveKey(hkdf(WRAP_LABEL), secret, { name: 'AES-GCM', length: 256 }, false, [
      'encrypt',
      'decrypt',
    ]),
    hkdfBytes(subtle, secret, CHECK_LABEL),
  ]);
  // GCM alone would let one crafted wrapped key try several passphrases at once; this value fits only one.
  if (parameters.check !== null && !equalBytes(parameters.check, check)) throw vaultOpenFailed();
  const header = concat(parameters.bytes, check);
  return {
    keyProvider: gcmKeyProvider(webCryptoVaultPrimitives(crypto), random, kekId, key, header),
    header: header.slice(),
    iterations: parameters.iterations,
    belowDefault: parameters.iterations < DEFAULT_PBKDF2_ITERATIONS,
  };
}
