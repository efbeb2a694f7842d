/**
 * Canaries: secrets that are put in wherever the service takes one, and those that it gives out itself. Every operation of the API's
 * document is called, well and badly, at LOG_LEVEL=trace; then each canary is looked for, in all forms that come to mind, in the log,
 * in every answer but the one that is to show it, in metrics, in the audit log and in the bytes of the database.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import pg from 'pg';
import { createLog } from '../../src/log.ts';
import { backends, caller, runMain, startService, startUpstream, type Backend, type CallAnswer, type Deployment, type FakeUpstream, type PostgresBackend, type Running } from '../stage.ts';
import { bodyOf, operationsOf, type DrivenOperation, type Fill } from './drive.ts';
import { findIn, formsOf } from './encodings.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

// In every secret that is put in. With characters that other notations write in another way.
const MARK = `q"%+\\/${randomBytes(12).toString('hex')}<&`;
const PASSPHRASE = `root ${MARK} passphrase`;
const PASSWORD = `password ${MARK}`;
const PROVIDER_KEY = `provider-${MARK}`;
const VALUE = `value ${MARK}`;
const EMAIL = 'admin@example.com';
// Members of answers that hold what must not be seen again; what is one word in small letters is a problem's code.
const GIVEN_NAMES: ReadonlySet<string> = new Set(['token', 'code', 'secret', 'value', 'backup_codes', 'recovery_codes', 'otpauth_url', 'otpauth_uri', 'access_token', 'api_key']);
/** The operations that show a value which somebody has stored: that is what they are for. */
const SHOWS_VALUES = /reveal|export.*(?:secret|env)|(?:secret|env).*export|open.*(?:share|link)/i;

describe('the forms of a canary', () => {
  it('are found wherever they stand', () => {
    const secret = 'a "secret" + 100 % / ünlikely';
    const forms = formsOf(secret);
    expect(new Set(forms.map(([form]) => form)).size).toBeGreaterThanOrEqual(8);
    for (const lead of ['', 'x', 'xy', 'xyz']) {
      const around = Buffer.from(`${lead}${secret}tail`);
      for (const haystack of [around, around.toString('base64'), around.toString('base64url'), around.toString('hex'), JSON.stringify(around.toString()), encodeURIComponent(around.toString()), Buffer.from(around.toString(), 'utf16le'), [...around.toString()].toReversed().join(''), Buffer.from(around.toString('base64')).toString('base64')]) {
        expect(findIn(haystack, secret), String(haystack)).not.toEqual([]);
      }
    }
    expect(findIn('nothing of it', secret)).toEqual([]);
  });
});

describe('the log', () => {
  it('redacts what is named like a secret at any depth, what has the form of one, and what the process was started with', () => {
    const lines: string[] = [];
    const log = createLog('trace', { secrets: ['a "known" secret'], destination: { write: (line) => void lines.push(line) } });
    const secret = 'canary-5b1f';
    log.trace({ a: { b: { c: [{ API_KEY: secret, 'set-cookie': [secret], newPassword: secret, Token: secret }] } }, bytes: Buffer.from(secret) }, 'nested');
    log.info({ error: new Error(`postgres://somebody:${secret}@host/db`, { cause: new Error(`Bearer ${secret}-and-more`) }) }, 'an error');
    log.warn(new Error(`sk-${secret}-and-more`), `Basic ${secret}=== eyJhbGciOiJub25l.${secret}.x`);
    log.error('said a "known" secret in passing');
    log.child({ password: secret }).info({ kekId: 'kek-1', count: 3 }, 'of a child');
    expect(lines).toHaveLength(5);
    for (const line of lines) expect([line, ...findIn(line, secret), ...findIn(line, 'a "known" secret')]).toEqual([line]);
    expect(JSON.parse(lines[4]!)).toMatchObject({ kekId: 'kek-1', count: 3, msg: 'of a child' });
  });
});

interface Given {
  readonly secret: string;
  readonly operation: string;
}

describe.each(backends())('canaries in the service on %s', (_title, openBackend) => {
  let backend: Backend;
  let deployment: Deployment;
  let service: Running;
  let upstream: FakeUpstream;
  let token = '';
  const answers: { readonly operation: string; readonly text: string; readonly status: number }[] = [];
  const given: Given[] = [];
  const outcomes = new Map<string, number>();

  beforeAll(async () => {
    backend = await openBackend();
    deployment = await backend.deploy();
    upstream = await startUpstream();
    service = await startService(deployment.folder, {
      ...deployment.environment,
      KEYGUARD_ADMIN_EMAIL: EMAIL,
      KEYGUARD_ADMIN_PASSWORD: PASSWORD,
      KEYGUARD_PASSPHRASE: PASSPHRASE,
      OPENAI_API_KEY: PROVIDER_KEY,
      OPENAI_BASE_URL: upstream.baseUrl,
      LOG_LEVEL: 'trace',
    });
  });
  afterAll(async () => {
    await service?.stop('SIGKILL');
    await upstream.stop();
    await backend.stop();
  });

  const call = caller(() => service.origin);

  function collect(value: unknown, operation: string): void {
    if (Array.isArray(value)) for (const item of value) collect(item, operation);
    else if (typeof value === 'object' && value !== null) {
      for (const [name, item] of Object.entries(value)) {
        const texts = Array.isArray(item) ? item : [item];
        if (GIVEN_NAMES.has(name)) for (const text of texts) if (typeof text === 'string' && text.length >= 8 && !/^[a-z_]+$/.test(text) && !text.includes(MARK)) given.push({ secret: text, operation });
        collect(item, operation);
      }
    }
  }

  async function send(operation: string, method: string, path: string, options: Parameters<typeof call>[2] = {}): Promise<CallAnswer> {
    const answer = await call(method, path, options);
    const headers = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join('\n');
    answers.push({ operation, text: `${headers}\n\n${answer.text}`, status: answer.status });
    if (answer.status < 300 && operation !== 'getOpenApiDocument') collect(answer.json, operation);
    const session = answer.headers.get('set-auth-token');
    if (session !== null) given.push({ secret: session, operation });
    return answer;
  }

  async function signIn(): Promise<void> {
    const answer = await send('signIn', 'POST', '/api/auth/sign-in/email', { body: { email: EMAIL, password: PASSWORD } });
    expect(answer.status, answer.text).toBe(200);
    token = answer.headers.get('set-auth-token')!;
  }

  const fill: Fill = (name, schema) => {
    if (/password/.test(name)) return PASSWORD;
    if (name === 'provider') return 'openai';
    if (name === 'value' || name === 'content' || name === 'secret') return (schema.pattern ?? '').startsWith('^[\\x21') ? PROVIDER_KEY : VALUE;
    if (name === 'env' || name === 'text' || name === 'dotenv') return `CANARY_${randomBytes(4).toString('hex').toUpperCase()}='${MARK.replaceAll("'", '')}'\n`;
    if (name === 'code') return `code-${MARK}`;
    if (name === 'email') return `nobody-${randomUUID()}@example.com`;
    return undefined;
  };

  it('drives every operation, well and badly', async () => {
    await signIn();
    const document = (await send('getOpenApiDocument', 'GET', '/api/openapi.json', { token })).json;
    const operations = operationsOf(document);
    expect(operations.length).toBeGreaterThan(40);
    const ids = new Map<string, string>();

    // A device of its own, and calls by it, so that the provider's key is used.
    const code = (await send('createEnrollmentCode', 'POST', '/api/enrollment-codes', { token, body: { max_uses: 2 } })).json.code as string;
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    const { deviceId } = await client.enroll({ code });
    ids.set('/api/devices', deviceId);
    for (const path of ['/v1/chat/completions', '/proxy/openai/v1/nothing']) {
      const response = await client.fetch(service.origin + path, { method: 'POST', headers: { 'content-type': 'application/json', 'openai-organization': 'org' }, body: JSON.stringify({ model: 'm', messages: [{ role: 'user', content: 'Hello' }] }) });
      answers.push({ operation: `proxy ${path}`, text: `${[...response.headers].join('\n')}\n${await response.text()}`, status: response.status });
    }
    expect(upstream.calls.some(({ authorization }) => authorization === `Bearer ${PROVIDER_KEY}`)).toBe(true);

    const pathOf = ({ path }: DrivenOperation): string =>
      path.replaceAll(/\/([^/]+)\/\{([a-z_]+)\}/g, (whole, room: string, name: string) => {
        const collection = path.slice(0, path.indexOf(whole) + room.length + 1);
        return `/${room}/${name === 'token' || name === 'code' ? encodeURIComponent(`link-${MARK}`) : encodeURIComponent(ids.get(collection) ?? (/^(n|seq|version)$/.test(name) ? '1' : randomUUID()))}`;
      });

    for (const one of operations) {
      const path = pathOf(one);
      const at = (name: string): string => `${one.id}${name}`;
      const body = one.body === null ? undefined : (bodyOf(one.body, document, fill) as object);
      // As nobody, with canaries for credentials.
      for (const headers of [{ authorization: `Bearer ${MARK.replaceAll(/[^\x21-\x7e]/g, '')}` }, { cookie: `keyguard.session_token=${encodeURIComponent(MARK)}` }, { 'x-api-key': MARK, 'x-keyguard-token': MARK }]) {
        await send(at(' as nobody'), one.method, path, { headers, ...(body !== undefined && { body }) });
      }
      if (one.body !== null) {
        const members = Object.keys(body ?? {});
        await send(at(' unknown'), one.method, path, { token, body: { ...body, unknown: VALUE } });
        await send(at(' wrong'), one.method, path, { token, body: Object.fromEntries(members.map((name) => [name, { nested: VALUE }])) });
        await send(at(' broken'), one.method, path, { token, body: Uint8Array.from(Buffer.from(`{"value": "${VALUE}`)), headers: { 'content-type': 'application/json' } });
        await send(at(' text'), one.method, path, { token, body: Uint8Array.from(Buffer.from(JSON.stringify(VALUE))) });
        await send(at(' NUL'), one.method, path, { token, body: Object.fromEntries(Object.entries(body ?? {}).map(([name, value]) => [name, typeof value === 'string' ? `\0${MARK}` : value])) });
      }
      let answer = await send(one.id, one.method, path, { token, ...(body !== undefined && { body }), headers: { 'idempotency-key': randomUUID() } });
      if (answer.status === 401 && one.id !== 'signIn') {
        await signIn();
        answer = await send(one.id, one.method, path, { token, ...(body !== undefined && { body }) });
      }
      outcomes.set(one.id, answer.status);
      if (answer.status === 201 && typeof answer.json.id === 'string') ids.set(one.path, answer.json.id);
      const listed = answer.json.data?.[0]?.id;
      if (one.method === 'GET' && typeof listed === 'string' && !ids.has(one.path)) ids.set(one.path, listed);
      if ((await call('GET', '/api/auth/get-session', { token })).status === 401) await signIn();
    }
    // Nothing that was sent is more than the service can bear.
    expect([...outcomes].filter(([, status]) => status >= 500)).toEqual([]);
    // Enough of it went well to mean something.
    expect([...outcomes.values()].filter((status) => status < 300).length).toBeGreaterThan(operations.length * 0.5);
    expect(given.length).toBeGreaterThan(5);
    for (const path of ['/metrics', '/healthz', '/readyz', '/.well-known/jwks.json', `/api/nothing/${encodeURIComponent('x')}`]) await send(`GET ${path}`, 'GET', path, { token });
  });

  it('moves all that is sealed to a new key, whichever slice sealed it', async () => {
    await signIn();
    const rotation = await send('rotateKek', 'POST', '/api/operations/kek-rotations', { token });
    await expect
      .poll(async () => (await send('getKekRotation', 'GET', `/api/operations/kek-rotations/${rotation.json.id}`, { token })).json, { timeout: 30_000, interval: 300 })
      .toMatchObject({ state: 'done', damaged: 0, remaining: 0 });
  });

  it('shows none of them in an answer that is not there for it', () => {
    const shown = answers.filter(({ text, operation }) => findIn(text, MARK).length > 0 && !SHOWS_VALUES.test(operation));
    expect(shown.map(({ operation, status, text }) => `${operation} ${status}: ${text.slice(0, 400)}`)).toEqual([]);
    for (const { secret, operation } of given) {
      const elsewhere = answers.filter((answer) => answer.operation !== operation && findIn(answer.text, secret).length > 0);
      expect([operation, ...elsewhere.map((answer) => answer.operation)]).toEqual([operation]);
    }
  });

  it('writes none of them to its log, stopping and starting included', async () => {
    expect(await service.stop()).toBe(0);
    const refused = runMain(deployment.folder, { ...deployment.environment, KEYGUARD_PASSPHRASE: `${PASSPHRASE} wrong`, LOG_LEVEL: 'trace' });
    expect(await refused.exit).toBe(1);
    for (const output of [service.output(), refused.output()]) {
      expect(findIn(output, MARK)).toEqual([]);
      for (const { secret, operation } of given) expect([operation, ...findIn(output, secret)]).toEqual([operation]);
    }
    expect(service.output()).toContain('"msg":"ready"');
  });

  /** All bytes that the database has on disk, or, of a server, all that it has in its tables. */
  async function databaseBytes(): Promise<readonly (readonly [place: string, bytes: Buffer])[]> {
    if (deployment.environment['DATABASE_URL'] === undefined) {
      const root = join(deployment.folder, 'data');
      const entries = await readdir(root, { recursive: true, withFileTypes: true });
      const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
      return Promise.all(files.filter((file) => !file.includes('compile-cache')).map(async (file) => [file.slice(root.length), await readFile(file)] as const));
    }
    const client = new pg.Client({ connectionString: (backend as PostgresBackend).superuserUrl(deployment) });
    await client.connect();
    try {
      const tables = await client.query(`SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname IN ('keyguard', 'keyguard_auth')`);
      const found: (readonly [string, Buffer])[] = [];
      for (const { name } of tables.rows) {
        const { rows } = await client.query({ text: `SELECT * FROM ${name}`, rowMode: 'array' });
        // Bytes as they are, everything else as text.
        const cells = rows.flatMap((row: unknown[]) => row.map((cell) => (Buffer.isBuffer(cell) ? cell : Buffer.from(typeof cell === 'string' ? cell : JSON.stringify(cell ?? null)))));
        found.push([name, Buffer.concat(cells.flatMap((cell) => [cell, Buffer.of(10)]))]);
      }
      return found;
    } finally {
      await client.end();
    }
  }

  it('keeps none of them in the database, the audit log included', async () => {
    const places = await databaseBytes();
    expect(places.some(([, bytes]) => bytes.includes('api_key.import'))).toBe(true);
    const hits = places.flatMap(([place, bytes]) => findIn(bytes, MARK).map((form) => `${place}: ${form}`));
    expect(hits).toEqual([]);
    for (const { secret, operation } of given) {
      const found = places.flatMap(([place, bytes]) => (bytes.includes(secret) || bytes.includes(Buffer.from(secret).toString('base64').slice(0, -4)) || bytes.includes(Buffer.from(secret).toString('hex')) ? [place] : []));
      expect([operation, ...found]).toEqual([operation]);
    }
  });
});
