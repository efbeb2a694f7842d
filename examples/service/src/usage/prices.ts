/**
 * What tokens cost: a list of prices by provider and model, and the arithmetic over it, exact to the millionth of a US dollar. What is not
 * in the list has no price, and is never taken to cost nothing.
 */
import * as z from 'zod';
import type { Usage } from '../llm/provider.ts';

const dollars = z.number().min(0).max(100_000).describe('US dollars for a million tokens.');
const rates = {
  input: dollars,
  output: dollars,
  cached_input: dollars.optional().describe('Of input that came out of a cache. Left out: as input.'),
  cache_write: dollars.optional().describe('Of input that was put into a cache. Left out: as input.'),
};
const price = z.strictObject({
  ...rates,
  long: z.strictObject({ above_input_tokens: z.int().min(1), ...rates }).optional().describe('What all tokens of a call cost whose input is longer.'),
});

/** A list of prices, as `KEYGUARD_PRICES_FILE` has it. */
export const priceDocument = z.strictObject({
  source: z.string().min(1).max(100).describe('Where and when the prices were true; stands in the audit log beside each cost.'),
  providers: z.record(z.string().min(1).max(50), z.record(z.string().min(1).max(200), price)),
});
export type PriceDocument = z.infer<typeof priceDocument>;
type Price = z.infer<typeof price>;
type Rates = Omit<Price, 'long'>;

/** What a call cost, or will at the most. */
export interface Cost {
  /** Millionths of a US dollar. */
  readonly micros: number;
  /** The list that says so. */
  readonly source: string;
}

export interface PriceList {
  /** What the tokens of a call cost that `provider` reported for `model`; `null` where the list has no such model, or nothing was reported. */
  costOf(provider: string, model: string | null, usage: TokenCounts): Cost | null;
  /** The most that so many tokens cost with the model of that name, or, where the list has none, with any of the provider's; `null` where it has none of them either. */
  atMost(provider: string, model: string | null, tokens: { readonly input: number; readonly output: number }): Cost | null;
}

export type TokenCounts = Pick<Usage, 'inputTokens' | 'outputTokens' | 'cachedInputTokens' | 'cacheWriteTokens'>;

const MILLION = 1_000_000n;
// With what the APIs put behind the name of a model to say which of its states is meant.
const STATE = /^-(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{8}|[0-9]{3,4}|latest|preview(?:-[0-9]{2}-[0-9]{2,4}){0,2})$/;

/** Micro-dollars for a million tokens: every price of a list is a whole number of them. */
const exact = (dollarsPerMillion: number): bigint => BigInt(Math.round(dollarsPerMillion * 1e6));

/** A model is meant by its own name, and by that with a date or the like behind it. */
function priceOf(models: Readonly<Record<string, Price>>, model: string): Price | null {
  if (Object.hasOwn(models, model)) return models[model]!;
  let best: string | null = null;
  for (const name of Object.keys(models)) {
    if (model.startsWith(name) && STATE.test(model.slice(name.length)) && name.length > (best?.length ?? 0)) best = name;
  }
  return best === null ? null : models[best]!;
}

function ratesFor({ long, ...usual }: Price, inputTokens: number): Rates {
  return long !== undefined && inputTokens > long.above_input_tokens ? long : usual;
}

/** Half a micro-dollar and more is one. */
function micros(sum: bigint): number {
  return Number((sum + MILLION / 2n) / MILLION);
}

export function priceList({ source, providers }: PriceDocument): PriceList {
  const modelsOf = (provider: string): Readonly<Record<string, Price>> => (Object.hasOwn(providers, provider) ? providers[provider]! : {});
  return {
    costOf(provider, model, { inputTokens, outputTokens, cachedInputTokens, cacheWriteTokens }) {
      if (model === null || (inputTokens === null && outputTokens === null)) return null;
      const found = priceOf(modelsOf(provider), model);
      if (found === null) return null;
      const input = inputTokens ?? 0;
      const { input: usual, output, cached_input: cached = usual, cache_write: write = usual } = ratesFor(found, input);
      const read = Math.min(cachedInputTokens ?? 0, input);
      const written = Math.min(cacheWriteTokens ?? 0, input - read);
      const sum =
        BigInt(input - read - written) * exact(usual) + BigInt(read) * exact(cached) + BigInt(written) * exact(write) + BigInt(outputTokens ?? 0) * exact(output);
      return { micros: micros(sum), source };
    },

    atMost(provider, model, tokens) {
      const models = modelsOf(provider);
      const named = model === null ? null : priceOf(models, model);
      const candidates = named === null ? Object.values(models) : [named];
      if (candidates.length === 0) return null;
      const sums = candidates.map((one) => {
        const { input, output, cache_write: write = input } = ratesFor(one, tokens.input);
        return BigInt(tokens.input) * exact(Math.max(input, write)) + BigInt(tokens.output) * exact(output);
      });
      return { micros: micros(sums.reduce((most, sum) => (sum > most ? sum : most))), source };
    },
  };
}
