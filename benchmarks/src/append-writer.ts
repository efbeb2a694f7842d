/**
 * One process that appends to an audit log, for as long as each message says: `append.ts` starts it. Or that does the least which
 * PostgreSQL allows for it: a lock on one row, an insert of as many rows, a commit, without chain, MACs, roles and triggers.
 */
import { randomBytes } from 'node:crypto';
import { verifyRecords } from '@keyguard/core/audit';
import type { AuditRecord } from '@keyguard/core/seams';
import { migrate, nodeMacKey, pgClient, pgliteClient, postgresAuditSink, type SqlClient } from '@keyguard/storage-node/postgres';
import { LIMIT_TABLES, type WriterOrder, type WriterReport, type WriterTask } from './append-task.ts';
import { poolOn } from './databases.ts';
import { proxyCall } from './material.ts';
import { quantile } from './rounds.ts';

const task = JSON.parse(process.argv[2]!) as WriterTask;

async function connect(): Promise<SqlClient> {
  if (task.url !== undefined) return pgClient(poolOn(task.url, 4));
  const { PGlite } = await import('@electric-sql/pglite');
  const client = pgliteClient(await PGlite.create(task.folder!));
  await migrate(client);
  for (const text of LIMIT_TABLES) await client.query(text);
  return client;
}

const sql = await connect();
const macKey = nodeMacKey({ keyId: 'audit-1', key: new Uint8Array(Buffer.from(task.macKey, 'hex')) });
const sink = postgresAuditSink(sql, { origin: task.origin, macKey });

async function appendFor({ append, forMs, callers }: Extract<WriterOrder, { append: unknown }>): Promise<WriterReport> {
  const latenciesMs: number[] = [];
  const once = append === 'audit' ? appendOne : (serial: number): Promise<void> => appendLimit(serial, callers);
  const startedAtMs = performance.now();
  const endsAtMs = startedAtMs + forMs;
  await Promise.all(
    Array.from({ length: append === 'audit' ? callers : 1 }, async () => {
      for (let beganAtMs = startedAtMs; beganAtMs < endsAtMs; ) {
        await once(latenciesMs.length);
        const now = performance.now();
        latenciesMs.push(now - beganAtMs);
        beganAtMs = now;
      }
    }),
  );
  const entries = latenciesMs.length * (append === 'audit' ? 1 : callers);
  return {
    entries,
    perSecond: (entries * 1000) / (performance.now() - startedAtMs),
    p50Ms: quantile(latenciesMs, 0.5),
    p99Ms: quantile(latenciesMs, 0.99),
  };
}

async function appendOne(serial: number): Promise<void> {
  await sink.append([proxyCall(serial)]);
}

// As long as an entry of the audit log, in bytes that say nothing.
const LIMIT_ENTRY = randomBytes(330).toString('base64');
const LIMIT_MAC = randomBytes(32).toString('base64');

async function appendLimit(serial: number, size: number): Promise<void> {
  const each = <T>(value: T): T[] => Array.from({ length: size }, () => value);
  const { actor, action, outcome, device_id: deviceId, resource, ip, request_id: requestId } = proxyCall(serial) as Record<string, unknown>;
  await sql.transaction(async (tx) => {
    const { rows } = await tx.query<{ seq: unknown }>('SELECT seq FROM public.limit_heads WHERE origin = $1 FOR UPDATE', [task.origin]);
    const last = Number(rows[0]!.seq);
    await tx.query(
      `INSERT INTO public.limit_log (origin, seq, ts_ms, actor, device_id, action, resource, outcome, ip, request_id, entry, prev_mac, mac, mac_key_id)
        SELECT $1, r.seq, $2::bigint, r.actor, r.device_id, r.action, r.resource, r.outcome, r.ip, r.request_id,
          decode(r.entry, 'base64'), decode(r.prev_mac, 'base64'), decode(r.mac, 'base64'), $3
        FROM unnest($4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[])
          AS r (seq, actor, device_id, action, resource, outcome, ip, request_id, entry, prev_mac, mac)`,
      [
        task.origin,
        Date.now(),
        macKey.keyId,
        each(0).map((_, i) => last + 1 + i),
        ...[actor, deviceId, action, resource, outcome, ip, requestId, LIMIT_ENTRY, LIMIT_MAC, LIMIT_MAC].map(each),
      ],
    );
    await tx.query('UPDATE public.limit_heads SET seq = $2 WHERE origin = $1', [task.origin, last + size]);
  });
}

/** Reads the whole chain and verifies it; it MUST have as many entries as were acknowledged. */
async function verify(entries: number): Promise<WriterReport> {
  const startedAtMs = performance.now();
  let records = 0;
  async function* counted(): AsyncGenerator<AuditRecord> {
    for await (const record of sink.read(0)) {
      records += 1;
      yield record;
    }
  }
  const { seq } = await verifyRecords(counted(), { origin: task.origin, keys: new Map([[macKey.keyId, macKey]]) });
  if (seq !== entries || records !== entries) throw new Error(`The chain has ${seq} entries; ${entries} were acknowledged.`);
  return { entries, perSecond: (entries * 1000) / (performance.now() - startedAtMs), p50Ms: 0, p99Ms: 0 };
}

await sql.query('INSERT INTO public.limit_heads VALUES ($1, -1) ON CONFLICT DO NOTHING', [task.origin]);
process.on('message', (order: WriterOrder) => {
  void ('append' in order ? appendFor(order) : verify(order.verifyEntries)).then((report) => process.send!(report));
});
process.once('disconnect', () => process.exit(0));
process.send!('ready');
