/**
 * A short run of every parser under a new seed; the long one is `pnpm fuzz`. And that the harness sees what it is there to see.
 * `KEYGUARD_SEED=…` repeats a run.
 */
import { describe, expect, it } from 'vitest';
import { RejectedError } from '@keyguard/core/errors';
import { generator } from '../src/generator.ts';
import { agree, demand, outcomeOf, run, Wrong, type Parser } from '../src/parser.ts';
import { PARSERS } from '../src/parsers.ts';

const INPUTS = 2000;
const seed = Number(process.env['KEYGUARD_SEED'] ?? Math.floor(Math.random() * 2 ** 32));

describe('every parser', () => {
  it('has a name of its own', () => {
    console.log(`fuzz: ${INPUTS} inputs to each of ${PARSERS.length} parsers, seed ${seed}`);
    expect(new Set(PARSERS.map(({ name }) => name)).size).toBe(PARSERS.length);
  });

  it.each(PARSERS.map((parser) => [parser.name, parser] as const))('%s accepts what is right, and refuses the rest as documented', async (_, parser) => {
    const { failures, accepted, refused } = await run(parser, seed, 0, INPUTS);
    expect(failures, `again with KEYGUARD_SEED=${seed}`).toEqual([]);
    expect(accepted + refused).toBe(INPUTS);
    // Neither side may be empty, or half of what the parser says was never judged. What reads signals refuses nothing.
    expect(accepted).toBeGreaterThan(INPUTS / 200);
    if (!parser.name.endsWith('Signals')) expect(refused).toBeGreaterThan(INPUTS / 200);
  }, 60_000);
});

describe('the harness', () => {
  const parser = (attempt: Parser['try']): Parser => ({ name: 'test', try: attempt });
  const failuresOf = async (attempt: Parser['try']): Promise<readonly string[]> => (await run(parser(attempt), 1, 0, 3)).failures.map(({ index, what }) => `${index} ${what}`);

  it('draws the same input for the same seed, parser and number, and another for any other', () => {
    const draw = (...words: Parameters<typeof generator>): string => Buffer.from(generator(...words).bytes(16)).toString('hex');
    const drawn = [draw(1, 'a', 0), draw(2, 'a', 0), draw(1, 'b', 0), draw(1, 'a', 1)];
    expect(draw(1, 'a', 0)).toBe(drawn[0]);
    expect(new Set(drawn).size).toBe(4);
  });

  it('sees a wrong acceptance and a wrong refusal', async () => {
    expect(await failuresOf(() => agree(true, false))).toEqual([0, 1, 2].map((i) => `${i} accepted what the oracle refuses`));
    expect(await failuresOf(() => agree(false, true))).toEqual([0, 1, 2].map((i) => `${i} refused what the oracle accepts`));
    expect(await failuresOf(() => agree(true, true))).toEqual([]);
  });

  it('sees an error that is not documented, also one of ours with another code', async () => {
    const refusing = (error: Error) => (): 'refused' => (outcomeOf(() => { throw error; }, 'RejectedError jwk_invalid'), 'refused');
    expect(await failuresOf(refusing(new RejectedError('jwk_invalid', '')))).toEqual([]);
    expect((await failuresOf(refusing(new RejectedError('key_exists', ''))))[0]).toBe('0 threw RejectedError key_exists, which is not documented');
    expect((await failuresOf(refusing(new RangeError('x'))))[0]).toBe('0 threw RangeError undefined, which is not documented');
  });

  it('sees a failure of its own, and goes on', async () => {
    let calls = 0;
    const failures = await failuresOf(() => {
      calls += 1;
      if (calls === 1) throw new Error('broken');
      if (calls === 2) throw new Wrong('wrong');
      demand(true, '');
      return 'accepted';
    });
    expect(failures).toEqual([expect.stringMatching(/^0 the harness failed: Error: broken/), '1 wrong']);
  });
});
