/** Generated values: what was asked for, evenly drawn, and as hard to guess as is said. */
import { createPrivateKey, createPublicKey } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { generate, generator } from '../../src/secrets/generate.ts';

const make = async (options: object): Promise<{ value: string; publicKey: string | null; entropyBits: number }> => generate(generator.parse(options));
const invalid = (problem: string): object => ({ name: 'HttpProblem', code: 'invalid_request', message: expect.stringContaining(problem) });

describe('a generated password', () => {
  it('has its length, nothing but its alphabets, and something of each', async () => {
    for (let n = 0; n < 300; n += 1) {
      const { value } = await make({ kind: 'password', length: 8 });
      expect(value).toHaveLength(8);
      for (const demanded of [/[a-z]/, /[A-Z]/, /[0-9]/, /[^A-Za-z0-9]/]) expect(value).toMatch(demanded);
      expect(value).not.toMatch(/["'`\\$\s]/);
    }
    for (let n = 0; n < 100; n += 1) {
      expect((await make({ kind: 'password', length: 40, symbols: false, upper: false })).value).toMatch(/^[a-z0-9]{40}$/);
      expect((await make({ kind: 'password', length: 40, exclude_ambiguous: true })).value).not.toMatch(/[0OoIl1|]/);
    }
    await expect(make({ kind: 'password', lower: false, upper: false, digits: false, symbols: false })).rejects.toMatchObject(invalid('alphabet'));
  });

  it('holds every character as often as any other, those that are demanded included', async () => {
    const counts = new Map<string, number>();
    const [rounds, length] = [4000, 20];
    for (let n = 0; n < rounds; n += 1) {
      for (const character of (await make({ kind: 'password', length, upper: false, digits: false, symbols: false })).value) counts.set(character, (counts.get(character) ?? 0) + 1);
    }
    const expected = (rounds * length) / 26;
    const chiSquared = [...counts.values()].reduce((sum, found) => sum + (found - expected) ** 2 / expected, 0);
    expect(counts.size).toBe(26);
    // 25 degrees of freedom: more than this once in a billion runs.
    expect(chiSquared).toBeLessThan(92);
  });

  it('counts those that could have been: all of them without a demand, fewer with one', async () => {
    expect((await make({ kind: 'password', length: 20, upper: false, digits: false, symbols: false })).entropyBits).toBe(Math.floor(20 * Math.log2(26) * 10) / 10);
    // Of 36^8 strings those are out that have no letter, or no digit.
    expect((await make({ kind: 'password', length: 8, upper: false, symbols: false })).entropyBits).toBe(Math.floor(Math.log2(36 ** 8 - 26 ** 8 - 10 ** 8) * 10) / 10);
    expect((await make({ kind: 'password', length: 256 })).entropyBits).toBeGreaterThan(1600);
  });
});

describe('a generated key', () => {
  it.each([
    [{ kind: 'hex', bytes: 16 }, /^[0-9a-f]{32}$/, 128],
    [{ kind: 'base64url' }, /^[A-Za-z0-9_-]{43}$/, 256],
    [{ kind: 'uuid' }, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/, 122],
    [{ kind: 'template', template: 'sk-{base62:48}' }, /^sk-[0-9A-Za-z]{48}$/, 285.8],
    [{ kind: 'template', template: '{upper:2}-{digits:4}.{uuid}' }, /^[A-Z]{2}-[0-9]{4}\.[0-9a-f-]{36}$/, 144.6],
  ])('%o is of its form, and as hard to guess as it says', async (options, form, bits) => {
    const values = new Set<string>();
    for (let n = 0; n < 50; n += 1) {
      const made = await make(options);
      expect(made.value).toMatch(form);
      expect(made.entropyBits).toBe(bits);
      values.add(made.value);
    }
    expect(values.size).toBe(50);
  });

  it.each([[{ kind: 'ed25519' }, 128], [{ kind: 'ec' }, 128], [{ kind: 'ec', curve: 'P-384' }, 192], [{ kind: 'ec', curve: 'P-521' }, 256], [{ kind: 'rsa', bits: 2048 }, 112]])(
    '%o is a pair that belongs together',
    async (options, bits) => {
      const { value, publicKey, entropyBits } = await make(options);
      expect(createPublicKey(createPrivateKey(value)).export({ type: 'spki', format: 'pem' })).toBe(publicKey);
      expect(entropyBits).toBe(bits);
    },
  );

  it.each<[what: string, options: (amount: number) => object, least: number, most: number]>([
    ['characters of a password', (length) => ({ kind: 'password', length }), 8, 256],
    ['bytes in hex', (bytes) => ({ kind: 'hex', bytes }), 8, 1024],
    ['bytes in base64url', (bytes) => ({ kind: 'base64url', bytes }), 8, 1024],
    ['characters of a template', (length) => ({ kind: 'template', template: `{hex:8}${'x'.repeat(Math.max(0, length - 7))}`.slice(0, length) }), 1, 200],
  ])('has its bounds: %s', async (_what, options, least, most) => {
    for (const amount of [least, most]) expect(generator.safeParse(options(amount)).success, String(amount)).toBe(true);
    for (const amount of [least - 1, most + 1]) expect(generator.safeParse(options(amount)).success, String(amount)).toBe(false);
    await make(options(most));
  });

  it('of a template has 1,024 drawn characters at most, of one placeholder 999, and an RSA key one of three lengths', async () => {
    expect((await make({ kind: 'template', template: '{hex:999}{digits:25}' })).value).toHaveLength(1024);
    await expect(make({ kind: 'template', template: '{hex:999}{digits:26}' })).rejects.toMatchObject(invalid('"{digits:26}" is no placeholder'));
    await expect(make({ kind: 'template', template: '{hex:1000}' })).rejects.toMatchObject(invalid('"{hex:1000}" is no placeholder'));
    for (const bits of [1024, 2047, 8192]) expect(generator.safeParse({ kind: 'rsa', bits }).success).toBe(false);
  });

  it('of RSA is waited for by eight at a time, and whoever comes then is told when to come back', async () => {
    const made = await Promise.allSettled(Array.from({ length: 9 }, () => make({ kind: 'rsa', bits: 2048 })));
    expect(made.map(({ status }) => status)).toEqual([...Array<string>(8).fill('fulfilled'), 'rejected']);
    expect((made[8] as PromiseRejectedResult).reason).toMatchObject({ name: 'HttpProblem', code: 'rate_limited', retryAfterSeconds: 5 });
    expect(new Set(made.slice(0, 8).map((one) => (one as PromiseFulfilledResult<{ value: string }>).value)).size).toBe(8);
    expect((await make({ kind: 'rsa', bits: 2048 })).entropyBits).toBe(112);
  });

  it('is none by a template that is none', async () => {
    for (const template of ['plain', '{nothing:3}', '{base62}', '{base62:0}', '{base62:1000}{base62:999}', '{base62:4', 'a}b{hex:2}', '{__proto__:4}', '{constructor:4}']) {
      await expect(make({ kind: 'template', template }), template).rejects.toMatchObject(invalid('template'));
    }
  });
});
