/** A report in plain words: the same for the terminal and for the page. */
import { ATTACKS, type Finding } from './attacks.ts';
import type { Report } from './verify.ts';

/** The entries of a range, as people count them: both ends included. */
export function rangeText(from: number, to: number): string {
  return to - from === 1 ? `entry ${from}` : `entries ${from} to ${to - 1}`;
}

export function whereText({ range, isExact }: Finding): string | null {
  if (range === null) return null;
  return isExact ? rangeText(range.from, range.to) : `somewhere in ${rangeText(range.from, range.to)}`;
}

/** One sentence on the whole. */
export function verdictText({ verdict, records }: Report): string {
  if (verdict === 'attacked') return 'This is not the log that was signed for.';
  if (verdict === 'unproven') return 'Nothing is wrong in itself, but no checkpoint vouches for this log.';
  return records === 0 ? 'The log is intact, and empty.' : 'The log is intact.';
}

/** What was looked at, line by line. */
export function detailTexts(report: Report): readonly string[] {
  const { origin, records, provenSize, macs, restore } = report;
  const beyond = provenSize < records ? `, ${records - provenSize} after them not yet` : '';
  const checked = { right: 'All MACs are right.', wrong: 'There are wrong MACs.', 'not checked': 'MACs were not checked: not all of the keys were given.' };
  const details = [`Log: ${origin}`, `${records} records; the first ${provenSize} are proven by a checkpoint${beyond}.`, checked[macs]];
  if (restore !== null) {
    const { oldOrigin, lostFrom, lostTo } = restore;
    const lost = lostFrom < lostTo ? `its ${rangeText(lostFrom, lostTo)} were lost` : 'nothing that was signed for was lost';
    details.push(`It continues ${oldOrigin} after an acknowledged restore: ${lost}.`);
  }
  return details;
}

/** All of it, for a terminal. */
export function reportText(report: Report): string {
  const lines = [verdictText(report), '', ...detailTexts(report)];
  for (const found of report.findings) {
    const where = whereText(found);
    lines.push('', `${found.attack}: ${ATTACKS[found.attack]}.`, ...(where === null ? [] : [`  Where: ${where}`]), `  Why:   ${found.because}`);
  }
  return `${lines.join('\n')}\n`;
}
