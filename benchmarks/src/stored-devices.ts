/** Verifiers on stores that are not in memory, each with the devices that call; and stores that hold many more. */
import { createHash, randomBytes } from 'node:crypto';
import { memoryReplayStore } from '@keyguard/core/memory';
import type { DeviceRegistry, ReplayStore } from '@keyguard/core/seams';
import { cachedDeviceRegistry, createVerifier, nodePrimitives, watchDeviceChanges, type Verifier } from '@keyguard/server-verifier';
import {
  nodeMacKey,
  pgClient,
  postgresDeviceChanges,
  postgresDeviceRegistry,
  postgresEnrollmentCodes,
  postgresReplayStore,
  type SqlClient,
} from '@keyguard/storage-node/postgres';
import { ioredisClient, ioredisOptions, redisReplayStore, type RedisClient } from '@keyguard/storage-node/redis';
import { Redis } from 'ioredis';
import type { Pool } from 'pg';
import { poolOn, type PostgresDatabase } from './databases.ts';
import { AUTHORITY, registryOf, type Key } from './material.ts';

const UNLIMITED_PER_MINUTE = 1_000_000_000;
/** As many as a service would have. */
export const CONNECTIONS = 16;
/** Longer than any run: what fills a store is alive to its end. */
const FILLED_FOR_MS = 3_600_000;

const rowMacKey = nodeMacKey({ keyId: 'row-1', key: new Uint8Array(randomBytes(32)) });

export function verifierOn(registry: DeviceRegistry, replayStore: ReplayStore): Verifier {
  return createVerifier({
    policy: { authorities: [AUTHORITY], requestsPerMinute: UNLIMITED_PER_MINUTE, requestsPerMinutePerIp: UNLIMITED_PER_MINUTE },
    registry,
    replayStore,
    primitives: nodePrimitives(),
  });
}

export function memoryStores(signers: readonly Key[]): { readonly registry: DeviceRegistry; readonly replayStore: ReplayStore } {
  return { registry: registryOf(...signers), replayStore: memoryReplayStore({ startedAtMs: 0 }) };
}

/** The stores of a database in which `signers` are enrolled. */
export interface SqlStores {
  readonly registry: DeviceRegistry;
  readonly replayStore: ReplayStore;
  /** The same devices, kept in memory and watched. */
  readonly kept: DeviceRegistry;
  stopWatch(): void;
}

export async function sqlStores(sql: SqlClient, signers: readonly Key[]): Promise<SqlStores> {
  const registry = postgresDeviceRegistry(sql, { rowMacKey });
  const codeHash = createHash('sha256').update(randomBytes(16)).digest('base64url');
  await postgresEnrollmentCodes(sql, { rowMacKey }).create({
    codeHash,
    createdBy: 'user-1',
    forUserId: 'user-1',
    projectId: 'project-1',
    label: null,
    maxUses: signers.length,
    autoApprove: true,
    expiresAtMs: Date.now() + FILLED_FOR_MS,
  });
  for (const { keyId, publicJwk } of signers) {
    const { outcome } = await registry.enroll({ keyId, publicKey: publicJwk, codeHash, label: null, fingerprint: null, nowMs: Date.now() });
    if (outcome !== 'enrolled') throw new Error(`Enrollment of the benchmark's device: ${outcome}.`);
  }
  const watch = watchDeviceChanges(postgresDeviceChanges(sql));
  return { registry, replayStore: postgresReplayStore(sql), kept: cachedDeviceRegistry(registry, watch), stopWatch: () => watch.stop() };
}

export interface Connected<T> {
  readonly stores: T;
  close(): Promise<void>;
}

export async function postgresStores({ appUrl }: PostgresDatabase, signers: readonly Key[]): Promise<Connected<SqlStores>> {
  const pool = poolOn(appUrl, CONNECTIONS);
  const stores = await sqlStores(pgClient(pool), signers);
  return {
    stores,
    async close() {
      stores.stopWatch();
      await pool.end();
    },
  };
}

/** Replay stores on one Redis, each in a key of its own and holding so many live nonces already. */
export async function redisStores<Key extends string>(url: string, sizes: Readonly<Record<Key, number>>): Promise<Connected<Readonly<Record<Key, ReplayStore>>>> {
  const redis = new Redis(url, { ...ioredisOptions });
  redis.on('error', () => {});
  if (redis.status !== 'ready') await new Promise<void>((resolve) => redis.once('ready', () => resolve()));
  const client = ioredisClient(redis);
  const open = async (key: string, size: number): Promise<ReplayStore> => {
    // Patient: on a busy machine an answer may take its time, and a benchmark is not to end by that.
    const store = redisReplayStore(client, { key, timeoutMs: 10_000 });
    const { readyAtMs } = await store.check();
    // A new Redis refuses for some seconds; and one more, because what is claimed is dated in whole ones.
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, readyAtMs - Date.now()) + 1000));
    await fillRedis(client, key, size);
    return store;
  };
  const opened = await Promise.all(Object.entries<number>(sizes).map(async ([key, size]) => [key, await open(key, size)] as const));
  return { stores: Object.fromEntries(opened) as Record<Key, ReplayStore>, close: async () => redis.disconnect() };
}

const KEY_ID_OF_JWK = `rtrim(translate(encode(sha256(convert_to(r.jwk, 'UTF8')), 'base64'), '+/', '-_'), '=')`;

/** So many more devices, who never call, and as many nonces that are alive. */
export async function fillPostgres(superuser: Pool, count: number): Promise<void> {
  const connection = await superuser.connect();
  // Rows that nobody reads: their MACs are none, and no trigger has to look at them.
  await connection.query(`SET session_replication_role = replica`);
  await connection.query(
    `INSERT INTO keyguard.devices (device_id, owner_id, project_id, status, created_at_ms, mac_key_id, mac)
      SELECT 'device-' || i, 'user-1', 'project-1', 'active', i, 'row-1', decode(repeat('00', 32), 'hex') FROM generate_series(1, $1::int) AS i`,
    [count],
  );
  await connection.query(
    `INSERT INTO keyguard.device_keys (key_id, device_id, public_jwk, state, created_at_ms, mac_key_id, mac)
      SELECT ${KEY_ID_OF_JWK}, 'device-' || r.i, r.jwk, 'current', r.i, 'row-1', decode(repeat('00', 32), 'hex')
      FROM (SELECT i, '{"crv":"P-256","kty":"EC","x":"' || repeat('x', 43) || '","y":"' || i || '"}' AS jwk FROM generate_series(1, $1::int) AS i) AS r`,
    [count],
  );
  await connection.query(
    `INSERT INTO keyguard.used_nonces (key_id, nonce, created_seconds, expires_at_ms)
      SELECT ${KEY_ID_OF_JWK.replaceAll('r.jwk', 'r.i::text')}, left(${KEY_ID_OF_JWK.replaceAll('r.jwk', `'n' || r.i::text`)}, 22), $2::bigint, $3::bigint
      FROM generate_series(1, $1::int) AS r (i)`,
    [count, Math.floor(Date.now() / 1000), Date.now() + FILLED_FOR_MS],
  );
  await connection.query('VACUUM ANALYZE keyguard.devices, keyguard.device_keys, keyguard.used_nonces');
  connection.release(true);
}

/** So many more nonces that are alive, added behind the store's back: by claims a million would take a minute. */
async function fillRedis(client: RedisClient, key: string, count: number): Promise<void> {
  const expiresAtMs = String(Date.now() + FILLED_FOR_MS);
  for (let done = 0; done < count; done += 1000) {
    const members = Array.from({ length: Math.min(1000, count - done) }, () => [expiresAtMs, `43.${randomBytes(32).toString('base64url')}${randomBytes(16).toString('base64url')}`]);
    await client.send(['ZADD', key, ...members.flat()]);
  }
}
