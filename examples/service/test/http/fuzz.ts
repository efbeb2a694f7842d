/**
 * Hostile input for every operation, by the API's document: what no text, header, query or body may do is make the service fail. The
 * texts are those with which others were broken (LiteLLM, CVE-2026-42208: SQL in a header), and those that no database can keep.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startInProcess, type Person, type Stage } from '../matrix/stage.ts';
import type { CallOptions } from '../stage.ts';
import { membersOf, operationsIn, pathOf, sampleOf, type Described } from './samples.ts';

const SQL = [
  "'; DROP TABLE keyguard.devices; --",
  "' OR '1'='1",
  '" OR ""="',
  "1; SELECT pg_sleep(10)",
  "\\'; DELETE FROM keyguard_auth.users; --",
  "$1",
  "$$; SELECT 1; $$",
  "admin'--",
  "') UNION SELECT NULL, token FROM keyguard_auth.sessions --",
  '%',
  '_',
  "E'\\\\x00'",
];
const TEXTS = [...SQL, '\0', 'a\0b', '\u202Ea', '\uFFFF', '%00', '../../etc/passwd', '{{7*7}}', '${7*7}', '<script>', 'a'.repeat(5000), '', ' ', '\r\nx: y', '\u{1F600}', '__proto__', 'constructor', 'NaN', '-1', '1e400', '99999999999999999999'];
const VALUES: readonly unknown[] = [...TEXTS, null, true, 0, -1, 1e21, 2 ** 53, 1.5, [], [[]], {}, [null], { $gt: '' }, { toString: 'x' }, { length: 1e9 }];
const latin = (text: string): Uint8Array<ArrayBuffer> => Uint8Array.from(Buffer.from(text, 'latin1'));
const BODIES: readonly Uint8Array<ArrayBuffer>[] = [
  '{', '[]', 'null', '"text"', '0', '{"a":', '\xff\xfe', '{"a":"\xff"}', '{"a":"\\ud800"}', '{"\\udc00":1}', '{"a":"\\u0000"}', '{"\\u0000":1}', '{"a":1e400}', '\xef\xbb\xbf{}',
  `${'['.repeat(20_000)}${']'.repeat(20_000)}`, `${'{"a":'.repeat(5000)}1${'}'.repeat(5000)}`, '{"__proto__":{"role":"admin"}}', '{"constructor":{"prototype":{}}}', '{"a":1,"a":2}', `{"a":"${'x'.repeat(70_000)}"}`,
].map(latin);
// Those that somebody reads: a fetch lets no others through.
const HEADERS = ['idempotency-key', 'if-match', 'if-none-match', 'accept', 'accept-language', 'user-agent', 'x-forwarded-for', 'x-real-ip', 'forwarded', 'x-request-id', 'authorization', 'cookie', 'content-type', 'content-encoding', 'x-keyguard-client-address', 'referer', 'range'];

/** The same numbers for the same seed, so that what was found is found again. */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** What ends the session that the others need, or goes on behind it for long: asked by nobody. */
const BY_NOBODY: ReadonlySet<string> = new Set(['signOut', 'changePassword', 'rotateKek']);

/** Of a state that nothing is in, where one is taken: a change that comes so far is refused then. */
function preconditionOf({ parameters }: Described): Record<string, string> {
  return parameters.some(({ name }) => name === 'If-Match') ? { 'if-match': '"0"' } : {};
}

export function describeFuzz(perOperation: number, seed: number): void {
  describe(`hostile input, ${perOperation} times for every operation (seed ${seed})`, () => {
    let stage: Stage;
    let person: Person;
    let administrator = '';
    let document: object;
    let operations: readonly Described[];
    const next = numbers(seed);
    const pick = <T>(list: readonly T[]): T => list[next(list.length)]!;

    beforeAll(async () => {
      stage = await startInProcess();
      const credentials = { email: 'administrator@example.com', password: 'a long and quiet password' };
      await stage.call('POST', '/api/setup', { body: { code: stage.setupCode, ...credentials } });
      administrator = (await stage.call('POST', '/api/auth/sign-in/email', { body: credentials })).headers.get('set-auth-token')!;
      person = await stage.newPerson('somebody');
      document = (await stage.call('GET', '/api/openapi.json')).json;
      operations = operationsIn(document);
    }, 120_000);
    afterAll(() => stage.stop(), 60_000);

    function hostile(one: Described): { readonly path: string; readonly options: CallOptions } {
      const named = one.parameters.filter((parameter) => parameter.in === 'path').map(({ name }) => name);
      const ways = ['header', 'query', ...(named.length > 0 ? ['path'] : []), ...(one.body === null ? [] : ['member', 'member', 'member', 'bytes'])];
      const way = pick(ways);
      const body = one.body === null ? undefined : (sampleOf(document, one.body) as object);
      const token = BY_NOBODY.has(one.id) ? 'nobody' : pick([administrator, administrator, person.token]);
      const options = { token, headers: preconditionOf(one), ...(body !== undefined && { body }) };
      let path = pathOf(document, one, way === 'path' ? { [pick(named)]: pick(TEXTS.filter((text) => text !== '')) } : {});
      if (way === 'query') {
        const known = one.parameters.filter((parameter) => parameter.in === 'query').map(({ name }) => name);
        path += `?${encodeURIComponent(pick([...known, ...known, 'x', pick(TEXTS)]))}=${encodeURIComponent(pick(TEXTS))}`;
      }
      if (way === 'header') options.headers[pick(HEADERS)] = pick(SQL);
      if (way === 'bytes') return { path, options: { ...options, body: pick(BODIES) } };
      if (way === 'member') return { path, options: { ...options, body: { ...body, [pick([...membersOf(document, one.body!), 'x'])]: pick(VALUES) } } };
      return { path, options };
    }

    it('is answered with a problem of the caller’s, and never with a failure of ours', async () => {
      const failures: string[] = [];
      let asked = 0;
      let slowedDown = 0;
      for (const one of operations) {
        for (let n = 0; n < perOperation; n += 1) {
          const { path, options } = hostile(one);
          // Whoever answers otherwise than the document says is caught by the caller itself.
          const answer = await stage.call(one.method, path, options);
          asked += 1;
          if (answer.status === 429) slowedDown += 1;
          const isProblem = answer.status < 400 || answer.headers.get('content-type') === 'application/problem+json; charset=utf-8';
          if (answer.status >= 500 || !isProblem || /SQLSTATE|node_modules|\.ts:\d|syntax error/.test(answer.text)) {
            failures.push(`${one.id} ${answer.status} ${answer.json.code} for ${decodeURIComponent(path).slice(0, 150)} ${JSON.stringify(options.headers)} ${JSON.stringify(options.body)?.slice(0, 150)}`);
          }
        }
      }
      expect(failures).toEqual([]);
      expect(asked).toBeGreaterThan(operations.length);
      // Else it would be the limits that were tested.
      expect(slowedDown).toBeLessThan(asked / 4);
      // What was to be dropped is there.
      expect((await stage.call('GET', '/api/devices', { token: administrator })).status).toBe(200);
    }, 30_000 + perOperation * 30_000);

    it('makes nobody anything that an operation does not take: a member of another name is refused by name', async () => {
      const failures: string[] = [];
      for (const one of operations) {
        if (one.body === null) continue;
        const taken = new Set(membersOf(document, one.body));
        const extra = ['role', 'roles', 'is_admin', 'isAdministrator', 'owner_id', 'ownerId', 'user_id', 'created_by', 'id', 'mac', 'mac_key_id', 'ciphertext', 'status', 'verified'].filter((name) => !taken.has(name));
        for (const name of perOperation > 20 ? extra : [pick(extra), pick(extra)]) {
          const body = { ...(sampleOf(document, one.body) as object), [name]: pick(['admin', true, 1, person.userId]) };
          const answer = await stage.call(one.method, pathOf(document, one), { token: administrator, headers: preconditionOf(one), body });
          const isRefused = answer.status === 400 && answer.json.code === 'invalid_request' && answer.json.detail.includes(`"${name}"`);
          if (!isRefused && answer.status !== 429) failures.push(`${one.id} with ${name}: ${answer.status} ${answer.text.slice(0, 200)}`);
        }
      }
      expect(failures).toEqual([]);
    }, 120_000);
  });
}
