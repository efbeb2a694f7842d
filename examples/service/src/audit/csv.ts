/**
 * Audit entries as RFC 4180: one row each, every cell quoted. A spreadsheet takes a cell that begins with one of a few characters for a
 * formula, and what a stranger wrote into a path is then run by whoever opens the file: such a cell begins with an apostrophe here.
 */
const COLUMNS = ['seq', 'ts', 'actor', 'action', 'outcome', 'resource', 'device_id', 'ip', 'request_id'] as const;
const SHOWN: ReadonlySet<string> = new Set(COLUMNS);

// Also behind white space, and in the full-width forms that some spreadsheets read likewise.
const FORMULA = /^[\s\u00a0]*[=+\-@|%\uff1d\uff0b\uff0d\uff20]|^[\t\r\n]/;

function cell(value: unknown): string {
  if (value === undefined || value === null) return '';
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  const safe = typeof value === 'string' && FORMULA.test(text) ? `'${text}` : text;
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
