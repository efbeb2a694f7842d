/**
 * A rotation of the key encryption key, with readers and writers beside it: what is sealed stays readable at every moment, whoever
 * is late, doubled or gone. `kek-rotation-large.slow.test.ts` does it with many more rows, and kills the service.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { asJobs } from '../../src/db/as-user.ts';
import type { DeploymentKeys } from '../../src/keys/hierarchy.ts';
import { runKekRotation, type KekRotation } from '../../src/keys/kek-rotation.ts';
import { sealedTableNames } from '../../src/keys/sealed-tables.ts';
import { backends, type Backend } from '../stage.ts';
import { keepReading, openKeys, openRows, sealedKeys, sealRows, silent, type KeyStage } from './stage.ts';

const ROWS = 2000;

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe.each(backends())('a rotation of the key encryption key on %s', (_title, openBackend) => {
  let backend: Backend;
  let stage: KeyStage;
  let sql: SqlClient;
  const living: KekRotation[] = [];

  beforeAll(async () => {
    backend = await openBackend();
    stage = await openKeys(await backend.deploy());
    sql = stage.sql;
    await sealRows(sql, stage.keys, ROWS);
  });
  afterAll(async () => {
    await Promise.all(living.map((one) => one.stop()));
    await stage.close();
    await backend.stop();
  });

  /** What a replica does beside serving. */
  function replica(keys: DeploymentKeys, through: SqlClient = sql): KekRotation {
    const one = runKekRotation({ sql: through, prompt: through, keyring: keys.kek, tables: [sealedKeys(keys)], audit: stage.audit, log: silent, pollMs: 50, batchRows: 100 });
    living.push(one);
    return one;
  }
  /** As an administrator does it; the MAC of whose row is the application's to check. */
  async function request(): Promise<string> {
    const [id, administrator] = [randomUUID(), 'administrator'];
    await sql.transaction(async (tx) => {
      await tx.query(`SELECT set_config('role', 'kg_auth', true)`);
      await tx.query(
        `INSERT INTO keyguard.administrators (user_id, granted_by, granted_at_ms, mac_key_id, mac) VALUES ($1, 'test', 1, 'test', decode(repeat('00', 32), 'hex')) ON CONFLICT DO NOTHING`,
        [administrator],
      );
      await tx.query(`SELECT set_config('role', 'kg_app', true), set_config('app.user_id', $1, true)`, [administrator]);
      await tx.query('INSERT INTO keyguard.kek_rotations (id, requested_by, created_at_ms) VALUES ($1, $2, $3)', [id, administrator, Date.now()]);
    });
    return id;
  }
  interface RotationRow {
    readonly state: string;
    readonly from_kek_id: string;
    readonly to_kek_id: string;
    readonly rewrapped: number;
    readonly damaged: number;
  }
  async function rotationOf(id: string): Promise<RotationRow> {
    const { rows } = await asJobs(sql, (tx) => tx.query<RotationRow>('SELECT state, from_kek_id, to_kek_id, rewrapped, damaged FROM keyguard.kek_rotations WHERE id = $1', [id]));
    return { ...rows[0]!, rewrapped: Number(rows[0]!.rewrapped), damaged: Number(rows[0]!.damaged) };
  }
  async function stateOf(id: string): Promise<string> {
    const { rows } = await asJobs(sql, (tx) => tx.query<{ state: string }>('SELECT state FROM keyguard.kek_keys WHERE id = $1', [id]));
    return rows[0]!.state;
  }
  const reaches = (id: string, state: string): Promise<void> => expect.poll(async () => (await rotationOf(id)).state, { timeout: 30_000, interval: 30 }).toBe(state);

  it('knows of every table of sealed values, so that it can end', async () => {
    const told = (await import('../../src/service.ts')).sealedTables(stage.keys.deploymentId).map(({ name }) => name);
    const there = await asJobs(sql, sealedTableNames);
    expect(there.toSorted()).toEqual(told.toSorted());
    const { rows } = await sql.query<{ name: string }>(`SELECT tgrelid::regclass::text AS name FROM pg_catalog.pg_trigger WHERE tgname LIKE '%\\_sealed'`);
    expect(rows.map(({ name }) => name).toSorted()).toEqual(there.toSorted());
  });

  it(`moves ${ROWS} rows to a new key under reads and writes, touches no ciphertext, and disables the old key`, async () => {
    const before = await openRows(sql, stage.keys);
    expect(before).toMatchObject({ rows: ROWS, unreadable: 0 });
    const others = await Promise.all([stage.again(), stage.again()]);
    const replicas = [stage.keys, ...others].map((keys) => replica(keys));
    let isOver = false;
    const reading = [stage.keys, ...others].map((keys) => keepReading(sql, keys, () => isOver));
    const oldId = stage.keys.kek.primaryId();
    const id = await request();
    replicas[1]!.wake();
    // New rows while it runs, by every replica, as it knows the keys.
    let written = 0;
    const writing = (async () => {
      while ((await rotationOf(id)).state !== 'done') {
        for (const keys of [stage.keys, ...others]) await sealRows(sql, keys, 1);
        written += 3;
        await pause(5);
      }
    })();
    await reaches(id, 'done');
    await writing;
    isOver = true;
    const read = await Promise.all(reading);
    for (const one of read) expect([one.read > 0, one.unreadable]).toEqual([true, 0]);

    const rotation = await rotationOf(id);
    expect(rotation.from_kek_id).toBe(oldId);
    expect([await stateOf(oldId), await stateOf(rotation.to_kek_id)]).toEqual(['disabled', 'primary']);
    expect(rotation.rewrapped).toBeGreaterThanOrEqual(ROWS);
    const fresh = await stage.again();
    const after = await openRows(sql, fresh);
    expect(after).toMatchObject({ rows: ROWS + written, unreadable: 0 });
    expect([...after.kekIds]).toEqual([rotation.to_kek_id]);
    expect(fresh.kek.ids()).toEqual([rotation.to_kek_id]);
    // Each wrap is counted once; those of the last moment are on their way.
    await Promise.all(replicas.map((one) => one.stop()));
    const { rows } = await asJobs(sql, (tx) => tx.query<{ wraps: unknown }>('SELECT wraps FROM keyguard.kek_uses WHERE kek_id = $1', [rotation.to_kek_id]));
    expect(Number(rows[0]!.wraps)).toBeGreaterThanOrEqual(rotation.rewrapped);
    const actions = await asJobs(sql, (tx) => tx.query<{ action: string }>(`SELECT action FROM keyguard.secret_audit_logs WHERE action LIKE 'kek.%' ORDER BY seq`));
    expect(actions.rows.map(({ action }) => action)).toEqual(['kek.create', 'kek.promote', 'kek.disable']);
  });

  it('leaves the envelopes as they are, to the byte', async () => {
    const before = await openRows(sql, await stage.again());
    const one = replica(await stage.again());
    const id = await request();
    one.wake();
    await reaches(id, 'done');
    await one.stop();
    const after = await openRows(sql, await stage.again());
    expect([after.digest, after.unreadable]).toEqual([before.digest, 0]);
    expect([...after.kekIds]).not.toEqual([...before.kekIds]);
  });

  it('makes no key the primary one while a replica does not hold it, and waits no longer for one that is gone', async () => {
    await asJobs(sql, (tx) =>
      tx.query(`INSERT INTO keyguard.replicas (id, kek_ids, primary_kek_id, seen_at_ms) VALUES ('late', '{}', 'none', (extract(epoch FROM clock_timestamp()) * 1000)::bigint)`),
    );
    const one = replica(await stage.again());
    const id = await request();
    one.wake();
    await reaches(id, 'distributing');
    for (let n = 0; n < 5; n += 1) {
      await pause(100);
      expect((await rotationOf(id)).state).toBe('distributing');
    }
    const { to_kek_id: newId, from_kek_id: oldId } = await rotationOf(id);
    expect([await stateOf(oldId), await stateOf(newId)]).toEqual(['primary', 'pre-active']);
    await asJobs(sql, (tx) => tx.query(`UPDATE keyguard.replicas SET kek_ids = ARRAY[$1], primary_kek_id = $1 WHERE id = 'late'`, [newId]));
    await reaches(id, 'done');
    await one.stop();
    await asJobs(sql, (tx) => tx.query(`DELETE FROM keyguard.replicas WHERE id = 'late'`));
  });

  it('puts no key out of use while a replica still seals under it, or somebody writes under it', async () => {
    const { rows: [written] } = await asJobs(sql, (tx) =>
      tx.query<{ id: string; wrapped_dek: Uint8Array }>('SELECT subject_id AS id, wrapped_dek FROM keyguard.secret_versions ORDER BY subject_id LIMIT 1'));
    const one = replica(await stage.again());
    const id = await request();
    const late = (primary: string, keys: readonly string[]): Promise<unknown> =>
      asJobs(sql, (tx) =>
        tx.query(
          `INSERT INTO keyguard.replicas (id, kek_ids, primary_kek_id, seen_at_ms) VALUES ('late', $1::text[], $2, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
            ON CONFLICT (id) DO UPDATE SET kek_ids = excluded.kek_ids, primary_kek_id = excluded.primary_kek_id, seen_at_ms = excluded.seen_at_ms`,
          [keys, primary],
        ),
      );
    await late('none', []);
    one.wake();
    await reaches(id, 'distributing');
    const { to_kek_id: newId, from_kek_id: oldId } = await rotationOf(id);
    await late(oldId, [oldId, newId]);
    const left = async (): Promise<number> => Number((await asJobs(sql, (tx) => tx.query<{ n: unknown }>('SELECT count(*) AS n FROM keyguard.secret_versions WHERE kek_id = $1', [oldId]))).rows[0]!.n);
    await expect.poll(left, { timeout: 30_000, interval: 30 }).toBe(0);
    for (let n = 0; n < 5; n += 1) {
      await late(oldId, [oldId, newId]);
      await pause(100);
      expect([(await rotationOf(id)).state, await stateOf(oldId)]).toEqual(['rewrapping', 'decrypt-only']);
    }
    // Nor while somebody is writing a row under it: that one would open for nobody.
    let told: Promise<unknown> = Promise.resolve();
    await asJobs(sql, async (tx) => {
      await tx.query('UPDATE keyguard.secret_versions SET kek_id = $2, wrapped_dek = $3 WHERE subject_id = $1', [written!.id, oldId, written!.wrapped_dek]);
      told = late(newId, [oldId, newId]);
      await pause(300);
    });
    await told;
    await reaches(id, 'done');
    expect(await stateOf(oldId)).toBe('disabled');
    expect((await openRows(sql, await stage.again())).unreadable).toBe(0);
    await one.stop();
    await asJobs(sql, (tx) => tx.query(`DELETE FROM keyguard.replicas WHERE id = 'late'`));
  });

  it('goes on from where it was when whoever worked on it is gone, wherever that was', async () => {
    // Gone after as many statements, in the middle of whatever it was doing.
    for (const statements of [32, 60, 110]) {
      const dying = await stage.again();
      let left = statements;
      const through: SqlClient = {
        query: () => Promise.reject(new Error('gone')),
        transaction: (fn) =>
          sql.transaction((tx) =>
            fn({
              query: (text, params) => {
                left -= 1;
                return left > 0 ? tx.query(text, params) : Promise.reject(new Error('gone'));
              },
            }),
          ),
      };
      const first = replica(dying, through);
      const id = await request();
      first.wake();
      await expect.poll(() => left, { timeout: 20_000, interval: 20 }).toBeLessThanOrEqual(0);
      await first.stop();
      const middle = await openRows(sql, await stage.again());
      expect(middle.unreadable).toBe(0);
      // What it leaves behind: a claim that has not lapsed, and a replica that says nothing more.
      await asJobs(sql, async (tx) => {
        await tx.query('UPDATE keyguard.kek_rotations SET claimed_until_ms = 0 WHERE id = $1', [id]);
        await tx.query('UPDATE keyguard.replicas SET seen_at_ms = 0');
      });
      const second = replica(await stage.again());
      await reaches(id, 'done');
      await second.stop();
      const after = await openRows(sql, await stage.again());
      expect([after.unreadable, after.kekIds.size, after.rows]).toEqual([0, 1, middle.rows]);
    }
  });

  it('works in one replica at a time', async () => {
    const replicas = await Promise.all([1, 2, 3].map(async () => replica(await stage.again())));
    const rows = (await openRows(sql, stage.keys)).rows;
    const id = await request();
    for (const one of replicas) one.wake();
    await reaches(id, 'done');
    await Promise.all(replicas.map((one) => one.stop()));
    expect((await rotationOf(id)).rewrapped).toBe(rows);
  });

  it('keeps the old key for a row that does not open, says so, and ends when it is repaired', async () => {
    const { rows } = await asJobs(sql, (tx) => tx.query<{ id: string; wrapped_dek: Uint8Array }>('SELECT subject_id AS id, wrapped_dek FROM keyguard.secret_versions ORDER BY subject_id LIMIT 1'));
    const [{ id: victim, wrapped_dek: good }] = rows as [{ id: string; wrapped_dek: Uint8Array }];
    const write = (bytes: Uint8Array): Promise<unknown> => asJobs(sql, (tx) => tx.query('UPDATE keyguard.secret_versions SET wrapped_dek = $2 WHERE subject_id = $1', [victim, bytes]));
    await write(Uint8Array.from(good).fill(1, 20));
    const first = replica(await stage.again());
    const id = await request();
    first.wake();
    await expect.poll(async () => (await rotationOf(id)).damaged, { timeout: 20_000, interval: 30 }).toBe(1);
    await first.stop();
    const { from_kek_id: oldId } = await rotationOf(id);
    expect(await stateOf(oldId)).toBe('decrypt-only');
    await write(Uint8Array.from(good));
    const second = replica(await stage.again());
    await reaches(id, 'done');
    await second.stop();
    expect(await stateOf(oldId)).toBe('disabled');
    expect((await openRows(sql, await stage.again())).unreadable).toBe(0);
  });

  it('lets nobody seal under a key that is out of use, and lets no key go back', async () => {
    const old = (await asJobs(sql, (tx) => tx.query<{ id: string }>(`SELECT id FROM keyguard.kek_keys WHERE purpose = 'kek' AND state = 'disabled' LIMIT 1`))).rows[0]!.id;
    const refused = async (text: string, params: readonly unknown[]): Promise<string> => {
      try {
        await sql.transaction(async (tx) => {
          await tx.query(`SELECT set_config('role', 'kg_jobs', true)`);
          await tx.query(text, params);
        });
      } catch (error) {
        return (error as { code: string }).code;
      }
      return 'not refused';
    };
    expect(await refused('UPDATE keyguard.secret_versions SET kek_id = $1', [old])).toBe('23514');
    expect(await refused('UPDATE keyguard.secret_versions SET kek_id = $1', ['kek-nobody'])).toBe('23514');
    expect(await refused(`UPDATE keyguard.kek_keys SET state = 'decrypt-only' WHERE id = $1`, [old])).toBe('23514');
    expect(await refused(`UPDATE keyguard.kek_keys SET wrapped = '' WHERE id = $1`, [old])).toBe('23514');
    expect(await refused(`UPDATE keyguard.kek_keys SET purpose = 'row-mac' WHERE id = $1`, [old])).toBe('42501');
    expect(await refused(`UPDATE keyguard.secret_versions SET ciphertext = ''`, [])).toBe('23514');
    const record = await stage.keys.kek.makeRecord();
    expect(record.state).toBe('pre-active');
    expect(await refused(`UPDATE keyguard.secret_versions SET kek_id = (SELECT id FROM keyguard.kek_keys WHERE purpose = 'row-mac')`, [])).toBe('23514');
  });
});
