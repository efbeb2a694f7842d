/** A service that cannot write its audit log releases nothing: neither a value, nor a code, nor a session, nor a call; and says so in time. */
import { join } from 'node:path';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { auditLog } from '../../src/audit/log.ts';
import { readConfig } from '../../src/config.ts';
import { startService, type Service } from '../../src/service.ts';
import { caller, folder, remove, type CallAnswer } from '../stage.ts';

vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 });

const PASSWORD = 'a long and quiet password';
const HANG_MS = 400;
type Mode = 'well' | 'sometimes' | 'never' | 'hangs';
let mode: Mode = 'well';
let tries = 0;

/** The database, whose audit table takes what it is given, or every fifth time not, or never, or only after long. */
function sabotaged<Client extends SqlClient>(sql: Client): Client {
  const wrapped = (tx: SqlTransaction): SqlTransaction => ({
    async query(text, params) {
      if (mode !== 'well' && text.startsWith('SELECT keyguard.add_audit_records')) {
        tries += 1;
        if (mode === 'hangs') await new Promise((resolve) => setTimeout(resolve, HANG_MS));
        // By a statement, so that the transaction has failed as it would have.
        if (mode !== 'sometimes' || tries % 5 === 0) return tx.query('SELECT 1 / 0');
      }
      return tx.query(text, params);
    },
  });
  return { ...sql, query: wrapped(sql).query, transaction: (fn) => sql.transaction((tx) => fn(wrapped(tx))) };
}

let service: Service;
let sql: SqlClient;
let origin = '';
let directory = '';
let upstream: Server;
let upstreamCalls = 0;
let token = '';
let secretId = '';
let client: KeyGuardClient;
const send = caller(() => origin);

beforeAll(async () => {
  directory = await folder();
  upstream = createServer((request, response) => {
    upstreamCalls += 1;
    request.resume().on('end', () => response.writeHead(200, { 'content-type': 'application/json' }).end('{"choices":[]}'));
  });
  await new Promise<void>((resolve) => upstream.listen(0, '127.0.0.1', resolve));
  const said: string[] = [];
  service = await startService({
    config: readConfig(
      {
        PORT: '0', KEYGUARD_DATA_DIR: directory, KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: PASSWORD,
        OPENAI_API_KEY: 'sk-for-the-fake-upstream', OPENAI_BASE_URL: `http://127.0.0.1:${(upstream.address() as AddressInfo).port}/v1`,
      },
      join(directory, '..'),
    ),
    log: pino({ level: 'silent' }),
    say: (text) => said.push(text),
    overrides: {
      database(opened) {
        sql = opened.sql;
        return { ...opened, sql: sabotaged(opened.sql), calls: sabotaged(opened.calls) };
      },
    },
  });
  origin = /KeyGuard is at (\S+),/.exec(said.join('\n'))![1]!;
  token = (await signIn()).headers.get('set-auth-token')!;
  const made = await send('POST', '/api/secrets', { token, body: { name: 'canary', value: 'a value that must not leave' } });
  if (made.status !== 201) throw new Error(made.text);
  secretId = made.json.id;
  const { json } = await send('POST', '/api/enrollment-codes', { token, body: {} });
  client = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
  await client.enroll({ code: json.code, label: 'test' });
});
afterAll(async () => {
  mode = 'well';
  await service?.stop();
  upstream.close();
  upstream.closeAllConnections();
  await remove(directory);
});

const signIn = (): Promise<CallAnswer> => send('POST', '/api/auth/sign-in/email', { body: { email: 'admin@example.com', password: PASSWORD } });
let number = 0;
async function llmCall(): Promise<{ readonly status: number }> {
  const response = await client.fetch(`${origin}/proxy/openai/v1/models`);
  await response.arrayBuffer();
  return response;
}

/** What gives something out, and the action by which it is on record. */
const releases: readonly [string, () => Promise<{ readonly status: number }>, string][] = [
  ['an enrollment code', () => send('POST', '/api/enrollment-codes', { token, body: {} }), 'enrollment_code.create'],
  ['the value of a secret', () => send('POST', `/api/secrets/${secretId}/reveal`, { token, body: {} }), 'secret.reveal'],
  ['a new secret', () => send('POST', '/api/secrets', { token, body: { name: `n${(number += 1)}`, value: 'another value' } }), 'secret.create'],
  ['the token of a service account', () => send('POST', '/api/service-accounts', { token, body: { name: `p${(number += 1)}`, scopes: ['secrets:read'] } }), 'service_account.create'],
  ['an export of the log', () => send('GET', '/api/audit/export?format=csv&action=nothing', { token }), 'audit.export'],
  ['a call with the provider key', llmCall, 'llm.call'],
];

async function recorded(action: string): Promise<number> {
  const { rows } = await sql.query<{ n: number }>(`SELECT count(*)::int AS n FROM keyguard.secret_audit_logs WHERE action = $1 AND outcome = 'success'`, [action]);
  return rows[0]!.n;
}

describe('while the audit log', () => {
  it.each(releases)('fails every fifth time, %s leaves only with its entry', async (_what, release, action) => {
    mode = 'sometimes';
    const [before, calls] = [await recorded(action), upstreamCalls];
    let released = 0;
    let refused = 0;
    for (let i = 0; i < 12; i += 1) {
      const { status } = await release();
      if (status < 300) released += 1;
      else {
        expect(status).toBe(503);
        refused += 1;
      }
    }
    mode = 'well';
    const entries = (await recorded(action)) - before;
    expect(released).toBeGreaterThan(0);
    expect(refused).toBeGreaterThan(0);
    expect(entries).toBeGreaterThanOrEqual(released);
    if (action === 'llm.call') expect(entries).toBeGreaterThanOrEqual(upstreamCalls - calls);
  });

  it.each(releases)('takes nothing, or not in time, %s does not leave, and the caller is told so soon', async (_what, release, action) => {
    for (const how of ['never', 'hangs'] as const) {
      mode = how;
      const [before, calls, began] = [await recorded(action), upstreamCalls, performance.now()];
      const { status } = await release();
      expect(status, how).toBe(503);
      expect(performance.now() - began).toBeLessThan(20_000);
      mode = 'well';
      expect([await recorded(action), upstreamCalls]).toEqual([before, calls]);
    }
    // And all is well again by itself.
    expect((await release()).status).toBeLessThan(300);
  });

  it('takes nothing, nobody is signed in', async () => {
    mode = 'never';
    const refused = await signIn();
    mode = 'well';
    expect([refused.status, refused.headers.get('set-auth-token'), refused.headers.get('set-cookie')]).toEqual([503, null, null]);
    expect((await signIn()).status).toBe(200);
  });

  it('takes nothing, no password changes and no session ends', async () => {
    const own = (await signIn()).headers.get('set-auth-token')!;
    mode = 'never';
    const changed = await send('POST', '/api/auth/change-password', { token: own, body: { current_password: PASSWORD, new_password: 'another long and quiet password' } });
    const ended = await send('POST', '/api/auth/sign-out', { token: own });
    mode = 'well';
    expect([changed.status, ended.status]).toEqual([503, 503]);
    // With the old password, and by the session that is still there.
    expect((await signIn()).status).toBe(200);
    expect((await send('GET', '/api/auth/get-session', { token: own })).status).toBe(200);
  });
});

it('an entry that is never answered is given up', async () => {
  const hung = { query: () => new Promise<never>(() => {}), transaction: () => new Promise<never>(() => {}) } as unknown as SqlClient;
  const log = auditLog(hung, { deploymentId: 'd', auditMacKey: { keyId: 'k', mac: () => new Uint8Array(32) } }, { withinMs: 50 });
  await expect(log.record({ action: 'test', outcome: 'success', actor: 'system' })).rejects.toMatchObject({ name: 'UnavailableError', seam: 'audit_log' });
});
