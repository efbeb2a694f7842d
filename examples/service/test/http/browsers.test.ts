/**
 * What pages of others can do to the control plane with a browser of somebody who is signed in, and what anybody can do to it with
 * bytes: nothing.
 */
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { caller, embeddedBackend, startService, type Running } from '../stage.ts';
import { raw, type RawAnswer } from './raw.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };
const ALLOWED_ORIGIN = 'https://app.example.com';

describe('the control plane and the pages of others', () => {
  const backend = embeddedBackend();
  let service: Running;
  let cookie = '';
  const cookiesAsSet: string[] = [];
  let token = '';
  const call = caller(() => service.origin);
  const port = (): string => new URL(service.origin).port;
  const get = (path: string, ...headers: readonly string[]): Promise<RawAnswer> => raw(service.origin, [`GET ${path} HTTP/1.1`, 'Connection: close', ...headers]);

  beforeAll(async () => {
    const deployment = await backend.deploy();
    service = await startService(deployment.folder, { KEYGUARD_ADMIN_EMAIL: ADMIN.email, KEYGUARD_ADMIN_PASSWORD: ADMIN.password, KEYGUARD_ALLOWED_ORIGINS: ALLOWED_ORIGIN });
    const { headers } = await call('POST', '/api/auth/sign-in/email', { body: ADMIN });
    token = headers.get('set-auth-token')!;
    cookie = headers.getSetCookie().map((one) => one.split(';', 1)[0]).join('; ');
    cookiesAsSet.push(...headers.getSetCookie());
  });
  afterAll(async () => {
    await service?.stop('SIGKILL');
    await backend.stop();
  });

  it('answers to its own name and to no other, whoever made that point here', async () => {
    const p = port();
    const names: [string | null, number][] = [
      [`localhost:${p}`, 200],
      [`127.0.0.1:${p}`, 200],
      [`LocalHost:${p}`, 200],
      ['localhost', 421],
      ['localhost:1', 421],
      [`localhost.:${p}`, 421],
      [`evil.example:${p}`, 421],
      ['evil.example', 421],
      [`localhost.evil.example:${p}`, 421],
      [`127.0.0.1.nip.io:${p}`, 421],
      [`evil.example@localhost:${p}`, 421],
      [`localhost:${p}@evil.example`, 421],
      [`localhost:${p}, evil.example`, 421],
      [`localhost:${p}/`, 421],
      [`0.0.0.0:${p}`, 421],
      [`127.1:${p}`, 421],
      [`2130706433:${p}`, 421],
      [`[::1]:${p}`, 421],
      [`[::ffff:127.0.0.1]:${p}`, 421],
      ['', 421],
      [null, 400],
    ];
    for (const [name, status] of names) {
      for (const path of ['/api/openapi.json', '/.well-known/jwks.json']) {
        const answer = await get(path, ...(name === null ? [] : [`Host: ${name}`]));
        expect([name, path, answer.status, answer.json.code]).toEqual([name, path, status, { 200: undefined, 400: 'malformed_request', 421: 'misdirected_request' }[status]]);
      }
    }
    // Also for whoever is signed in there, and for every method; and not for probes, which come by an address of the cluster.
    for (const [method, path] of [['GET', '/api/devices'], ['POST', '/api/auth/sign-out'], ['OPTIONS', '/api/devices'], ['GET', '/api/nothing'], ['GET', '/']]) {
      expect((await raw(service.origin, [`${method} ${path} HTTP/1.1`, 'Connection: close', 'Host: evil.example', `Authorization: Bearer ${token}`, 'Content-Length: 0'])).status).toBe(421);
    }
    for (const path of ['/healthz', '/readyz']) expect((await get(path, 'Host: 10.0.0.7:3000')).status).toBe(200);
  });

  it('takes neither a second name, nor one in the target, nor one that a proxy is said to have seen', async () => {
    const own = `Host: localhost:${port()}`;
    expect((await get('/api/openapi.json', own, 'Host: evil.example')).status).toBe(421);
    expect((await get('/api/openapi.json', 'Host: evil.example', own)).status).toBe(421);
    expect((await get('/api/openapi.json', own, own)).status).toBe(421);
    for (const target of [`http://localhost:${port()}/api/openapi.json`, 'http://evil.example/api/openapi.json', '*', 'evil.example:80', '']) expect([target, (await get(target, own)).status]).toEqual([target, 400]);
    for (const name of ['X-Forwarded-Host', 'X-Host', 'X-Original-Host', 'Forwarded']) {
      const said = name === 'Forwarded' ? `host=localhost:${port()}` : `localhost:${port()}`;
      expect((await get('/api/openapi.json', 'Host: evil.example', `${name}: ${said}`)).status).toBe(421);
      expect((await get('/api/openapi.json', own, `${name}: evil.example`)).status).toBe(200);
    }
  });

  it('gives browsers cookies that no script reads and no other site sends', () => {
    expect(cookiesAsSet.some((one) => one.startsWith('keyguard.session_token='))).toBe(true);
    for (const one of cookiesAsSet) expect(one.toLowerCase()).toMatch(/(?=.*; httponly)(?=.*; samesite=strict)(?=.*; path=\/)(?!.*domain=)/);
  });

  it('lets a cookie change nothing unless a page of its own asks', async () => {
    const { origin } = service;
    const same: Record<string, string> = { 'sec-fetch-site': 'same-origin' };
    const pages: [Record<string, string>, boolean][] = [
      [{ origin }, true],
      [{ origin, ...same }, true],
      [{ origin, 'sec-fetch-site': 'none' }, true],
      [{}, false],
      [same, false],
      [{ origin: 'null' }, false],
      [{ origin: '' }, false],
      [{ origin: 'https://evil.example' }, false],
      [{ origin: ALLOWED_ORIGIN }, false],
      [{ origin: origin.replace('http:', 'https:') }, false],
      [{ origin: `${origin}.evil.example` }, false],
      [{ origin: origin.replace(`:${port()}`, '') }, false],
      [{ origin: `${origin}/` }, false],
      [{ origin: origin.toUpperCase() }, false],
      [{ origin: `${origin}, https://evil.example` }, false],
      [{ origin: `https://evil.example ${origin}` }, false],
      [{ referer: `${origin}/page` }, false],
      [{ origin, 'sec-fetch-site': 'cross-site' }, false],
      [{ origin, 'sec-fetch-site': 'same-site' }, false],
      [{ origin, 'sec-fetch-site': 'Same-Origin' }, false],
      [{ origin: 'https://evil.example', 'x-forwarded-host': 'evil.example', 'x-forwarded-proto': 'https' }, false],
      [{ origin: 'https://evil.example', 'x-csrf-token': 'x', 'x-requested-with': 'XMLHttpRequest' }, false],
    ];
    const changes: [string, string, object | undefined, number][] = [
      ['POST', '/api/enrollment-codes', {}, 201],
      ['PATCH', '/api/settings', { links: { max_views: 3 } }, 200],
      ['POST', '/api/auth/revoke-other-sessions', undefined, 200],
    ];
    for (const [headers, isOwn] of pages) {
      for (const [method, path, body, status] of changes) {
        const answer = await call(method, path, { headers: { cookie, 'if-match': '*', ...headers }, ...(body !== undefined && { body }) });
        expect([headers, path, answer.status]).toEqual([headers, path, isOwn ? status : 403]);
        if (!isOwn) expect(answer.json.code).toBe('origin_not_allowed');
      }
    }
    // A page that plants a session of its own maker's in somebody's browser.
    for (const [headers, isOwn] of pages) {
      if (Object.keys(headers).length === 0 || headers['referer'] !== undefined || headers === same) continue;
      const answer = await call('POST', '/api/auth/sign-in/email', { headers, body: { ...ADMIN, password: 'not this one' } });
      expect([headers, answer.status === 403]).toEqual([headers, !isOwn]);
    }
    // A token is not sent by a browser on its own: whose page sends it does not matter.
    expect((await call('POST', '/api/enrollment-codes', { token, headers: { origin: 'https://dashboard.example' }, body: {} })).status).toBe(201);
  });

  it('takes nothing that a form can send, and no method by another name', async () => {
    const { origin } = service;
    for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'application/json; charset=utf-16', 'application/jsonp', 'text/json', 'application/json, text/plain']) {
      const answer = await call('POST', '/api/enrollment-codes', { headers: { cookie, origin, 'content-type': type }, body: new TextEncoder().encode('{"label":"x"}') });
      expect([type, answer.status]).toEqual([type, 415]);
    }
    const version = (await call('GET', '/api/settings', { token })).json.version;
    for (const name of ['x-http-method-override', 'x-method-override', 'x-http-method']) {
      expect((await call('GET', '/api/settings?_method=PATCH', { token, headers: { [name]: 'PATCH' } })).status).toBe(400);
      expect((await call('GET', '/api/settings', { token, headers: { [name]: 'PATCH' } })).json.version).toBe(version);
    }
    for (const method of ['TRACE', 'CONNECT', 'PROPFIND', 'PUT', 'DELETE']) {
      const { status } = await raw(origin, [`${method} /api/settings HTTP/1.1`, `Host: localhost:${port()}`, 'Connection: close', `Authorization: Bearer ${token}`]);
      expect([method, status >= 400 || status === 0]).toEqual([method, true]);
    }
  });

  it('lets no page of another origin read anything', async () => {
    for (const origin of ['https://evil.example', ALLOWED_ORIGIN, 'null']) {
      for (const path of ['/api/devices', '/api/settings', '/api/auth/get-session', '/api/auth/token', '/api/openapi.json', '/.well-known/jwks.json', '/healthz']) {
        const answer = await call('GET', path, { headers: { cookie, origin } });
        expect([path, answer.headers.get('access-control-allow-origin'), answer.headers.get('access-control-allow-credentials')]).toEqual([path, null, null]);
        expect(answer.headers.get('cross-origin-resource-policy')).toBe('same-origin');
        const asked = await call('OPTIONS', path, { headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'content-type' } });
        expect([...asked.headers.keys()].filter((name) => name.startsWith('access-control'))).toEqual([]);
      }
    }
    // Signed routes answer the listed origin, and never with credentials.
    for (const path of ['/proxy/openai/v1/models', '/v1/chat/completions', '/api/keyguard/status']) {
      const preflight = { 'access-control-request-method': 'POST', 'access-control-request-headers': 'x-keyguard-signature' };
      const asked = await call('OPTIONS', path, { headers: { origin: ALLOWED_ORIGIN, ...preflight } });
      expect([asked.status, asked.headers.get('access-control-allow-origin'), asked.headers.get('access-control-allow-credentials')]).toEqual([204, ALLOWED_ORIGIN, null]);
      for (const origin of ['https://evil.example', 'null', `${ALLOWED_ORIGIN}.evil.example`, ALLOWED_ORIGIN.toUpperCase(), 'http://app.example.com']) {
        const refused = await call('OPTIONS', path, { headers: { origin, ...preflight } });
        expect([origin, refused.status, refused.headers.get('access-control-allow-origin')]).toEqual([origin, 403, null]);
      }
    }
  });

  it('says to every browser, with every answer, that nothing here is to be framed, sniffed, run or kept', async () => {
    for (const [path, status] of [['/healthz', 200], ['/api/openapi.json', 200], ['/api/settings', 401], ['/api/auth/get-session', 401], ['/nothing', 404], ['/proxy/openai/v1/models', 400]] as const) {
      const { status: got, headers } = await call('GET', path);
      expect([path, got]).toEqual([path, status]);
      expect(Object.fromEntries(['x-content-type-options', 'x-frame-options', 'referrer-policy', 'cross-origin-opener-policy', 'x-powered-by', 'server'].map((name) => [name, headers.get(name)]))).toEqual({
        'x-content-type-options': 'nosniff',
        'x-frame-options': 'SAMEORIGIN',
        'referrer-policy': 'no-referrer',
        'cross-origin-opener-policy': 'same-origin',
        'x-powered-by': null,
        server: null,
      });
      expect(headers.get('content-security-policy')).toBe("default-src 'none';frame-ancestors 'none';base-uri 'none'");
      if (path !== '/proxy/openai/v1/models') expect([path, headers.get('cache-control')]).toEqual([path, 'no-store']);
    }
  });

  it('limits bytes before it reads them', async () => {
    const own = [`Host: localhost:${port()}`, 'Connection: close'];
    const post = (headers: readonly string[], body: string | Uint8Array): Promise<RawAnswer> => raw(service.origin, ['POST /api/auth/sign-in/email HTTP/1.1', ...own, ...headers], body);
    const json = 'Content-Type: application/json';
    const large = `{"email":"${'a'.repeat(70_000)}"}`;
    const chunked = (text: string, size: number): string => `${text.match(new RegExp(`.{1,${size}}`, 'gs'))!.map((part) => `${part.length.toString(16)}\r\n${part}\r\n`).join('')}0\r\n\r\n`;
    const bomb = gzipSync(Buffer.alloc(10 * 1024 * 1024));
    const cases: [string, Promise<RawAnswer>, number, string | undefined][] = [
      ['a long target', get(`/api/openapi.json?${'a'.repeat(20_000)}`, ...own), 431, 'malformed_request'],
      ['a large header', get('/api/openapi.json', ...own, `X-A: ${'a'.repeat(20_000)}`), 431, 'malformed_request'],
      ['5,000 headers', get('/api/openapi.json', ...own, ...Array.from({ length: 5000 }, (_, i) => `X-${i}: a`)), 431, 'malformed_request'],
      ['a body that is announced', post([json, `Content-Length: ${large.length}`], large), 413, 'body_too_large'],
      ['a terabyte that is announced', post([json, 'Content-Length: 1099511627776'], '{'), 413, 'body_too_large'],
      ['a body in chunks', post([json, 'Transfer-Encoding: chunked'], chunked(large, 1000)), 413, 'body_too_large'],
      ['a gzip bomb', post([json, 'Content-Encoding: gzip', `Content-Length: ${bomb.length}`], bomb), 415, 'unsupported_media_type'],
      ['two encodings', post([json, 'Content-Encoding: identity, gzip', 'Content-Length: 2'], '{}'), 415, 'unsupported_media_type'],
      ['a length and chunks', post([json, 'Content-Length: 2', 'Transfer-Encoding: chunked'], '0\r\n\r\n'), 400, 'malformed_request'],
      ['two lengths', post([json, 'Content-Length: 2', 'Content-Length: 3'], '{} '), 400, 'malformed_request'],
      ['a negative length', post([json, 'Content-Length: -2'], '{}'), 400, 'malformed_request'],
      ['a chunk of no length', post([json, 'Transfer-Encoding: chunked'], 'zz\r\n'), 400, 'malformed_request'],
      ['a folded header', get('/api/openapi.json', ...own, 'X-A: a', ' b'), 400, 'malformed_request'],
      ['a header with NUL', get('/api/openapi.json', ...own, 'X-A: a\0b'), 400, 'malformed_request'],
      ['a space before the colon', get('/api/openapi.json', ...own, 'X-A : a'), 400, 'malformed_request'],
      ['deep JSON', post([json, 'Content-Length: 20000'], '['.repeat(10_000) + ']'.repeat(10_000)), 400, 'malformed_request'],
      ['an expectation', post([json, 'Expect: a miracle', 'Content-Length: 2'], '{}'), 417, 'malformed_request'],
    ];
    for (const [name, asked, status, code] of cases) {
      const answer = await asked;
      expect([name, answer.status, answer.json.code]).toEqual([name, status, code]);
    }
    expect((await call('GET', '/readyz')).status).toBe(200);
  });
});
