/**
 * A MAC over what a row grants. Whoever can write to the database and does not hold the key can neither make itself a device,
 * an owner or an administrator, nor change what a row grants; it can delete rows, and put back an earlier state of one.
 *
 * The input is injective: the name of the table, then each field by its type and length.
 */
import { concat, equalBytes, u32, utf8 } from '@keyguard/core/bytes';
import { UnavailableError, UsageError } from '@keyguard/core/errors';
import type { AuditMacKey, Bytes } from '@keyguard/core/seams';
import { createHmac, createSecretKey } from 'node:crypto';

/** The ability to authenticate rows with one key. The same shape as an audit key, and MUST NOT be the same key. */
export type RowMacKey = AuditMacKey;

/** A MAC key as bytes, and its name. */
export interface NodeMacKeyOptions {
  /** Stored beside every MAC. Never reuse it for another key. */
  readonly keyId: string;
  /** 32 random bytes. Copied: the caller may wipe them. */
  readonly key: Uint8Array;
}

/**
 * A MAC key on `node:crypto`, which answers at once: three microseconds for a row, a fifth of WebCrypto's.
 * @throws UsageError `invalid_option`
 */
export function nodeMacKey({ keyId, key }: NodeMacKeyOptions): RowMacKey {
  if (keyId === '') throw new UsageError('invalid_option', 'keyId must not be empty.');
  if (key.length !== 32) throw new UsageError('invalid_option', 'A MAC key has 32 bytes.');
  const held = createSecretKey(key);
  return { keyId, mac: (data: Bytes): Bytes => Uint8Array.from(createHmac('sha256', held).update(data).digest()) };
}

/** A value under a MAC: each type and length has a form of its own. */
export type RowField = string | number | boolean | null | readonly string[];

const LABEL: Bytes = utf8('kg-row-v1\0');

function text(value: string): Bytes {
  const bytes = utf8(value);
  return concat(u32(bytes.length), bytes);
}

function encode(field: RowField): Bytes {
  if (field === null) return Uint8Array.of(0);
  if (typeof field === 'string') return concat(Uint8Array.of(1), text(field));
  if (typeof field === 'number') return concat(Uint8Array.of(2), text(String(field)));
  if (typeof field === 'boolean') return Uint8Array.of(3, field ? 1 : 0);
  return concat(Uint8Array.of(4), u32(field.length), ...field.map(text));
}

/** The MAC of a row of `table` that grants `fields`. */
export async function rowMac(key: RowMacKey, table: string, fields: readonly RowField[]): Promise<Bytes> {
  return key.mac(concat(LABEL, text(table), ...fields.map(encode)));
}

/** Whether the row was written by a holder of the key, as it is. */
export async function isIntact(
  key: RowMacKey,
  table: string,
  fields: readonly RowField[],
  stored: { readonly macKeyId: string; readonly mac: Uint8Array },
): Promise<boolean> {
  return stored.macKeyId === key.keyId && equalBytes(await rowMac(key, table, fields), stored.mac);
}

/** What a row that fails its check amounts to: the operator must look, and nobody is let through. */
export function tampered(seam: string, table: string): UnavailableError {
  return new UnavailableError(seam, `A row of ${table} does not bear the MAC that it must.`);
}
