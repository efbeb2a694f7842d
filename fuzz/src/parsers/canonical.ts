/** `canonical`: the wire grammar, against a reading of docs/spec/request-signing.md without regular expressions, and against URL. */
import { isAuthority, isFieldValue, isPath, isQuery, MAX_TARGET_BYTES, splitTarget } from '@keyguard/core/canonical';
import type { Generator } from '../generator.ts';
import { mutateText, randomText } from '../mutate.ts';
import { agree, demand, demandEqual, type Parser } from '../parser.ts';

const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const DIGITS = '0123456789';
const PATH_CHARACTERS = new Set(`${LETTERS}${DIGITS}._~!$&'()*+,;=:@-`);
const HEX_DIGITS = '0123456789ABCDEFabcdef';

function isSegment(segment: string): boolean {
  const [name] = segment.split(';', 1);
  if (name === '.' || name === '..') return false;
  for (let i = 0; i < segment.length; i += 1) {
    if (segment[i] === '%') {
      const [high = '', low = ''] = segment.slice(i + 1, i + 3);
      if (high === '' || low === '' || !HEX_DIGITS.includes(high) || !HEX_DIGITS.includes(low)) return false;
      const code = Number.parseInt(high + low, 16);
      if (code < 0x20 || [0x25, 0x2e, 0x2f, 0x5c, 0x7f].includes(code)) return false;
      i += 2;
    } else if (!PATH_CHARACTERS.has(segment[i]!)) {
      return false;
    }
  }
  return true;
}

/** Section 4 of the specification: the path. */
export function isPathByOracle(text: string): boolean {
  const [before, ...segments] = text.split('/');
  if (before !== '' || segments.length === 0) return false;
  return segments.every((segment, i) => isSegment(segment) && (segment !== '' || i === segments.length - 1));
}

const isPrintable = (code: number): boolean => code >= 0x21 && code <= 0x7e;
const codesOf = (text: string): number[] => Array.from({ length: text.length }, (_, i) => text.charCodeAt(i));

/** Section 4: the query. */
export function isQueryByOracle(text: string): boolean {
  return codesOf(text).every((code) => isPrintable(code) && code !== 0x23);
}

/** Section 4: Content-Type and covered headers. */
export function isFieldValueByOracle(text: string): boolean {
  const codes = codesOf(text);
  if (codes.length === 0 || codes.length > 1024) return false;
  return codes.every((code, i) => isPrintable(code) || (code === 0x20 && i > 0 && i < codes.length - 1));
}

export const TARGETS = [
  '/', '/v1/chat/completions', '/proxy/openai/v1/models?limit=2&after=a%20b', '/v1beta/models/gemini-2.5-pro:generateContent?alt=sse', '/a;v=1/b.c/~d/%C3%A9', '/?', '/x/?a=b?c=/../',
  '/openai/deployments/d/chat?api-version=2024-10-21', '/...', '/.a/..b', "/!$&'()*+,=:@",
] as const;
export const TARGET_WORDS = ['//', '/./', '/../', '/..;a', '/%2e%2e/', '%2F', '%5C', '%00', '%7F', '%25', '%', '%4', '\\', '#', 'http://evil/', '*', '/.', '?', '%C3%A9', '%7e'] as const;

/** What WHATWG URL makes of the query: it encodes four more characters than travel encoded. */
const encoded = (query: string): string => query.replaceAll(/["'<>]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`);

function tryTarget(random: Generator): ReturnType<Parser['try']> {
  const target = random.oneIn(500) ? `/${'a/%20'.repeat(random.below(4000))}` : mutateText(random, random.pick(TARGETS), TARGET_WORDS);
  const split = splitTarget(target);
  const mark = target.indexOf('?');
  const [path, query] = mark < 0 ? [target, ''] : [target.slice(0, mark), target.slice(mark + 1)];
  if (split !== null) {
    demandEqual(split, { path, query }, 'the split target');
    // No hop that reads URLs may read another path: the target is its own normal form.
    const url = new URL(`http://h${target}`);
    demand(url.host === 'h' && url.pathname === path && url.hash === '', 'URL reads another path');
    demand(url.search === (query === '' ? '' : `?${encoded(query)}`), 'URL reads another query');
  }
  return agree(split !== null, target.length <= MAX_TARGET_BYTES && isPathByOracle(path) && isQueryByOracle(query));
}

const AUTHORITIES = ['localhost', 'api.example.com', 'api.example.com:8443', '127.0.0.1:3000', '[::1]', '[2001:db8::1]:8080', '[::ffff:192.0.2.1]', 'xn--bcher-kva.example', 'a_b-c.example:1'] as const;

function isAuthorityByOracle(text: string): boolean {
  const bracket = text.startsWith('[') ? text.indexOf(']') : -1;
  const colon = text.indexOf(':', bracket + 1);
  const host = colon < 0 ? text : text.slice(0, colon);
  const inner = bracket > 0 ? host.slice(1, -1) : host;
  const allowed = bracket > 0 ? '0123456789abcdef:.' : 'abcdefghijklmnopqrstuvwxyz0123456789._-';
  if (text.length > 261 || inner === '' || (bracket > 0 && host.length !== bracket + 1) || ![...inner].every((each) => allowed.includes(each))) return false;
  const port = colon < 0 ? null : text.slice(colon + 1);
  return port === null || (port.length <= 5 && port !== '' && port[0] !== '0' && [...port].every((each) => DIGITS.includes(each)));
}

function tryAuthority(random: Generator): ReturnType<Parser['try']> {
  const text = mutateText(random, random.pick(AUTHORITIES), ['user@', ':80', ':65536', '..', '[::]', '%41', '/', '?x', '#', 'É', '.example.com', 'a'.repeat(255)]);
  const accepted = isAuthority(text);
  if (accepted && URL.canParse(`http://${text}/p`)) {
    // Where it is a host at all, it is nothing else beside it.
    const url = new URL(`http://${text}/p`);
    demand(url.username === '' && url.password === '' && url.pathname === '/p' && url.search === '' && url.hash === '', 'more than an authority');
  }
  return agree(accepted, isAuthorityByOracle(text));
}

const VALUES = ['application/json', 'multipart/form-data; boundary=x', 'tools-2024-04-04,prompt-caching', 'org_1', 'a b', 'x'.repeat(1024)] as const;

export const CANONICAL: readonly Parser[] = [
  { name: 'canonical.splitTarget', try: tryTarget },
  {
    name: 'canonical.isPath',
    try(random) {
      const text = mutateText(random, random.pick(TARGETS), TARGET_WORDS);
      return agree(isPath(text), isPathByOracle(text));
    },
  },
  {
    name: 'canonical.isQuery',
    try(random) {
      const text = mutateText(random, random.oneIn(2) ? 'a=b&c=%20+d&&=~' : randomText(random, random.below(40)));
      return agree(isQuery(text), isQueryByOracle(text));
    },
  },
  { name: 'canonical.isAuthority', try: tryAuthority },
  {
    name: 'canonical.isFieldValue',
    try(random) {
      const text = mutateText(random, random.pick(VALUES), [' ', '\t', '\n x: y']);
      return agree(isFieldValue(text), isFieldValueByOracle(text));
    },
  },
];
