/** What the author of an adapter runs: the suite of its seam, and by hand what only this substrate does. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite';
import { fileURLToPath } from 'node:url';
import { injectFaults, replayStoreConformance, type Faults, type InjectedFaults } from '@keyguard/conformance';
import { afterAll, expect, test } from 'vitest';
import { sqliteReplayStore } from '../src/sqlite-replay-store.ts';

const folder = mkdtempSync(join(tmpdir(), 'keyguard-sqlite-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const TIMEOUT_MS = 10;
const WRITES = /^(?:INSERT|UPDATE)/;

/** `database`, whose statements go through `faults`. */
function over(database: DatabaseSync, faults: InjectedFaults): DatabaseSync {
  const through = (target: StatementSync, needsRoom: boolean): StatementSync =>
    ({
      run: (...values: SQLInputValue[]) => faults.throughNow(() => target.run(...values), needsRoom),
      get: (...values: SQLInputValue[]) => faults.throughNow(() => target.get(...values), false),
    }) as StatementSync;
  return {
    prepare: (sql: string) => through(database.prepare(sql), WRITES.test(sql)),
    exec: (sql: string) => faults.throughNow(() => database.exec(sql), false),
    get isTransaction() {
      return database.isTransaction;
    },
  } as DatabaseSync;
}

replayStoreConformance('sqliteReplayStore', () => {
  const path = join(folder, 'conformance.db');
  const sqlite = (code: number, message: string): Error => Object.assign(new Error(message), { code: 'ERR_SQLITE_ERROR', errcode: code });
  const injected = injectFaults({ failure: () => sqlite(10, 'disk I/O error'), full: () => sqlite(13, 'database or disk is full') });
  const databases = Array.from({ length: 4 }, () => new DatabaseSync(path));
  const inTheWay = databases.pop()!;
  let nowMs = 1_800_000_000_000;
  const [store, peer, ...morePeers] = databases.map((database) =>
    sqliteReplayStore(over(database, injected), { clock: { nowMs: () => nowMs }, timeoutMs: TIMEOUT_MS }),
  );
  const faults: Faults = {
    ...injected,
    // As another process does that does not let go of the file.
    hang: () => inTheWay.exec('BEGIN EXCLUSIVE'),
    calm() {
      injected.calm();
      if (inTheWay.isTransaction) inTheWay.exec('ROLLBACK');
    },
  };
  // Past the minute in which a new file lets nothing pass.
  nowMs += 61_000;
  return {
    store: store!,
    peer: peer!,
    morePeers,
    nowMs: () => nowMs,
    advance: (ms) => void (nowMs += ms),
    // It forgets by itself, at the next claim.
    forget: () => {},
    faults,
    boundMs: 2 * TIMEOUT_MS,
    close() {
      for (const database of [...databases, inTheWay]) database.close();
    },
  };
});

const NOW_MS = 1_800_000_000_000;
const at = (nowMs: number) => ({ clock: { nowMs: () => nowMs } });

test('remembers over a restart, and by a new file lets nothing pass that an earlier one may have seen', () => {
  const path = join(folder, 'restart.db');
  const claim = (nowMs: number, createdSeconds: number): unknown => {
    const database = new DatabaseSync(path);
    try {
      return sqliteReplayStore(database, at(nowMs)).claim('key', 'nonce', createdSeconds, createdSeconds * 1000 + 360_000);
    } finally {
      database.close();
    }
  };
  const readySeconds = NOW_MS / 1000 + 61;
  expect(() => claim(NOW_MS, readySeconds - 1)).toThrow(expect.objectContaining({ name: 'UnavailableError', retryAfterMs: 61_000 }));
  expect(claim(readySeconds * 1000, readySeconds - 1)).toBe(false);
  expect(claim(readySeconds * 1000, readySeconds)).toBe(true);
  for (const laterMs of [0, 1000, 359_000]) expect(claim(readySeconds * 1000 + laterMs, readySeconds)).toBe(false);
});

test('lets go of the file when it could not purge', () => {
  const path = join(folder, 'purge.db');
  const [database, other] = [new DatabaseSync(path), new DatabaseSync(path)];
  let nowMs = NOW_MS;
  const clock = { nowMs: () => nowMs };
  const store = sqliteReplayStore(database, { clock });
  nowMs += 61_000;
  expect(store.claim('key', 'nonce', nowMs / 1000, nowMs + 360_000)).toBe(true);
  other.exec("CREATE TRIGGER no_forgetting BEFORE DELETE ON nonces BEGIN SELECT RAISE(ABORT, 'no'); END");
  nowMs += 361_000;
  expect(() => store.claim('key', 'another', nowMs / 1000, nowMs + 360_000)).toThrow(expect.objectContaining({ name: 'UnavailableError' }));
  other.exec('DROP TRIGGER no_forgetting');
  expect(store.claim('key', 'another', nowMs / 1000, nowMs + 360_000)).toBe(true);
  database.close();
  other.close();
});

test('lets one of four processes pass for each of 200 nonces', async () => {
  const path = join(folder, 'processes.db');
  const database = new DatabaseSync(path);
  sqliteReplayStore(database, at(NOW_MS));
  database.close();
  const program = fileURLToPath(new URL('./claims.ts', import.meta.url));
  const counts = await Promise.all(
    Array.from({ length: 4 }, async () => {
      const child = fork(program, [path, String(NOW_MS + 61_000)], { execArgv: ['--conditions=@keyguard/source', '--disable-warning=ExperimentalWarning'] });
      const [message] = (await once(child, 'message')) as [{ accepted: number; refused: number }];
      return message;
    }),
  );
  expect(counts.map(({ accepted, refused }) => accepted + refused)).toEqual([200, 200, 200, 200]);
  expect(counts.reduce((sum, { accepted }) => sum + accepted, 0)).toBe(200);
});
