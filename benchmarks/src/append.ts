/**
 * How fast the audit log in PostgreSQL grows when one process appends, and when eight do; and in PGlite. Each beside what the same
 * lock, insert and commit take by themselves.
 */
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ChildProcess } from 'node:child_process';
import { LIMIT_TABLES, type WriterOrder, type WriterReport, type WriterTask } from './append-task.ts';
import { startPostgres } from './databases.ts';
import { messageOf, start } from './processes.ts';
import { rowOf, type Ratio, type Row, type Suite } from './results.ts';
import { budgetOf, median, pairedMedian } from './rounds.ts';

const PROCESSES = 8;
const ORIGIN = 'keyguard.example/log';

const ONE = 'PostgreSQL, 1 process × 64 callers';
const EIGHT = `PostgreSQL, ${PROCESSES} processes × 8 callers`;
const BUSY = `PostgreSQL, ${PROCESSES} processes × 32 callers`;
const EMBEDDED = 'PGlite, 64 callers';
const limitOf = (title: string): string => `${title}: bare SQL`;

interface Contestant {
  readonly name: string;
  readonly writers: readonly ChildProcess[];
  /** Of each process. */
  readonly callers: number;
  readonly append: 'audit' | 'limit';
}

/** All writers together, in one slice. */
interface Slice {
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

async function ask(writer: ChildProcess, order: WriterOrder): Promise<WriterReport> {
  writer.send(order);
  return (await messageOf(writer)) as WriterReport;
}

async function startWriters(count: number, task: WriterTask): Promise<ChildProcess[]> {
  const writers = Array.from({ length: count }, () => start('./append-writer.ts', 'any', JSON.stringify(task)));
  await Promise.all(writers.map(messageOf));
  return writers;
}

async function stopWriters(writers: readonly ChildProcess[]): Promise<void> {
  await Promise.all(
    writers.map(async (writer) => {
      const gone = once(writer, 'exit');
      writer.disconnect();
      await gone;
    }),
  );
}

export const append: Suite = async ({ quick }) => {
  const server = await startPostgres();
  const database = await server.open();
  for (const text of LIMIT_TABLES) await database.superuser.query(text);
  const folder = await mkdtemp(join(tmpdir(), 'keyguard-bench-'));
  const task = { origin: ORIGIN, macKey: randomBytes(32).toString('hex') };
  const many = await startWriters(PROCESSES, { ...task, url: database.appUrl });
  const one = many.slice(0, 1);
  const embedded = await startWriters(1, { ...task, folder: join(folder, 'pglite') });
  const acknowledged = new Map<ChildProcess, number>();

  const groups = [
    { title: ONE, writers: one, callers: 64 },
    { title: EIGHT, writers: many, callers: 8 },
    { title: EMBEDDED, writers: embedded, callers: 64 },
  ];
  const contestants: Contestant[] = groups.flatMap(({ title, ...group }) => [
    { name: title, ...group, append: 'audit' },
    { name: limitOf(title), ...group, append: 'limit' },
  ]);
  contestants.splice(4, 0, { name: BUSY, writers: many, callers: 32, append: 'audit' });
  const slices = new Map<string, Slice[]>(contestants.map(({ name }) => [name, []]));

  async function slice({ name, writers, callers, append: what }: Contestant, isCounted: boolean): Promise<void> {
    const reports = await Promise.all(writers.map((writer) => ask(writer, { append: what, callers, forMs: quick ? 500 : 1000 })));
    const chain = writers[0] === embedded[0] ? embedded[0]! : one[0]!;
    const entries = reports.reduce((sum, report) => sum + report.entries, 0);
    if (what === 'audit') acknowledged.set(chain, (acknowledged.get(chain) ?? 0) + entries);
    if (!isCounted) return;
    slices.get(name)!.push({
      perSecond: reports.reduce((sum, report) => sum + report.perSecond, 0),
      p50Ms: median(reports.map(({ p50Ms }) => p50Ms)),
      p99Ms: Math.max(...reports.map(({ p99Ms }) => p99Ms)),
    });
  }

  const budget = budgetOf(quick ? 15_000 : 85_000);
  for (let round = -1; round < (quick ? 4 : 12) && budget.allows(round); round += 1) {
    for (let turn = 0; turn < contestants.length; turn += 1) {
      await slice(contestants[(turn + Math.abs(round)) % contestants.length]!, round >= 0);
    }
  }
  const verified = await ask(one[0]!, { verifyEntries: acknowledged.get(one[0]!)! });
  await ask(embedded[0]!, { verifyEntries: acknowledged.get(embedded[0]!)! });
  await stopWriters([...many, ...embedded]);
  await server.stop();
  await rm(folder, { recursive: true, force: true });

  const series = (name: string, of: keyof Slice): number[] => slices.get(name)!.map((each) => each[of]);
  const rows: Row[] = contestants.map(({ name, append: what }) => ({
    ...rowOf(name, series(name, 'perSecond'), what === 'audit' ? 'ours' : 'limit'),
    waited: { p50Ms: median(series(name, 'p50Ms')), p99Ms: median(series(name, 'p99Ms')) },
  }));
  rows.push(rowOf(`PostgreSQL: read and verify all ${verified.entries.toLocaleString('en-US')}`, [verified.perSecond], 'ours'));
  const goals = (title: string, atLeast: number, atMost: number): Ratio[] => [
    { name: `${title}: appended entries/s`, value: median(series(title, 'perSecond')), goal: { atLeast } },
    { name: `${title}: p99 of an append in ms`, value: median(series(title, 'p99Ms')), goal: { atMost } },
  ];
  return [
    {
      title: 'Appends to the audit log',
      about:
        `Each caller appends one entry of some 330 bytes and waits until it is durable; of callers that wait, a process writes all in one transaction. PostgreSQL ${server.version}, not pinned: the database and ` +
        'the processes share all cores. Of several processes the slowest one\'s p99 counts. Bare SQL: locks a row, inserts as many rows of the same columns and indexes as there are callers, and commits, in a loop, ' +
        'without chain, MACs, roles and triggers, and in no order among processes. In the end the chain is read and verified: it has what was acknowledged, and nothing else.',
      unit: 'entries/s',
      rows,
      ratios: [
        ...goals(ONE, 10_000, 20),
        ...goals(EIGHT, 3000, 50),
        ...groups.map(({ title }) => ({
          name: `${title}: audit log / bare SQL`,
          value: pairedMedian([series(title, 'perSecond'), series(limitOf(title), 'perSecond')], (ours, limit) => ours / limit),
          goal: null,
        })),
      ],
    },
  ];
};
