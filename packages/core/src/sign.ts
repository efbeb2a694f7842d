/**
 * Request + {@link SigningKey} → the headers that carry the signature, in either carriage. Refuses early, with a clear error,
 * what a verifier would refuse. Sends nothing and keeps nothing.
 *
 * @see docs/spec/request-signing.md
 */
import { toBase64, toBase64Url, utf8 } from './bytes.ts';
import {
  CARRIAGE_HEADERS,
  COVERED_HEADERS,
  isAuthority,
  isFieldValue,
  isMethod,
  isTimestamp,
  isUnsupportedHeader,
  MAX_TARGET_BYTES,
  PROTOCOL_VERSION,
  RFC9421_FIELDS,
  signatureBase,
  splitTarget,
  type Carriage,
  type CarriageHeader,
  type CoveredHeader,
  type Rfc9421Field,
  type SignatureTag,
} from './canonical.ts';
import { UnavailableError, UsageError } from './errors.ts';
import { webCryptoPrimitives } from './primitives.ts';
import { writeFields } from './rfc9421.ts';
import type { Bytes, Clock, Primitives, Random, SigningKey } from './seams.ts';
import { systemClock, webCryptoRandom } from './system.ts';

/** How much randomness a nonce holds. */
export const NONCE_BYTES = 16;
// The hash is of the bytes as they are, and one request has one carriage.
const REFUSED: Record<Carriage, ReadonlySet<string>> = {
  headers: new Set(['content-encoding', 'signature', 'signature-input']),
  rfc9421: new Set(['content-encoding', ...RFC9421_FIELDS, ...CARRIAGE_HEADERS]),
};

/** A request as it will go over the wire. */
export interface UnsignedRequest {
  /** Upper-case. */
  readonly method: string;
  /** Lower-case `host` or `host:port`, the default port of the scheme dropped: what `URL.host` gives. */
  readonly authority: string;
  /** Origin-form: path and query exactly as they are sent. */
  readonly target: string;
  /** All headers, by lower-case name. Those that are not covered are looked at only to refuse unsupported ones. */
  readonly headers: Iterable<readonly [name: string, value: string]>;
  /** The body bytes; empty when there is none. */
  readonly body: Bytes;
}

/** With which key to sign, and what to draw on. Every default is the platform's own. */
export interface SignerOptions<C extends Carriage = Carriage> {
  readonly key: SigningKey;
  /** How the signature travels; it must be what the verifier's policy takes. Default `headers`. */
  readonly carriage?: C;
  readonly clock?: Clock;
  readonly random?: Random;
  readonly primitives?: Pick<Primitives, 'sha256'>;
}

/** The headers that a signer gives, by lower-case name. */
export interface SignatureHeaders {
  headers: Record<CarriageHeader, string>;
  rfc9421: Record<Rfc9421Field, string>;
}

/** Signs one request for one purpose; every call draws a fresh nonce and reads the clock. */
export type Signer<C extends Carriage = 'headers'> = (request: UnsignedRequest, tag?: SignatureTag) => Promise<SignatureHeaders[C]>;

/**
 * A signer for one key.
 * The signer throws UsageError `target_unsupported` or `header_unsupported` for what no verifier would accept, and
 * UnavailableError for a clock that tells no time.
 * @throws UsageError `invalid_option`
 */
export function createSigner<C extends Carriage = 'headers'>(options: SignerOptions<C>): Signer<C> {
  const carriage: Carriage = options.carriage ?? 'headers';
  const refused = REFUSED[carriage];
  if (refused === undefined) throw new UsageError('invalid_option', 'carriage must be "headers" or "rfc9421".');
  const { key, clock = systemClock, random = webCryptoRandom(), primitives = webCryptoPrimitives() } = options;

  return async (request, tag = 'keyguard-v1') => {
    const { method, authority } = request;
    if (!isMethod(method)) throw new UsageError('target_unsupported', 'The method must be 1 to 16 upper-case letters.');
    if (!isAuthority(authority)) {
      throw new UsageError('target_unsupported', 'The authority must be a lower-case host, with a port where it is not the default.');
    }
    const target = splitTarget(request.target);
    if (target === null) {
      throw new UsageError(
        'target_unsupported',
        `The request target cannot be signed: it must be a path of at most ${MAX_TARGET_BYTES} bytes in printable ASCII without empty ` +
          'or dot segments, fragments, and percent-encoded slashes, dots, backslashes, percent signs or control characters.',
      );
    }
    const { contentType, coveredHeaders } = selectHeaders(request.headers, refused);
    const bodySha256 = toBase64(await primitives.sha256(request.body));
    const timestamp = String(Math.floor(clock.nowMs() / 1000));
    if (!isTimestamp(timestamp)) throw new UnavailableError('clock', 'The clock gave no time that could be signed.');
    const nonce = toBase64Url(random.bytes(NONCE_BYTES));
    const { keyId } = key;
    const parts = { method, authority, path: target.path, query: target.query, bodySha256, contentType, coveredHeaders, timestamp, keyId, nonce };
    const signature = toBase64(await key.sign(utf8(signatureBase(parts, tag))));
    const signed: SignatureHeaders[Carriage] =
      carriage === 'rfc9421'
        ? writeFields(parts, tag, signature)
        : {
            'x-keyguard-version': PROTOCOL_VERSION,
            'x-keyguard-key-id': keyId,
            'x-keyguard-timestamp': timestamp,
            'x-keyguard-nonce': nonce,
            'x-keyguard-body-sha256': bodySha256,
            'x-keyguard-signature': signature,
          };
    return signed as SignatureHeaders[C];
  };
}

function selectHeaders(
  headers: UnsignedRequest['headers'],
  refused: ReadonlySet<string>,
): { contentType: string | null; coveredHeaders: CoveredHeader[] } {
  let contentType: string | null = null;
  const present = new Map<string, string>();
  for (const [name, value] of headers) {
    if (isUnsupportedHeader(name) || refused.has(name)) {
      throw new UsageError('header_unsupported', `The header ${name} is not part of protocol version 1, so it would be refused.`);
    }
    if (name !== 'content-type' && !COVERED_HEADERS.includes(name)) continue;
    if (!isFieldValue(value)) {
      throw new UsageError('header_unsupported', `The header ${name} must be printable ASCII, not empty and at most 1 KiB.`);
    }
    if (present.has(name) || (name === 'content-type' && contentType !== null)) {
      throw new UsageError('header_unsupported', `The header ${name} must occur once.`);
    }
    if (name === 'content-type') contentType = value;
    else present.set(name, value);
  }
  const coveredHeaders: CoveredHeader[] = [];
  for (const name of COVERED_HEADERS) {
    const value = present.get(name);
    if (value !== undefined) coveredHeaders.push([name, value]);
  }
  return { contentType, coveredHeaders };
}
