/**
 * A process that uses the stores of one database until it is done or killed. It says what was acknowledged, a line each and
 * synchronously, so that what was said is true whatever happens to it next.
 */
import { PGlite } from '@electric-sql/pglite';
import { toBase64Url } from '@keyguard/core/bytes';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import type { Bytes } from '@keyguard/core/seams';
import { createHash, randomBytes } from 'node:crypto';
import { writeSync } from 'node:fs';
import { Pool } from 'pg';
import {
  nodeMacKey,
  pgClient,
  pgliteClient,
  postgresAuditSink,
  postgresDeviceRegistry,
  postgresEnrollmentCodes,
  postgresKeyRecords,
  postgresReplayStore,
  type SqlClient,
} from '../src/postgres.ts';

export interface StoreTask {
  /** Where PostgreSQL is; or the folder of PGlite. */
  readonly url?: string;
  readonly folder?: string;
  readonly origin: string;
  /** 32 bytes each, as hex. */
  readonly macKey: string;
  readonly rowMacKey: string;
  /** Names this process in what it writes. */
  readonly name: string;
  /** How many callers there are at a time. */
  readonly callers: number;
  /** Append so many entries and end; left out: use every store until killed. */
  readonly appends?: number;
}

const LIFE_MS = 600_000;

const task = JSON.parse(process.argv[2]!) as StoreTask;
const say = (...words: readonly unknown[]): unknown => writeSync(1, `${words.join(' ')}\n`);

async function connect(): Promise<SqlClient> {
  if (task.folder !== undefined) return pgliteClient(await PGlite.create(task.folder));
  const pool = new Pool({ connectionString: task.url, max: 8, connectionTimeoutMillis: 5000 });
  pool.on('error', () => {});
  return pgClient(pool);
}

const sql = await connect();
const rowMacKey = nodeMacKey({ keyId: 'row-1', key: Buffer.from(task.rowMacKey, 'hex') });
const sink = postgresAuditSink(sql, { origin: task.origin, macKey: nodeMacKey({ keyId: 'audit-1', key: Buffer.from(task.macKey, 'hex') }) });
let serial = 0;

async function append(): Promise<number> {
  const id = `${task.name}-${(serial += 1)}`;
  const startedMs = performance.now();
  const [record] = await sink.append([{ action: 'store.test', outcome: 'success', actor: 'system', serial: id }]);
  const tookMs = performance.now() - startedMs;
  say('appended', id, record!.seq);
  return tookMs;
}

async function appendAll(count: number): Promise<void> {
  const tookMs: number[] = [];
  let left = count;
  const startedMs = performance.now();
  await Promise.all(
    Array.from({ length: task.callers }, async () => {
      while (left > 0) {
        left -= 1;
        tookMs.push(await append());
      }
    }),
  );
  const seconds = (performance.now() - startedMs) / 1000;
  tookMs.sort((a, b) => a - b);
  const at = (share: number): string => tookMs[Math.min(tookMs.length - 1, Math.floor(tookMs.length * share))]!.toFixed(1);
  say('rate', Math.round(count / seconds), at(0.5), at(0.99));
}

/** One of everything that is durable. */
async function useStores(): Promise<void> {
  const replayStore = postgresReplayStore(sql);
  const registry = postgresDeviceRegistry(sql, { rowMacKey });
  const codes = postgresEnrollmentCodes(sql, { rowMacKey });
  const keyRecords = postgresKeyRecords(sql);
  const nowMs = Date.now();
  const createdSeconds = Math.floor(nowMs / 1000);

  const nonce = toBase64Url(randomBytes(16) as Bytes);
  const keyId = toBase64Url(randomBytes(32) as Bytes);
  if (await replayStore.claim(keyId, nonce, createdSeconds, nowMs + 360_000)) say('claimed', keyId, nonce, createdSeconds, nowMs + 360_000);

  const codeHash = createHash('sha256').update(randomBytes(16)).digest('base64url');
  await codes.create({
    codeHash,
    createdBy: 'admin',
    forUserId: 'user-1',
    projectId: 'project-1',
    label: null,
    maxUses: 1,
    autoApprove: true,
    expiresAtMs: nowMs + 900_000,
  });
  say('coded', codeHash);
  const { keyId: deviceKeyId, publicKey } = await signingKey(await generateKeyPair());
  const { outcome } = await registry.enroll({ keyId: deviceKeyId, publicKey, codeHash, label: null, fingerprint: null, nowMs });
  if (outcome === 'enrolled') say('enrolled', deviceKeyId, codeHash);

  const id = `key-${task.name}-${(serial += 1)}`;
  await keyRecords.insertIfAbsent([{ id, purpose: id, state: 'primary', wrapped: randomBytes(48) as Bytes, rootId: 'root-1', createdAtMs: nowMs }]);
  say('kept', id);

  await append();
}

setTimeout(() => process.exit(2), LIFE_MS).unref();
say('ready');
if (task.appends !== undefined) await appendAll(task.appends);
else {
  const untilItFails = async (): Promise<void> => {
    for (;;) await useStores();
  };
  await Promise.all(Array.from({ length: task.callers }, untilItFails)).catch((error: Error) => say('failed', error.name));
}
process.exit(0);
