/**
 * What reads untrusted input, hashes or writes, takes time in proportion to the input: from 1 KiB to 1 MiB, for the inputs that are
 * worst for it. What has a limit refuses at once what is longer, and must not even read it in more than proportion.
 *
 * Robust on a busy machine: what counts is what the process worked, of each size the best of some runs, of each case the best of
 * five attempts. Twice the work for twice the input is a factor of 16 from 64 KiB to 1 MiB; up to 96 is let pass, and the square
 * would be 256.
 */
import { createHash, createHmac, randomBytes } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { chainStart, sealEntries, verifyRecords } from '@keyguard/core/audit';
import { concat, equalBytes, fromBase64, fromBase64Url, fromUtf8, toBase64, toBase64Url, utf8 } from '@keyguard/core/bytes';
import { canonicalJson, parseCanonicalJson } from '@keyguard/core/canonical-json';
import { isAuthority, isFieldValue, isPath, isQuery, isUnsupportedHeader, signatureBase, splitTarget } from '@keyguard/core/canonical';
import { checkpointText, checkpointVerifier, headMacOf, readRestore, verifyCheckpoint, type CheckpointVerifier } from '@keyguard/core/checkpoint';
import { fingerprintDigest } from '@keyguard/core/fingerprint';
import { parsePublicJwk } from '@keyguard/core/keys';
import { appendLeaves, emptyTree, treeRoot, verifyConsistency, verifyInclusion, type Sha256 } from '@keyguard/core/merkle';
import { parseRotationState } from '@keyguard/core/rotation';
import type { AuditMacKey, Bytes, PublicJwk } from '@keyguard/core/seams';
import { aesKeyProvider, open, passphraseKey, seal } from '@keyguard/core/vault';
import { readSignedHead } from '@keyguard/core/verify';
import { linesOf, readExport } from '@keyguard/example-audit-verifier/export';
import { condensedJson } from '@keyguard/example-service/llm/condensed-json';
import { formFields } from '@keyguard/example-service/llm/form-fields';
import { topMembers } from '@keyguard/example-service/llm/json-members';
import { modelsInBody } from '@keyguard/example-service/llm/models';
import { eventGate } from '@keyguard/example-service/llm/sse';
import { hashEnrollmentCode } from '@keyguard/server-verifier/enrollment-code';
import { ipBucket, ipMatcher } from '@keyguard/server-verifier/ip';
import { readRawBody } from '@keyguard/server-verifier/node';
import { definePolicy } from '@keyguard/server-verifier/policy';

const KIB = 1024;
const STEPS = [
  { from: KIB, to: 64 * KIB },
  { from: 64 * KIB, to: KIB * KIB },
] as const;
const SLACK = 6;
const RUNS = 5;
const RUN_MS = 1;
const ATTEMPTS = 5;

type Call = () => unknown;

/** What this process has worked, in milliseconds: not what it waited for others. */
function workedMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** The best time of one call, in milliseconds of work; a call that is refused is a call. */
async function timeOf(call: Call): Promise<number> {
  const once = async (): Promise<void> => {
    try {
      await call();
    } catch (error) {
      // Many of these are refused, and how long that takes is the question. A mistake in the case is no refusal.
      if ((error as { code?: unknown }).code === undefined) throw error;
    }
  };
  await once();
  let best = Infinity;
  for (let run = 0; run < RUNS; run += 1) {
    let calls = 0;
    const started = workedMs();
    let elapsed = 0;
    do {
      await once();
      calls += 1;
      elapsed = workedMs() - started;
    } while (elapsed < RUN_MS);
    best = Math.min(best, elapsed / calls);
  }
  return best;
}

/** How much more than in proportion the time grows, at worst; 1 is linear. What takes less than 20 µs in all cannot be measured. */
async function excess(make: (lengthBytes: number) => Call): Promise<number> {
  let worst = 0;
  for (const { from, to } of STEPS) {
    const small = await timeOf(make(from));
    const large = await timeOf(make(to));
    if (large > 0.02) worst = Math.max(worst, large / Math.max(small, 0.001) / (to / from));
  }
  return worst;
}

const bytesOf = (lengthBytes: number, value = 0x61): Bytes => new Uint8Array(lengthBytes).fill(value);
const times = (piece: string, lengthBytes: number): string => piece.repeat(Math.ceil(lengthBytes / piece.length));
const sync: Sha256 = { sha256: (data) => new Uint8Array(createHash('sha256').update(data).digest()) };
const list = <T>(lengthBytes: number, each: number, make: (i: number) => T): T[] => Array.from({ length: Math.ceil(lengthBytes / each) }, (_, i) => make(i));

const key: AuditMacKey = { keyId: 'mac-1', mac: (data) => new Uint8Array(createHmac('sha256', 'k').update(data).digest()) };
const keys = new Map([[key.keyId, key]]);
const ORIGIN = 'keyguard.test/audit';
const sealOf = (entries: readonly object[]): Promise<Awaited<ReturnType<typeof sealEntries>>> =>
  sealEntries({ origin: ORIGIN, ...chainStart(), entries: entries as never, nowMs: 1_780_000_000_000, key });
const entry = { action: 'a', outcome: 'success', actor: 'b' } as const;

const gullible: CheckpointVerifier = { name: ORIGIN, keyHash: bytesOf(4, 0), verify: async () => true };
const SIGNATURE = `\u2014 ${ORIGIN} ${Buffer.alloc(68).toString('base64')}\n`;
const ROOT = Buffer.alloc(32).toString('base64');
const note = (extensions: string, signatures = SIGNATURE): string => `${ORIGIN}\n1\n${ROOT}\n${extensions}\n${signatures}`;

const provider = await aesKeyProvider({ kekId: 'k', key: new Uint8Array(randomBytes(32)) });
const PLACE = { deploymentId: 'd', table: 't', row: 'r', column: 'c', version: 1, purpose: 'p' };

const head = (more: readonly string[], method = 'GET', target = '/'): Call => () => readSignedHead({ method, target, rawHeaders: ['host', 'a.example', ...more] }, ['a.example']);
const fields = (input: string): Call => () => readSignedHead({ method: 'GET', target: '/', rawHeaders: ['signature-input', input, 'signature', input, 'content-digest', input] }, ['a.example'], 'rfc9421');

async function* pieces(text: string, lengthBytes: number): AsyncGenerator<Uint8Array> {
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length; at += lengthBytes) yield bytes.subarray(at, at + lengthBytes);
}

async function drain(source: AsyncIterable<unknown>): Promise<void> {
  for await (const each of source) void each;
}

const HEADER_LINE = JSON.stringify({ format: 'keyguard-audit-export-v1', origin: ORIGIN, head: { size: 0, mac: ROOT }, checkpoint: null });
const policy = definePolicy({ authorities: ['a.example'], maxBodyBytes: 4 * KIB * KIB });

const version = (i: number): object => ({ version: i + 1, state: 'retired', createdAtMs: 1, activatedAtMs: null, overlapUntilMs: null, retiredAtMs: 2 });
const state = (versions: readonly object[]): object => ({ lastVersion: versions.length, versions, uses: 0, request: null, retryAtMs: null });

const members = (json: string): Call => {
  const bytes = utf8(json);
  return () => topMembers(bytes, () => true);
};
const FIELD = 'Content-Disposition: form-data; name="';
const form = (body: string): Call => {
  const bytes = utf8(`--b0\r\n${body}\r\n--b0--\r\n`);
  return () => formFields(bytes, 'b0');
};
/** In pieces of 1 KiB. */
const gate = (text: string): Call => {
  const bytes = Buffer.from(text);
  return () => {
    const events = eventGate(4 * KIB * KIB);
    for (let at = 0; at < bytes.length; at += KIB) events.push(bytes.subarray(at, at + KIB));
  };
};
const condensed = (text: string): Call => {
  const bytes = Buffer.from(text);
  return () => {
    const json = condensedJson(4 * KIB * KIB);
    for (let at = 0; at < bytes.length; at += KIB) json.take(bytes.subarray(at, at + KIB));
    return json.rest();
  };
};

const CASES: Readonly<Record<string, (lengthBytes: number) => Call>> = {
  'fromBase64, right to the end': (n) => { const text = times('QUJD', n); return () => fromBase64(text); },
  'fromBase64, wrong at the end': (n) => { const text = `${times('QUJD', n)}QUI!`; return () => fromBase64(text); },
  'fromBase64, padding only': (n) => { const text = times('====', n); return () => fromBase64(text); },
  'fromBase64Url, wrong at the end': (n) => { const text = `${times('QUJD', n)}QU=`; return () => fromBase64Url(text); },
  toBase64: (n) => { const bytes = bytesOf(n, 255); return () => toBase64(bytes); },
  toBase64Url: (n) => { const bytes = bytesOf(n, 255); return () => toBase64Url(bytes); },
  utf8: (n) => { const text = times('\ud800\u00e9', n); return () => utf8(text); },
  'fromUtf8, right to the end': (n) => { const bytes = utf8(times('\u00e9\u{1f600}', n / 2)); return () => fromUtf8(bytes); },
  'fromUtf8, wrong at the end': (n) => { const bytes = concat(bytesOf(n), Uint8Array.of(0xf0, 0x9f)); return () => fromUtf8(bytes); },
  'concat of many': (n) => { const parts = list(n, 64, () => bytesOf(64)); return () => concat(...parts); },
  equalBytes: (n) => { const [a, b] = [bytesOf(n), bytesOf(n)]; return () => equalBytes(a, b); },
  'isPath, as long as it is good': (n) => { const text = `/${times('%C3/.a;', n)}`; return () => isPath(text); },
  'isPath, wrong at the end': (n) => { const text = `/${times('a', n)}\n`; return () => isPath(text); },
  'isPath, dots and slashes': (n) => { const text = `${times('/.a', n)}/..`; return () => isPath(text); },
  'isPath, percent signs': (n) => { const text = `/${times('%', n)}`; return () => isPath(text); },
  'isQuery, wrong at the end': (n) => { const text = `${times('a=b&', n)}#`; return () => isQuery(text); },
  'isAuthority, dots': (n) => { const text = `${times('a.', n)}:`; return () => isAuthority(text); },
  'isFieldValue, blanks': (n) => { const text = `a${times(' ', n)}`; return () => isFieldValue(text); },
  'isUnsupportedHeader, a long name': (n) => { const name = `x-keyguard-${times('a', n)}`; return () => isUnsupportedHeader(name); },
  'splitTarget, question marks': (n) => { const text = `/${times('?', n)}`; return () => splitTarget(text); },
  'signatureBase, many covered headers': (n) => { const parts = { method: 'GET', authority: 'a', path: '/', query: times('q', n), bodySha256: '', contentType: null, coveredHeaders: list(n, 64, (i): [string, string] => [`h${i}`, 'v']), timestamp: '1', keyId: '', nonce: '' }; return () => signatureBase(parts, 'keyguard-v1'); },
  'readSignedHead, a long header': (n) => head(['accept', times('a', n)]),
  'readSignedHead, a long name': (n) => head([times('X-KeyGuard-', n), 'v']),
  'readSignedHead, many headers': (n) => head(list(n, 4, (i) => `h${i}`)),
  'readSignedHead, a long signature': (n) => head(['x-keyguard-version', '1', 'x-keyguard-timestamp', '1780000000', 'x-keyguard-signature', times('QUJD', n)]),
  'readSignedHead, a long host': (n) => () => readSignedHead({ method: 'GET', target: '/', rawHeaders: ['host', times('A', n), 'x-keyguard-version', '1', 'x-keyguard-timestamp', '1780000000', 'x-keyguard-signature', `${'A'.repeat(86)}==`] }, ['a.example', 'b.example']),
  'readSignedHead, a long method': (n) => head([], times('A', n)),
  'RFC 9421 fields, no semicolon': (n) => fields(times('a', n)),
  'RFC 9421 fields, semicolons': (n) => fields(times(';created=', n)),
  'RFC 9421 fields, quotes': (n) => fields(`a;created=1;keyid="${times('a', n)}`),
  'RFC 9421 fields, a long list': (n) => fields(`keyguard=(${times('"@method" ', n)});created=1;keyid="k";nonce="n";tag="t"`),
  'canonicalJson, plain text': (n) => { const value = times('a', n); return () => canonicalJson(value); },
  'canonicalJson, text to escape': (n) => { const value = times('"\u0001\u{1f600}', n); return () => canonicalJson(value); },
  'canonicalJson, many numbers': (n) => { const value = list(n, 4, (i) => i / 7); return () => canonicalJson(value); },
  'canonicalJson, many members': (n) => { const value = Object.fromEntries(list(n, 16, (i) => [`m${(i * 7919) % 65_537}-${i}`, i])); return () => canonicalJson(value); },
  'canonicalJson, long names that begin alike': (n) => { const value = Object.fromEntries(list(n, 1024, (i) => [`${'a'.repeat(1000)}${i}`, i])); return () => canonicalJson(value); },
  'parseCanonicalJson, good': (n) => { const bytes = utf8(canonicalJson(list(n, 8, (i) => ({ i })))); return () => parseCanonicalJson(bytes); },
  'parseCanonicalJson, wrong at the end': (n) => { const bytes = utf8(`["${times('a', n)}"] `); return () => parseCanonicalJson(bytes); },
  'parseCanonicalJson, deep': (n) => { const bytes = utf8(times('[', n)); return () => parseCanonicalJson(bytes); },
  'parsePublicJwk, a long coordinate': (n) => { const jwk = { crv: 'P-256', kty: 'EC', x: times('A', n), y: 'A' }; return () => parsePublicJwk(jwk); },
  'parsePublicJwk, many members': (n) => { const jwk = Object.fromEntries(list(n, 8, (i) => [`m${i}`, i])) as unknown as PublicJwk; return () => parsePublicJwk(jwk); },
  'seal': (n) => { const bytes = bytesOf(n); return () => seal(bytes, PLACE, { keyProvider: provider }); },
  'open': (n) => { const sealed = seal(bytesOf(n), PLACE, { keyProvider: provider }); return async () => open(await sealed, PLACE, { keyProvider: provider }); },
  'open, damaged at the end': (n) => {
    const sealed = seal(bytesOf(n), PLACE, { keyProvider: provider }).then((good) => ({ ...good, ciphertext: good.ciphertext.map((byte, i, all) => (i === all.length - 1 ? byte ^ 1 : byte)) }));
    return async () => open(await sealed, PLACE, { keyProvider: provider });
  },
  'unwrap, too long': (n) => { const bytes = bytesOf(n); return () => provider.unwrap({ kekId: 'k', bytes }, bytes); },
  'passphraseKey, no header': (n) => { const header = bytesOf(n); return () => passphraseKey('p', { kekId: 'k', header }); },
  'sealEntries, a long entry': (n) => { const text = times('a', n); return () => sealOf([{ ...entry, text }]); },
  'sealEntries, many': (n) => { const entries = list(n, 64, () => entry); return () => sealOf(entries); },
  'verifyRecords, a long one': (n) => { const records = sealOf([{ ...entry, text: times('a', n) }]); return async () => verifyRecords(await records, { origin: ORIGIN, keys }); },
  'verifyRecords, many': (n) => { const records = sealOf(list(n, 64, () => entry)); return async () => verifyRecords(await records, { origin: ORIGIN, keys }); },
  'readRestore, a long entry': (n) => { const bytes = utf8(canonicalJson({ action: 'audit.restore_acknowledged', text: times('a', n) })); return () => readRestore(bytes); },
  'appendLeaves, many': (n) => { const leaves = list(n, 32, () => bytesOf(32)); return () => appendLeaves(emptyTree(), leaves, sync); },
  'appendLeaves, a long one': (n) => { const leaves = [bytesOf(n)]; return () => appendLeaves(emptyTree(), leaves, sync); },
  'treeRoot, of many': (n) => { const grown = appendLeaves(emptyTree(), list(n, 32, () => bytesOf(32)), sync); return async () => treeRoot((await grown).frontier, sync); },
  'verifyInclusion, a long entry': (n) => { const bytes = bytesOf(n); return () => verifyInclusion({ bytes, index: 0, size: 1, root: bytesOf(32), proof: [] }, sync); },
  'verifyInclusion, a long proof': (n) => { const proof = list(n, 32, () => bytesOf(32)); return () => verifyInclusion({ bytes: bytesOf(1), index: 0, size: 2 ** 53 - 1, root: bytesOf(32), proof }, sync); },
  'verifyConsistency, a long proof': (n) => { const proof = list(n, 32, () => bytesOf(32)); return () => verifyConsistency({ oldSize: 1, oldRoot: bytesOf(32), newSize: 2 ** 53 - 1, newRoot: bytesOf(32), proof }, sync); },
  'verifyCheckpoint, many lines': (n) => { const text = note(times('a\n', n)); return () => verifyCheckpoint(text, [gullible]); },
  'verifyCheckpoint, a long line': (n) => { const text = note(`${times('a', n)}\n`); return () => verifyCheckpoint(text, [gullible]); },
  'verifyCheckpoint, many signatures': (n) => { const text = note('', list(n, 64, (i) => `\u2014 w${i} AAAAAAAA\n`).join('')); return () => verifyCheckpoint(text, [gullible]); },
  'verifyCheckpoint, blank lines': (n) => { const text = times('\n', n); return () => verifyCheckpoint(text, [gullible]); },
  'checkpointText, many lines': (n) => { const extensions = list(n, 8, () => 'a'); return () => checkpointText({ origin: ORIGIN, size: 1, root: bytesOf(32), extensions }); },
  'checkpointVerifier, a long name': (n) => { const text = `${times('a', n)}+00000000+`; return () => checkpointVerifier(text); },
  'checkpointVerifier, plus signs': (n) => { const text = times('+', n); return () => checkpointVerifier(text); },
  'headMacOf, many lines': (n) => { const extensions = list(n, 8, () => 'keyguard-head-mac '); return () => headMacOf({ origin: ORIGIN, size: 1, root: bytesOf(32), extensions }); },
  'parseRotationState, many versions': (n) => { const value = state(list(n, 64, version)); return () => parseRotationState(value); },
  'parseRotationState, a long event': (n) => { const value = { ...state([]), request: { event: times('a', n), requestedAtMs: 1 } }; return () => parseRotationState(value); },
  'fingerprintDigest, many signals': (n) => { const signals = Object.fromEntries(list(n, 16, (i) => [`s${i}`, 'v'])); return () => fingerprintDigest(signals, { salt: bytesOf(32), saltVersion: 1 }); },
  'hashEnrollmentCode, a long code': (n) => { const code = times('A-', n); return () => hashEnrollmentCode(code); },
  'ipMatcher, a long entry': (n) => { const text = times('1:', n); return () => ipMatcher([text]); },
  'ipMatcher, many entries': (n) => { const entries = list(n, 64, (i) => `10.${i % 256}.0.0/16`); return () => ipMatcher(entries)('192.0.2.1'); },
  'ipBucket, a long address': (n) => { const text = times('::', n); return () => ipBucket(text + Math.random()); },
  'readRawBody, small pieces': (n) => { const chunk = Buffer.alloc(64); return () => { const stream = Object.assign(new PassThrough({ highWaterMark: 8 * KIB * KIB }), { headers: {} }); const body = readRawBody(stream as unknown as IncomingMessage, policy, () => {}); for (let sent = 0; sent < n; sent += 64) stream.write(chunk); stream.end(); return body; }; },
  'linesOf, one line in small pieces': (n) => { const text = times('a', n); return () => drain(linesOf(pieces(text, 64))); },
  'linesOf, many lines': (n) => { const text = times('a\n', n); return () => drain(linesOf(pieces(text, 64 * KIB))); },
  'readExport, a long line': (n) => { const lines = [HEADER_LINE, JSON.stringify({ seq: 0, entry: times('QUJD', n), prev_mac: ROOT, mac: ROOT, mac_key_id: 'k' }), '{"records":1}']; return async () => drain((await readExport(lines)).records); },
  'readExport, many lines': (n) => { const lines = [HEADER_LINE, ...list(n, 128, (i) => JSON.stringify({ seq: i, entry: 'QUJD', prev_mac: ROOT, mac: ROOT, mac_key_id: 'k' })), `{"records":${Math.ceil(n / 128)}}`]; return async () => drain((await readExport(lines)).records); },
  'topMembers, backslashes': (n) => members(`{"a":"${times('\\\\', n)}"}`),
  'topMembers, quotes that are escaped': (n) => members(`{"a":"${times('\\"', n)}"}`),
  'topMembers, many members': (n) => members(`{${times('"a":1,', n)}"b":2}`),
  'topMembers, many objects in a holder': (n) => members(`{"a":[${times('{"model":"b"},', n)}{}]}`),
  'topMembers, gaps': (n) => members(`{"a"${times(' ', n)}:1}`),
  'topMembers, wrong at the end': (n) => members(`{"a":"${times('a', n)}"`),
  'modelsInBody, many tools that draw': (n) => { const body = utf8(`{"model":"a","tools":[${times('{"type":"image_generation","model":"b"},', n)}{}]}`); return () => modelsInBody({ contentType: 'application/json', body }); },
  'modelsInBody, letters that fold': (n) => { const body = utf8(`{"${times('\ufdfa', n / 3)}":1}`); return () => modelsInBody({ contentType: 'application/json', body }); },
  'modelsInBody, a long content type': (n) => { const contentType = `multipart/form-data; boundary=${times('a', n)}`; return () => modelsInBody({ contentType, body: new Uint8Array() }); },
  'formFields, a long text': (n) => form(`${FIELD}a"\r\n\r\n${times('a', n)}`),
  'formFields, a long head': (n) => form(`${FIELD}${times('a', n)}"\r\n\r\n`),
  'formFields, line ends': (n) => form(`${FIELD}a"\r\n\r\n${times('\r\n', n)}`),
  'formFields, dashes': (n) => form(`${FIELD}a"\r\n\r\n${times('\r\n--b', n)}`),
  'condensedJson, a long text': (n) => condensed(`["${times('a', n)}"]`),
  'condensedJson, many texts': (n) => condensed(`[${times('"a",', n)}1]`),
  'condensedJson, quotes that are escaped': (n) => condensed(`["${times('\\"', n)}"]`),
  'eventGate, one event': (n) => gate(`data: ${times('a', n)}\n\n`),
  'eventGate, many lines in one event': (n) => gate(`${times('data: a\n', n)}\n`),
  'eventGate, many events': (n) => gate(times('data: a\n\n', n)),
  'eventGate, comments': (n) => gate(times(':\n', n)),
};

describe('takes time in proportion to its input', () => {
  it.each(Object.entries(CASES))('%s', async (_, make) => {
    let found = Infinity;
    for (let attempt = 0; attempt < ATTEMPTS && found > SLACK; attempt += 1) found = Math.min(found, await excess(make));
    expect(found, 'times more than in proportion').toBeLessThanOrEqual(SLACK);
  }, 120_000);
});

describe('the measurement', () => {
  it('tells what is linear from what is not', async () => {
    const work = (steps: number): number => {
      let sum = 0;
      for (let i = 0; i < steps; i += 1) sum += Math.sqrt(i);
      return sum;
    };
    expect(await excess((n) => () => work(n))).toBeLessThanOrEqual(SLACK);
    expect(await excess((n) => () => work((n * n) / (64 * KIB)))).toBeGreaterThan(SLACK);
  }, 120_000);
});
