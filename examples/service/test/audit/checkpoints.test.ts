/** The tree in tiles, the checkpoints over it, and what is kept outside: that they grow, are shared, and notice. */
import { appendFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { auditCheckpoint, signCheckpoint } from '@keyguard/core/checkpoint';
import { appendLeaves, consistencyProof, emptyTree, inclusionProof, treeRoot, verifyConsistency, verifyInclusion } from '@keyguard/core/merkle';
import { rootAt } from '../../src/audit/checkpoint-store.ts';
import { keptCheckpoints } from '../../src/audit/kept.ts';
import { growTiles, sha256, tileReader } from '../../src/audit/tree.ts';
import { fill, gathered, openLogStage, type LogStage, type Replica } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

let stage: LogStage;
beforeAll(async () => {
  stage = await openLogStage();
});
afterAll(() => stage.close());

async function leavesOf({ audit }: Replica): Promise<Uint8Array<ArrayBuffer>[]> {
  const leaves = [];
  for await (const { bytes } of audit.sink.read(0)) leaves.push(bytes);
  return leaves;
}

describe('the tree', () => {
  it('has the roots and proofs of the tree over all entries, at the edges of tiles too', async () => {
    const replica = await stage.replica({ origin: 'tree' });
    await fill(replica.audit, 1300);
    const leaves = await leavesOf(replica);
    const reader = tileReader(stage.sql, 'tree');
    // A tree that grew in steps is the one that was made at once.
    for (const size of [1, 255, 256, 257, 700, 1024, 1300]) {
      await growTiles(stage.sql, 'tree', size);
      const root = await treeRoot((await appendLeaves(emptyTree(), leaves.slice(0, size), sha256)).frontier, sha256);
      expect(Buffer.from(await rootAt(stage.sql, 'tree', size)).equals(root), `root of ${size}`).toBe(true);
      for (const index of new Set([0, 254, 255, 256, size - 1].filter((each) => each < size))) {
        await verifyInclusion({ bytes: leaves[index]!, index, size, root, proof: await inclusionProof(index, size, reader, sha256) }, sha256);
      }
    }
    for (const [oldSize, newSize] of [[1, 1300], [256, 1300], [257, 1024], [1299, 1300], [1300, 1300]] as const) {
      const [oldRoot, newRoot] = [await rootAt(stage.sql, 'tree', oldSize), await rootAt(stage.sql, 'tree', newSize)];
      await verifyConsistency({ oldSize, newSize, oldRoot, newRoot, proof: await consistencyProof(oldSize, newSize, reader, sha256) }, sha256);
    }
    const { rows } = await stage.superuser.query<{ n: number }>("SELECT count(*)::int AS n FROM keyguard.audit_tree_tiles WHERE origin = 'tree'");
    expect(rows[0]!.n).toBe(5);
  });

  it('stands on a second level of tiles, and reads the same few rows there', async () => {
    // 65,536 entries would take long to seal: the tiles are what is looked at here, so the leaves are made by the database.
    await stage.tamper(`INSERT INTO keyguard.secret_audit_logs (origin, seq, ts_ms, actor, action, outcome, entry, prev_mac, mac, mac_key_id)
      SELECT 'high', n, 0, 'a', 'b', 'success', convert_to('entry ' || n, 'UTF8'), decode(repeat('00', 32), 'hex'), decode(repeat('00', 32), 'hex'), 'k'
      FROM generate_series(0, 65999) AS n`);
    await growTiles(stage.sql, 'high', 66_000);
    const leaves = Array.from({ length: 66_000 }, (_, n) => new TextEncoder().encode(`entry ${n}`));
    const root = await treeRoot((await appendLeaves(emptyTree(), leaves, sha256)).frontier, sha256);
    expect(Buffer.from(await rootAt(stage.sql, 'high', 66_000)).equals(root)).toBe(true);
    for (const index of [0, 40_000, 65_535, 65_536, 65_999]) {
      await verifyInclusion({ bytes: leaves[index]!, index, size: 66_000, root, proof: await inclusionProof(index, 66_000, tileReader(stage.sql, 'high'), sha256) }, sha256);
    }
  });

  it('lets nobody who serves change or take away a tile or a checkpoint', async () => {
    for (const table of ['audit_tree_tiles', 'audit_checkpoints', 'audit_chains']) {
      await expect(stage.superuser.query(`DELETE FROM keyguard.${table}`)).rejects.toThrow(/append-only/);
      for (const role of ['kg_app', 'kg_verifier', 'kg_auth']) {
        const ask = stage.sql.transaction(async (tx) => {
          await tx.query(`SET LOCAL ROLE ${role}`);
          return tx.query(`SELECT 1 FROM keyguard.${table}`);
        });
        await expect(ask).rejects.toThrow(/permission denied/);
      }
    }
  });
});

describe('checkpoints', () => {
  it('are signed by number and by age, and are outside too', async () => {
    let now = Date.now();
    const replica = await stage.replica({ origin: 'when', everyEntries: 100, everyMs: 60_000, clock: { nowMs: () => now } });
    const { checkpoints, store, kept, audit } = replica;
    await checkpoints.tick();
    expect(await store.newest()).toBeNull();
    await fill(audit, 50);
    await checkpoints.tick();
    expect(await store.newest()).toBeNull();
    await fill(audit, 200);
    await checkpoints.tick();
    expect((await store.newest())!.size).toBe(250);
    // The ones between are there as well: a finding is then told to within so many entries.
    expect([(await store.at(100))?.size, (await store.at(200))?.size]).toEqual([100, 200]);
    await fill(audit, 1);
    await checkpoints.tick();
    expect((await store.newest())!.size).toBe(250);
    now += 61_000;
    await checkpoints.tick();
    expect((await store.newest())!.size).toBe(251);
    // A clock that went back puts nothing off.
    await fill(audit, 1);
    now -= 600_000;
    await checkpoints.tick();
    expect((await store.newest())!.size).toBe(252);
    expect((await store.verify((await kept.newest())!)).size).toBe(252);
    expect(await kept.verifierKeys()).toEqual([store.verifierKey]);
  });

  it('are shared by replicas, each of which writes them down for itself', async () => {
    const replicas = await Promise.all([1, 2, 3].map(() => stage.replica({ origin: 'shared', everyEntries: 10 })));
    for (let round = 0; round < 3; round += 1) {
      await fill(replicas[round]!.audit, 25);
      await Promise.all(replicas.map(({ checkpoints }) => checkpoints.tick()));
    }
    await Promise.all(replicas.map(({ checkpoints }) => checkpoints.sign()));
    await Promise.all(replicas.map(({ checkpoints }) => checkpoints.tick()));
    for (const { store, kept, audit } of replicas) {
      expect((await store.verify((await kept.newest())!)).size).toBe(75);
      expect(audit.haltedBecause()).toBeNull();
    }
  });

  it('go on where a replica died in its turn', async () => {
    const dead = await stage.replica({ origin: 'dead' });
    await fill(dead.audit, 5);
    await stage.superuser.query("INSERT INTO keyguard.audit_checkpoint_turns VALUES ('dead', 'somebody', $1)", [Date.now() + 25_000]);
    const other = await stage.replica({ origin: 'dead', everyEntries: 5 });
    await other.checkpoints.tick();
    expect(await other.store.newest()).toBeNull();
    const later = await stage.replica({ origin: 'dead', everyEntries: 5, clock: { nowMs: () => Date.now() + 30_000 } });
    await later.checkpoints.tick();
    expect((await later.store.newest())!.size).toBe(5);
    // And where its turn lasts longer than any does, because its clock was ahead.
    const ahead = await stage.replica({ origin: 'ahead', everyEntries: 5 });
    await fill(ahead.audit, 5);
    await stage.superuser.query("INSERT INTO keyguard.audit_checkpoint_turns VALUES ('ahead', 'somebody', $1)", [Date.now() + 3_600_000]);
    await ahead.checkpoints.tick();
    expect((await ahead.store.newest())!.size).toBe(5);
  });

  it('are not signed over what a writer of the database has added or changed, and nothing is appended after that is seen', async () => {
    const attacks: readonly [string, string][] = [
      ['a new entry changed', `UPDATE keyguard.secret_audit_logs SET entry = convert_to(replace(convert_from(entry, 'UTF8'), 'success', 'refused'), 'UTF8') WHERE origin = '%' AND seq = 15`],
      ['a signed entry of the open tile changed', `UPDATE keyguard.secret_audit_logs SET entry = convert_to(replace(convert_from(entry, 'UTF8'), 'success', 'refused'), 'UTF8') WHERE origin = '%' AND seq = 3`],
      ['the last ones dropped', `DELETE FROM keyguard.secret_audit_logs WHERE origin = '%' AND seq >= 5; UPDATE keyguard.audit_heads SET seq = 4 WHERE origin = '%'`],
      ['the last new ones dropped, head left', `DELETE FROM keyguard.secret_audit_logs WHERE origin = '%' AND seq >= 15`],
    ];
    for (const [i, [what, statement]] of attacks.entries()) {
      const origin = `attack${i}`;
      const { audit, checkpoints, store } = await stage.replica({ origin });
      await fill(audit, 10);
      await checkpoints.sign();
      await fill(audit, 10);
      await stage.tamper(...statement.replaceAll('%', origin).split('; '));
      await expect(checkpoints.sign(), what).rejects.toThrow('not the one that was signed for');
      expect((await store.newest())!.size, what).toBe(10);
      await expect(audit.record({ action: 'test.after', outcome: 'success', actor: 'system' }), what).rejects.toMatchObject({ name: 'UnavailableError' });
      await expect(stage.sql.transaction((tx) => audit.recordIn(tx, { action: 'test.after', outcome: 'success', actor: 'system' }))).rejects.toMatchObject({ name: 'UnavailableError' });
    }
  });

  it('are not written down outside where they do not continue what was written down there', async () => {
    const origin = 'replaced';
    const witness = await stage.replica({ origin });
    await fill(witness.audit, 10);
    await witness.checkpoints.sign();
    const known = await witness.kept.newest();
    // The log was begun anew, and somebody who knows of nothing outside has signed for more of it.
    await stage.tamper(...['secret_audit_logs', 'audit_heads', 'audit_checkpoints'].map((table) => `DELETE FROM keyguard.${table} WHERE origin = '${origin}'`));
    const blind = await stage.replica({ origin });
    await fill(blind.audit, 20, 100);
    await blind.checkpoints.sign();
    expect((await witness.store.newest())!.size).toBe(20);
    await expect(witness.checkpoints.tick()).rejects.toThrow(`its first 10 entries have another root than what is kept in ${witness.kept.folder}`);
    expect(await gathered(witness.kept.all())).toEqual([known]);
    expect(witness.audit.haltedBecause()).toContain('its first 10 entries');
    // One that has only just started has looked there too.
    const restarted = await stage.replica({ origin, folder: witness.kept.folder });
    await expect(restarted.checkpoints.tick()).rejects.toThrow('its first 10 entries');
    expect(await gathered(witness.kept.all())).toEqual([known]);
  });

  it('are not signed where two of one size have different roots', async () => {
    const { audit, checkpoints, store, kept, keys } = await stage.replica({ origin: 'forked' });
    await fill(audit, 10);
    await checkpoints.sign();
    const other = await stage.replica({ origin: 'forked' });
    await other.kept.add(await signCheckpoint(auditCheckpoint({ origin: 'forked', size: 10, root: new Uint8Array(32), headMac: new Uint8Array(32) }), keys.checkpointSigner));
    await fill(audit, 5);
    await expect(other.checkpoints.sign()).rejects.toThrow('two checkpoints of 10 entries have different roots');
    expect([(await store.newest())!.size, other.audit.haltedBecause()]).toEqual([10, expect.stringContaining('different roots')]);
    await checkpoints.sign();
    expect((await store.verify((await kept.newest())!)).size).toBe(15);
  });

  it('are refused where a row is one that this deployment did not sign', async () => {
    const { audit, checkpoints, store } = await stage.replica({ origin: 'forged' });
    await fill(audit, 10);
    await checkpoints.sign();
    await fill(audit, 10);
    await stage.tamper("INSERT INTO keyguard.audit_checkpoints SELECT origin, 15, root_hash, signed_note, created_at_ms FROM keyguard.audit_checkpoints WHERE origin = 'forged'");
    await expect(store.newest()).rejects.toMatchObject({ name: 'UnavailableError', seam: 'audit_checkpoints' });
    await expect(checkpoints.sign()).rejects.toMatchObject({ name: 'UnavailableError' });
  });
});

describe('the folder outside', () => {
  it('is read past lines that were cut off, and a later line does not run into one', async () => {
    const kept = keptCheckpoints(join(await stage.newFolder(), 'deep', 'folder'));
    expect([await kept.newest(), await kept.verifierKeys()]).toEqual([null, []]);
    await kept.add('first\nnote\n');
    await appendFile(join(kept.folder, 'checkpoints.jsonl'), '{"note":"cut o');
    expect(await kept.newest()).toBe('first\nnote\n');
    await kept.add('second');
    expect(await kept.newest()).toBe('second');
    expect(await gathered(kept.all())).toEqual(['first\nnote\n', 'second']);
    await kept.addVerifierKey('key');
    await kept.addVerifierKey('key');
    expect(await readFile(join(kept.folder, 'verifier-keys.txt'), 'utf8')).toBe('key\n');
  });

  it('finds the newest one behind a great deal of what is none', async () => {
    const kept = keptCheckpoints(join(await stage.newFolder(), 'long'));
    await kept.add('the note');
    await appendFile(join(kept.folder, 'checkpoints.jsonl'), `${'no checkpoint\n'.repeat(30_000)}`);
    expect(await kept.newest()).toBe('the note');
  });
});
