/**
 * Changes to valid inputs, as attackers and broken programs make them: of bytes, of text, of JSON values, of lists. A mutation may
 * leave an input as it was; so whoever judges compares with the original, and does not count mutations.
 */
import type { Bytes, JsonValue } from '@keyguard/core/seams';
import type { Generator } from './generator.ts';

/** Lengths at which something changes: nothing, one, and around powers of two. Rarely long. */
export function lengthOf(random: Generator, most = 300): number {
  if (random.oneIn(4)) return Math.min(most, random.pick([0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256]));
  return random.below(random.oneIn(50) ? 20 * most : most);
}

/** How often to change: mostly once, so that one wrong thing is not hidden behind another; sometimes not at all. */
function rounds(random: Generator): number {
  return random.pick([0, 1, 1, 1, 1, 1, 2, 2, 3, 5]);
}

function splice(bytes: Uint8Array, from: number, to: number, middle: Uint8Array): Bytes {
  const joined = new Uint8Array(from + middle.length + bytes.length - to);
  joined.set(bytes.subarray(0, from));
  joined.set(middle, from);
  joined.set(bytes.subarray(to), from + middle.length);
  return joined;
}

/** `original` with bits flipped, bytes set, taken out, put in, doubled or cut off; or in part of `others`; or random bytes. */
export function mutateBytes(random: Generator, original: Uint8Array, others: readonly Uint8Array[] = []): Bytes {
  if (random.oneIn(20)) return random.bytes(random.oneIn(2) ? original.length : lengthOf(random));
  let bytes: Bytes = new Uint8Array(original);
  for (let left = rounds(random); left > 0; left -= 1) {
    const at = random.below(bytes.length + 1);
    const end = Math.min(bytes.length, at + 1 + random.below(random.oneIn(3) ? 40 : 3));
    switch (random.below(8)) {
      case 0:
      case 1:
        if (at < bytes.length) bytes[at]! ^= 1 << random.below(8);
        break;
      case 2:
        if (at < bytes.length) bytes[at] = random.pick([0, 1, 2, 0x20, 0x7f, 0x80, 0xfe, 0xff, random.below(256)]);
        break;
      case 3:
        bytes = splice(bytes, at, at, random.bytes(1 + random.below(4)));
        break;
      case 4:
        bytes = splice(bytes, at, end, new Uint8Array());
        break;
      case 5:
        bytes = splice(bytes, at, at, bytes.slice(at, end));
        break;
      case 6:
        bytes = bytes.slice(0, at);
        break;
      default: {
        const other = others.length > 0 ? random.pick(others) : bytes;
        bytes = splice(bytes, at, Math.min(bytes.length, end), other.slice(at, end));
      }
    }
  }
  return bytes;
}

// What has ended parsers of others: line ends, blanks that are none, digits of other scripts, letters that fold into ours.
const CHARACTERS = [
  '\0', '\t', '\n', '\r', '\r\n', ' ', '\u007f', '\u0080', '\u00a0', '\u00ad', '\u0131', '\u017f', '\u200b', '\u200e', '\u2028', '\u202e', '\u212a', '\u3000', '\ufeff', '\ufffd',
  '\uff0f', '\uff0e', '\u0661', '\ud800', '\udfff', '\u{1f600}', 'e\u0301', '\u00e9', '"', '\\', '/', '%', '=', '+', '-', '_', ',', ';', ':', '.', '..', '?', '#', '&', '@', '[', ']', '{', '}', '0', '00', '1e9', '0x1',
  '%2e', '%2F', '%5c', '%00', '%25', '%C3', '-0', '9007199254740993', 'A', 'a', 'null', '\\u0000',
] as const;

/** One character, or a few that belong together, out of those that parsers fall over. */
export function oddCharacter(random: Generator): string {
  return random.oneIn(4) ? String.fromCharCode(random.below(random.oneIn(3) ? 0x10000 : 128)) : random.pick(CHARACTERS);
}

/** `original` with characters put in, taken out, replaced, doubled, swapped, cut off or of the other case; or random text. */
export function mutateText(random: Generator, original: string, words: readonly string[] = []): string {
  if (random.oneIn(25)) return randomText(random, random.oneIn(2) ? original.length : lengthOf(random));
  let text = original;
  for (let left = rounds(random); left > 0; left -= 1) {
    const at = random.below(text.length + 1);
    const end = Math.min(text.length, at + 1 + random.below(random.oneIn(3) ? 30 : 2));
    const [before, within, after] = [text.slice(0, at), text.slice(at, end), text.slice(end)];
    switch (random.below(9)) {
      case 0:
        text = before + oddCharacter(random) + within + after;
        break;
      case 1:
        text = before + oddCharacter(random) + after;
        break;
      case 2:
        text = before + after;
        break;
      case 3:
        text = before + within + within + after;
        break;
      case 4:
        text = before + (within === within.toLowerCase() ? within.toUpperCase() : within.toLowerCase()) + after;
        break;
      case 5:
        text = random.oneIn(2) ? before : within + after;
        break;
      case 6:
        text = before + (words.length > 0 ? random.pick(words) : oddCharacter(random)) + (random.oneIn(2) ? within : '') + after;
        break;
      case 7:
        text = before + after.slice(0, 1) + within + after.slice(1);
        break;
      default:
        text = random.oneIn(30) ? before + within.repeat(1 + random.below(4000)) + after : ` ${text}`.slice(random.below(2)) + ' '.repeat(random.below(2));
    }
  }
  return text;
}

/** `length` characters, most of them ASCII. */
export function randomText(random: Generator, length: number): string {
  let text = '';
  for (let i = 0; i < length; i += 1) text += random.oneIn(12) ? oddCharacter(random) : String.fromCharCode(32 + random.below(95));
  return text;
}

const NUMBERS = [0, -0, 1, -1, 2, 0.5, 1e-7, 1e21, 255, 256, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1, 2 ** 53, -(2 ** 53), 1.7976931348623157e308, 5e-324] as const;
const NAMES = ['__proto__', 'constructor', 'toString', 'length', '', '0', 'a', '\u00e9', '\ufb33', '\u{1f600}'] as const;

/** Any value that JSON can hold, small. */
export function randomJson(random: Generator, depth = 3): JsonValue {
  switch (random.below(depth > 0 ? 8 : 6)) {
    case 0:
      return null;
    case 1:
      return random.oneIn(2);
    case 2:
      return random.pick(NUMBERS);
    case 3:
      return random.below(2 ** 32) * random.pick([1, 1e-3, 1e9, -1]);
    case 4:
    case 5:
      return random.oneIn(2) ? randomText(random, random.below(12)) : random.pick(NAMES);
    case 6:
      return Array.from({ length: random.below(4) }, () => randomJson(random, depth - 1));
    default: {
      const members = Array.from({ length: random.below(4) }, (): [string, JsonValue] => [
        random.oneIn(2) ? random.pick(NAMES) : randomText(random, random.below(6)),
        randomJson(random, depth - 1),
      ]);
      // An own member of any name, as the parser of JSON makes them.
      return JSON.parse(`{${members.map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`).join()}}`) as JsonValue;
    }
  }
}

function mutateMembers(random: Generator, value: Readonly<Record<string, JsonValue>>): JsonValue {
  const entries = Object.entries(value);
  if (entries.length === 0) return { [random.pick(NAMES)]: randomJson(random, 1) };
  const at = random.below(entries.length);
  const [name, member] = entries[at]!;
  switch (random.below(8)) {
    case 0:
      entries.splice(at, 1);
      break;
    case 1:
      entries.push([random.pick(NAMES), randomJson(random, 1)]);
      break;
    case 2:
      entries[at] = [mutateText(random, name), member];
      break;
    case 3:
      entries[at] = [name, random.pick(entries)[1]];
      break;
    default:
      entries[at] = [name, mutateJson(random, member)];
  }
  const made: Record<string, JsonValue> = {};
  // Not by assignment, which would set the prototype for one of the names.
  for (const [key, each] of entries) Object.defineProperty(made, key, { value: each, enumerable: true, configurable: true, writable: true });
  return made;
}

/** `value` with one place in it changed. */
export function mutateJson(random: Generator, value: JsonValue): JsonValue {
  if (random.oneIn(12)) return randomJson(random, 2);
  if (typeof value === 'string') return mutateText(random, value);
  if (typeof value === 'number') return random.oneIn(3) ? random.pick(NUMBERS) : value + random.pick([1, -1, 0.5, 1000, -1000, 2 ** 32]);
  if (typeof value === 'boolean' || value === null) return random.pick([true, false, null, 0, '', [], {}]);
  if (Array.isArray(value)) return mutateList(random, value as readonly JsonValue[], (each) => mutateJson(random, each), () => randomJson(random, 1));
  return mutateMembers(random, value as Readonly<Record<string, JsonValue>>);
}

/** `list` with a member changed, dropped, doubled, moved or put in. */
export function mutateList<T>(random: Generator, list: readonly T[], change: (member: T) => T, fresh: () => T): T[] {
  const made = [...list];
  if (made.length === 0) return random.oneIn(2) ? made : [fresh()];
  const at = random.below(made.length);
  switch (random.below(8)) {
    case 0:
      made.splice(at, 1);
      break;
    case 1:
      made.splice(at, 0, made[at]!);
      break;
    case 2:
      made.splice(random.below(made.length), 0, ...made.splice(at, 1));
      break;
    case 3:
      made.splice(at, 0, fresh());
      break;
    default:
      made[at] = change(made[at]!);
  }
  return made;
}
