/** What holds for every operation of the control plane: methods, media types, queries, cursors and preconditions. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startInProcess, type Person, type Stage } from '../matrix/stage.ts';
import type { CallAnswer } from '../stage.ts';

describe('every operation', () => {
  let stage: Stage;
  let owner: Person;
  let other: Person;

  beforeAll(async () => {
    stage = await startInProcess();
    owner = await stage.newPerson('owner');
    other = await stage.newPerson('other');
    for (let n = 0; n < 3; n += 1) await call('POST', '/api/enrollment-codes', { body: { label: `code ${n}` } });
  }, 120_000);
  afterAll(() => stage.stop(), 60_000);

  const call = (method: string, path: string, options: { headers?: Record<string, string>; body?: object; token?: string } = {}): Promise<CallAnswer> =>
    stage.call(method, path, { token: owner.token, ...options });

  it('names the methods of a path to who comes with another, and to who asks', async () => {
    const cases: [string, string, string][] = [
      ['DELETE', '/api/devices', 'GET, HEAD, OPTIONS'],
      ['PUT', '/api/enrollment-codes', 'POST, GET, HEAD, OPTIONS'],
      ['GET', '/api/setup', 'POST, OPTIONS'],
      ['POST', '/.well-known/jwks.json', 'GET, HEAD, OPTIONS'],
      ['PATCH', '/api/devices/00000000-0000-4000-8000-000000000000/approve', 'POST, OPTIONS'],
    ];
    for (const [method, path, allow] of cases) {
      const answer = await call(method, path);
      expect([path, answer.status, answer.json.code, answer.headers.get('allow')]).toEqual([path, 405, 'method_not_allowed', allow]);
      const asked = await call('OPTIONS', path, { headers: { origin: 'https://evil.example' } });
      expect([asked.status, asked.headers.get('allow'), asked.headers.get('access-control-allow-origin')]).toEqual([204, allow, null]);
    }
    expect((await call('DELETE', '/api/nothing')).status).toBe(404);
  });

  it('answers HEAD as GET, without a body', async () => {
    for (const path of ['/api/devices', '/api/openapi.json', '/.well-known/jwks.json', '/api/devices/nothing']) {
      const [head, get] = [await call('HEAD', path), await call('GET', path)];
      expect([path, head.status, head.text, head.headers.get('content-type')]).toEqual([path, get.status, '', get.headers.get('content-type')]);
    }
  });

  it('does nothing for who takes no answer that it has', async () => {
    const cases: [string, number][] = [
      ['application/json', 201],
      ['*/*', 201],
      ['application/*;q=0.1', 201],
      ['text/html, application/json;q=0.2', 201],
      ['text/html', 406],
      ['application/json;q=0', 406],
      ['image/*', 406],
    ];
    const count = async (): Promise<number> => (await call('GET', '/api/enrollment-codes?limit=200')).json.data.length;
    for (const [accept, status] of cases) {
      const before = await count();
      const answer = await call('POST', '/api/enrollment-codes', { headers: { accept }, body: {} });
      expect([accept, answer.status, (await count()) - before]).toEqual([accept, status, status === 201 ? 1 : 0]);
      if (status === 406) expect([answer.json.code, answer.headers.get('content-type')]).toEqual(['not_acceptable', 'application/problem+json; charset=utf-8']);
    }
  });

  it('refuses a query that it does not know, or that says something twice', async () => {
    for (const path of ['/api/devices?limit=1&limit=2', '/api/devices?limit=1&limit=1', '/api/devices?status=active&status=active', '/api/devices?owner=me',
      '/api/openapi.json?x=1', '/api/devices?__proto__=1', '/api/devices?constructor=1', '/api/devices?cursor=', '/api/devices?%00=1', '/api/devices?status=%00',
      '/api/auth/get-session?disableCookieCache=true', '/api/devices?limit[]=1', '/api/devices?limit=%31&limit=2']) {
      expect([path, (await call('GET', path)).status]).toEqual([path, 400]);
    }
    expect((await call('GET', '/api/devices?')).status).toBe(200);
  });

  it('takes a cursor for the list, the filters and the reader that it was made for, and for no other', async () => {
    const first = (await call('GET', '/api/enrollment-codes?limit=1')).json;
    const cursor: string = first.next_cursor;
    const follow = (path: string, token = owner.token): Promise<CallAnswer> => call('GET', path, { token });
    const second = await follow(`/api/enrollment-codes?limit=2&cursor=${cursor}`);
    expect([second.status, second.json.data.length]).toEqual([200, 2]);
    const audit: string = (await call('GET', '/api/audit?limit=1')).json.next_cursor;
    expect(audit).not.toMatch(/^\d/);
    const [text, tag] = cursor.split('.') as [string, string];
    const moved = Buffer.from(Buffer.from(text, 'base64url').toString().replace(/\d/, '9')).toString('base64url');
    for (const [path, token] of [
      [`/api/devices?cursor=${cursor}`],
      [`/api/api-keys?cursor=${cursor}`],
      [`/api/audit?cursor=${cursor}`],
      [`/api/enrollment-codes?cursor=${audit}`],
      [`/api/enrollment-codes?cursor=${cursor}`, other.token],
      [`/api/enrollment-codes?cursor=${text}`],
      [`/api/enrollment-codes?cursor=${text}.`],
      [`/api/enrollment-codes?cursor=.${tag}`],
      [`/api/enrollment-codes?cursor=${text}.${tag}.`],
      [`/api/enrollment-codes?cursor=${moved}.${tag}`],
      [`/api/enrollment-codes?cursor=${'A'.repeat(2000)}.${tag}`],
    ] as [string, string?][]) {
      const answer = await follow(path, token);
      expect([path, answer.status, answer.json.code]).toEqual([path, 400, 'malformed_request']);
    }
  });

  it('changes nothing under a precondition that cannot hold', async () => {
    const { id } = (await call('POST', '/api/enrollment-codes', { body: {} })).json;
    const refused = await call('POST', `/api/enrollment-codes/${id}/revoke`, { headers: { 'if-match': '"1"' } });
    expect([refused.status, refused.json.code]).toEqual([412, 'precondition_failed']);
    expect((await call('GET', '/api/enrollment-codes?limit=1')).json.data[0]).toMatchObject({ id, revoked_at: null });
    expect((await call('POST', `/api/enrollment-codes/${id}/revoke`, { headers: { 'if-match': '*' } })).status).toBe(204);
  });

  it('gives every problem a type, a code and the id of its request', async () => {
    for (const [path, code] of [['/api/nothing', 'not_found'], ['/api/devices?x=1', 'invalid_request']] as const) {
      const answer = await call('GET', path);
      expect(answer.json).toMatchObject({ type: `urn:keyguard:problem:${code}`, code, request_id: answer.headers.get('x-request-id') });
    }
    expect((await fetch(`${stage.origin}/api/devices`)).headers.get('www-authenticate')).toBe('Bearer');
  });
});
