/** Values as drivers hand them over, read as what they must be. */

/** An integer: `pg` gives bigint columns as text, PGlite as numbers. */
export function integer(value: unknown): number {
  const read = typeof value === 'string' && value !== '' ? Number(value) : typeof value === 'bigint' ? Number(value) : value;
  if (typeof read !== 'number' || !Number.isSafeInteger(read)) throw new TypeError('The database answered with no integer.');
  return read;
}

/** Bytes of their own buffer, whatever view the driver hands over. */
export function bytesOf(value: unknown): Uint8Array<ArrayBuffer> {
  if (!(value instanceof Uint8Array)) throw new TypeError('The database answered with no bytes.');
  return new Uint8Array(value);
}
