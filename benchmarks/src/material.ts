/** What all suites sign and verify: one key in every shape that a contestant wants, one body, and requests made ahead. */
import { createPrivateKey, createPublicKey, hash, sign as signBytes, type KeyObject } from 'node:crypto';
import { Buffer } from 'node:buffer';
import { toBase64Url, utf8 } from '@keyguard/core/bytes';
import { signatureBase } from '@keyguard/core/canonical';
import { signingKey } from '@keyguard/core/keys';
import { memoryDeviceRegistry, type MemoryDeviceRegistry } from '@keyguard/core/memory';
import type { AuditEntry, Bytes, DeviceRegistry, PublicJwk, SigningKey } from '@keyguard/core/seams';
import { createSigner, type Signer } from '@keyguard/core/sign';
import { readSignedHead, type SignedHead } from '@keyguard/core/verify';
import { cachedDeviceRegistry, nodePrimitives, watchDeviceChanges, type IncomingRequest } from '@keyguard/server-verifier';

export const AUTHORITY = 'api.example.com';
export const TARGET = '/v1/chat/completions?stream=false';
export const IP = '203.0.113.7';

/** A chat request of exactly one KiB. */
export const BODY: Bytes = utf8(chatBody(1024));

function chatBody(lengthBytes: number): string {
  const envelope = (content: string): string => JSON.stringify({ model: 'gpt-5', messages: [{ role: 'user', content }] });
  const words = 'the quick brown fox jumps over the lazy dog '.repeat(Math.ceil(lengthBytes / 44));
  return envelope(words.slice(0, lengthBytes - envelope('').length));
}

/** What an ordinary client sends besides: the verifier has to read past it. */
export const ORDINARY_HEADERS: readonly (readonly [name: string, value: string])[] = [
  ['content-type', 'application/json'],
  ['accept', 'application/json'],
  ['user-agent', 'benchmark'],
];

export interface Key {
  readonly keyId: string;
  readonly publicJwk: PublicJwk;
  readonly privateObject: KeyObject;
  readonly publicObject: KeyObject;
  /** As a browser has it: WebCrypto, private half not extractable. */
  readonly webCrypto: SigningKey;
  readonly webCryptoPair: CryptoKeyPair;
  /** The same key on `node:crypto`, to make many requests quickly. */
  readonly quick: SigningKey;
}

/** The private key of a benchmark as it is handed from one process to another. */
export type PrivateJwk = JsonWebKey;

export async function makePrivateJwk(): Promise<PrivateJwk> {
  const { privateKey } = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify']);
  return crypto.subtle.exportKey('jwk', privateKey);
}

export async function keyFrom(jwk: PrivateJwk): Promise<Key> {
  const curve = { name: 'ECDSA', namedCurve: 'P-256' };
  const { kty, crv, x, y } = jwk as PublicJwk;
  const webCryptoPair = {
    privateKey: await crypto.subtle.importKey('jwk', { ...jwk, key_ops: ['sign'] }, curve, false, ['sign']),
    publicKey: await crypto.subtle.importKey('jwk', { kty, crv, x, y }, curve, true, ['verify']),
  };
  const webCrypto = await signingKey(webCryptoPair);
  const { keyId, publicKey: publicJwk } = webCrypto;
  const privateObject = createPrivateKey({ key: { ...jwk }, format: 'jwk' });
  return {
    keyId,
    publicJwk,
    privateObject,
    publicObject: createPublicKey(privateObject),
    webCrypto,
    webCryptoPair,
    quick: quickKey(keyId, publicJwk, privateObject),
  };
}

export const makeKey = async (): Promise<Key> => keyFrom(await makePrivateJwk());

function quickKey(keyId: string, publicKey: PublicJwk, key: KeyObject): SigningKey {
  return {
    keyId,
    publicKey,
    sign: async (data) => new Uint8Array(signBytes('sha256', data, { key, dsaEncoding: 'ieee-p1363' })),
  };
}

/** A registry that knows `key`. */
export function registryOf(...keys: readonly Pick<Key, 'keyId' | 'publicJwk'>[]): MemoryDeviceRegistry {
  const registry = memoryDeviceRegistry();
  for (const { keyId, publicJwk } of keys) enroll(registry, keyId, publicJwk);
  return registry;
}

/** As a replica has its devices: in memory, behind a feed in which nothing changes. */
export function cachedRegistryOf(...keys: readonly Pick<Key, 'keyId' | 'publicJwk'>[]): DeviceRegistry {
  return cachedDeviceRegistry(registryOf(...keys), watchDeviceChanges({ since: (cursor) => ({ cursor: '0', deviceIds: cursor === null ? 'reset' : [] }) }));
}

export function enroll(registry: MemoryDeviceRegistry, keyId: string, publicKey: PublicJwk): void {
  registry.addCode({ codeHash: keyId, ownerId: 'owner', expiresAtMs: 1 });
  const { outcome } = registry.enroll({ keyId, publicKey, codeHash: keyId, label: null, fingerprint: null, nowMs: 0 }) as { outcome: string };
  if (outcome !== 'enrolled') throw new Error(`Enrollment of the benchmark's device: ${outcome}.`);
}

/** A signer that makes requests ahead, with fresh nonces. */
export function quickSigner(key: Key): Signer {
  return createSigner({ key: key.quick, primitives: nodePrimitives() });
}

/** A signed request in every form in which a contestant takes it. */
export interface SignedRequest {
  readonly incoming: IncomingRequest;
  readonly head: SignedHead;
  readonly base: Bytes;
  readonly signatureDer: Uint8Array;
}

export async function makeRequest(sign: Signer): Promise<SignedRequest> {
  const signed = await sign({ method: 'POST', authority: AUTHORITY, target: TARGET, headers: ORDINARY_HEADERS, body: BODY });
  const rawHeaders = asReceived(['host', AUTHORITY, ...ORDINARY_HEADERS.flat(), 'content-length', String(BODY.length), ...Object.entries(signed).flat()]);
  const incoming: IncomingRequest = { method: 'POST', target: TARGET, rawHeaders, ip: IP, body: () => BODY };
  const head = readSignedHead(incoming, [AUTHORITY]);
  return { incoming, head, base: utf8(signatureBase(head, 'keyguard-v1')), signatureDer: derOf(head.signature) };
}

/** The same texts as strings of their own, as a parser makes them anew for every request: V8 compares literals faster. */
function asReceived(texts: readonly string[]): string[] {
  return texts.map((text) => Buffer.from(text, 'latin1').toString('latin1'));
}

/** The DER form of `r‖s`, by the book: the limit must not depend on our own transcoder. */
function derOf(signature: Uint8Array): Uint8Array {
  const integer = (bytes: Uint8Array): Buffer => {
    const first = Math.min(bytes.findIndex((byte) => byte !== 0), bytes.length - 1);
    const magnitude = bytes.subarray(Math.max(0, first));
    const positive = magnitude[0]! > 127 ? Buffer.concat([Buffer.of(0), magnitude]) : Buffer.from(magnitude);
    return Buffer.concat([Buffer.of(2, positive.length), positive]);
  };
  const content = Buffer.concat([integer(signature.subarray(0, 32)), integer(signature.subarray(32))]);
  return Buffer.concat([Buffer.of(0x30, content.length), content]);
}

/** The value of RFC 9530's Content-Digest for {@link BODY}. */
export const contentDigest = (body: Uint8Array): string => `sha-256=:${hash('sha256', body, 'base64')}:`;

/** One entry of an audit log, as the service writes it for a call that it handed on. */
export function proxyCall(serial: number): AuditEntry {
  return {
    action: 'proxy.call',
    outcome: 'success',
    actor: 'device:3f1c0f3e-6f9e-4d6e-9d27-5f7f6f0a4b11',
    device_id: '3f1c0f3e-6f9e-4d6e-9d27-5f7f6f0a4b11',
    resource: 'openai/v1/chat/completions',
    ip: '203.0.113.7',
    request_id: `req-${serial.toString(36).padStart(24, '0')}`,
    status: 200,
    duration_ms: 812.5,
  };
}

/** Well-formed nonces, 16 bytes each, all different. */
export function nonces(from: number, count: number): string[] {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  return Array.from({ length: count }, (_, i) => {
    view.setUint32(0, ((from + i) * 2_654_435_761) >>> 0);
    view.setUint32(12, from + i);
    return toBase64Url(bytes);
  });
}

