/**
 * What the proxy must know of a provider, and the one form in which the place of an upstream is believed.
 */
import { isPath } from '@keyguard/core/canonical';
import { UsageError } from '@keyguard/core/errors';
import type { Failure, FailureCode } from './failures.ts';
import type { CallModels, ModelQuestion } from './models.ts';

/** What a provider itself reported of a call, summed up by its own counting; `null` for what it said nothing of. */
export interface Usage {
  readonly model: string | null;
  readonly inputTokens: number | null;
  readonly outputTokens: number | null;
  /** Of the input, what came out of a cache and what was put into one, which have prices of their own. */
  readonly cachedInputTokens: number | null;
  readonly cacheWriteTokens: number | null;
}

/** Reads one call's answer as it passes. Everything that it is given is untrusted, and nothing makes it throw. */
export interface Meter {
  /** Only the first event, and those with one of these texts in them, are given to {@link Meter.event}. */
  readonly marks: readonly string[];
  /** The data of one server-sent event. */
  event(data: string): void;
  /** The value of an answer that is one JSON text. */
  answer(value: unknown): void;
  /** Whether the stream came to the end that every whole stream of its kind comes to; `null` where there is no such end. */
  isWhole(): boolean | null;
  usage(): Usage;
}

/** What a call says of what it will use, as far as a budget wants to know; `null` for what it does not say. */
export interface Asked {
  readonly model: string | null;
  /** Of all its answers together. */
  readonly maxOutputTokens: number | null;
  /** Whether it may go on when it is answered, so that its answer need not tell what it used. */
  readonly isInBackground: boolean;
}

/**
 * What a call uses, and where that is told: `none` is used; its answer tells it (`here`); or it is told later, in another call or
 * nowhere (`elsewhere`), as of batches, and of whatever nobody here knows.
 */
export type Spending = 'none' | 'here' | 'elsewhere';

/** How much a route takes: little, as much as a call may hold, or files, for which the operator sets the limit. */
export type BodySize = 'small' | 'call' | 'upload';

/** What a stored key may say beside its value, where its provider's keys may. */
export interface KeyOptions {
  readonly deployment: string | null;
  /** For calls that name none. */
  readonly apiVersion: string | null;
}

/** A call by which a key is tried: one that costs nothing, and that only a good key gets an answer to. */
export interface ProbeCall {
  /** Below the base, without a slash at its start. */
  readonly rest: string;
  readonly query: string;
  /** Beside those that carry the key. */
  readonly headers: Readonly<Record<string, string>>;
}

/** What it means for calls that a key names a deployment and a version of the API. */
export interface KeyConfinement {
  /** Whether a call of that path is one of the deployment. */
  serves(rest: string, deployment: string): boolean;
  /** The query of a call of that path, with the key's version where the caller named none. */
  versioned(rest: string, query: string, apiVersion: string): string;
}

/** One provider. Everything that is particular to it lives in the one file that makes this object. */
export interface Provider {
  /** As in `/proxy/{name}/…` and in the audit log. */
  readonly name: string;
  /** As people write it. */
  readonly title: string;
  /** The environment variable that holds the operator's key. */
  readonly keyVariable: string;
  /** The environment variable that holds the operator's base URL, as the provider's own SDK reads it. */
  readonly baseUrlVariable: string;
  /** The base URL where the operator names none; `null` where the operator must. */
  readonly defaultBaseUrl: string | null;
  /** How a base URL ends, as the provider's own SDK wants it. */
  readonly baseUrlSuffix: string;
  /** Where clients address it: a prefix of the signed path, exact to the letter, with its last slash. */
  readonly prefix: string;
  /** Further signed paths, and the rest of the path for which each stands. */
  readonly aliases: ReadonlyMap<string, string>;
  /** Why a call of that path is not handed on, or `null`. */
  refusal(rest: string, query: string): FailureCode | null;
  /** Which models a call of that path runs, for those who are held to some. Asked of nothing that {@link Provider.refusal} refuses. */
  models(rest: string, question: ModelQuestion): CallModels;
  /** How large a body of that path may be; `form` where it is `multipart/form-data`. */
  bodySize(rest: string, form: boolean): BodySize;
  /** What of a signed query is handed on: everything but credentials. */
  query(query: string): string;
  /** Covered headers that mean something to this provider, lower-case. No other header of the caller's is handed on. */
  readonly requestHeaders: ReadonlySet<string>;
  /** Headers of this provider's that a client may see, besides those that all providers share: exact names, lower-case. */
  readonly responseHeaders: ReadonlySet<string>;
  /** Further such headers by how their lower-case names begin. */
  readonly responseHeaderPrefixes: readonly string[];
  /** The headers that carry the provider key. */
  authorization(apiKey: string): Readonly<Record<string, string>>;
  /** How a key is tried. */
  probe(options: KeyOptions): ProbeCall;
  /** Left out where keys of the provider name no deployment and no version. */
  readonly confinement?: KeyConfinement;
  /** The body of an error answer, as the provider's own SDK reads it: JSON. */
  errorBody(failure: Failure): string;
  /** The event that ends a broken stream, so that the provider's own SDK raises; with its blank line. */
  errorEvent(rest: string, failure: Failure): string;
  /** What a call of that path asks for; `body` is the value of its JSON, or `undefined` where it is none, or could be read differently. Untrusted, and nothing makes it throw. */
  asks(rest: string, body: unknown): Asked;
  /** What a POST of that path uses. */
  spends(rest: string): Spending;
  /** A meter for one call of that path. */
  meter(rest: string): Meter;
}

declare const trusted: unique symbol;

/** Where a provider key may be sent. Made by {@link trustedUpstream} from the operator's configuration, by nothing else. */
export interface TrustedUpstream {
  readonly [trusted]: true;
  readonly secure: boolean;
  /** As `node:http` wants it: an IPv6 address without its brackets. */
  readonly hostname: string;
  readonly port: number;
  /** `host[:port]`, the default port dropped. */
  readonly authority: string;
  /** Stands before every path that is asked for; without a slash at its end. */
  readonly basePath: string;
}

const LOOPBACK = /^(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])$/;

/**
 * The upstream that `baseUrl` names. `baseUrl` is trusted: it MUST come from the operator and never from a request.
 * Plain `http` is for loopback only, as a provider key goes there.
 * @throws UsageError `invalid_option`
 */
export function trustedUpstream(baseUrl: string, { baseUrlVariable: variable, baseUrlSuffix: suffix }: Pick<Provider, 'baseUrlVariable' | 'baseUrlSuffix'>): TrustedUpstream {
  const refuse = (why: string): UsageError => new UsageError('invalid_option', `${variable} ${why}.`);
  let url: URL;
  try {
    url = new URL(baseUrl);
  } catch (cause) {
    throw new UsageError('invalid_option', `${variable} must be an absolute URL.`, { cause });
  }
  const { protocol, hostname, port, host, search, hash, username, password } = url;
  const secure = protocol === 'https:';
  if (!secure && protocol !== 'http:') throw refuse('must begin with https://');
  if (!secure && !LOOPBACK.test(hostname)) throw refuse('may begin with http:// for a loopback address only: a provider key is sent there');
  if (username !== '' || password !== '') throw refuse('must not hold a user name or a password');
  if (search !== '' || hash !== '') throw refuse('must not hold a query or a fragment');
  const basePath = url.pathname.replace(/\/+$/, '');
  if (!basePath.endsWith(suffix)) throw refuse(`must end in ${suffix}`);
  if (!isPath(`${basePath}/`)) throw refuse('holds a path that cannot be handed on as it is');
  return Object.freeze({
    secure,
    hostname: hostname.replace(/^\[(.*)\]$/, '$1'),
    port: port === '' ? (secure ? 443 : 80) : Number(port),
    authority: host,
    basePath,
  }) as TrustedUpstream;
}
