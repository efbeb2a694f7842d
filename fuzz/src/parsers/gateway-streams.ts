/** What the gateway of `examples/service` reads as it passes, in any pieces: JSON whose long texts are dropped, and events. */
import { condensedJson } from '@keyguard/example-service/llm/condensed-json';
import { eventGate } from '@keyguard/example-service/llm/sse';
import type { Generator } from '../generator.ts';
import { mutateText, oddCharacter } from '../mutate.ts';
import { demand, outcomeOf, type Parser, type Verdict } from '../parser.ts';
import { isJsonObject, randomBody } from './gateway-bodies.ts';

/** `bytes` in pieces. */
function piecesOf(random: Generator, bytes: Buffer): Buffer[] {
  const most = random.pick(bytes.length > 5000 ? [5000, 70_000] : bytes.length > 500 ? [40, 400, 5000] : [1, 3, 20, 400]);
  const pieces: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = 1 + random.below(most);
    pieces.push(bytes.subarray(at, at + length));
    at += length;
  }
  return pieces;
}

const LINES = ['', '', '', 'data: {"a":1}', 'data', 'event: error', ': ping', ':', 'id: 7', 'data: \u{1f511}', ' '] as const;
const LINE_ENDS = ['\n', '\n', '\r\n', '\r'] as const;
// What the gate is documented to hold.
const HELD_BYTES = 64 * 1024;

function stream(random: Generator): Buffer {
  const ends = random.oneIn(2) ? [random.pick(LINE_ENDS)] : LINE_ENDS;
  let text = '';
  for (let left = random.below(14); left > 0; left -= 1) {
    text += random.oneIn(6) ? mutateText(random, random.pick(LINES), ['\n\n', '\r', ':']) : random.pick(LINES);
    if (random.oneIn(300)) text += 'x'.repeat(random.below(3 * HELD_BYTES));
    text += random.pick(ends);
  }
  return Buffer.from(random.oneIn(3) ? text + oddCharacter(random) : text);
}

/** How much of `text` is whole events, and comments between them, as a client reads line by line. */
function endOfEvents(text: string): number {
  let [at, end, isOpen] = [0, 0, false];
  const parts = text.split(/(\r\n|\r|\n)/);
  // What is behind the last line end is no line yet.
  for (let i = 0; i + 1 < parts.length; i += 2) {
    const [line, lineEnd] = [parts[i]!, parts[i + 1]!];
    at += line.length + lineEnd.length;
    if (line === '') isOpen = false;
    else if (!line.startsWith(':')) isOpen = true;
    if (!isOpen) end = at;
  }
  return end;
}

export const GATEWAY_STREAMS: readonly Parser[] = [
  {
    name: 'condensed-json.condensedJson',
    try(random): Verdict {
      const maxBytes = random.pick([200, 3000, 100_000]);
      const long = { text: 'A"\\\u{1f600}'.repeat(random.below(random.oneIn(4) ? 2000 : 300)) };
      const bytes = Buffer.from(randomBody(random, [['image', long], ['usage', { members: [['input_tokens', null]] }]]));
      const outcome = outcomeOf(() => {
        const condensed = condensedJson(maxBytes);
        for (const piece of piecesOf(random, bytes)) condensed.take(piece);
        return condensed.rest();
      });
      const rest = outcome.accepted ? outcome.value : null;
      if (rest !== null) demand(rest.length <= maxBytes && rest.length <= bytes.length, 'kept more than it may');
      if (!isJsonObject(bytes)) return rest === null ? 'refused' : 'accepted';
      // Each text by itself, and everything else to the byte.
      const expected = bytes.toString('utf8').replaceAll(/"((?:[^"\\]|\\.)*)"/gs, (text, inside: string) => (Buffer.byteLength(inside) > 1024 ? '""' : text));
      if (rest !== null) demand(rest.toString('utf8') === expected, 'is another text');
      else demand(Buffer.byteLength(expected) + 1024 >= maxBytes, 'gave up too early');
      return rest === null ? 'refused' : 'accepted';
    },
  },
  {
    name: 'sse.eventGate',
    try(random): Verdict {
      const bytes = stream(random);
      const maxEventBytes = random.pick([60, 1000, 128 * 1024]);
      const outcome = outcomeOf((): Verdict => {
        const gate = eventGate(maxEventBytes);
        const [handedOn, taken]: [Buffer[], { bytes: number }] = [[], { bytes: 0 }];
        for (const piece of piecesOf(random, bytes)) {
          const endBefore = endOfEvents(bytes.toString('latin1', 0, taken.bytes));
          taken.bytes += piece.length;
          const end = endOfEvents(bytes.toString('latin1', 0, taken.bytes));
          const ready = gate.push(piece);
          const openBytes = taken.bytes - Math.max(end, endBefore);
          if (ready === null) {
            // To within one piece.
            demand(taken.bytes - endBefore > maxEventBytes, 'gave up an event that is not too long');
            return 'refused';
          }
          demand(openBytes <= maxEventBytes + piece.length, 'let an event pass that is too long');
          handedOn.push(...ready);
          const sent = Buffer.concat(handedOn);
          demand(sent.equals(bytes.subarray(0, sent.length)), 'handed on other bytes');
          if (gate.torn) demand(openBytes > HELD_BYTES && sent.length === taken.bytes, 'tore an event that is not too long to be held');
          else demand(sent.length === end, 'handed on part of an event, or held a whole one');
        }
        demand(Buffer.concat([...handedOn, ...gate.rest()]).equals(bytes), 'lost or made up bytes');
        return 'accepted';
      });
      return outcome.accepted ? outcome.value : 'refused';
    },
  },
];
