/** The table of which implementation keeps which property of its seam: made of evidence, written as Markdown, and read back from it. */
import { PROPERTIES, type Evidence, type Property } from './cases.ts';

/** Of all cases of one property of one implementation: whether each passed. */
export type Cell = 'passed' | 'failed' | 'none';

/** What one implementation of a seam keeps. */
export interface Row {
  readonly seam: string;
  readonly implementation: string;
  readonly cells: Readonly<Record<Property, Cell>>;
}

/** One case that ran. */
export interface Outcome extends Evidence {
  readonly passed: boolean;
}

const MARKS: Readonly<Record<Cell, string>> = { passed: '✓', failed: '✗', none: '—' };
const COLUMNS: readonly string[] = ['seam', 'implementation', ...PROPERTIES];
const HEAD = `| ${COLUMNS.join(' | ')} |`;

const rowKey = ({ seam, implementation }: { readonly seam: string; readonly implementation: string }): string => `${seam} | ${implementation}`;

function inOrder(rows: readonly Row[]): Row[] {
  return rows.toSorted((a, b) => (rowKey(a) < rowKey(b) ? -1 : 1));
}

export function rowsOf(outcomes: readonly Outcome[]): Row[] {
  const rows = new Map<string, { seam: string; implementation: string; cells: Record<Property, Cell> }>();
  for (const { seam, implementation, property, passed } of outcomes) {
    const key = rowKey({ seam, implementation });
    const none = Object.fromEntries(PROPERTIES.map((one) => [one, 'none'])) as Record<Property, Cell>;
    const row = rows.get(key) ?? { seam, implementation, cells: none };
    rows.set(key, row);
    if (row.cells[property] !== 'failed') row.cells[property] = passed ? 'passed' : 'failed';
  }
  return inOrder([...rows.values()]);
}

export function toMarkdown(rows: readonly Row[]): string {
  const lines = inOrder(rows).map(({ seam, implementation, cells }) => [seam, implementation, ...PROPERTIES.map((property) => MARKS[cells[property]])]);
  const widths = COLUMNS.map((name, i) => Math.max(name.length, ...lines.map((line) => line[i]!.length)));
  const text = (parts: readonly string[]): string => `| ${parts.map((part, i) => part.padEnd(widths[i]!)).join(' | ')} |`;
  return [text(COLUMNS), `| ${widths.map((width) => '-'.repeat(width)).join(' | ')} |`, ...lines.map(text)].join('\n');
}

const cellsIn = (line: string): string[] => line.split('|').slice(1, -1).map((part) => part.trim());

function tableIn(lines: readonly string[]): { readonly from: number; readonly to: number } {
  const from = lines.findIndex((line) => line.startsWith('|') && `| ${cellsIn(line).join(' | ')} |` === HEAD);
  if (from === -1) throw new Error(`There is no table that begins with ${HEAD}`);
  const length = lines.slice(from).findIndex((line) => !line.startsWith('|'));
  return { from, to: length === -1 ? lines.length : from + length };
}

/** The rows of the table in a Markdown document. @throws Error where there is none, or a mark that is none */
export function readMarkdown(document: string): Row[] {
  const lines = document.split('\n');
  const { from, to } = tableIn(lines);
  return lines.slice(from + 2, to).map((line) => {
    const [seam = '', implementation = '', ...marks] = cellsIn(line);
    const cells = PROPERTIES.map((property, i) => {
      const cell = (Object.keys(MARKS) as Cell[]).find((one) => MARKS[one] === marks[i]);
      if (cell === undefined) throw new Error(`${seam} of ${implementation} has no mark for ${property}.`);
      return [property, cell];
    });
    return { seam, implementation, cells: Object.fromEntries(cells) as Record<Property, Cell> };
  });
}

/** The document with `rows` in the place of its table. */
export function writeMarkdown(document: string, rows: readonly Row[]): string {
  const lines = document.split('\n');
  const { from, to } = tableIn(lines);
  return [...lines.slice(0, from), toMarkdown(rows), ...lines.slice(to)].join('\n');
}

/** In what the table of a run differs from the one that was claimed; a claim `mayBeMissing` is not missed. */
export function differences(claimed: readonly Row[], ran: readonly Row[], mayBeMissing: (row: Row) => boolean = () => false): string[] {
  const found: string[] = [];
  const byKey = new Map(ran.map((row) => [rowKey(row), row]));
  for (const claim of claimed) {
    const row = byKey.get(rowKey(claim));
    byKey.delete(rowKey(claim));
    if (row === undefined) {
      if (!mayBeMissing(claim)) found.push(`${rowKey(claim)}: claimed, and did not run`);
      continue;
    }
    for (const property of PROPERTIES) {
      const [was, is] = [claim.cells[property], row.cells[property]];
      if (was !== is) found.push(`${rowKey(claim)} | ${property}: claimed ${MARKS[was]}, and was ${MARKS[is]}`);
    }
  }
  for (const row of byKey.values()) found.push(`${rowKey(row)}: ran, and is not claimed`);
  return found;
}
