/**
 * The environment, parsed once. Every fault is reported at once, in words that say what to do; a setting that this version does
 * not know is a fault, because a guard that is misspelt must not be a guard that is missing. No value of a secret is ever printed.
 */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseEnv } from 'node:util';
import * as z from 'zod';
import type { TrustedUpstream } from './llm/provider.ts';
import { PROVIDERS, upstreamOf } from './llm/providers.ts';
import { LIST_PRICES } from './usage/list-prices.ts';
import { pricesIn } from './usage/prices-file.ts';
import type { PriceDocument } from './usage/prices.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

/** Where the rows are. */
export type DatabaseConfig =
  | { readonly kind: 'embedded' }
  | { readonly kind: 'postgres'; readonly url: string; readonly ownerUrl: string | null };

export type RootKeyConfig = { readonly kind: 'file'; readonly path: string } | { readonly kind: 'passphrase'; readonly passphrase: string };

export interface Config {
  /** 0 for any free port. */
  readonly port: number;
  readonly host: string;
  /** The origin under which people and devices reach this service; `null` for the loopback names of the port. */
  readonly publicOrigin: string | null;
  /** Absolute. */
  readonly dataDir: string;
  readonly database: DatabaseConfig;
  /** Where nonces and limits are; `null` for nonces in the database, and limits in the memory of this process. */
  readonly redisUrl: string | null;
  readonly rootKey: RootKeyConfig;
  /** Where checkpoints of the audit log are kept outside of the database. Absolute. */
  readonly checkpointDir: string;
  /** Which restored state of the audit log the operator answers for, as the refusal named it. */
  readonly acknowledgedRestore: string | null;
  readonly administrator: { readonly email: string; readonly password: string } | null;
  readonly oidc: OidcConfig | null;
  /** By the provider's name: the operator's key, if any, and where calls go; `null` where only the operator could say. */
  readonly providers: ReadonlyMap<string, { readonly apiKey: string | null; readonly upstream: TrustedUpstream | null }>;
  /** Exact origins to which stored keys with an address of their own may be sent. */
  readonly upstreamOrigins: ReadonlySet<string>;
  /** The built-in list, or that of `KEYGUARD_PRICES_FILE`. */
  readonly prices: PriceDocument;
  readonly requestsPerMinute: number;
  readonly enrollmentsPerMinute: number;
  /** The largest file that a call may bring. */
  readonly maxUploadBytes: number;
  /** Exact origins whose pages may call the proxy and the enrollment routes. */
  readonly allowedOrigins: ReadonlySet<string>;
  /** How many proxies stand between the callers and this process. */
  readonly trustedHops: number;
  readonly logLevel: LogLevel;
  /** What is set and has no effect; to be shown. */
  readonly notices: readonly string[];
}

/** What of it is secret, for whoever must keep it out of what is written. */
export function secretsOf({ rootKey, administrator, providers, oidc, database, redisUrl }: Config): readonly string[] {
  const urls = [...(database.kind === 'postgres' ? [database.url, database.ownerUrl] : []), redisUrl].filter((url) => url !== null);
  const inUrls = urls.flatMap((url) => {
    const { password } = new URL(url);
    return [password, decodeURIComponent(password)];
  });
  const own = [rootKey.kind === 'passphrase' ? rootKey.passphrase : null, administrator?.password ?? null, oidc?.clientSecret ?? null, ...[...providers.values()].map(({ apiKey: key }) => key)];
  return [...new Set([...own, ...inUrls])].filter((secret) => secret !== null && secret !== '') as string[];
}

/** A provider of sign-in by OpenID Connect. */
export interface OidcConfig {
  /** As it calls itself. */
  readonly issuer: string;
  readonly clientId: string;
  /** `null` for a public client, which PKCE alone protects. */
  readonly clientSecret: string | null;
  readonly idTokenAlgorithm: string;
  /** Of which domains addresses may come in; empty for all. */
  readonly emailDomains: ReadonlySet<string>;
  /** Whose addresses come in without an invitation. */
  readonly signUpDomains: ReadonlySet<string>;
}

/** One line per fault. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
  readonly faults: readonly string[];

  constructor(faults: readonly string[]) {
    super(`The configuration has ${faults.length === 1 ? 'a fault' : `${faults.length} faults`}:\n${faults.map((fault) => `  - ${fault}`).join('\n')}`);
    this.faults = faults;
  }
}

const MEBIBYTE = 1024 * 1024;
const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** The one rule for passwords of people: length. */
export const MIN_PASSWORD_CHARACTERS = 12;
export const MAX_PASSWORD_CHARACTERS = 128;

const NOT_YET: Readonly<Record<string, string>> = {
  SENTRY_DSN: 'Sentry is not supported by this version: errors are in the log. Remove it',
};
// Kubernetes sets these for services called "keyguard" or "keyguard-…".
const SET_BY_CLUSTER = /^KEYGUARD_(?:[A-Z0-9_]+_)?(?:SERVICE_(?:HOST|PORT(?:_.*)?)|PORT(?:_[0-9]+_.*)?)$/;
// The command line's own, and the tests'.
const NOT_OURS = new Set(['KEYGUARD_URL', 'KEYGUARD_EMAIL', 'KEYGUARD_PASSWORD', 'KEYGUARD_SETUP_CODE', 'KEYGUARD_KILL_ROUNDS', 'KEYGUARD_AUDIT_ENTRIES', 'KEYGUARD_APPENDS', 'KEYGUARD_COPIES', 'KEYGUARD_REQUIRE_REDIS', 'KEYGUARD_REQUIRE_JUDGES', 'KEYGUARD_TEST_BACKEND', 'KEYGUARD_SLOW_TESTS', 'KEYGUARD_ROTATED_ROWS']);
// oxlint-disable-next-line no-control-regex -- that is what must not be in there
const CONTROL = /[\u0000-\u001f\u007f]/;

const integer = (fallback: number, min: number, max: number): z.ZodType<number, string | undefined> =>
  z
    .string()
    .optional()
    .transform((text, context) => {
      const value = text === undefined ? fallback : /^(?:0|[1-9][0-9]{0,9})$/.test(text) ? Number(text) : Number.NaN;
      if (value >= min && value <= max) return value;
      context.addIssue({ code: 'custom', message: `must be a whole number from ${min} to ${max}` });
      return z.NEVER;
    });

const checked = (isValid: (text: string) => boolean, message: string): z.ZodType<string | undefined, string | undefined> =>
  z.string().refine(isValid, message).optional();

/** The origin that `text` is, exactly, but for one slash at the end; `null` for anything more or else. */
function originOf(text: string): string | null {
  try {
    const url = new URL(text);
    const bare = url.pathname === '/' && url.search === '' && url.hash === '' && url.username === '' && url.password === '';
    return /^https?:$/.test(url.protocol) && bare && /^[a-z0-9.:[\]-]+$/.test(url.host) ? url.origin : null;
  } catch {
    return null;
  }
}

function isUrlOf(text: string, ...protocols: readonly string[]): boolean {
  try {
    return protocols.includes(new URL(text).protocol);
  } catch {
    return false;
  }
}

const originList = z
  .string()
  .optional()
  .transform((text, context) => {
    const origins = new Set<string>();
    for (const item of (text ?? '').split(',').map((part) => part.trim())) {
      if (item === '') continue;
      const origin = originOf(item);
      if (origin === null) {
        context.addIssue({ code: 'custom', message: `must be exact origins such as https://app.example.com, with commas between: "${item.slice(0, 100)}" is none` });
      } else origins.add(origin);
    }
    return origins;
  });

/** Keys go there: https, or http on this machine. */
const isSafeOrigin = (origin: string): boolean => origin.startsWith('https:') || ['localhost', '127.0.0.1', '[::1]'].includes(new URL(origin).hostname);
const upstreamOriginList = originList.superRefine((origins, context) => {
  for (const origin of origins) if (!isSafeOrigin(origin)) context.addIssue({ code: 'custom', message: `must be https, but for this machine: "${origin}" is not` });
});

const domainList = z
  .string()
  .optional()
  .transform((text, context) => {
    const domains = (text ?? '').split(',').map((part) => part.trim().toLowerCase()).filter((part) => part !== '');
    for (const domain of domains) {
      if (!/^[a-z0-9-]+(?:\.[a-z0-9-]+)+$/.test(domain)) context.addIssue({ code: 'custom', message: `must be domains such as example.com, with commas between: "${domain.slice(0, 100)}" is none` });
    }
    return new Set(domains);
  });

/** https, or http on this machine, without credentials, query and fragment. */
function isIssuer(text: string): boolean {
  try {
    const { protocol, hostname, username, password, search, hash } = new URL(text);
    const isSafe = protocol === 'https:' || (protocol === 'http:' && ['localhost', '127.0.0.1', '[::1]'].includes(hostname));
    return isSafe && username === '' && password === '' && search === '' && hash === '';
  } catch {
    return false;
  }
}

const characters = (text: string): number => [...text].length;
const isPassword = (text: string): boolean => characters(text) >= MIN_PASSWORD_CHARACTERS && characters(text) <= MAX_PASSWORD_CHARACTERS;
const apiKey = checked((text) => /^[\x21-\x7e]{8,512}$/.test(text), 'must be 8 to 512 printable characters without spaces');
const databaseUrl = checked((text) => isUrlOf(text, 'postgres:', 'postgresql:'), 'must be a URL that begins with postgres:// or postgresql://');

/** For each provider the two variables that its own SDK reads. */
function providerSettings(): Record<string, z.ZodType<string | undefined, string | undefined>> {
  const settings: Record<string, z.ZodType<string | undefined, string | undefined>> = {};
  for (const provider of PROVIDERS) {
    settings[provider.keyVariable] = apiKey;
    settings[provider.baseUrlVariable] = z
      .string()
      .superRefine((text, context) => {
        try {
          upstreamOf(provider, text);
        } catch (error) {
          const said = error instanceof Error ? error.message : '';
          const message = said.startsWith(provider.baseUrlVariable) ? said.slice(provider.baseUrlVariable.length + 1).replace(/\.$/, '') : 'is not usable';
          context.addIssue({ code: 'custom', message });
        }
      })
      .optional();
  }
  return settings;
}

const schema = z.object({
  PORT: integer(3000, 0, 65_535),
  HOST: checked((text) => /^[A-Za-z0-9.:-]{1,253}$/.test(text), 'must be a host name or an address'),
  KEYGUARD_PUBLIC_URL: checked((text) => originOf(text) !== null, 'must be http(s)://host[:port] and nothing more'),
  KEYGUARD_DATA_DIR: checked((text) => !CONTROL.test(text), 'must be a path'),
  DATABASE_URL: databaseUrl,
  DATABASE_OWNER_URL: databaseUrl,
  REDIS_URL: checked((text) => isUrlOf(text, 'redis:', 'rediss:'), 'must be a URL that begins with redis:// or rediss://'),
  KEYGUARD_ROOT_KEY_FILE: checked((text) => !CONTROL.test(text), 'must be a path'),
  KEYGUARD_CHECKPOINT_DIR: checked((text) => !CONTROL.test(text), 'must be a path'),
  KEYGUARD_ACKNOWLEDGE_RESTORE: checked((text) => /^[0-9a-f]{16}$/.test(text), 'must be what the refused start has printed'),
  KEYGUARD_PASSPHRASE: checked((text) => characters(text) >= 16 && !text.includes('\0'), 'must have at least 16 characters'),
  KEYGUARD_ADMIN_EMAIL: checked((text) => z.email().safeParse(text).success, 'must be an e-mail address'),
  KEYGUARD_ADMIN_PASSWORD: checked(isPassword, `must have ${MIN_PASSWORD_CHARACTERS} to ${MAX_PASSWORD_CHARACTERS} characters`),
  ...providerSettings(),
  KEYGUARD_OIDC_ISSUER: checked(isIssuer, 'must be an https address, or an http one of this machine, without credentials, query and fragment'),
  KEYGUARD_OIDC_CLIENT_ID: checked((text) => /^[\x21-\x7e]{1,256}$/.test(text), 'must be 1 to 256 printable characters without spaces'),
  KEYGUARD_OIDC_CLIENT_SECRET: checked((text) => /^[\x20-\x7e]{1,512}$/.test(text), 'must be 1 to 512 printable characters'),
  KEYGUARD_OIDC_ID_TOKEN_ALGORITHM: z.enum(['RS256', 'PS256', 'ES256', 'EdDSA'], { error: 'must be one of RS256, PS256, ES256, EdDSA' }).default('RS256'),
  KEYGUARD_OIDC_EMAIL_DOMAINS: domainList,
  KEYGUARD_OIDC_SIGN_UP_DOMAINS: domainList,
  KEYGUARD_REQUESTS_PER_MINUTE: integer(600, 1, 1_000_000),
  KEYGUARD_ENROLLMENTS_PER_MINUTE: integer(20, 1, 100_000),
  KEYGUARD_MAX_UPLOAD_BYTES: integer(64 * MEBIBYTE, MEBIBYTE, 1024 * MEBIBYTE),
  KEYGUARD_ALLOWED_ORIGINS: originList,
  KEYGUARD_UPSTREAM_ORIGINS: upstreamOriginList,
  KEYGUARD_PRICES_FILE: z.string().optional(),
  TRUST_PROXY: integer(0, 0, 16),
  LOG_LEVEL: z.enum(LOG_LEVELS, { error: `must be one of ${LOG_LEVELS.join(', ')}` }).default('info'),
});

export const SETTINGS: readonly string[] = Object.keys(schema.shape);

/** Faults of settings that do not go together; told also where others have faults of their own. */
function faultsTogether(given: Readonly<Record<string, string>>): string[] {
  const faults: string[] = [];
  const isSet = (name: string): boolean => given[name] !== undefined;
  if (isSet('DATABASE_OWNER_URL') && !isSet('DATABASE_URL')) {
    faults.push('DATABASE_OWNER_URL: is for migrations: DATABASE_URL must be set as well, for a login without rights of its own.');
  }
  if (isSet('KEYGUARD_ROOT_KEY_FILE') && isSet('KEYGUARD_PASSPHRASE')) {
    faults.push('KEYGUARD_PASSPHRASE: cannot be set together with KEYGUARD_ROOT_KEY_FILE: there is one root key.');
  }
  if (isSet('KEYGUARD_ADMIN_EMAIL') !== isSet('KEYGUARD_ADMIN_PASSWORD')) {
    faults.push('KEYGUARD_ADMIN_EMAIL: and KEYGUARD_ADMIN_PASSWORD must be set together or not at all.');
  }
  if (isSet('KEYGUARD_OIDC_ISSUER') !== isSet('KEYGUARD_OIDC_CLIENT_ID')) {
    faults.push('KEYGUARD_OIDC_ISSUER: and KEYGUARD_OIDC_CLIENT_ID must be set together or not at all.');
  }
  for (const name of ['CLIENT_SECRET', 'ID_TOKEN_ALGORITHM', 'EMAIL_DOMAINS', 'SIGN_UP_DOMAINS'].map((last) => `KEYGUARD_OIDC_${last}`)) {
    if (isSet(name) && !isSet('KEYGUARD_OIDC_ISSUER')) faults.push(`${name}: means nothing without KEYGUARD_OIDC_ISSUER.`);
  }
  // Clients sign for a host without the default port of either scheme.
  const publicOrigin = given['KEYGUARD_PUBLIC_URL'] === undefined ? null : originOf(given['KEYGUARD_PUBLIC_URL']);
  if (publicOrigin !== null && /:(?:80|443)$/.test(new URL(publicOrigin).host)) {
    faults.push("KEYGUARD_PUBLIC_URL: must not name the other scheme's default port.");
  }
  if (given['PORT'] === '443' && !isSet('KEYGUARD_PUBLIC_URL')) {
    faults.push('PORT: 443 is the port of https, which this process does not speak: set KEYGUARD_PUBLIC_URL to the https address in front of it, or another PORT.');
  }
  return faults;
}

/**
 * `.env` of `folder` under what is set already, which wins.
 * @throws ConfigError when there is one that cannot be read
 */
export function withDotEnv(environment: Environment, folder: string): Environment {
  let text: string;
  try {
    text = readFileSync(resolve(folder, '.env'), 'utf8');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return environment;
    throw new ConfigError([`.env in ${folder} cannot be read (${code ?? 'unknown error'})`]);
  }
  return { ...parseEnv(text), ...environment };
}

/**
 * The configuration that `environment` (trusted: the operator's) describes. Relative paths are below `folder`; an empty value is
 * as good as none.
 * @throws ConfigError with every fault
 */
export function readConfig(environment: Environment, folder: string): Config {
  const set = Object.entries(environment).filter((entry): entry is [string, string] => entry[1] !== undefined && entry[1] !== '');
  const given = Object.fromEntries(set.filter(([name]) => SETTINGS.includes(name)));
  const faults: string[] = [];
  for (const [name] of set) {
    if (name in NOT_YET) faults.push(`${name}: ${NOT_YET[name]}.`);
    else if (name.startsWith('KEYGUARD_') && !SETTINGS.includes(name) && !NOT_OURS.has(name) && !SET_BY_CLUSTER.test(name)) {
      faults.push(`${name}: is not a setting of this version.`);
    }
  }
  faults.push(...faultsTogether(given));
  const pricesFile = given['KEYGUARD_PRICES_FILE'];
  const prices = pricesFile === undefined ? LIST_PRICES : pricesIn(resolve(folder, pricesFile));
  if ('faults' in prices) faults.push(...prices.faults.map((fault) => `KEYGUARD_PRICES_FILE: ${fault}.`));
  const parsed = schema.safeParse(given);
  if (!parsed.success) faults.push(...parsed.error.issues.map(({ path, message }) => `${path.join('.')}: ${message}.`));
  if (faults.length > 0 || !parsed.success || 'faults' in prices) throw new ConfigError(faults.toSorted());
  const env = parsed.data;
  const dataDir = resolve(folder, env.KEYGUARD_DATA_DIR ?? 'data');
  const providers = new Map(
    PROVIDERS.map((provider) => [
      provider.name,
      { apiKey: given[provider.keyVariable] ?? null, upstream: upstreamOf(provider, given[provider.baseUrlVariable] ?? null) },
    ]),
  );
  const notices = PROVIDERS.filter(({ name }) => providers.get(name)?.apiKey !== null && providers.get(name)?.upstream === null).map(
    ({ keyVariable, baseUrlVariable }) => `${keyVariable} is set, and nothing says where it may be sent: it is not used before ${baseUrlVariable} is set as well.`,
  );
  return {
    port: env.PORT,
    host: env.HOST ?? '127.0.0.1',
    publicOrigin: env.KEYGUARD_PUBLIC_URL === undefined ? null : originOf(env.KEYGUARD_PUBLIC_URL),
    dataDir,
    database:
      env.DATABASE_URL === undefined
        ? { kind: 'embedded' }
        : { kind: 'postgres', url: env.DATABASE_URL, ownerUrl: env.DATABASE_OWNER_URL ?? null },
    redisUrl: env.REDIS_URL ?? null,
    rootKey:
      env.KEYGUARD_PASSPHRASE === undefined
        ? { kind: 'file', path: env.KEYGUARD_ROOT_KEY_FILE === undefined ? resolve(dataDir, 'root.key') : resolve(folder, env.KEYGUARD_ROOT_KEY_FILE) }
        : { kind: 'passphrase', passphrase: env.KEYGUARD_PASSPHRASE },
    checkpointDir: resolve(env.KEYGUARD_CHECKPOINT_DIR === undefined ? dataDir : folder, env.KEYGUARD_CHECKPOINT_DIR ?? 'checkpoints'),
    acknowledgedRestore: env.KEYGUARD_ACKNOWLEDGE_RESTORE ?? null,
    administrator:
      env.KEYGUARD_ADMIN_EMAIL === undefined || env.KEYGUARD_ADMIN_PASSWORD === undefined
        ? null
        : { email: env.KEYGUARD_ADMIN_EMAIL.toLowerCase(), password: env.KEYGUARD_ADMIN_PASSWORD },
    providers,
    upstreamOrigins: env.KEYGUARD_UPSTREAM_ORIGINS,
    prices,
    oidc:
      env.KEYGUARD_OIDC_ISSUER === undefined || env.KEYGUARD_OIDC_CLIENT_ID === undefined
        ? null
        : {
            issuer: env.KEYGUARD_OIDC_ISSUER,
            clientId: env.KEYGUARD_OIDC_CLIENT_ID,
            clientSecret: env.KEYGUARD_OIDC_CLIENT_SECRET ?? null,
            idTokenAlgorithm: env.KEYGUARD_OIDC_ID_TOKEN_ALGORITHM,
            emailDomains: env.KEYGUARD_OIDC_EMAIL_DOMAINS,
            signUpDomains: env.KEYGUARD_OIDC_SIGN_UP_DOMAINS,
          },
    requestsPerMinute: env.KEYGUARD_REQUESTS_PER_MINUTE,
    enrollmentsPerMinute: env.KEYGUARD_ENROLLMENTS_PER_MINUTE,
    maxUploadBytes: env.KEYGUARD_MAX_UPLOAD_BYTES,
    allowedOrigins: env.KEYGUARD_ALLOWED_ORIGINS,
    trustedHops: env.TRUST_PROXY,
    logLevel: env.LOG_LEVEL,
    notices,
  };
}
