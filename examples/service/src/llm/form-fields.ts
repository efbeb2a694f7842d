/**
 * The fields of a form, by the one form in which all readers agree on them. What is written in any other way that the standards
 * let pass, or that some reader lets pass, is not read at all.
 *
 * @see RFC 7578; RFC 2046, section 5.1.1
 */

/** A field, in the order of the body. */
export interface FormField {
  readonly name: string;
  /** `null` for a file. */
  readonly text: string | null;
}

// No semicolon: some split there, also inside quotes. A name in ASCII alone: some take a byte order mark off it.
const DISPOSITION = /^content-disposition: ?form-data; ?name="([ !#$&-:<-[\]-~]{1,200})"(?:; ?filename="([^"\\;\r\n]*)")?$/i;
const TYPE = /^content-type: ?[\x20-\x7e]{1,200}$/i;
const MAX_FIELDS = 200;
const DASHES = 2;
const MAX_HEAD_BYTES = 2048;

/** The fields of `body` (untrusted); `null` where readers may differ on them. */
export function formFields(body: Uint8Array, boundary: string): readonly FormField[] | null {
  const bytes = Buffer.from(body.buffer, body.byteOffset, body.byteLength);
  const mark = Buffer.from(`--${boundary}`, 'latin1');
  if (bytes.indexOf(mark) !== 0) return null;
  const fields: FormField[] = [];
  let at = mark.length;
  for (;;) {
    const after = bytes.toString('latin1', at, at + 4);
    if (after === '--' || after === '--\r\n') return at + after.length === bytes.length ? fields : null;
    if (!after.startsWith('\r\n') || fields.length === MAX_FIELDS) return null;
    // Also one that stands behind no line end and no dashes: some take a line feed alone for the end of a line, or look for the rest first.
    const end = bytes.indexOf(boundary, at, 'latin1') - DASHES;
    if (end < at || bytes.toString('latin1', end - 2, end + DASHES) !== '\r\n--') return null;
    const field = fieldOf(bytes.subarray(at + 2, end - 2));
    if (field === null) return null;
    fields.push(field);
    at = end + mark.length;
  }
}

function fieldOf(part: Buffer): FormField | null {
  const headEnd = part.indexOf('\r\n\r\n');
  if (headEnd < 0 || headEnd > MAX_HEAD_BYTES) return null;
  const [disposition, type, ...more] = part.toString('utf8', 0, headEnd).split('\r\n');
  const [line, name, fileName] = DISPOSITION.exec(disposition!) ?? [];
  if (line === undefined || more.length > 0 || (type !== undefined && !TYPE.test(type))) return null;
  if (fileName !== undefined) return { name: name!, text: null };
  // A text of a type of its own could be in any character set.
  return type === undefined ? { name: name!, text: part.toString('utf8', headEnd + 4) } : { name: name!, text: null };
}
