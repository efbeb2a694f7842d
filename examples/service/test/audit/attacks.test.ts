/**
 * Every attack on the audit log that SECURITY names, made on the real tables by somebody whom nothing binds, and told by name by the
 * service's own verification: from an intact log each time.
 */
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { sealEntries } from '@keyguard/core/audit';
import { auditCheckpoint, signCheckpoint } from '@keyguard/core/checkpoint';
import type { AuditEntry, AuditRecord, JsonValue } from '@keyguard/core/seams';
import { verifyLog, type Verification } from '../../src/audit/verification.ts';
import { fill, gathered, openLogStage, type LogStage, type Replica } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const TABLES = ['secret_audit_logs', 'audit_heads', 'audit_checkpoints', 'audit_tree_tiles'];
const LOGS = 'keyguard.secret_audit_logs';
let stage: LogStage;
let log: Replica;

beforeAll(async () => {
  stage = await openLogStage();
  log = await stage.replica({ folder: join(await stage.newFolder(), 'checkpoints') });
  for (let round = 0; round < 3; round += 1) {
    await fill(log.audit, 20, round * 20);
    await log.checkpoints.sign();
  }
  await fill(log.audit, 5, 60);
  await stage.tamper(...TABLES.map((name) => `CREATE TABLE public.${name}_kept AS SELECT * FROM keyguard.${name}`));
});
afterAll(() => stage.close());

async function heal(): Promise<void> {
  await stage.tamper(...TABLES.flatMap((name) => [`DELETE FROM keyguard.${name}`, `INSERT INTO keyguard.${name} SELECT * FROM public.${name}_kept`]));
}

const verify = (): Promise<Verification> => verifyLog({ sql: stage.sql, keys: log.keys, kept: log.kept, origin: log.audit.origin });

async function found(): Promise<readonly string[]> {
  const { verdict, findings } = await verify();
  expect(verdict).toBe('attacked');
  return findings.map(({ attack, range }) => (range === null ? attack : `${attack} ${range.from}-${range.to}`));
}

const move = (size: number): string => `UPDATE keyguard.audit_heads SET seq = ${size - 1}, mac = (SELECT mac FROM ${LOGS} WHERE seq = ${size - 1})`;

/** The rows as `records` say, without regard to what was there. */
async function rewrite(records: readonly AuditRecord[]): Promise<void> {
  const hex = (bytes: Uint8Array): string => `decode('${Buffer.from(bytes).toString('hex')}', 'hex')`;
  await stage.tamper(
    `DELETE FROM ${LOGS}`,
    ...records.map(({ seq, bytes, prevMac, mac, macKeyId }) => {
      const { actor, action, resource, outcome, ts } = JSON.parse(new TextDecoder().decode(bytes)) as Record<string, string>;
      return `INSERT INTO ${LOGS} (origin, seq, ts_ms, actor, action, resource, outcome, entry, prev_mac, mac, mac_key_id)
        VALUES ('${log.audit.origin}', ${seq}, ${Date.parse(ts!)}, '${actor}', '${action}', '${resource}', '${outcome}', ${hex(bytes)}, ${hex(prevMac)}, ${hex(mac)}, '${macKeyId}')`;
    }),
    move(records.length),
  );
}

/** What a holder of the MAC key can make of the entries from `from` on. */
async function resealed(from: number, change: (entries: AuditEntry[]) => AuditEntry[]): Promise<AuditRecord[]> {
  const before = await gathered(log.audit.sink.read(0));
  const entries = before.slice(from).map(({ bytes }) => {
    const { origin: _o, seq: _s, ts: _t, ...entry } = JSON.parse(new TextDecoder().decode(bytes)) as Record<string, JsonValue>;
    return entry as unknown as AuditEntry;
  });
  const sealed = await sealEntries({
    origin: log.audit.origin, seq: from, prevMac: from === 0 ? new Uint8Array(32) : before[from - 1]!.mac, nowMs: Date.now(), key: log.keys.auditMac.macKey, entries: change(entries),
  });
  return [...before.slice(0, from), ...sealed];
}

it('an intact log is intact, and proven as far as it was signed for', async () => {
  expect(await verify()).toMatchObject({ verdict: 'intact', records: 65, provenSize: 60, macs: 'right', findings: [] });
});

const attacks: readonly [string, () => Promise<void>, readonly (string | RegExp)[]][] = [
  ['edit', () => stage.tamper(`UPDATE ${LOGS} SET entry = convert_to(replace(convert_from(entry, 'UTF8'), 'success', 'refused'), 'UTF8') WHERE seq = 33`), ['edit 33-34', /edit/]],
  ['edit of what nothing is signed for yet', () => stage.tamper(`UPDATE ${LOGS} SET entry = convert_to(replace(convert_from(entry, 'UTF8'), 'success', 'refused'), 'UTF8') WHERE seq = 62`), ['edit 62-63', /edit/]],
  ['edit of the columns alone, by which entries are shown and found', () => stage.tamper(`UPDATE ${LOGS} SET actor = 'user:somebody-else' WHERE seq = 7`), ['edit 7-8']],
  ['insert', async () => {
    await stage.tamper(`UPDATE ${LOGS} SET seq = seq + 1000 WHERE seq >= 30`, `UPDATE ${LOGS} SET seq = seq - 999 WHERE seq >= 1000`,
      `INSERT INTO ${LOGS} SELECT origin, 30, ts_ms, actor, device_id, action, resource, outcome, ip, request_id, entry, prev_mac, mac, mac_key_id FROM ${LOGS} WHERE seq = 10`, move(66));
  }, [/^insert/]],
  ['reorder', () => stage.tamper(`UPDATE ${LOGS} SET seq = 900 WHERE seq = 40`, `UPDATE ${LOGS} SET seq = 40 WHERE seq = 41`, `UPDATE ${LOGS} SET seq = 41 WHERE seq = 900`), [/^reorder 40-42/]],
  ['drop middle', () => stage.tamper(`DELETE FROM ${LOGS} WHERE seq BETWEEN 25 AND 27`), [/^drop-middle 25-28/]],
  ['drop tail', () => stage.tamper(`DELETE FROM ${LOGS} WHERE seq >= 50`), [/^drop-tail 50-65/]],
  ['drop all', () => stage.tamper(`DELETE FROM ${LOGS}`, 'DELETE FROM keyguard.audit_heads', 'DELETE FROM keyguard.audit_checkpoints'), [/^drop-all 0-60/]],
  ['restored old database', () => stage.tamper(`DELETE FROM ${LOGS} WHERE seq >= 30`, move(30), 'DELETE FROM keyguard.audit_checkpoints WHERE tree_size > 30'), [/^restored-old-database 30-60/]],
  ['rewrite by a key holder', async () => rewrite(await resealed(45, (entries) => entries.map((entry, i) => (i === 2 ? { ...entry, actor: 'user:innocent' } : entry)))), [/^rewrite-by-key-holder 40-60/]],
  ['swapped checkpoint', () => stage.tamper("UPDATE keyguard.audit_checkpoints SET signed_note = replace(signed_note, E'\\n60\\n', E'\\n50\\n')"), [/^swapped-checkpoint/]],
  ['fork', async () => {
    // Two processes went on from one state, and both signed.
    const other = await resealed(40, (entries) => entries.map((entry) => ({ ...entry, actor: 'user:other-branch' })));
    await rewrite(other);
    await stage.tamper('DELETE FROM keyguard.audit_checkpoints WHERE tree_size > 40', 'DELETE FROM keyguard.audit_tree_tiles');
    const blind = await stage.replica();
    await blind.checkpoints.sign();
  }, [/^fork/]],
];

it.each(attacks)('%s is named', async (_what, attack, names) => {
  await heal();
  await attack();
  const told = await found();
  expect(told.length).toBeGreaterThan(0);
  expect(told[0]).toMatch(names[0]!);
  for (const one of told) expect(names.some((name) => (typeof name === 'string' ? name === one : name.test(one))), `${one} of ${told.join(', ')}`).toBe(true);
});

it('is itself again where all was put back', async () => {
  await heal();
  expect((await verify()).verdict).toBe('intact');
  const { sql, keys, kept } = { ...log, sql: stage.sql };
  // A checkpoint by nobody, among those that are kept.
  await kept.add(await signCheckpoint(auditCheckpoint({ origin: log.audit.origin, size: 3, root: new Uint8Array(32), headMac: new Uint8Array(32) }), await stranger()));
  expect((await verifyLog({ sql, keys, kept, origin: log.audit.origin })).findings.map(({ attack }) => attack)).toEqual(['swapped-checkpoint']);
});

async function stranger(): Promise<Replica['keys']['checkpointSigner']> {
  const { privateKey, publicKey } = (await crypto.subtle.generateKey('Ed25519', true, ['sign', 'verify'])) as CryptoKeyPair;
  return { publicKey: new Uint8Array(await crypto.subtle.exportKey('raw', publicKey)), sign: async (data) => new Uint8Array(await crypto.subtle.sign('Ed25519', privateKey, data)) };
}
