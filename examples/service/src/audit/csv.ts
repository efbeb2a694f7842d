/**
 * Audit entries as RFC 4180: one row each, every cell quoted. A spreadsheet takes a cell that begins with one of a few characters for a
 * formula, and what a stranger wrote into a path is then run by whoever opens the file: such a cell begins with an apostrophe here.
 *
 * Where a spreadsheet expects semicolons or tabs between cells, as it does in half of the world, it splits this file inside of them, and
 * minds quotation marks at the beginning of what it then takes for a cell only. So what follows one of those, or a line break, in a cell
 * is guarded like a cell; and JSON has no semicolon as it stands, which loses nothing.
 */
const COLUMNS = ['seq', 'ts', 'actor', 'action', 'outcome', 'resource', 'device_id', 'ip', 'request_id'] as const;
const SHOWN: ReadonlySet<string> = new Set(COLUMNS);

// Also behind white space, in the full-width forms that some spreadsheets read likewise, and behind quotation marks, which are gone once
// the cell was split in front of them.
const FORMULA = /^[\s\u00a0"]*[=+\-@|%\uff1d\uff0b\uff0d\uff20]/;
const WHITE_BEGINNING = /^[\t\r\n]/;
const BEHIND_SEPARATOR = /(?<=[;\t\r\n])/;

function guarded(text: string): string {
  const parts = text.split(BEHIND_SEPARATOR).map((part) => (FORMULA.test(part) ? `'${part}` : part));
  return `${WHITE_BEGINNING.test(text) ? "'" : ''}${parts.join('')}`;
}

function cell(value: unknown): string {
  if (value === undefined || value === null) return '';
  const safe = typeof value === 'string' ? guarded(value) : JSON.stringify(value).replaceAll(';', String.raw`\u003b`);
  return `"${safe.replaceAll('"', '""')}"`;
}

const line = (cells: readonly unknown[]): string => `${cells.map(cell).join(',')}\r\n`;

export function csvHeading(): string {
  return line([...COLUMNS, 'details']);
}

/** What has no column of its own is JSON in the last one. */
export function csvRow(entry: Readonly<Record<string, unknown>>): string {
  const details = Object.fromEntries(Object.entries(entry).filter(([name]) => !SHOWN.has(name) && name !== 'origin'));
  return line([...COLUMNS.map((name) => entry[name]), Object.keys(details).length === 0 ? null : details]);
}
