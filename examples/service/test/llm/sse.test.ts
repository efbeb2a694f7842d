import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { eventGate } from '../../src/llm/sse.ts';

const MEBIBYTE = 1024 * 1024;

function pushAll(text: string, cuts: readonly number[]): { handedOn: string[]; rest: string } {
  const gate = eventGate(MEBIBYTE);
  const bytes = Buffer.from(text);
  const handedOn: string[] = [];
  let from = 0;
  for (const cut of [...cuts.map((at) => at % (bytes.length + 1)).toSorted((a, b) => a - b), bytes.length]) {
    const ready = gate.push(bytes.subarray(from, cut))!;
    handedOn.push(Buffer.concat(ready).toString());
    from = cut;
  }
  return { handedOn, rest: Buffer.concat(gate.rest()).toString() };
}

describe('eventGate', () => {
  const lineEnd = fc.constantFrom('\n', '\r\n', '\r');
  const line = fc.constantFrom('', '', 'data: {"a":1}', 'event: error', ': ping', 'data', 'id: 7', 'data: \u{1f511}');
  const text = fc.array(fc.tuple(line, lineEnd), { maxLength: 12 }).map((lines) => lines.flat().join(''));

  it('changes no byte, whatever the pieces', () => {
    fc.assert(
      fc.property(text, fc.array(fc.nat(200), { maxLength: 6 }), fc.constantFrom('', 'data: cut'), (whole, cuts, end) => {
        const { handedOn, rest } = pushAll(whole + end, cuts);
        expect(handedOn.join('') + rest).toBe(whole + end);
      }),
    );
  });

  it('hands on whole events and the comments between them, and no part of an unfinished event', () => {
    fc.assert(
      fc.property(text, fc.array(fc.nat(200), { maxLength: 6 }), (whole, cuts) => {
        const { handedOn, rest } = pushAll(whole, cuts);
        // Read as a client does: line by line, an event being open from its first field to its blank line.
        let isOpen = false;
        for (const line of handedOn.join('').replaceAll('\r\n', '\n').split(/[\r\n]/)) {
          if (line === '') isOpen = false;
          else if (!line.startsWith(':')) isOpen = true;
        }
        expect(isOpen).toBe(false);
        const held = rest.split(/\r\n|\n|\r/).slice(0, -1);
        expect(held).not.toContain('');
        if (held.length > 0) expect(held[0]).not.toMatch(/^:/);
      }),
    );
  });

  it('hands a keep-alive comment on in the push that completes it, but none that stands inside an event', () => {
    const gate = eventGate(MEBIBYTE);
    expect(Buffer.concat(gate.push(Buffer.from(': keep-alive\n'))!).toString()).toBe(': keep-alive\n');
    expect(Buffer.concat(gate.push(Buffer.from(': again\r'))!).toString()).toBe(': again\r');
    expect(Buffer.concat(gate.push(Buffer.from('\ndata: 1\n: inside\n'))!).toString()).toBe('\n');
    expect(Buffer.concat(gate.push(Buffer.from('\n'))!).toString()).toBe('data: 1\n: inside\n\n');
  });

  it('hands a whole event on in the push that completes it', () => {
    const gate = eventGate(MEBIBYTE);
    expect(gate.push(Buffer.from('data: 1\n'))).toEqual([]);
    expect(Buffer.concat(gate.push(Buffer.from('\ndata: 2'))!).toString()).toBe('data: 1\n\n');
    expect(gate.push(Buffer.from('data: 3\n\n'))).toHaveLength(2);
    expect(gate.torn).toBe(false);
  });

  it('does not take the second half of a CRLF for a blank line', () => {
    const gate = eventGate(MEBIBYTE);
    expect(gate.push(Buffer.from('data: 1\r'))).toEqual([]);
    expect(gate.push(Buffer.from('\ndata: 2'))).toEqual([]);
  });

  it('holds at most 64 KiB of an event, hands the rest on as it comes and says that the event is torn', () => {
    const gate = eventGate(MEBIBYTE);
    const piece = Buffer.alloc(40_000, 'x');
    expect(gate.push(piece)).toEqual([]);
    expect(gate.push(piece)).toHaveLength(2);
    expect(gate.torn).toBe(true);
    expect(gate.push(piece)).toHaveLength(1);
    expect(gate.rest()).toEqual([]);
    expect(gate.push(Buffer.from('\n\n'))).toHaveLength(1);
    expect(gate.torn).toBe(false);
  });

  it('refuses an event that is longer than allowed, in one line or in many', () => {
    for (const piece of [Buffer.alloc(10_000, 'x'), Buffer.from('data: x\n'.repeat(1000))]) {
      const gate = eventGate(128 * 1024);
      let pushed = 0;
      while (gate.push(piece) !== null) pushed += piece.length;
      expect(pushed).toBeLessThanOrEqual(128 * 1024);
    }
  });

  it('counts each event by itself', () => {
    const gate = eventGate(128 * 1024);
    for (let i = 0; i < 100; i += 1) expect(gate.push(Buffer.from(`data: ${'x'.repeat(9000)}\n\n`))).not.toBeNull();
  });
});
