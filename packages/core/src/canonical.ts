/**
 * The wire grammar and the string that is signed: the only copy of both. Pure; it never hashes, signs or remembers.
 *
 * The signature base is an RFC 9421 signature base with a fixed template, so every outside verifier of RFC 9421 can check it.
 * It is injective: no value can hold a line feed, every line starts with a constant name, and the parameters have fixed
 * lengths. Nothing is ever normalised: odd input is refused, because a second spelling is a way around a rule.
 *
 * @see RFC 9421 section 2.5; docs/spec/request-signing.md
 */

/** The one protocol version that this package speaks. It fixes every algorithm; there is no negotiation. */
export const PROTOCOL_VERSION = '1';

/** What a signature is for. The route on the verifier chooses it, never the sender. */
export type SignatureTag = 'keyguard-v1' | 'keyguard-enroll-v1' | 'keyguard-rotate-v1';

/** How far a request may be dated from the verifier's clock, in seconds; both ends are in. These are ceilings. */
export const MAX_AGE_SECONDS = 300;
/** How far a request may be dated ahead of the verifier's clock, in seconds; a ceiling. @see MAX_AGE_SECONDS */
export const MAX_FUTURE_SECONDS = 60;

/** How long a key that was replaced may still verify. A ceiling. */
export const MAX_KEY_OVERLAP_MS = 60_000;

/** The longest request target that is signed or accepted. */
export const MAX_TARGET_BYTES = 8192;
/** The longest value of Content-Type and of each covered header. */
export const MAX_FIELD_VALUE_BYTES = 1024;

/**
 * How a signature travels: in the `x-keyguard-*` headers below, or in the fields of RFC 9421 (`rfc9421.ts`). What is signed is
 * the same. The verifier's policy says which one it takes; nothing is ever detected.
 */
export type Carriage = 'headers' | 'rfc9421';

/** The six headers that carry a signature by default, each exactly once. */
export const CARRIAGE_HEADERS = [
  'x-keyguard-version',
  'x-keyguard-key-id',
  'x-keyguard-timestamp',
  'x-keyguard-nonce',
  'x-keyguard-body-sha256',
  'x-keyguard-signature',
] as const;

/** One of {@link CARRIAGE_HEADERS}. */
export type CarriageHeader = (typeof CARRIAGE_HEADERS)[number];

/** The three fields that carry it in the other carriage, each exactly once. */
export const RFC9421_FIELDS = ['signature-input', 'signature', 'content-digest'] as const;

/** One of the fields of the RFC 9421 carriage. */
export type Rfc9421Field = (typeof RFC9421_FIELDS)[number];

/** Headers that are signed when they are present, in the order in which they are signed. */
export const COVERED_HEADERS: readonly string[] = [
  'anthropic-beta',
  'anthropic-user-profile-id',
  'anthropic-version',
  'anthropic-workspace-id',
  'idempotency-key',
  'openai-beta',
  'openai-organization',
  'openai-project',
  'x-keyguard-challenge',
  'x-keyguard-credential',
  'x-keyguard-token',
];

const COVERED: ReadonlySet<string> = new Set(COVERED_HEADERS);
const CARRIAGE: ReadonlySet<string> = new Set(CARRIAGE_HEADERS);

// Neither signed nor refused: official clients send them by themselves, and a proxy does not forward them.
const IGNORED: ReadonlySet<string> = new Set([
  'x-goog-api-key',
  'x-goog-api-client',
  'anthropic-dangerous-direct-browser-access',
]);

const GUARDED_PREFIX = /^(?:anthropic|openai|x-goog|x-keyguard)-/;

/**
 * Whether a header of this lower-case name must be refused: it looks as if it changed what a provider call means, yet version
 * 1 does not sign it, and dropping it in silence could change the call or whom it bills.
 */
export function isUnsupportedHeader(name: string): boolean {
  return GUARDED_PREFIX.test(name) && !COVERED.has(name) && !CARRIAGE.has(name) && !IGNORED.has(name);
}

// Each last-character class forces the trailing bits to zero, so that one byte string has one text.
const KEY_ID = /^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$/;
const TIMESTAMP = /^[1-9][0-9]{9}$/;
const NONCE = /^[A-Za-z0-9_-]{21}[AQgw]$/;
const BODY_SHA256 = /^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$/;
const METHOD = /^[A-Z]{1,16}$/;
const AUTHORITY = /^(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?$/;
const FIELD_VALUE = /^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$/;
// A percent sign may not hide a control character, a percent sign, a dot, a slash or a backslash.
const PATH = /^\/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%(?!0|1|2[5EFef]|5[Cc]|7[Ff])[0-9A-Fa-f]{2})*$/;
const DOT_SEGMENT = /\/\.{1,2}(?:[;/]|$)/;
const QUERY = /^[\x21\x22\x24-\x7e]*$/;

/** Whether `text` (untrusted) has the form of a key id: 32 bytes in unpadded base64url, in their one spelling. */
export const isKeyId = (text: string): boolean => KEY_ID.test(text);
/** Whether `text` (untrusted) is a time on the wire: Unix seconds in exactly ten digits. */
export const isTimestamp = (text: string): boolean => TIMESTAMP.test(text);
/** Whether `text` (untrusted) is a nonce: 16 bytes in unpadded base64url, in their one spelling. */
export const isNonce = (text: string): boolean => NONCE.test(text);
/** Whether `text` (untrusted) is a SHA-256 hash in padded base64, in its one spelling. */
export const isBodySha256 = (text: string): boolean => BODY_SHA256.test(text);
/** Whether `text` (untrusted) is a method: 1 to 16 upper-case letters. */
export const isMethod = (text: string): boolean => METHOD.test(text);
/** Lower-case `host` or `host:port`, with no default port. */
export const isAuthority = (text: string): boolean => text.length <= 261 && AUTHORITY.test(text);
/** The value of Content-Type or of a covered header. */
export const isFieldValue = (text: string): boolean => text.length <= MAX_FIELD_VALUE_BYTES && FIELD_VALUE.test(text);

/** A path that reads the same to every hop: no empty segment, no dot segment, nothing hidden behind a percent sign. */
export function isPath(text: string): boolean {
  return PATH.test(text) && !text.includes('//') && !(text.includes('/.') && DOT_SEGMENT.test(text));
}

/** What stands after the first `?` of a target; empty where there is none. */
export const isQuery = (text: string): boolean => QUERY.test(text);

/** The two parts of a request target, each within the grammar. */
export interface RequestTarget {
  readonly path: string;
  readonly query: string;
}

/** Splits an origin-form target (untrusted) into path and query; `null` when it is not one or breaks the grammar. */
export function splitTarget(target: string): RequestTarget | null {
  if (target.length > MAX_TARGET_BYTES) return null;
  const mark = target.indexOf('?');
  const path = mark < 0 ? target : target.slice(0, mark);
  const query = mark < 0 ? '' : target.slice(mark + 1);
  return isPath(path) && isQuery(query) ? { path, query } : null;
}

/** A header that is signed, by its lower-case name. */
export type CoveredHeader = readonly [name: string, value: string];

/** Everything that is signed, each part already checked against the grammar above. */
export interface SignedParts {
  readonly method: string;
  readonly authority: string;
  readonly path: string;
  /** Without the question mark; empty when there is none. */
  readonly query: string;
  /** Base64 SHA-256 of the body bytes. */
  readonly bodySha256: string;
  /** `null` when the request has no Content-Type. */
  readonly contentType: string | null;
  /** Those of {@link COVERED_HEADERS} that are present, in that order. */
  readonly coveredHeaders: readonly CoveredHeader[];
  /** Unix seconds, as on the wire. */
  readonly timestamp: string;
  readonly keyId: string;
  readonly nonce: string;
}

/** Those of the parts that the value of `@signature-params` names. */
export type NamedParts = Pick<SignedParts, 'contentType' | 'coveredHeaders' | 'timestamp' | 'keyId' | 'nonce'>;

/** The value of `@signature-params`, which is also what RFC 9421's `Signature-Input` carries after the label. */
export function signatureParams(parts: NamedParts, tag: string): string {
  let items = '("@method" "@authority" "@path" "@query" "content-digest"';
  if (parts.contentType !== null) items += ' "content-type"';
  for (const [name] of parts.coveredHeaders) items += ` "${name}"`;
  return `${items});created=${parts.timestamp};keyid="${parts.keyId}";nonce="${parts.nonce}";tag="${tag}"`;
}

/** The exact ASCII text that is signed. @see RFC 9421 section 2.5 */
export function signatureBase(parts: SignedParts, tag: SignatureTag): string {
  let base =
    `"@method": ${parts.method}\n"@authority": ${parts.authority}\n"@path": ${parts.path}\n"@query": ?${parts.query}\n` +
    `"content-digest": sha-256=:${parts.bodySha256}:\n`;
  if (parts.contentType !== null) base += `"content-type": ${parts.contentType}\n`;
  for (const [name, value] of parts.coveredHeaders) base += `"${name}": ${value}\n`;
  return `${base}"@signature-params": ${signatureParams(parts, tag)}`;
}

/** What the proof of a new key speaks of. Both ids and the two values of the headers are of fixed length. */
export interface RotationProofParts {
  /** The key that is replaced, and that signs the request. */
  readonly oldKeyId: string;
  /** The key that takes its place, and that signs this text. */
  readonly newKeyId: string;
  /** The request's `x-keyguard-timestamp`. */
  readonly timestamp: string;
  /** The request's `x-keyguard-nonce`. */
  readonly nonce: string;
}

/**
 * The exact ASCII text by which a new key proves that it is held by whoever rotates to it. It begins as no signature base does, so
 * neither signature passes for the other, and it is good for this one request only.
 */
export function rotationProofText({ oldKeyId, newKeyId, timestamp, nonce }: RotationProofParts): string {
  return `keyguard-rotate-proof-v1\n${oldKeyId}\n${newKeyId}\n${timestamp}\n${nonce}`;
}
