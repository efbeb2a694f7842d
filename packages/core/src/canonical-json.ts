/**
 * Canonical JSON: one byte string for one value, so that a hash or a MAC over JSON means something.
 *
 * This room writes RFC 8785 text and reads back only what it would have written. It never repairs its input: what has no
 * canonical form is refused, and so is any second spelling of what has one.
 *
 * @see RFC 8785 (JSON Canonicalization Scheme), RFC 7493 (I-JSON)
 */
import { fromUtf8 } from './bytes.ts';
import { RejectedError } from './errors.ts';
import type { JsonValue } from './seams.ts';

/** How many arrays and objects may lie inside one another; a deeper value, or a cycle, is refused. */
export const MAX_JSON_DEPTH = 128;

// With the `u` flag this matches a surrogate only where it has no partner.
const LONE_SURROGATE = /[\uD800-\uDFFF]/u;
// ASCII that is its own JSON spelling: nearly every name and most values, and half the work of writing an entry.
const PLAIN = /^[ !#-[\]-~]*$/;

function refuse(detail: string): RejectedError {
  return new RejectedError('json_not_canonical', 'The value has no canonical JSON form.', { detail });
}

function writeString(text: string): string {
  if (PLAIN.test(text)) return `"${text}"`;
  if (LONE_SURROGATE.test(text)) throw refuse('a string with a lone surrogate');
  return JSON.stringify(text);
}

function writeArray(values: readonly unknown[], depth: number): string {
  let text = '[';
  for (let i = 0; i < values.length; i += 1) {
    if (i > 0) text += ',';
    text += write(values[i], depth);
  }
  return `${text}]`;
}

function writeObject(value: object, depth: number): string {
  const prototype: object | null = Object.getPrototypeOf(value);
  // A plain object of another realm has another `Object.prototype`, but one that inherits from nothing all the same.
  if (prototype !== null && Object.getPrototypeOf(prototype) !== null) throw refuse('an object that is not plain');
  const members = value as Readonly<Record<string, unknown>>;
  let text = '{';
  // RFC 8785 section 3.2.3 sorts by UTF-16 code units, as the default order of JavaScript does.
  for (const name of Object.keys(members).sort()) {
    if (text.length > 1) text += ',';
    text += `${writeString(name)}:${write(members[name], depth)}`;
  }
  return `${text}}`;
}

function write(value: unknown, depth: number): string {
  switch (typeof value) {
    case 'string':
      return writeString(value);
    case 'number':
      if (!Number.isFinite(value)) throw refuse('a number that is not finite');
      return JSON.stringify(value);
    case 'boolean':
      return value ? 'true' : 'false';
    case 'object':
      if (value === null) return 'null';
      if (depth === MAX_JSON_DEPTH) throw refuse(`nested deeper than ${MAX_JSON_DEPTH}, or a cycle`);
      return Array.isArray(value) ? writeArray(value, depth + 1) : writeObject(value, depth + 1);
    default:
      throw refuse(`a value of type ${typeof value}`);
  }
}

/**
 * The RFC 8785 text of `value`: two values have the same text if and only if they are the same JSON value.
 *
 * Refuses, rather than drops or converts, what JSON cannot hold: `undefined` (also as a member or an array hole), NaN and
 * infinities, bigints, functions, symbols, lone surrogates, any object that is neither plain nor an array (so `toJSON` is
 * never called), cycles, and nesting deeper than {@link MAX_JSON_DEPTH}. Negative zero is written `0`, as the RFC demands.
 * Unicode noncharacters are kept: RFC 8785 refuses lone surrogates only.
 *
 * @param value untrusted
 * @throws RejectedError `json_not_canonical`
 */
export function canonicalJson(value: JsonValue): string {
  return write(value, 0);
}

/**
 * The value whose canonical form is exactly `bytes`, byte for byte.
 *
 * Refuses everything else: white space, another order of members, duplicated members, another spelling of a number or of
 * an escape, a byte-order mark, bytes that are not UTF-8. The caller MUST have limited the size of `bytes`.
 *
 * @param bytes untrusted
 * @throws RejectedError `json_not_canonical`
 */
export function parseCanonicalJson(bytes: Uint8Array): JsonValue {
  let text: string;
  let value: JsonValue;
  try {
    text = fromUtf8(bytes);
    value = JSON.parse(text) as JsonValue;
  } catch {
    // The parser's own message quotes its input, which may be secret: it is not passed on.
    throw refuse('not JSON in UTF-8');
  }
  if (write(value, 0) !== text) throw refuse('JSON, but not in its canonical form');
  return value;
}
