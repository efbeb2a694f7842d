/**
 * Reads what passes through, and keeps none of it: which tokens a provider reports, and whether a stream came to its end. What the
 * counts mean is for the providers' own files.
 */
import { condensedJson, type CondensedJson } from './condensed-json.ts';
import type { Meter } from './provider.ts';

/** The member `name` of an object; `undefined` for anything else. */
export function member(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined;
}

const MAX_TEXT_CHARACTERS = 200;

/** A text of a sensible length, or `null`. */
export function text(value: unknown): string | null {
  return typeof value === 'string' && value !== '' && value.length <= MAX_TEXT_CHARACTERS ? value : null;
}

/** A count of tokens, or `null`: an integer from 0 to 10^12. */
export function count(value: unknown): number | null {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= 1e12 ? value : null;
}

/** Whether any reader may take a call for one in the background: by its switch, however it is written, or because it cannot be told what the call says. */
export function mayGoOn(body: unknown): boolean {
  if (typeof body !== 'object' || body === null) return true;
  return Object.entries(body).some(([name, value]) => name.toLowerCase() === 'background' && value !== null && value !== false);
}

/** The sum of what each of `times` answers may take; `null` where no bound is named. */
export function bound(each: number | null, times: unknown): number | null {
  return each === null ? null : each * Math.max(1, Math.min(count(times) ?? 1, 1000));
}

/** The value of a JSON text; `undefined` for what is none. */
export function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

/** An answer that passes, in the pieces in which it passes. */
export interface AnswerReader {
  /** `bytes` that are handed on, in order. */
  take(bytes: Buffer): void;
  /** The answer is at its end. */
  end(): void;
}

const WHOLE_BYTES = 1024 * 1024;
const CONDENSED_BYTES = 1024 * 1024;
const TAIL_BYTES = 4096;
const EVENT_END = /\r\n\r\n|\n\n|\r\r/;
const LINE_END = /\r\n|\n|\r/;

/**
 * Gives the events of a stream to `meter`, at the latest with the byte after their blank line. Of an event of more than a mebibyte,
 * what is left when its long texts are emptied: a generated image comes in one event with the counts of what it cost.
 */
export function eventReader(meter: Meter): AnswerReader {
  let open: Buffer[] = [];
  let openBytes = 0;
  let condensed: CondensedJson | null = null;
  // What a provider says of the call as a whole, it says at the beginning.
  let isFirst = true;

  function read(events: string): void {
    for (const event of events.split(EVENT_END)) {
      if (!isFirst && !meter.marks.some((mark) => event.includes(mark))) continue;
      const lines = event.split(LINE_END).filter((line) => line.startsWith('data:'));
      if (lines.length === 0) continue;
      isFirst = false;
      meter.event(lines.map((line) => line.slice(line.startsWith('data: ') ? 6 : 5)).join('\n'));
    }
  }

  function readOpen(): void {
    const [first] = open;
    const whole = condensed === null ? (open.length > 1 ? Buffer.concat(open) : first) : condensed.rest();
    if (whole && (isFirst || meter.marks.some((mark) => whole.includes(mark)))) read(whole.toString('utf8'));
    open = [];
    openBytes = 0;
    condensed = null;
  }

  return {
    take(bytes) {
      if (condensed !== null) condensed.take(bytes);
      else {
        open.push(bytes);
        openBytes += bytes.length;
        if (openBytes > WHOLE_BYTES) condensed = condense(open);
        if (condensed !== null) open = [];
      }
      // Nearly always whole events, as the gate lets them through.
      if (endsEvent(bytes)) readOpen();
    },
    end: readOpen,
  };
}

function condense(pieces: readonly Buffer[]): CondensedJson {
  const condensed = condensedJson(CONDENSED_BYTES);
  for (const piece of pieces) condensed.take(piece);
  return condensed;
}

const LF = 10;
const CR = 13;

function endsEvent(bytes: Buffer): boolean {
  const { length } = bytes;
  const last = bytes[length - 1];
  if (length < 2) return false;
  return (last === LF && (bytes[length - 2] === LF || (length > 3 && bytes[length - 2] === CR && bytes[length - 3] === LF))) || (last === CR && bytes[length - 2] === CR);
}

/**
 * Gives a whole JSON answer to `meter`. Of one that is longer than a mebibyte, what is left when its long texts are emptied; and of
 * one that is long all the same, as lists of vectors are, the member `usage` alone, where it stands near the end.
 */
export function jsonReader(meter: Meter): AnswerReader {
  let kept: Buffer[] = [];
  let keptBytes = 0;
  let condensed: CondensedJson | null = null;
  let tail = Buffer.alloc(0);

  function answerOfTail(): unknown {
    const json = /"usage"\s*:\s*(\{(?:[^{}]|\{[^{}]*\})*\})[\s}]*$/.exec(tail.toString('utf8'))?.[1];
    return json === undefined ? undefined : { usage: parsed(json) };
  }

  return {
    take(bytes) {
      if (condensed === null) {
        kept.push(bytes);
        keptBytes += bytes.length;
        if (keptBytes <= WHOLE_BYTES) return;
        condensed = condense(kept);
        tail = Buffer.from(Buffer.concat(kept).subarray(-TAIL_BYTES));
        kept = [];
        return;
      }
      condensed.take(bytes);
      tail = Buffer.concat([tail, bytes.subarray(-TAIL_BYTES)]).subarray(-TAIL_BYTES);
    },
    end() {
      const whole = condensed === null ? Buffer.concat(kept) : condensed.rest();
      meter.answer(whole === null ? answerOfTail() : parsed(whole.toString('utf8')));
      kept = [];
    },
  };
}
