/** `.env` text: what is written is read back by both common readers to the same bytes, and what is read means one thing. */
import { parseEnv } from 'node:util';
import { parse } from 'dotenv';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { readEnv, writeVariable } from '../../src/secrets/dotenv.ts';

const HOSTILE = ['', ' ', 'plain', 'with space', ' leading', 'trailing ', 'a#b', '# not a comment', 'a # b', '$HOME', '${HOME}', '$(id)', '`id`', "it's", '"quoted"', "'quoted'",
  'a\nb', '\n', 'a\n', '\nb', 'A=1\nB=2', "x'\nB='y", 'back\\slash', 'ends in \\', '\\', '\\\\', '\\n', 'a\\nb\nc', "\\'", '\\"', '=', '==', 'a=b', 'export X=1', 'ключ', '🔑', '\u2028', "a\u2028'b'", '\u00a0x\u00a0', '\uFEFFx',
  '\tx\t', `'"`, `"\``, `'\``, `-----BEGIN PRIVATE KEY-----\nMC4CAQ==\n-----END PRIVATE KEY-----\n`, '{"a":"b"}', "{'a': `b`}", 'postgres://u:p%40ss@h:5432/db?a=b&c=d#e'];

const piece = fc.constantFrom('\n', "'", '"', '`', '\\', '#', '$', ' ', '=', 'n', 'r', 'A', '\t', '\u2028', 'é', '🔑', 'export ', '\nB=', "'\n");
const value = fc.oneof(fc.array(piece, { maxLength: 12 }).map((pieces) => pieces.join('')), fc.string({ unit: 'grapheme', maxLength: 20 }).filter((text) => !text.includes('\0')));

function readBack(text: string, names: readonly string[]): [string | undefined, string | undefined][] {
  const [one, two] = [parse(text), parseEnv(text)];
  return names.map((name) => [one[name], two[name]]);
}

describe('a .env file that is written', () => {
  it('is read back to the same bytes by dotenv and by Node, whatever the values are', () => {
    const written = HOSTILE.map((text, i) => ({ text, line: writeVariable(`V${i}`, text), name: `V${i}` }));
    const whole = written.flatMap(({ line }) => (line === null ? [] : [line])).join('\n');
    const there = written.filter(({ line }) => line !== null);
    expect(readBack(whole, there.map(({ name }) => name))).toEqual(there.map(({ text }) => [text, text]));
    // All that is left out holds what neither quoting nor escaping can give to both.
    expect(written.filter(({ line }) => line === null).map(({ text }) => text)).toEqual([]);
  });

  it('is so for any values beside each other', () => {
    fc.assert(
      fc.property(fc.array(value, { minLength: 1, maxLength: 5 }), (values) => {
        const lines = values.map((text, i) => writeVariable(`V${i}`, text));
        const whole = `${lines.filter((line) => line !== null).join('\n')}\n`;
        const there = values.map((text, i) => [`V${i}`, text] as const).filter((_, i) => lines[i] !== null);
        expect(readBack(whole, there.map(([name]) => name))).toEqual(there.map(([, text]) => [text, text]));
      }),
      { numRuns: 2000 },
    );
  });

  it('has no form for a carriage return and for all quotes at once, and for no name that is none', () => {
    for (const text of ['a\r\nb', '\r', `a\n'"\``, `"\`'\\n\nx`]) expect([text, writeVariable('A', text)]).toEqual([text, null]);
    for (const name of ['', '1A', 'A-B', 'A B', 'A=B', 'Ä', 'A\nB', 'A'.repeat(201)]) expect([name, writeVariable(name, 'x')]).toEqual([name, null]);
  });
});

describe('a .env file that is read', () => {
  it('gives names and values as both readers do', () => {
    const text = ['# a comment', '', 'A=1', '  B = two words  ', 'export C="line\\nbreak"', "D='it is #1' # really", 'E=a#comment', 'F=`x', 'y`', 'my-name.is=ok', 'G=$HOME'].join('\r\n');
    const { variables, invalid } = readEnv(text);
    expect(invalid).toEqual([]);
    expect(variables.map(({ name, value: read }) => [name, read])).toEqual([['A', '1'], ['B', 'two words'], ['C', 'line\nbreak'], ['D', 'it is #1'], ['E', 'a'], ['F', 'x\ny'], ['my_name_is', 'ok'], ['G', '$HOME']]);
    expect(variables.map(({ line }) => line)).toEqual([3, 4, 5, 6, 7, 8, 10, 11]);
  });

  it('names every line that is none, or that is read in different ways, and shows no value', () => {
    const text = ['just words', 'A', '=x', '1A=x', 'B=`open', "C='x' y", 'D=', "E=''", 'F=1', 'F=2', 'a-b=1', 'a.b=2', 'G="a\\"b"', 'H="a\\rb"', "I='x\\'"].join('\n');
    const { variables, invalid } = readEnv(text);
    expect(variables.map(({ name }) => name)).toEqual(['F', 'a_b']);
    expect(invalid.map(({ line, name }) => [line, name])).toEqual([[1, null], [2, null], [3, null], [4, null], [5, 'B'], [6, 'C'], [7, 'D'], [8, 'E'], [10, 'F'], [12, 'a_b'], [13, 'G'], [14, 'H'], [15, 'I']]);
    expect(JSON.stringify(invalid)).not.toMatch(/open|words|\\rb/);
  });

  it('takes a value only if all readers take the same one', () => {
    const line = fc.array(fc.oneof(piece, fc.constantFrom('A', 'B', 'X=', "Y='", ' z', 'Z="', 'W=`')), { maxLength: 20 }).map((pieces) => pieces.join(''));
    fc.assert(
      fc.property(line, (text) => {
        const { variables, invalid } = readEnv(text);
        if (invalid.length > 0) return;
        const [one, two] = [parse(text), parseEnv(text)];
        for (const { name, value: read } of variables) expect([text, name, one[name], two[name]]).toEqual([text, name, read, read]);
      }),
      { numRuns: 2000 },
    );
  });
});
