/** The table says what ran, and a document that says otherwise fails the run. */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Property } from '../src/cases.ts';
import { differences, readMarkdown, rowsOf, toMarkdown, writeMarkdown, type Outcome, type Row } from '../src/table.ts';

const outcome = (implementation: string, property: Property, passed = true): Outcome => ({ seam: 'Seam', implementation, property, passed });
const rows = rowsOf([outcome('two', 'expiry'), outcome('one', 'contract'), outcome('one', 'races'), outcome('one', 'races', false), outcome('one', 'races')]);

test('a cell has passed if all its cases have', () => {
  const none = { contract: 'none', races: 'none', failing: 'none', hanging: 'none', full: 'none', expiry: 'none' };
  expect(rows).toEqual([
    { seam: 'Seam', implementation: 'one', cells: { ...none, contract: 'passed', races: 'failed' } },
    { seam: 'Seam', implementation: 'two', cells: { ...none, expiry: 'passed' } },
  ]);
});

test('is read as it was written, in the place that it has in a document', () => {
  const document = `# Title\n\n${toMarkdown([])}\n\n| another | table |\n| --- | --- |\n| 1 | 2 |\n`;
  const written = writeMarkdown(document, rows);
  expect(readMarkdown(written)).toEqual(rows);
  expect(writeMarkdown(written, [])).toBe(document);
  expect(() => readMarkdown('# Title\n')).toThrow('There is no table');
  expect(() => readMarkdown(toMarkdown(rows).replace('✗', '?'))).toThrow('Seam of one has no mark for races');
});

test('a claim that did not run, a cell that is otherwise, and a row that is not claimed are differences', () => {
  const one = rows[0]!;
  expect(differences(rows, rows)).toEqual([]);
  expect(differences(rows, [one])).toEqual(['Seam | two: claimed, and did not run']);
  expect(differences(rows, [one], ({ implementation }) => implementation === 'two')).toEqual([]);
  expect(differences([one], rows)).toEqual(['Seam | two: ran, and is not claimed']);
  expect(differences([one], [{ ...one, cells: { ...one.cells, races: 'none', full: 'passed' } }])).toEqual([
    'Seam | one | races: claimed ✗, and was —',
    'Seam | one | full: claimed —, and was ✓',
  ]);
});

describe('a run', () => {
  const config = fileURLToPath(new URL('./claims/vitest.config.ts', import.meta.url));
  let folder: string;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'keyguard-claims-'));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  async function run(claimed: readonly Row[], ...args: string[]): Promise<{ status: number; text: string }> {
    const claims = join(folder, 'claims.md');
    await writeFile(claims, `${toMarkdown(claimed)}\n`);
    const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^VITEST|^NODE_OPTIONS$/.test(name)));
    return new Promise((resolve) => {
      execFile('pnpm', ['exec', 'vitest', 'run', '--config', config, ...args], { env: { ...environment, CLAIMS: claims } }, (error, stdout, stderr) =>
        resolve({ status: typeof error?.code === 'number' ? error.code : error === null ? 0 : -1, text: stdout + stderr }),
      );
    });
  }

  test('of all tests passes where the document says what ran, fails where it does not, and a run of some of them says nothing', { timeout: 120_000 }, async () => {
    const ran = rowsOf([outcome('one', 'contract'), outcome('one', 'races')]);
    const [right, wrong, partial] = [await run(ran), await run(rowsOf([outcome('one', 'contract'), outcome('two', 'races')])), await run([], '-t', 'holds')];
    expect(readMarkdown(right.text)).toEqual(ran);
    expect([right.status, wrong.status, partial.status]).toEqual([0, 1, 0]);
    expect(wrong.text).toContain('Seam | two: claimed, and did not run');
    expect(wrong.text).toContain('Seam | one | races: claimed —, and was ✓');
  });
});
