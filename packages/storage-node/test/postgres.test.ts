/**
 * What keeps users apart, and intruders out, when a program above makes a mistake: policies, grants, triggers and row MACs, on a
 * login that owns nothing. Then the migrations that make them.
 */
import { verifyRecords } from '@keyguard/core/audit';
import { hasCode, isUnavailable } from '@keyguard/core/errors';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import type { AuditRecord, AuditSink, EnrollmentRequest } from '@keyguard/core/seams';
import { createHash, randomBytes } from 'node:crypto';
import { cp, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  asRole,
  assertSafeRoles,
  grantRolesTo,
  migrate,
  nodeMacKey,
  pendingMigrations,
  postgresAdministrators,
  postgresAuditSink,
  postgresDeviceDirectory,
  postgresDeviceRegistry,
  postgresEnrollmentCodes,
  postgresKeyRecords,
  postgresReplayStore,
  postgresRotationCodes,
  type DeviceDirectory,
  type KeyguardRole,
  type KeyRecord,
  type PostgresDeviceRegistry,
  type SqlClient,
  type SqlTransaction,
} from '../src/postgres.ts';
import { runMigrations } from '../src/postgres/migrate.ts';
import { SUBSTRATES, type Database, type Substrate } from './postgres-substrate.ts';

const OWN_MIGRATIONS = fileURLToPath(new URL('../migrations', import.meta.url));
const ownFiles = async (): Promise<string[]> =>
  (await readdir(OWN_MIGRATIONS)).filter((name) => /^\d/.test(name)).toSorted().map((name) => `keyguard/${name}`);
const TABLES = ['administrators', 'audit_heads', 'device_keys', 'devices', 'enrollment_codes', 'kek_keys', 'nonce_floor',
  'rotation_codes', 'schema_migrations', 'secret_audit_logs', 'used_nonces'];
const ROLES: readonly KeyguardRole[] = ['kg_app', 'kg_verifier', 'kg_auth', 'kg_jobs'];
const ORIGIN = 'keyguard.test/policies';
const DENIED = '42501';
const ILLEGAL = '23514';

const rowMacKey = nodeMacKey({ keyId: 'row-1', key: randomBytes(32) });
const macKey = nodeMacKey({ keyId: 'audit-1', key: randomBytes(32) });
const codeHash = (): string => createHash('sha256').update(randomBytes(16)).digest('base64url');

/** The SQLSTATE with which `work` fails, or what it answers. */
async function sqlState(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    (answer) => ({ answer }),
    (error: unknown) => (error as { code?: unknown }).code ?? error,
  );
}

async function failure(work: Promise<unknown>): Promise<Error> {
  const error = await work.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof Error)) throw new Error('It did not fail.');
  return error;
}

describe.each(SUBSTRATES)('$title', { timeout: 60_000 }, ({ start }) => {
  let substrate: Substrate;
  let database: Database;
  let registry: PostgresDeviceRegistry;
  let directory: DeviceDirectory;

  const as = <T>(role: KeyguardRole, userId: string | null, fn: (tx: SqlTransaction) => Promise<T>): Promise<T> =>
    asRole(database.app, role, fn, { userId });
  const count = async (role: KeyguardRole, userId: string | null, table: string): Promise<number> =>
    as(role, userId, async (tx) => {
      const { rows } = await tx.query<{ n: unknown }>(`SELECT count(*) AS n FROM keyguard.${table}`);
      return Number(rows[0]!.n);
    });

  async function request(hash: string | null): Promise<EnrollmentRequest> {
    const { keyId, publicKey } = await signingKey(await generateKeyPair());
    return { keyId, publicKey, codeHash: hash, label: null, fingerprint: null, nowMs: Date.now() };
  }
  async function code(forUserId: string, autoApprove = true): Promise<string> {
    const hash = codeHash();
    await postgresEnrollmentCodes(database.app, { rowMacKey }).create({
      codeHash: hash,
      createdBy: forUserId,
      forUserId,
      projectId: 'project-1',
      label: 'from the code',
      maxUses: 1,
      autoApprove,
      expiresAtMs: Date.now() + 900_000,
    });
    return hash;
  }
  async function enroll(forUserId: string, autoApprove = true): Promise<{ deviceId: string; keyId: string }> {
    const one = await request(await code(forUserId, autoApprove));
    const answer = await registry.enroll(one);
    if (answer.outcome !== 'enrolled') throw new Error(`It was ${answer.outcome}.`);
    return { deviceId: answer.device.deviceId, keyId: one.keyId };
  }
  const tamper = (set: string, table: string, where: string, values: readonly unknown[]): Promise<unknown> =>
    database.intruder.transaction(async (tx) => {
      await tx.query('SET LOCAL session_replication_role = replica');
      await tx.query(`UPDATE keyguard.${table} SET ${set} WHERE ${where}`, values);
    });

  beforeAll(async () => {
    substrate = await start();
    database = await substrate.open();
    registry = postgresDeviceRegistry(database.app, { rowMacKey });
    directory = postgresDeviceDirectory(database.app, { rowMacKey });
    await postgresAdministrators(database.app, { rowMacKey }).grant('admin', { grantedBy: 'setup' });
    await enroll('alice');
    await enroll('bob');
    await postgresReplayStore(database.app).claim('k', 'n', 1, 2);
    await postgresAuditSink(database.app, { origin: ORIGIN, macKey }).append([
      { action: 'a', outcome: 'success', actor: 'user:alice' },
      { action: 'b', outcome: 'success', actor: 'user:bob' },
    ]);
    await postgresKeyRecords(database.app).insertIfAbsent([
      { id: 'first-0', purpose: 'first', state: 'primary', wrapped: randomBytes(60), rootId: 'root', createdAtMs: 1 },
    ]);
  }, 120_000);
  afterAll(async () => {
    await database?.close();
    await substrate?.stop();
  }, 60_000);

  describe('row-level security', () => {
    it('is enabled and forced on every table, with policies by name', async () => {
      const { rows } = await database.intruder.query<{ relname: string; safe: boolean; policies: unknown }>(
        `SELECT relname, relrowsecurity AND relforcerowsecurity AS safe,
            (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid) AS policies
          FROM pg_class c WHERE relnamespace = 'keyguard'::regnamespace AND relkind IN ('r', 'p') ORDER BY relname`,
      );
      expect(rows.map(({ relname }) => relname)).toEqual(TABLES);
      for (const { safe, policies } of rows) {
        expect(safe).toBe(true);
        expect(Number(policies)).toBeGreaterThan(0);
      }
      await expect(assertSafeRoles(database.app, { embedded: substrate.isEmbedded })).resolves.toBeUndefined();
    });

    it('shows kg_app nothing without a user, and lets it write nothing', async () => {
      for (const table of ['devices', 'device_keys', 'secret_audit_logs']) {
        expect(await count('kg_app', null, table)).toBe(0);
        expect(await count('kg_app', '', table)).toBe(0);
      }
      expect(await as('kg_app', null, async (tx) => (await tx.query('SELECT id FROM keyguard.enrollment_codes')).rows)).toEqual([]);
      for (const table of ['audit_heads', 'kek_keys', 'nonce_floor', 'schema_migrations', 'used_nonces']) {
        expect(await sqlState(count('kg_app', null, table))).toBe(DENIED);
        expect(await sqlState(count('kg_app', 'admin', table))).toBe(DENIED);
      }
      const administrators = (userId: string | null): Promise<unknown> =>
        as('kg_app', userId, async (tx) => (await tx.query('SELECT user_id FROM keyguard.administrators')).rows);
      expect(await administrators(null)).toEqual([]);
      expect(await administrators('alice')).toEqual([]);
      expect(await administrators('admin')).toEqual([{ user_id: 'admin' }]);
      const changed = await as('kg_app', null, (tx) => tx.query(`UPDATE keyguard.devices SET label = 'x' RETURNING device_id`));
      expect(changed.rows).toEqual([]);
      expect(await sqlState(postgresAuditSink(database.app, { origin: ORIGIN, macKey }).appendIn(null as never, []))).toEqual({ answer: [] });
      const log = as('kg_app', null, (tx) =>
        postgresAuditSink(tx, { origin: ORIGIN, macKey }).appendIn(tx, [{ action: 'x', outcome: 'success', actor: 'user:alice' }]),
      );
      expect(isUnavailable(await failure(log))).toBe(true);
    });

    it('shows a user its own rows and no others, and an administrator all', async () => {
      const owners = async (userId: string): Promise<string[]> =>
        as('kg_app', userId, async (tx) => (await tx.query<{ owner_id: string }>('SELECT owner_id FROM keyguard.devices')).rows.map((r) => r.owner_id));
      expect(new Set(await owners('alice'))).toEqual(new Set(['alice']));
      expect(new Set(await owners('bob'))).toEqual(new Set(['bob']));
      expect(await owners('mallory')).toEqual([]);
      expect(await owners(`alice' OR '1'='1`)).toEqual([]);
      expect(new Set(await owners('admin'))).toEqual(new Set(['alice', 'bob']));
      expect(await count('kg_app', 'alice', 'device_keys')).toBe((await owners('alice')).length);
      expect(await count('kg_app', 'mallory', 'device_keys')).toBe(0);
      expect(await count('kg_app', 'alice', 'secret_audit_logs')).toBe(1);
      expect(await count('kg_app', 'admin', 'secret_audit_logs')).toBe(2);
      const page = await directory.list({ asUserId: 'bob' });
      expect(new Set(page.items.map(({ ownerId }) => ownerId))).toEqual(new Set(['bob']));
    });

    it('lets nobody write what is another user\'s', async () => {
      const { deviceId } = await enroll('bob');
      const theft = await as('kg_app', 'alice', (tx) =>
        tx.query(`UPDATE keyguard.devices SET label = 'mine' WHERE device_id = $1 RETURNING device_id`, [deviceId]),
      );
      expect(theft.rows).toEqual([]);
      expect(await directory.get(deviceId, { asUserId: 'alice' })).toBeNull();
      expect(await directory.transition(deviceId, 'revoke', { byUserId: 'alice' })).toEqual({ outcome: 'not_found' });
      const forBob = postgresEnrollmentCodes(database.app, { rowMacKey }).create({
        codeHash: codeHash(), createdBy: 'alice', forUserId: 'bob', projectId: 'p', label: null, maxUses: 1, autoApprove: true, expiresAtMs: 1,
      });
      expect(isUnavailable(await failure(forBob))).toBe(true);
      // What the store refuses, the policies refuse too.
      for (const [createdBy, forUserId] of [['bob', 'alice'], ['alice', 'bob']]) {
        const insert = as('kg_app', 'alice', (tx) =>
          tx.query(
            `INSERT INTO keyguard.enrollment_codes (id, code_hash, created_by, for_user_id, project_id, max_uses, auto_approve, created_at_ms,
              expires_at_ms, mac_key_id, mac) VALUES ('x', $1, $2, $3, 'p', 1, true, 1, 2, 'k', $4)`,
            [codeHash(), createdBy, forUserId, randomBytes(32)],
          ),
        );
        expect(await sqlState(insert)).toBe(DENIED);
      }
    });

    it('binds the owner of the tables as well', async () => {
      for (const table of ['devices', 'device_keys', 'enrollment_codes', 'rotation_codes', 'used_nonces', 'nonce_floor', 'secret_audit_logs', 'kek_keys', 'administrators']) {
        const { rows } = await database.owner.transaction(async (tx) => {
          await tx.query('SET LOCAL ROLE kg_owner');
          return tx.query<{ n: unknown }>(`SELECT count(*) AS n FROM keyguard.${table}`);
        });
        expect([table, Number(rows[0]!.n)]).toEqual([table, 0]);
      }
    });

    it('gives every role what it needs by name, and TRUNCATE and DELETE to none that could use them against the log', async () => {
      const { rows } = await database.intruder.query<{ line: string }>(
        `SELECT format('%s %s %s', grantee, privilege_type, table_name) AS line FROM information_schema.table_privileges
          WHERE table_schema = 'keyguard' AND grantee <> 'kg_owner' ORDER BY 1`,
      );
      expect(rows.map(({ line }) => line)).toEqual([
        'kg_app INSERT secret_audit_logs', 'kg_app SELECT administrators', 'kg_app SELECT device_keys', 'kg_app SELECT devices', 'kg_app SELECT secret_audit_logs',
        'kg_auth DELETE administrators', 'kg_auth INSERT administrators', 'kg_auth INSERT secret_audit_logs', 'kg_auth SELECT administrators',
        'kg_jobs DELETE used_nonces', 'kg_jobs INSERT kek_keys', 'kg_jobs INSERT secret_audit_logs', 'kg_jobs SELECT kek_keys',
        'kg_jobs SELECT nonce_floor', 'kg_jobs SELECT schema_migrations', 'kg_jobs SELECT secret_audit_logs', 'kg_jobs SELECT used_nonces',
        'kg_verifier INSERT device_keys', 'kg_verifier INSERT secret_audit_logs', 'kg_verifier INSERT used_nonces',
        'kg_verifier SELECT device_keys', 'kg_verifier SELECT devices', 'kg_verifier SELECT enrollment_codes', 'kg_verifier SELECT nonce_floor',
        'kg_verifier SELECT rotation_codes',
      ]);
      for (const role of ROLES) {
        for (const table of TABLES) {
          expect(await sqlState(as(role, 'admin', (tx) => tx.query(`TRUNCATE keyguard.${table} CASCADE`)))).toBe(DENIED);
        }
      }
    });

    it('keeps the verifier from changing what it reads', async () => {
      const { deviceId } = await enroll('alice');
      for (const set of [`status = 'active'`, `owner_id = 'mallory'`, `rate_limit_per_min = 1`, `mac = mac`]) {
        const work = as('kg_verifier', null, (tx) => tx.query(`UPDATE keyguard.devices SET ${set} WHERE device_id = $1`, [deviceId]));
        expect(await sqlState(work)).toBe(DENIED);
      }
      for (const text of [`UPDATE keyguard.device_keys SET state = 'retired'`, 'DELETE FROM keyguard.device_keys', 'DELETE FROM keyguard.devices',
        `UPDATE keyguard.enrollment_codes SET auto_approve = true`, 'SELECT * FROM keyguard.kek_keys', 'SELECT * FROM keyguard.secret_audit_logs',
        'SELECT * FROM keyguard.used_nonces', 'DELETE FROM keyguard.used_nonces', 'UPDATE keyguard.nonce_floor SET floor_seconds = 0']) {
        expect([text, await sqlState(as('kg_verifier', null, (tx) => tx.query(text)))]).toEqual([text, DENIED]);
      }
      const back = as('kg_verifier', null, (tx) => tx.query('UPDATE keyguard.enrollment_codes SET uses = 0 WHERE uses > 0'));
      expect(await sqlState(back)).toBe(ILLEGAL);
    });

    it('refuses a key under an id that is not its thumbprint', async () => {
      const { deviceId } = await enroll('alice');
      const one = await request(null);
      const work = as('kg_verifier', null, (tx) =>
        tx.query(
          `INSERT INTO keyguard.device_keys (key_id, device_id, public_jwk, state, created_at_ms, mac_key_id, mac)
            VALUES ($1, $2, $3, 'retired', 1, 'k', $4)`,
          ['A'.repeat(43), deviceId, JSON.stringify(one.publicKey), randomBytes(32)],
        ),
      );
      expect([ILLEGAL, DENIED]).toContain(await sqlState(work));
      await expect(registry.enroll({ ...one, keyId: 'A'.repeat(43), codeHash: await code('alice') })).rejects.toMatchObject({
        name: 'UnavailableError',
        cause: { code: ILLEGAL },
      });
    });
  });

  describe('asRole', () => {
    it('leaves nothing behind: neither the role nor the user', async () => {
      await as('kg_app', 'alice', async () => {});
      await as('kg_app', 'alice', () => Promise.reject(new Error('x'))).catch(() => {});
      const { rows } = await database.app.query<{ role: string; user_id: string | null }>(
        `SELECT current_setting('role') AS role, current_setting('app.user_id', true) AS user_id`,
      );
      expect(rows[0]!.role).toBe('none');
      expect(rows[0]!.user_id ?? '').toBe('');
    });

    it('gives back what held before, also after an error that the caller survives', async () => {
      const who = async (tx: SqlTransaction): Promise<unknown> =>
        (await tx.query(`SELECT current_user::text AS role, current_setting('app.user_id') AS user_id`)).rows[0];
      await as('kg_app', 'alice', async (tx) => {
        expect(await asRole(tx, 'kg_verifier', who)).toEqual({ role: 'kg_verifier', user_id: '' });
        expect(await who(tx)).toEqual({ role: 'kg_app', user_id: 'alice' });
        await expect(asRole(tx, 'kg_auth', (inner) => inner.query('SELECT 1/0'))).rejects.toThrow(/division by zero/);
        expect(await who(tx)).toEqual({ role: 'kg_app', user_id: 'alice' });
      });
    });

    it('serves two users in 2,000 interleaved transactions without one foreign row', async () => {
      const seen = await Promise.all(
        Array.from({ length: 2000 }, (_, i) => {
          const userId = i % 2 === 0 ? 'alice' : 'bob';
          return as('kg_app', userId, async (tx) => {
            const { rows } = await tx.query<{ owner_id: string }>('SELECT owner_id FROM keyguard.devices');
            return rows.length > 0 && rows.every(({ owner_id }) => owner_id === userId);
          });
        }),
      );
      expect(seen.every(Boolean)).toBe(true);
    });

    it('refuses a transaction whose failed statement was kept silent, and a handle that has ended', async () => {
      let kept: SqlTransaction | undefined;
      const work = as('kg_verifier', null, async (tx) => {
        kept = tx;
        await tx.query('SELECT 1/0').catch(() => {});
      });
      await expect(work).rejects.toThrow(/nothing of it was kept/);
      await expect(kept!.query('SELECT 1')).rejects.toMatchObject({ name: 'UsageError' });
    });
  });

  describe('row MACs', () => {
    const attacks: readonly (readonly [string, string, string])[] = [
      ['status', 'devices', `status = 'active'`],
      ['owner', 'devices', `owner_id = 'mallory'`],
      ['project', 'devices', `project_id = 'other'`],
      ['rate limit', 'devices', `rate_limit_per_min = 1000000`],
      ['addresses', 'devices', `ip_allowlist = '{0.0.0.0/0}'`],
      ['models', 'devices', `allowed_models = '{}'`],
      ['MAC', 'devices', `mac = decode(repeat('00', 32), 'hex')`],
      ['MAC key', 'devices', `mac_key_id = 'row-2'`],
      ['key state', 'device_keys', `state = 'retired'`],
      ['end of a key', 'device_keys', `state = 'retiring', retire_at_ms = 99999999999999`],
      ['key MAC', 'device_keys', `mac = decode(repeat('00', 32), 'hex')`],
    ];
    it.each(attacks)('refuse a device whose %s was changed in the table, and no other device', async (_, table, set) => {
      const { deviceId, keyId } = await enroll('alice', false);
      const other = await enroll('alice');
      await tamper(set, table, 'device_id = $1', [deviceId]);
      await expect(registry.findByKeyId(keyId)).rejects.toMatchObject({ name: 'UnavailableError', seam: 'device_registry' });
      expect(await registry.findByKeyId(other.keyId)).toMatchObject({ status: 'active' });
      if (table === 'devices') {
        expect((await directory.get(deviceId, { asUserId: 'admin' }))?.intact).toBe(false);
        const listed = (await directory.list({ asUserId: 'admin', limit: 200 })).items;
        expect(listed.find((device) => device.deviceId === deviceId)?.intact).toBe(false);
        expect(listed.find((device) => device.deviceId === other.deviceId)?.intact).toBe(true);
      }
    });

    it('refuse a key that was given another public key, or moved to another device', async () => {
      const victim = await enroll('alice');
      const mallory = await enroll('mallory');
      const { publicKey } = await request(null);
      await expect(tamper('public_jwk = $1', 'device_keys', 'key_id = $2', [JSON.stringify(publicKey), victim.keyId])).rejects.toMatchObject({ code: ILLEGAL });
      await tamper(`device_id = $1, state = 'retired'`, 'device_keys', 'key_id = $2', [victim.deviceId, mallory.keyId]);
      expect(isUnavailable(await failure(registry.findByKeyId(mallory.keyId)))).toBe(true);
      expect(await registry.findByKeyId(victim.keyId)).toMatchObject({ ownerId: 'alice' });
    });

    it('refuse a code that was changed or made up, which then keeps its use', async () => {
      const hash = await code('alice');
      await tamper(`for_user_id = 'mallory'`, 'enrollment_codes', 'code_hash = $1', [hash]);
      expect(isUnavailable(await failure(registry.enroll(await request(hash))))).toBe(true);
      const { rows } = await database.intruder.query('SELECT uses FROM keyguard.enrollment_codes WHERE code_hash = $1', [hash]);
      expect(rows).toEqual([{ uses: 0 }]);
    });

    it('refuse an administrator who was written into the table', async () => {
      const administrators = postgresAdministrators(database.app, { rowMacKey });
      await database.intruder.query(`INSERT INTO keyguard.administrators VALUES ('mallory', 'mallory', 1, 'row-1', $1)`, [randomBytes(32)]);
      expect(isUnavailable(await failure(administrators.has('mallory')))).toBe(true);
      expect(await administrators.has('admin')).toBe(true);
      expect(await administrators.has('alice')).toBe(false);
      expect(await administrators.revoke('mallory')).toBe(true);
      expect(await administrators.has('mallory')).toBe(false);
    });

    describe('of who administers', () => {
      const forge = (sql: SqlTransaction, userId: string): Promise<unknown> =>
        sql.query(`INSERT INTO keyguard.administrators VALUES ($1, 'setup', 1, 'row-1', $2)`, [userId, randomBytes(32)]);
      const unforge = (userId: string): Promise<unknown> =>
        database.intruder.query('DELETE FROM keyguard.administrators WHERE user_id = $1', [userId]);
      const newCode = (createdBy: string, forUserId: string) =>
        ({ codeHash: codeHash(), createdBy, forUserId, projectId: 'p', label: null, maxUses: 1, autoApprove: true, expiresAtMs: Date.now() + 9000 });

      const newRotationCode = (deviceId: string) => ({ codeHash: codeHash(), deviceId, createdBy: 'mallory', expiresAtMs: Date.now() + 9000 });

      it('let nobody act as the administrator that a forged row says it is', async () => {
        const pending = await enroll('victim', false);
        const active = await enroll('victim');
        const own = await enroll('mallory', false);
        const codes = postgresEnrollmentCodes(database.app, { rowMacKey });
        const victims = await codes.create(newCode('admin', 'victim'));
        const before = await directory.list({ asUserId: 'admin', limit: 200 });
        await forge(database.intruder, 'mallory');
        const by = { byUserId: 'mallory' };
        // The policies let it: this is what only the MAC stops.
        expect(await count('kg_app', 'mallory', 'devices')).toBe(await count('kg_app', 'admin', 'devices'));
        const attacks: Readonly<Record<string, () => Promise<unknown>>> = {
          approve: () => directory.transition(pending.deviceId, 'approve', by),
          'approve its own': () => directory.transition(own.deviceId, 'approve', by),
          suspend: () => directory.transition(active.deviceId, 'suspend', by),
          revoke: () => directory.transition(active.deviceId, 'revoke', by),
          configure: () => directory.configure(active.deviceId, { requestsPerMinute: 9 }, by),
          label: () => directory.configure(active.deviceId, { label: 'x' }, by),
          get: () => directory.get(active.deviceId, { asUserId: 'mallory' }),
          list: () => directory.list({ asUserId: 'mallory' }),
          'a code for the victim': () => codes.create(newCode('mallory', 'victim')),
          'revoke a code': () => codes.revoke(victims.id, by),
          'list codes': () => codes.list({ asUserId: 'mallory' }),
          'a rotation code': () => postgresRotationCodes(database.app, { rowMacKey }).create(newRotationCode(active.deviceId)),
          'in a transaction that is handed in': () =>
            database.app.transaction((tx) => postgresDeviceDirectory(tx, { rowMacKey }).transition(pending.deviceId, 'approve', by)),
        };
        const answers: Record<string, unknown> = {};
        for (const [name, attack] of Object.entries(attacks)) answers[name] = await attack().then((answer) => answer, (error: Error) => error.message);
        await unforge('mallory');
        const refusal = 'A row of administrators does not bear the MAC that it must.';
        expect(answers).toEqual(Object.fromEntries(Object.keys(attacks).map((name) => [name, refusal])));
        expect(await directory.list({ asUserId: 'admin', limit: 200 })).toEqual(before);
        expect((await codes.list({ asUserId: 'victim' })).items).toEqual([victims, expect.anything(), expect.anything()]);
      });

      it('let nobody act by a row that is forged after it was asked for', async () => {
        const victim = await enroll('victim', false);
        const own = await enroll('mallory', false);
        const victims = await postgresEnrollmentCodes(database.app, { rowMacKey }).create(newCode('admin', 'victim'));
        const before = await directory.list({ asUserId: 'admin', limit: 200 });
        let forged = 0;
        const late: SqlClient = {
          query: (text, params) => database.app.query(text, params),
          transaction: (fn) =>
            database.app.transaction((tx) =>
              fn({
                query: async <Row>(text: string, params?: readonly unknown[]) => {
                  const result = await tx.query<Row>(text, params);
                  if (text.includes('FROM keyguard.administrators')) {
                    forged += 1;
                    if (substrate.isEmbedded) {
                      // One connection: whoever forges does it here, as the superuser that the login is.
                      await tx.query(`SELECT set_config('role', 'none', true)`);
                      await forge(tx, 'mallory');
                      await tx.query(`SELECT set_config('role', 'kg_app', true)`);
                    } else {
                      await forge(database.intruder, 'mallory');
                    }
                  }
                  return result;
                },
              })),
        };
        const by = { byUserId: 'mallory' };
        const racing = postgresDeviceDirectory(late, { rowMacKey });
        const codes = postgresEnrollmentCodes(late, { rowMacKey });
        const ask = async <T>(work: () => Promise<T>): Promise<T> => work().finally(() => unforge('mallory'));
        expect(await ask(() => racing.transition(victim.deviceId, 'revoke', by))).toEqual({ outcome: 'not_found' });
        expect(await ask(() => racing.transition(own.deviceId, 'approve', by))).toEqual({ outcome: 'forbidden' });
        expect(await ask(() => racing.configure(victim.deviceId, { label: 'x' }, by))).toEqual({ outcome: 'not_found' });
        expect(await ask(() => racing.configure(own.deviceId, { requestsPerMinute: 9 }, by))).toEqual({ outcome: 'forbidden' });
        expect(await ask(() => racing.get(victim.deviceId, { asUserId: 'mallory' }))).toBeNull();
        const seen = (await ask(() => racing.list({ asUserId: 'mallory', limit: 200 }))).items;
        expect(new Set(seen.map(({ ownerId }) => ownerId))).toEqual(new Set(['mallory']));
        expect(isUnavailable(await failure(ask(() => codes.create(newCode('mallory', 'victim')))))).toBe(true);
        expect(await ask(() => codes.revoke(victims.id, by))).toBe(false);
        expect(await ask(() => postgresRotationCodes(late, { rowMacKey }).create(newRotationCode(victim.deviceId)))).toEqual({ outcome: 'not_found' });
        expect((await ask(() => codes.list({ asUserId: 'mallory', limit: 200 }))).items.every((c) => c.forUserId === 'mallory')).toBe(true);
        expect(forged).toBe(10);
        expect(await directory.list({ asUserId: 'admin', limit: 200 })).toEqual(before);
      });
    });

    it('let a changed device be revoked and nothing else', async () => {
      const { deviceId, keyId } = await enroll('alice', false);
      await tamper(`owner_id = 'mallory'`, 'devices', 'device_id = $1', [deviceId]);
      expect(isUnavailable(await failure(directory.transition(deviceId, 'approve', { byUserId: 'admin' })))).toBe(true);
      expect(isUnavailable(await failure(directory.configure(deviceId, { label: 'x' }, { byUserId: 'admin' })))).toBe(true);
      expect(await directory.transition(deviceId, 'revoke', { byUserId: 'admin' })).toMatchObject({ outcome: 'changed' });
      expect(await registry.findByKeyId(keyId)).toMatchObject({ status: 'revoked' });
    });
  });

  describe('the device directory', () => {
    it('makes the legal moves and no others, each visible to the verifier at once', async () => {
      const { deviceId, keyId } = await enroll('alice', false);
      const move = (name: Parameters<DeviceDirectory['transition']>[1], byUserId = 'admin'): ReturnType<DeviceDirectory['transition']> =>
        directory.transition(deviceId, name, { byUserId });
      const status = async (): Promise<unknown> => (await registry.findByKeyId(keyId))?.status;
      expect(await move('suspend')).toEqual({ outcome: 'illegal', status: 'pending' });
      expect(await move('approve', 'alice')).toEqual({ outcome: 'forbidden' });
      expect(await move('approve')).toMatchObject({ outcome: 'changed', from: 'pending', device: { status: 'active', approvedBy: 'admin', intact: true } });
      expect(await status()).toBe('active');
      expect(await move('approve')).toEqual({ outcome: 'illegal', status: 'active' });
      expect(await move('suspend', 'alice')).toMatchObject({ outcome: 'changed', device: { statusChangedBy: 'alice' } });
      expect(await status()).toBe('suspended');
      expect(await move('resume', 'alice')).toMatchObject({ outcome: 'changed' });
      expect(await move('suspend')).toMatchObject({ outcome: 'changed' });
      expect(await move('resume', 'alice')).toEqual({ outcome: 'forbidden' });
      expect(await move('resume')).toMatchObject({ outcome: 'changed' });
      expect(await move('revoke', 'alice')).toMatchObject({ outcome: 'changed' });
      expect(await status()).toBe('revoked');
      for (const name of ['approve', 'suspend', 'resume', 'revoke'] as const) {
        expect(await move(name)).toEqual({ outcome: 'illegal', status: 'revoked' });
      }
    });

    it('is backed by a trigger: no statement of kg_app makes an illegal move, or one that is not its own', async () => {
      const pending = await enroll('alice', false);
      const active = await enroll('alice');
      const update = (userId: string, set: string, deviceId: string): Promise<unknown> =>
        sqlState(as('kg_app', userId, (tx) => tx.query(`UPDATE keyguard.devices SET ${set} WHERE device_id = $1`, [deviceId])));
      expect(await update('alice', `status = 'active'`, pending.deviceId)).toBe(DENIED);
      expect(await update('alice', `rate_limit_per_min = 9`, active.deviceId)).toBe(DENIED);
      expect(await update('alice', `owner_id = 'bob'`, active.deviceId)).toBe(ILLEGAL);
      expect(await update('admin', `owner_id = 'bob'`, active.deviceId)).toBe(ILLEGAL);
      expect(await update('admin', `status = 'pending'`, active.deviceId)).toBe(ILLEGAL);
      expect(await update('admin', `device_id = 'x'`, active.deviceId)).toBe(DENIED);
      await directory.transition(active.deviceId, 'revoke', { byUserId: 'alice' });
      for (const status of ['pending', 'active', 'suspended']) {
        expect(await update('admin', `status = '${status}'`, active.deviceId)).toBe(ILLEGAL);
      }
    });

    it('lets one of many racing moves happen', async () => {
      const { deviceId } = await enroll('alice');
      const outcomes = await Promise.all(Array.from({ length: 20 }, () => directory.transition(deviceId, 'suspend', { byUserId: 'admin' })));
      expect(outcomes.filter(({ outcome }) => outcome === 'changed')).toHaveLength(1);
    });

    it('moves a device and appends the entry in one transaction, or does neither', async () => {
      const { deviceId, keyId } = await enroll('alice');
      const sink = postgresAuditSink(database.app, { origin: ORIGIN, macKey });
      const revoke = (fails: boolean): Promise<void> =>
        database.app.transaction(async (tx) => {
          await postgresDeviceDirectory(tx, { rowMacKey }).transition(deviceId, 'revoke', { byUserId: 'alice' });
          await asRole(tx, 'kg_app', (inner) => sink.appendIn(inner, [{ action: 'device.revoke', outcome: 'success', actor: 'user:alice', device_id: deviceId }]), { userId: 'alice' });
          if (fails) throw new Error('on second thoughts');
        });
      const entries = async (): Promise<number> =>
        as('kg_jobs', null, async (tx) => (await tx.query('SELECT 1 FROM keyguard.secret_audit_logs WHERE device_id = $1', [deviceId])).rows.length);
      await expect(revoke(true)).rejects.toThrow('on second thoughts');
      expect([await entries(), (await registry.findByKeyId(keyId))?.status]).toEqual([0, 'active']);
      await revoke(false);
      expect([await entries(), (await registry.findByKeyId(keyId))?.status]).toEqual([1, 'revoked']);
    });

    it('pages through everything once, newest first, and refuses a cursor of somebody\'s making', async () => {
      for (let i = 0; i < 5; i += 1) await enroll('pat');
      const all = (await directory.list({ asUserId: 'pat' })).items.map(({ deviceId }) => deviceId);
      expect(all).toHaveLength(5);
      const paged: string[] = [];
      let cursor: string | null = null;
      do {
        const page: Awaited<ReturnType<DeviceDirectory['list']>> = await directory.list({ asUserId: 'pat', limit: 2, cursor });
        paged.push(...page.items.map(({ deviceId }) => deviceId));
        cursor = page.nextCursor;
      } while (cursor !== null);
      expect(paged).toEqual(all);
      for (const bad of ['', 'x', 'W10', '!', Buffer.from('[1,"a\\u0000"]').toString('base64url')]) {
        expect(hasCode(await failure(directory.list({ asUserId: 'pat', cursor: bad })), 'malformed_request')).toBe(true);
      }
    });

    it('sets limits for an administrator and labels for an owner, and keeps the row vouched for', async () => {
      const { deviceId, keyId } = await enroll('alice');
      const limits = { requestsPerMinute: 7, ipAllowlist: ['10.0.0.0/8', '::1'], allowedModels: ['m "1"', 'ü,{}'] };
      expect(await directory.configure(deviceId, limits, { byUserId: 'alice' })).toEqual({ outcome: 'forbidden' });
      expect(await directory.configure(deviceId, limits, { byUserId: 'admin' })).toMatchObject({ outcome: 'changed', device: { ...limits, intact: true } });
      expect(await directory.configure(deviceId, { label: 'mine' }, { byUserId: 'alice' })).toMatchObject({ outcome: 'changed', device: { ...limits, label: 'mine' } });
      expect(await registry.findByKeyId(keyId)).toMatchObject({ ...limits, label: 'mine' });
    });

    it('notes sightings without moving them back, and without touching what grants', async () => {
      const { deviceId, keyId } = await enroll('alice');
      await directory.touch([{ deviceId, seenAtMs: 50, ip: '::1' }, { deviceId, seenAtMs: 40, ip: 'old' }, { deviceId: 'unknown', seenAtMs: 1, ip: null }]);
      await directory.touch([{ deviceId, seenAtMs: 30, ip: 'older' }]);
      expect(await directory.get(deviceId, { asUserId: 'alice' })).toMatchObject({ lastSeenAtMs: 50, lastIp: '::1', intact: true });
      expect(await registry.findByKeyId(keyId)).toMatchObject({ status: 'active' });
    });
  });

  describe('enrollment without a code', () => {
    it('is off unless it is allowed, capped in number also under a burst, and ends after its time', async () => {
      let nowMs = Date.now();
      const open = postgresDeviceRegistry(database.app, { rowMacKey, allowWithoutCode: { maxPending: 3, pendingMs: 1000 }, clock: { nowMs: () => nowMs } });
      expect(await registry.enroll(await request(null))).toEqual({ outcome: 'rejected' });
      const requests = await Promise.all(Array.from({ length: 10 }, () => request(null)));
      const outcomes = await Promise.all(requests.map((one) => open.enroll({ ...one, nowMs })));
      const enrolled = outcomes.flatMap((o) => (o.outcome === 'enrolled' ? [o.device] : []));
      expect(enrolled).toHaveLength(3);
      expect(enrolled[0]).toMatchObject({ ownerId: null, projectId: null, status: 'pending' });
      const [first, second] = enrolled as [(typeof enrolled)[0], (typeof enrolled)[0]];
      const timed = postgresDeviceDirectory(database.app, { rowMacKey, clock: { nowMs: () => nowMs } });
      expect(await timed.transition(first.deviceId, 'approve', { byUserId: 'admin' })).toEqual({ outcome: 'owner_required' });
      const to = { byUserId: 'admin', ownerId: 'alice', projectId: 'project-1' };
      expect(await timed.transition(first.deviceId, 'approve', to)).toMatchObject({ outcome: 'changed', device: { ownerId: 'alice' } });
      nowMs += 1000;
      expect(await timed.transition(second.deviceId, 'approve', to)).toEqual({ outcome: 'illegal', status: 'pending' });
      expect(await open.findByKeyId(second.keyId)).toMatchObject({ status: 'revoked' });
      expect(await open.findByKeyId(first.keyId)).toMatchObject({ status: 'active', ownerId: 'alice' });
      expect(await open.enroll({ ...(await request(null)), nowMs })).toMatchObject({ outcome: 'enrolled' });
    });
  });

  describe('enrollment codes', () => {
    it('are never read back by their hash, and are dead once revoked', async () => {
      const codes = postgresEnrollmentCodes(database.app, { rowMacKey });
      const hash = await code('carol');
      const [listed] = (await codes.list({ asUserId: 'carol' })).items;
      expect(JSON.stringify(listed)).not.toContain(hash);
      expect(await sqlState(as('kg_app', 'carol', (tx) => tx.query('SELECT code_hash FROM keyguard.enrollment_codes')))).toBe(DENIED);
      expect(await codes.revoke(listed!.id, { byUserId: 'bob' })).toBe(false);
      expect(await codes.revoke(listed!.id, { byUserId: 'carol' })).toBe(true);
      expect(await registry.enroll(await request(hash))).toEqual({ outcome: 'rejected' });
      expect((await codes.list({ asUserId: 'carol' })).items[0]?.revokedAtMs).not.toBeNull();
      expect((await codes.list({ asUserId: 'bob' })).items.some(({ id }) => id === listed!.id)).toBe(false);
    });

    it('work inside a transaction that is handed in, and vanish with it', async () => {
      const hash = codeHash();
      const one = await request(hash);
      const work = database.app.transaction(async (tx) => {
        await postgresEnrollmentCodes(tx, { rowMacKey }).create({
          codeHash: hash, createdBy: 'dave', forUserId: 'dave', projectId: 'p', label: null, maxUses: 1, autoApprove: true, expiresAtMs: Date.now() + 9000,
        });
        const inside = postgresDeviceRegistry(tx, { rowMacKey });
        expect(await inside.enroll(one)).toMatchObject({ outcome: 'enrolled' });
        expect(await inside.findByKeyId(one.keyId)).toMatchObject({ ownerId: 'dave' });
        expect(await inside.enroll(one)).toEqual({ outcome: 'key_exists' });
        throw new Error('undone');
      });
      await expect(work).rejects.toThrow('undone');
      expect(await registry.findByKeyId(one.keyId)).toBeNull();
    });
  });

  describe('the replay store', () => {
    it('refuses with overloaded when the table is full, and takes more once there is room', async () => {
      const full = await substrate.open();
      // An hour ago: what then expires has expired for the database too.
      let nowMs = Date.now() - 3_600_000;
      const store = postgresReplayStore(full.app, { maxRows: 20, clock: { nowMs: () => nowMs } });
      const created = Math.floor(nowMs / 1000);
      const claims = await Promise.allSettled(Array.from({ length: 50 }, (_, i) => store.claim('k', `n${i}`, created, nowMs + 1000)));
      const first = claims.filter((c) => c.status === 'fulfilled' && c.value).length;
      expect(first).toBeGreaterThan(0);
      expect(first).toBeLessThanOrEqual(20);
      for (const claim of claims) expect(claim.status === 'fulfilled' || hasCode(claim.reason, 'overloaded')).toBe(true);
      // What a burst left free is given out once nothing is under way, to the last row.
      nowMs += 1001;
      let held = first;
      const one = (): Promise<boolean> => store.claim('k', `m${held}`, created, nowMs + 1000);
      while (await one().catch(() => false)) held += 1;
      expect(held).toBe(20);
      expect(hasCode(await failure(one()), 'overloaded')).toBe(true);
      nowMs += 3000;
      expect(await store.purge()).toBe(20);
      expect(await store.claim('k', 'later', created + 4, nowMs + 1000)).toBe(true);
      await full.close();
    });

    it('forgets nothing that is alive, whoever asks and whatever time it says it is', async () => {
      const own = await substrate.open();
      const created = Math.floor(Date.now() / 1000);
      const store = postgresReplayStore(own.app);
      const expiresAtMs = Date.now() + 600_000;
      const replay = (): Promise<boolean> => store.claim('k', 'alive', created, expiresAtMs);
      const jobs = <Row>(text: string): Promise<Row[]> => asRole(own.app, 'kg_jobs', async (tx) => (await tx.query<Row>(text)).rows);
      const floor = async (): Promise<number> =>
        Number((await jobs<{ floor_seconds: unknown }>('SELECT floor_seconds FROM keyguard.nonce_floor'))[0]!.floor_seconds);
      expect(await replay()).toBe(true);
      expect(await store.claim('k', 'expired', 5, 6)).toBe(true);

      await jobs(`DELETE FROM keyguard.used_nonces WHERE nonce = 'alive'`);
      expect(await replay()).toBe(false);
      expect(await floor()).toBe(0);
      await jobs('DELETE FROM keyguard.used_nonces');
      expect(await replay()).toBe(false);
      // What has expired is gone, and cannot come back.
      expect(await floor()).toBe(5);
      expect(await store.claim('k', 'expired', 5, 6)).toBe(false);

      expect(await postgresReplayStore(own.app, { clock: { nowMs: () => expiresAtMs * 2 } }).purge()).toBe(1);
      expect(await jobs('SELECT keyguard.purge_nonces(9223372036854775807, 5000) AS removed')).toEqual([{ removed: 0 }]);
      expect(await replay()).toBe(false);
      expect(await floor()).toBe(5);
      expect(await store.claim('k', 'fresh', created, expiresAtMs)).toBe(true);

      // Whom no policy binds the floor follows all the same.
      await own.intruder.query('DELETE FROM keyguard.used_nonces');
      expect(await floor()).toBe(created);
      expect(await replay()).toBe(false);
      await own.close();
    });

    it('never lowers its floor, and refuses to claim where it could not see it', async () => {
      const own = await substrate.open();
      const store = postgresReplayStore(own.app);
      await store.raiseFloor(1000);
      await store.raiseFloor(500);
      expect(await store.claim('k', 'a', 1000, 9_000_000)).toBe(false);
      expect(await store.claim('k', 'b', 1001, 9_000_000)).toBe(true);
      expect(await sqlState(asRole(own.app, 'kg_jobs', (tx) => tx.query('UPDATE keyguard.nonce_floor SET floor_seconds = 1')))).toBe(ILLEGAL);
      const repeatable = own.app.transaction(async (tx) => {
        await tx.query('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ');
        return postgresReplayStore(tx).claim('k', 'c', 1001, 9_000_000);
      });
      expect(isUnavailable(await failure(repeatable))).toBe(true);
      await own.intruder.query('DELETE FROM keyguard.nonce_floor');
      expect(isUnavailable(await failure(store.claim('k', 'd', 1001, 9_000_000)))).toBe(true);
      await own.close();
    });
  });

  describe('the audit log', () => {
    it('refuses every change, also to whom no grant or policy binds', async () => {
      for (const text of [`UPDATE keyguard.secret_audit_logs SET actor = 'x'`, 'DELETE FROM keyguard.secret_audit_logs', 'TRUNCATE keyguard.secret_audit_logs',
        'DELETE FROM keyguard.audit_heads', 'TRUNCATE keyguard.audit_heads']) {
        expect([text, await sqlState(database.intruder.query(text))]).toEqual([text, DENIED]);
        for (const role of ROLES) {
          expect([role, text, await sqlState(as(role, 'admin', (tx) => tx.query(text)))]).toEqual([role, text, DENIED]);
        }
      }
      expect(await sqlState(as('kg_jobs', null, (tx) => tx.query(`UPDATE keyguard.audit_heads SET seq = 0`)))).toBe(DENIED);
    });

    it('takes only what continues the chain', async () => {
      const sink = postgresAuditSink(database.app, { origin: ORIGIN, macKey });
      const head = (await sink.head())!;
      const insert = (origin: string, seq: number, prev: Uint8Array): Promise<unknown> =>
        sqlState(as('kg_verifier', null, (tx) =>
          tx.query(
            `INSERT INTO keyguard.secret_audit_logs (origin, seq, ts_ms, actor, action, outcome, entry, prev_mac, mac, mac_key_id)
              VALUES ($1, $2, 1, 'a', 'a', 'success', $3, $4, $5, 'audit-1')`,
            [origin, seq, randomBytes(4), prev, randomBytes(32)],
          )));
      expect(await insert(ORIGIN, head.seq + 2, head.mac)).toBe(ILLEGAL);
      expect(await insert(ORIGIN, head.seq + 1, randomBytes(32))).toBe(ILLEGAL);
      expect(await insert(ORIGIN, head.seq, head.prevMac)).not.toHaveProperty('answer');
      expect(await insert('another/origin', 0, new Uint8Array(32))).toBe(ILLEGAL);
      expect(await sink.head()).toEqual(head);
      await sink.append([{ action: 'go.on', outcome: 'success', actor: 'system' }]);
      await verifyRecords(sink.read(0), { origin: ORIGIN, keys: new Map([['audit-1', macKey]]) });
    });

    it('takes several records together only where each follows the one before', async () => {
      const own = await substrate.open();
      const sink = postgresAuditSink(own.app, { origin: ORIGIN, macKey });
      const [{ mac: first }] = (await sink.append([{ action: 'x', outcome: 'success', actor: 'system' }])) as [AuditRecord];
      interface Row { readonly origin?: string; readonly seq: number; readonly prev: Uint8Array; readonly mac: Uint8Array; readonly key?: string; readonly handover?: string }
      const insert = (...rows: readonly Row[]): Promise<unknown> =>
        sqlState(own.app.transaction(async (tx) => {
          await tx.query('SET LOCAL ROLE kg_verifier');
          const values = rows.map((_, i) => `($${7 * i + 1}, $${7 * i + 2}, 1, 'a', 'a', 'success', 'x', $${7 * i + 3}, $${7 * i + 4}, $${7 * i + 5}, $${7 * i + 6}, $${7 * i + 7})`);
          return tx.query(
            `INSERT INTO keyguard.secret_audit_logs (origin, seq, ts_ms, actor, action, outcome, entry, prev_mac, mac, mac_key_id, handover_mac, handover_mac_key_id)
              VALUES ${values.join(', ')}`,
            rows.flatMap(({ origin = ORIGIN, seq, prev, mac, key = 'audit-1', handover }) => [origin, seq, prev, mac, key, handover === undefined ? null : randomBytes(32), handover ?? null]),
          );
        }));
      const [a, b, c] = [randomBytes(32), randomBytes(32), randomBytes(32)];
      const good: readonly Row[] = [{ seq: 1, prev: first, mac: a }, { seq: 2, prev: a, mac: b }, { seq: 3, prev: b, mac: c }];
      const [one, two, three] = good as [Row, Row, Row];
      const bad: Readonly<Record<string, readonly Row[]>> = {
        'a gap': [one, three],
        'a gap that is linked': [one, { ...three, prev: a }],
        'the second of a batch that names another': [one, { ...two, prev: randomBytes(32) }, three],
        'the last that names the first': [one, two, { ...three, prev: a }],
        'two in the place of each other': [{ ...one, seq: 2 }, { ...two, seq: 1 }],
        'a batch that begins too late': [two, three],
        'a batch with a record of another chain': [one, { ...two, origin: `${ORIGIN}~` }, three],
        'another key without a handover': [one, { ...two, key: 'audit-2' }],
        'a handover by another key than the one before': [one, { ...two, key: 'audit-2', handover: 'audit-3' }],
        'a handover where the key stays': [one, { ...two, handover: 'audit-1' }],
        'another key at the end of a batch': [one, two, { ...three, key: 'audit-2' }],
      };
      for (const [name, rows] of Object.entries(bad)) expect([name, await insert(...rows)]).toEqual([name, ILLEGAL]);
      expect((await sink.head())!.seq).toBe(0);
      // In whatever order they come: what counts is their number.
      expect(await insert(three, one, two)).toMatchObject({ answer: expect.anything() });
      expect(await insert({ seq: 4, prev: c, mac: a }, { seq: 5, prev: a, mac: b, key: 'audit-2', handover: 'audit-1' }, { seq: 6, prev: b, mac: c, key: 'audit-2' })).toMatchObject({ answer: expect.anything() });
      expect(await sink.head()).toMatchObject({ seq: 6, mac: Uint8Array.from(c), macKeyId: 'audit-2' });
      await own.close();
    });

    it('shows what an intruder changed, though the columns beside it are as before', async () => {
      const own = await substrate.open();
      const sink = postgresAuditSink(own.app, { origin: ORIGIN, macKey });
      await sink.append(Array.from({ length: 5 }, (_, n) => ({ action: 'x', outcome: 'success', actor: 'user:1', n })));
      await own.intruder.query('ALTER TABLE keyguard.secret_audit_logs DISABLE TRIGGER ALL');
      await own.intruder.query(`UPDATE keyguard.secret_audit_logs SET entry = convert_to(replace(convert_from(entry, 'UTF8'), 'user:1', 'user:2'), 'UTF8') WHERE seq = 3`);
      const found = verifyRecords(sink.read(0), { origin: ORIGIN, keys: new Map([['audit-1', macKey]]) });
      await expect(found).rejects.toMatchObject({ code: 'audit_record_invalid', detail: 'seq 3: the MAC is wrong' });
      await own.close();
    });

    it('gives up a batch whole when the head stays locked, and goes on afterwards', async () => {
      if (substrate.isEmbedded) return; // One connection: nobody else can hold a lock.
      const sink = postgresAuditSink(database.app, { origin: ORIGIN, macKey, statementTimeoutMs: 200 });
      const before = (await sink.head())!.seq;
      await database.peer.transaction(async (tx) => {
        await tx.query('SET LOCAL ROLE kg_verifier');
        await tx.query('SELECT * FROM keyguard.lock_audit_head($1)', [ORIGIN]);
        const answers = await Promise.allSettled(Array.from({ length: 5 }, () => sink.append([{ action: 'x', outcome: 'failed', actor: 'system' }])));
        for (const answer of answers) expect(answer.status === 'rejected' && isUnavailable(answer.reason)).toBe(true);
      });
      expect((await sink.head())!.seq).toBe(before);
      const [record] = await sink.append([{ action: 'x', outcome: 'success', actor: 'system' }]);
      expect(record!.seq).toBe(before + 1);
    });

    it('refuses to queue without end, and to change the MAC key in the middle', async () => {
      const small = postgresAuditSink(database.app, { origin: ORIGIN, macKey, maxWaitingEntries: 3 });
      const answers = await Promise.allSettled(Array.from({ length: 20 }, () => small.append([{ action: 'x', outcome: 'success', actor: 'system' }])));
      expect(answers.filter((a) => a.status === 'rejected' && hasCode(a.reason, 'overloaded')).length).toBeGreaterThan(10);
      const other = postgresAuditSink(database.app, { origin: ORIGIN, macKey: nodeMacKey({ keyId: 'audit-2', key: randomBytes(32) }) });
      expect(isUnavailable(await failure(other.append([{ action: 'x', outcome: 'success', actor: 'system' }])))).toBe(true);
    });
  });

  describe('a change of the audit MAC key', () => {
    const next = nodeMacKey({ keyId: 'audit-2', key: randomBytes(32) });
    const keys = new Map([['audit-1', macKey], ['audit-2', next]]);
    const entry = { action: 'x', outcome: 'success', actor: 'user:1' } as const;
    async function all(sink: AuditSink<SqlTransaction>): Promise<AuditRecord[]> {
      const records: AuditRecord[] = [];
      for await (const record of sink.read(0)) records.push(record);
      return records;
    }

    it('is one record under both keys, with whoever appends first, and all processes follow', async () => {
      const own = await substrate.open();
      const before = postgresAuditSink(own.app, { origin: ORIGIN, macKey, nextMacKey: next });
      await before.append([entry, entry]);
      const after = [own.app, own.peer].map((sql) => postgresAuditSink(sql, { origin: ORIGIN, macKey: next, previousMacKeys: [macKey] }));
      const answers = await Promise.all(Array.from({ length: 40 }, (_, i) => after[i % 2]!.append([entry, { ...entry, i }])));
      for (const answer of answers) expect(answer.map((r) => r.macKeyId)).toEqual(['audit-2', 'audit-2']);
      // Whoever was not restarted yet stays with the key that the others went over to.
      expect((await before.append([entry])).map((r) => r.macKeyId)).toEqual(['audit-2']);
      const inTransaction = await asRole(own.app, 'kg_verifier', (tx) => after[0]!.appendIn(tx, [entry]));
      const records = await all(before);
      expect(records.at(-1)).toEqual(inTransaction[0]);
      expect(records.filter((r) => r.handover !== undefined).map((r) => [r.seq, r.handover!.macKeyId])).toEqual([[2, 'audit-1']]);
      expect(records.map((r) => r.macKeyId)).toEqual([...Array.from({ length: 2 }, () => 'audit-1'), ...Array.from({ length: 83 }, () => 'audit-2')]);
      expect((await verifyRecords(records, { origin: ORIGIN, keys })).seq).toBe(85);
      const { rows } = await own.intruder.query<{ action: string; actor: string }>('SELECT action, actor FROM keyguard.secret_audit_logs WHERE seq = 2');
      expect(rows).toEqual([{ action: 'audit.mac_key_change', actor: 'system' }]);
      await own.close();
    });

    it('is refused by the database without a handover, and a handover without a change', async () => {
      const own = await substrate.open();
      const sink = postgresAuditSink(own.app, { origin: ORIGIN, macKey });
      const [{ mac }] = (await sink.append([entry])) as [AuditRecord];
      const insert = (keyId: string, handover: string | null): Promise<unknown> =>
        sqlState(own.app.transaction(async (tx) => {
          await tx.query('SET LOCAL ROLE kg_verifier');
          await tx.query('SELECT * FROM keyguard.lock_audit_head($1)', [ORIGIN]);
          return tx.query(
            `INSERT INTO keyguard.secret_audit_logs (origin, seq, ts_ms, actor, action, outcome, entry, prev_mac, mac, mac_key_id, handover_mac, handover_mac_key_id)
              VALUES ($1, 1, 1, 'a', 'a', 'success', $2, $3, $4, $5, $6, $7)`,
            [ORIGIN, randomBytes(4), mac, randomBytes(32), keyId, handover === null ? null : randomBytes(32), handover],
          );
        }));
      for (const [keyId, handover] of [['audit-2', null], ['audit-2', 'audit-3'], ['audit-1', 'audit-1'], ['audit-1', 'audit-2']] as const) {
        expect([keyId, handover, await insert(keyId, handover)]).toEqual([keyId, handover, ILLEGAL]);
      }
      await own.close();
    });
  });

  describe('the wrapped keys', () => {
    it('are the same for processes that start at the same time with keys of their own', async () => {
      const purposes = ['audit', 'kek', 'token-hash'];
      const own = (i: number): KeyRecord[] =>
        purposes.map((purpose) => ({ id: `${purpose}-${i}`, purpose, state: 'primary', wrapped: Uint8Array.from(randomBytes(60)), rootId: 'root', createdAtMs: 5 }));
      const starts = await Promise.all(
        Array.from({ length: 10 }, (_, i) => postgresKeyRecords(i % 2 === 0 ? database.app : database.peer).insertIfAbsent(i % 3 === 0 ? own(i).toReversed() : own(i))),
      );
      for (const start of starts) expect(start).toEqual(starts[0]);
      expect(starts[0]!.map(({ purpose }) => purpose).toSorted()).toEqual([...purposes, 'first'].toSorted());
      expect(await postgresKeyRecords(database.peer).list()).toEqual(starts[0]);
      for (const role of ['kg_app', 'kg_verifier', 'kg_auth'] as const) expect(await sqlState(count(role, 'admin', 'kek_keys'))).toBe(DENIED);
    });
  });

  it('puts no value of a row into an error', async () => {
    const canary = 'canary-4711';
    const codes = postgresEnrollmentCodes(database.app, { rowMacKey });
    const bad = codes.create({ codeHash: canary, createdBy: canary, forUserId: canary, projectId: canary, label: canary, maxUses: 1, autoApprove: true, expiresAtMs: 1 });
    const error = await failure(bad);
    const { stack, message, cause } = error as Error & { cause: Error };
    expect(isUnavailable(error)).toBe(true);
    expect(cause).toMatchObject({ code: ILLEGAL });
    expect(JSON.stringify([stack, message, cause.message, cause.stack, Object.entries(cause), Object.entries(error)])).not.toContain(canary);
  });

  describe('assertSafeRoles', () => {
    it('names every fault of a database that does not keep users apart', async () => {
      const own = await substrate.open();
      await own.intruder.transaction(async (tx) => {
        for (const text of ['CREATE TABLE keyguard.open_one (id int)', 'CREATE UNLOGGED TABLE keyguard.unlogged_one (id int)',
          'ALTER TABLE keyguard.devices NO FORCE ROW LEVEL SECURITY', 'GRANT SELECT ON keyguard.kek_keys TO PUBLIC',
          'GRANT TRUNCATE ON keyguard.used_nonces TO kg_app', 'CREATE VIEW keyguard.view_one AS SELECT 1',
          `CREATE FUNCTION keyguard.loose() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'`,
          'CREATE POLICY for_all ON keyguard.kek_keys USING (true)']) await tx.query(text);
      });
      const error = await failure(assertSafeRoles(own.app, { embedded: substrate.isEmbedded, schemas: ['keyguard', 'absent'] }));
      expect(hasCode(error, 'invalid_option')).toBe(true);
      for (const fault of ['keyguard.open_one does not ENABLE and FORCE', 'keyguard.open_one has no policy', 'keyguard.open_one does not belong to kg_owner',
        'keyguard.unlogged_one is not logged', 'keyguard.devices does not ENABLE and FORCE', 'everyone may SELECT on keyguard.kek_keys',
        'kg_app may TRUNCATE on keyguard.used_nonces', 'view keyguard.view_one is not security_invoker', 'keyguard.loose runs as its owner',
        'everyone may execute keyguard.loose', 'a policy of keyguard.kek_keys is for everyone', 'there is no schema absent']) {
        expect(error.message).toContain(fault);
      }
      await own.close();
    });

    it('refuses a login that is a superuser, or that migrates', async () => {
      const asSuperuser = await failure(assertSafeRoles(database.intruder));
      expect(asSuperuser.message).toContain('is a superuser');
      if (substrate.isEmbedded) return;
      const asMigrator = await failure(assertSafeRoles(database.owner));
      expect(asMigrator.message).toContain('the login may create roles');
      expect(asMigrator.message).toContain('the login can become kg_owner');
    });
  });

  describe('migrations', () => {
    let directory_: string;
    let fresh: Database;
    beforeAll(async () => {
      directory_ = await mkdtemp(join(tmpdir(), 'keyguard-migrations-'));
      fresh = await substrate.create();
    }, 120_000);
    afterAll(async () => {
      await fresh?.close();
      await rm(directory_, { recursive: true, force: true });
    });
    const set = (name: string) => ({ component: name, directory: join(directory_, name), schema: name });
    async function files(name: string, texts: Readonly<Record<string, string>>): Promise<void> {
      const place = join(directory_, name);
      await rm(place, { recursive: true, force: true });
      await cp(OWN_MIGRATIONS, place, { recursive: true, filter: (path) => !path.endsWith('.sql') });
      for (const [file, text] of Object.entries(texts)) await writeFile(join(place, file), text);
    }

    it('apply every file once, when two processes migrate at the same time and when they come again', async () => {
      const both = await Promise.all([migrate(fresh.owner), migrate(fresh.owner)]);
      const applied = both.flat().toSorted();
      expect(applied).toEqual(await ownFiles());
      expect(await migrate(fresh.owner)).toEqual([]);
    });

    it('run another component afterwards, in a schema of its own, as kg_owner', async () => {
      await files('service', { '0001-first.sql': 'CREATE TABLE service.one (id int);\nALTER TABLE service.one ENABLE ROW LEVEL SECURITY;\nALTER TABLE service.one FORCE ROW LEVEL SECURITY;\nCREATE POLICY p ON service.one TO kg_app USING (true);' });
      expect(await migrate(fresh.owner, { migrations: [set('service')] })).toEqual(['service/0001-first.sql']);
      expect(await migrate(fresh.owner, { migrations: [set('service')] })).toEqual([]);
      await expect(assertSafeRoles(fresh.app, { schemas: ['keyguard', 'service'], embedded: true })).resolves.toBeUndefined();
    });

    it('refuse a file that was changed after it was applied, one that comes too late, and a database that is ahead', async () => {
      await files('strict', { '0002-a.sql': 'SELECT 1;' });
      await migrate(fresh.owner, { migrations: [set('strict')] });
      await files('strict', { '0002-a.sql': 'SELECT 1;\r\n'.replace('\r\n', '') });
      expect(await migrate(fresh.owner, { migrations: [set('strict')] })).toEqual([]);
      await files('strict', { '0002-a.sql': 'SELECT 2;' });
      expect((await failure(migrate(fresh.owner, { migrations: [set('strict')] }))).message).toContain('changed after it had been applied');
      await files('strict', { '0001-late.sql': 'SELECT 1;', '0002-a.sql': 'SELECT 1;' });
      expect((await failure(migrate(fresh.owner, { migrations: [set('strict')] }))).message).toContain('comes before one that has been applied');
      await files('strict', {});
      expect((await failure(migrate(fresh.owner, { migrations: [set('strict')] }))).message).toContain('does not know');
      await files('strict', { '2-a.sql': 'SELECT 1;' });
      expect(hasCode(await failure(migrate(fresh.owner, { migrations: [set('strict')] })), 'invalid_option')).toBe(true);
    });

    it('leave nothing of a file that fails, or that ends its transaction, and stop there', async () => {
      await files('broken', { '0001-good.sql': 'CREATE TABLE broken.good (id int);', '0002-bad.sql': 'CREATE TABLE broken.half (id int); SELECT 1/0;', '0003-after.sql': 'CREATE TABLE broken.after (id int);' });
      const error = await failure(migrate(fresh.owner, { migrations: [set('broken')] }));
      expect(isUnavailable(error)).toBe(true);
      expect(error.message).toContain('broken/0002-bad.sql');
      const { rows } = await fresh.intruder.query<{ relname: string }>(`SELECT relname FROM pg_class WHERE relnamespace = 'broken'::regnamespace`);
      expect(rows).toEqual([{ relname: 'good' }]);
      await files('ends', { '0001-ends.sql': 'SELECT 1; COMMIT; SELECT 2;' });
      expect((await failure(migrate(fresh.owner, { migrations: [set('ends')] }))).message).toMatch(/ends its transaction|failed and left nothing/);
    });

    it('say what of them is pending to the login that serves, and change nothing', async () => {
      const own = await substrate.create();
      const states = async (sets: Parameters<typeof pendingMigrations>[1] = {}): Promise<string[]> =>
        (await pendingMigrations(own.app, sets)).map(({ component, name, state }) => `${component}/${name} ${state}`);
      const unprepared = await states();
      expect(unprepared).toEqual((await ownFiles()).map((file) => `${file} missing`));
      await migrate(own.owner);
      expect(await states()).toEqual([]);
      await own.intruder.query('REVOKE SELECT ON keyguard.schema_migrations FROM kg_jobs');
      expect(isUnavailable(await failure(pendingMigrations(own.app)))).toBe(true);
      await own.intruder.query('GRANT SELECT ON keyguard.schema_migrations TO kg_jobs');

      await files('later', { '0001-a.sql': 'SELECT 1;', '0002-b.sql': 'SELECT 1;' });
      const later = { migrations: [set('later')] };
      expect(await states(later)).toEqual(['later/0001-a.sql missing', 'later/0002-b.sql missing']);
      await migrate(own.owner, later);
      expect(await states(later)).toEqual([]);
      await files('later', { '0001-a.sql': 'SELECT 2;', '0003-c.sql': 'SELECT 1;' });
      expect(await states(later)).toEqual(['later/0001-a.sql different', 'later/0003-c.sql missing', 'later/0002-b.sql unknown']);
      await own.intruder.query(`DELETE FROM keyguard.schema_migrations WHERE name = '0005-audit.sql'`);
      expect(await states()).toEqual(['keyguard/0005-audit.sql missing']);
      await own.close();
    });

    it('of a lone set need the bootstrap of this package', async () => {
      await files('alone', {});
      await expect(runMigrations(fresh.owner, [set('alone')])).rejects.toThrow(/bootstrap\.sql/);
    });

    it('grant roles to a login that is there, and to no other', async () => {
      expect(hasCode(await failure(grantRolesTo(fresh.owner, 'nobody-at-all')), 'invalid_option')).toBe(true);
      expect(hasCode(await failure(grantRolesTo(fresh.owner, 'kg_app')), 'invalid_option')).toBe(true);
    });
  });
});
