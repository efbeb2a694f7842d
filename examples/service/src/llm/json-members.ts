/**
 * The members of a JSON text, each as often as it is written: `JSON.parse` keeps the last of two with one name, and another reader
 * the first. Takes time linear in the length of the text.
 */

/** A member of the outermost object, or of what one of its holders holds. */
export interface Member {
  /** Unescaped. */
  readonly name: string;
  /** Its value where that is a text, unescaped; `null` for any other. */
  readonly text: string | null;
  /** The name of the outermost member within which it is written; `null` for an outermost one. */
  readonly holder: string | null;
  /** The same number for members of the same object, and for no others. */
  readonly part: number;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPENING_BRACE = 0x7b;
const CLOSING_BRACE = 0x7d;
const OPENING_BRACKET = 0x5b;
const CLOSING_BRACKET = 0x5d;
const COLON = 0x3a;
// Within an object in a list in the outermost object.
const MAX_DEPTH = 3;

const isSpace = (code: number): boolean => code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09;

/** The place after the text that begins at `start`. */
function endOfText(json: string, start: number): number {
  let end = json.indexOf('"', start + 1);
  for (;;) {
    let before = end - 1;
    while (json.charCodeAt(before) === BACKSLASH) before -= 1;
    if ((end - before) % 2 === 1) return end + 1;
    end = json.indexOf('"', end + 1);
  }
}

/**
 * The members of the object that `body` (untrusted) is, in their order; and those at most two levels within the members for which
 * `holds` says yes. `null` for what is not one JSON object in UTF-8, without a byte order mark.
 */
export function topMembers(body: Uint8Array, holds: (name: string) => boolean): readonly Member[] | null {
  let json: string;
  try {
    json = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body);
    const value: unknown = JSON.parse(json);
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return null;
  } catch {
    return null;
  }
  // From here on the text is known to be JSON: only its nesting is counted.
  const members: Member[] = [];
  let depth = 0;
  // Of what is open at each depth, and of what was opened last.
  const parts: number[] = [];
  let part = 0;
  let outermost: string | null = null;
  let isHolder = false;
  for (let at = 0; at < json.length; at += 1) {
    const code = json.charCodeAt(at);
    if (code === OPENING_BRACE || code === OPENING_BRACKET) {
      depth += 1;
      if (depth > 1 && depth <= MAX_DEPTH) parts[depth] = part += 1;
    } else if (code === CLOSING_BRACE || code === CLOSING_BRACKET) depth -= 1;
    else if (code === QUOTE) {
      const end = endOfText(json, at);
      let next = end;
      while (isSpace(json.charCodeAt(next))) next += 1;
      // In JSON a text before a colon is the name of a member, and nothing else is.
      if (json.charCodeAt(next) === COLON && (depth === 1 || (isHolder && depth <= MAX_DEPTH))) {
        const name = JSON.parse(json.slice(at, end)) as string;
        let value = next + 1;
        while (isSpace(json.charCodeAt(value))) value += 1;
        const text = json.charCodeAt(value) === QUOTE ? (JSON.parse(json.slice(value, endOfText(json, value))) as string) : null;
        if (depth === 1) {
          outermost = name;
          isHolder = holds(name);
        }
        members.push({ name, text, holder: depth === 1 ? null : outermost, part: depth === 1 ? 0 : parts[depth]! });
      }
      at = end - 1;
    }
  }
  return members;
}
