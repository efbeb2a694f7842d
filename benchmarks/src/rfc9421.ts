/** The peer `http-message-signatures`, set up to sign and demand what KeyGuard's own template covers. */
import { randomUUID } from 'node:crypto';
import { createSigner, httpbis } from 'http-message-signatures';
import { AUTHORITY, BODY, contentDigest, ORDINARY_HEADERS, TARGET, type Key } from './material.ts';

const FIELDS = ['@method', '@authority', '@path', '@query', 'content-digest', 'content-type'];
const PARAMS = ['created', 'keyid', 'nonce'];

export const RFC9421_REQUIRED = { requiredFields: FIELDS, requiredParams: PARAMS };

export interface Rfc9421Request {
  readonly method: string;
  readonly url: string;
  readonly headers: Record<string, string>;
}

export type Rfc9421Signer = () => Promise<Rfc9421Request>;

/** Signs {@link BODY} anew at every call. */
export function rfc9421Signer({ privateObject, keyId }: Pick<Key, 'privateObject' | 'keyId'>): Rfc9421Signer {
  // The library's type leaves out KeyObject, which it hands on to node:crypto as it is.
  const key = createSigner(privateObject as never, 'ecdsa-p256-sha256', keyId);
  const url = `https://${AUTHORITY}${TARGET}`;
  return async () => {
    const headers = { ...Object.fromEntries(ORDINARY_HEADERS), 'content-digest': contentDigest(BODY) };
    const paramValues = { created: new Date(), nonce: randomUUID() };
    return httpbis.signMessage({ key, fields: FIELDS, params: PARAMS, paramValues }, { method: 'POST', url, headers }) as Promise<Rfc9421Request>;
  };
}
