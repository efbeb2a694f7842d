/** What a request costs on stores that are not in memory, at several concurrencies and at several sizes. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PGlite } from '@electric-sql/pglite';
import type { ReplayStore } from '@keyguard/core/seams';
import type { Verifier } from '@keyguard/server-verifier';
import { migrate, pgliteClient } from '@keyguard/storage-node/postgres';
import { NO_REDIS, startPostgres, startRedis, type PostgresServer } from './databases.ts';
import { makeKey, makeRequest, quickSigner, type Key, type SignedRequest } from './material.ts';
import { rowNotRun, rowOf, type Row, type Section, type Suite } from './results.ts';
import { median, pairedMedian, quantile, timeInTurn, type Contestant } from './rounds.ts';
import { CONNECTIONS, fillPostgres, memoryStores, postgresStores, redisStores, sqlStores, verifierOn, type Connected } from './stored-devices.ts';

const SIGNERS = 64;
const MEMORY = 'memory';
const WARM_UP_ROUNDS = 1;

/** Requests signed ahead, each to be verified once. */
interface Supply {
  refill(count: number): Promise<void>;
  take(count: number): SignedRequest[];
}

function supplyOf(signers: readonly Key[]): Supply {
  const signs = signers.map((key) => quickSigner(key));
  let ready: SignedRequest[] = [];
  return {
    async refill(count) {
      const next: SignedRequest[] = [];
      for (let i = 0; i < count; i += 1) next.push(await makeRequest(signs[i % signs.length]!));
      ready = next;
    },
    take: (count) => ready.splice(0, count),
  };
}

interface Wait {
  readonly p50Ms: number;
  readonly p99Ms: number;
}

interface Load {
  readonly name: string;
  readonly verifier: Verifier;
  readonly callers: number;
  readonly operations: number;
}

interface TimedLoads {
  row(name: string, kind: Row['kind']): Row;
  /** Of the rates of two, the median over the rounds. */
  ratio(a: string, b: string): number;
}

async function timeLoads(loads: readonly Load[], supply: Supply, options: { readonly rounds: number; readonly budgetMs: number }): Promise<TimedLoads> {
  const waits = new Map<string, Wait[]>(loads.map(({ name }) => [name, []]));
  const contestants: Contestant[] = loads.map(({ name, verifier, callers, operations }) => ({
    name,
    operations,
    async run(count) {
      const requests = supply.take(count);
      const waitedMs: number[] = [];
      let next = 0;
      await Promise.all(
        Array.from({ length: callers }, async () => {
          while (next < requests.length) {
            const { incoming } = requests[next++]!;
            const beganAtMs = performance.now();
            await verifier.verify(incoming);
            waitedMs.push(performance.now() - beganAtMs);
          }
        }),
      );
      waits.get(name)!.push({ p50Ms: quantile(waitedMs, 0.5), p99Ms: quantile(waitedMs, 0.99) });
    },
  }));
  const total = loads.reduce((sum, { operations }) => sum + operations, 0);
  const timings = await timeInTurn({ contestants, operations: 0, warmUpRounds: WARM_UP_ROUNDS, prepare: () => supply.refill(total), ...options });
  const waited = (name: string): Wait => {
    const counted = waits.get(name)!.slice(WARM_UP_ROUNDS);
    return { p50Ms: median(counted.map(({ p50Ms }) => p50Ms)), p99Ms: median(counted.map(({ p99Ms }) => p99Ms)) };
  };
  const perSecond = (name: string): number[] => timings.get(name)!.map((microseconds) => 1_000_000 / microseconds);
  return {
    row: (name: string, kind: Row['kind']): Row => ({ ...rowOf(name, perSecond(name), kind), waited: waited(name) }),
    ratio: (a: string, b: string): number => pairedMedian([perSecond(a), perSecond(b)], (x, y) => x / y),
  };
}

export const stores: Suite = async ({ quick, million }) => {
  const signers: Key[] = [];
  for (let i = 0; i < SIGNERS; i += 1) signers.push(await makeKey());
  const sizes = [1000, 100_000, ...(million ? [1_000_000] : [])];
  const redisServer = await startRedis();
  const openRedis = async (): Promise<Connected<Readonly<Record<string, ReplayStore>>> | null> =>
    redisServer === null ? null : redisStores(redisServer.url, Object.fromEntries([0, ...sizes].map((size) => [`nonces:${size}`, size])));
  // At the same time: a new Redis takes nothing for some seconds.
  const [server, redis] = await Promise.all([startPostgres(), openRedis()]);
  const onRedis = (size: number): ReplayStore | null => redis?.stores[`nonces:${size}`] ?? null;
  const sections = [await timeConcurrency(server, onRedis(0), signers, quick), await timeGrowth(server, sizes, onRedis, signers, quick)];
  await redis?.close();
  await redisServer?.stop();
  await server.stop();
  return sections;
};

async function timeConcurrency(server: PostgresServer, redis: ReplayStore | null, signers: readonly Key[], quick: boolean): Promise<Section> {
  const folder = await mkdtemp(join(tmpdir(), 'keyguard-bench-'));
  const db = await PGlite.create(join(folder, 'pglite'));
  await migrate(pgliteClient(db));
  const embedded = await sqlStores(pgliteClient(db), signers);
  const postgres = await postgresStores(await server.open(), signers);
  const memory = memoryStores(signers);
  const { stores: sql } = postgres;
  const verifiers = new Map<string, Verifier>([
    [MEMORY, verifierOn(memory.registry, memory.replayStore)],
    ['PGlite', verifierOn(embedded.registry, embedded.replayStore)],
    ['PGlite, devices kept', verifierOn(embedded.kept, embedded.replayStore)],
    ['PostgreSQL', verifierOn(sql.registry, sql.replayStore)],
    ['PostgreSQL, devices kept', verifierOn(sql.kept, sql.replayStore)],
  ]);
  const notRun: Row[] = [];
  const onRedis = ['Redis, devices in memory', 'Redis, devices kept from PostgreSQL'] as const;
  if (redis === null) notRun.push(...onRedis.map((name) => rowNotRun(name, NO_REDIS)));
  else verifiers.set(onRedis[0], verifierOn(memory.registry, redis)).set(onRedis[1], verifierOn(sql.kept, redis));

  const concurrencies = [
    { callers: 1, operations: quick ? 20 : 100 },
    { callers: 16, operations: quick ? 96 : 320 },
    { callers: 64, operations: quick ? 192 : 640 },
  ];
  const label = (what: string, callers: number): string => `${what}, ${callers} ${callers === 1 ? 'caller' : 'callers'}`;
  const loads = concurrencies.flatMap(({ callers, operations }) => [...verifiers].map(([what, verifier]) => ({ name: label(what, callers), verifier, callers, operations })));
  const timed = await timeLoads(loads, supplyOf(signers), { rounds: quick ? 5 : 25, budgetMs: quick ? 8000 : 45_000 });

  embedded.stopWatch();
  await db.close();
  await postgres.close();
  await rm(folder, { recursive: true, force: true });
  const others = [...verifiers.keys()].filter((what) => what !== MEMORY);
  return {
    title: 'The verifier on its stores',
    about:
      `One process, not pinned, a POST with a body of 1 KiB, ${SIGNERS} devices; as many requests under way as there are callers. Each request looks up its device and claims its nonce in the store that the row names: ` +
      `PostgreSQL ${server.version} by ${CONNECTIONS} connections and with a commit to the disk for each nonce, PGlite inside the process, Redis without persistence. "Devices kept": in memory, behind a feed of changes, and only the nonce goes to the store. ` +
      'All on one machine: there is no network in these figures.',
    unit: 'requests/s',
    rows: [...loads.map(({ name }) => timed.row(name, name.startsWith(MEMORY) ? 'limit' : 'ours')), ...notRun],
    ratios: concurrencies.flatMap(({ callers }) =>
      others.map((what) => ({ name: `${label(what, callers)} / memory`, value: timed.ratio(label(what, callers), label(MEMORY, callers)), goal: null })),
    ),
  };
}

async function timeGrowth(
  server: PostgresServer,
  sizes: readonly number[],
  onRedis: (size: number) => ReplayStore | null,
  signers: readonly Key[],
  quick: boolean,
): Promise<Section> {
  const callers = 16;
  const operations = quick ? 96 : 480;
  const label = (what: string, size: number): string => `${what}, ${size.toLocaleString('en-US')}`;
  const { registry } = memoryStores(signers);
  const opened: Connected<unknown>[] = [];
  const onPostgres: Load[] = [];
  const onRedisLoads: Load[] = [];
  const notRun: Row[] = [];
  for (const size of sizes) {
    const database = await server.open();
    await fillPostgres(database.superuser, size);
    const postgres = await postgresStores(database, signers);
    opened.push(postgres);
    const { registry: stored, replayStore } = postgres.stores;
    onPostgres.push({ name: label('PostgreSQL', size), verifier: verifierOn(stored, replayStore), callers, operations });
    const nonces = onRedis(size);
    if (nonces === null) notRun.push(rowNotRun(label('Redis', size), NO_REDIS));
    else onRedisLoads.push({ name: label('Redis', size), verifier: verifierOn(registry, nonces), callers, operations });
  }
  const options = { rounds: quick ? 8 : 40, budgetMs: quick ? 2500 : 15_000 };
  // Apart: in turn with the others, one size would always come after PostgreSQL and its writes to the disk, and one never.
  const timed: { readonly what: string; readonly loads: readonly Load[]; readonly results: TimedLoads }[] = [];
  for (const [what, loads] of [['PostgreSQL', onPostgres], ['Redis', onRedisLoads]] as const) {
    if (loads.length > 0) timed.push({ what, loads, results: await timeLoads(loads, supplyOf(signers), options) });
  }
  for (const each of opened) await each.close();
  const [smallest = 0] = sizes;
  return {
    title: 'The same with many devices and nonces in the store',
    about:
      `Stores that hold as many live nonces as stands behind the name, PostgreSQL as many devices too; ${SIGNERS} devices more call, ${callers} requests at a time. No device is kept in memory on PostgreSQL; behind Redis all are.`,
    unit: 'requests/s',
    rows: [...timed.flatMap(({ loads, results }) => loads.map(({ name }) => results.row(name, 'ours'))), ...notRun],
    ratios: timed.flatMap(({ what, results }) =>
      sizes.slice(1).map((size) => ({
        name: `time of a request on ${what}, ${size.toLocaleString('en-US')} / ${smallest.toLocaleString('en-US')}`,
        value: results.ratio(label(what, smallest), label(what, size)),
        goal: { atMost: 1.25 },
      })),
    ),
  };
}
