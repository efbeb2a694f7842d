/**
 * Interactions, the API beside `generateContent` that Google's Gemini has as well: a call names its model in its body, and says
 * what it used in its answer, and in a stream at its steps and at its end.
 *
 * @see https://ai.google.dev/api/interactions-api
 */
import type { Failure } from './failures.ts';
import { count, mayGoOn, member, parsed, text } from './metering.ts';
import type { Asked, Meter } from './provider.ts';

const PATH = /^v1(?:alpha|beta)?\/interactions$/;

/** Whether a POST of that path makes an interaction. */
export function isInteraction(rest: string): boolean {
  return PATH.test(rest);
}

/** Where an agent runs in the place of a model, no model is named. */
export function interactionAsks(body: unknown): Asked {
  return {
    model: text(member(body, 'model')),
    maxOutputTokens: count(member(member(body, 'generation_config'), 'max_output_tokens')),
    isInBackground: mayGoOn(body),
  };
}

/** The event that its SDK hands to its caller as an error. */
export function interactionErrorEvent({ code, message }: Failure): string {
  return `event: error\ndata: ${JSON.stringify({ event_type: 'error', error: { code, message } })}\n\n`;
}

// Also those that it stops at until it is gone on with, in another call.
const LAST = /^(?:error|interaction\.(?:completed?|failed|cancelled|incomplete|requires_action))$/;

/** A meter for one interaction. */
export function interactionMeter(): Meter {
  let isDone = false;
  let model: string | null = null;
  let inputTokens: number | null = null;
  let outputTokens: number | null = null;
  let cachedInputTokens: number | null = null;

  function look(value: unknown): void {
    model = text(member(value, 'model')) ?? model;
    const usage = member(value, 'usage');
    const input = count(member(usage, 'total_input_tokens'));
    if (input === null) return;
    // Each count stands for everything so far; thoughts are billed as output, and what tools brought in as input.
    inputTokens = input + (count(member(usage, 'total_tool_use_tokens')) ?? 0);
    cachedInputTokens = count(member(usage, 'total_cached_tokens')) ?? cachedInputTokens;
    outputTokens = (count(member(usage, 'total_output_tokens')) ?? 0) + (count(member(usage, 'total_thought_tokens')) ?? 0);
  }

  return {
    marks: ['"usage"', '"interaction.', '"error"', '[DONE]'],
    event(data) {
      const value = parsed(data);
      if (data === '[DONE]' || LAST.test(text(member(value, 'event_type')) ?? '')) isDone = true;
      look(member(value, 'interaction') ?? value);
    },
    answer: look,
    isWhole: () => isDone,
    usage: () => ({ model, inputTokens, outputTokens, cachedInputTokens, cacheWriteTokens: null }),
  };
}
