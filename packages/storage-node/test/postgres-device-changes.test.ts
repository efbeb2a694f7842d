/** The feed of changed devices where only a database can go wrong: transactions that overlap, servers that are replaced, columns. */
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import { createHash, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  asRole,
  nodeMacKey,
  postgresAdministrators,
  postgresDeviceChanges,
  postgresDeviceDirectory,
  postgresDeviceRegistry,
  postgresEnrollmentCodes,
  type SqlClient,
  type SqlTransaction,
} from '../src/postgres.ts';
import { SUBSTRATES, type Database, type Substrate } from './postgres-substrate.ts';

const rowMacKey = nodeMacKey({ keyId: 'row-1', key: randomBytes(32) });
const ADMIN = { byUserId: 'admin' };

/** A transaction that ends when the test says so. */
interface Held {
  /** Runs this in it; resolves when it has run. */
  run(work: (tx: SqlTransaction) => Promise<unknown>): Promise<void>;
  commit(): Promise<void>;
  rollback(): Promise<void>;
}

function hold(client: SqlClient): Held {
  let next: (work: ((tx: SqlTransaction) => Promise<unknown>) | 'commit' | 'rollback') => void = () => {};
  let waiting = new Promise<Parameters<typeof next>[0]>((resolve) => (next = resolve));
  let ran = (): void => {};
  const done = client.transaction(async (tx) => {
    for (;;) {
      const work = await waiting;
      if (work === 'commit') return;
      if (work === 'rollback') throw new Error('rolled back');
      await work(tx);
      waiting = new Promise((resolve) => (next = resolve));
      ran();
    }
  });
  return {
    run: (work) =>
      new Promise((resolve, reject) => {
        ran = resolve;
        done.catch(reject);
        next(work);
      }),
    commit: async () => {
      next('commit');
      await done;
    },
    rollback: async () => {
      next('rollback');
      await done.catch(() => {});
    },
  };
}

describe.each(SUBSTRATES)('the changes of devices on $title', { timeout: 60_000 }, ({ start, title }) => {
  let substrate: Substrate;
  let database: Database;

  beforeAll(async () => {
    substrate = await start();
    database = await substrate.open();
    await postgresAdministrators(database.app, { rowMacKey }).grant('admin', { grantedBy: 'setup' });
  }, 120_000);
  afterAll(async () => {
    await database?.close();
    await substrate?.stop();
  });

  const changes = (): ReturnType<typeof postgresDeviceChanges> => postgresDeviceChanges(database.peer);
  const cursorNow = async (): Promise<string> => (await changes().since(null)).cursor;
  const suspend = (tx: SqlTransaction, deviceId: string): Promise<unknown> => postgresDeviceDirectory(tx, { rowMacKey }).transition(deviceId, 'suspend', ADMIN);

  async function enroll(sql: SqlClient | SqlTransaction = database.app): Promise<string> {
    const codeHash = createHash('sha256').update(randomBytes(16)).digest('base64url');
    await postgresEnrollmentCodes(sql, { rowMacKey }).create({
      codeHash, createdBy: 'admin', forUserId: 'alice', projectId: 'project-1', label: null, maxUses: 1, autoApprove: true,
      expiresAtMs: Date.now() + 900_000,
    });
    const { keyId, publicKey } = await signingKey(await generateKeyPair());
    const answer = await postgresDeviceRegistry(sql, { rowMacKey }).enroll({ keyId, publicKey, codeHash, label: null, fingerprint: null, nowMs: Date.now() });
    if (answer.outcome !== 'enrolled') throw new Error(`It was ${answer.outcome}.`);
    return answer.device.deviceId;
  }

  it('are told once each, not at all where nothing changed, and not for a sighting', async () => {
    const [one, two] = [await enroll(), await enroll()];
    const cursor = await cursorNow();
    await postgresDeviceDirectory(database.app, { rowMacKey }).touch([{ deviceId: two, seenAtMs: Date.now(), ip: '192.0.2.1' }]);
    await suspend(database.app, one);
    const first = await changes().since(cursor);
    expect(first.deviceIds).toEqual([one]);
    expect((await changes().since(first.cursor)).deviceIds).toEqual([]);
  });

  it('are told of a device whose keys changed, by whomever', async () => {
    const deviceId = await enroll();
    let cursor = await cursorNow();
    for (const statement of [`UPDATE keyguard.device_keys SET state = 'retired' WHERE device_id = $1`, 'DELETE FROM keyguard.device_keys WHERE device_id = $1']) {
      await database.intruder.query(statement, [deviceId]);
      const told = await changes().since(cursor);
      expect(told.deviceIds).toEqual([deviceId]);
      cursor = told.cursor;
    }
  });

  it('are marked by a trigger that knows every column but those of sightings', async () => {
    const { rows } = await database.intruder.query<{ name: string }>(
      `SELECT a.attname AS name FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = 'keyguard.devices'::regclass AND a.attnum > 0 AND NOT a.attisdropped
          AND NOT a.attnum = ANY ((SELECT t.tgattr FROM pg_catalog.pg_trigger t
            WHERE t.tgrelid = a.attrelid AND t.tgname = 'devices_note_change')::int2[])
        ORDER BY 1`,
    );
    expect(rows.map(({ name }) => name)).toEqual(['last_ip', 'last_seen_at_ms']);
  });

  it('cannot be hidden by whoever may mark a device', async () => {
    const deviceId = await enroll();
    const cursor = await cursorNow();
    await asRole(database.app, 'kg_verifier', (tx) => tx.query(`UPDATE keyguard.devices SET changed_xid = '3' WHERE device_id = $1`, [deviceId]));
    expect((await changes().since(cursor)).deviceIds).toEqual([deviceId]);
  });

  it('are a reset where they are too many', async () => {
    const cursor = await cursorNow();
    const enrolled = [await enroll(), await enroll(), await enroll()];
    expect((await postgresDeviceChanges(database.peer, { maxDevices: 2 }).since(cursor)).deviceIds).toBe('reset');
    const told = await postgresDeviceChanges(database.peer, { maxDevices: 3 }).since(cursor);
    expect([...told.deviceIds].toSorted()).toEqual(enrolled.toSorted());
  });

  it('are a reset for a cursor of another server, or of one that has counted further', async () => {
    const [server = '', snapshot = ''] = (await cursorNow()).split(' ');
    expect((await changes().since(`${Number(server) + 1} ${snapshot}`)).deviceIds).toBe('reset');
    expect((await changes().since(`${server} 900000000:900000000:`)).deviceIds).toBe('reset');
    expect((await changes().since(`${server} ${snapshot}`)).deviceIds).toEqual([]);
  });

  it('are found by an index, however many devices there are', async () => {
    const { rows } = await database.intruder.transaction(async (tx) => {
      await tx.query('SET LOCAL enable_seqscan = off');
      return tx.query<{ 'QUERY PLAN': string }>(
        `EXPLAIN SELECT d.device_id FROM keyguard.devices d WHERE d.changed_xid >= pg_snapshot_xmin('9:9:'::pg_snapshot)
          AND NOT pg_visible_in_snapshot(d.changed_xid, '9:9:'::pg_snapshot)`,
      );
    });
    expect(rows.map((row) => row['QUERY PLAN']).join('\n')).toContain('devices_by_change');
  });

  it('are asked for by nobody who may not be kg_verifier', async () => {
    const { rows } = await database.intruder.query<{ may: boolean }>(
      `SELECT bool_or(has_function_privilege(r.name, 'keyguard.changed_devices(text, pg_snapshot, integer)', 'EXECUTE')) AS may
        FROM unnest(ARRAY['kg_app', 'kg_auth', 'kg_jobs']) AS r (name)`,
    );
    expect(rows[0]!.may).toBe(false);
  });

  it.each([0, 1.5, 100_001])('refuse a maximum of %s', (maxDevices) => {
    expect(() => postgresDeviceChanges(database.peer, { maxDevices })).toThrow(expect.objectContaining({ code: 'invalid_option' }));
  });

  // PGlite runs one transaction at a time, so there is nothing to overlap.
  if (title === 'PGlite') return;

  it('are told of a transaction that began first and commits last', async () => {
    const [slow, quick] = [await enroll(), await enroll()];
    const early = hold(database.app);
    await early.run((tx) => suspend(tx, slow));
    let told = await changes().since(await cursorNow());
    expect(told.deviceIds).toEqual([]);
    await suspend(database.app, quick);
    told = await changes().since(told.cursor);
    // A number drawn by the first would lie behind this cursor by now.
    expect(told.deviceIds).toEqual([quick]);
    told = await changes().since(told.cursor);
    expect(told.deviceIds).toEqual([]);
    await early.commit();
    told = await changes().since(told.cursor);
    expect(told.deviceIds).toEqual([slow]);
    expect((await changes().since(told.cursor)).deviceIds).toEqual([]);
  });

  it('are told of each of many transactions that commit in the opposite order, once', async () => {
    const devices = await Promise.all(Array.from({ length: 6 }, () => enroll()));
    let { cursor } = await changes().since(null);
    const held = devices.map((deviceId) => ({ deviceId, transaction: hold(database.app) }));
    for (const { deviceId, transaction } of held) await transaction.run((tx) => suspend(tx, deviceId));
    for (const { deviceId, transaction } of held.toReversed()) {
      await transaction.commit();
      const told = await changes().since(cursor);
      expect(told.deviceIds).toEqual([deviceId]);
      cursor = told.cursor;
    }
  });

  it('are not told of a transaction that is rolled back, and once more of one that changes the device again', async () => {
    const deviceId = await enroll();
    const cursor = await cursorNow();
    const doomed = hold(database.app);
    await doomed.run((tx) => suspend(tx, deviceId));
    await doomed.rollback();
    const told = await changes().since(cursor);
    expect(told.deviceIds).toEqual([]);
    await suspend(database.app, deviceId);
    expect((await changes().since(told.cursor)).deviceIds).toEqual([deviceId]);
  });

  it('are told of a second change whose transaction is older than the first', async () => {
    const deviceId = await enroll();
    const older = hold(database.app);
    // Has its number before the other one, and changes the device after it.
    await older.run((tx) => enroll(tx));
    await suspend(database.app, deviceId);
    const { cursor } = await changes().since(await cursorNow());
    await older.run((tx) => postgresDeviceDirectory(tx, { rowMacKey }).transition(deviceId, 'resume', ADMIN));
    await older.commit();
    expect((await changes().since(cursor)).deviceIds).toContain(deviceId);
  });

  it('are hinted at within milliseconds to a connection that listens, only for what is committed', async () => {
    const { rows } = await database.intruder.query<{ name: string; port: string }>(`SELECT current_database() AS name, current_setting('port') AS port`);
    const url = substrate.urlOf!(rows[0]!.name);
    const listener = new Client({ connectionString: url });
    await listener.connect();
    try {
      let hints = 0;
      const end = postgresDeviceChanges(database.peer, { listener }).onHint!(() => {
        hints += 1;
      });
      const deviceId = await enroll();
      const held = hold(database.app);
      await held.run((tx) => suspend(tx, deviceId));
      await sleep(50);
      expect(hints).toBe(0);
      await held.commit();
      await until(() => hints > 0);
      end();
      await listener.query('SELECT 1');
      const last = hints;
      await postgresDeviceDirectory(database.app, { rowMacKey }).transition(deviceId, 'resume', ADMIN);
      await sleep(50);
      expect(hints).toBe(last);
    } finally {
      await listener.end();
    }
  });
});

async function until(condition: () => boolean): Promise<void> {
  for (const deadline = Date.now() + 5000; !condition(); await sleep(5)) {
    if (Date.now() > deadline) throw new Error('It did not come to pass.');
  }
}
