/**
 * What a gateway costs: the service, whole path (signature, replay claim, device, audit before, metering, audit at the end) on each
 * of its databases, beside bare proxies and the Portkey gateway, in turn, on one fake provider. Fails where a call of the load is
 * missing in what the service counted from its audit log.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { NO_REDIS, startPostgres, startRedis, type PostgresServer } from './databases.ts';
import { messageOf, start } from './processes.ts';
import { PINNING, residentMiB, startBare, startPortkey, startProvider, startService, timeStarts, type Ask, type Contestant, type StartedService } from './proxy-contestants.ts';
import { EVENT_EVERY_MS, EVENTS, FIRST_EVENT_AFTER_MS, type Slice, type SliceReport } from './proxy-task.ts';
import { rowNotRun, rowOf, type Ratio, type Row, type Section, type Suite } from './results.ts';
import { budgetOf, median, pairedMedian } from './rounds.ts';

const DIRECT = 'direct, no proxy';
const BARE = 'node:http proxy';
const BARE_VERIFY = 'node:http proxy + one bare verify';
const BARE_COMMITS = 'node:http proxy + one bare verify + three bare commits';
const PORTKEY = 'Portkey gateway';
const SERVICES = ['KeyGuard on PGlite', 'KeyGuard on PostgreSQL', 'KeyGuard on PostgreSQL and Redis'] as const;
const CONNECTIONS = 32;
const STREAMS = 8;
const SETTLE_MS = 1500;

type Kind = 'alone' | 'together' | 'streamed';
type Reports = Readonly<Record<Kind, SliceReport[]>>;

const kindOf = (name: string): Row['kind'] => (name === PORTKEY ? 'peer' : SERVICES.includes(name as never) ? 'ours' : 'limit');

interface Sizes {
  readonly rounds: number;
  readonly budgetMs: number;
  readonly alone: number;
  readonly togetherSeconds: number;
  readonly streamed: number;
  readonly warmUp: number;
  readonly warmStarts: number;
}

const LONG: Sizes = { rounds: 12, budgetMs: 260_000, alone: 300, togetherSeconds: 0.6, streamed: 160, warmUp: 5000, warmStarts: 5 };
const QUICK: Sizes = { rounds: 3, budgetMs: 60_000, alone: 100, togetherSeconds: 0.25, streamed: 48, warmUp: 1500, warmStarts: 2 };
const SMOKE: Sizes = { rounds: 1, budgetMs: 1, alone: 20, togetherSeconds: 0.1, streamed: 16, warmUp: 100, warmStarts: 1 };

async function measure(contestants: ReadonlyMap<string, Contestant>, ask: Ask, sizes: Sizes): Promise<{ reports: ReadonlyMap<string, Reports>; calls: ReadonlyMap<string, number> }> {
  // The warm-up is within it: on a busy machine there are fewer rounds, and the run ends all the same.
  const budget = budgetOf(sizes.budgetMs);
  const calls = new Map<string, number>();
  const run = async (name: string, slice: Omit<Slice, 'address'>): Promise<SliceReport> => {
    calls.set(name, (calls.get(name) ?? 0) + slice.requests);
    return (await ask({ slice: { address: contestants.get(name)!.address, ...slice } })) as SliceReport;
  };
  const requests = new Map<string, number>();
  for (const [name, { address }] of contestants) {
    await ask({ check: address });
    calls.set(name, 2);
    await run(name, { body: 'stream', requests: STREAMS * 2, connections: STREAMS });
    await run(name, { body: 'plain', requests: sizes.warmUp / 2, connections: CONNECTIONS });
    const { perSecond } = await run(name, { body: 'plain', requests: sizes.warmUp / 2, connections: CONNECTIONS });
    requests.set(name, Math.max(200, Math.round(perSecond * sizes.togetherSeconds)));
  }
  const names = [...contestants.keys()];
  const reports = new Map(names.map((name) => [name, { alone: [], together: [], streamed: [] } as Reports]));
  for (let round = 0; round < sizes.rounds && budget.allows(round); round += 1) {
    for (const kind of ['alone', 'together', 'streamed'] as const) {
      for (let turn = 0; turn < names.length; turn += 1) {
        const name = names[(turn + round) % names.length]!;
        const slices: Readonly<Record<Kind, Omit<Slice, 'address'>>> = {
          alone: { body: 'plain', requests: sizes.alone, connections: 1 },
          together: { body: 'plain', requests: requests.get(name)!, connections: CONNECTIONS },
          streamed: { body: 'stream', requests: sizes.streamed, connections: STREAMS },
        };
        reports.get(name)![kind].push(await run(name, slices[kind]));
        // What it sums up a second late must not fall on whoever comes next, on the same core.
        if (kind === 'together' && SERVICES.includes(name as never)) await pause(SETTLE_MS);
      }
    }
  }
  return { reports, calls };
}

/** What the bare proxy that writes needs, in a database of its own. */
async function bareTables(postgres: PostgresServer): Promise<string> {
  const { appUrl, superuser } = await postgres.open();
  await superuser.query('CREATE TABLE bare_nonces (nonce text PRIMARY KEY); CREATE TABLE bare_records (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, entry bytea NOT NULL)');
  await superuser.query('GRANT INSERT ON bare_nonces, bare_records TO PUBLIC');
  return appUrl;
}

/** Every call that was answered is on record with its end, or this run shows nothing. */
async function demandAllOnRecord(name: string, service: StartedService, calls: number): Promise<void> {
  let counted = 0;
  for (let tries = 0; tries < 100; tries += 1) {
    counted = await service.countedCalls();
    if (counted === calls) return;
    await pause(100);
  }
  throw new Error(`${name} was called ${calls} times, and has ${counted} calls on record.`);
}

export const proxy: Suite = async ({ quick, smoke }) => {
  const sizes = smoke ? SMOKE : quick ? QUICK : LONG;
  const undo: (() => unknown)[] = [];
  const onStop = (work: () => unknown): void => void undo.push(work);
  try {
    const load = start('./proxy-load.ts', 1);
    onStop(() => load.connected && load.disconnect());
    await messageOf(load);
    const ask: Ask = async (order) => {
      const answer = messageOf(load);
      load.send(order);
      return answer;
    };

    const { contestant: direct, port: upstreamPort } = await startProvider(onStop);
    // Before anything else runs beside them.
    const starts = await timeStarts(upstreamPort, sizes.warmStarts);
    const portkey = await startPortkey(upstreamPort, onStop);
    const postgres = await startPostgres();
    onStop(() => postgres.stop());
    const redis = await startRedis();
    onStop(() => redis?.stop());
    const onPostgres = async (): Promise<Record<string, string>> => {
      const { appUrl, ownerUrl } = await postgres.deploy();
      return { DATABASE_URL: appUrl, DATABASE_OWNER_URL: ownerUrl };
    };
    const services = new Map<string, StartedService>([
      [SERVICES[0], await startService({ upstreamPort, environment: {} }, ask, onStop)],
      [SERVICES[1], await startService({ upstreamPort, environment: await onPostgres() }, ask, onStop)],
    ]);
    if (redis !== null) services.set(SERVICES[2], await startService({ upstreamPort, environment: { ...(await onPostgres()), REDIS_URL: redis.url } }, ask, onStop));
    const contestants = new Map<string, Contestant>([
      [DIRECT, direct],
      [BARE, await startBare({ upstreamPort, verify: false, commitsTo: null }, onStop)],
      [BARE_VERIFY, await startBare({ upstreamPort, verify: true, commitsTo: null }, onStop)],
      [BARE_COMMITS, await startBare({ upstreamPort, verify: true, commitsTo: await bareTables(postgres) }, onStop)],
      [PORTKEY, portkey],
      ...services,
    ]);

    const { reports, calls } = await measure(contestants, ask, sizes);
    const memory = await Promise.all([...contestants].map(async ([name, contestant]) => [name, await residentMiB(contestant)] as const));
    for (const [name, service] of services) await demandAllOnRecord(name, service, calls.get(name)!);
    return [...describeReports(reports, { portkey: portkey.version, postgres: postgres.version }), describeMemory(memory), describeStarts(starts)];
  } finally {
    for (const work of undo.toReversed()) await work();
  }
};

function describeReports(reports: ReadonlyMap<string, Reports>, versions: { readonly portkey: string; readonly postgres: string }): Section[] {
  const series = (name: string, kind: Kind, of: keyof SliceReport): number[] => reports.get(name)![kind].map((each) => each[of]);
  const rows = (kind: Kind, of: keyof SliceReport): Row[] => [
    ...[...reports.keys()].map((name) => ({
      ...rowOf(name, series(name, kind, of), kindOf(name)),
      waited: { p50Ms: median(series(name, kind, 'p50Ms')), p99Ms: median(series(name, kind, 'p99Ms')) },
    })),
    ...(reports.has(SERVICES[2]) ? [] : [rowNotRun(SERVICES[2], NO_REDIS)]),
  ];
  const ours = SERVICES.filter((name) => reports.has(name));
  const added = (name: string, of: 'p50Ms' | 'p99Ms'): Ratio => ({
    name: `${name}: added ${of.slice(0, 3)} / Portkey's`,
    value: pairedMedian([name, DIRECT, PORTKEY].map((each) => series(each, 'alone', of)), (mine, least, theirs) => (mine! - least!) / (theirs! - least!)),
    goal: of === 'p50Ms' ? { atMost: 0.3 } : null,
  });
  const rate = (name: string, other: string, atLeast: number | null): Ratio => ({
    name: `${name} / ${other}, requests/s`,
    value: pairedMedian([name, other].map((each) => series(each, 'together', 'perSecond')), (mine, theirs) => mine! / theirs!),
    goal: atLeast === null ? null : { atLeast },
  });
  const later = (name: string, of: 'p50Ms' | 'p99Ms', atMost: number | null): Ratio => ({
    name: `${name}: first SSE byte, ${of.slice(0, 3)} over the bare proxy's in ms`,
    value: pairedMedian([name, BARE].map((each) => series(each, 'streamed', of)), (mine, bare) => mine! - bare!),
    goal: atMost === null ? null : { atMost },
  });
  const ofCommits = (name: string): Ratio => ({
    name: `${name}: added p50 / that of three bare commits`,
    value: pairedMedian([name, DIRECT, BARE_COMMITS].map((each) => series(each, 'alone', 'p50Ms')), (mine, least, theirs) => (mine! - least!) / (theirs! - least!)),
    goal: null,
  });
  const whole = 'KeyGuard does all that it does in use: signature, replay claim, device, an audit entry before the call and one before its end, metering, rate limits.';
  return [
    {
      title: 'A gateway: one connection',
      about:
        `Time from a request with a body of 1 KiB to the end of its answer of 1 KiB, one request at a time. ${PINNING} ${whole} Portkey ${versions.portkey} from npm, with @hono/node-server 1.14.1 in place of ` +
        `the one that npm installs, with which it answers 500 to every stream. PostgreSQL ${versions.postgres}, with each commit on the disk.`,
      unit: 'ms',
      rows: rows('alone', 'p50Ms'),
      ratios: ours.flatMap((name) => [added(name, 'p50Ms'), added(name, 'p99Ms'), ofCommits(name)]),
    },
    {
      title: `A gateway: ${CONNECTIONS} connections`,
      about: 'The same requests, one in flight on each of as many connections.',
      unit: 'requests/s',
      rows: rows('together', 'perSecond'),
      ratios: ours.flatMap((name) => [rate(name, PORTKEY, 3), rate(name, BARE_VERIFY, 0.6), rate(name, BARE_COMMITS, null), rate(name, BARE, null)]),
    },
    {
      title: 'A gateway: the first byte of a stream',
      about:
        `Time from a request to the first byte of the body, ${STREAMS} streams at a time. The provider sends the head at once, the first event ${FIRST_EVENT_AFTER_MS} ms later and ${EVENTS} in all, ` +
        `${EVENT_EVERY_MS} ms apart.`,
      unit: 'ms',
      rows: rows('streamed', 'p50Ms'),
      ratios: [...ours.flatMap((name) => [later(name, 'p50Ms', 1), later(name, 'p99Ms', 5)]), later(PORTKEY, 'p50Ms', null), later(PORTKEY, 'p99Ms', null)],
    },
  ];
}

function describeMemory(memory: readonly (readonly [name: string, residentMiB: number | null])[]): Section {
  const known = memory.filter((entry): entry is readonly [string, number] => entry[1] !== null);
  return {
    title: 'A gateway: memory after the load',
    about: 'What is resident of its process. PGlite is in the process of KeyGuard; PostgreSQL and Redis are not.',
    unit: 'MiB',
    rows: known.length === 0 ? [rowNotRun('memory', 'this system does not say')] : known.map(([name, mebibytes]) => rowOf(name, [mebibytes], kindOf(name))),
    ratios: [],
  };
}

function describeStarts({ firstMs, warmMs }: { readonly firstMs: number; readonly warmMs: readonly number[] }): Section {
  return {
    title: 'Start of the service on the embedded database',
    about: 'From the start of its process to the first 200 of /readyz, not pinned. The first start makes the database; the others have it, and the compiled code.',
    unit: 'ms',
    rows: [rowOf('first start', [firstMs], 'ours'), rowOf('further starts', warmMs, 'ours')],
    ratios: [{ name: 'further starts to /readyz in ms', value: median(warmMs), goal: { atMost: 2000 } }],
  };
}
