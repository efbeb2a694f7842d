/**
 * Which entry is the last about a thing, while somebody whom nothing binds changes the log: found by the bytes that are chained, whatever
 * the columns beside them say.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { AuditEntry } from '@keyguard/core/seams';
import { announcements, isIndexed, type Announcement, type AnnouncementKind, type AnnouncementsOptions } from '../../src/audit/announcements.ts';
import { auditOrigin } from '../../src/audit/log.ts';
import { asJobs } from '../../src/db/as-user.ts';
import { openLogStage, type LogStage, type Replica } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const LOGS = 'keyguard.secret_audit_logs';
let stage: LogStage;
let log: Replica;
beforeAll(async () => {
  stage = await openLogStage();
  log = await stage.replica();
});
afterAll(() => stage.close());

const entry = (action: string, resource: string, more: Readonly<Record<string, string | number>> = {}): AuditEntry => ({ action, outcome: 'success', actor: 'user:1', resource, ...more });
const append = (...entries: readonly AuditEntry[]): Promise<unknown> => log.audit.sink.append(entries);

/** The last word about `resource`, as a process learns it that has just started, or that of `of`. */
async function lastWord(kind: AnnouncementKind, resource: string, of = announcements(options())): Promise<Announcement | null> {
  const row = await asJobs(stage.sql, (tx) => of.newest(tx, kind, resource));
  return row === undefined ? null : of.entryIn(row, kind, resource);
}
const options = (more: Partial<AnnouncementsOptions> = {}): AnnouncementsOptions => ({ origin: log.audit.origin, auditMac: log.keys.auditMac, ...more });

describe('the last word', () => {
  it('is found whatever the columns beside it were changed to', async () => {
    for (const [i, change] of ["resource = 'secret:of-nobody'", 'resource = NULL', "action = 'secret.reveal'", "action = 'secret.destroy_version'", 'ts_ms = 0'].entries()) {
      const resource = `secret:hidden-${i}`;
      await append(entry('secret.create', resource, { version: 1 }), entry('secret.add_version', resource, { version: 2 }));
      await stage.tamper(`UPDATE ${LOGS} SET ${change} WHERE resource = '${resource}' AND action = 'secret.add_version'`);
      expect(await lastWord('version', resource), change).toMatchObject({ action: 'secret.add_version', version: 2 });
    }
  });

  it('is no entry that only the columns make one', async () => {
    await append(entry('secret.create', 'secret:a', { version: 1 }), entry('secret.add_version', 'secret:a', { version: 2 }), entry('secret.reveal', 'secret:a', { version: 1 }));
    await stage.tamper(`UPDATE ${LOGS} SET action = 'secret.restore_version' WHERE resource = 'secret:a' AND action = 'secret.reveal'`);
    expect(await lastWord('version', 'secret:a')).toMatchObject({ version: 2 });
    await append(entry('secret.add_version', 'secret:b', { version: 9 }));
    await stage.tamper(`UPDATE ${LOGS} SET resource = 'secret:a' WHERE resource = 'secret:b'`);
    expect(await lastWord('version', 'secret:a')).toMatchObject({ version: 2 });
  });

  it('is nothing where the bytes of it were changed into another one, which bear no MAC', async () => {
    await append(entry('secret.create', 'secret:c', { version: 1 }), entry('secret.reveal', 'secret:c', { version: 1 }));
    await stage.tamper(`UPDATE ${LOGS} SET entry = convert_to(replace(convert_from(entry, 'UTF8'), 'secret.reveal', 'secret.create'), 'UTF8') WHERE resource = 'secret:c' AND action = 'secret.reveal'`);
    expect(await lastWord('version', 'secret:c')).toBeNull();
  });

  it('is of the kind that was asked for, also by who reads the row', async () => {
    await append(entry('api_key.create', 'api_key:a', { revision: 1 }), entry('api_key.destroy_version', 'api_key:a', { version: 1 }));
    const of = announcements(options());
    const [destruction] = await asJobs(stage.sql, (tx) => of.all(tx, 'destruction', 'api_key:a'));
    expect(await of.entryIn(destruction!, 'destruction', 'api_key:a')).toMatchObject({ version: 1 });
    expect(await of.entryIn(destruction!, 'row', 'api_key:a')).toBeNull();
    expect(await of.entryIn(destruction!, 'destruction', 'api_key:b')).toBeNull();
    expect(await lastWord('row', 'api_key:a')).toMatchObject({ revision: 1 });
  });

  it('of chains before this one is that of the entry that says the latest time, whatever the column says', async () => {
    const older = await stage.replica({ origin: auditOrigin(`${log.keys.deploymentId}-older`) });
    const newer = await stage.replica({ origin: auditOrigin(`${log.keys.deploymentId}-newer`) });
    await older.audit.sink.append([entry('secret.create', 'secret:d', { version: 1 })]);
    await new Promise((resolve) => setTimeout(resolve, 5));
    await newer.audit.sink.append([entry('secret.add_version', 'secret:d', { version: 2 })]);
    await stage.tamper(`UPDATE ${LOGS} SET ts_ms = 9000000000000000 WHERE origin = '${older.audit.origin}'`);
    expect(await lastWord('version', 'secret:d')).toMatchObject({ version: 2 });
    // And the chain that is written to goes before them all.
    await append(entry('secret.restore_version', 'secret:d', { version: 3 }));
    expect(await lastWord('version', 'secret:d')).toMatchObject({ version: 3 });
  });

  it('of chains before this one is not an older one where the newest cannot be read', async () => {
    for (const [name, version] of [['legible', 1], ['illegible', 2]] as const) {
      const { audit } = await stage.replica({ origin: auditOrigin(`${log.keys.deploymentId}-${name}`) });
      await audit.sink.append([entry('secret.add_version', 'secret:j', { version })]);
    }
    await stage.tamper(`UPDATE ${LOGS} SET entry = entry || '}'::bytea WHERE resource = 'secret:j' AND origin LIKE '%-illegible%'`);
    expect(await lastWord('version', 'secret:j')).toBeNull();
  });

  it('is found in a chain that is shorter than the one where it was before', async () => {
    const [before, now] = await Promise.all(['before', 'now'].map((name) => stage.replica({ origin: auditOrigin(`${log.keys.deploymentId}-${name}`) })));
    await before!.audit.sink.append([entry('secret.reveal', 'secret:k'), entry('secret.create', 'secret:k', { version: 1 })]);
    const of = announcements(options({ origin: now!.audit.origin }));
    expect(await lastWord('version', 'secret:k', of)).toMatchObject({ version: 1 });
    await now!.audit.sink.append([entry('secret.add_version', 'secret:k', { version: 2 })]);
    expect(await lastWord('version', 'secret:k', of)).toMatchObject({ version: 2 });
  });
});

describe('what was seen once', () => {
  it('is missed when it is cut out of the log, and by nobody who has not seen it', async () => {
    await append(entry('secret.create', 'secret:e', { version: 1 }), entry('secret.add_version', 'secret:e', { version: 2 }));
    const of = announcements(options());
    expect(await lastWord('version', 'secret:e', of)).toMatchObject({ version: 2 });
    await stage.tamper(`DELETE FROM ${LOGS} WHERE resource = 'secret:e' AND action = 'secret.add_version'`);
    expect(await lastWord('version', 'secret:e', of)).toBeNull();
    expect(await lastWord('version', 'secret:e')).toMatchObject({ version: 1 });
  });

  it('is missed also where an older one was read after it', async () => {
    await append(entry('secret.create', 'secret:l', { version: 1 }));
    const of = announcements(options());
    const older = (await asJobs(stage.sql, (tx) => of.newest(tx, 'version', 'secret:l')))!;
    await append(entry('secret.add_version', 'secret:l', { version: 2 }));
    expect(await lastWord('version', 'secret:l', of)).toMatchObject({ version: 2 });
    expect(await of.entryIn(older, 'version', 'secret:l')).toMatchObject({ version: 1 });
    await stage.tamper(`DELETE FROM ${LOGS} WHERE resource = 'secret:l' AND action = 'secret.add_version'`);
    expect(await lastWord('version', 'secret:l', of)).toBeNull();
  });

  it('is not what a transaction looked at that may be rolled back', async () => {
    await append(entry('secret.create', 'secret:f', { version: 1 }));
    const of = announcements(options());
    await expect(
      asJobs(stage.sql, async (tx) => {
        await log.audit.sink.appendIn(tx, [entry('secret.add_version', 'secret:f', { version: 2 })]);
        expect(await of.entryIn((await of.newest(tx, 'version', 'secret:f'))!, 'version', 'secret:f', true)).toMatchObject({ version: 2 });
        throw new Error('rolled back');
      }),
    ).rejects.toThrow('rolled back');
    expect(await lastWord('version', 'secret:f', of)).toMatchObject({ version: 1 });
  });

  it('is forgotten for what was seen later, so that memory stays bounded', async () => {
    const names = ['secret:g', 'secret:h', 'secret:i'];
    for (const name of names) await append(entry('secret.create', name, { version: 1 }), entry('secret.add_version', name, { version: 2 }));
    const of = announcements(options({ remembered: 2 }));
    for (const name of names) await lastWord('version', name, of);
    await stage.tamper(`DELETE FROM ${LOGS} WHERE resource IN ('secret:g', 'secret:h', 'secret:i') AND action = 'secret.add_version'`);
    for (const name of ['secret:i', 'secret:h']) expect(await lastWord('version', name, of), name).toBeNull();
    expect(await lastWord('version', 'secret:g', of)).toMatchObject({ version: 1 });
  });
});

describe('the database', () => {
  const told = async (bytes: Uint8Array): Promise<string | null> =>
    (await stage.superuser.query<{ told: string | null }>('SELECT keyguard.announcement($1) AS told', [bytes])).rows[0]!.told;
  const bytesOf = (value: object): Uint8Array => new TextEncoder().encode(JSON.stringify(value));

  it('reads each action as the program does', async () => {
    const kinds = { version: ['create', 'add_version', 'restore_version', 'delete'], destruction: ['destroy_version'] };
    for (const [kind, actions] of Object.entries(kinds)) {
      for (const action of actions) expect(await told(bytesOf(entry(`secret.${action}`, 'secret:x')))).toBe(`${kind} secret:x`);
    }
    for (const action of ['create', 'import', 'adopt', 'rotate', 'restore_version', 'update', 'set_default', 'displace', 'revoke']) {
      expect(await told(bytesOf(entry(`api_key.${action}`, 'api_key:x')))).toBe('row api_key:x');
    }
    expect(await told(bytesOf(entry('api_key.destroy_version', 'api_key:x')))).toBe('destruction api_key:x');
    for (const action of ['secret.reveal', 'secret.update', 'secret.created', 'api_key.test', 'xsecret.create', '']) expect(await told(bytesOf(entry(action, 'secret:x')))).toBeNull();
  });

  it('takes no text in an entry for a member of it, and no bytes for a fault', async () => {
    const tricky = fc.oneof(fc.string({ unit: 'binary' }), fc.constantFrom('{"action":"secret.delete"', ',"resource":"secret:other"', '\\', '"', ',"action":"secret.create","resource":"secret:other"'));
    await fc.assert(
      fc.asyncProperty(tricky, tricky, async (before, after) => {
        // Members in the order in which entries are written.
        expect(await told(bytesOf({ aaa: before, action: 'secret.create', actor: after, code: before, resource: 'secret:x', zzz: after }))).toBe('version secret:x');
        expect(await told(bytesOf({ aaa: before, action: 'secret.reveal', actor: after, resource: 'secret:x', zzz: before }))).toBeNull();
      }),
      { numRuns: 100 },
    );
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => {
        expect(await told(bytes)).toBeNull();
      }),
      { numRuns: 50 },
    );
  });

  it('finds it by an index, as the role that asks', async () => {
    const plan = await asJobs(stage.sql, async (tx) => {
      await tx.query('SET LOCAL enable_seqscan = off');
      return (await tx.query<Record<string, string>>(`EXPLAIN SELECT seq FROM ${LOGS} WHERE origin = 'x' AND keyguard.announcement(entry) = 'version secret:x' AND ${isIndexed('entry')} ORDER BY seq DESC LIMIT 1`)).rows;
    });
    expect(plan.map((row) => Object.values(row)[0]).join('\n')).toMatch(/Index Scan.* using secret_audit_logs_by_announcement[\s\S]+Index Cond: \(keyguard\.announcement\(entry\) = /);
  });
});
