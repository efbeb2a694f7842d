/**
 * What holds for every request of the control plane, whatever it asks: which pages it may come from, what its query may look like,
 * which answers it takes, and on which state of a thing it insists.
 */
import type { Request } from 'express';
import type { ZodType } from 'zod';
import { HttpProblem, notFound, type ProblemCode } from './problems.ts';

// What a browser says of a page of ours, and of a person who typed the address.
const OWN_SITES: ReadonlySet<string> = new Set(['same-origin', 'none']);

/**
 * A page of somebody else's must neither use a cookie of ours nor plant one. Programs send none of these headers, and no cookie.
 * @throws HttpProblem `origin_not_allowed`
 */
export function demandOwnPage({ headers }: Request, origins: readonly string[]): void {
  const { origin, cookie, 'sec-fetch-site': site } = headers;
  const isOwn = origin === undefined ? cookie === undefined : origins.includes(origin);
  if (!isOwn || (typeof site === 'string' && !OWN_SITES.has(site))) {
    throw new HttpProblem('origin_not_allowed', 'This must come from a page of this service, or from a program without cookies.');
  }
}

// A text that a database cannot keep, or that has no form in UTF-8.
const LONE_SURROGATE = /[\uD800-\uDFFF]/u;
const isUnkeepable = (text: string): boolean => text.includes('\0') || LONE_SURROGATE.test(text);

/**
 * The parameters of the path, as texts that a database can keep.
 * @throws HttpProblem `not_found`, because nothing has such an id
 */
export function pathOf({ params }: Request): Readonly<Record<string, string>> {
  for (const value of Object.values(params)) if (typeof value !== 'string' || isUnkeepable(value)) throw notFound();
  return params as Readonly<Record<string, string>>;
}

/**
 * The query, in which every name stands once.
 * @throws HttpProblem `malformed_request`
 */
export function queryOf({ query }: Request): Record<string, string> {
  const read = new Map<string, string>();
  for (const [name, value] of Object.entries(query)) {
    // The parser makes a list of what is doubled, of which somebody in between may have read the other one.
    if (typeof value !== 'string') throw new HttpProblem('malformed_request', 'A parameter of the query is given twice.');
    if (isUnkeepable(name) || isUnkeepable(value)) throw new HttpProblem('malformed_request', 'Texts may hold neither U+0000 nor lone surrogates.');
    read.set(name, value);
  }
  return Object.fromEntries(read);
}

type Answers = Readonly<Record<number, { readonly json?: ZodType; readonly types?: readonly string[] }>>;

/** The media types in which an operation answers when it succeeds. */
export function typesOf(answers: Answers): readonly string[] {
  return [...new Set(Object.values(answers).flatMap(({ json, types = [] }) => (json === undefined ? types : ['application/json', ...types])))];
}

/**
 * Whoever takes none of `types` is told before anything is done for nothing. Problems are sent to everyone.
 * @throws HttpProblem `not_acceptable`
 */
export function demandAcceptable(request: Request, types: readonly string[]): void {
  if (types.length > 0 && request.accepts([...types]) === false) {
    throw new HttpProblem('not_acceptable', `This is answered as ${types.join(' or ')} only.`);
  }
}

const ETAGS = /^"[\x21\x23-\x7e]{1,128}"(?:[\t ]*,[\t ]*"[\x21\x23-\x7e]{1,128}")*$/;

/**
 * The states named by If-Match; `null` where it was not sent, or allows any state. An operation takes it where `precondition_failed`
 * is one of its problems, and demands it where `precondition_required` is one.
 * @throws HttpProblem `precondition_required`; `precondition_failed` where there is no ETag that could match
 */
export function ifMatchOf({ headers, method }: Request, problems: readonly ProblemCode[] = []): readonly string[] | null {
  const header = headers['if-match']?.trim();
  if (header === undefined) {
    if (!problems.includes('precondition_required')) return null;
    throw new HttpProblem('precondition_required', 'Send If-Match with the ETag of the state that you have seen, so that nobody’s change is lost.');
  }
  if (header === '*') return null;
  if (!problems.includes('precondition_failed')) {
    if (method === 'GET' || method === 'HEAD') return null;
    throw new HttpProblem('precondition_failed', 'This has no ETag, so no If-Match can hold.');
  }
  // A weak one never matches (RFC 9110, section 13.1.1).
  return ETAGS.test(header) ? header.split(',').map((tag) => tag.trim().slice(1, -1)) : [];
}
