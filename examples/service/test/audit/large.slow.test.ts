/** A log of many entries: what a proof costs there, and that an export of it does not grow in memory. */
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { inclusionProof, verifyInclusion } from '@keyguard/core/merkle';
import { rootAt } from '../../src/audit/checkpoint-store.ts';
import { growTiles, sha256, tileMemory, tileReader } from '../../src/audit/tree.ts';
import { startInProcess, type Stage } from '../matrix/stage.ts';

const ENTRIES = Number(process.env['KEYGUARD_AUDIT_ENTRIES'] ?? 100_000);
const MEBIBYTE = 1024 * 1024;
vi.setConfig({ testTimeout: 600_000, hookTimeout: 600_000 });

let stage: Stage;
let token = '';
let origin = '';
let holding: NodeJS.Timeout | undefined;

beforeAll(async () => {
  stage = await startInProcess();
  const setUp = await stage.call('POST', '/api/setup', { body: { code: stage.setupCode, email: 'admin@example.com', password: 'a long and quiet password' } });
  if (setUp.status !== 201) throw new Error(setUp.text);
  token = (await stage.call('POST', '/api/auth/sign-in/email', { body: { email: 'admin@example.com', password: 'a long and quiet password' } })).headers.get('set-auth-token')!;
  const { rows } = await stage.sql.query<{ origin: string }>('SELECT origin FROM keyguard.audit_heads');
  origin = rows[0]!.origin;
  // Nobody signs for these, which nobody has sealed: it is another one's turn all the time.
  const hold = (): Promise<unknown> =>
    stage.sql.query(
      `INSERT INTO keyguard.audit_checkpoint_turns VALUES ($1, 'the test', $2) ON CONFLICT (origin) DO UPDATE SET holder = 'the test', until_ms = $2`,
      [origin, Date.now() + 29_000],
    );
  await hold();
  holding = setInterval(() => void hold(), 5000);
  // Sealing them would take most of the time, and neither a proof nor an export looks at a MAC.
  await stage.sql.transaction(async (tx) => {
    await tx.query("SET LOCAL session_replication_role = 'replica'");
    await tx.query(
      `INSERT INTO keyguard.secret_audit_logs (origin, seq, ts_ms, actor, action, outcome, entry, prev_mac, mac, mac_key_id)
        SELECT h.origin, h.seq + n, 0, 'system', 'test.entry', 'success', convert_to(format('{"action":"test.entry","actor":"system","n":%s,"outcome":"success","padding":"%s"}', n, repeat('x', 250)), 'UTF8'),
          decode(repeat('00', 32), 'hex'), decode(repeat('00', 32), 'hex'), 'k' FROM keyguard.audit_heads h, generate_series(1, $1::int) AS n WHERE h.origin = $2`,
      [ENTRIES, origin],
    );
    await tx.query('UPDATE keyguard.audit_heads SET seq = seq + $1::int WHERE origin = $2', [ENTRIES, origin]);
  });
});
afterAll(async () => {
  clearInterval(holding);
  await stage?.stop();
});

it('proves an entry in milliseconds', async () => {
  await growTiles(stage.sql, origin, ENTRIES);
  const root = await rootAt(stage.sql, origin, ENTRIES);
  /** The median of fifty proofs over the whole log. */
  const prove = async (memoryOf: () => ReturnType<typeof tileMemory>): Promise<number> => {
    const times: number[] = [];
    for (let i = 0; i < 50; i += 1) {
      const index = (i * 7919) % ENTRIES;
      const began = performance.now();
      const proof = await inclusionProof(index, ENTRIES, tileReader(stage.sql, origin, memoryOf()), sha256);
      times.push(performance.now() - began);
      const { rows } = await stage.sql.query<{ entry: Uint8Array<ArrayBuffer> }>('SELECT entry FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq = $2::bigint', [origin, index]);
      await verifyInclusion({ bytes: rows[0]!.entry, index, size: ENTRIES, root, proof }, sha256);
    }
    return times.toSorted((a, b) => a - b)[25]!;
  };
  const first = await prove(tileMemory);
  const memory = tileMemory();
  const others = await prove(() => memory);
  process.stdout.write(`a proof from ${ENTRIES} entries: ${first.toFixed(1)} ms at the median where nothing was read before, else ${others.toFixed(1)} ms\n`);
  // A busy machine; alone it is a few.
  expect(first).toBeLessThan(200);
  expect(others).toBeLessThan(first);
});

it('exports in memory that does not grow with the log, at the pace of who reads', async () => {
  const response = await fetch(`${stage.origin}/api/audit/export`, { headers: { authorization: `Bearer ${token}` } });
  const before = process.memoryUsage();
  let [most, bytes, lines] = [0, 0, 0];
  for await (const chunk of response.body!) {
    bytes += chunk.length;
    for (const byte of chunk) if (byte === 0x0a) lines += 1;
    const { heapUsed, external } = process.memoryUsage();
    most = Math.max(most, heapUsed + external - before.heapUsed - before.external);
  }
  process.stdout.write(`an export of ${ENTRIES} entries: ${(bytes / MEBIBYTE).toFixed(0)} MiB, at most ${(most / MEBIBYTE).toFixed(0)} MiB more in memory\n`);
  expect(lines).toBeGreaterThan(ENTRIES);
  expect(bytes).toBeGreaterThan(ENTRIES * 500);
  expect(most).toBeLessThan(160 * MEBIBYTE);
});
