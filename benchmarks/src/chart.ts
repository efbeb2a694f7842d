/** A plain bar chart as SVG: one group of bars per section, light and dark alike, readable without colour. */
import type { Row, Section } from './results.ts';

const WIDTH = 880;
const LABEL_WIDTH = 330;
const FIGURE_WIDTH = 80;
const BAR_HEIGHT = 16;
const ROW_HEIGHT = 24;
const TITLE_HEIGHT = 44;
const MARGIN = 16;

const COLOURS: Readonly<Record<Row['kind'], string>> = { ours: '#2563eb', limit: '#6b7280', peer: '#b6bcc6', part: '#93b4f5' };

export function formatFigure(value: number): string {
  if (value >= 1000) return Math.round(value).toLocaleString('en-US');
  return value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2);
}

/** What stands beside the name of a row. */
export const figureOf = (row: Row): string => (row.notRun === undefined ? formatFigure(row.median) : 'NOT RUN');

const escaped = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

export function drawChart(sections: readonly Section[]): string {
  const parts: string[] = [];
  let y = MARGIN;
  for (const { title, unit, rows } of sections) {
    const better = unit.endsWith('/s') ? 'more is better' : 'less is better';
    parts.push(`<text x="${MARGIN}" y="${y + 22}" class="title">${escaped(title)} <tspan class="unit">${unit}, ${better}</tspan></text>`);
    y += TITLE_HEIGHT - 8;
    const largest = Math.max(...rows.map((row) => row.upperQuartile));
    const scale = (WIDTH - 2 * MARGIN - LABEL_WIDTH - FIGURE_WIDTH) / largest;
    const left = MARGIN + LABEL_WIDTH;
    for (const row of rows) {
      const middle = y + BAR_HEIGHT / 2;
      const length = Math.max(0, row.median * scale);
      const [low, high] = [row.lowerQuartile, row.upperQuartile].map((value) => left + Math.max(0, value) * scale) as [number, number];
      parts.push(
        `<text x="${left - 8}" y="${middle + 4}" class="label${row.kind === 'ours' ? ' ours' : ''}">${escaped(row.name)}</text>`,
        `<rect x="${left}" y="${y}" width="${length.toFixed(1)}" height="${BAR_HEIGHT}" fill="${COLOURS[row.kind]}"/>`,
        `<path d="M${low.toFixed(1)} ${middle}H${high.toFixed(1)}" class="spread"/>`,
        `<text x="${(Math.max(left + length, high) + 6).toFixed(1)}" y="${middle + 4}" class="figure">${figureOf(row)}</text>`,
      );
      y += ROW_HEIGHT;
    }
    y += 12;
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y}" width="${WIDTH}" height="${y}" role="img" aria-label="Benchmark results as bars">`,
    '<style>text{font:12px system-ui,sans-serif;fill:#111827}.title{font-size:14px;font-weight:600}.unit{font-weight:400;fill:#6b7280}',
    '.label{text-anchor:end}.ours{font-weight:600}.figure{fill:#374151}.spread{stroke:#111827;stroke-width:1;opacity:.55}</style>',
    `<rect width="${WIDTH}" height="${y}" fill="#ffffff"/>`,
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}
