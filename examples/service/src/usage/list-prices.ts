/**
 * What the providers' price lists said, in US dollars for a million tokens: data, and nothing else. Lists change and this file does not
 * follow them by itself: who bills by it sets `KEYGUARD_PRICES_FILE`.
 *
 * The figures are those that https://github.com/simonw/llm-prices had collected by 5 August 2026 (its commit 723ef0b, data/openai.json,
 * anthropic.json and google.json), under the names by which the APIs know the models. For Anthropic, which that list gives no prices of
 * cached input for, they are 0.1 of the price of input for what is read and 1.25 of it for what is written
 * (https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching). Azure, which it does not have, is taken at OpenAI's prices: its
 * regional and provisioned deployments cost otherwise. Contracts, batches and service tiers are not in it either.
 */
import type { PriceDocument } from './prices.ts';

const OPENAI: PriceDocument['providers'][string] = {
  'gpt-4o': { input: 2.5, output: 10, cached_input: 1.25 },
  'gpt-4o-mini': { input: 0.15, output: 0.6, cached_input: 0.075 },
  'chatgpt-4o-latest': { input: 5, output: 15 },
  'o1-preview': { input: 15, output: 60, cached_input: 7.5 },
  'o1-pro': { input: 150, output: 600 },
  'o1-mini': { input: 1.1, output: 4.4, cached_input: 0.55 },
  'o3-mini': { input: 1.1, output: 4.4, cached_input: 0.55 },
  'o3-pro': { input: 20, output: 80 },
  'o3-deep-research': { input: 10, output: 40, cached_input: 2.5 },
  'o4-mini': { input: 1.1, output: 4.4, cached_input: 0.275 },
  'o4-mini-deep-research': { input: 2, output: 8, cached_input: 0.5 },
  'gpt-4.1': { input: 2, output: 8, cached_input: 0.5 },
  'gpt-4.1-mini': { input: 0.4, output: 1.6, cached_input: 0.1 },
  'gpt-4.1-nano': { input: 0.1, output: 0.4, cached_input: 0.025 },
  'gpt-4.5-preview': { input: 75, output: 150, cached_input: 37.5 },
  'gpt-5': { input: 1.25, output: 10, cached_input: 0.125 },
  'gpt-5-mini': { input: 0.25, output: 2, cached_input: 0.025 },
  'gpt-5-nano': { input: 0.05, output: 0.4, cached_input: 0.005 },
  'gpt-5-pro': { input: 15, output: 120 },
  'gpt-5.1': { input: 1.25, output: 10, cached_input: 0.125 },
  'gpt-5.1-codex': { input: 1.25, output: 10, cached_input: 0.125 },
  'gpt-5.1-codex-mini': { input: 0.25, output: 2, cached_input: 0.025 },
  'gpt-5.2': { input: 1.75, output: 14, cached_input: 0.175 },
  'gpt-5.2-pro': { input: 21, output: 168 },
  'gpt-5.4': { input: 2.5, output: 15, cached_input: 0.25, long: { above_input_tokens: 272_000, input: 5, output: 22.5, cached_input: 0.5 } },
  'gpt-5.4-mini': { input: 0.75, output: 4.5, cached_input: 0.075 },
  'gpt-5.4-nano': { input: 0.2, output: 1.25, cached_input: 0.02 },
  'gpt-5.4-pro': { input: 30, output: 180, long: { above_input_tokens: 272_000, input: 60, output: 270 } },
  'gpt-5.5': { input: 5, output: 30, cached_input: 0.5, long: { above_input_tokens: 272_000, input: 10, output: 45, cached_input: 1 } },
  'gpt-5.5-pro': { input: 30, output: 180, long: { above_input_tokens: 272_000, input: 60, output: 270 } },
  'gpt-5.6-sol': { input: 5, output: 30, cached_input: 0.5, long: { above_input_tokens: 272_000, input: 10, output: 45, cached_input: 1 } },
  'gpt-5.6-terra': { input: 2, output: 12, cached_input: 0.2, long: { above_input_tokens: 272_000, input: 4, output: 18, cached_input: 0.4 } },
  'gpt-5.6-luna': { input: 0.2, output: 1.2, cached_input: 0.02, long: { above_input_tokens: 272_000, input: 0.4, output: 1.8, cached_input: 0.04 } },
  'gpt-image-1': { input: 10, output: 40, cached_input: 1.25 },
  'gpt-image-1-mini': { input: 2, output: 8, cached_input: 0.2 },
};

export const LIST_PRICES: PriceDocument = {
  source: 'list prices of 2026-08-05',
  providers: {
    openai: OPENAI,
    azure: OPENAI,
    anthropic: {
      'claude-3-haiku': { input: 0.25, output: 1.25, cached_input: 0.025, cache_write: 0.3125 },
      'claude-3-opus': { input: 15, output: 75, cached_input: 1.5, cache_write: 18.75 },
      'claude-3-5-haiku': { input: 0.8, output: 4, cached_input: 0.08, cache_write: 1 },
      'claude-3-5-sonnet': { input: 3, output: 15, cached_input: 0.3, cache_write: 3.75 },
      'claude-3-7-sonnet': { input: 3, output: 15, cached_input: 0.3, cache_write: 3.75 },
      'claude-haiku-4-5': { input: 1, output: 5, cached_input: 0.1, cache_write: 1.25 },
      'claude-sonnet-4-5': {
        input: 3, output: 15, cached_input: 0.3, cache_write: 3.75,
        long: { above_input_tokens: 200_000, input: 6, output: 22.5, cached_input: 0.6, cache_write: 7.5 },
      },
      'claude-sonnet-5': { input: 3, output: 15, cached_input: 0.3, cache_write: 3.75 },
      'claude-opus-4': { input: 15, output: 75, cached_input: 1.5, cache_write: 18.75 },
      'claude-opus-4-1': { input: 15, output: 75, cached_input: 1.5, cache_write: 18.75 },
      'claude-opus-4-5': { input: 5, output: 25, cached_input: 0.5, cache_write: 6.25 },
      'claude-opus-4-6': { input: 5, output: 25, cached_input: 0.5, cache_write: 6.25 },
      'claude-opus-4-7': { input: 5, output: 25, cached_input: 0.5, cache_write: 6.25 },
      'claude-opus-4-8': { input: 5, output: 25, cached_input: 0.5, cache_write: 6.25 },
      'claude-fable-5': { input: 10, output: 50, cached_input: 1, cache_write: 12.5 },
      'claude-mythos-5': { input: 10, output: 50, cached_input: 1, cache_write: 12.5 },
    },
    google: {
      'gemini-1.5-flash': { input: 0.075, output: 0.3, long: { above_input_tokens: 128_000, input: 0.15, output: 0.6 } },
      'gemini-1.5-flash-8b': { input: 0.0375, output: 0.15, long: { above_input_tokens: 128_000, input: 0.075, output: 0.3 } },
      'gemini-1.5-pro': { input: 1.25, output: 5, long: { above_input_tokens: 128_000, input: 2.5, output: 10 } },
      'gemini-2.0-flash': { input: 0.1, output: 0.4 },
      'gemini-2.0-flash-lite': { input: 0.075, output: 0.3 },
      'gemini-2.5-flash': { input: 0.3, output: 2.5, cached_input: 0.03 },
      'gemini-2.5-flash-lite': { input: 0.1, output: 0.4, cached_input: 0.01 },
      'gemini-2.5-pro': { input: 1.25, output: 10, cached_input: 0.125, long: { above_input_tokens: 200_000, input: 2.5, output: 15, cached_input: 0.25 } },
      'gemini-3-flash-preview': { input: 0.5, output: 3 },
      'gemini-3-pro-preview': { input: 2, output: 12, long: { above_input_tokens: 200_000, input: 4, output: 18 } },
      'gemini-3.1-flash-lite-preview': { input: 0.25, output: 1.5, cached_input: 0.025 },
      'gemini-3.1-pro-preview': { input: 2, output: 12, long: { above_input_tokens: 200_000, input: 4, output: 18 } },
      'gemini-3.5-flash': { input: 1.5, output: 9, cached_input: 0.15 },
      'gemini-3.5-flash-lite': { input: 0.3, output: 2.5, cached_input: 0.03 },
      'gemini-3.6-flash': { input: 1.5, output: 7.5, cached_input: 0.15 },
    },
  },
};
