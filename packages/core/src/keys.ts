/**
 * Device keys: generate, import, name. A private key made here cannot be exported; only its use can be handed on.
 *
 * @see RFC 7517 and RFC 7518 section 6.2 (JWK), RFC 7638 (thumbprint)
 */
import { fromBase64Url, toBase64Url, utf8 } from './bytes.ts';
import { RejectedError } from './errors.ts';
import type { Bytes, Primitives, PublicJwk, SigningKey } from './seams.ts';

const P256 = { name: 'ECDSA', namedCurve: 'P-256' } as const;
const ECDSA_SHA256 = { name: 'ECDSA', hash: 'SHA-256' } as const;

const JWK_MEMBERS = 'crv,kty,x,y';

function isCoordinate(value: unknown): value is string {
  return typeof value === 'string' && value.length === 43 && fromBase64Url(value) !== null;
}

/**
 * The public key that `value` (untrusted) spells in the one accepted form: exactly `crv`, `kty`, `x` and `y`, unpadded
 * base64url, 32-byte coordinates. Any other spelling is an alias under which a revoked key could come back.
 * Whether the point is on the curve is for {@link Primitives.importPublicKey} to say.
 * @throws RejectedError `jwk_invalid`
 */
export function parsePublicJwk(value: unknown): PublicJwk {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new RejectedError('jwk_invalid', 'The key must be a JWK object.');
  }
  const { crv, kty, x, y } = value as Record<string, unknown>;
  if (Object.keys(value).toSorted().join() !== JWK_MEMBERS) {
    throw new RejectedError('jwk_invalid', 'The key must have exactly the members crv, kty, x and y.');
  }
  if (kty !== 'EC' || crv !== 'P-256' || !isCoordinate(x) || !isCoordinate(y)) {
    throw new RejectedError('jwk_invalid', 'The key must be a P-256 public key with unpadded base64url coordinates.');
  }
  return { crv, kty, x, y };
}

/** The RFC 7638 SHA-256 thumbprint of a key: its id for ever, 43 base64url characters. */
export async function thumbprint({ crv, kty, x, y }: PublicJwk, primitives: Pick<Primitives, 'sha256'>): Promise<string> {
  const canonical = `{"crv":"${crv}","kty":"${kty}","x":"${x}","y":"${y}"}`;
  return toBase64Url(await primitives.sha256(utf8(canonical)));
}

/** A new P-256 key pair whose private half can sign and cannot be exported. */
export async function generateKeyPair(crypto: Crypto = globalThis.crypto): Promise<CryptoKeyPair> {
  return (await crypto.subtle.generateKey(P256, false, ['sign'])) as CryptoKeyPair;
}

/**
 * A private key from PKCS #8 bytes and its public half, imported so that it cannot be exported again. For stores that keep
 * a key as sealed bytes; the caller wipes `pkcs8`.
 */
export async function importKeyPair(
  pkcs8: Bytes,
  publicJwk: PublicJwk,
  crypto: Crypto = globalThis.crypto,
): Promise<CryptoKeyPair> {
  const [privateKey, publicKey] = await Promise.all([
    crypto.subtle.importKey('pkcs8', pkcs8, P256, false, ['sign']),
    crypto.subtle.importKey('jwk', { ...publicJwk }, P256, true, ['verify']),
  ]);
  return { privateKey, publicKey };
}

/**
 * The {@link SigningKey} that a WebCrypto key pair amounts to. Only the use of the private key is handed on.
 * @throws RejectedError `jwk_invalid` for a pair that is not one of P-256
 */
export async function signingKey(pair: CryptoKeyPair, crypto: Crypto = globalThis.crypto): Promise<SigningKey> {
  const { subtle } = crypto;
  const exported = await subtle.exportKey('jwk', pair.publicKey);
  const publicKey = parsePublicJwk({ crv: exported.crv, kty: exported.kty, x: exported.x, y: exported.y });
  const sha256 = async (data: Bytes): Promise<Bytes> => new Uint8Array(await subtle.digest('SHA-256', data));
  return {
    keyId: await thumbprint(publicKey, { sha256 }),
    publicKey,
    sign: async (data: Bytes): Promise<Bytes> => new Uint8Array(await subtle.sign(ECDSA_SHA256, pair.privateKey, data)),
  };
}
