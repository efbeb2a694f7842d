/** The API's document: valid by somebody else's judgement, complete, and no promise that the service does not keep. */
import { readFile } from 'node:fs/promises';
import { Validator } from '@seriousme/openapi-schema-validator';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { problemCodes } from '../../src/http/problems.ts';
import { contractOf, type ApiDocument, type Contract } from '../contract.ts';
import { startInProcess, type Stage } from '../matrix/stage.ts';

interface Described {
  readonly operationId: string;
  readonly summary?: string;
  readonly tags?: readonly string[];
  readonly security?: readonly object[];
  readonly parameters?: readonly { readonly name: string; readonly in: string; readonly schema?: object; readonly required?: boolean }[];
  readonly responses: Readonly<Record<string, { readonly description?: string; readonly content?: Readonly<Record<string, { readonly schema?: object }>> }>>;
}

describe('the document', () => {
  let stage: Stage;
  let document: ApiDocument & Record<string, unknown>;
  let operations: [string, Described][];

  beforeAll(async () => {
    stage = await startInProcess();
    document = (await stage.call('GET', '/api/openapi.json')).json;
    operations = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]): [string, Described] => [`${method.toUpperCase()} ${path}`, operation as unknown as Described]),
    );
  }, 120_000);
  afterAll(() => stage.stop(), 60_000);

  it('is valid OpenAPI 3.1', async () => {
    const validator = new Validator();
    const { valid, errors } = await validator.validate(structuredClone(document));
    expect(errors ?? []).toEqual([]);
    expect([valid, validator.version]).toEqual([true, '3.1']);
    // The judge judges: what is taken away is missed.
    const broken = structuredClone(document) as { info?: unknown };
    delete broken.info;
    expect((await new Validator().validate(broken)).valid).toBe(false);
  });

  it('says of every operation what it is for, who may call it, and what it answers', () => {
    expect(operations.length).toBeGreaterThan(20);
    expect(new Set(operations.map(([, { operationId }]) => operationId)).size).toBe(operations.length);
    for (const [name, { summary, tags, security, responses, parameters = [] }] of operations) {
      expect([name, typeof summary, tags?.length, Array.isArray(security)]).toEqual([name, 'string', 1, true]);
      const successes = Object.entries(responses).filter(([status]) => /^[23]/.test(status));
      expect([name, successes.length > 0]).toEqual([name, true]);
      for (const [status, { description, content = {} }] of Object.entries(responses)) {
        expect([name, status, description !== undefined && description !== '']).toEqual([name, status, true]);
        if (!/^(?:204|3..)$/.test(status)) expect([name, status, Object.values(content).every(({ schema }) => schema !== undefined) && Object.keys(content).length > 0]).toEqual([name, status, true]);
        if (/^[45]/.test(status) && name !== 'GET /readyz') expect([name, status, Object.keys(content)]).toEqual([name, status, ['application/problem+json']]);
      }
      // Each parameter of the path, and no other.
      const inPath = [...name.matchAll(/\{([a-z_]+)\}/g)].map(([, parameter]) => parameter);
      expect([name, parameters.filter((one) => one.in === 'path').map((one) => one.name).toSorted()]).toEqual([name, inPath.toSorted()]);
    }
  });

  it('describes pages, keys of creations and preconditions where they are taken', () => {
    const parametersOf = (name: string): string[] => operations.find(([one]) => one === name)![1].parameters!.map((one) => `${one.in} ${one.name}`);
    expect(parametersOf('GET /api/devices')).toEqual(expect.arrayContaining(['query limit', 'query cursor']));
    expect(parametersOf('POST /api/enrollment-codes')).toContain('header Idempotency-Key');
    expect(parametersOf('PATCH /api/settings')).toContain('header If-Match');
    // Whatever makes something answers 201, and takes a key.
    for (const [name, { responses, parameters = [] }] of operations) {
      if (!name.startsWith('POST /api/') || !('201' in responses) || UNKEYED.has(name)) continue;
      expect([name, parameters.map((one) => one.name)]).toEqual([name, expect.arrayContaining(['Idempotency-Key'])]);
    }
  });

  it('has nothing of this machine, and no secret, in it', () => {
    const text = JSON.stringify(document);
    expect(text).not.toMatch(/node_modules|\/tmp\/|\/home\/|file:\/\//);
    expect(document['servers']).toEqual([{ url: stage.origin }]);
  });

  it('is what every answer is held to', async () => {
    const contract: Contract = contractOf(document);
    const { token } = await stage.newPerson('reader');
    const answer = await stage.call('POST', '/api/enrollment-codes', { token, body: {} });
    const exchange = { method: 'POST', path: '/api/enrollment-codes', status: answer.status, headers: answer.headers, text: answer.text };
    expect(contract.operationOf('POST', '/api/enrollment-codes')).toBe('createEnrollmentCode');
    expect(contract.breaches(exchange)).toEqual([]);
    const changed = (change: object): string => JSON.stringify({ ...answer.json, ...change });
    for (const [breach, found] of [
      [{ status: 202 }, /202 is not declared/],
      [{ status: 200 }, /200 is not declared/],
      [{ text: changed({ code_hash: 'x' }) }, /additional properties/],
      [{ text: changed({ max_uses: '1' }) }, /max_uses must be integer/],
      [{ text: changed({ created_at: 'yesterday' }) }, /created_at must match/],
      [{ text: changed({ id: undefined }) }, /required property 'id'/],
      [{ headers: new Headers({ 'content-type': 'text/html' }) }, /text\/html, and application\/json is declared/],
      [{ headers: new Headers({ 'content-type': 'application/json', 'set-auth-token': 'x' }) }, /set-auth-token, which is not declared/],
    ] as [object, RegExp][]) {
      expect(contract.breaches({ ...exchange, ...breach }).join('\n')).toMatch(found);
    }
  });

  it('is told in words as well: every code of a problem has its line', async () => {
    const page = await readFile(new URL('../../../../docs/service/http.md', import.meta.url), 'utf8');
    const lines = page.split('\n');
    for (const [code, status] of problemCodes()) expect([code, lines.some((line) => line.startsWith(`| \`${code}\` | ${status} |`))]).toEqual([code, true]);
  });
});

/** Creations that are made at most once by themselves, whatever key they come with; each with its reason. */
const UNKEYED: ReadonlySet<string> = new Set([
  // Public: nobody is signed in to whom a key could belong. A deployment is set up once.
  'POST /api/setup',
  // Public likewise: an invitation is taken once.
  'POST /api/invitations/accept',
  // A factor in the making takes the place of the one before.
  'POST /api/auth/second-factor',
  // One rotation runs at a time, and asking again begins none beside it.
  'POST /api/operations/kek-rotations',
  // Signs what is there: asked twice, it says the same of the same log.
  'POST /api/audit/checkpoint',
  // Signed by devices: a nonce is accepted once, and a key is enrolled once.
  'POST /api/keyguard/enroll',
  'POST /api/keyguard/rotate',
]);
