/** `keys` and the primitives: which JWKs are read, and which points are keys, against the equation of the curve. */
import { noblePrimitives } from '@keyguard/core/noble';
import { parsePublicJwk } from '@keyguard/core/keys';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { Bytes, JsonValue, Primitives, PublicJwk } from '@keyguard/core/seams';
import { nodePrimitives } from '@keyguard/server-verifier/node-primitives';
import { generateKeyPairSync } from 'node:crypto';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateJson, mutateText } from '../mutate.ts';
import { agree, demand, demandEqual, outcomeOf, outcomeOfLater, type Parser } from '../parser.ts';

const REFUSED = 'RejectedError jwk_invalid';

function newJwk(): PublicJwk {
  const { x, y } = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'jwk' });
  return { crv: 'P-256', kty: 'EC', x: x!, y: y! };
}
const JWKS = Array.from({ length: 32 }, newJwk);

function isCoordinate(value: unknown): boolean {
  if (typeof value !== 'string') return false;
  const bytes = Buffer.from(value, 'base64url');
  return bytes.length === 32 && bytes.toString('base64url') === value;
}

function isJwk(value: JsonValue): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  const members = new Map(Object.entries(value));
  return members.size === 4 && members.get('crv') === 'P-256' && members.get('kty') === 'EC' && isCoordinate(members.get('x')) && isCoordinate(members.get('y'));
}

const STRAY = [{ d: 'AAAA' }, { alg: 'ES256' }, { key_ops: ['verify'] }, { ext: true }, { kid: '1' }, { use: 'sig' }] as const;

// NIST SP 800-186: the prime of P-256 and the b of its equation.
const P = 2n ** 256n - 2n ** 224n + 2n ** 192n + 2n ** 96n - 1n;
const B = 0x5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604bn;

const numberOf = (bytes: Uint8Array): bigint => BigInt(`0x${Buffer.from(bytes).toString('hex').padStart(2, '0')}`);
const bytesOf = (value: bigint): Bytes => new Uint8Array(Buffer.from(value.toString(16).padStart(64, '0'), 'hex'));
const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64url');
const coordinates = ({ x, y }: PublicJwk): [Bytes, Bytes] => [new Uint8Array(Buffer.from(x, 'base64url')), new Uint8Array(Buffer.from(y, 'base64url'))];

function power(base: bigint, exponent: bigint): bigint {
  let result = 1n;
  for (let b = base % P, e = exponent; e > 0n; e >>= 1n, b = (b * b) % P) if (e & 1n) result = (result * b) % P;
  return result;
}

/** Points with an x so small that x + p, another spelling of it, fits into 32 bytes too. */
function smallPoints(): (readonly [bigint, bigint])[] {
  const points: (readonly [bigint, bigint])[] = [];
  for (let x = 0n; points.length < 16; x += 1n) {
    const square = (((x * x * x - 3n * x + B) % P) + P) % P;
    const y = power(square, (P + 1n) / 4n);
    if ((y * y) % P === square) points.push([x, y]);
  }
  return points;
}
const SMALL = smallPoints();

function point(random: Generator): readonly [Bytes, Bytes] {
  const [x, y] = coordinates(random.pick(JWKS));
  const [smallX, smallY] = random.pick(SMALL);
  switch (random.below(8)) {
    case 0:
      return [bytesOf(smallX), bytesOf(random.oneIn(2) ? smallY : P - smallY)];
    case 1:
      return [bytesOf(smallX + P), bytesOf(smallY)];
    case 2:
      return [bytesOf(random.pick([0n, P, P - 1n, 2n ** 256n - 1n])), bytesOf(random.pick([0n, P, 1n]))];
    case 3:
      return [y, x];
    case 4:
      return [x, bytesOf(P - numberOf(y))];
    case 5:
      return [x, coordinates(random.pick(JWKS))[1]];
    default:
      return [mutateBytes(random, x).slice(0, 32), random.oneIn(2) ? y : mutateBytes(random, y).slice(0, 32)];
  }
}

const padded = (bytes: Bytes): Bytes => new Uint8Array(Buffer.concat([Buffer.alloc(32 - bytes.length), bytes]));

const IMPLEMENTATIONS: readonly (readonly [name: string, primitives: Primitives])[] = [
  ['primitives.importPublicKey', webCryptoPrimitives()],
  ['noble.importPublicKey', noblePrimitives()],
  ['node-primitives.importPublicKey', nodePrimitives()],
];

export const KEYS: readonly Parser[] = [
  {
    name: 'keys.parsePublicJwk',
    try(random) {
      const jwk = random.pick(JWKS);
      let value: JsonValue = random.oneIn(6) ? { ...jwk, ...random.pick(STRAY) } : { ...jwk };
      if (random.oneIn(4)) value = { ...jwk, x: mutateText(random, jwk.x, ['=', '+', '/']) };
      else if (!random.oneIn(8)) value = mutateJson(random, value);
      const outcome = outcomeOf(() => parsePublicJwk(value), REFUSED);
      if (outcome.accepted) demandEqual(outcome.value, value, 'the key');
      return agree(outcome.accepted, isJwk(value));
    },
  },
  ...IMPLEMENTATIONS.map(
    ([name, primitives]): Parser => ({
      name,
      async try(random) {
        const [x, y] = point(random).map(padded) as [Bytes, Bytes];
        const outcome = await outcomeOfLater(async () => primitives.importPublicKey({ crv: 'P-256', kty: 'EC', x: text(x), y: text(y) }), REFUSED);
        const [nx, ny] = [numberOf(x), numberOf(y)];
        const isPoint = nx < P && ny < P && (ny * ny - (nx * nx * nx - 3n * nx + B)) % P === 0n;
        if (outcome.accepted) demand(typeof outcome.value === 'object', 'answered with no key');
        return agree(outcome.accepted, isPoint);
      },
    }),
  ),
];
