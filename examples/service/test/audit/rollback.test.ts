/** A database that is behind what was signed for, or another one, is refused until somebody answers for it; and what is lost stays on record. */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { readRestore } from '@keyguard/core/checkpoint';
import { assertNotRolledBack, RolledBackError } from '../../src/audit/rollback.ts';
import { fill, gathered, openLogStage, type LogStage, type Replica } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

let stage: LogStage;
let first: Replica;
let folder = '';
const ask = (replica: Replica, acknowledged: string | null = null): ReturnType<typeof assertNotRolledBack> =>
  assertNotRolledBack({ sql: stage.sql, keys: replica.keys, kept: replica.kept, acknowledged });
const tokenOf = async (refused: Promise<unknown>): Promise<string> => {
  const error = await refused.then(() => null, (reason: unknown) => reason);
  expect(error).toBeInstanceOf(RolledBackError);
  return /KEYGUARD_ACKNOWLEDGE_RESTORE=([0-9a-f]{16})/.exec((error as Error).message)![1]!;
};

beforeAll(async () => {
  stage = await openLogStage();
  folder = join(await stage.newFolder(), 'checkpoints');
  first = await stage.replica({ folder });
  await fill(first.audit, 700);
  await first.checkpoints.sign();
  await fill(first.audit, 10);
});
afterAll(() => stage.close());

/** Does something to the log, and takes it back. */
async function whileTampered(statements: readonly string[], work: () => Promise<void>): Promise<void> {
  const tables = ['secret_audit_logs', 'audit_heads', 'audit_checkpoints', 'audit_tree_tiles', 'audit_chains'];
  await stage.tamper(...tables.map((name) => `CREATE TABLE public.${name}_kept AS SELECT * FROM keyguard.${name}`), ...statements);
  try {
    await work();
  } finally {
    await stage.tamper(
      ...tables.map((name) => `DELETE FROM keyguard.${name}`),
      ...tables.map((name) => `INSERT INTO keyguard.${name} SELECT * FROM public.${name}_kept`),
      ...tables.map((name) => `DROP TABLE public.${name}_kept`),
    );
  }
}

/** What a backup of 300 entries gives back. */
const OLDER = [
  'DELETE FROM keyguard.secret_audit_logs WHERE seq >= 300',
  'UPDATE keyguard.audit_heads h SET seq = 299, mac = (SELECT mac FROM keyguard.secret_audit_logs l WHERE l.origin = h.origin AND l.seq = 299)',
  'DELETE FROM keyguard.audit_checkpoints WHERE tree_size > 300',
  'DELETE FROM keyguard.audit_tree_tiles WHERE level > 0 OR place > 0',
];

describe('a start', () => {
  it('goes on where nothing was kept yet, and where all that was signed for is there', async () => {
    expect((await ask(await stage.replica())).origin).toBe(first.audit.origin);
    expect((await ask(first)).number).toBe(0);
  });

  it('refuses an older state, a deleted log, another log and another history, and says what to do', async () => {
    const cases: readonly [string, readonly string[], RegExp][] = [
      ['restored', OLDER, /300 entries, and 700 were signed for/],
      ['tail cut', ['DELETE FROM keyguard.secret_audit_logs WHERE seq >= 650', 'UPDATE keyguard.audit_heads SET seq = 649'], /650 entries/],
      ['tail cut, head left', ['DELETE FROM keyguard.secret_audit_logs WHERE seq >= 650'], /entry 699, which was signed for, is not there/],
      ['deleted', ['DELETE FROM keyguard.secret_audit_logs', 'DELETE FROM keyguard.audit_heads', 'DELETE FROM keyguard.audit_checkpoints', 'DELETE FROM keyguard.audit_tree_tiles'], /0 entries/],
      ['changed in the open tile', ["UPDATE keyguard.secret_audit_logs SET entry = convert_to('{}', 'UTF8') WHERE seq = 690"], /not those that were signed for/],
      ['tiles of another history', ["UPDATE keyguard.audit_tree_tiles SET hashes = decode(repeat('00', 8192), 'hex'), root = decode(repeat('00', 32), 'hex')"], /not those that were signed for/],
      ['last MAC changed', ["UPDATE keyguard.secret_audit_logs SET mac = decode(repeat('00', 32), 'hex') WHERE seq = 699"], /not those that were signed for/],
    ];
    for (const [what, statements, message] of cases) {
      await whileTampered(statements, async () => {
        await expect(ask(first), what).rejects.toThrow(message);
        await expect(ask(first, '0123456789abcdef'), what).rejects.toThrow(RolledBackError);
      });
    }
    expect((await ask(first)).number).toBe(0);
  });

  it('refuses a chain that a writer of the database has begun', async () => {
    await whileTampered(
      ["INSERT INTO keyguard.audit_chains VALUES (1, 'another', 0, 'k', decode(repeat('00', 32), 'hex'))"],
      () => expect(ask(first)).rejects.toMatchObject({ name: 'UnavailableError' }),
    );
  });

  it('refuses another deployment, and a note that nobody signed', async () => {
    const other = await openLogStage();
    try {
      const stranger = await other.replica({ folder });
      const refused = assertNotRolledBack({ sql: other.sql, keys: stranger.keys, kept: first.kept, acknowledged: null });
      const token = await tokenOf(refused);
      await expect(assertNotRolledBack({ sql: other.sql, keys: stranger.keys, kept: first.kept, acknowledged: null })).rejects.toThrow(/another log .* Database was replaced|another log/);
      const chain = await assertNotRolledBack({ sql: other.sql, keys: stranger.keys, kept: first.kept, acknowledged: token });
      expect(chain.number).toBe(1);
    } finally {
      await other.close();
    }
    const forged = await stage.replica();
    await forged.kept.add((await first.kept.newest())!.replace('\n700\n', '\n100\n'));
    await expect(ask(forged)).rejects.toThrow('signed by no key that is known');
  });
});

describe('an acknowledged restore', () => {
  it('goes on under a new name, cites what is lost, and is not asked for twice', async () => {
    await whileTampered(OLDER, async () => {
      const token = await tokenOf(ask(first));
      const lateFolder = join(await stage.newFolder(), 'late');
      const late = await stage.replica({ folder: lateFolder });
      await late.kept.addVerifierKey(first.store.verifierKey);
      await late.kept.add((await first.kept.newest())!);

      // Two that start at once begin one chain.
      const both = await Promise.allSettled([ask(first, token), ask(first, token)]);
      const begun = both.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []));
      expect(begun.length).toBeGreaterThan(0);
      const chain = begun[0]!;
      expect(chain.number).toBe(1);
      expect(chain.origin).toMatch(new RegExp(`^${first.audit.origin}-[0-9a-f]{12}$`));
      const again = await stage.replica({ folder, origin: chain.origin });
      const [record] = await gathered(again.audit.sink.read(0));
      const restore = readRestore(record!.bytes)!;
      expect([restore.actor, restore.keptSize, restore.oldCheckpoint]).toEqual(['operator', 300, await first.kept.newest()]);
      // Neither here, nor where the same checkpoint is kept; and later the new chain is held to its own checkpoints.
      expect(await ask(again)).toEqual(chain);
      expect(await ask(late)).toEqual(chain);
      await fill(again.audit, 20);
      await again.checkpoints.sign();
      expect(await ask(again)).toEqual(chain);
      await stage.tamper(`DELETE FROM keyguard.secret_audit_logs WHERE origin = '${chain.origin}' AND seq >= 10`, `UPDATE keyguard.audit_heads SET seq = 9 WHERE origin = '${chain.origin}'`);
      const second = await tokenOf(ask(again));
      expect(second).not.toBe(token);
      await expect(ask(again, token)).rejects.toThrow(RolledBackError);
      expect((await ask(again, second)).number).toBe(2);
      // What was lost before the first restore is still held to what was cited for it.
      expect((await ask(late)).number).toBe(2);
      await late.kept.add(await noteOf(710));
      await expect(ask(late)).rejects.toThrow(/answered for with a checkpoint of 700 entries, and one of 710 is kept here/);
    });
  });

  it('keeps what there is without a gap, whatever the database says that there is', async () => {
    await whileTampered([...OLDER, 'DELETE FROM keyguard.secret_audit_logs WHERE seq BETWEEN 100 AND 109'], async () => {
      const restored = await stage.replica();
      await restored.kept.addVerifierKey(first.store.verifierKey);
      await restored.kept.add((await gathered(first.kept.all()))[0]!);
      const chain = await ask(restored, await tokenOf(ask(restored)));
      const [record] = await gathered((await stage.replica({ origin: chain.origin })).audit.sink.read(0));
      expect(readRestore(record!.bytes)!.keptSize).toBe(100);
    });
  });

  it('that cites another history of the same length is noticed where the other one is kept', async () => {
    await whileTampered(OLDER, async () => {
      const holding = async (note: string): Promise<Replica> => {
        const replica = await stage.replica();
        await replica.kept.addVerifierKey(first.store.verifierKey);
        await replica.kept.add(note);
        return replica;
      };
      const note = (await gathered(first.kept.all()))[0]!;
      const restored = await holding(note);
      const chain = await ask(restored, await tokenOf(ask(restored)));
      // Somebody with the keys has signed for two logs of 700 entries, of which one was cited.
      await expect(ask(await holding(await noteOf(700)))).rejects.toThrow(/answered for with a checkpoint of 700 entries, and one of 700 is kept here/);
      expect(await ask(await holding(note))).toEqual(chain);
      // What is older than what was cited was answered for with it.
      expect(await ask(await holding(await noteOf(699)))).toEqual(chain);
    });
  });

  it('that did not know of a newer checkpoint is noticed where that one is kept', async () => {
    await whileTampered(OLDER, async () => {
      const older = await stage.replica();
      await older.kept.addVerifierKey(first.store.verifierKey);
      // A replica that was cut off from its folder early: all it knows of is the checkpoint before.
      const note = (await gathered(first.kept.all()))[0]!;
      await older.kept.add(note);
      await fill(first.audit, 1);
      await stage.tamper(...OLDER);
      const chain = await ask(older, await tokenOf(ask(older)));
      await first.kept.add(await noteOf(710));
      const token = await tokenOf(ask(first));
      await expect(ask(first)).rejects.toThrow(/answered for with a checkpoint of 700 entries, and one of 710 is kept here/);
      expect(await ask(first, token)).toEqual(chain);
      const last = (await gathered((await stage.replica({ origin: chain.origin })).audit.sink.read(1))).at(-1)!;
      expect(new TextDecoder().decode(last.bytes)).toContain('audit.newer_checkpoint_acknowledged');
    });
  });
});

/** Signed before the restore, as it were, of a log that is none. */
async function noteOf(size: number): Promise<string> {
  const { auditCheckpoint, signCheckpoint } = await import('@keyguard/core/checkpoint');
  return signCheckpoint(auditCheckpoint({ origin: first.audit.origin, size, root: new Uint8Array(32), headMac: new Uint8Array(32) }), first.keys.checkpointSigner);
}
