/**
 * Headers + body + public key + policy → verified, or throws. Steps 1, 2 and 4 of the protocol's recipe; no I/O and no memory:
 * who the device is, whether the nonce was used and how often it may call are for the verifier that calls this.
 *
 * Everything that arrives here is untrusted, the header names included.
 *
 * @see docs/spec/request-signing.md, RFC 9421 section 3.2
 */
import { fromBase64, toBase64, utf8 } from './bytes.ts';
import {
  CARRIAGE_HEADERS,
  COVERED_HEADERS,
  isBodySha256,
  isFieldValue,
  isKeyId,
  isMethod,
  isNonce,
  isTimestamp,
  isUnsupportedHeader,
  PROTOCOL_VERSION,
  RFC9421_FIELDS,
  signatureBase,
  splitTarget,
  type Carriage,
  type CarriageHeader,
  type CoveredHeader,
  type Rfc9421Field,
  type SignatureTag,
  type SignedParts,
} from './canonical.ts';
import { RejectedError } from './errors.ts';
import { readFields } from './rfc9421.ts';
import type { Bytes, Primitives, VerifyKey } from './seams.ts';

/** The head of a request as the server received it. */
export interface ReceivedHead {
  readonly method: string;
  /** The original request target, before any router rewrote it. */
  readonly target: string;
  /** Name, value, name, value … in the order received, doubled headers kept (Node's `rawHeaders`). */
  readonly rawHeaders: readonly string[];
}

/** A head that keeps the grammar. Nothing in it is proven yet. */
export interface SignedHead extends SignedParts {
  readonly createdSeconds: number;
  readonly signature: Bytes;
  /** The tag that the sender wrote; `null` in the default carriage, which states none. {@link verifyHead} demands the route's. */
  readonly statedTag: string | null;
}

function malformed(detail: string): RejectedError {
  return new RejectedError('malformed_request', 'The request is not a well-formed KeyGuard request: a KeyGuard client must sign it, in the carriage that this server takes.', { detail });
}

// eslint-disable-next-line no-control-regex
const NOT_ASCII = /[^\0-\x7f]/;
const MAX_HEADERS = 256;
const SIGNATURE_BYTES = 64;
const SIGNATURE_CHARACTERS = 88;
const OTHER_HEADERS = ['host', 'content-type', 'content-encoding', ...RFC9421_FIELDS] as const;

// Every name that matters, as the string that this file spells: V8 compares that one by its address, a received one by its letters.
const NAMES: ReadonlyMap<string, CarriageHeader | (typeof OTHER_HEADERS)[number] | 'covered'> = new Map([
  ...[...CARRIAGE_HEADERS, ...OTHER_HEADERS].map((name) => [name, name] as const),
  ...COVERED_HEADERS.map((name) => [name, 'covered'] as const),
]);

/**
 * Step 1: reads the head, or throws. `authorities` are trusted: the exact `host[:port]` values under which this server is
 * reached. One alone is taken as it is; of several, the request's only `Host` must name one. `carriage` is trusted: the one in
 * which the signature must come. Nothing is detected.
 * @throws RejectedError `malformed_request`, `unsupported_version`, `unsupported_header`, `unsupported_encoding`; and
 *   `signature_invalid` for a `Host` that is none of several `authorities`: the request was signed for another server
 */
export function readSignedHead(head: ReceivedHead, authorities: readonly string[], carriage: Carriage = 'headers'): SignedHead {
  const { method, target, rawHeaders } = head;
  if (!isMethod(method)) throw malformed('method');
  const split = splitTarget(target);
  if (split === null) throw malformed('target');

  // Far below the number at which servers begin to drop headers in silence.
  if (rawHeaders.length > 2 * MAX_HEADERS) throw malformed('too many headers');

  // One shape from the start, or every request would build it anew.
  const carried: Carried = {
    'x-keyguard-version': undefined,
    'x-keyguard-key-id': undefined,
    'x-keyguard-timestamp': undefined,
    'x-keyguard-nonce': undefined,
    'x-keyguard-body-sha256': undefined,
    'x-keyguard-signature': undefined,
  };
  const fields: Partial<Record<Rfc9421Field, string>> | null = carriage === 'rfc9421' ? {} : null;
  const covered: CoveredHeader[] = [];
  let contentType: string | null = null;
  let host: string | null = null;
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const raw = rawHeaders[i]!;
    const received = raw.toLowerCase();
    // U+212A becomes a k: what is no letter of ASCII must not become the name of a header that matters.
    if (received !== raw && NOT_ASCII.test(raw)) throw malformed('a header name that is not ASCII');
    const value = rawHeaders[i + 1]!;
    const name = NAMES.get(received);
    switch (name) {
      case 'x-keyguard-version':
      case 'x-keyguard-key-id':
      case 'x-keyguard-timestamp':
      case 'x-keyguard-nonce':
      case 'x-keyguard-body-sha256':
      case 'x-keyguard-signature':
        if (carried[name] !== undefined) throw malformed(`${name} twice`);
        carried[name] = value;
        break;
      case 'host':
        if (host !== null) throw malformed('host twice');
        host = value;
        break;
      case 'content-type':
        if (contentType !== null) throw malformed('content-type twice');
        if (!isFieldValue(value)) throw malformed('content-type');
        contentType = value;
        break;
      case 'content-encoding':
        if (value.toLowerCase() !== 'identity') {
          throw new RejectedError('unsupported_encoding', 'A signed body must not be compressed: the hash is of the bytes as they are.');
        }
        break;
      case 'signature-input':
      case 'signature':
      case 'content-digest':
        if (fields === null) {
          // A digest alone carries no signature: it is a header like any other.
          if (name === 'content-digest') break;
          throw malformed('the RFC 9421 carriage is not enabled');
        }
        if (fields[name] !== undefined) throw malformed(`${name} twice`);
        fields[name] = value;
        break;
      case 'covered':
        if (covered.some(([other]) => other === received)) throw malformed(`${received} twice`);
        if (!isFieldValue(value)) throw malformed(received);
        covered.push([received, value]);
        break;
      default:
        if (isUnsupportedHeader(received)) {
          throw new RejectedError('unsupported_header', `The header ${received.slice(0, 64)} is not part of protocol version 1.`);
        }
    }
  }
  if (covered.length > 1) covered.sort(([a], [b]) => COVERED_HEADERS.indexOf(a) - COVERED_HEADERS.indexOf(b));

  let statedTag: string | null = null;
  if (fields !== null) {
    if (CARRIAGE_HEADERS.some((name) => carried[name] !== undefined)) throw malformed('the x-keyguard-* carriage is not enabled');
    const read = readFields(fields, { contentType, coveredHeaders: covered });
    Object.assign(carried, read.values);
    ({ statedTag } = read);
  }
  const version = carried['x-keyguard-version'];
  if (version === undefined) throw malformed('x-keyguard-version missing');
  if (version !== PROTOCOL_VERSION) {
    throw new RejectedError('unsupported_version', `This server speaks version ${PROTOCOL_VERSION} of the protocol.`);
  }
  const timestamp = demand(carried, 'x-keyguard-timestamp', isTimestamp);
  // The strict decoder demands what the grammar does.
  const signature = fromBase64(demand(carried, 'x-keyguard-signature', (text) => text.length === SIGNATURE_CHARACTERS));
  if (signature?.length !== SIGNATURE_BYTES) throw malformed('x-keyguard-signature');
  return {
    method,
    authority: matchAuthority(host, authorities),
    path: split.path,
    query: split.query,
    bodySha256: demand(carried, 'x-keyguard-body-sha256', isBodySha256),
    contentType,
    coveredHeaders: Object.freeze(covered),
    timestamp,
    keyId: demand(carried, 'x-keyguard-key-id', isKeyId),
    nonce: demand(carried, 'x-keyguard-nonce', isNonce),
    createdSeconds: Number(timestamp),
    signature,
    statedTag,
  };
}

type Carried = Record<CarriageHeader, string | undefined>;

function demand(carried: Carried, name: CarriageHeader, hasForm: (text: string) => boolean): string {
  const value = carried[name];
  if (value === undefined) throw malformed(`${name} missing`);
  if (!hasForm(value)) throw malformed(name);
  return value;
}

// A Host that is not ours is told like a bad signature: the request was signed for another deployment.
function matchAuthority(host: string | null, authorities: readonly string[]): string {
  const [first] = authorities;
  if (authorities.length === 1 && first !== undefined) return first;
  if (host === null || NOT_ASCII.test(host)) throw malformed('host');
  const named = host.toLowerCase();
  if (authorities.includes(named)) return named;
  const portless = named.replace(/:(?:80|443)$/, '');
  if (authorities.includes(portless)) return portless;
  throw signatureInvalid('host is not an authority of this server');
}

/** How far `createdSeconds` may lie before and after the clock, in seconds; both ends are in. */
export interface TimeWindow {
  readonly maxAgeSeconds: number;
  readonly maxFutureSeconds: number;
}

/**
 * Step 2: the request is neither too old nor too far ahead.
 * @throws RejectedError `timestamp_out_of_window`; also when the clock answers nonsense
 */
export function assertFresh(createdSeconds: number, window: TimeWindow, nowMs: number): void {
  const age = Math.floor(nowMs / 1000) - createdSeconds;
  if (age >= -window.maxFutureSeconds && age <= window.maxAgeSeconds) return;
  throw new RejectedError('timestamp_out_of_window', 'The request is dated outside the accepted window: correct the clock and sign again.');
}

function signatureInvalid(detail: string): RejectedError {
  return new RejectedError('signature_invalid', 'The signature does not verify, or its key is not enrolled here.', { detail });
}

/**
 * Step 4, first half: `key` signed this head for the purpose `tag`. The head holds the hash of the body, so this needs no body:
 * a server reads none for callers who hold no key.
 * @throws RejectedError `signature_invalid`
 */
export async function verifyHead(head: SignedHead, key: VerifyKey, tag: SignatureTag, primitives: Primitives): Promise<void> {
  if (head.statedTag !== null && head.statedTag !== tag) throw signatureInvalid('another tag');
  const valid = primitives.verify(key, utf8(signatureBase(head, tag)), head.signature);
  if ((valid instanceof Promise ? await valid : valid) !== true) throw signatureInvalid('signature');
}

/**
 * Step 4, second half: these are the bytes whose hash was signed.
 * @throws RejectedError `signature_invalid`
 */
export async function verifyBody(head: SignedHead, body: Bytes, primitives: Pick<Primitives, 'sha256'>): Promise<void> {
  const hash = primitives.sha256(body);
  if (toBase64(hash instanceof Promise ? await hash : hash) !== head.bodySha256) throw signatureInvalid('body');
}

/**
 * Step 4: `key` signed this head for the purpose `tag`, and these are the bytes whose hash was signed.
 * @throws RejectedError `signature_invalid`
 */
export async function verifySignature(
  head: SignedHead,
  body: Bytes,
  key: VerifyKey,
  tag: SignatureTag,
  primitives: Primitives,
): Promise<void> {
  await verifyHead(head, key, tag, primitives);
  await verifyBody(head, body, primitives);
}
