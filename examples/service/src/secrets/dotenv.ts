/**
 * `.env` text, read and written. There is no standard of it: what is taken in must mean the same to this reader and to the one of
 * Node, and what is given out is quoted so that Node's and `dotenv`'s both read the very same bytes. What has no such form is
 * named, not guessed.
 */
import { parseEnv } from 'node:util';

export interface Variable {
  /** Of the file, counted from 1. */
  readonly line: number;
  readonly name: string;
  /** Secret. */
  readonly value: string;
}

export interface InvalidLine {
  readonly line: number;
  /** `null` where the line has none. */
  readonly name: string | null;
  /** Without any part of the value. */
  readonly problem: string;
}

export interface ReadEnv {
  readonly variables: readonly Variable[];
  readonly invalid: readonly InvalidLine[];
}

const MAX_NAME_CHARACTERS = 200;
const NAME = /^[A-Za-z_][A-Za-z0-9_]*$/;
const START = /^(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*/;
const REST = /^[ \t]*(?:#.*)?$/;

const ODD_BREAK = /[\u2028\u2029]/;
const AMBIGUOUS = 'programs read this value in different ways: quote it in another way';

/** Whether a variable can have this name. */
export function isVariableName(name: string): boolean {
  return name.length <= MAX_NAME_CHARACTERS && NAME.test(name);
}

/** As variables are named: `export` is not part of a name, and `.` and `-`, which some programs allow in files, become `_`. */
function normalised(name: string): string {
  return name.replaceAll(/[.-]/g, '_');
}

/** The variables of a file (untrusted), and what in it is none. */
export function readEnv(text: string): ReadEnv {
  const content = text.replace(/^\uFEFF/, '').replaceAll(/\r\n?/g, '\n');
  const variables: Variable[] = [];
  const invalid: InvalidLine[] = [];
  const seen = new Map<string, number>();
  let at = 0;
  let line = 1;
  while (at < content.length) {
    const { next, found } = readLine(content, at, line);
    if (found !== null && 'problem' in found) invalid.push(found);
    else if (found !== null) {
      const name = normalised(found.name);
      const first = seen.get(name);
      const problem =
        first !== undefined ? `the same name as in line ${first}`
        : !isVariableName(name) ? 'the name is too long'
        : found.value === '' ? 'it has no value'
        : parseEnv(content.slice(at, next))[found.name] !== found.value ? AMBIGUOUS
        : null;
      if (problem === null) {
        seen.set(name, line);
        variables.push({ line, name, value: found.value });
      } else invalid.push({ line, name, problem });
    }
    line += content.slice(at, next).split('\n').length - 1;
    at = next;
  }
  if (invalid.length > 0) return { variables, invalid };
  // Line by line is not enough: one that is fine by itself may change how another is read.
  const whole = new Map(Object.entries(parseEnv(content)).map(([name, value]) => [normalised(name), value]));
  return { variables, invalid: variables.filter(({ name, value }) => whole.get(name) !== value).map(({ line: where, name }) => ({ line: where, name, problem: AMBIGUOUS })) };
}

/** What begins at `at`, which is the beginning of a line; and where the line after it begins. */
function readLine(content: string, at: number, line: number): { readonly next: number; readonly found: Variable | InvalidLine | null } {
  const ending = content.indexOf('\n', at);
  const end = ending === -1 ? content.length : ending;
  const next = Math.min(end + 1, content.length);
  const whole = content.slice(at, end);
  const text = whole.trimStart();
  if (text === '' || text.startsWith('#')) return { next, found: ODD_BREAK.test(whole) ? { line, name: null, problem: 'it holds a line separator that some programs take for the end of the line' } : null };
  const start = START.exec(text);
  if (start === null) return { next, found: { line, name: null, problem: 'it is no NAME=value' } };
  const name = start[1]!;
  const valueAt = at + (whole.length - text.length) + start[0].length;
  const quote = content[valueAt];
  if (valueAt < end && (quote === "'" || quote === '"' || quote === '`')) {
    const closing = content.indexOf(quote, valueAt + 1);
    if (closing === -1) return { next, found: { line, name: normalised(name), problem: 'a quote is not closed' } };
    const after = content.indexOf('\n', closing);
    const lineEnd = after === -1 ? content.length : after;
    const afterNext = Math.min(lineEnd + 1, content.length);
    const rest = content.slice(closing + 1, lineEnd);
    if (!REST.test(rest) || ODD_BREAK.test(rest)) {
      return { next, found: { line, name: normalised(name), problem: 'something follows the closing quote' } };
    }
    const quoted = content.slice(valueAt + 1, closing);
    // Some take the quote after a backslash for a part of the value, and read on.
    if (quoted.endsWith('\\')) return { next, found: { line, name: normalised(name), problem: AMBIGUOUS } };
    return { next: afterNext, found: { line, name, value: quote === '"' ? quoted.replaceAll('\\n', '\n').replaceAll('\\r', '\r') : quoted } };
  }
  const plain = content.slice(valueAt, end);
  if (ODD_BREAK.test(plain)) return { next, found: { line, name: normalised(name), problem: AMBIGUOUS } };
  return { next, found: { line, name, value: plain.replace(/#.*$/, '').trim() } };
}

// Line breaks that some readers take for the end of a line outside quotes.
const PLAIN = /^[^\s#'"`\\](?:[^\r\n#\u2028\u2029]*[^\s#'"`\\])?$/;

/**
 * `NAME=value`, quoted so that Node and `dotenv` both read exactly `value`; `null` where no quoting does that: a carriage return, or
 * all three kinds of quotes in one value.
 */
export function writeVariable(name: string, value: string): string | null {
  if (!isVariableName(name) || value.includes('\r')) return null;
  // A backslash before the closing quote hides it from one of the two.
  const hides = value.endsWith('\\');
  for (const quote of ["'", '`']) {
    if (!value.includes(quote) && !hides) return `${name}=${quote}${value}${quote}`;
  }
  // Between these, backslash and n is a line break.
  if (!value.includes('"') && !hides && !/\\[nr]/.test(value)) return `${name}="${value}"`;
  return PLAIN.test(value) || (hides && PLAIN.test(value.replaceAll('\\', '/'))) ? `${name}=${value}` : null;
}
