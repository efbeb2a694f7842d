/**
 * Eight processes append to one chain at a time: it has no gap and no fork, and whatever was acknowledged is there once, in the
 * place that was told; also when they are killed at random. They take turns. KEYGUARD_APPENDS says how many entries each appends.
 */
import { verifyRecords } from '@keyguard/core/audit';
import { fromUtf8 } from '@keyguard/core/bytes';
import type { AuditRecord, AuditSink } from '@keyguard/core/seams';
import { spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { asRole, nodeMacKey, postgresAuditSink, type SqlTransaction } from '../src/postgres.ts';
import { postgresSubstrate, type Database, type Substrate } from './postgres-substrate.ts';
import type { StoreTask } from './store-process.ts';

const APPENDS = Number(process.env['KEYGUARD_APPENDS'] ?? 250);
const PROCESSES = 8;
const CALLERS = 8;
const PROGRAM = fileURLToPath(new URL('./store-process.ts', import.meta.url));

interface Writer {
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  /** What it said was acknowledged: the place of each entry, by its serial. */
  readonly appended: Map<string, number>;
  /** Entries per second, median and 99th percentile in milliseconds. */
  rate: readonly [number, number, number] | null;
}

function startWriter(task: StoreTask): Writer {
  const child = spawn(process.execPath, ['--conditions=@keyguard/source', PROGRAM, JSON.stringify(task)], { stdio: ['ignore', 'pipe', 'inherit'] });
  const writer: Writer = { child, ended: new Promise((resolve) => child.once('close', resolve)), appended: new Map(), rate: null };
  createInterface(child.stdout!).on('line', (line) => {
    const [word, ...rest] = line.split(' ');
    if (word === 'appended') writer.appended.set(rest[0]!, Number(rest[1]));
    else if (word === 'rate') writer.rate = rest.map(Number) as [number, number, number];
  });
  return writer;
}

describe('the audit log of many processes', () => {
  let substrate: Substrate;
  let database: Database;
  const macKeyBytes = randomBytes(32);
  const macKey = nodeMacKey({ keyId: 'audit-1', key: macKeyBytes });

  beforeAll(async () => {
    substrate = await postgresSubstrate();
    database = await substrate.open();
  }, 120_000);
  afterAll(async () => {
    await database.close();
    await substrate.stop();
  });

  function task(origin: string, name: string, appends: number, callers: number): StoreTask {
    return { url: database.appUrl!, origin, name, appends, callers, macKey: macKeyBytes.toString('hex'), rowMacKey: '00'.repeat(32) };
  }

  /** The serials of the chain, in order, once all of it is verified. */
  async function verified(origin: string): Promise<string[]> {
    const sink = postgresAuditSink(database.app, { origin, macKey });
    const serials: string[] = [];
    async function* noted(): AsyncGenerator<AuditRecord> {
      for await (const record of sink.read(0)) {
        serials.push(String((JSON.parse(fromUtf8(record.bytes)) as { serial: unknown }).serial));
        yield record;
      }
    }
    const end = await verifyRecords(noted(), { origin, keys: new Map([[macKey.keyId, macKey]]) });
    expect(end.seq).toBe(serials.length);
    expect((await sink.head())!.seq + 1).toBe(serials.length);
    return serials;
  }

  function expectAllThere(writers: readonly Writer[], serials: readonly string[]): void {
    expect(new Set(serials).size).toBe(serials.length);
    for (const { appended } of writers) for (const [serial, seq] of appended) expect(serials[seq]).toBe(serial);
  }

  it(`is one chain without a gap after ${PROCESSES} × ${APPENDS} appends`, async () => {
    const origin = 'keyguard.test/appends';
    const startedMs = performance.now();
    const writers = Array.from({ length: PROCESSES }, (_, i) => startWriter(task(origin, `w${i}`, APPENDS, CALLERS)));
    expect(await Promise.all(writers.map(({ ended }) => ended))).toEqual(Array(PROCESSES).fill(0));
    const seconds = (performance.now() - startedMs) / 1000;
    const serials = await verified(origin);
    expect(serials).toHaveLength(PROCESSES * APPENDS);
    expect(writers.map(({ appended }) => appended.size)).toEqual(Array(PROCESSES).fill(APPENDS));
    expectAllThere(writers, serials);
    const together = writers.reduce((sum, { rate }) => sum + rate![0], 0);
    const slowestMs = Math.max(...writers.map(({ rate }) => rate![2]));
    console.log(
      `${PROCESSES} processes × ${CALLERS} callers: ${together} entries/s together, p99 ${slowestMs} ms; ${seconds.toFixed(1)} s with their start.`,
    );
  }, 300_000);

  it('is one chain without a gap also when they are killed at random', async () => {
    const origin = 'keyguard.test/killed-appends';
    const writers: Writer[] = [];
    let started = 0;
    const running = new Set<Writer>();
    const startOne = (): void => {
      const writer = startWriter(task(origin, `w${(started += 1)}`, APPENDS, CALLERS));
      writers.push(writer);
      running.add(writer);
      void writer.ended.then(() => running.delete(writer));
    };
    for (let i = 0; i < PROCESSES; i += 1) startOne();
    let killed = 0;
    // Twice as many are killed as there are; each time another takes the place, and the last ones may end their work.
    while (killed < 2 * PROCESSES) {
      await new Promise((resolve) => setTimeout(resolve, 50 + Math.random() * 200));
      const busy = [...running].filter(({ appended }) => appended.size > 0);
      const victim = busy[Math.floor(Math.random() * busy.length)];
      if (victim === undefined) {
        while (running.size < PROCESSES) startOne();
        continue;
      }
      if (victim.child.kill('SIGKILL')) killed += 1;
      startOne();
    }
    await Promise.all(writers.map(({ ended }) => ended));
    const serials = await verified(origin);
    expectAllThere(writers, serials);
    const acknowledged = writers.reduce((sum, { appended }) => sum + appended.size, 0);
    // What was not acknowledged may be there or not: at most what was under way when its writer was killed.
    expect(serials.length).toBeGreaterThanOrEqual(acknowledged);
    expect(serials.length - acknowledged).toBeLessThanOrEqual(killed * CALLERS);
  }, 300_000);

  it('takes what 64 callers of one process append', async () => {
    const origin = 'keyguard.test/one-process';
    const writer = startWriter(task(origin, 'one', PROCESSES * APPENDS, 64));
    expect(await writer.ended).toBe(0);
    const serials = await verified(origin);
    expect(serials).toHaveLength(PROCESSES * APPENDS);
    expectAllThere([writer], serials);
    const [rate, p50, p99] = writer.rate!;
    console.log(`1 process × 64 callers: ${rate} entries/s, p50 ${p50} ms, p99 ${p99} ms.`);
  }, 300_000);

  /** How many connections wait for a lock. */
  async function waiters(count: number): Promise<void> {
    for (;;) {
      const { rows } = await database.intruder.query<{ waiting: unknown }>(
        `SELECT count(DISTINCT pid) AS waiting FROM pg_locks WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())`,
      );
      if (Number(rows[0]!.waiting) === count) return;
      await pause(5);
    }
  }

  const entry = { action: 'store.test', outcome: 'success', actor: 'system' } as const;
  interface Turn {
    readonly taken: Promise<unknown>;
    readonly ended: Promise<unknown>;
    leave(): void;
  }
  /** A turn of another process: appends, and keeps the head until `leave` is called. */
  function turn(sink: AuditSink<SqlTransaction>, onTaken: () => void = () => {}): Turn {
    let leave = (): void => {};
    const left = new Promise<void>((resolve) => {
      leave = resolve;
    });
    let ended: Promise<unknown> = left;
    const taken = new Promise<void>((resolve, reject) => {
      ended = asRole(database.peer, 'kg_verifier', async (tx) => {
        await sink.appendIn(tx, [entry]);
        onTaken();
        resolve();
        await left;
      });
      ended.catch(reject);
    });
    return { taken, ended, leave };
  }

  it('writes in its turn whatever has come until then, and not only what it asked for', async () => {
    const origin = 'keyguard.test/late';
    const sink = postgresAuditSink(database.app, { origin, macKey });
    const other = turn(sink);
    await other.taken;
    const early = sink.append([{ ...entry, n: 1 }]);
    await waiters(1);
    const late = [sink.append([{ ...entry, n: 2 }]), sink.append([{ ...entry, n: 3 }, { ...entry, n: 4 }])];
    other.leave();
    const records = (await Promise.all([early, ...late])).flat();
    expect(records.map(({ seq }) => seq)).toEqual([1, 2, 3, 4]);
    const { rows } = await database.intruder.query<{ transactions: unknown }>(
      'SELECT count(DISTINCT xmin::text) AS transactions FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq > 0',
      [origin],
    );
    expect(Number(rows[0]!.transactions)).toBe(1);
    await other.ended;
  }, 60_000);

  it('gives turns in the order in which they were asked for, and none to who comes back at once', async () => {
    const sink = postgresAuditSink(database.app, { origin: 'keyguard.test/turns', macKey });
    const order: string[] = [];
    const join = (name: string): Turn => turn(sink, () => order.push(name));
    for (let round = 0; round < 5; round += 1) {
      order.length = 0;
      const first = join('first');
      await first.taken;
      const turns: Turn[] = [];
      for (const name of ['second', 'third', 'fourth', 'fifth']) {
        turns.push(join(name));
        turns.at(-1)!.leave();
        await waiters(turns.length);
      }
      first.leave();
      await first.ended;
      turns.push(join('first again'));
      turns.at(-1)!.leave();
      await Promise.all(turns.map(({ ended }) => ended));
      expect(order).toEqual(['first', 'second', 'third', 'fourth', 'fifth', 'first again']);
    }
  }, 60_000);
});
