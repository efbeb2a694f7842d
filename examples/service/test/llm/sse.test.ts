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

  it('hands on up to the last blank line, and no further', () => {
    fc.assert(
      fc.property(text, fc.array(fc.nat(200), { maxLength: 6 }), (whole, cuts) => {
        const { handedOn, rest } = pushAll(whole, cuts);
        const soFar = handedOn.join('');
        // Read as a client does: what was handed on ends behind a blank line (or is nothing), what is held has none.
        const lines = soFar.split(/\r\n|\n|\r/);
        if (soFar !== '') expect(lines.slice(-2)).toEqual(['', '']);
        expect(rest.split(/\r\n|\n|\r/).slice(0, -1)).not.toContain('');
      }),
    );
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

  it('knows the last bytes, however small the pieces', () => {
    const gate = eventGate(MEBIBYTE);
    for (const character of `data: ${'y'.repeat(100)}\n\ndata: [DONE]\n\n`) gate.push(Buffer.from(character));
    expect(gate.tail.endsWith('data: [DONE]\n\n')).toBe(true);
  });
});
