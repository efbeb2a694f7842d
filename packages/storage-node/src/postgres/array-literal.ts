/**
 * Arrays in the form in which PostgreSQL reads them, for statements that a request waits for: drivers write each element of an array by
 * several functions and regular expressions of their own, and a batch of audit records has eleven arrays.
 *
 * @see https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
 */

const SPECIAL = /["\\]/;

/** A literal of `text[]`. Whatever stands in an element is its content, and nothing of it is read as anything else. */
export function textArray(values: readonly (string | null)[]): string {
  let literal = '{';
  for (let i = 0; i < values.length; i += 1) {
    const value = values[i]!;
    if (i > 0) literal += ',';
    // Always in quotes: an empty text, a space or NULL without them would be something else.
    if (value === null) literal += 'NULL';
    else literal += SPECIAL.test(value) ? `"${value.replaceAll(/["\\]/g, '\\$&')}"` : `"${value}"`;
  }
  return `${literal}}`;
}

/** A literal of `bigint[]`. @param values safe integers */
export function integerArray(values: readonly number[]): string {
  return `{${values.join(',')}}`;
}
