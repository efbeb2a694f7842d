/**
 * What spreadsheets make of the export: with commas between the cells, as it is written, and with semicolons or tabs, as many of them
 * expect it. In no reading is a cell a formula.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { csvHeading, csvRow } from '../../src/audit/csv.ts';

/** As spreadsheets read: quotation marks count where a cell begins with one, and what stands behind the closing one is taken as it is. */
function read(text: string, separator: string): string[][] {
  const rows: string[][] = [[]];
  for (let at = 0; at < text.length; ) {
    let cell = '';
    if (text[at] === '"') {
      for (at += 1; at < text.length && (text[at] !== '"' || text[at + 1] === '"'); at += 1) {
        if (text[at] === '"') at += 1;
        cell += text[at];
      }
      at += 1;
    }
    for (; at < text.length && text[at] !== separator && text[at] !== '\n' && text[at] !== '\r'; at += 1) cell += text[at];
    rows.at(-1)!.push(cell);
    if (text[at] === '\r' && text[at + 1] === '\n') at += 1;
    if (text[at] !== separator && at + 1 < text.length) rows.push([]);
    at += 1;
  }
  return rows;
}

const SIGNS = ['=', '+', '-', '@', '|', '%', '＝', '＋', '－', '＠'];
const isFormula = (cell: string): boolean => SIGNS.some((sign) => cell.trimStart().startsWith(sign));
const nasty = fc.array(fc.constantFrom(...SIGNS, ';', ',', '\t', '\r', '\n', '"', "'", ' ', '\u00a0', '\\', 'a', 'cmd|x', 'HYPERLINK("h")'), { maxLength: 12 }).map((parts) => parts.join(''));
const COLUMNS = ['actor', 'action', 'outcome', 'resource', 'device_id', 'ip', 'request_id'];

describe('a row', () => {
  it.each([
    ['actor;=1+1', "actor;'=1+1"],
    ['a;-1;b', "a;'-1;b"],
    ['a; =1', "a;' =1"],
    ['a;"=1', `a;'"=1`],
    ['a\t@SUM(A1)', "a\t'@SUM(A1)"],
    ['a\n+1', "a\n'+1"],
    ['=1;=2', "'=1;'=2"],
    ['a;b;c', 'a;b;c'],
    ['a=1;b-2', 'a=1;b-2'],
    ['2026-11-30; a', '2026-11-30; a'],
  ])('says %j as %j', (value, shown) => {
    expect(read(csvRow({ seq: 1, ts: 't', actor: value }), ',')[0]![2]).toBe(shown);
  });

  it('is no formula in any cell, whatever is taken for what separates them', () => {
    fc.assert(
      fc.property(fc.array(nasty, { minLength: 8, maxLength: 8 }), ([path, ...values]) => {
        const row = csvRow({ seq: 7, ts: '2026-11-30T00:00:00.000Z', ...Object.fromEntries(COLUMNS.map((name, i) => [name, values[i]])), path, [`${path}n`]: [-1, path] });
        for (const separator of [',', ';', '\t']) {
          for (const cell of read(csvHeading() + row, separator).flat()) expect(isFormula(cell), JSON.stringify([separator, cell, row])).toBe(false);
        }
      }),
      { numRuns: 3000 },
    );
  });

  it('loses nothing of what has no column of its own, and adds nothing but apostrophes elsewhere', () => {
    fc.assert(
      fc.property(nasty, nasty, (actor, path) => {
        const cells = read(csvRow({ seq: 7, ts: 't', actor, path, n: { [path]: path } }), ',');
        expect(cells).toHaveLength(1);
        expect(JSON.parse(cells[0]![9]!)).toEqual({ path, n: { [path]: path } });
        expect(cells[0]![2]!.replaceAll("'", '')).toBe(actor.replaceAll("'", ''));
      }),
      { numRuns: 1000 },
    );
  });
});
