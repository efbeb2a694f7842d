/**
 * Nobody is refused by the control plane without a trace: every operation, and every kind of refusal that it can give, leaves an entry
 * that says what was asked for, by whom and why not, and nothing of what was sent.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { operationsIn, pathOf, type Described } from '../http/samples.ts';
import { raw } from '../http/raw.ts';
import { firstAdministrator } from '../matrix/world.ts';
import { startInProcess, type Person, type Stage } from '../matrix/stage.ts';
import type { CallOptions } from '../stage.ts';

const MARK = 'of-nobody-elses-concern';
const EVIL = { origin: 'https://evil.example', 'sec-fetch-site': 'cross-site' };

interface Refused {
  readonly id: string;
  readonly requestId: string;
  readonly code: string;
  readonly status: number;
  readonly actor: string;
}

/** What makes an operation refuse, where it is one that can; it is sent by whom the operation is for, unless it says otherwise. */
interface Kind {
  readonly can: (one: Described) => boolean;
  readonly request: (one: Described) => CallOptions & { readonly query?: string; readonly id?: string; readonly isUnknown?: true };
  readonly expected: (one: Described) => readonly string[];
}

const takesBody = ({ body }: Described): boolean => body !== null;
const takesNone = ({ body, method }: Described): boolean => body === null && method !== 'GET';
const isUnsafe = ({ method }: Described): boolean => method !== 'GET';
const bytes = (text: string): Uint8Array<ArrayBuffer> => Uint8Array.from(Buffer.from(text, 'latin1'));

// What needs a state to be named is refused for that before its body is read.
const stated = ({ parameters }: Described): { headers?: Record<string, string> } => (parameters.some(({ name }) => name === 'If-Match') ? { headers: { 'if-match': '*' } } : {});

const KINDS: Readonly<Record<string, Kind>> = {
  'nobody is signed in': { can: ({ isPublic }) => !isPublic, request: () => ({ isUnknown: true }), expected: () => ['not_authenticated'] },
  'a token that opens nothing': { can: ({ isPublic }) => !isPublic, request: () => ({ isUnknown: true, headers: { authorization: `Bearer ${MARK}` } }), expected: () => ['not_authenticated'] },
  'a page of somebody else’s': { can: (one) => one.isPublic && isUnsafe(one), request: () => ({ isUnknown: true, headers: EVIL }), expected: () => ['origin_not_allowed'] },
  'a parameter that it does not know': { can: () => true, request: () => ({ query: `?${MARK}=1` }), expected: () => ['invalid_request', 'precondition_required', 'not_found', 'oidc_refused'] },
  'a parameter twice': { can: () => true, request: () => ({ query: `?a=${MARK}&a=1` }), expected: () => ['malformed_request', 'precondition_required', 'not_found'] },
  'a member that it does not know': { can: takesBody, request: (one) => ({ ...stated(one), body: { [MARK]: MARK } }), expected: () => ['invalid_request'] },
  'no JSON': { can: takesBody, request: (one) => ({ ...stated(one), body: bytes(`{"${MARK}`) }), expected: () => ['malformed_request'] },
  'no UTF-8': { can: takesBody, request: (one) => ({ ...stated(one), body: bytes(`{"${MARK}\xff":1}`) }), expected: () => ['malformed_request'] },
  'a body that is too large': { can: takesBody, request: (one) => ({ ...stated(one), body: bytes(`{"a":"${MARK.repeat(4000)}"}`) }), expected: () => ['body_too_large'] },
  'a body of another type': { can: takesBody, request: (one) => ({ body: bytes(MARK), headers: { ...stated(one).headers, 'content-type': 'text/plain' } }), expected: () => ['unsupported_media_type'] },
  'a body that it does not take': { can: takesNone, request: () => ({ isUnknown: true, body: { [MARK]: 1 } }), expected: () => ['malformed_request'] },
  'an answer that it does not have': { can: ({ types }) => types.length > 0, request: () => ({ headers: { accept: 'image/x-nothing' } }), expected: () => ['not_acceptable'] },
  'a path that is the name of nothing': {
    can: ({ path }) => path.includes('{'),
    request: () => ({ id: `%00${MARK}` }),
    expected: () => ['not_found', 'precondition_required'],
  },
};

describe('a refusal by the control plane', () => {
  let stage: Stage;
  let administrator: Person;
  let other: Person;
  let document: object;
  let operations: readonly Described[];
  let address = 0;

  beforeAll(async () => {
    stage = await startInProcess();
    administrator = await firstAdministrator(stage);
    other = await stage.newPerson('other');
    document = (await stage.call('GET', '/api/openapi.json')).json as object;
    operations = operationsIn(document);
  }, 120_000);
  afterAll(() => stage?.stop(), 60_000);

  const newAddress = (): string => `198.18.${Math.floor((address += 1) / 250)}.${(address % 250) + 1}`;

  async function entriesOf(requestIds: readonly string[]): Promise<Map<string, Record<string, unknown>[]>> {
    const { rows } = await stage.sql.query<{ request_id: string; entry: unknown }>('SELECT request_id, entry FROM keyguard.secret_audit_logs WHERE request_id = ANY($1::text[])', [requestIds]);
    const found = new Map<string, Record<string, unknown>[]>();
    for (const { request_id: id, entry } of rows) {
      const text = Buffer.from(entry as Uint8Array).toString('utf8');
      expect(text).not.toContain(MARK);
      found.set(id, [...(found.get(id) ?? []), JSON.parse(text) as Record<string, unknown>]);
    }
    return found;
  }

  async function refuse(method: string, path: string, { isUnknown, headers, ...options }: ReturnType<Kind['request']>, id: string): Promise<Refused> {
    const answer = await stage.call(method, path, {
      ...options,
      headers: { 'x-forwarded-for': newAddress(), ...headers },
      ...(isUnknown !== true && { token: administrator.token }),
    });
    return { id, requestId: answer.headers.get('x-request-id')!, code: answer.json.code as string, status: answer.status, actor: isUnknown === true ? 'unknown' : `user:${administrator.userId}` };
  }

  it.each(Object.entries(KINDS))('for %s', async (_name, { can, request, expected }) => {
    const asked = operations.filter(can);
    expect(asked.length).toBeGreaterThan(5);
    const ask = async (one: Described): Promise<Refused> => {
      const { query = '', id, ...options } = request(one);
      const path = id === undefined ? pathOf(document, one) : one.path.replaceAll(/\{[a-z_]+\}/g, id);
      const answer = await refuse(one.method, path + query, options, one.id);
      expect([one.id, answer.status, expected(one)]).toEqual([one.id, expect.toSatisfy((status: number) => status >= 400 && status < 500), expect.arrayContaining([answer.code])]);
      return answer;
    };
    const refused = await Promise.all(asked.map(ask));
    const entries = await entriesOf(refused.map(({ requestId }) => requestId));
    // Public operations know nobody, whoever sends what.
    const publicIds = new Set(operations.filter(({ isPublic }) => isPublic).map(({ id }) => id));
    for (const { id, requestId, code, actor } of refused) {
      const own = entries.get(requestId) ?? [];
      expect([id, own]).toEqual([id, [expect.objectContaining({ outcome: 'refused', code, actor: publicIds.has(id) ? 'unknown' : actor })]]);
      expect([id, own[0]!['action']]).not.toEqual([id, 'request.refused']);
    }
  });

  it('names the fields that did not pass, of those that the operation has', async () => {
    const { requestId } = await refuse('POST', '/api/secrets', { body: { name: 5, value: [MARK], [MARK]: true } }, 'createSecret');
    expect((await entriesOf([requestId])).get(requestId)).toEqual([expect.objectContaining({ action: 'secret.create', code: 'invalid_request', fields: ['name', 'value'] })]);
  });

  it('for what is not the caller’s to do', async () => {
    for (const [method, path, action, code] of [
      ['GET', '/api/settings', 'settings.read', 'forbidden'],
      ['GET', '/api/audit/export', 'audit.export', 'forbidden'],
      ['DELETE', `/api/sessions/${MARK.length}`, 'session.end', 'not_found'],
    ] as const) {
      const answer = await stage.call(method, path, { token: other.token });
      const id = answer.headers.get('x-request-id')!;
      expect([path, (await entriesOf([id])).get(id)]).toEqual([path, [expect.objectContaining({ action, code, actor: `user:${other.userId}`, outcome: 'refused' })]]);
    }
  });

  it('at the door: by another name, from another place, by another method, and of what there is not', async () => {
    const { host } = new URL(stage.origin);
    const ask = async (line: string, ...headers: readonly string[]): Promise<{ code: string | undefined; entries: unknown }> => {
      const answer = await raw(stage.origin, [`${line} HTTP/1.1`, ...headers, `x-forwarded-for: ${newAddress()}`, 'connection: close']);
      const id = answer.headers.get('x-request-id')!;
      return { code: answer.json.code, entries: (await entriesOf([id])).get(id) };
    };
    const entry = (code: string, more: object = {}): unknown[] => [expect.objectContaining({ action: 'request.refused', outcome: 'refused', actor: 'unknown', code, ...more })];
    expect(await ask('GET /api/devices', `host: ${MARK}.example`)).toEqual({ code: 'misdirected_request', entries: entry('misdirected_request') });
    expect(await ask('GET /api/devices', `host: ${host}`, `host: ${host}`)).toEqual({ code: 'misdirected_request', entries: entry('misdirected_request') });
    expect(await ask('PUT /api/devices', `host: ${host}`)).toEqual({ code: 'method_not_allowed', entries: entry('method_not_allowed', { method: 'PUT' }) });
    expect(await ask(`GET /api/${MARK}`, `host: ${host}`)).toEqual({ code: 'not_authenticated', entries: entry('not_authenticated') });
    expect(await ask(`GET /api/devices/%zz${MARK}`, `host: ${host}`)).toEqual({ code: 'malformed_request', entries: entry('malformed_request') });
    expect(await ask(`GET /api/${MARK}`, `host: ${host}`, `authorization: Bearer ${other.token}`)).toEqual({
      code: 'not_found', entries: [expect.objectContaining({ action: 'request.refused', actor: `user:${other.userId}`, code: 'not_found' })],
    });
    const settings = (value: object): Promise<unknown> => stage.call('PATCH', '/api/settings?force=true', { token: administrator.token, body: value, headers: { 'if-match': '*', 'x-forwarded-for': '203.0.113.9' } });
    await settings({ network: { control_plane_allowlist: ['203.0.113.0/24'] } });
    expect(await ask('GET /api/devices', `host: ${host}`, `authorization: Bearer ${other.token}`)).toEqual({ code: 'address_not_allowed', entries: entry('address_not_allowed') });
    await settings({ reset: ['network.control_plane_allowlist'] });
  });
});
