/** Rotation of device keys in PostgreSQL: what the tables refuse whoever writes, and what a MAC shows; the seam's contract is in the conformance suite. */
import { createHash, randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { isUnavailable } from '@keyguard/core/errors';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import type { KeyRotationRequest } from '@keyguard/core/seams';
import {
  asRole,
  nodeMacKey,
  postgresAdministrators,
  postgresDeviceDirectory,
  postgresDeviceRegistry,
  postgresEnrollmentCodes,
  postgresRotationCodes,
  type KeyguardRole,
  type PostgresDeviceRegistry,
  type RotationCodes,
} from '../src/postgres.ts';
import { SUBSTRATES, type Database, type Substrate } from './postgres-substrate.ts';

const DENIED = '42501';
const ILLEGAL = '23514';
const NOT_UNIQUE = '23505';
const NO_SUCH_ROW = '23503';

const rowMacKey = nodeMacKey({ keyId: 'row-1', key: randomBytes(32) });
const newHash = (): string => createHash('sha256').update(randomBytes(16)).digest('base64url');

async function sqlState(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    (answer) => ({ answer }),
    (error: unknown) => (error as { code?: unknown }).code ?? error,
  );
}

const isOutage = (work: Promise<unknown>): Promise<boolean> => work.then(() => false, isUnavailable);

describe.each(SUBSTRATES)('$title', { timeout: 60_000 }, ({ start }) => {
  let substrate: Substrate;
  let database: Database;
  let registry: PostgresDeviceRegistry;
  let codes: RotationCodes;

  beforeAll(async () => {
    substrate = await start();
    database = await substrate.open();
    registry = postgresDeviceRegistry(database.app, { rowMacKey });
    codes = postgresRotationCodes(database.app, { rowMacKey });
    await postgresAdministrators(database.app, { rowMacKey }).grant('admin', { grantedBy: 'setup' });
  }, 120_000);
  afterAll(async () => {
    await database?.close();
    await substrate?.stop();
  }, 60_000);

  const ask = (role: KeyguardRole, userId: string | null, text: string, params: readonly unknown[] = []): Promise<unknown> =>
    sqlState(asRole(database.app, role, async (tx) => (await tx.query(text, params)).rows, { userId }));
  const rowsOf = async (text: string, params: readonly unknown[]): Promise<unknown[]> => (await database.intruder.query(text, params)).rows;
  const intrude = (text: string, params: readonly unknown[]): Promise<unknown> =>
    database.intruder.transaction(async (tx) => {
      await tx.query('SET LOCAL session_replication_role = replica');
      await tx.query(text, params);
    });

  async function enroll(ownerId: string, autoApprove = true): Promise<{ deviceId: string; keyId: string }> {
    const codeHash = newHash();
    await postgresEnrollmentCodes(database.app, { rowMacKey }).create({
      codeHash, createdBy: ownerId, forUserId: ownerId, projectId: 'project-1', label: null, maxUses: 1, autoApprove, expiresAtMs: Date.now() + 900_000,
    });
    const { keyId, publicKey } = await signingKey(await generateKeyPair());
    const answer = await registry.enroll({ keyId, publicKey, codeHash, label: null, fingerprint: null, nowMs: Date.now() });
    if (answer.outcome !== 'enrolled') throw new Error(`It was ${answer.outcome}.`);
    return { deviceId: answer.device.deviceId, keyId };
  }

  async function newCode(deviceId: string, createdBy = 'alice', expiresAtMs = Date.now() + 900_000): Promise<string> {
    const codeHash = newHash();
    const answer = await codes.create({ codeHash, deviceId, createdBy, expiresAtMs });
    if (answer.outcome !== 'created') throw new Error(`It was ${answer.outcome}.`);
    return codeHash;
  }

  async function rotation(oldKeyId: string, codeHash: string | null): Promise<KeyRotationRequest> {
    const { keyId, publicKey } = await signingKey(await generateKeyPair());
    return { oldKeyId, keyId, publicKey, codeHash, allowWithoutCode: false, overlapMs: 60_000, nowMs: Date.now() };
  }

  /** A device with its owner's code, and the request that uses it. */
  async function prepared(): Promise<{ deviceId: string; keyId: string; codeHash: string; request: KeyRotationRequest }> {
    const { deviceId, keyId } = await enroll('alice');
    const codeHash = await newCode(deviceId);
    return { deviceId, keyId, codeHash, request: await rotation(keyId, codeHash) };
  }

  const codeState = (codeHash: string): Promise<unknown[]> =>
    rowsOf('SELECT used_at_ms IS NOT NULL AS used, revoked_at_ms IS NOT NULL AS revoked FROM keyguard.rotation_codes WHERE code_hash = $1', [codeHash]);

  describe('rotation codes', () => {
    it('are made by the owner and by administrators, for an active device, and by nobody else', async () => {
      const { deviceId } = await enroll('alice');
      const one = { codeHash: newHash(), deviceId, expiresAtMs: Date.now() + 1000 };
      expect(await codes.create({ ...one, createdBy: 'alice' })).toEqual({
        outcome: 'created',
        code: { id: expect.any(String), deviceId, createdBy: 'alice', createdAtMs: expect.any(Number), expiresAtMs: one.expiresAtMs },
      });
      expect(await codes.create({ ...one, codeHash: newHash(), createdBy: 'admin' })).toMatchObject({ outcome: 'created' });
      for (const createdBy of ['mallory', '', `alice' OR '1'='1`]) {
        expect(await codes.create({ ...one, codeHash: newHash(), createdBy })).toEqual({ outcome: 'not_found' });
      }
      expect(await codes.create({ ...one, deviceId: 'nobody', createdBy: 'admin' })).toEqual({ outcome: 'not_found' });
      const pending = await enroll('alice', false);
      expect(await codes.create({ ...one, deviceId: pending.deviceId, createdBy: 'alice' })).toEqual({ outcome: 'illegal', status: 'pending' });
      await postgresDeviceDirectory(database.app, { rowMacKey }).transition(deviceId, 'revoke', { byUserId: 'alice' });
      expect(await codes.create({ ...one, codeHash: newHash(), createdBy: 'alice' })).toEqual({ outcome: 'illegal', status: 'revoked' });
    });

    it('take the place of the one before, also when many are made at the same time', async () => {
      const { deviceId, keyId } = await enroll('alice');
      const first = await newCode(deviceId);
      const hashes = await Promise.all(Array.from({ length: 12 }, (_, i) => newCode(deviceId, i % 2 === 0 ? 'alice' : 'admin')));
      const open = await rowsOf('SELECT code_hash FROM keyguard.rotation_codes WHERE device_id = $1 AND revoked_at_ms IS NULL', [deviceId]);
      expect(open).toHaveLength(1);
      const [{ code_hash: latest }] = open as [{ code_hash: string }];
      for (const codeHash of [first, ...hashes.filter((hash) => hash !== latest)]) {
        expect(await registry.rotate(await rotation(keyId, codeHash))).toEqual({ outcome: 'rejected' });
      }
      expect(await registry.rotate(await rotation(keyId, latest))).toMatchObject({ outcome: 'rotated' });
    });

    it('vanish with the transaction that was handed in, and with them that the one before was replaced', async () => {
      const { deviceId, keyId } = await enroll('alice');
      const first = await newCode(deviceId);
      const work = database.app.transaction(async (tx) => {
        await postgresRotationCodes(tx, { rowMacKey }).create({ codeHash: newHash(), deviceId, createdBy: 'alice', expiresAtMs: Date.now() + 1000 });
        throw new Error('no audit entry');
      });
      await expect(work).rejects.toThrow('no audit entry');
      expect(await registry.rotate(await rotation(keyId, first))).toMatchObject({ outcome: 'rotated' });
    });

    it('are seen and made by whose the device is, never read back by their hash, and never reopened', async () => {
      const { deviceId, codeHash, request } = await prepared();
      const count = 'SELECT count(*)::int AS n FROM keyguard.rotation_codes WHERE device_id = $1';
      for (const [userId, n] of [['alice', 1], ['admin', 1], ['bob', 0], [null, 0]] as const) {
        expect([userId, await ask('kg_app', userId, count, [deviceId])]).toEqual([userId, { answer: [{ n }] }]);
      }
      expect(await ask('kg_app', 'alice', 'SELECT code_hash FROM keyguard.rotation_codes')).toBe(DENIED);
      const insert = `INSERT INTO keyguard.rotation_codes (id, code_hash, device_id, created_by, created_at_ms, expires_at_ms, mac_key_id, mac)
        VALUES ('x', $1, $2, $3, 1, 2, 'k', $4)`;
      for (const [userId, createdBy] of [['bob', 'bob'], ['bob', 'alice'], ['alice', 'bob'], [null, 'alice']] as const) {
        expect(await ask('kg_app', userId, insert, [newHash(), deviceId, createdBy, randomBytes(32)])).toBe(DENIED);
      }
      expect(await ask('kg_verifier', null, insert, [newHash(), deviceId, 'alice', randomBytes(32)])).toBe(DENIED);
      for (const text of ['UPDATE keyguard.rotation_codes SET expires_at_ms = 9', 'UPDATE keyguard.rotation_codes SET used_at_ms = NULL', 'DELETE FROM keyguard.rotation_codes']) {
        for (const role of ['kg_app', 'kg_jobs', 'kg_auth'] as const) expect([text, role, await ask(role, 'alice', text)]).toEqual([text, role, DENIED]);
      }
      expect(await registry.rotate(request)).toMatchObject({ outcome: 'rotated' });
      // What is used is hidden from whoever could write that it was not; and the trigger holds for those whom no policy binds.
      expect(await ask('kg_verifier', null, 'UPDATE keyguard.rotation_codes SET used_at_ms = 1 WHERE code_hash = $1 RETURNING id', [codeHash])).toEqual({ answer: [] });
      expect(await sqlState(rowsOf('UPDATE keyguard.rotation_codes SET used_at_ms = NULL WHERE code_hash = $1', [codeHash]))).toBe(ILLEGAL);
      await newCode(deviceId);
      const last = await newCode(deviceId);
      expect(await sqlState(rowsOf('UPDATE keyguard.rotation_codes SET revoked_at_ms = NULL WHERE device_id = $1 AND code_hash <> $2 AND used_at_ms IS NULL', [deviceId, last]))).toBe(ILLEGAL);
    });
  });

  describe('the tables', () => {
    it('keep the verifier from every change of a key but its replacement', async () => {
      const { keyId, request } = await prepared();
      expect(await registry.rotate(request)).toMatchObject({ outcome: 'rotated' });
      for (const set of [`state = 'retired'`, `state = 'retired', retire_at_ms = NULL`, `mac = mac`, 'public_jwk = public_jwk', 'device_id = device_id', 'key_id = key_id', 'replaces = NULL', 'created_at_ms = 1']) {
        const text = `UPDATE keyguard.device_keys SET ${set} WHERE key_id = $1`;
        expect([set, await ask('kg_verifier', null, text, [request.keyId])]).toEqual([set, DENIED]);
        expect([set, await ask('kg_app', 'alice', text, [request.keyId])]).toEqual([set, DENIED]);
      }
      // A key that is retiring is out of its reach.
      const late = 'UPDATE keyguard.device_keys SET retire_at_ms = 99999999999999 WHERE key_id = $1 RETURNING key_id';
      expect(await ask('kg_verifier', null, late, [keyId])).toEqual({ answer: [] });
    });

    it('bring no key back, whoever writes, and change none', async () => {
      const { keyId, request } = await prepared();
      await registry.rotate(request);
      for (const set of [`state = 'current', retire_at_ms = NULL`, 'retire_at_ms = retire_at_ms + 1', `public_jwk = public_jwk || ' '`, `key_id = 'x'`, `replaces = 'x'`, 'created_at_ms = 1']) {
        expect([set, await sqlState(rowsOf(`UPDATE keyguard.device_keys SET ${set} WHERE key_id = $1`, [keyId]))]).toEqual([set, ILLEGAL]);
      }
      await rowsOf(`UPDATE keyguard.device_keys SET state = 'retired', retire_at_ms = NULL WHERE key_id = $1`, [keyId]);
      expect(await sqlState(rowsOf(`UPDATE keyguard.device_keys SET state = 'retiring', retire_at_ms = 1 WHERE key_id = $1`, [keyId]))).toBe(ILLEGAL);
    });

    it('hold one current key of a device, and one successor of a key, of that device', async () => {
      const { deviceId, keyId, request } = await prepared();
      const other = await enroll('alice');
      const insert = async (inDevice: string, state: string, replaces: string | null): Promise<unknown> => {
        const { keyId: id, publicKey } = await signingKey(await generateKeyPair());
        const { crv, kty, x, y } = publicKey;
        return sqlState(rowsOf(
          `INSERT INTO keyguard.device_keys (key_id, device_id, public_jwk, state, created_at_ms, replaces, mac_key_id, mac) VALUES ($1, $2, $3, $4, 1, $5, 'k', $6)`,
          [id, inDevice, JSON.stringify({ crv, kty, x, y }), state, replaces, randomBytes(32)],
        ));
      };
      expect(await insert(deviceId, 'current', null)).toBe(NOT_UNIQUE);
      await registry.rotate(request);
      expect(await insert(deviceId, 'current', null)).toBe(NOT_UNIQUE);
      expect(await insert(deviceId, 'retired', keyId)).toBe(NOT_UNIQUE);
      expect(await insert(deviceId, 'retired', other.keyId)).toBe(NO_SUCH_ROW);
      expect(await rowsOf('SELECT key_id, state, replaces FROM keyguard.device_keys WHERE device_id = $1 ORDER BY created_at_ms, state DESC', [deviceId])).toEqual([
        { key_id: keyId, state: 'retiring', replaces: null },
        { key_id: request.keyId, state: 'current', replaces: keyId },
      ]);
    });
  });

  describe('row MACs', () => {
    const attacks: readonly (readonly [string, string])[] = [
      ['a device of another owner', `UPDATE keyguard.devices SET owner_id = 'mallory' WHERE device_id = $1`],
      ['a device without its MAC', `UPDATE keyguard.devices SET mac = decode(repeat('00', 32), 'hex') WHERE device_id = $1`],
      ['a key without its MAC', `UPDATE keyguard.device_keys SET mac = decode(repeat('00', 32), 'hex') WHERE device_id = $1`],
      ['a code of a longer life', 'UPDATE keyguard.rotation_codes SET expires_at_ms = expires_at_ms + 1 WHERE device_id = $1'],
      ['a code of another maker', `UPDATE keyguard.rotation_codes SET created_by = 'admin' WHERE device_id = $1`],
      ['a code under another MAC key', `UPDATE keyguard.rotation_codes SET mac_key_id = 'row-2' WHERE device_id = $1`],
    ];
    it.each(attacks)('refuse %s, and nothing has changed', async (_, text) => {
      const { deviceId, keyId, codeHash, request } = await prepared();
      await intrude(text, [deviceId]);
      expect(await isOutage(registry.rotate(request))).toBe(true);
      expect(await codeState(codeHash)).toEqual([{ used: false, revoked: false }]);
      expect(await rowsOf('SELECT key_id, state FROM keyguard.device_keys WHERE device_id = $1', [deviceId])).toEqual([{ key_id: keyId, state: 'current' }]);
    });

    it('refuse a code that was moved to another device, or made up', async () => {
      const { codeHash } = await prepared();
      const victim = await enroll('victim');
      await intrude('UPDATE keyguard.rotation_codes SET device_id = $1 WHERE code_hash = $2', [victim.deviceId, codeHash]);
      expect(await isOutage(registry.rotate(await rotation(victim.keyId, codeHash)))).toBe(true);
      expect(await codeState(codeHash)).toEqual([{ used: false, revoked: false }]);
    });

    it('make no code for a device that was changed', async () => {
      const { deviceId } = await enroll('victim');
      await intrude(`UPDATE keyguard.devices SET owner_id = 'mallory' WHERE device_id = $1`, [deviceId]);
      expect(await isOutage(codes.create({ codeHash: newHash(), deviceId, createdBy: 'mallory', expiresAtMs: Date.now() + 1000 }))).toBe(true);
      expect(await rowsOf('SELECT 1 FROM keyguard.rotation_codes WHERE device_id = $1', [deviceId])).toEqual([]);
    });

    it('vouch for both keys after a rotation', async () => {
      const { keyId, request } = await prepared();
      await registry.rotate(request);
      expect(await registry.findByKeyId(keyId)).toMatchObject({ keyState: 'retiring', keyRetiresAtMs: request.nowMs + 60_000 });
      for (const id of [keyId, request.keyId]) {
        await intrude('UPDATE keyguard.device_keys SET mac = $1 WHERE key_id = $2', [randomBytes(32), id]);
        expect(await isOutage(registry.findByKeyId(id))).toBe(true);
      }
    });
  });

  it('holds where no policy does: foreign devices, used, replaced and expired codes', async () => {
    const all = ['devices', 'device_keys', 'rotation_codes'];
    for (const table of all) await rowsOf(`ALTER TABLE keyguard.${table} DISABLE ROW LEVEL SECURITY`, []);
    try {
      const { deviceId, keyId, codeHash, request } = await prepared();
      expect(await codes.create({ codeHash: newHash(), deviceId, createdBy: 'mallory', expiresAtMs: Date.now() + 1000 })).toEqual({ outcome: 'not_found' });
      const foreign = await prepared();
      expect(await registry.rotate(await rotation(keyId, foreign.codeHash))).toEqual({ outcome: 'rejected' });
      expect(await registry.rotate(request)).toMatchObject({ outcome: 'rotated' });
      expect(await registry.rotate(await rotation(request.keyId, codeHash))).toEqual({ outcome: 'rejected' });
      const replaced = await newCode(deviceId);
      const expired = await newCode(deviceId, 'alice', Date.now() - 1);
      for (const hash of [replaced, expired]) expect(await registry.rotate(await rotation(request.keyId, hash))).toEqual({ outcome: 'rejected' });
      expect(await registry.rotate(await rotation(request.keyId, await newCode(deviceId)))).toMatchObject({ outcome: 'rotated' });
    } finally {
      for (const table of all) await rowsOf(`ALTER TABLE keyguard.${table} ENABLE ROW LEVEL SECURITY`, []);
    }
  });

  it('refuses an overlap that is longer than a minute, or none', async () => {
    const { keyId, codeHash } = await prepared();
    for (const overlapMs of [60_001, -1, 0.5, Number.NaN]) {
      await expect(registry.rotate({ ...(await rotation(keyId, codeHash)), overlapMs })).rejects.toMatchObject({ name: 'UsageError' });
    }
    expect(await codeState(codeHash)).toEqual([{ used: false, revoked: false }]);
  });

  it('is undone whole with the transaction that was handed in', async () => {
    const { deviceId, keyId, codeHash, request } = await prepared();
    const work = database.app.transaction(async (tx) => {
      expect(await postgresDeviceRegistry(tx, { rowMacKey }).rotate(request)).toMatchObject({ outcome: 'rotated' });
      throw new Error('no audit entry');
    });
    await expect(work).rejects.toThrow('no audit entry');
    expect(await codeState(codeHash)).toEqual([{ used: false, revoked: false }]);
    expect(await registry.findByKeyId(request.keyId)).toBeNull();
    expect(await registry.findByKeyId(keyId)).toMatchObject({ deviceId, keyState: 'current' });
    expect(await registry.rotate(request)).toMatchObject({ outcome: 'rotated' });
  });

  it('leaves a transaction usable in which the new key turned out to be taken', async () => {
    const { keyId, codeHash, request } = await prepared();
    const other = await prepared();
    const outcomes = await database.app.transaction(async (tx) => {
      const inside = postgresDeviceRegistry(tx, { rowMacKey });
      return [await inside.rotate({ ...request, keyId: other.keyId }), await inside.rotate(await rotation(keyId, codeHash))];
    });
    expect(outcomes.map(({ outcome }) => outcome)).toEqual(['key_exists', 'rotated']);
  });

  it('meets a revocation in either order, and the device is revoked under all its keys', async () => {
    const directory = postgresDeviceDirectory(database.peer, { rowMacKey });
    const seen = new Set<string>();
    for (let round = 0; round < 12; round += 1) {
      const { deviceId, keyId, request } = await prepared();
      const [rotated, revoked] = await Promise.all([registry.rotate(request), directory.transition(deviceId, 'revoke', { byUserId: 'alice' })]);
      seen.add(rotated.outcome);
      expect(revoked.outcome).toBe('changed');
      expect(await registry.findByKeyId(keyId)).toMatchObject({ status: 'revoked' });
      const present = await registry.findByKeyId(request.keyId);
      if (rotated.outcome === 'rotated') expect(present).toMatchObject({ deviceId, status: 'revoked' });
      else expect([rotated.outcome, present]).toEqual(['rejected', null]);
    }
    expect([...seen].every((outcome) => outcome === 'rotated' || outcome === 'rejected')).toBe(true);
  });
});
