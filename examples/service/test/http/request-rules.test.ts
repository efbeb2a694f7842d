/** The rules that every request meets, beside the HTTP that hides some of what they guard against. */
import type { Request } from 'express';
import { describe, expect, it } from 'vitest';
import { demandOwnPage, ifMatchOf, pathOf, queryOf } from '../../src/http/request-rules.ts';

const codeOf = (work: () => unknown): unknown => {
  try {
    return work();
  } catch (error) {
    return (error as { code: string }).code;
  }
};
const asking = (more: object): Request => ({ method: 'POST', headers: {}, params: {}, query: {}, ...more }) as unknown as Request;

describe('a page', () => {
  const judged = (headers: object): unknown => codeOf(() => demandOwnPage(asking({ headers }), ['https://guard.example.com']) ?? 'ours');

  it('of somebody else neither uses a cookie nor plants one', () => {
    for (const headers of [{}, { origin: 'https://guard.example.com', cookie: 'a=b' }, { 'sec-fetch-site': 'same-origin' }, { 'sec-fetch-site': 'none' }]) {
      expect(judged(headers), JSON.stringify(headers)).toBe('ours');
    }
    for (const headers of [
      { cookie: 'a=b' }, { origin: 'https://evil.example.com' }, { origin: 'null' }, { origin: 'https://guard.example.com.evil.example' },
      { 'sec-fetch-site': 'cross-site' }, { 'sec-fetch-site': 'same-site' }, { origin: 'https://guard.example.com', 'sec-fetch-site': 'cross-site' },
    ]) expect(judged(headers), JSON.stringify(headers)).toBe('origin_not_allowed');
  });
});

describe('a text that no database keeps', () => {
  it.each(['\0', 'a\0b', '\uD800', 'a\uDC00b'])('is no id, no name and no value: %j', (text) => {
    expect(codeOf(() => pathOf(asking({ params: { id: text } })))).toBe('not_found');
    for (const query of [{ [text]: 'x' }, { q: text }]) expect(codeOf(() => queryOf(asking({ query })))).toBe('malformed_request');
  });

  it('is not every one with signs beyond the first plane', () => {
    expect(pathOf(asking({ params: { id: '🔑' } }))).toEqual({ id: '🔑' });
    expect(queryOf(asking({ query: { q: '🔑', '🔑': '' } }))).toEqual({ q: '🔑', '🔑': '' });
  });
});

describe('If-Match', () => {
  const read = (header: string | undefined, method: string, problems: readonly ('precondition_failed' | 'precondition_required')[] = []): unknown =>
    codeOf(() => ifMatchOf(asking({ method, headers: header === undefined ? {} : { 'if-match': header } }), problems));

  it('is demanded where it is needed, stops a change that has no ETag, and no reading', () => {
    expect([read(undefined, 'PATCH', ['precondition_required', 'precondition_failed']), read(undefined, 'PATCH', ['precondition_failed']), read('*', 'PATCH', ['precondition_failed'])]).toEqual(['precondition_required', null, null]);
    expect([read('"r1"', 'POST'), read('"r1"', 'GET'), read('"r1"', 'HEAD')]).toEqual(['precondition_failed', null, null]);
  });

  it('names states by strong ETags, and matches nothing by anything else', () => {
    expect(read('"r1"', 'PATCH', ['precondition_failed'])).toEqual(['r1']);
    expect(read(' "r1" ,\t"r2"', 'PATCH', ['precondition_failed'])).toEqual(['r1', 'r2']);
    for (const header of ['', 'r1', 'W/"r1"', '"r1" "r2"', '"r1",', '"r1"x', '"', `"${'r'.repeat(129)}"`]) expect(read(header, 'PATCH', ['precondition_failed']), header).toEqual([]);
  });
});
