/** Idempotency-Key: a creation that is asked for again happens once, whatever is asked at the same time or dies in between. */
import { randomBytes, randomUUID } from 'node:crypto';
import type { PGlite } from '@electric-sql/pglite';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { aesKeyProvider } from '@keyguard/core/vault';
import { nodeMacKey, pgliteClient, type SqlClient } from '@keyguard/storage-node/postgres';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import { auditLog, type AuditLog } from '../../src/audit/log.ts';
import type { Person } from '../../src/auth/principal.ts';
import { asJobs, asUser } from '../../src/db/as-user.ts';
import { createIdempotency, KEPT_MS, LEASE_MS, readIdempotencyKey, type Idempotency } from '../../src/http/idempotency.ts';
import type { Answer } from '../../src/http/operations.ts';
import type { DeploymentKeys } from '../../src/keys/hierarchy.ts';
import { startInProcess, type Person as SignedIn, type Stage } from '../matrix/stage.ts';
import type { CallAnswer } from '../stage.ts';
import { migratedDatabase } from '../migrated.ts';

describe('an Idempotency-Key', () => {
  let stage: Stage;
  let owner: SignedIn;
  let other: SignedIn;

  beforeAll(async () => {
    stage = await startInProcess();
    owner = await stage.newPerson('owner');
    other = await stage.newPerson('other');
  }, 120_000);
  afterAll(() => stage.stop(), 60_000);

  const create = (key: string, body: object, token = owner.token): Promise<CallAnswer> =>
    stage.call('POST', '/api/enrollment-codes', { token, body, headers: { 'idempotency-key': key } });
  const countOf = async (label: string): Promise<number> => {
    const { rows } = await stage.sql.query<{ n: unknown }>('SELECT count(*) AS n FROM keyguard.enrollment_codes WHERE label = $1', [label]);
    return Number(rows[0]!.n);
  };

  it('makes one creation of 100 copies, and answers each copy with it or with a conflict', async () => {
    const key = randomUUID();
    const answers = await Promise.all(Array.from({ length: 100 }, () => create(key, { label: 'a hundred' })));
    expect(await countOf('a hundred')).toBe(1);
    const made = answers.filter(({ status }) => status === 201);
    expect(made.filter(({ headers }) => !headers.has('idempotency-replayed'))).toHaveLength(1);
    expect(new Set(made.map(({ text }) => text)).size).toBe(1);
    const others = answers.filter(({ status }) => status !== 201);
    expect(others.every(({ status, json, headers }) => status === 409 && json.code === 'idempotency_in_flight' && headers.get('retry-after') === '1')).toBe(true);
  });

  it('answers a repetition as it answered at first, code and all', async () => {
    const key = `"${randomUUID()}"`;
    const first = await create(key, { label: 'repeated', max_uses: 2 });
    // Without quotes, and with its members in another order: the same key, and the same request.
    const again = await create(key.slice(1, -1), { max_uses: 2, label: 'repeated' });
    expect([first.status, again.status, again.text]).toEqual([201, 201, first.text]);
    expect([first.headers.get('idempotency-replayed'), again.headers.get('idempotency-replayed')]).toEqual([null, 'true']);
    expect(again.headers.get('cache-control')).toBe('no-store');
    expect(again.headers.get('x-request-id')).not.toBe(first.headers.get('x-request-id'));
    expect(await countOf('repeated')).toBe(1);
    const { json } = await stage.call('GET', '/api/audit?limit=1', { token: owner.token });
    expect(json.data[0]).toMatchObject({ action: 'idempotency.replay', operation: 'enrollment_code.create', actor: `user:${owner.userId}` });
  });

  it('refuses the key of another request, and keeps the keys of callers and of operations apart', async () => {
    const key = randomUUID();
    expect((await create(key, { label: 'mine' })).status).toBe(201);
    const reused = await create(key, { label: 'not mine' });
    expect([reused.status, reused.json.code]).toEqual([422, 'idempotency_key_reused']);
    expect(await countOf('not mine')).toBe(0);
    const theirs = await create(key, { label: 'mine' }, other.token);
    expect([theirs.status, theirs.headers.get('idempotency-replayed')]).toEqual([201, null]);
    expect(await countOf('mine')).toBe(2);
    // Whoever has ended their session gets nothing out of a key.
    expect((await create(key, { label: 'mine' }, 'nobody')).status).toBe(401);
  });

  it('keeps no refusal: the same key may come again with what is right', async () => {
    const key = randomUUID();
    expect((await create(key, { label: '' })).status).toBe(400);
    expect((await create(key, { auto_approve: true })).status).toBe(403);
    expect((await create(key, { label: 'at last' })).status).toBe(201);
    expect(await countOf('at last')).toBe(1);
  });

  it('stores neither the key, nor the request, nor the answer in a form that can be read', async () => {
    const [key, label] = [`key-${randomUUID()}`, `label ${randomUUID()}`];
    const { json } = await create(key, { label });
    const { rows } = await stage.sql.query<Record<string, unknown>>('SELECT * FROM keyguard.idempotency_keys');
    const stored = rows.map((row) => Object.values(row).map((value) => (value instanceof Uint8Array ? Buffer.from(value).toString('latin1') : String(value))).join('\n')).join('\n');
    expect(rows.length).toBeGreaterThan(0);
    for (const secret of [key, label, json.code, json.id]) expect(stored).not.toContain(secret);
  });

  it('opens no reply that was moved to somebody else’s key', async () => {
    const [mine, theirs] = [randomUUID(), randomUUID()];
    const made = await create(mine, { label: 'moved' });
    await create(theirs, { label: 'moved' }, other.token);
    // As whoever can write to the database would: the envelope of one under the key of the other.
    await stage.sql.query(
      `UPDATE keyguard.idempotency_keys t SET ciphertext = s.ciphertext, wrapped_dek = s.wrapped_dek, kek_id = s.kek_id
        FROM keyguard.idempotency_keys s WHERE t.user_id = $1 AND s.user_id = $2 AND t.fingerprint = s.fingerprint`,
      [other.userId, owner.userId],
    );
    const answer = await create(theirs, { label: 'moved' }, other.token);
    expect([answer.status, answer.json.code]).toEqual([409, 'idempotency_reply_lost']);
    expect(answer.text).not.toContain(made.json.code);
  });

  it('shows nobody the keys of others, whatever the application asks', async () => {
    const { rows } = await asUser(stage.sql, other.userId, (tx) => tx.query<{ user_id: string }>('SELECT user_id FROM keyguard.idempotency_keys'));
    expect(new Set(rows.map(({ user_id: userId }) => userId))).toEqual(new Set([other.userId]));
    const nobody = await asUser(stage.sql, '', (tx) => tx.query('SELECT 1 FROM keyguard.idempotency_keys'));
    expect(nobody.rows).toEqual([]);
  });

  it.each(['', ' ', '"', '""', '"a', 'a b', 'a,b', 'ä', '"a\\"', 'a'.repeat(256), '"a", "a"', "'; DROP TABLE keyguard.devices; --"])('refuses %j as a key', (key) => {
    expect(() => readIdempotencyKey(Buffer.from(key).toString('latin1'))).toThrow(expect.objectContaining({ code: 'malformed_request' }));
  });
});

describe('a claim', () => {
  const PRINCIPAL: Person = { kind: 'person', userId: 'owner', actor: 'user:owner', sessionId: 's', isAdministrator: false, secondFactor: { isSetUp: false, provenAtMs: null } };
  let database: PGlite;
  let sql: SqlClient;
  let audit: AuditLog;
  let idempotency: Idempotency;
  const faults: unknown[] = [];
  const clock = { now: Date.now(), nowMs: (): number => clock.now };

  beforeAll(async () => {
    database = await migratedDatabase();
    sql = pgliteClient(database);
    // Replies are sealed under a key that is in use, and under no other.
    await asJobs(sql, (tx) =>
      tx.query(`INSERT INTO keyguard.kek_keys (id, purpose, state, wrapped, root_id, created_at_ms) VALUES ('kek', 'kek', 'primary', $1, 'root', 1)`, [randomBytes(32)]),
    );
    const keys = {
      deploymentId: 'test',
      kek: await aesKeyProvider({ kekId: 'kek', key: randomBytes(32), primitives: nodeVaultPrimitives() }),
      auditMacKey: nodeMacKey({ keyId: 'audit', key: randomBytes(32) }),
      hashToken: (text: string) => Buffer.from(text.padEnd(32).slice(0, 32)).toString('base64url'),
    } as unknown as DeploymentKeys;
    audit = auditLog(sql, keys);
    idempotency = createIdempotency({ sql, keys, audit, clock, onFault: (error) => faults.push(error) });
  }, 120_000);
  afterAll(() => database.close());

  let carriedOut = 0;
  /** What a handler does: something slow, then one transaction with its entry in it. */
  const once = (key: string, before: () => Promise<void> = async () => {}, after: () => Promise<void> = async () => {}): Promise<Answer> =>
    idempotency.once({ key, operation: { id: 'make', action: 'thing.make' }, principal: PRINCIPAL, input: [] }, async () => {
      await before();
      await asUser(sql, 'owner', (tx) => audit.recordIn(tx, { action: 'thing.make', outcome: 'success', actor: 'user:owner' }));
      carriedOut += 1;
      await after();
      return { status: 201, json: { n: carriedOut }, etag: 'one', headers: { location: '/api/things/1' } };
    });
  const gate = (): { readonly opened: Promise<void>; open(): void } => {
    let open = (): void => {};
    const opened = new Promise<void>((resolve) => (open = resolve));
    return { opened, open };
  };
  const never = new Promise<void>(() => {});

  it('is free again once its lease is over, where its holder died before the commit', async () => {
    const before = carriedOut;
    void once('died before', () => never);
    await expect(once('died before')).rejects.toMatchObject({ code: 'idempotency_in_flight' });
    clock.now += LEASE_MS + 1;
    await expect(once('died before')).resolves.toMatchObject({ status: 201 });
    expect(carriedOut).toBe(before + 1);
  });

  it('is never carried out again where its holder died between the commit and the answer', async () => {
    const before = carriedOut;
    const committed = gate();
    void once('died after', undefined, () => {
      committed.open();
      return never;
    });
    await committed.opened;
    await expect(once('died after')).rejects.toMatchObject({ code: 'idempotency_in_flight' });
    clock.now += LEASE_MS + 1;
    for (let n = 0; n < 3; n += 1) await expect(once('died after')).rejects.toMatchObject({ code: 'idempotency_reply_lost' });
    expect(carriedOut).toBe(before + 1);
  });

  it('lets a holder that was too slow commit nothing, once another has taken over', async () => {
    const before = carriedOut;
    const slow = gate();
    const first = once('slow', () => slow.opened);
    await expect(once('slow')).rejects.toMatchObject({ code: 'idempotency_in_flight' });
    clock.now += LEASE_MS + 1;
    const second = await once('slow');
    slow.open();
    await expect(first).rejects.toMatchObject({ code: 'idempotency_in_flight' });
    expect(carriedOut).toBe(before + 1);
    expect(await once('slow')).toEqual({ ...second, headers: { ...second.headers, 'idempotency-replayed': 'true' } });
  });

  it('keeps what was answered for a day, and is then purged', async () => {
    const before = carriedOut;
    await once('old');
    clock.now += KEPT_MS - 1;
    await idempotency.purge();
    await once('old');
    expect(carriedOut).toBe(before + 1);
    clock.now += 1;
    await idempotency.purge();
    const { rows } = await sql.query('SELECT 1 FROM keyguard.idempotency_keys');
    expect(rows).toEqual([]);
    await once('old');
    expect(carriedOut).toBe(before + 2);
  });

  it('is set free by a failure before the commit, and by none after it', async () => {
    await expect(once('fails', () => Promise.reject(new Error('before')))).rejects.toThrow('before');
    await expect(once('fails', undefined, () => Promise.reject(new Error('after')))).rejects.toThrow('after');
    clock.now += LEASE_MS + 1;
    await expect(once('fails')).rejects.toMatchObject({ code: 'idempotency_reply_lost' });
    expect(faults).toEqual([]);
  });

  it('tells the operator of a handler that would be doubled by a crash', async () => {
    await idempotency.once({ key: 'careless', operation: { id: 'careless', action: 'careless.make' }, principal: PRINCIPAL, input: [] }, async () => ({ status: 201, json: {} }));
    expect(faults.map(String)).toEqual([expect.stringContaining('careless takes an Idempotency-Key, and records nothing')]);
  });
});
