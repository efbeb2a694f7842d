/** How long secrets may live, as the settings say. What was stored under other settings stays as it is until somebody changes it. */
import { HttpProblem } from '../http/problems.ts';

const DAY_MS = 24 * 60 * 60 * 1000;

/** As `settings.secrets`. */
export interface SecretLives {
  readonly default_life_days: number | null;
  readonly max_life_days: number | null;
}

export const UNLIMITED_LIVES: SecretLives = { default_life_days: null, max_life_days: null };

/**
 * What somebody asks for, if it may be: `null` is never.
 * @throws HttpProblem `invalid_request` for a life beyond the longest
 */
export function allowedExpiry({ max_life_days: maxDays }: SecretLives, expiresAtMs: number | null, nowMs: number): number | null {
  if (maxDays !== null && (expiresAtMs === null || expiresAtMs > nowMs + maxDays * DAY_MS)) {
    throw new HttpProblem('invalid_request', `expires_at: the settings allow ${maxDays} days at most.`);
  }
  return expiresAtMs;
}

/** When a secret expires of which nobody said when: with its value, where that has an end of its own, and with the default life at the latest. */
export function defaultExpiry({ default_life_days: days }: SecretLives, ofValueMs: number | null, nowMs: number): number | null {
  const earliestMs = Math.min(ofValueMs ?? Infinity, days === null ? Infinity : nowMs + days * DAY_MS);
  return earliestMs === Infinity ? null : earliestMs;
}

/** The end that a new value brings along for a secret that is there already, and the longest life at the latest. */
export function longestExpiry({ max_life_days: days }: SecretLives, ofValueMs: number, nowMs: number): number {
  return Math.min(ofValueMs, days === null ? Infinity : nowMs + days * DAY_MS);
}
