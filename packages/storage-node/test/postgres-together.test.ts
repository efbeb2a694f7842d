/**
 * What the callers of one process share: a statement for the claims that are there together, and one for the entries. Each has its own
 * answer all the same, nobody pays for another's mistake, and processes that meet neither wait for each other for ever nor fork the log.
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { verifyRecords } from '@keyguard/core/audit';
import { isUnavailable } from '@keyguard/core/errors';
import type { AuditEntry } from '@keyguard/core/seams';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { nodeMacKey, postgresAuditSink, postgresReplayStore, type SqlClient } from '../src/postgres.ts';
import { SUBSTRATES, type Database, type Substrate } from './postgres-substrate.ts';

const ORIGIN = 'keyguard.test/together';
const macKey = nodeMacKey({ keyId: 'audit-1', key: randomBytes(32) });
const entry: AuditEntry = { action: 'x', outcome: 'success', actor: 'user:1' };

interface Counted extends SqlClient {
  statements: number;
  transactions: number;
}

/** `inner`, and what was asked of it outside of transactions and by them. */
function counting(inner: SqlClient): Counted {
  const counted: Counted = {
    statements: 0,
    transactions: 0,
    query(text, params) {
      counted.statements += 1;
      return inner.query(text, params);
    },
    transaction(fn) {
      counted.transactions += 1;
      return inner.transaction(fn);
    },
  };
  return counted;
}

describe.each(SUBSTRATES)('together on $title', ({ start }) => {
  let substrate: Substrate;
  let database: Database;
  let serial = 0;
  const fresh = (): string => `nonce-${(serial += 1)}`;
  const created = 1_800_000_000;
  const expiresAtMs = (created + 360) * 1000;

  beforeAll(async () => {
    substrate = await start();
    database = await substrate.open();
  }, 120_000);
  afterAll(async () => {
    await database.close();
    await substrate.stop();
  });

  it('claims what is there at the same time by one statement, and answers each for itself', async () => {
    const sql = counting(database.app);
    const store = postgresReplayStore(sql);
    const used = fresh();
    expect(await store.claim('k', used, created, expiresAtMs)).toBe(true);
    sql.statements = 0;
    const [twice, others] = [fresh(), Array.from({ length: 40 }, fresh)];
    const nonces = [twice, used, ...others, twice, used];
    const answers = await Promise.all(nonces.map((nonce) => store.claim('k', nonce, created, expiresAtMs)));
    expect(answers).toEqual([true, false, ...others.map(() => true), false, false]);
    expect(sql.statements).toBe(1);
    for (const nonce of nonces) expect(await postgresReplayStore(database.peer).claim('k', nonce, created, expiresAtMs)).toBe(false);
  });

  it('lets one that the database refuses cost no other its answer', async () => {
    const store = postgresReplayStore(database.app);
    const [bad, long, good] = await Promise.allSettled([
      store.claim('k', 'a\0b', created, expiresAtMs),
      store.claim('k', randomBytes(9000).toString('base64'), created, expiresAtMs),
      store.claim('k', fresh(), created, expiresAtMs),
    ]);
    for (const refused of [bad, long]) expect(refused.status === 'rejected' && isUnavailable(refused.reason)).toBe(true);
    expect(good).toEqual({ status: 'fulfilled', value: true });
    expect(isUnavailable(await store.claim('k', fresh(), Number.NaN, expiresAtMs).catch((error: unknown) => error))).toBe(true);
  });

  it('lets one process of two claim each pair, in whatever order they come, and neither wait for the other', async () => {
    const [mine, theirs] = [postgresReplayStore(database.app), postgresReplayStore(database.peer)];
    for (let round = 0; round < 10; round += 1) {
      const nonces = Array.from({ length: 100 }, fresh);
      const claimAll = (store: typeof mine, order: readonly string[]): Promise<boolean[]> =>
        Promise.all(order.map((nonce) => store.claim('k', nonce, created, expiresAtMs)));
      const [here, there] = await Promise.all([claimAll(mine, nonces), claimAll(theirs, nonces.toReversed())]);
      expect(nonces.map((_, i) => Number(here[i]) + Number(there.toReversed()[i]))).toEqual(nonces.map(() => 1));
    }
  });

  it('claims on while a statement before gets no answer', async () => {
    let hangs = true;
    const dead: SqlClient = {
      transaction: (fn) => database.app.transaction(fn),
      query(text, params) {
        if (!hangs) return database.app.query(text, params);
        hangs = false;
        return new Promise(() => {});
      },
    };
    const store = postgresReplayStore(dead);
    const first = store.claim('k', fresh(), created, expiresAtMs);
    await pause(5);
    // With nobody who comes later, and then as if there had been none.
    expect(await store.claim('k', fresh(), created, expiresAtMs)).toBe(true);
    for (let i = 0; i < 3; i += 1) expect(await store.claim('k', fresh(), created, expiresAtMs)).toBe(true);
    expect(await Promise.race([first, pause(10, 'no answer')])).toBe('no answer');
  });

  it('appends by one statement while nobody else does, and takes its turn behind whoever did', async () => {
    const sql = counting(database.app);
    const [mine, theirs] = [postgresAuditSink(sql, { origin: ORIGIN, macKey }), postgresAuditSink(database.peer, { origin: ORIGIN, macKey })];
    await mine.append([entry]);
    expect([sql.transactions, sql.statements]).toEqual([1, 0]);
    for (let i = 0; i < 5; i += 1) await mine.append([{ ...entry, i }]);
    await Promise.all(Array.from({ length: 20 }, (_, i) => mine.append([{ ...entry, i }, entry])));
    expect([sql.transactions, sql.statements]).toEqual([1, 6]);

    const [before] = await theirs.append([entry]);
    const [after] = await mine.append([entry]);
    expect(after!.seq).toBe(before!.seq + 1);
    expect(sql.transactions).toBe(2);
    // Likewise in somebody's transaction, and one that is rolled back leaves no gap.
    await database.app.transaction(async (tx) => {
      await tx.query('SET LOCAL ROLE kg_verifier');
      await mine.appendIn(tx, [entry]);
    });
    const rolledBack = database.app.transaction(async (tx) => {
      await tx.query('SET LOCAL ROLE kg_verifier');
      await mine.appendIn(tx, [entry]);
      throw new Error('changed my mind');
    });
    await expect(rolledBack).rejects.toThrow('changed my mind');
    await Promise.all(Array.from({ length: 60 }, (_, i) => (i % 3 === 0 ? theirs : mine).append([{ ...entry, i }])));
    await mine.append([entry]);
    const { seq } = await verifyRecords(mine.read(0), { origin: ORIGIN, keys: new Map([['audit-1', macKey]]) });
    expect(seq).toBe(1 + 5 + 40 + 2 + 1 + 60 + 1);
  });

  it('adds nothing after a record that is not the last', async () => {
    const sink = postgresAuditSink(database.app, { origin: ORIGIN, macKey });
    await sink.append([entry]);
    const head = (await sink.head())!;
    const add = async (seq: number, mac: Uint8Array): Promise<unknown> => {
      const arrays = [[seq + 1], ['a'], [null], ['a'], [null], ['success'], [null], [null], ['AA=='], [Buffer.from(mac).toString('base64')], [randomBytes(32).toString('base64')]];
      const params = [seq, Buffer.from(mac).toString('base64'), 1000, ORIGIN, 1, 'audit-1', null, null, null, ...arrays];
      const { rows } = await database.app.query<{ added: unknown }>(`SELECT keyguard.add_audit_records_after(${params.map((_, i) => `$${i + 1}`).join(', ')}) AS added`, params);
      return rows[0]!.added;
    };
    expect(await add(head.seq - 1, head.prevMac)).toBe(false);
    expect(await add(head.seq + 1, head.mac)).toBe(false);
    expect(await add(head.seq, randomBytes(32))).toBe(false);
    expect(await sink.head()).toEqual(head);
  });
});
