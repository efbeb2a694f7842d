/**
 * `kill -9` in the middle of writes to every store of a database: of the process that uses it, and of the server itself. Whatever
 * was acknowledged is there afterwards. KEYGUARD_KILL_ROUNDS says how often; once without it.
 */
import { PGlite } from '@electric-sql/pglite';
import { verifyRecords } from '@keyguard/core/audit';
import { fromUtf8 } from '@keyguard/core/bytes';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import type { AuditRecord } from '@keyguard/core/seams';
import { spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import {
  migrate,
  nodeMacKey,
  pgliteClient,
  postgresAdministrators,
  postgresAuditSink,
  postgresDeviceRegistry,
  postgresKeyRecords,
  postgresReplayStore,
  type SqlClient,
} from '../src/postgres.ts';
import { ownServer, postgresSubstrate, type Database, type OwnServer, type Substrate } from './postgres-substrate.ts';
import type { StoreTask } from './store-process.ts';

const ROUNDS = Number(process.env['KEYGUARD_KILL_ROUNDS'] ?? 1);
const CALLERS = 6;
const PROGRAM = fileURLToPath(new URL('./store-process.ts', import.meta.url));
const ORIGIN = 'keyguard.test/kill';

vi.setConfig({ testTimeout: 60_000 + ROUNDS * 20_000, hookTimeout: 120_000 });

const macKeyBytes = randomBytes(32);
const rowMacKeyBytes = randomBytes(32);
const macKey = nodeMacKey({ keyId: 'audit-1', key: macKeyBytes });
const rowMacKey = nodeMacKey({ keyId: 'row-1', key: rowMacKeyBytes });

type Claim = readonly [keyId: string, nonce: string, createdSeconds: number, expiresAtMs: number];

/** What the processes said was acknowledged. */
class Acknowledged {
  readonly claims: Claim[] = [];
  readonly enrolled: (readonly [keyId: string, codeHash: string])[] = [];
  readonly keys: string[] = [];
  readonly appended = new Map<string, number>();

  note(line: string): void {
    const [word, first = '', ...rest] = line.split(' ');
    if (word === 'claimed') this.claims.push([first, rest[0]!, Number(rest[1]), Number(rest[2])]);
    else if (word === 'enrolled') this.enrolled.push([first, rest[0]!]);
    else if (word === 'kept') this.keys.push(first);
    else if (word === 'appended') this.appended.set(first, Number(rest[0]));
  }
}

interface User {
  readonly child: ChildProcess;
  readonly atWork: Promise<void>;
  readonly ended: Promise<void>;
}

function startUser(place: { url: string } | { folder: string }, round: number, acknowledged: Acknowledged): User {
  const task: StoreTask = {
    ...place,
    origin: ORIGIN,
    macKey: macKeyBytes.toString('hex'),
    rowMacKey: rowMacKeyBytes.toString('hex'),
    name: `r${round}`,
    callers: CALLERS,
  };
  const child = spawn(process.execPath, ['--conditions=@keyguard/source', PROGRAM, JSON.stringify(task)], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const atWork = new Promise<void>((resolve, reject) => {
    void ended.then(() => reject(new Error('The process ended before it had done anything.')));
    createInterface(child.stdout!).on('line', (line) => {
      acknowledged.note(line);
      if (line.startsWith('appended')) resolve();
    });
  });
  return { child, atWork, ended };
}

/** Everything that was said to be there is there, once, and what was used up cannot be used again. */
async function expectAllThere(sql: SqlClient, { claims, enrolled, keys, appended }: Acknowledged): Promise<void> {
  const replayStore = postgresReplayStore(sql);
  const again = await Promise.all(claims.map((claim) => replayStore.claim(...claim)));
  expect(again.filter((claimed) => claimed)).toEqual([]);

  const registry = postgresDeviceRegistry(sql, { rowMacKey });
  const devices = await Promise.all(enrolled.map(([keyId]) => registry.findByKeyId(keyId)));
  expect(devices.filter((device) => device?.status !== 'active')).toEqual([]);
  const { keyId, publicKey } = await signingKey(await generateKeyPair());
  for (const [, codeHash] of enrolled) {
    const outcome = await registry.enroll({ keyId, publicKey, codeHash, label: null, fingerprint: null, nowMs: Date.now() });
    expect(outcome).toEqual({ outcome: 'rejected' });
  }

  const held = new Set((await postgresKeyRecords(sql).list()).map(({ id }) => id));
  expect(keys.filter((id) => !held.has(id))).toEqual([]);

  const sink = postgresAuditSink(sql, { origin: ORIGIN, macKey });
  const serials: string[] = [];
  async function* noted(): AsyncGenerator<AuditRecord> {
    for await (const record of sink.read(0)) {
      serials.push(String((JSON.parse(fromUtf8(record.bytes)) as { serial: unknown }).serial));
      yield record;
    }
  }
  const end = await verifyRecords(noted(), { origin: ORIGIN, keys: new Map([[macKey.keyId, macKey]]) });
  expect((await sink.head())!.seq + 1).toBe(end.seq);
  expect(new Set(serials).size).toBe(serials.length);
  for (const [serial, seq] of appended) expect(serials[seq]).toBe(serial);
}

const someTime = (): Promise<unknown> => pause(20 + Math.random() * 300);

function report(what: string, rounds: readonly Acknowledged[]): void {
  const sum = (of: (one: Acknowledged) => number): number => rounds.reduce((total, one) => total + of(one), 0);
  console.log(
    `${what}: killed ${rounds.length} times; acknowledged and found: ${sum((r) => r.claims.length)} claims, ` +
      `${sum((r) => r.enrolled.length)} devices, ${sum((r) => r.keys.length)} keys, ${sum((r) => r.appended.size)} audit entries.`,
  );
}

describe('PGlite', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'keyguard-kill-'));
    const db = await PGlite.create(folder);
    await migrate(pgliteClient(db));
    await postgresAdministrators(pgliteClient(db), { rowMacKey }).grant('admin', { grantedBy: 'setup' });
    await db.close();
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  async function inspect(acknowledged: readonly Acknowledged[]): Promise<void> {
    const db = await PGlite.create(folder);
    for (const one of acknowledged) await expectAllThere(pgliteClient(db), one);
    await db.close();
  }

  it(`keeps what it acknowledged when its process is killed, ${ROUNDS} times`, async () => {
    const rounds: Acknowledged[] = [];
    for (let round = 1; round <= ROUNDS; round += 1) {
      const acknowledged = new Acknowledged();
      rounds.push(acknowledged);
      const user = startUser({ folder }, round, acknowledged);
      await user.atWork;
      await someTime();
      user.child.kill('SIGKILL');
      await user.ended;
      expect(acknowledged.appended.size).toBeGreaterThan(0);
      await inspect([acknowledged]);
    }
    await inspect(rounds);
    report('PGlite', rounds);
  });
});

describe('PostgreSQL', () => {
  let server: OwnServer;
  let substrate: Substrate;
  let database: Database;

  beforeAll(async () => {
    server = await ownServer();
    substrate = await postgresSubstrate(server);
    database = await substrate.open();
    await postgresAdministrators(database.app, { rowMacKey }).grant('admin', { grantedBy: 'setup' });
  });
  afterAll(async () => {
    await database.close();
    await substrate.stop();
  });

  it(`keeps what it acknowledged when a process that uses it is killed, ${ROUNDS} times`, async () => {
    const rounds: Acknowledged[] = [];
    for (let round = 1; round <= ROUNDS; round += 1) {
      const acknowledged = new Acknowledged();
      rounds.push(acknowledged);
      const user = startUser({ url: database.appUrl! }, round, acknowledged);
      await user.atWork;
      await someTime();
      user.child.kill('SIGKILL');
      await user.ended;
      await expectAllThere(database.peer, acknowledged);
    }
    for (const one of rounds) await expectAllThere(database.peer, one);
    report('PostgreSQL, its user', rounds);
  });

  it(`keeps what it acknowledged when the server is killed, ${ROUNDS} times`, async () => {
    const rounds: Acknowledged[] = [];
    for (let round = 1; round <= ROUNDS; round += 1) {
      const acknowledged = new Acknowledged();
      rounds.push(acknowledged);
      const user = startUser({ url: database.appUrl! }, ROUNDS + round, acknowledged);
      await user.atWork;
      await someTime();
      await server.kill();
      // It is told of an outage, and stops by itself.
      await user.ended;
      await server.start();
      await expectAllThere(database.peer, acknowledged);
    }
    for (const one of rounds) await expectAllThere(database.peer, one);
    report('PostgreSQL, the server', rounds);
  });
});
