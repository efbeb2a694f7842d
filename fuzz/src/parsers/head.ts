/**
 * `verify`: heads of requests, against a reading of docs/spec/request-signing.md that counts header by header; and whole signed
 * requests, of which none may pass but the one that was signed.
 */
import { CARRIAGE_HEADERS, COVERED_HEADERS, type Carriage, type CoveredHeader } from '@keyguard/core/canonical';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import type { Bytes, SigningKey, VerifyKey } from '@keyguard/core/seams';
import { createSigner } from '@keyguard/core/sign';
import { readSignedHead, verifySignature, type ReceivedHead, type SignedHead } from '@keyguard/core/verify';
import { nodePrimitives } from '@keyguard/server-verifier/node-primitives';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateList, mutateText, oddCharacter } from '../mutate.ts';
import { agree, demand, demandEqual, outcomeOf, outcomeOfLater, type Parser } from '../parser.ts';
import { isFieldValueByOracle, isPathByOracle, isQueryByOracle, TARGETS, TARGET_WORDS } from './canonical.ts';

const AUTHORITY = 'keyguard.example.com';
const IGNORED = ['x-goog-api-key', 'x-goog-api-client', 'anthropic-dangerous-direct-browser-access'];
const REFUSALS = ['malformed_request', 'unsupported_version', 'unsupported_header', 'unsupported_encoding', 'signature_invalid'] as const;

/** Only A to Z: what HTTP calls case-insensitive is ASCII. */
const asciiLower = (text: string): string => text.replaceAll(/[A-Z]/g, (letter) => letter.toLowerCase());

function isCanonical(text: string | undefined, encoding: 'base64' | 'base64url', lengthBytes: number): boolean {
  if (text === undefined) return false;
  const bytes = Buffer.from(text, encoding);
  return bytes.length === lengthBytes && bytes.toString(encoding) === text;
}

interface Reading {
  /** Codes of all that is wrong; empty for a head that must be accepted. */
  readonly wrong: ReadonlySet<(typeof REFUSALS)[number]>;
  readonly head: Omit<SignedHead, 'coveredHeaders'> & { readonly coveredHeaders: readonly CoveredHeader[] };
}

type Values = readonly (string | undefined)[];

/** The six values out of the fields of RFC 9421, which must be the template for these headers; `null` where they are not. */
function valuesOf(fields: Values, items: readonly string[]): { readonly values: Values; readonly tag: string } | null {
  const [input, signature, digest] = fields;
  const [list, created, keyId, nonce, ...rest] = (input ?? '').split(';');
  const quoted = (name: string, text = ''): string | null => (text.startsWith(`${name}="`) && text.endsWith('"') && text.length > name.length + 2 ? text.slice(name.length + 2, -1) : null);
  const between = (text = '', before: string): string | null => (text.startsWith(before) && text.endsWith(':') ? text.slice(before.length, -1) : null);
  const tag = rest.join(';') === 'tag=""' ? '' : quoted('tag', rest.join(';'));
  const values = [created?.startsWith('created=') ? created.slice('created='.length) : null, quoted('keyid', keyId), quoted('nonce', nonce), between(digest, 'sha-256=:'), between(signature, 'keyguard=:')];
  if (list !== `keyguard=(${items.map((item) => `"${item}"`).join(' ')})` || tag === null || tag.includes('"') || values.includes(null)) return null;
  const [timestamp, id, once, bodySha256, bytes] = values as string[];
  return { values: ['1', id, timestamp, once, bodySha256, bytes], tag };
}

function readByOracle({ method, target, rawHeaders }: ReceivedHead, authorities: readonly string[], carriage: Carriage): Reading {
  const wrong = new Set<(typeof REFUSALS)[number]>();
  const malformedUnless = (holds: boolean): void => {
    if (!holds) wrong.add('malformed_request');
  };
  malformedUnless(method.length >= 1 && method.length <= 16 && [...method].every((letter) => letter >= 'A' && letter <= 'Z'));
  const mark = target.indexOf('?');
  const [path, query] = mark < 0 ? [target, ''] : [target.slice(0, mark), target.slice(mark + 1)];
  malformedUnless(target.length <= 8192 && isPathByOracle(path) && isQueryByOracle(query));
  malformedUnless(rawHeaders.length <= 512);
  const byName = new Map<string, string[]>();
  // Such a name is no token of HTTP; one that nobody could take for ours is passed over.
  const names = rawHeaders.filter((_, i) => i % 2 === 0);
  malformedUnless(!names.some((name) => /[^\0-\u007f]/.test(name) && name.toLowerCase() !== name));
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = asciiLower(rawHeaders[i]!);
    byName.set(name, [...(byName.get(name) ?? []), rawHeaders[i + 1]!]);
  }
  const only = (name: string): string | undefined => {
    const values = byName.get(name) ?? [];
    malformedUnless(values.length <= 1);
    return values[0];
  };
  const coveredHeaders: CoveredHeader[] = [];
  for (const name of COVERED_HEADERS) {
    const value = only(name);
    if (value === undefined) continue;
    malformedUnless(isFieldValueByOracle(value));
    coveredHeaders.push([name, value]);
  }
  const contentType = only('content-type') ?? null;
  malformedUnless(contentType === null || isFieldValueByOracle(contentType));
  let values: Values = CARRIAGE_HEADERS.map(only);
  let statedTag: string | null = null;
  if (carriage === 'headers') {
    malformedUnless(!byName.has('signature') && !byName.has('signature-input'));
  } else {
    malformedUnless(values.every((value) => value === undefined));
    const items = ['@method', '@authority', '@path', '@query', 'content-digest', ...(contentType === null ? [] : ['content-type']), ...coveredHeaders.map(([name]) => name)];
    const read = valuesOf(['signature-input', 'signature', 'content-digest'].map(only), items);
    malformedUnless(read !== null);
    ({ values, tag: statedTag } = read ?? { values, tag: null });
  }
  const [version, keyId, timestamp, nonce, bodySha256, signature] = values;
  malformedUnless(version !== undefined);
  if (version !== undefined && version !== '1') wrong.add('unsupported_version');
  malformedUnless(isCanonical(keyId, 'base64url', 32) && isCanonical(nonce, 'base64url', 16));
  malformedUnless(isCanonical(bodySha256, 'base64', 32) && isCanonical(signature, 'base64', 64));
  malformedUnless(timestamp?.length === 10 && String(Number(timestamp)) === timestamp && Number(timestamp) >= 1e9);
  if (byName.get('content-encoding')?.some((value) => asciiLower(value) !== 'identity')) wrong.add('unsupported_encoding');
  const known = new Set<string>([...CARRIAGE_HEADERS, ...COVERED_HEADERS, ...IGNORED]);
  for (const name of byName.keys()) {
    const isGuarded = ['anthropic-', 'openai-', 'x-goog-', 'x-keyguard-'].some((prefix) => name.startsWith(prefix));
    if (isGuarded && !known.has(name)) wrong.add('unsupported_header');
  }
  const host = only('host');
  let authority = authorities[0]!;
  if (authorities.length > 1) {
    const named = asciiLower(host ?? '');
    const portless = named.endsWith(':80') || named.endsWith(':443') ? named.slice(0, named.lastIndexOf(':')) : named;
    authority = authorities.includes(named) ? named : portless;
    if (host === undefined) wrong.add('malformed_request');
    else if ([...host].some((letter) => letter > '\u007f')) wrong.add('malformed_request');
    else if (!authorities.includes(authority)) wrong.add('signature_invalid');
  }
  const parts = { keyId: keyId!, timestamp: timestamp!, nonce: nonce!, bodySha256: bodySha256!, signature: new Uint8Array(Buffer.from(signature ?? '', 'base64')) };
  return { wrong, head: { method, authority, path, query, contentType, coveredHeaders, createdSeconds: Number(timestamp), statedTag, ...parts } };
}

type Header = readonly [name: string, value: string];

const EXTRA: readonly Header[] = [
  ['Host', 'other.example.com'], ['host', `${AUTHORITY}:443`], ['content-encoding', 'gzip'], ['Content-Encoding', 'Identity'], ['content-type', 'text/plain'], ['signature', 'x'], ['Signature-Input', 'x'],
  ['x-goog-api-key', 'k'], ['x-goog-user-project', 'p'], ['x-keyguard-alg', 'none'], ['openai-beta', 'a'], ['OpenAI-Project', 'p'], ['anthropic-version', '2023-06-01'], ['x-\u212aeyguard-nonce', 'n'],
  ['idempotency-key', 'i'], ['accept', '*/*'], ['x-forwarded-host', 'evil'], ['transfer-encoding', 'chunked'], ['__proto__', '1'], ['constructor', 'x'], ['', ''], ['anthropic-\u0131d', 'x'],
];

const FORMS: ReadonlyMap<string, readonly string[]> = new Map(Object.entries({
  'x-keyguard-version': ['0', '2', '01', ' 1', '1 ', '1,1'],
  'Signature-Input': ['keyguard=();created=1', 'sig1=("@method");created=1780000000', 'keyguard=("@method" "@authority")'],
  signature: ['keyguard=::', 'keyguard=:AAAA:', 'sig1=:AAAA:, keyguard=:AAAA:'],
  'content-digest': ['sha-512=:AAAA:', 'sha-256=::', 'sha-256=:AAAA:, sha-512=:AAAA:'],
  'x-keyguard-timestamp': ['0', '1e9', '-1780000000', '+1780000000', '0x6A0', '17800000000', '01780000000', 'NaN'],
}));

function mutateHeader(random: Generator, [name, value]: Header): Header {
  if (random.oneIn(3)) return [mutateText(random, name), value];
  const forms = FORMS.get(name) ?? [];
  return [random.oneIn(5) ? name.replaceAll(/[ks]/g, (letter) => (letter === 'k' ? '\u212a' : '\u017f')) : name, forms.length > 0 && random.oneIn(2) ? random.pick(forms) : mutateText(random, value)];
}

interface Message {
  readonly method: string;
  readonly target: string;
  readonly headers: readonly Header[];
}

function mutateMessage(random: Generator, message: Message): Message {
  let { method, target } = message;
  let headers = [...message.headers];
  for (let left = random.pick([0, 1, 1, 1, 1, 2, 3]); left > 0; left -= 1) {
    const part = random.below(10);
    if (part === 0) method = random.oneIn(2) ? random.pick(['GET', 'get', 'PATCH', '', 'A'.repeat(17), 'PO ST', 'P\u00d6ST']) : mutateText(random, method);
    else if (part <= 2) target = mutateText(random, target, TARGET_WORDS);
    else headers = mutateList(random, headers, (header) => mutateHeader(random, header), () => random.pick(EXTRA));
    if (random.oneIn(300)) headers.push(...Array.from({ length: 245 + random.below(20) }, (): Header => ['accept', oddCharacter(random)]));
  }
  return { method, target, headers };
}

const received = ({ method, target, headers }: Message): ReceivedHead => ({ method, target, rawHeaders: headers.flat() });

function messageOf(random: Generator, carriage: Carriage): Message {
  const base64 = (length: number, encoding: 'base64' | 'base64url'): string => Buffer.from(random.bytes(length)).toString(encoding);
  const [keyId, nonce, bodySha256, signature] = [base64(32, 'base64url'), base64(16, 'base64url'), base64(32, 'base64'), base64(64, 'base64')];
  const timestamp = String(1_000_000_000 + random.below(2 ** 32));
  const named = random.pick<Header[]>([[], [['content-type', 'application/json']], [['content-type', 'a/b'], ['anthropic-beta', 'b'], ['openai-project', 'p']]]);
  const items = ['@method', '@authority', '@path', '@query', 'content-digest', ...named.map(([name]) => name)].map((item) => `"${item}"`).join(' ');
  const carried: Header[] =
    carriage === 'headers'
      ? [['x-keyguard-version', '1'], ['X-KeyGuard-Key-Id', keyId], ['x-keyguard-timestamp', timestamp], ['x-keyguard-nonce', nonce], ['x-keyguard-body-sha256', bodySha256], ['x-keyguard-signature', signature]]
      : [['Signature-Input', `keyguard=(${items});created=${timestamp};keyid="${keyId}";nonce="${nonce}";tag="keyguard-v1"`], ['signature', `keyguard=:${signature}:`], ['content-digest', `sha-256=:${bodySha256}:`]];
  const headers: Header[] = [...carried, ['host', AUTHORITY], ...named];
  return { method: random.pick(['GET', 'POST', 'DELETE']), target: random.pick(TARGETS), headers };
}

const LISTS = [[AUTHORITY], [AUTHORITY, 'other.example.com:8443'], ['kk.example', AUTHORITY]];

const pair = await generateKeyPair();
const key: SigningKey = await signingKey(pair);
const primitives = nodePrimitives();
const verifyKey: VerifyKey = await primitives.importPublicKey(key.publicKey);

interface SignedMessage extends Message {
  readonly carriage: Carriage;
  readonly body: Bytes;
  readonly head: SignedHead;
}

async function signedMessage(carriage: Carriage, method: string, target: string, headers: readonly Header[], body: string): Promise<SignedMessage> {
  const bytes = new Uint8Array(Buffer.from(body));
  const sign = createSigner({ key, carriage });
  const carried = await sign({ method, authority: AUTHORITY, target, headers, body: bytes });
  const message = { method, target, headers: [...headers, ['host', AUTHORITY] as const, ...Object.entries(carried)] };
  return { ...message, carriage, body: bytes, head: readSignedHead(received(message), [AUTHORITY], carriage) };
}

const SIGNED = await Promise.all([
  signedMessage('headers', 'GET', '/v1/models', [], ''),
  signedMessage('headers', 'POST', '/v1/chat/completions?stream=true', [['content-type', 'application/json'], ['openai-project', 'p1']], '{"model":"m","messages":[]}'),
  signedMessage('rfc9421', 'POST', '/v1/messages', [['content-type', 'application/json'], ['anthropic-version', '2023-06-01'], ['idempotency-key', 'i-1']], '{"max_tokens":1}'),
]);

function headParser(name: string, carriage: Carriage): Parser {
  return {
    name,
    try(random) {
      const head = received(mutateMessage(random, messageOf(random, carriage)));
      const authorities = random.pick(LISTS);
      const { wrong, head: expected } = readByOracle(head, authorities, carriage);
      const outcome = outcomeOf(() => readSignedHead(head, authorities, carriage), ...REFUSALS.map((code) => `RejectedError ${code}`));
      if (outcome.accepted && wrong.size === 0) demandEqual(outcome.value, expected, 'the head');
      if (!outcome.accepted && wrong.size > 0) demand([...wrong].some((code) => outcome.refusal.endsWith(code)), `refused as ${outcome.refusal}`);
      return agree(outcome.accepted, wrong.size === 0);
    },
  };
}

export const HEADS: readonly Parser[] = [
  headParser('verify.readSignedHead', 'headers'),
  headParser('verify.readSignedHead, RFC 9421', 'rfc9421'),
  {
    name: 'verify.verifySignature',
    async try(random) {
      const original = random.pick(SIGNED);
      const message = mutateMessage(random, original);
      const body = random.oneIn(3) ? mutateBytes(random, original.body) : original.body;
      const outcome = await outcomeOfLater(async () => {
        const head = readSignedHead(received(message), [AUTHORITY], original.carriage);
        await verifySignature(head, body, verifyKey, 'keyguard-v1', primitives);
        return head;
      }, ...REFUSALS.map((code) => `RejectedError ${code}`));
      const isBody = Buffer.compare(body, original.body) === 0;
      if (outcome.accepted) {
        demandEqual(outcome.value, original.head, 'what was signed');
        demand(isBody, 'accepted another body');
      }
      return outcome.accepted ? 'accepted' : 'refused';
    },
  },
];
