/**
 * The second carriage: the same signature in the fields `Signature-Input`, `Signature` and `Content-Digest` of RFC 9421 and RFC
 * 9530. One template, written and read byte for byte. This is no parser of structured fields: every other spelling that those
 * RFCs allow for the same meaning is refused.
 *
 * @see RFC 9421 section 4; docs/spec/request-signing.md section 3
 */
import { PROTOCOL_VERSION, signatureParams, type CarriageHeader, type NamedParts, type Rfc9421Field, type SignedParts } from './canonical.ts';
import { RejectedError } from './errors.ts';

// These find the values and judge nothing: writing the template anew does.
const INPUT = /^[^;]*;created=([^;]*);keyid="([^"]*)";nonce="([^"]*)";tag="([^"]*)"$/;
const SIGNATURE = /^keyguard=:([^:]*):$/;
const DIGEST = /^sha-256=:([^:]*):$/;

const signatureInput = (parts: NamedParts, tag: string): string => `keyguard=${signatureParams(parts, tag)}`;

/** The three fields for these parts, their tag, and their signature in base64. */
export function writeFields(parts: SignedParts, tag: string, signature: string): Record<Rfc9421Field, string> {
  return {
    'signature-input': signatureInput(parts, tag),
    signature: `keyguard=:${signature}:`,
    'content-digest': `sha-256=:${parts.bodySha256}:`,
  };
}

export interface ReadFields {
  /** The same values as the headers of the default carriage. The caller MUST demand their grammar, as of those. */
  readonly values: Record<CarriageHeader, string>;
  /** What the sender says the signature is for. The route MUST demand that it is the route's own. */
  readonly statedTag: string;
}

/**
 * Reads the fields (untrusted) that came with these headers. They are the template to the byte, written for exactly the headers
 * that are there, once the values have kept their grammar.
 * @throws RejectedError `malformed_request`
 */
export function readFields(
  fields: Partial<Record<Rfc9421Field, string>>,
  received: Pick<SignedParts, 'contentType' | 'coveredHeaders'>,
): ReadFields {
  const input = fields['signature-input'] ?? '';
  const [, timestamp = '', keyId = '', nonce = '', statedTag = ''] = INPUT.exec(input) ?? [];
  if (signatureInput({ ...received, timestamp, keyId, nonce }, statedTag) !== input) throw malformed('signature-input');
  const values = {
    'x-keyguard-version': PROTOCOL_VERSION,
    'x-keyguard-key-id': keyId,
    'x-keyguard-timestamp': timestamp,
    'x-keyguard-nonce': nonce,
    'x-keyguard-body-sha256': valueIn(fields, 'content-digest', DIGEST),
    'x-keyguard-signature': valueIn(fields, 'signature', SIGNATURE),
  };
  return { values, statedTag };
}

function valueIn(fields: Partial<Record<Rfc9421Field, string>>, name: Rfc9421Field, form: RegExp): string {
  const value = form.exec(fields[name] ?? '')?.[1];
  if (value === undefined) throw malformed(name);
  return value;
}

function malformed(field: Rfc9421Field): RejectedError {
  const detail = `${field} missing, or not the template for the headers received`;
  return new RejectedError('malformed_request', 'The request is not a well-formed KeyGuard request: a KeyGuard client must sign it, in the carriage that this server takes.', { detail });
}
