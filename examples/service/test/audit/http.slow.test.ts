/**
 * The audit log over HTTP: who sees what by which filter, and that what is exported and proven holds for somebody who trusts neither
 * the database nor the service.
 */
import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { hashPassword } from 'better-auth/crypto';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { fromBase64 } from '@keyguard/core/bytes';
import { checkpointVerifier, verifyCheckpoint } from '@keyguard/core/checkpoint';
import { verifyConsistency, verifyInclusion } from '@keyguard/core/merkle';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { csvRow } from '../../src/audit/csv.ts';
import { keptCheckpoints } from '../../src/audit/kept.ts';
import { sha256 } from '../../src/audit/tree.ts';
import { readConfig } from '../../src/config.ts';
import { startService, type Service } from '../../src/service.ts';
import { insertPerson, vouchingOf } from '../people-rows.ts';
import { backends, caller, type Backend, type CallAnswer } from '../stage.ts';
import { gathered } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 90_000 });

const VERIFIER = fileURLToPath(new URL('../../../audit-verifier/src/cli/main.ts', import.meta.url));
const PASSWORD = 'a long and quiet password';
type Entry = Readonly<Record<string, unknown>> & { readonly seq: number; readonly ts: string; readonly actor: string; readonly action: string };

describe.each(backends())('the audit log on %s', (_title, open) => {
  let backend: Backend;
  let service: Service;
  let sql: SqlClient;
  let origin = '';
  let folder = '';
  const tokens: Record<string, string> = {};
  const ids: Record<string, string> = {};
  const send = caller(() => origin);
  const get = (who: string, path: string, headers: Record<string, string> = {}): Promise<CallAnswer> => send('GET', path, { token: tokens[who]!, headers });

  async function signIn(name: string): Promise<void> {
    const answer = await send('POST', '/api/auth/sign-in/email', { body: { email: `${name}@example.com`, password: PASSWORD } });
    tokens[name] = answer.headers.get('set-auth-token')!;
    ids[name] = answer.json.user.id;
  }

  /** All that `who` sees by this query, page by page. */
  async function all(who: string, query: Record<string, string> = {}, limit = '50'): Promise<Entry[]> {
    const found: Entry[] = [];
    let cursor: string | null = null;
    do {
      const page: CallAnswer = await get(who, `/api/audit?${new URLSearchParams({ limit, ...query, ...(cursor !== null && { cursor }) })}`);
      expect(page.status, page.text).toBe(200);
      found.push(...page.json.data);
      cursor = page.json.next_cursor;
    } while (cursor !== null);
    return found;
  }

  beforeAll(async () => {
    backend = await open();
    const deployment = await backend.deploy();
    folder = join(deployment.folder, 'elsewhere');
    const said: string[] = [];
    const config = readConfig(
      { ...deployment.environment, PORT: '0', KEYGUARD_DATA_DIR: join(deployment.folder, 'data'), KEYGUARD_CHECKPOINT_DIR: folder, KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: PASSWORD },
      deployment.folder,
    );
    service = await startService({
      config,
      log: pino({ level: 'silent' }),
      say: (text) => said.push(text),
      overrides: {
        database(opened) {
          sql = opened.sql;
          return opened;
        },
      },
    });
    origin = /KeyGuard is at (\S+),/.exec(said.join('\n'))![1]!;
    await signIn('admin');
    const vouching = await vouchingOf(sql, config.rootKey);
    const passwordHash = await hashPassword(PASSWORD);
    for (const name of ['alice', 'bob']) {
      ids[name] = randomUUID();
      await insertPerson(sql, vouching, { id: ids[name], name, email: `${name}@example.com`, passwordHash });
      await signIn(name);
    }
    for (const name of ['alice', 'bob', 'alice']) {
      const made = await send('POST', '/api/enrollment-codes', { token: tokens[name]!, body: { label: '=cmd|calc' } });
      if (made.status !== 201) throw new Error(made.text);
      await get(name, `/api/devices/${randomUUID()}`);
      await send('POST', `/api/enrollment-codes/${made.json.id}/revoke`, { token: tokens[name]! });
    }
  });
  afterAll(async () => {
    await service?.stop();
    await backend?.stop();
  });

  it('shows each what is theirs, by every filter exactly, and nothing of others to who asks for it', async () => {
    const log = await all('admin');
    expect(log.map(({ seq }) => seq)).toEqual(log.map((_, i) => log.length - 1 - i));
    expect(await all('admin', {}, '3')).toEqual(await all('admin', {}, '200'));
    const some = log[Math.floor(log.length / 2)]!;
    const queries: readonly [Record<string, string>, (entry: Entry) => boolean][] = [
      ...[...new Set(log.map(({ actor }) => actor))].map((actor): [Record<string, string>, (entry: Entry) => boolean] => [{ actor }, (entry) => entry.actor === actor]),
      ...['enrollment_code.', 'enrollment_code.revoke', 'device.read', 'enrollment%', 'enrollment_code_', '_'].map((action): [Record<string, string>, (entry: Entry) => boolean] => [{ action }, (entry) => entry.action.startsWith(action)]),
      ...log.filter(({ resource }) => resource !== undefined).map(({ resource }): [Record<string, string>, (entry: Entry) => boolean] => [{ resource: resource as string }, (entry) => entry['resource'] === resource]),
      [{ outcome: 'refused' }, ({ outcome }) => outcome === 'refused'],
      [{ ip: '127.0.0.1' }, ({ ip }) => ip === '127.0.0.1'],
      [{ ip: '127.0.0.2' }, () => false],
      [{ request_id: String(log[0]!['request_id']) }, ({ request_id: id }) => id === log[0]!['request_id']],
      [{ from: some.ts }, ({ ts }) => ts >= some.ts],
      [{ to: some.ts }, ({ ts }) => ts < some.ts],
      [{ from_seq: '3', to_seq: '7' }, ({ seq }) => seq >= 3 && seq <= 7],
      [{ device: ids['alice']! }, () => false],
      [{ actor: `user:${ids['bob']}`, outcome: 'success', action: 'enrollment_code.' }, (entry) => entry.actor === `user:${ids['bob']}` && entry['outcome'] === 'success' && entry.action.startsWith('enrollment_code.')],
    ];
    for (const [query, holds] of queries) {
      const expected = log.filter(holds);
      const until = { to_seq: query['to_seq'] ?? String(log[0]!.seq) };
      expect(await all('admin', { ...query, ...until }), JSON.stringify(query)).toEqual(expected);
      expect(await all('alice', { ...query, ...until }), `alice by ${JSON.stringify(query)}`).toEqual(expected.filter(({ actor }) => actor === `user:${ids['alice']}`));
    }
    for (const query of ['actor=%00', 'resource=a%0Ab', 'from=yesterday', 'from_seq=-1', 'outcome=maybe', 'limit=0', 'limit=201', 'cursor=x', 'unknown=1']) {
      expect((await get('admin', `/api/audit?${query}`)).status, query).toBe(400);
    }
  });

  it('tells everything about one thing in order, in pages, with the names of people for administrators alone', async () => {
    const log = (await all('admin')).toReversed();
    const alice = `user:${ids['alice']}`;
    const subjects: readonly [string, (entry: Entry) => boolean][] = [
      [`user=${ids['alice']}`, ({ actor, resource }) => actor === alice || resource === alice],
      ['ip=127.0.0.1', ({ ip }) => ip === '127.0.0.1'],
      [`request=${String(log.at(-1)!['request_id'])}`, ({ request_id: id }) => id === log.at(-1)!['request_id']],
    ];
    const read = async (who: string, subject: string, limit: number): Promise<{ entries: Entry[]; names: object }> => {
      const entries: Entry[] = [];
      const names = {};
      let cursor: string | null = null;
      do {
        const page: CallAnswer = await get(who, `/api/audit/timeline?${subject}&limit=${limit}${cursor === null ? '' : `&cursor=${cursor}`}`);
        expect(page.status, page.text).toBe(200);
        entries.push(...page.json.data);
        Object.assign(names, page.json.names);
        cursor = page.json.next_cursor;
      } while (cursor !== null);
      return { entries, names };
    };
    for (const [subject, holds] of subjects) {
      const expected = log.filter(holds);
      expect((await read('admin', subject, 2)).entries.slice(0, expected.length), subject).toEqual(expected);
      const own = await read('bob', subject, 50);
      expect(own.entries.filter(({ seq }) => seq <= log.at(-1)!.seq), subject).toEqual(expected.filter(({ actor }) => actor === `user:${ids['bob']}`));
      expect(own.names).toEqual({});
    }
    expect((await read('admin', `user=${ids['alice']}`, 50)).names).toEqual({ [alice]: 'alice@example.com' });
    // A session: what was done in it, by its owner and by nobody else.
    const inOne = log.find((entry) => entry.actor === alice && typeof entry['session_id'] === 'string')!;
    const session = await read('admin', `session=${String(inOne['session_id'])}`, 3);
    expect(session.entries.length).toBeGreaterThan(5);
    expect(session.entries.filter(({ seq }) => seq <= log.at(-1)!.seq)).toEqual(log.filter((entry) => entry['session_id'] === inOne['session_id'] || entry['resource'] === `session:${String(inOne['session_id'])}`));
    expect((await read('bob', `session=${String(inOne['session_id'])}`, 50)).entries).toEqual([]);
    const newest = await get('admin', `/api/audit/timeline?user=${ids['alice']}&order=newest_first&limit=1`);
    expect(newest.json.data[0].seq).toBe(log.findLast(subjects[0]![1])!.seq);
    for (const query of ['', '?user=a&ip=b', '?user=%00']) expect((await get('admin', `/api/audit/timeline${query}`)).status).toBe(400);
  });

  it('proves entries and that the log only grew, to who may read them', async () => {
    const first = await send('POST', '/api/audit/checkpoint', { token: tokens['admin']! });
    expect(first.status, first.text).toBe(201);
    const key = (await get('bob', '/api/audit/verifier-key')).json;
    const verifier = await checkpointVerifier(key.key);
    const note = await get('bob', '/api/audit/checkpoint', { accept: 'text/plain' });
    expect([note.headers.get('content-type'), note.text]).toEqual(['text/plain; charset=utf-8', first.json.note]);
    const checkpoint = await verifyCheckpoint(note.text, [verifier]);
    const [own] = await all('alice', { action: 'enrollment_code.create' });
    const proof = (await get('alice', `/api/audit/${own!.seq}/proof`)).json;
    const bytes = fromBase64(proof.entry)!;
    expect(JSON.parse(new TextDecoder().decode(bytes))).toEqual(own);
    await verifyInclusion({ bytes, index: own!.seq, size: checkpoint.size, root: checkpoint.root, proof: proof.proof.map((hash: string) => fromBase64(hash)!) }, sha256);
    // The bytes of an entry are for who may read it; that there is one is not told either.
    const [foreign, nothing] = [await get('bob', `/api/audit/${own!.seq}/proof`), await get('bob', '/api/audit/999999/proof')];
    expect([foreign.status, { ...foreign.json, request_id: '' }]).toEqual([404, { ...nothing.json, request_id: '' }]);
    expect((await get('admin', `/api/audit/${own!.seq}/proof?size=1`)).status).toBe(404);
    const late = await get('admin', `/api/audit/${checkpoint.size}/proof`);
    expect([late.status, late.json.code, late.headers.get('retry-after')]).toEqual([409, 'checkpoint_pending', '60']);

    const second = await send('POST', '/api/audit/checkpoint', { token: tokens['admin']! });
    const grown = (await get('bob', `/api/audit/consistency?from=${checkpoint.size}`)).json;
    const newer = await verifyCheckpoint(second.json.note, [verifier]);
    expect([grown.from_checkpoint, grown.to_checkpoint]).toEqual([first.json.note, second.json.note]);
    await verifyConsistency({ oldSize: checkpoint.size, oldRoot: checkpoint.root, newSize: newer.size, newRoot: newer.root, proof: grown.proof.map((hash: string) => fromBase64(hash)!) }, sha256);
    const older = (await get('admin', `/api/audit/${own!.seq}/proof?size=${checkpoint.size}`)).json;
    expect(older.checkpoint).toBe(first.json.note);
    expect((await get('bob', `/api/audit/consistency?from=9&to=3`)).status).toBe(400);
    expect((await get('bob', `/api/audit/consistency?from=0&to=${newer.size + 1000}`)).status).toBe(409);
    // Outside are the same notes.
    expect(await gathered(keptCheckpoints(folder).all())).toEqual(expect.arrayContaining([second.json.note]));
    expect(await keptCheckpoints(folder).verifierKeys()).toEqual([key.key]);
  });

  it('exports what the verifier verifies with what is kept outside, and puts the export on record first', async () => {
    await send('POST', '/api/audit/checkpoint', { token: tokens['admin']! });
    const exported = await get('admin', '/api/audit/export');
    expect([exported.status, exported.headers.get('content-type'), exported.headers.get('cache-control')]).toEqual([200, 'application/jsonl', 'no-store']);
    expect(exported.headers.get('content-disposition')).toMatch(/^attachment; filename="audit-\d{4}-\d\d-\d\d\.jsonl"$/);
    const records = exported.text.trimEnd().split('\n').slice(1, -1).map((line) => JSON.parse(Buffer.from(JSON.parse(line).entry, 'base64').toString()) as Entry);
    expect(records.at(-1)).toMatchObject({ action: 'audit.export', actor: `user:${ids['admin']}`, format: 'jsonl' });

    const place = join(folder, '..', 'auditor');
    await mkdir(place);
    await writeFile(join(place, 'export.jsonl'), exported.text);
    const notes = await gathered(keptCheckpoints(folder).all());
    const files = await Promise.all(notes.map(async (note, i) => {
      await writeFile(join(place, `${i}.checkpoint`), note);
      return join(place, `${i}.checkpoint`);
    }));
    const verify = (file: string): Promise<{ readonly code: number; readonly output: string }> => {
      const args = ['--conditions=@keyguard/source', VERIFIER, join(place, file), '--key-file', join(folder, 'verifier-keys.txt'), ...files.flatMap((each) => ['--checkpoint', each])];
      return new Promise((resolve) => {
        execFile(process.execPath, args, { cwd: place, env: { PATH: process.env['PATH'] ?? '' } }, (error, stdout, stderr) => resolve({ code: error === null ? 0 : Number(error.code), output: stdout + stderr }));
      });
    };
    const intact = await verify('export.jsonl');
    expect([intact.code, intact.output.split('\n')[0]]).toEqual([0, 'The log is intact.']);
    const lines = exported.text.split('\n');
    await writeFile(join(place, 'without.jsonl'), [...lines.slice(0, 5), ...lines.slice(6, -2), JSON.stringify({ records: records.length - 1 })].join('\n'));
    const without = await verify('without.jsonl');
    expect([without.code, without.output]).toEqual([1, expect.stringContaining('drop-middle')]);

    expect((await get('alice', '/api/audit/export')).status).toBe(403);
    expect((await get('admin', '/api/audit/export?outcome=success')).status).toBe(400);
  });

  it('exports as CSV what the caller may read, as RFC 4180 has it, and nothing that a spreadsheet runs', async () => {
    const exported = await get('alice', '/api/audit/export?format=csv&action=enrollment_code.');
    expect(exported.headers.get('content-type')).toBe('text/csv; charset=utf-8; header=present');
    const own = (await all('alice', { action: 'enrollment_code.' })).toReversed();
    const lines = exported.text.split('\r\n');
    expect(lines.pop()).toBe('');
    expect(lines.shift()).toBe('"seq","ts","actor","action","outcome","resource","device_id","ip","request_id","details"');
    expect(lines.map((line) => Number(line.split(',')[0]!.replaceAll('"', '')))).toEqual(own.map(({ seq }) => seq));
    for (const start of ['=1+1', '+1', '-1', '@SUM(A1)', '\t=1', '  =1', '\r\n=1', '＝1', '|x', '%x']) {
      const [, , actor] = csvRow({ seq: 1, ts: 't', actor: start }).split(',"');
      expect(actor, start).toMatch(/^'/);
    }
    expect(csvRow({ seq: 1, ts: 't', actor: 'say "a, b"\r\nc', n: 1 })).toBe('"1","t","say ""a, b""\r\nc",,,,,,,"{""n"":1}"\r\n');
  });

  it('verifies itself, and says where it was touched', async () => {
    const verified = await send('POST', '/api/audit/verify', { token: tokens['admin']! });
    expect([verified.status, verified.json.verdict, verified.json.macs, verified.json.is_recorded]).toEqual([200, 'intact', 'right', true]);
    const began = await send('POST', '/api/audit/mac-keys/rotate', { token: tokens['admin']! });
    expect(began.status).toBe(202);
    await vi.waitFor(async () => {
      // The next entry goes over to it.
      await get('alice', `/api/devices/${randomUUID()}`);
      const { data } = (await get('admin', '/api/audit/mac-keys')).json;
      expect(data.map(({ id, state, is_in_use: used }: Record<string, unknown>) => [id, state, used])).toEqual([[began.json.from_key_id, 'decrypt-only', false], [began.json.to_key_id, 'primary', true]]);
    }, { timeout: 30_000, interval: 500 });
    const after = await send('POST', '/api/audit/verify', { token: tokens['admin']! });
    expect([after.json.verdict, after.json.macs]).toEqual(['intact', 'right']);
  });
});
