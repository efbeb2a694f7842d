/**
 * What kind of device this is, as a keyed digest of a few signals. The signals never leave the device; only the digest does.
 *
 * A risk signal and nothing more: never an identity, never unique, never a reason to let in. So it asks for little and asks
 * nothing that is not offered anyway: it draws no canvas, plays no sound, measures no fonts, reads no serial numbers, addresses
 * or names, and keeps nothing. Numbers go in as buckets, so that it survives an update and says less.
 *
 * @see docs/spec/fingerprint.md for every signal and the exact bytes
 */
import { concat, toBase64Url, u32, utf8 } from './bytes.ts';
import { canonicalJson } from './canonical-json.ts';
import { UsageError } from './errors.ts';
import type { Bytes, MaybePromise } from './seams.ts';

const LABEL: Bytes = /* @__PURE__ */ utf8('kg-fingerprint-v1\0');
const SALT_BYTES = 32;
const DIGEST_BYTES = 32;
const MAX_SALT_VERSION = 0xffff_ffff;
const MAX_SIGNAL_CHARACTERS = 256;
const UNKNOWN = 'unknown';
const LONE_SURROGATE = /[\uD800-\uDFFF]/u;

/** Signals by name; all of them text. What a device does not tell is `unknown`, never left out. */
export type FingerprintSignals = Readonly<Record<string, string>>;

/** HMAC-SHA-256 of `data` under `key`, 32 bytes. */
export type HmacSha256 = (key: Bytes, data: Bytes) => MaybePromise<Bytes>;

/** Under which salt to digest, and by what. */
export interface FingerprintOptions {
  /**
   * 32 random bytes, one salt for each application, so that digests of one cannot be matched with those of another. It is not
   * secret where the application is not: whoever has it can try out the few likely values. The server therefore keys again.
   */
  readonly salt: Bytes;
  /** Which salt this is, from 1 to 2³² − 1. It is hashed along: the digests of two salts never meet. */
  readonly saltVersion: number;
  /** Default: the platform's WebCrypto. */
  readonly hmac?: HmacSha256;
}

/** Gives the digest of this device, and nothing else of it. */
export interface FingerprintProvider {
  /** Which salt the digests are under, from 1 to 2³² − 1. It goes to the server with them. */
  readonly saltVersion: number;
  /** 43 base64url characters, as `enroll({ fingerprint })` takes them. Collects anew at every call. */
  digest(): Promise<string>;
}

/** {@link HmacSha256} on the platform's WebCrypto, or on the one given. */
export function webCryptoHmac(crypto: Crypto = globalThis.crypto): HmacSha256 {
  const { subtle } = crypto;
  return async (key: Bytes, data: Bytes): Promise<Bytes> => {
    const imported = await subtle.importKey('raw', key, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);
    return new Uint8Array(await subtle.sign('HMAC', imported, data));
  };
}

function isSaltVersion(value: unknown): boolean {
  return Number.isInteger(value) && (value as number) >= 1 && (value as number) <= MAX_SALT_VERSION;
}

function checkOptions({ salt, saltVersion }: FingerprintOptions): void {
  if (salt.length !== SALT_BYTES) throw new UsageError('invalid_option', 'The salt of a fingerprint has 32 bytes.');
  if (!isSaltVersion(saltVersion)) throw new UsageError('invalid_option', 'saltVersion must be an integer from 1 to 2^32 - 1.');
}

/**
 * The digest of `signals`: equal for equal signals under one salt and version, and telling nothing of them to who has not the
 * salt. For runtimes of which this package knows no signals; otherwise use a provider.
 *
 * @param signals text that does not change from one start of the application to the next
 * @throws UsageError `invalid_option`
 * @throws RejectedError `json_not_canonical` for text that is not Unicode
 */
export async function fingerprintDigest(signals: FingerprintSignals, options: FingerprintOptions): Promise<string> {
  checkOptions(options);
  const { salt, saltVersion, hmac = webCryptoHmac() } = options;
  const digest = await hmac(salt, concat(LABEL, u32(saltVersion), utf8(canonicalJson(signals))));
  if (digest.length !== DIGEST_BYTES) throw new UsageError('invalid_option', 'hmac must answer with 32 bytes.');
  return toBase64Url(digest);
}

function provider(collect: () => FingerprintSignals, options: FingerprintOptions): FingerprintProvider {
  checkOptions(options);
  return { saltVersion: options.saltVersion, digest: () => fingerprintDigest(collect(), options) };
}

// A platform may answer with anything, or throw where it is told to keep quiet: that is an answer as well.
function told(read: () => unknown): string {
  let value: unknown;
  try {
    value = read();
  } catch {
    return UNKNOWN;
  }
  return typeof value === 'string' && value !== '' && value.length <= MAX_SIGNAL_CHARACTERS && !LONE_SURROGATE.test(value) ? value : UNKNOWN;
}

// The first limit that `value` does not exceed, as text.
function bucket(value: unknown, limits: readonly number[]): string {
  if (typeof value !== 'number' || !(value > 0)) return UNKNOWN;
  const limit = limits.find((most) => value <= most);
  return limit === undefined ? `more than ${limits.at(-1)}` : `to ${limit}`;
}

const CORES = [2, 4, 8, 16, 32] as const;
const SCREEN_PIXELS = [480, 960, 1440, 1920, 2560] as const;
const MEMORY_GIB = [2, 4, 8, 16, 32, 64, 128] as const;
const GIB = 1024 ** 3;

function numberTold(read: () => unknown, limits: readonly number[]): string {
  try {
    return bucket(read(), limits);
  } catch {
    return UNKNOWN;
  }
}

// Browsers spell one system in many ways, some with the processor in them.
const SYSTEMS: readonly (readonly [RegExp, string])[] = [
  [/^win/i, 'windows'],
  [/^(?:iphone|ipad|ipod|ios)/i, 'ios'],
  [/^mac/i, 'macos'],
  [/^android/i, 'android'],
  [/^(?:chrome ?os|cros|chromium os)/i, 'chromeos'],
  [/^linux/i, 'linux'],
];

function system(name: string): string {
  return SYSTEMS.find(([pattern]) => pattern.test(name))?.[1] ?? (name === UNKNOWN ? UNKNOWN : 'other');
}

/** Where a browser's signals are read: what `globalThis` offers in a page and, without the screen, in a worker. */
export interface BrowserScope {
  readonly navigator?: {
    readonly platform?: string;
    readonly userAgentData?: { readonly platform?: string };
    readonly language?: string;
    readonly hardwareConcurrency?: number;
  };
  readonly screen?: { readonly width: number; readonly height: number };
  readonly Intl?: { DateTimeFormat(): { resolvedOptions(): { readonly timeZone?: string } } };
}

/** The signals that {@link browserFingerprint} digests: system, language, time zone, and buckets of cores and of the screen. */
export function browserSignals(scope: BrowserScope = globalThis as BrowserScope): FingerprintSignals {
  const platform = told(() => scope.navigator?.userAgentData?.platform);
  return {
    runtime: 'browser',
    system: system(platform === UNKNOWN ? told(() => scope.navigator?.platform) : platform),
    language: told(() => scope.navigator?.language).toLowerCase(),
    time_zone: told(() => scope.Intl?.DateTimeFormat().resolvedOptions().timeZone),
    cores: numberTold(() => scope.navigator?.hardwareConcurrency, CORES),
    // The longer and the shorter side: turning a phone is no other phone.
    screen_long: numberTold(() => scope.screen && Math.max(scope.screen.width, scope.screen.height), SCREEN_PIXELS),
    screen_short: numberTold(() => scope.screen && Math.min(scope.screen.width, scope.screen.height), SCREEN_PIXELS),
  };
}

/** The part of Node's `node:os` that is asked. Handed in: this package does no I/O. */
export interface NodeOs {
  /** `linux`, `darwin`, … */
  platform(): string;
  /** `x64`, `arm64`, … */
  arch(): string;
  /** One for each logical core. */
  cpus(): readonly { readonly model: string }[];
  /** Of the whole machine, in bytes. */
  totalmem(): number;
}

/** The signals that {@link nodeFingerprint} digests: system, architecture, processor model, and buckets of cores and memory. */
export function nodeSignals(os: NodeOs): FingerprintSignals {
  return {
    runtime: 'node',
    system: told(() => os.platform()),
    architecture: told(() => os.arch()),
    // Some systems pad the name with blanks.
    processor: told(() => os.cpus()[0]?.model.trim().replaceAll(/\s+/g, ' ')),
    cores: numberTold(() => os.cpus().length, CORES),
    memory_gib: numberTold(() => os.totalmem() / GIB, MEMORY_GIB),
  };
}

/**
 * The fingerprint of a browser. Neither asks for a permission nor starts anything a person could notice.
 * @throws UsageError `invalid_option`
 */
export function browserFingerprint(options: FingerprintOptions, scope?: BrowserScope): FingerprintProvider {
  return provider(() => browserSignals(scope), options);
}

/**
 * The fingerprint of a machine on which Node runs: `nodeFingerprint(os, …)` with `import os from 'node:os'`.
 * @throws UsageError `invalid_option`
 */
export function nodeFingerprint(os: NodeOs, options: FingerprintOptions): FingerprintProvider {
  return provider(() => nodeSignals(os), options);
}
