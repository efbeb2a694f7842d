/**
 * JSON without what is long in it. A generated image is a text of megabytes that stands in one answer with the counts that are
 * wanted: here its insides are passed over as they come, so that the rest can be read without ever holding them.
 */

const QUOTE = 34;
const BACKSLASH = 92;
const LF = 10;
const CR = 13;
const MAX_TEXT_BYTES = 1024;
const FIRST_BYTES = 16 * 1024;

/** Takes a JSON text in pieces, with line breaks and words around it as in server-sent events, where none stands inside a text. */
export interface CondensedJson {
  take(bytes: Buffer): void;
  /**
   * What was taken, each text of more than a kibibyte emptied; `null` where more than `maxBytes` is left of it. Equal to what was
   * taken, as far as values other than such texts go.
   */
  rest(): Buffer | null;
}

/** @param maxBytes of what is kept */
export function condensedJson(maxBytes: number): CondensedJson {
  let kept = Buffer.allocUnsafe(FIRST_BYTES);
  let keptBytes = 0;
  let isTooLong = false;
  let isInText = false;
  let isEscaped = false;
  // Where the open text begins in what is kept, and how much of it there was.
  let textAt = 0;
  let textBytes = 0;

  function keep(bytes: Buffer): void {
    const needed = keptBytes + bytes.length;
    if (needed > maxBytes) {
      isTooLong = true;
      return;
    }
    if (needed > kept.length) {
      const larger = Buffer.allocUnsafe(Math.min(Math.max(needed, 2 * kept.length), maxBytes));
      kept.copy(larger, 0, 0, keptBytes);
      kept = larger;
    }
    bytes.copy(kept, keptBytes);
    keptBytes = needed;
  }

  function takeText(bytes: Buffer): void {
    textBytes += bytes.length;
    if (textBytes > MAX_TEXT_BYTES) keptBytes = textAt;
    else keep(bytes);
  }

  /** Where the text that is open at `from` ends: at its quote, at a line break, or behind `bytes`. */
  function endOfText(bytes: Buffer, from: number): number {
    for (let i = from; i < bytes.length; i += 1) {
      const byte = bytes[i];
      if (byte === LF || byte === CR) return i;
      if (isEscaped) isEscaped = false;
      else if (byte === BACKSLASH) isEscaped = true;
      else if (byte === QUOTE) return i;
    }
    return bytes.length;
  }

  return {
    take(bytes) {
      let at = 0;
      while (at < bytes.length && !isTooLong) {
        if (isInText) {
          const end = endOfText(bytes, at);
          takeText(bytes.subarray(at, end));
          at = end;
          if (at === bytes.length) return;
          isInText = false;
          isEscaped = false;
          if (bytes[at] === QUOTE) keep(bytes.subarray(at, (at += 1)));
        } else {
          const quote = bytes.indexOf(QUOTE, at);
          keep(bytes.subarray(at, quote < 0 ? bytes.length : quote + 1));
          if (quote < 0) return;
          at = quote + 1;
          isInText = true;
          textAt = keptBytes;
          textBytes = 0;
        }
      }
    },
    rest: () => (isTooLong ? null : kept.subarray(0, keptBytes)),
  };
}
