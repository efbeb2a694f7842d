/**
 * What the MACs of an audit chain are made over, byte for byte, and by which keys.
 *
 * @see docs/spec/audit.md sections 3 and 5
 */
import { concat, utf8 } from './bytes.ts';
import { UnavailableError, UsageError } from './errors.ts';
import type { AuditMacKey, AuditRecord, Bytes } from './seams.ts';

const LABEL: Bytes = /* @__PURE__ */ utf8('kg-audit-v1\0');
const HANDOVER_LABEL: Bytes = /* @__PURE__ */ utf8('kg-audit-handover-v1\0');
export const MAC_BYTES = 32;
const KEY_BYTES = 32;

// What may name a key in a signed note, so that a chain's origin can name its checkpoints too.
const ORIGIN = /^[\x21-\x2a\x2c-\x7e]{1,255}$/;

/** Whether `text` (untrusted) may name a chain: 1 to 255 printable ASCII characters, without space and `+`. */
export function isOrigin(text: string): boolean {
  return ORIGIN.test(text);
}

export interface MacPrefixes {
  readonly record: Bytes;
  readonly handover: Bytes;
}

/**
 * What every MAC of one chain begins with.
 * @throws UsageError `invalid_option`
 */
export function macPrefixes(origin: string): MacPrefixes {
  if (!isOrigin(origin)) {
    throw new UsageError('invalid_option', 'An origin is 1 to 255 printable ASCII characters, without space and "+".');
  }
  const named = concat(Uint8Array.of(0, origin.length), utf8(origin));
  return { record: concat(LABEL, named), handover: concat(HANDOVER_LABEL, named) };
}

export function macInput(prefix: Bytes, seq: number, prevMac: Uint8Array, bytes: Uint8Array): Bytes {
  const seqAt = prefix.length;
  const input = new Uint8Array(seqAt + 8 + MAC_BYTES + bytes.length);
  input.set(prefix);
  const view = new DataView(input.buffer);
  view.setUint32(seqAt, Math.floor(seq / 2 ** 32));
  view.setUint32(seqAt + 4, seq);
  input.set(prevMac, seqAt + 8);
  input.set(bytes, seqAt + 8 + MAC_BYTES);
  return input;
}

/** With the MAC and the key id of the record: so the old key vouches for this record under this key, and for nothing else. */
export function handoverInput(prefix: Bytes, record: AuditRecord): Bytes {
  const keyId = utf8(record.macKeyId);
  if (keyId.length > 65_535) throw new UsageError('invalid_option', 'A key id has at most 65,535 bytes.');
  const length = Uint8Array.of(keyId.length >>> 8, keyId.length);
  return macInput(prefix, record.seq, record.prevMac, concat(record.mac, length, keyId, record.bytes));
}

export function checkedMac(mac: unknown): Bytes {
  if (!(mac instanceof Uint8Array) || mac.length !== MAC_BYTES) {
    throw new UnavailableError('audit_mac_key', 'The MAC key did not answer with 32 bytes.');
  }
  return mac as Bytes;
}

/** A MAC key as bytes, and its name. */
export interface WebCryptoMacKeyOptions {
  /** Stored beside every record. Never reuse it for another key. */
  readonly keyId: string;
  /** 32 random bytes. Imported as non-extractable; the caller may wipe them once the key is there. */
  readonly key: Bytes;
  readonly crypto?: Crypto;
}

/**
 * An {@link AuditMacKey} on WebCrypto, out of which the key cannot be had back.
 * @throws UsageError `invalid_option`
 */
export async function webCryptoMacKey(options: WebCryptoMacKeyOptions): Promise<AuditMacKey> {
  const { keyId, key, crypto = globalThis.crypto } = options;
  if (keyId === '') throw new UsageError('invalid_option', 'keyId must not be empty.');
  if (key.length !== KEY_BYTES) throw new UsageError('invalid_option', 'An audit MAC key has 32 bytes.');
  const hmac = { name: 'HMAC', hash: 'SHA-256' };
  const imported = await crypto.subtle.importKey('raw', key, hmac, false, ['sign']);
  return {
    keyId,
    mac: async (data: Bytes): Promise<Bytes> => new Uint8Array(await crypto.subtle.sign('HMAC', imported, data)),
  };
}
