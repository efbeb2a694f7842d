/**
 * A gate for server-sent events: hands on whole events, and comments between them, at once and holds back an unfinished event, so that a stream that breaks can
 * be ended with an error event that the client is able to read. No parser of an SSE client acts on an unfinished event, so nobody
 * waits for what is held.
 *
 * @see https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
 */

const LF = 10;
const CR = 13;
const COLON = 58;
const HELD_BYTES = 64 * 1024;

export interface EventGate {
  /**
   * The buffers to hand on now that `chunk` has come, in order and without a copy; `null` when an event is longer than allowed,
   * to within one chunk.
   */
  push(chunk: Buffer): readonly Buffer[] | null;
  /** What is held when the stream ends as it should. */
  rest(): readonly Buffer[];
  /** Whether part of an unfinished event was handed on, because it was too long to be held. */
  readonly torn: boolean;
}

/** `maxEventBytes` bounds an event, and so a line; more than 64 KiB of an event are never held in memory. */
export function eventGate(maxEventBytes: number): EventGate {
  let held: Buffer[] = [];
  // Bytes of the unfinished event, whether held or handed on.
  let openBytes = 0;
  let torn = false;
  let lineIsEmpty = true;
  let lineIsComment = false;
  let hasFields = false;
  let afterCr = false;

  /** The index behind the last blank line, or comment between events, in `chunk`, or 0; remembers how the chunk ends. */
  function endOfEvents(chunk: Buffer): number {
    const { length } = chunk;
    // What nearly every chunk of every provider looks like.
    if (length >= 2 && chunk[length - 1] === LF && chunk[length - 2] === LF) {
      lineIsEmpty = true;
      hasFields = false;
      afterCr = false;
      return length;
    }
    let end = 0;
    for (let i = 0; i < length; i += 1) {
      const byte = chunk[i];
      if (byte === LF && afterCr) {
        // The second half of a CRLF belongs to the line that its first half has ended.
        afterCr = false;
        if (i === 0 ? openBytes === 0 : end === i) end = i + 1;
      } else if (byte === LF || byte === CR) {
        // A comment keeps the connection alive; there is nothing in it to wait for.
        if (lineIsEmpty || (lineIsComment && !hasFields)) end = i + 1;
        hasFields = !lineIsEmpty && (hasFields || !lineIsComment);
        lineIsEmpty = true;
        afterCr = byte === CR;
      } else {
        if (lineIsEmpty) lineIsComment = byte === COLON;
        lineIsEmpty = false;
        afterCr = false;
      }
    }
    return end;
  }

  return {
    push(chunk: Buffer): readonly Buffer[] | null {
      const end = endOfEvents(chunk);
      if (openBytes + (end === 0 ? chunk.length : 0) > maxEventBytes) return null;
      const ready: Buffer[] = [];
      if (end > 0) {
        ready.push(...held, end === chunk.length ? chunk : chunk.subarray(0, end));
        held = [];
        torn = false;
        openBytes = 0;
      }
      if (end < chunk.length) {
        const open = end === 0 ? chunk : chunk.subarray(end);
        openBytes += open.length;
        if (torn) ready.push(open);
        else held.push(open);
        if (!torn && openBytes > HELD_BYTES) {
          ready.push(...held);
          held = [];
          torn = true;
        }
      }
      return ready;
    },
    rest: () => held,
    get torn(): boolean {
      return torn;
    },
  };
}
