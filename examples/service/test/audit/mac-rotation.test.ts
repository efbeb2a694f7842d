/** The MAC key of the log changes while replicas append, and every entry of before and after verifies. */
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { verifyRecords } from '@keyguard/core/audit';
import { createMacRotation, type MacRotation } from '../../src/audit/mac-rotation.ts';
import { fill, gathered, openLogStage, type LogStage, type Replica } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

let stage: LogStage;
beforeAll(async () => {
  stage = await openLogStage();
});
afterAll(() => stage.close());

const rotationOf = ({ keys, audit }: Replica, distributedAfterMs = 0): MacRotation => createMacRotation({ sql: stage.sql, auditMac: keys.auditMac, audit, distributedAfterMs });

async function keyIds(): Promise<readonly string[]> {
  const fresh = await stage.replica();
  const records = await gathered(fresh.audit.sink.read(0));
  // Whoever starts now verifies all of it.
  expect((await verifyRecords(records, { origin: fresh.audit.origin, keys: fresh.keys.auditMac.all })).seq).toBe(records.length);
  return records.map(({ macKeyId }) => macKeyId).filter((id, i, ids) => id !== ids[i - 1]);
}

describe('a change of the MAC key', () => {
  it('is begun by one of many, ended by any replica, and followed by all', async () => {
    const replicas = await Promise.all([1, 2, 3].map(() => stage.replica()));
    const rotations = replicas.map((replica) => rotationOf(replica));
    await fill(replicas[0]!.audit, 10);
    const begun = await Promise.allSettled(rotations.map((rotation) => rotation.begin('user:admin')));
    expect(begun.map(({ status }) => status).toSorted()).toEqual(['fulfilled', 'rejected', 'rejected']);
    expect(begun.find((each) => each.status === 'rejected')!.reason).toMatchObject({ code: 'illegal_transition' });
    // Nobody writes with it before it is promoted.
    await Promise.all(replicas.map(({ audit }, i) => fill(audit, 5, i)));
    expect(await keyIds()).toHaveLength(1);
    // Every replica has asked by now, as each does every second.
    await Promise.all(replicas.map(({ keys }) => keys.auditMac.reload()));
    // Whoever began it is gone: the others end it, at once and while all append.
    const beginner = begun.findIndex((each) => each.status === 'fulfilled');
    const { to } = (begun[beginner] as PromiseFulfilledResult<{ to: string }>).value;
    await Promise.all([...rotations.filter((_, i) => i !== beginner).map((rotation) => rotation.tick()), ...replicas.map(({ audit }) => fill(audit, 20))]);
    await Promise.all(replicas.map(({ audit }) => fill(audit, 20)));
    const ids = await keyIds();
    expect(ids).toHaveLength(2);
    expect(ids[1]).toBe(to);
    await rotations[beginner]!.tick();
    const fresh = await stage.replica();
    expect([fresh.keys.auditMac.macKey.keyId, fresh.keys.auditMac.previousMacKeys.length]).toEqual([to, 1]);
    const { rows } = await stage.superuser.query<{ n: number }>("SELECT count(*)::int AS n FROM keyguard.secret_audit_logs WHERE action = 'audit_mac_key.promote'");
    expect(rows[0]!.n).toBe(1);
  });

  it('waits until every replica can have heard of it', async () => {
    const replica = await stage.replica();
    const rotation = rotationOf(replica, 60_000);
    const before = replica.keys.auditMac.macKey.keyId;
    const { to } = await rotation.begin('user:admin');
    await rotation.tick();
    expect([replica.keys.auditMac.macKey.keyId, replica.keys.auditMac.nextMacKey.keyId]).toEqual([before, to]);
    // The same one is gone on with by a process that starts later.
    await rotationOf(await stage.replica()).tick();
    await rotation.tick();
    expect(replica.keys.auditMac.macKey.keyId).toBe(to);
    const { rows } = await stage.superuser.query<{ entry: Uint8Array }>("SELECT entry FROM keyguard.secret_audit_logs WHERE action LIKE 'audit_mac_key.%' ORDER BY seq DESC LIMIT 2");
    expect(rows.map(({ entry }) => JSON.parse(Buffer.from(entry).toString('utf8')))).toMatchObject([
      { action: 'audit_mac_key.promote', actor: 'system', from_key_id: before, to_key_id: to },
      { action: 'audit_mac_key.rotate', actor: 'user:admin', from_key_id: before, to_key_id: to },
    ]);
  });

  it('reaches a replica that heard of nothing when it meets the first entry under the new key', async () => {
    const deaf = await stage.replica();
    await fill(deaf.audit, 1);
    for (let round = 0; round < 2; round += 1) {
      const other = await stage.replica();
      const rotation = rotationOf(other);
      await rotation.begin('user:admin');
      await rotation.tick();
      await fill(other.audit, 1);
    }
    await deaf.audit.record({ action: 'test.deaf', outcome: 'success', actor: 'system' });
    await stage.sql.transaction(async (tx) => {
      await tx.query('SET LOCAL ROLE kg_jobs');
      await deaf.audit.recordIn(tx, { action: 'test.deaf', outcome: 'success', actor: 'system' });
    });
    expect(new Set(await keyIds()).size).toBe((await keyIds()).length);
    // Nor does one halt that appends nothing, and signs for what it cannot have heard of.
    const signing = await stage.replica();
    const last = await stage.replica();
    const rotation = rotationOf(last);
    await rotation.begin('user:admin');
    await rotation.tick();
    await fill(last.audit, 1);
    await signing.checkpoints.sign();
    expect(signing.audit.haltedBecause()).toBeNull();
    // Checkpoints span all of it.
    await deaf.checkpoints.sign();
    expect(deaf.audit.haltedBecause()).toBeNull();
  });
});
