/**
 * New values, drawn from the system's generator and from nothing else. What is drawn is drawn evenly: numbers by rejection, so that
 * no character comes more often than another, and passwords again until each demanded alphabet is in them. Every value comes with
 * how hard it is to guess.
 */
import { generateKeyPair, randomBytes, randomInt, randomUUID } from 'node:crypto';
import { promisify } from 'node:util';
import * as z from 'zod';
import { HttpProblem } from '../http/problems.ts';

const LOWER = 'abcdefghijklmnopqrstuvwxyz';
const UPPER = LOWER.toUpperCase();
const DIGITS = '0123456789';
// No quote, backtick, backslash, dollar or space: what is pasted into a shell or a file should arrive as it is.
const SYMBOLS = '!#%&()*+,-./:;<=>?@[]^_{|}~';
const AMBIGUOUS = /[0OoIl1|]/g;
const MAX_DRAWS = 10_000;
const MAX_WAITING_RSA = 8;

/** The alphabets of a template. */
const ALPHABETS: Readonly<Record<string, string>> = {
  digits: DIGITS,
  lower: LOWER,
  upper: UPPER,
  hex: '0123456789abcdef',
  base32: `${UPPER}234567`,
  base58: '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz',
  base62: DIGITS + UPPER + LOWER,
  base64url: `${UPPER}${LOWER}${DIGITS}-_`,
};

const password = z.strictObject({
  kind: z.literal('password'),
  length: z.int().min(8).max(256).default(24),
  lower: z.boolean().default(true),
  upper: z.boolean().default(true),
  digits: z.boolean().default(true),
  symbols: z.boolean().default(true),
  exclude_ambiguous: z.boolean().default(false).describe('Leaves out 0 O o I l 1 and |.'),
});
const bytes = z.int().min(8).max(1024).default(32);

export const generator = z
  .discriminatedUnion('kind', [
    password,
    z.strictObject({ kind: z.literal('hex'), bytes }),
    z.strictObject({ kind: z.literal('base64url'), bytes }),
    z.strictObject({ kind: z.literal('uuid') }),
    z.strictObject({ kind: z.literal('rsa'), bits: z.union([z.literal(2048), z.literal(3072), z.literal(4096)]).default(3072) }),
    z.strictObject({ kind: z.literal('ec'), curve: z.enum(['P-256', 'P-384', 'P-521']).default('P-256') }),
    z.strictObject({ kind: z.literal('ed25519') }),
    z.strictObject({
      kind: z.literal('template'),
      template: z.string().min(1).max(200).describe('Text with placeholders, as in "sk-{base62:48}": an alphabet and how many characters of it. '
        + `Alphabets: ${Object.keys(ALPHABETS).join(', ')}; and {uuid}.`),
    }),
  ])
  .meta({ id: 'Generator', description: 'How to make a value: every password has at least one character of each alphabet that it may hold.' });

export type Generator = z.infer<typeof generator>;

export interface Generated {
  /** Secret. Of a pair of keys the private one, PKCS #8 in PEM. */
  readonly value: string;
  /** Of a pair of keys, SPKI in PEM. */
  readonly publicKey: string | null;
  /** How many bits a guesser lacks; of a pair of keys, what the best known attack costs. Rounded down to a tenth. */
  readonly entropyBits: number;
}

const roundedDown = (bits: number): number => Math.floor(bits * 10) / 10;

/** @throws HttpProblem `invalid_request` for a template that is none, `rate_limited` while too many RSA keys are being made */
export async function generate(options: Generator): Promise<Generated> {
  switch (options.kind) {
    case 'password':
      return { ...makePassword(options), publicKey: null };
    case 'hex':
    case 'base64url':
      return { value: randomBytes(options.bytes).toString(options.kind), publicKey: null, entropyBits: options.bytes * 8 };
    case 'uuid':
      return { value: randomUUID(), publicKey: null, entropyBits: 122 };
    case 'template':
      return { ...fillTemplate(options.template), publicKey: null };
    case 'rsa':
      return inTurn(async () => ({ ...(await rsa(options.bits)), entropyBits: RSA_BITS[options.bits] }));
    case 'ec':
      return { ...(await pair('ec', { namedCurve: options.curve })), entropyBits: EC_BITS[options.curve] };
    case 'ed25519':
      return { ...(await pair('ed25519', {})), entropyBits: 128 };
  }
}

// NIST SP 800-57, part 1, table 2; 4096 is not in it, and is between two that are.
const RSA_BITS = { 2048: 112, 3072: 128, 4096: 140 } as const;
const EC_BITS = { 'P-256': 128, 'P-384': 192, 'P-521': 256 } as const;

function draw(alphabet: string, length: number): string {
  // randomInt rejects what would favour the first characters.
  return Array.from({ length }, () => alphabet[randomInt(alphabet.length)]).join('');
}

function makePassword({ length, lower, upper, digits, symbols, exclude_ambiguous }: z.infer<typeof password>): { value: string; entropyBits: number } {
  const alphabets = [lower && LOWER, upper && UPPER, digits && DIGITS, symbols && SYMBOLS]
    .filter((one) => one !== false)
    .map((one) => (exclude_ambiguous ? one.replaceAll(AMBIGUOUS, '') : one));
  if (alphabets.length === 0) throw new HttpProblem('invalid_request', 'generate: a password needs at least one alphabet.');
  const all = alphabets.join('');
  for (let n = 0; n < MAX_DRAWS; n += 1) {
    const value = draw(all, length);
    // All that pass come equally often: putting a demanded character into a chosen place would not have that.
    if (alphabets.every((alphabet) => [...value].some((character) => alphabet.includes(character)))) return { value, entropyBits: passwordBits(alphabets, length) };
  }
  throw new Error('The generator of random numbers repeats itself.');
}

/** The logarithm of how many passwords of this length have a character of each alphabet, by inclusion and exclusion. */
function passwordBits(alphabets: readonly string[], length: number): number {
  let count = 0n;
  for (let left = 0; left < 2 ** alphabets.length; left += 1) {
    const out = alphabets.filter((_, i) => (left & (1 << i)) !== 0);
    const size = alphabets.reduce((sum, one) => sum + one.length, 0) - out.reduce((sum, one) => sum + one.length, 0);
    count += BigInt(size) ** BigInt(length) * (out.length % 2 === 0 ? 1n : -1n);
  }
  const digits = count.toString(16);
  return roundedDown(Math.log2(Number.parseInt(digits.slice(0, 12), 16)) + 4 * Math.max(0, digits.length - 12));
}

function fillTemplate(template: string): { value: string; entropyBits: number } {
  let entropyBits = 0;
  let length = 0;
  const value = template.replaceAll(/\{([^{}]*)\}/g, (_, placeholder: string) => {
    if (placeholder === 'uuid') {
      entropyBits += 122;
      return randomUUID();
    }
    const [, name = '', digits = ''] = /^([a-z0-9]+):([1-9][0-9]{0,2})$/.exec(placeholder) ?? [];
    const alphabet = Object.hasOwn(ALPHABETS, name) ? ALPHABETS[name] : undefined;
    if (alphabet === undefined || (length += Number(digits)) > 1024) {
      throw new HttpProblem('invalid_request', `template: "{${placeholder}}" is no placeholder. Write for instance {base62:48}; alphabets are ${Object.keys(ALPHABETS).join(', ')}.`);
    }
    entropyBits += Math.log2(alphabet.length) * Number(digits);
    return draw(alphabet, Number(digits));
  });
  if (entropyBits === 0 || /[{}]/.test(template.replaceAll(/\{[^{}]*\}/g, ''))) {
    throw new HttpProblem('invalid_request', 'template: it needs at least one placeholder, such as {base62:48}, and no other braces.');
  }
  return { value, entropyBits: roundedDown(entropyBits) };
}

const makePair = promisify(generateKeyPair) as unknown as (type: string, options: object) => Promise<{ privateKey: string; publicKey: string }>;

async function pair(type: 'ec' | 'ed25519' | 'rsa', options: object): Promise<{ value: string; publicKey: string }> {
  const { privateKey, publicKey } = await makePair(type, {
    ...options,
    privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
    publicKeyEncoding: { type: 'spki', format: 'pem' },
  });
  return { value: privateKey, publicKey };
}

const rsa = (bits: number): Promise<{ value: string; publicKey: string }> => pair('rsa', { modulusLength: bits });

let rsaTurn: Promise<unknown> = Promise.resolve();
let waiting = 0;

/** One at a time: a pair takes up to seconds of a thread that the look-ups of names and files share. */
async function inTurn<T>(work: () => Promise<T>): Promise<T> {
  if (waiting >= MAX_WAITING_RSA) throw new HttpProblem('rate_limited', 'Too many RSA keys are being made.', { retryAfterSeconds: 5 });
  waiting += 1;
  const mine = rsaTurn.then(work);
  rsaTurn = mine.catch(() => {});
  try {
    return await mine;
  } finally {
    waiting -= 1;
  }
}

