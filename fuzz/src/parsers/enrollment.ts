/**
 * `enrollment` and `rotation`: bodies and codes. Bodies go through the whole recipe, with a signature check that says yes and a registry that takes
 * note of what reaches it: that is judged against a reading of docs/spec/request-signing.md.
 */
import { createHash, generateKeyPairSync } from 'node:crypto';
import { isUtf8 } from 'node:buffer';
import type { Bytes, Device, EnrollmentRequest, JsonValue, KeyRotationRequest, Primitives } from '@keyguard/core/seams';
import { createEnrollment } from '@keyguard/server-verifier/enrollment';
import { generateEnrollmentCode, hashEnrollmentCode } from '@keyguard/server-verifier/enrollment-code';
import { createRotation } from '@keyguard/server-verifier/rotation';
import { generateRotationCode, hashRotationCode } from '@keyguard/server-verifier/rotation-code';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateJson, mutateText, oddCharacter } from '../mutate.ts';
import { agree, demandEqual, outcomeOfLater, Wrong, type Parser } from '../parser.ts';

const NOW_MS = 1_780_000_000_000;
const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

function isCode(text: string): boolean {
  return text.length >= 26 && text.length <= 64 && codeOf(text).length === 26 && [...codeOf(text)].every((letter) => ALPHABET.includes(letter));
}

/** The code as it is meant: without blanks and hyphens, in capitals of ASCII, O, I and L read as digits. */
function codeOf(text: string): string {
  const letters = [...text].filter((letter) => letter !== ' ' && letter !== '-');
  return letters.map((letter) => ({ o: '0', O: '0', i: '1', I: '1', l: '1', L: '1' })[letter] ?? (letter >= 'a' && letter <= 'z' ? letter.toUpperCase() : letter)).join('');
}

type Kind = 'enrollment' | 'rotation';

const codeHash = (kind: Kind, text: string): string => createHash('sha256').update(`keyguard-${kind}-code-v1\0${codeOf(text)}`).digest('base64url');

function jwk(): Record<string, string> {
  const { x, y } = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'jwk' });
  return { crv: 'P-256', kty: 'EC', x: x!, y: y! };
}
const JWKS = Array.from({ length: 8 }, jwk);

function isBase64Url32(value: unknown): boolean {
  return typeof value === 'string' && Buffer.from(value, 'base64url').length === 32 && Buffer.from(value, 'base64url').toString('base64url') === value;
}

function isJwk(value: unknown): value is Record<string, string> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  const { crv, kty, x, y } = value as Record<string, unknown>;
  return Object.keys(value).length === 4 && crv === 'P-256' && kty === 'EC' && isBase64Url32(x) && isBase64Url32(y);
}

/** Code points that print nothing, turn the line around, or are of nobody: no label may hold one. */
function isHidden(codePoint: number): boolean {
  const ranges = [
    [0x00, 0x1f], [0x7f, 0x9f], [0xad, 0xad], [0x600, 0x605], [0x61c, 0x61c], [0x200b, 0x200f], [0x2028, 0x202e], [0x2060, 0x2064], [0x2066, 0x206f], [0xd800, 0xf8ff], [0xfeff, 0xfeff],
    [0xfff9, 0xfffb], [0xe0001, 0xe007f], [0xf0000, 0x10ffff],
  ] as const;
  return ranges.some(([from, to]) => codePoint >= from && codePoint <= to);
}

/** One-sided: what must not be in a label. Which other characters cannot be seen is for Unicode to say. */
function isBadLabel(text: string): boolean {
  const points = [...text].map((each) => each.codePointAt(0)!);
  return points.length < 1 || points.length > 64 || text !== text.normalize('NFC') || points.some(isHidden) || text.trim() === '';
}

const isGoodLabel = (text: string): boolean => /^[A-Za-z0-9]{1,64}$/.test(text);

interface Reading {
  readonly request: Omit<EnrollmentRequest, 'keyId' | 'nowMs'>;
  readonly label: string | null;
}

const optional = (value: unknown): value is string | null | undefined => value === undefined || value === null || typeof value === 'string';

/** What the body asks for; `null` for one that must be refused, whatever its label. */
function readByOracle(body: Bytes): Reading | null {
  if (!isUtf8(body)) return null;
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(body).toString('utf8'));
  } catch {
    return null;
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return null;
  if (Object.keys(value).some((name) => !['jwk', 'code', 'label', 'fingerprint'].includes(name))) return null;
  const { jwk: key, code, label, fingerprint } = value as Record<string, unknown>;
  if (!isJwk(key) || !optional(code) || !optional(label) || !optional(fingerprint)) return null;
  if (typeof fingerprint === 'string' && !isBase64Url32(fingerprint)) return null;
  if (typeof code === 'string' && code.length > 64) return null;
  const { crv, kty, x, y } = key;
  const publicKey = { crv, kty, x, y } as EnrollmentRequest['publicKey'];
  const hash = typeof code === 'string' ? (isCode(code) ? codeHash('enrollment', code) : 'refused') : null;
  return { request: { publicKey, codeHash: hash, label: label ?? null, fingerprint: fingerprint ?? null }, label: label ?? null };
}

const primitives: Primitives = {
  sha256: (data) => new Uint8Array(createHash('sha256').update(data).digest()),
  importPublicKey: () => ({}),
  verify: () => true,
};
const allowed = { allowed: true, limit: 1, remaining: 1, resetAtMs: NOW_MS };
const limiter = { peek: () => allowed, consume: () => allowed };

const OLD_KEY_ID = keyIdOf(JWKS[0]);
const device: Device = {
  deviceId: 'd-1',
  ownerId: 'u-1',
  projectId: null,
  keyId: OLD_KEY_ID,
  publicKey: JWKS[0] as unknown as Device['publicKey'],
  keyState: 'current',
  keyRetiresAtMs: null,
  status: 'active',
  label: null,
  requestsPerMinute: null,
  ipAllowlist: null,
  allowedModels: null,
};

let registered: EnrollmentRequest | null = null;
let rotated: KeyRotationRequest | null = null;
const options = {
  policy: { authorities: ['keyguard.example.com'] },
  registry: {
    findByKeyId: () => device,
    enroll(request: EnrollmentRequest) {
      registered = request;
      return { outcome: 'key_exists' as const };
    },
    rotate(request: KeyRotationRequest) {
      rotated = request;
      return { outcome: 'key_exists' as const };
    },
  },
  replayStore: { claim: () => true },
  clock: { nowMs: () => NOW_MS },
  primitives,
  deviceLimiter: limiter,
  ipLimiter: limiter,
};
const enrollment = createEnrollment({ ...options, enrollmentLimiter: limiter, keyFingerprint: (fingerprint) => fingerprint });
const rotation = createRotation({ ...options, rotationLimiter: limiter });

/** The thumbprint of RFC 7638, of whatever stands there. */
function keyIdOf(key: Record<string, string> | undefined): string {
  const { crv, kty, x, y } = key ?? {};
  return createHash('sha256').update(`{"crv":"${crv}","kty":"${kty}","x":"${x}","y":"${y}"}`).digest('base64url');
}

async function send(kind: Kind, body: Bytes, keyId: string): Promise<void> {
  const rawHeaders = ['x-keyguard-version', '1', 'x-keyguard-key-id', keyId, 'x-keyguard-timestamp', String(NOW_MS / 1000), 'x-keyguard-nonce', 'AAAAAAAAAAAAAAAAAAAAAA'];
  const bodySha256 = createHash('sha256').update(body).digest('base64');
  rawHeaders.push('x-keyguard-body-sha256', bodySha256, 'x-keyguard-signature', `${'A'.repeat(86)}==`);
  const incoming = { method: 'POST', target: '/api/keyguard/keys', rawHeaders, ip: '192.0.2.1', body: () => body };
  await (kind === 'enrollment' ? enrollment.enroll(incoming) : rotation.rotate(incoming));
}

const LABELS = ['laptop', 'Büro 2', 'e\u0301', '\u202egpj.exe', '\u200b', '  ', 'a'.repeat(64), '\u{1f600}'.repeat(64), '\u{1f600}'.repeat(65), 'x\u00ady', '\u3164', '\u2800'] as const;

function bodyOf(random: Generator): Bytes {
  const code = generateEnrollmentCode({ bytes: (lengthBytes) => random.bytes(lengthBytes) });
  const label = random.oneIn(2) ? random.pick(LABELS) : random.oneIn(2) ? 'laptop' + oddCharacter(random) : mutateText(random, 'laptop');
  const value: JsonValue = {
    jwk: { ...random.pick(JWKS) },
    ...(random.oneIn(2) && { code: random.oneIn(2) ? code : mutateText(random, code) }),
    ...(random.oneIn(2) && { label }),
    ...(random.oneIn(2) && { fingerprint: random.oneIn(2) ? keyIdOf(JWKS[0]) : mutateText(random, keyIdOf(JWKS[0])) }),
  };
  const text = JSON.stringify(random.oneIn(2) ? mutateJson(random, value) : value);
  if (random.oneIn(5)) return mutateBytes(random, Buffer.from(text));
  return new Uint8Array(Buffer.from(random.oneIn(4) ? mutateText(random, text, ['"code":', '"d":"",', '__proto__', '\ufeff', ' ', '{"jwk":']) : text));
}

function rotationBodyOf(random: Generator): Bytes {
  const code = generateRotationCode({ bytes: (lengthBytes) => random.bytes(lengthBytes) });
  const proof = Buffer.from(random.bytes(64)).toString('base64');
  const value: JsonValue = { jwk: { ...random.pick(JWKS) }, proof: random.oneIn(3) ? mutateText(random, proof, ['=', '-', '_']) : proof, ...(random.oneIn(2) && { code: random.oneIn(2) ? code : mutateText(random, code) }) };
  const text = JSON.stringify(random.oneIn(3) ? mutateJson(random, value) : value);
  return random.oneIn(5) ? mutateBytes(random, Buffer.from(text)) : new Uint8Array(Buffer.from(text));
}

function readRotationByOracle(body: Bytes): Pick<KeyRotationRequest, 'publicKey' | 'codeHash'> | null {
  let value: unknown;
  try {
    value = isUtf8(body) ? JSON.parse(Buffer.from(body).toString('utf8')) : null;
  } catch {
    return null;
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return null;
  if (Object.keys(value).some((name) => !['jwk', 'proof', 'code'].includes(name))) return null;
  const { jwk: key, proof, code } = value as Record<string, unknown>;
  const bytes = Buffer.from(typeof proof === 'string' ? proof : '', 'base64');
  if (!isJwk(key) || bytes.length !== 64 || bytes.toString('base64') !== proof || !optional(code)) return null;
  if (typeof code === 'string' && code.length > 64) return null;
  const { crv, kty, x, y } = key;
  const publicKey = { crv, kty, x, y } as KeyRotationRequest['publicKey'];
  return { publicKey, codeHash: typeof code === 'string' ? (isCode(code) ? codeHash('rotation', code) : 'refused') : null };
}

function codeParser(name: string, kind: Kind, generate: typeof generateEnrollmentCode, hashOf: typeof hashEnrollmentCode): Parser {
  return {
    name,
    try(random) {
      const code = generate({ bytes: (lengthBytes) => random.bytes(lengthBytes) });
      const text = mutateText(random, random.oneIn(3) ? code.toLowerCase() : code, ['O', 'I', 'l', 'U', 'u', ' ', '-', '\u017f', '\u212a', '\u0131', '\uff21']);
      const hash = hashOf(text);
      if (hash !== null) demandEqual(hash, codeHash(kind, text), 'the hash');
      return agree(hash !== null, isCode(text), text);
    },
  };
}

export const ENROLLMENT: readonly Parser[] = [
  {
    name: 'enrollment.createEnrollment, its body',
    async try(random) {
      const body = bodyOf(random);
      const expected = readByOracle(body);
      registered = null;
      const keyId = keyIdOf(expected?.request.publicKey as Record<string, string> | undefined);
      const outcome = await outcomeOfLater(() => send('enrollment', body, keyId), 'RejectedError malformed_request', 'RejectedError enrollment_rejected', 'RejectedError key_exists');
      // Reset by the registry, behind the compiler's back.
      const seen = registered as EnrollmentRequest | null;
      if (outcome.accepted) throw new Wrong('enrolled without a registry');
      if (outcome.refusal !== 'RejectedError key_exists') {
        if (seen !== null) throw new Wrong('refused what it had registered');
        const isLabelled = expected !== null && (expected.label === null || isGoodLabel(expected.label));
        const isCoded = expected !== null && expected.request.codeHash !== 'refused';
        if (isLabelled && isCoded) throw new Wrong(`refused a good body as ${outcome.refusal}`);
        return 'refused';
      }
      if (expected === null || seen === null || expected.request.codeHash === 'refused') throw new Wrong('registered what the oracle refuses');
      if (expected.label !== null && isBadLabel(expected.label)) throw new Wrong('registered a label that is not what it seems');
      demandEqual({ ...seen }, { ...expected.request, keyId, nowMs: NOW_MS }, 'what was registered');
      return 'accepted';
    },
  },
  {
    name: 'rotation.createRotation, its body',
    async try(random) {
      const body = rotationBodyOf(random);
      const expected = readRotationByOracle(body);
      rotated = null;
      const outcome = await outcomeOfLater(() => send('rotation', body, OLD_KEY_ID), 'RejectedError malformed_request', 'RejectedError rotation_rejected', 'RejectedError key_exists');
      const seen = rotated as KeyRotationRequest | null;
      if (outcome.accepted) throw new Wrong('rotated without a registry');
      const isSeen = outcome.refusal === 'RejectedError key_exists';
      if (isSeen) demandEqual({ ...seen }, { ...expected, oldKeyId: OLD_KEY_ID, keyId: keyIdOf(expected?.publicKey as Record<string, string> | undefined), allowWithoutCode: false, overlapMs: 60_000, nowMs: NOW_MS }, 'what was rotated');
      return agree(isSeen, expected !== null && expected.codeHash !== 'refused');
    },
  },
  codeParser('enrollment-code.hashEnrollmentCode', 'enrollment', generateEnrollmentCode, hashEnrollmentCode),
  codeParser('rotation-code.hashRotationCode', 'rotation', generateRotationCode, hashRotationCode),
];
