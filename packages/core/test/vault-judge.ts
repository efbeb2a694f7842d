/**
 * The vault's formats once more, written from docs/spec/vault.md alone on node:crypto: a judge that shares no code with
 * `src/vault.ts`. It also makes what the vault never makes: GCM ciphertexts that open under two keys.
 */
import { createCipheriv, createDecipheriv, createHash, createHmac, hkdfSync, pbkdf2Sync } from 'node:crypto';

export interface Place {
  deploymentId: string;
  table: string;
  row: string;
  column: string;
  version: number;
  purpose: string;
}

const u32be = (n: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(n);
  return bytes;
};

export const fields = (...parts: Uint8Array[]): Buffer =>
  Buffer.concat(parts.flatMap((part) => [u32be(part.length), part]));

function placeParts(place: Place, dekId: Uint8Array): Buffer[] {
  const version = Buffer.alloc(8);
  version.writeBigUInt64BE(BigInt(place.version));
  const text = [place.deploymentId, place.table, place.row, place.column].map((part) => Buffer.from(part, 'utf8'));
  return [...text, version, Buffer.from(dekId), Buffer.from(place.purpose, 'utf8')];
}

export const valueAad = (place: Place, dekId: Uint8Array): Buffer =>
  fields(Buffer.from('4b475601', 'hex'), Buffer.from('01', 'hex'), ...placeParts(place, dekId));

export const dekContext = (place: Place, dekId: Uint8Array): Buffer =>
  fields(Buffer.from('kg-vault-dek-v1'), ...placeParts(place, dekId));

export const hkdf = (secret: Uint8Array, label: string): Buffer =>
  Buffer.from(hkdfSync('sha256', secret, Buffer.alloc(0), Buffer.from(label), 32));

export function gcmEncrypt(key: Uint8Array, iv: Uint8Array, aad: Uint8Array, plaintext: Uint8Array): Buffer {
  const cipher = createCipheriv('aes-256-gcm', key, iv, { authTagLength: 16 }).setAAD(aad);
  return Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
}

export function gcmDecrypt(key: Uint8Array, iv: Uint8Array, aad: Uint8Array, encrypted: Uint8Array): Buffer {
  const tagAt = encrypted.length - 16;
  const decipher = createDecipheriv('aes-256-gcm', key, iv, { authTagLength: 16 }).setAAD(aad);
  decipher.setAuthTag(encrypted.subarray(tagAt));
  return Buffer.concat([decipher.update(encrypted.subarray(0, tagAt)), decipher.final()]);
}

export const header = (dekId: Uint8Array, iv: Uint8Array): Buffer =>
  Buffer.concat([Buffer.from('4b47560101', 'hex'), dekId, iv]);

export const commitmentOf = (dek: Uint8Array, head: Uint8Array, aad: Uint8Array): Buffer =>
  createHmac('sha256', hkdf(dek, 'kg-vault-com-v1'))
    .update(head)
    .update(createHash('sha256').update(aad).digest())
    .digest();

export interface SealInput {
  place: Place;
  dek: Uint8Array;
  dekId: Uint8Array;
  iv: Uint8Array;
  plaintext: Uint8Array;
}

export function judgeSeal({ place, dek, dekId, iv, plaintext }: SealInput): Buffer {
  const aad = valueAad(place, dekId);
  const head = header(dekId, iv);
  return Buffer.concat([
    head,
    commitmentOf(dek, head, aad),
    gcmEncrypt(hkdf(dek, 'kg-vault-enc-v1'), iv, aad, plaintext),
  ]);
}

export function judgeOpen(envelope: Uint8Array, dek: Uint8Array, place: Place): Buffer {
  const bytes = Buffer.from(envelope);
  if (bytes.length < 81 || bytes.subarray(0, 5).toString('hex') !== '4b47560101') throw new Error('format');
  const aad = valueAad(place, bytes.subarray(5, 21));
  if (!commitmentOf(dek, bytes.subarray(0, 33), aad).equals(bytes.subarray(33, 65))) throw new Error('commitment');
  return gcmDecrypt(hkdf(dek, 'kg-vault-enc-v1'), bytes.subarray(21, 33), aad, bytes.subarray(65));
}

const WRAP = Buffer.from('4b47570101', 'hex');
const EMPTY = Buffer.alloc(0);

export function judgeWrap(
  kek: Uint8Array,
  kekId: string,
  iv: Uint8Array,
  dek: Uint8Array,
  context: Uint8Array,
  prefix: Uint8Array = EMPTY,
): Buffer {
  const aad = fields(WRAP, Buffer.from(kekId), prefix, context);
  return Buffer.concat([prefix, WRAP, iv, gcmEncrypt(kek, iv, aad, dek)]);
}

export function judgeUnwrap(
  kek: Uint8Array,
  kekId: string,
  wrapped: Uint8Array,
  context: Uint8Array,
  prefix: Uint8Array = EMPTY,
): Buffer {
  const bytes = Buffer.from(wrapped);
  const body = bytes.subarray(prefix.length);
  if (body.length !== 65 || !bytes.subarray(0, prefix.length + 5).equals(Buffer.concat([prefix, WRAP]))) {
    throw new Error('format');
  }
  const aad = fields(WRAP, Buffer.from(kekId), prefix, context);
  return gcmDecrypt(kek, body.subarray(5, 17), aad, body.subarray(17));
}

/** The header for a passphrase, and the key under which it wraps. Writes whatever it is asked to, also what is too weak. */
export function judgePassphrase(passphrase: string, iterations: number, salt: Uint8Array): { header: Buffer; key: Buffer } {
  const secret = pbkdf2Sync(passphrase.normalize('NFC'), salt, iterations, 32, 'sha256');
  const header = Buffer.concat([
    Buffer.from('4b47500101', 'hex'),
    u32be(iterations),
    Buffer.of(salt.length),
    salt,
    hkdf(secret, 'kg-passphrase-check-v1'),
  ]);
  return { header, key: hkdf(secret, 'kg-passphrase-wrap-v1') };
}

// GF(2^128) as GCM orders its bits (NIST SP 800-38D section 6.3): the leftmost bit is the coefficient of x^0.
const R = 0xe1n << 120n;

function multiply(x: bigint, y: bigint): bigint {
  let z = 0n;
  let v = y;
  for (let i = 127n; i >= 0n; i -= 1n) {
    if ((x >> i) & 1n) z ^= v;
    v = v & 1n ? (v >> 1n) ^ R : v >> 1n;
  }
  return z;
}

// x^(2^128 - 2)
function invert(x: bigint): bigint {
  let result = 1n << 127n;
  let power = x;
  for (let i = 1; i < 128; i += 1) {
    power = multiply(power, power);
    result = multiply(result, power);
  }
  return result;
}

const toInt = (bytes: Uint8Array): bigint => BigInt(`0x${Buffer.from(bytes).toString('hex')}`);
const toBlock = (value: bigint): Buffer => Buffer.from(value.toString(16).padStart(32, '0'), 'hex');

function encryptBlock(key: Uint8Array, block: Uint8Array): Buffer {
  return createCipheriv('aes-256-ecb', key, null).setAutoPadding(false).update(block);
}

// Tag of a one-block ciphertext as a linear function of that block: tag = constant + block * h^2.
function tagOf(key: Uint8Array, iv: Uint8Array, aad: Uint8Array): { constant: bigint; factor: bigint } {
  const h = toInt(encryptBlock(key, Buffer.alloc(16)));
  const padded = Buffer.concat([aad, Buffer.alloc((16 - (aad.length % 16)) % 16)]);
  let hash = 0n;
  for (let at = 0; at < padded.length; at += 16) hash = multiply(hash ^ toInt(padded.subarray(at, at + 16)), h);
  const lengths = (BigInt(aad.length * 8) << 64n) | 128n;
  const factor = multiply(h, h);
  const first = toInt(encryptBlock(key, Buffer.concat([iv, u32be(1)])));
  return { constant: multiply(hash, factor) ^ multiply(lengths, h) ^ first, factor };
}

/** A ciphertext of one block with its tag that AES-256-GCM accepts under BOTH keys, with the same IV and AAD. */
export function twoKeyCiphertext(keyA: Uint8Array, keyB: Uint8Array, iv: Uint8Array, aad: Uint8Array): Buffer {
  const a = tagOf(keyA, iv, aad);
  const b = tagOf(keyB, iv, aad);
  const block = multiply(a.constant ^ b.constant, invert(a.factor ^ b.factor));
  return Buffer.concat([toBlock(block), toBlock(a.constant ^ multiply(block, a.factor))]);
}
